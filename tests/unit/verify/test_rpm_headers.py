"""Headers of rpms: what CKP takes, rpm takes too and reads the same in it. Each tag is dropped, doubled, and given other types and texts; rpm is the judge."""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ckp.clients.signing.openpgp import SigningKey
from ckp.hostkit.errors import VerificationFailed
from ckp.verify import rpmfile
from ckp.verify.keyrings import armoured
from ckp.verify.packagefile import PackageInfo
from ckp.verify.packages import verify_package
from ckp.verify.rpmtags import OF_FILES, TYPES
from tests.support.signing_keys import signing_key
from tests.support.spoilt_packages import Rpm, Tag, header, numbers, text, texts

WIDTHS = {rpmfile.CHAR: 1, rpmfile.INT8: 1, rpmfile.INT16: 2, rpmfile.INT32: 4, rpmfile.BIN: 1}
QUERY = "%{NAME}\\n%{EPOCHNUM}\\n%{VERSION}-%{RELEASE}\\n%{ARCH}\\n%|VENDOR?{%{VENDOR}}|\\n%|PACKAGER?{%{PACKAGER}}|\\n[%{FILENAMES}\\n]"
GOOD = Rpm(
    files=(("/usr/bin/", "kubelet", 0o100755, ""), ("/etc/", "x.conf", 0o100644, "")),
    tags={
        100: texts("C"),
        1004: (rpmfile.I18N, 1, b"a test\0"),
        1005: text("a test"),
        1006: numbers(1767225600),
        1009: numbers(20),
        1014: text("Apache-2.0"),
        1024: text("true"),
        1037: numbers(0, 0),
        1047: texts("kubelet"),
        1049: texts("cri-tools", "conntrack"),
        1048: numbers(12, 0),
        1050: texts("1.27.0", ""),
        1086: text("/bin/sh"),
        1112: numbers(8),
        1113: texts("1.35.1-ckp"),
    },
)
TEXTS = (b"", b"../../evil", b"a b", b"1\x1b[2J", b"a-b", b"x" * 300, b"\xff\xfe", b"a/b", b"1:2", b"%{lua:x}")


@dataclass(frozen=True)
class World:
    """A key, and an rpm database with it alone."""

    key: SigningKey
    home: Path

    def rpm(self, program: str, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.home), "LC_ALL": "C.UTF-8"}
        return subprocess.run([program, "--dbpath", self.home / "db", *arguments], env=environment, capture_output=True, check=False, timeout=60)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    if shutil.which("rpm") is None or shutil.which("rpmkeys") is None:
        pytest.skip("rpm is not installed (make setup installs it)")
    home = tmp_path_factory.mktemp("rpm")
    made = World(signing_key(home / "keys"), home)
    (home / "key.asc").write_bytes(armoured(made.key.keyring.read_bytes()))
    assert made.rpm("rpmkeys", "--import", home / "key.asc").returncode == 0
    yield made


def tags_of(raw: bytes) -> dict[int, Tag]:
    count, _ = struct.unpack(">II", raw[8:16])
    store, found = raw[16 + 16 * count :], {}
    for number in range(1, count):
        tag, kind, offset, values = struct.unpack(">IIiI", raw[16 + 16 * number : 32 + 16 * number])
        end = offset + WIDTHS.get(kind, 0) * values
        for _ in range(0 if kind in WIDTHS else values):
            end = store.index(b"\0", end) + 1
        found[tag] = (kind, values, store[offset:end])
    return found


