"""No input of a mebibyte costs more than a small host can spare, whatever it says; measured in a process of its own, by its CPU time and its memory."""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ckp.clients.signing.openpgp import SigningKey
from tests.support.costs import Cost, cost_of_program
from tests.support.signing_keys import signing_key
from tests.support.spoilt_packages import Deb, Rpm, numbers, special, tar_of, texts

MEBIBYTE = 1 << 20
SECONDS, MEGABYTES = 5.0, 500
"""After the signature is found good. What these inputs take is under a third of it."""


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SigningKey]:
    yield signing_key(tmp_path_factory.mktemp("k") / "keys")


PROGRAM = """
import sys
from ckp.hostkit.errors import VerificationFailed
try:
    {script}
    print("good")
except VerificationFailed as error:
    print(error.brief)
"""


def cost(script: str, *arguments: str) -> Cost:
    """Of a Python that runs `script` over ckp.verify, and says "good" or the refusal."""
    return cost_of_program(PROGRAM.format(script=script), *arguments)


def fields(key: SigningKey) -> bytes:
    """As many fields as fit into a control file: once as costly as the square of their number."""
    return Deb(fields="".join(f"X{number}: x\n" for number in range(70_000))).build(key.sign)


def lines(key: SigningKey) -> bytes:
    """As many lines as fit into one field."""
    return Deb(end="Description: a test\n" + " x\n" * 320_000).build(key.sign)


def deep_paths(key: SigningKey) -> bytes:
    return Deb(data=tar_of(*((f"./{number}/" + "d/" * 2000 + "x", b"") for number in range(400)))).build(key.sign)


def allowed_depth(key: SigningKey) -> bytes:
    """Paths as deep as they may be, none of whose folders is shared."""
    return Deb(data=tar_of(*((f"./{number}/" + "d/" * 62 + "x", b"") for number in range(4_000)))).build(key.sign)


def entries(key: SigningKey) -> bytes:
    """As many entries as their packing allows."""
    return Deb(data=tar_of(*(special(f"./{number}", tarfile.REGTYPE) for number in range(90_000))), data_pack="xz").build(key.sign)


def zeros(key: SigningKey) -> bytes:
    """One file that unpacks to far more than it is."""
    return Deb(data=tar_of(("./x", bytes(200 << 20))), data_pack="xz").build(key.sign)


def rpm_folder(key: SigningKey) -> bytes:
    """One deep folder, given by its number to each of many files."""
    count = 36_000
    return Rpm(files=tuple(("/" + "d/" * 63, f"{number:x}", 0o100644, "") for number in range(count))).build(key.sign)


def rpm_texts(key: SigningKey) -> bytes:
    """A header of nothing but empty texts."""
    return Rpm(tags={1082: texts(*[""] * 900_000), 1080: numbers(*[0] * 10)}).build(key.sign)


PACKAGES: list[tuple[str, Callable[[SigningKey], bytes], str]] = [
    ("deb", fields, "more than 256 fields"),
    ("deb", lines, "good"),
    ("deb", deep_paths, "at most 64 are allowed"),
    ("deb", allowed_depth, "entries and folders"),
    ("deb", entries, "good"),
    ("deb", zeros, "when decompressed"),
    ("rpm", rpm_folder, "good"),
    ("rpm", rpm_texts, "good"),
]


@pytest.mark.parametrize(("kind", "make", "words"), PACKAGES, ids=[make.__name__ for _, make, _ in PACKAGES])
def test_no_signed_package_of_a_mebibyte_is_costly(key: SigningKey, tmp_path: Path, kind: str, make: Callable[[SigningKey], bytes], words: str) -> None:
    path = tmp_path / f"kubelet.{kind}"
    path.write_bytes(make(key))
    assert path.stat().st_size < MEBIBYTE, path.stat().st_size
    script = "from ckp.verify.packages import verify_package; verify_package(sys.argv[1], sys.argv[2])"
    used = cost(script, str(path), str(key.keyring))
    assert words in used.said
    assert used.cpu_seconds < SECONDS and used.memory_mib < MEGABYTES, used


