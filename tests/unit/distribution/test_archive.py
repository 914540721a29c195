"""Signed archives: what was put in comes out, and whatever was changed on the way is refused with its own sentence, leaving nothing."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckp.clients.signing.openpgp import SigningKey
from ckp.distribution.carry.archive import INDEX, SIGNATURE, Member, allowed, read_archive, write_archive
from ckp.kits.errors import CkpError, InvalidInput, VerificationFailed
from tests.support.costs import cost
from tests.support.signing_keys import signing_key

Rewrite = Callable[[list[tuple[tarfile.TarInfo, bytes]]], list[tuple[tarfile.TarInfo, bytes]]]


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return signing_key(tmp_path_factory.mktemp("keys") / "k")


def quiet(_line: str) -> None:
    pass


@pytest.fixture
def archive(tmp_path: Path, key: SigningKey) -> Path:
    (tmp_path / "a").write_text("first")
    (tmp_path / "b").write_bytes(b"second" * 1000)
    target = tmp_path / "release.ckp"
    write_archive(target, {"release": "v1.35.1"}, [Member("x/a", tmp_path / "a"), Member("x/b", tmp_path / "b", 0o755)], key, quiet)
    return target


def rewritten(archive: Path, change: Rewrite) -> Path:
    """The archive with other members, packed again as an attacker could."""
    plain = subprocess.run(["zstd", "-dc", archive], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(plain)) as tar:
        members = [(info, (tar.extractfile(info) or io.BytesIO()).read()) for info in tar]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for info, data in change(members):
            info.size = len(data) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(data) if info.isreg() else None)
    target = archive.with_name("changed.ckp")
    target.write_bytes(subprocess.run(["zstd", "-c"], input=out.getvalue(), capture_output=True, check=True).stdout)
    return target


def test_what_went_in_comes_out_once(archive: Path, key: SigningKey, tmp_path: Path) -> None:
    lines: list[str] = []
    folder, index = read_archive(archive, key.keyring, tmp_path / "out", lines.append)
    assert (folder / "x/a").read_text() == "first"
    assert (folder / "x/b").stat().st_mode & 0o777 == 0o755
    assert index["release"] == "v1.35.1"
    again, _ = read_archive(archive, key.keyring, tmp_path / "out", lines.append)
    assert again == folder
    assert "release.ckp was imported before" in lines


def swap(name: str, data: bytes) -> Rewrite:
    return lambda members: [(info, data if info.name == name else content) for info, content in members]


def drop(name: str) -> Rewrite:
    return lambda members: [(info, content) for info, content in members if info.name != name]


def add(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> Rewrite:
    def change(members: list[tuple[tarfile.TarInfo, bytes]]) -> list[tuple[tarfile.TarInfo, bytes]]:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        return [*members, (info, b"evil" if kind == tarfile.REGTYPE else b"")]

    return change


def as_link(members: list[tuple[tarfile.TarInfo, bytes]]) -> list[tuple[tarfile.TarInfo, bytes]]:
    for info, _ in members:
        if info.name == "x/a":
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return members


def other_index(members: list[tuple[tarfile.TarInfo, bytes]]) -> list[tuple[tarfile.TarInfo, bytes]]:
    data = json.loads(members[0][1])
    data["release"] = "v9.9.9"
    return [(members[0][0], json.dumps(data).encode()), *members[1:]]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        pytest.param(swap("x/a", b"f1rst"), "x/a in .* was changed", id="a flipped byte"),
        pytest.param(swap("x/a", b"first and more"), "another name, kind or size", id="a longer file"),
        pytest.param(drop("x/b"), "ends before x/b", id="a file less"),
        pytest.param(drop("x/a"), "holds 'x/b' where its signed index has x/a", id="a file less in the middle"),
        pytest.param(add("x/c"), "holds 'x/c' where its signed index has its end", id="a file more"),
        pytest.param(add("../../etc/cron.d/x"), "where its signed index has its end", id="a path that leads out"),
        pytest.param(add("x/link", tarfile.SYMTYPE, "/etc/passwd"), "where its signed index has its end", id="a link more"),
        pytest.param(as_link, "another name, kind or size", id="a link in a file's place"),
        pytest.param(other_index, "was changed after it was signed", id="another index"),
        pytest.param(swap(SIGNATURE, b"none"), "no readable OpenPGP signature", id="no signature"),
        pytest.param(drop(SIGNATURE), "does not begin with index.json", id="no signature's member"),
        pytest.param(drop(INDEX), "does not begin with index.json", id="no index"),
    ],
)
def test_whatever_was_changed_is_refused_and_leaves_nothing(archive: Path, key: SigningKey, tmp_path: Path, change: Rewrite, sentence: str) -> None:
    out = tmp_path / "out"
    with pytest.raises(CkpError, match=sentence):
        read_archive(rewritten(archive, change), key.keyring, out, quiet)
    assert [path for path in out.rglob("*") if not path.name.endswith(".lock")] == []


def repacked(archive: Path, tar: bytes) -> Path:
    target = archive.with_name("changed.ckp")
    target.write_bytes(subprocess.run(["zstd", "-q", "-c"], input=tar, capture_output=True, check=True).stdout)
    return target


def header(name: str, kind: bytes, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


def plain(archive: Path) -> bytes:
    return subprocess.run(["zstd", "-dc", archive], capture_output=True, check=True).stdout


BEFORE: list[tuple[str, Callable[[], bytes], str]] = [
    ("a long name of 256 MiB", lambda: header("x", b"L", 256 << 20) + bytes(256 << 20), "a long name in the tar archive is too long"),
    ("a pax record of 256 MiB", lambda: header("x", b"x", 256 << 20) + bytes(256 << 20), "an entry of the type b'x'"),
    ("3,000 long names", lambda: (header("x", b"L", 4) + b"abc\0".ljust(512, b"\0")) * 3000, "a long name in the tar archive is too long, or given twice"),
    ("a sparse file", lambda: header(INDEX, b"S", 0), "an entry of the type b'S'"),
    ("an index of 1 GiB", lambda: header(INDEX, b"0", 1 << 30), "does not begin with index.json"),
    ("an index that is cut off", lambda: header(INDEX, b"0", 3 << 20) + bytes(100), "the tar archive is truncated"),
    ("zeros", lambda: bytes(256 << 20), "it is longer than"),
]


@pytest.mark.parametrize(("name", "make", "words"), BEFORE, ids=[name for name, _, _ in BEFORE])
def test_what_stands_before_the_signature_costs_little(
    archive: Path, key: SigningKey, tmp_path: Path, name: str, make: Callable[[], bytes], words: str
) -> None:
    changed = repacked(archive, make() + plain(archive))
    assert changed.stat().st_size < 1 << 20
    found = cost(__name__, "read", str(changed), str(key.keyring), str(tmp_path / "out"))
    assert words in found.said and "changed.ckp" in found.said
    assert found.cpu_seconds < 2 and found.memory_mib < 200, found


def read(archive: str, keyring: str, root: str) -> None:
    """For a process of its own."""
    read_archive(Path(archive), Path(keyring), Path(root), quiet)


def signed(archive: Path, key: SigningKey, index: bytes) -> Path:
    """The archive with another index, signed by the trusted key."""

    def change(members: list[tuple[tarfile.TarInfo, bytes]]) -> list[tuple[tarfile.TarInfo, bytes]]:
        return [(members[0][0], index), (members[1][0], key.sign(index, armor=True)), *members[2:]]

    return rewritten(archive, change)


MALFORMED = [
    ("a huge size", '"size": 5', '"size": 1' + "0" * 400, "a number of 401 digits"),
    ("a size beyond tar", '"size": 5', '"size": 8589934592', "the entry x/a has no size"),
    ("true as a size", '"size": 5', '"size": true', "the entry x/a has no size"),
    ("a size below zero", '"size": 5', '"size": -5', "the entry x/a has no size"),
    ("a size in words", '"size": 5', '"size": "5"', "the entry x/a has no size"),
    ("a mode with a fraction", '"mode": 420', '"mode": 420.0', "the number 420.0"),
    ("setuid", '"mode": 420', '"mode": 2541', "has another mode than 0644 and 0755"),
    ("true as the schema", '"schema": 1', '"schema": true', "it has no schema or no files"),
    ("a list for an entry", '"x/a": {', '"x/a": [{', "is malformed"),
    ("a name twice", '"x/a": {', '"x/b": {', "it has 'x/b' twice"),
    ("a path that leads out", '"x/a": {', '"../a": {', "'../a' is not a plain relative path"),
    ("an escape in a name", '"x/a": {', '"x/\\u001b[2J": {', "is not a plain relative path"),
    ("a digest in capitals", '"sha256": "', '"sha256": "A', "has no SHA-256"),
]


@pytest.mark.parametrize(("name", "old", "new", "words"), MALFORMED, ids=[row[0] for row in MALFORMED])
def test_an_index_that_is_signed_and_malformed_is_refused(archive: Path, key: SigningKey, tmp_path: Path, name: str, old: str, new: str, words: str) -> None:
    with tarfile.open(fileobj=io.BytesIO(plain(archive))) as tar:
        stream = tar.extractfile(INDEX)
        assert stream is not None
        index = stream.read().decode()
    assert old in index
    out = tmp_path / "out"
    with pytest.raises(VerificationFailed) as caught:
        read_archive(signed(archive, key, index.replace(old, new, 1).encode()), key.keyring, out, quiet)
    assert words in caught.value.brief and "changed.ckp" in caught.value.brief and caught.value.brief.isprintable()
    assert list(out.rglob("*")) == []


def test_a_signed_index_of_lists_in_lists_costs_little(archive: Path, key: SigningKey, tmp_path: Path) -> None:
    index = b'{"schema": 1, "files": {}, "x": [' + b"[]," * 1_300_000 + b"[]]}"
    found = cost(__name__, "read", str(signed(archive, key, index)), str(key.keyring), str(tmp_path / "out"))
    assert "its signed index has its end" in found.said
    assert found.cpu_seconds < 5 and found.memory_mib < 500, found


def test_a_key_that_is_not_trusted_is_refused(archive: Path, tmp_path: Path) -> None:
    stranger = signing_key(tmp_path / "other", "stranger")
    with pytest.raises(VerificationFailed, match="not trusted here"):
        read_archive(archive, stranger.keyring, tmp_path / "out", quiet)


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_what_is_no_archive_is_said_to_be_none(archive: Path, key: SigningKey, tmp_path: Path, damage: str) -> None:
    data = archive.read_bytes()
    archive.write_bytes({"cut": data[: len(data) // 2], "text": b"hello", "empty": b""}[damage])
    with pytest.raises((InvalidInput, VerificationFailed)):
        read_archive(archive, key.keyring, tmp_path / "out", quiet)


def test_a_name_that_is_not_allowed_is_refused_when_writing(key: SigningKey, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    with pytest.raises(InvalidInput, match="can't be a member"):
        write_archive(tmp_path / "out", {}, [Member("../a", tmp_path / "a")], key, quiet)
    assert not (tmp_path / "out").exists()


@given(st.text(alphabet="ab./-~\\\0 ", max_size=12))
def test_no_allowed_name_leads_out(name: str) -> None:
    if allowed(name):
        root = Path("/root-of-it")
        assert (root / name).resolve().is_relative_to(root)
        assert "\0" not in name