def changed(tags: dict[int, Tag], tag: int) -> Iterator[dict[int, Tag]]:
    """The header with this tag made otherwise, in each way."""
    kind, count, data = tags.get(tag, (rpmfile.STRING, 1, b"x\0"))
    yield {other: value for other, value in tags.items() if other != tag}
    for other, width in WIDTHS.items():
        padded = (data + bytes(8))[: max(width, len(data) // width * width)]
        yield {**tags, tag: (other, len(padded) // width, padded)}
    for value in TEXTS if kind not in WIDTHS else TEXTS[:2]:
        yield {**tags, tag: (kind if kind not in WIDTHS else rpmfile.STRING, 1, value + b"\0")}
    for other in (rpmfile.STRING, rpmfile.STRING_ARRAY, rpmfile.I18N):
        yield {**tags, tag: (other, 1, b"1\0")}
    yield {**tags, tag: (rpmfile.I18N, 2, b"Coredge.io\0Evil\0"), 100: texts("C", "de")}
    yield {**tags, tag: (rpmfile.STRING_ARRAY, 2, b"Coredge.io\0Evil\0")}
    yield {**tags, tag: (kind, count + 1, data + (bytes(WIDTHS[kind]) if kind in WIDTHS else b"Evil\0"))}


def as_rpm_reads_it(world: World, path: Path, root: Path) -> list[str]:
    """Name, epoch, version, architecture, vendor, packager and the files, after rpm has verified the rpm and tried to install it."""
    said = world.rpm("rpmkeys", "--define", "_pkgverify_level all", "-K", path)
    assert said.returncode == 0, said
    said = world.rpm("rpm", "--root", root, "-i", "--nodeps", "--test", path)
    assert said.returncode == 0, said
    said = world.rpm("rpm", "-qp", "--qf", QUERY, path)
    assert said.returncode == 0 and not said.stderr, said
    found = said.stdout.decode().removesuffix("\n").split("\n")
    return [*found[:6], *sorted(found[6:])]


def as_we_read_it(info: PackageInfo) -> list[str]:
    epoch, _, version = info.version.rpartition(":")
    own = [info.name, epoch or "0", version, info.fields["Architecture"], info.fields["Vendor"], info.fields["Packager"]]
    return [*own, *sorted(f"/{path}" for path in info.files)]


@pytest.mark.root("rpm tries an installation into a root")
@pytest.mark.parametrize("tag", [*sorted(tags_of(GOOD.main_header())), 1003, 1023, 5008, 5010, 5046])
def test_what_is_good_rpm_takes_and_reads_the_same(world: World, tmp_path: Path, tag: int) -> None:
    path, root, good = tmp_path / "kubelet.rpm", tmp_path / "root", 0
    root.mkdir()
    lead, _, main, payload = GOOD.parts(world.key.sign)
    for tags in changed(tags_of(main), tag):
        other = header(dict(sorted(tags.items())))
        try:
            around = rpmfile.build_signature_header(rpmfile.Rpm(b"", b"", other, 0, len(payload)), world.key.sign(other))
        except rpmfile.Malformed:
            continue  # then no signature is asked for either
        path.write_bytes(lead + around + other + payload)
        try:
            info = verify_package(str(path), str(world.key.keyring))
        except VerificationFailed:
            continue
        good += 1
        assert as_rpm_reads_it(world, path, root) == as_we_read_it(info), tags.get(tag, "dropped")
    assert good or tag in TYPES


@pytest.mark.root("rpm tries an installation into a root")
def test_the_rpm_that_is_changed_is_good(world: World, tmp_path: Path) -> None:
    path = tmp_path / "kubelet.rpm"
    path.write_bytes(GOOD.build(world.key.sign))
    (tmp_path / "root").mkdir()
    assert as_rpm_reads_it(world, path, tmp_path / "root") == as_we_read_it(verify_package(str(path), str(world.key.keyring)))


def test_the_types_of_tags_are_those_of_rpm() -> None:
    """By librpm itself, where it is at hand."""
    name = next((found for found in ("librpm.so.9", "librpm.so.10") if shutil.which("rpm") and Path("/usr/lib/x86_64-linux-gnu", found).exists()), "")
    if not name:
        pytest.skip("librpm is not installed (make setup installs it)")
    library = ctypes.CDLL(name)
    library.rpmTagGetName.restype = ctypes.c_char_p
    declared = {tag: library.rpmTagGetTagType(tag) & 0xFFFF for tag in range(1000, 5102) if library.rpmTagGetName(tag) != b"(unknown)"}
    assert {tag: kind for tag, kind in declared.items() if TYPES.get(tag, (0,))[0] != kind} == {}
    assert set(OF_FILES) <= set(declared)