INDEX = b"Package: a\nVersion: 1\nArchitecture: all\nFilename: a.deb\nSize: 1\nSHA256: " + b"0" * 64 + b"\n"
COMMON = b'<metadata xmlns="http://linux.duke.edu/metadata/common" xmlns:rpm="http://linux.duke.edu/metadata/rpm" packages="1">'
PACKAGES_SCRIPT = """
    from ckp.verify.repositories.apt import _verify_index
    from ckp.verify.repositories.tree import Packages, Tree
    _verify_index(Tree(sys.argv[1]), "index.gz", "gz", Packages(Tree(sys.argv[1]), ""))
"""
MANY_SCRIPT = """
    from ckp.verify.repositories.apt import _verify_index
    from ckp.verify.repositories.tree import Packages, Tree
    tree = Tree(sys.argv[1])
    for _ in range(300):
        try:
            _verify_index(tree, "index.gz", "gz", Packages(tree, ""))
        except VerificationFailed as error:
            if "so few bytes" in str(error):
                raise
"""
PRIMARY_SCRIPT = """
    from ckp.verify.repositories.dnf import Metadata, _primary
    from ckp.verify.repositories.tree import Packages, Tree
    _primary(Tree(sys.argv[1]), Metadata("index.gz", 0, ""), Packages(Tree(sys.argv[1]), ""))
"""


@pytest.mark.parametrize(
    ("script", "make", "words"),
    [
        (PACKAGES_SCRIPT, lambda: b"\n" * (31 << 20), "an empty line that ends no paragraph"),
        (PACKAGES_SCRIPT, lambda: b"Package: a\n" + b" x\n" * 1_100_000, "more than 1000000 lines"),
        (PACKAGES_SCRIPT, lambda: b"".join(b"X%d: y\n" % number for number in range(2_000_000)), "more than 256 fields"),
        (PACKAGES_SCRIPT, lambda: b"Package: a\n" + b" x\n" * 990_000, "has no Version"),
        (MANY_SCRIPT, lambda: b"Package: a\n" + b" x\n" * 990_000, "more lines than so few bytes can need"),
        (PACKAGES_SCRIPT, lambda: INDEX * 100_000, "it has Package twice"),
        (PACKAGES_SCRIPT, lambda: b"x" * (31 << 20), "is longer than 256 KiB"),
        (PACKAGES_SCRIPT, lambda: "Package: \U0001f600".encode() + b"a" * (200 << 10) + b"\n", "has no Version"),
        (PRIMARY_SCRIPT, lambda: COMMON + b"<package>" + b"<a/>" * (7 << 20), "too many elements"),
        (PRIMARY_SCRIPT, lambda: COMMON + b"<a>" * (7 << 20), "too deep"),
        (PRIMARY_SCRIPT, lambda: COMMON + b"<package a='" + b"x" * (30 << 20), "is malformed"),
        (PRIMARY_SCRIPT, lambda: COMMON + b"<package>" + b"x" * (30 << 20), "is malformed"),
        (PRIMARY_SCRIPT, lambda: COMMON + b"<package " + b"".join(b"a%d='' " % number for number in range(300_000)), "is malformed"),
    ],
    ids=[
        "empty lines",
        "lines",
        "fields",
        "long field",
        "many indices",
        "paragraphs",
        "one line",
        "wide text",
        "elements",
        "depth",
        "attribute",
        "text",
        "attributes",
    ],
)
def test_no_signed_index_of_a_mebibyte_is_costly(tmp_path: Path, script: str, make: Callable[[], bytes], words: str) -> None:
    packed = gzip.compress(make(), compresslevel=6, mtime=0)
    (tmp_path / "index.gz").write_bytes(packed)
    used = cost(script.strip(), str(tmp_path))
    assert words in used.said
    assert used.cpu_seconds < SECONDS and used.memory_mib < MEGABYTES, used
