"""Attacks by how a deb's archives are packed, and by whose its files are.

What CKP calls good, dpkg unpacks to the same bytes: dpkg-deb is the judge.
"""

from __future__ import annotations

import gzip
import lzma
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckp.clients.signing.openpgp import SigningKey
from ckp.hostkit.errors import VerificationFailed
from ckp.verify import rpmfile
from ckp.verify.debfile import verify_deb
from ckp.verify.rpmfile import verify_rpm
from tests.support.signing_keys import signing_key
from tests.support.spoilt_packages import Deb, Rpm, ar, special, tar_of, texts

TAR = tar_of(special("./usr/", b"5", mode=0o755), ("./usr/kubelet", b"#!/bin/true\n" * 200), ("./usr/more", bytes(range(256)) * 40))
SKIPPED = b"\x50\x2a\x4d\x18\x04\0\0\0evil"
"""A frame that readers pass over (RFC 8878, 3.1.2)."""


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return signing_key(tmp_path_factory.mktemp("world") / "keys")


def zstd(data: bytes, *options: str) -> bytes:
    return subprocess.run(["zstd", "-q", "-c", *options], input=data, capture_output=True, check=True).stdout


def packed(path: Path, key: SigningKey, data: bytes, packing: str) -> Path:
    """A deb whose data.tar is these bytes, signed well."""
    members = [*Deb().members()[:2], (f"data.tar.{packing}", data)]
    path.write_bytes(ar([*members, ("_gpgorigin", key.sign(b"".join(content for _, content in members)))]))
    return path


ATTACKS: list[tuple[str, Callable[[], bytes], str, str]] = [
    ("two frames", lambda: zstd(TAR[:1000]) + zstd(TAR[1000:]), "data follows the end of the compressed data", "data archive"),
    ("a frame behind it that is passed over", lambda: zstd(TAR) + SKIPPED, "data follows the end of the compressed data", "data archive"),
    ("a frame before it that is passed over", lambda: SKIPPED + zstd(TAR), "not packed, which is not what its name says", "packing"),
    ("bytes behind it", lambda: zstd(TAR) + b"evil", "data follows the end of the compressed data", "data archive"),
    ("a cut end", lambda: zstd(TAR)[:-1], "the compressed data is truncated", "data archive"),
    ("a cut beginning", lambda: zstd(TAR)[:7], "the compressed data is truncated", "data archive"),
    ("a large window", lambda: zstd(TAR, "--long=28"), "needs a window of more than 128 MiB", "data archive"),
    ("a dictionary", lambda: b"\x28\xb5\x2f\xfd\x25\x01" + zstd(TAR)[5:], "needs a dictionary, or is of a later format", "data archive"),
]


@pytest.mark.parametrize(("name", "make", "words", "check"), ATTACKS, ids=[row[0] for row in ATTACKS])
def test_attack_by_a_frame_of_zstd(key: SigningKey, tmp_path: Path, name: str, make: Callable[[], bytes], words: str, check: str) -> None:
    with pytest.raises(VerificationFailed) as caught:
        verify_deb(str(packed(tmp_path / "kubelet.deb", key, make(), "zst")), str(key.keyring))
    assert words in caught.value.brief
    assert caught.value.check == check


@pytest.mark.parametrize(("kind", "target"), [(b"0", ""), (b"\0", ""), (b"1", "./usr/kubelet"), (b"2", "kubelet")])
def test_only_a_folder_is_called_like_one(key: SigningKey, tmp_path: Path, kind: bytes, target: str) -> None:
    """dpkg makes a file of it, and of links it makes nothing and fails."""
    header = bytearray(special("./usr/folderX", kind, target=target).tobuf(tarfile.GNU_FORMAT))
    header[12] = ord("/")
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:]))
    entries = TAR.rstrip(b"\0")
    path = tmp_path / "kubelet.deb"
    path.write_bytes(Deb(data=entries + bytes(-len(entries) % 512) + bytes(header) + bytes(1024)).build(key.sign))
    with pytest.raises(VerificationFailed, match="is called like a folder, and is none"):
        verify_deb(str(path), str(key.keyring))


def owned(**values: object) -> tarfile.TarInfo:
    """A program with these properties."""
    info = special("./usr/program", tarfile.REGTYPE, mode=0o755)
    for name, value in values.items():
        setattr(info, name, value)
    return info


RIGHTS: list[tuple[str, dict[str, object], str, str]] = [
    ("the number of a user", {"uid": 1000}, "'./usr/program' belongs to the user '0001750', and not to root", "owner"),
    ("a user's name over root's number", {"uname": "nobody"}, "belongs to the user 'nobody'", "owner"),
    ("a large number", {"uid": 1 << 40}, "belongs to the user ", "owner"),
    ("a group", {"gname": "docker"}, "belongs to the group 'docker'", "owner"),
    ("a file that all can write to", {"mode": 0o666}, "can be written by every user (mode 0666)", "writable by all"),
    ("a folder that all can write to", {"type": tarfile.DIRTYPE, "mode": 0o1777}, "can be written by every user (mode 1777)", "writable by all"),
]


@pytest.mark.parametrize(("name", "values", "words", "check"), RIGHTS, ids=[row[0] for row in RIGHTS])
def test_attack_by_who_may_change_a_program_of_a_deb(key: SigningKey, tmp_path: Path, name: str, values: dict[str, object], words: str, check: str) -> None:
    (tmp_path / "kubelet.deb").write_bytes(Deb(data=tar_of(owned(**values))).build(key.sign))
    with pytest.raises(VerificationFailed) as caught:
        verify_deb(str(tmp_path / "kubelet.deb"), str(key.keyring))
    assert words in caught.value.brief
    assert caught.value.check == check


@pytest.mark.parametrize(
    ("rpm", "check"),
    [
        (Rpm(tags={rpmfile.FILE_USERS: texts("nobody")}), "owner"),
        (Rpm(tags={rpmfile.FILE_GROUPS: texts("docker")}), "owner"),
        (Rpm(files=(("/usr/bin/", "kubelet", 0o100757, ""),)), "writable by all"),
        (Rpm(tags={rpmfile.FILE_USERS: texts("root", "root")}), "rpm header"),
    ],
)
def test_attack_by_who_may_change_a_program_of_an_rpm(key: SigningKey, tmp_path: Path, rpm: Rpm, check: str) -> None:
    (tmp_path / "kubelet.rpm").write_bytes(rpm.build(key.sign))
    with pytest.raises(VerificationFailed) as caught:
        verify_rpm(str(tmp_path / "kubelet.rpm"), str(key.keyring))
    assert caught.value.check == check


PACKERS: dict[str, list[Callable[[bytes], bytes]]] = {
    "zst": [
        zstd,
        lambda data: zstd(data, "--no-check"),
        lambda data: zstd(data, "--no-content-size", "-19"),
        lambda data: zstd(data, "--fast=5"),
        lambda data: zstd(data, "--long=27"),
        lambda data: zstd(data, "--stream-size=" + str(len(data))),
        lambda data: zstd(data, "-T2"),
    ],
    "gz": [lambda data: gzip.compress(data, mtime=0), lambda data: gzip.compress(data, 0)],
    "xz": [lzma.compress, lambda data: lzma.compress(data, check=lzma.CHECK_NONE), lambda data: lzma.compress(data, preset=0)],
}


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_is_good_dpkg_unpacks_to_the_same(key: SigningKey, tmp_path: Path, data: st.DataObject) -> None:
    packing = data.draw(st.sampled_from(sorted(PACKERS)))
    pack = data.draw(st.sampled_from(PACKERS[packing]))
    cuts = sorted(data.draw(st.lists(st.integers(1, len(TAR) - 1), max_size=1)))
    parts = [pack(TAR[start:end]) for start, end in zip([0, *cuts], [*cuts, len(TAR)], strict=True)]
    raw = bytearray(b"".join(parts))
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    path = packed(tmp_path / "kubelet.deb", key, bytes(raw), packing)
    try:
        verify_deb(str(path), str(key.keyring))
    except VerificationFailed:
        assert len(parts) > 1 or bytes(raw) != parts[0], "what a packer writes is good"
        return
    assert subprocess.run(["dpkg-deb", "--fsys-tarfile", path], capture_output=True, check=True, timeout=60).stdout == TAR
