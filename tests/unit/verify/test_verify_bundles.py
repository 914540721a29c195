"""Nothing that was changed, signed by others or added gets past the one verification of CKP."""

from __future__ import annotations

import datetime
import gzip
import hashlib
import io
import json
import lzma
import subprocess
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pysequoia import SignatureMode, Tsk, sign

from ckp.hostkit.errors import VerificationFailed
from ckp.verify.bundle import verify_bundle
from ckp.verify.debfile import read_ar, verify_deb
from ckp.verify.packagefile import maintained_by_coredge
from ckp.verify.packages import verify_package

GOOD_MAINTAINER = "Coredge.io <support@coredge.io>"


@pytest.fixture(scope="session")
def key() -> Any:
    return Tsk.generate("CKP test <test@example.org>")


@pytest.fixture(scope="session")
def stranger() -> Any:
    return Tsk.generate("Somebody else <else@example.org>")


@pytest.fixture(scope="session")
def keyring(key: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("keys") / "trusted.gpg"
    path.write_bytes(public(key))
    return str(path)


def public(key: Any) -> bytes:
    return bytes(key.extract_certificate())


def fingerprint(key: Any) -> str:
    return str(key.extract_certificate().fingerprint).lower()


def detached(key: Any, data: bytes, *, armor: bool = False) -> bytes:
    return bytes(sign(key.signer(), data, mode=SignatureMode.DETACHED, armor=armor))


def ar(members: list[tuple[str, bytes]]) -> bytes:
    out = b"!<arch>\n"
    for name, data in members:
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + (b"\n" if len(data) % 2 else b"")
    return out


def tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


@dataclass
class Deb:
    """A small package, by parts, so that a test can spoil one of them before or after the signature is made."""

    name: str = "kubelet"
    version: str = "1.35.1-ckp"
    architecture: str = "amd64"
    maintainer: str = GOOD_MAINTAINER
    pack: str = "gz"
    control_name: str = "./control"
    extra: dict[str, bytes] = field(default_factory=dict)

    def control(self) -> bytes:
        text = f"Package: {self.name}\nVersion: {self.version}\nArchitecture: {self.architecture}\nMaintainer: {self.maintainer}\nDescription: a test\n more\n"
        raw = tar({self.control_name: text.encode(), **self.extra})
        return gzip.compress(raw, mtime=0) if self.pack == "gz" else lzma.compress(raw)

    def signed_members(self) -> list[tuple[str, bytes]]:
        data = gzip.compress(tar({"./usr/bin/kubelet": b"#!/bin/true\n" * 50}), mtime=0)
        return [("debian-binary", b"2.0\n"), (f"control.tar.{self.pack}", self.control()), ("data.tar.gz", data)]

    def build(self, key: Any) -> bytes:
        members = self.signed_members()
        return ar([*members, ("_gpgorigin", detached(key, b"".join(data for _, data in members)))])


def write_bundle(folder: Path, key: Any, debs: dict[str, bytes], files: dict[str, bytes] | None = None, **changes: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    files = {"chart-cilium.tgz": b"chart"} if files is None else files
    manifest: dict[str, Any] = {
        "schema": 1,
        "release": "v1.35.1",
        "version": "1.35.1-ckp",
        "os": "debian",
        "os_version": "12",
        "architecture": "amd64",
        "registry": "registry.example:5000/ckp",
        "packages": [
            {"file": name, "name": name[: -len(".deb")], "version": "1.35.1-ckp", "sha256": hashlib.sha256(data).hexdigest()} for name, data in debs.items()
        ],
        "files": [{"file": name, "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()],
        "images": {"pause": "3.10@sha256:" + "a" * 64},
        "stand_ins": ["a for b"],
    }
    manifest.update(changes)
    for name, data in {**debs, **files}.items():
        (folder / name).write_bytes(data)
    sign_manifest(folder, key, manifest)
    return manifest


def sign_manifest(folder: Path, key: Any, manifest: dict[str, Any]) -> None:
    raw = json.dumps(manifest).encode()
    (folder / "bundle.json").write_bytes(raw)
    (folder / "bundle.json.asc").write_bytes(detached(key, raw, armor=True))


@pytest.fixture
def bundle(tmp_path: Path, key: Any) -> Path:
    folder = tmp_path / "bundle"
    write_bundle(folder, key, {"kubelet.deb": Deb().build(key), "kubeadm.deb": Deb(name="kubeadm", pack="xz").build(key)})
    return folder


def refused(folder: Path, keyring: str, words: str, check: str = "", release: str | None = None) -> VerificationFailed:
    with pytest.raises(VerificationFailed) as caught:
        verify_bundle(str(folder), keyring, release)
    assert words in caught.value.brief, caught.value.render()
    if check:
        assert caught.value.check == check
    assert caught.value.permanent
    return caught.value


def test_a_good_bundle_is_taken_with_all_that_it_names(bundle: Path, keyring: str, key: Any) -> None:
    manifest = verify_bundle(str(bundle), keyring, "v1.35.1")
    assert [package.name for package in manifest.packages] == ["kubelet", "kubeadm"]
    assert manifest.key.lower() == fingerprint(key)
    assert manifest.images == {"pause": "3.10@sha256:" + "a" * 64}
    assert manifest.path("kubelet.deb") == str(bundle / "kubelet.deb")
    with pytest.raises(KeyError):
        manifest.path("../etc/passwd")


@pytest.mark.parametrize("pack", ["gz", "xz"])
def test_a_valid_package_is_accepted_with_its_metadata(tmp_path: Path, keyring: str, key: Any, pack: str) -> None:
    path = tmp_path / "kubelet.deb"
    path.write_bytes(Deb(pack=pack).build(key))
    info = verify_deb(str(path), keyring)
    assert (info.name, info.version, info.architecture, info.maintainer) == ("kubelet", "1.35.1-ckp", "amd64", GOOD_MAINTAINER)


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_one_flipped_byte_in_any_member_is_found_by_the_signature_alone(tmp_path: Path, keyring: str, key: Any, index: int, where: str) -> None:
    path = tmp_path / "kubelet.deb"
    raw = bytearray(Deb().build(key))
    path.write_bytes(raw)
    with path.open("rb") as stream:
        member = read_ar(stream, "kubelet.deb")[index]
    position = {"first": member.start, "middle": member.start + member.size // 2, "last": member.end - 1}[where]
    raw[position] ^= 0x01
    path.write_bytes(raw)
    with pytest.raises(VerificationFailed) as caught:
        verify_deb(str(path), keyring)
    assert "kubelet.deb" in caught.value.brief


def test_a_flipped_byte_in_a_bundles_package_stops_at_the_digest_and_names_the_file(bundle: Path, keyring: str) -> None:
    path = bundle / "kubelet.deb"
    raw = bytearray(path.read_bytes())
    raw[200] ^= 1
    path.write_bytes(raw)
    error = refused(bundle, keyring, "SHA-256 of kubelet.deb", "sha256")
    assert "expected" in error.details and "found" in error.details


def test_a_package_with_a_good_digest_and_a_broken_signature_is_refused(tmp_path: Path, keyring: str, key: Any) -> None:
    good = Deb()
    members = good.signed_members()
    signature = detached(key, b"".join(data for _, data in members))
    members[2] = ("data.tar.gz", members[2][1] + b"\0")
    write_bundle(tmp_path / "b", key, {"kubelet.deb": ar([*members, ("_gpgorigin", signature)])})
    refused(tmp_path / "b", keyring, "kubelet.deb was changed after it was signed", "signature")


def test_a_package_signed_by_another_key_is_refused_with_that_keys_fingerprint(tmp_path: Path, keyring: str, key: Any, stranger: Any) -> None:
    write_bundle(tmp_path / "b", key, {"kubelet.deb": Deb().build(stranger)})
    error = refused(tmp_path / "b", keyring, "kubelet.deb is signed by a key that is not trusted here", "trusted key")
    assert error.key and error.key.lower() != fingerprint(key)
    assert error.key in error.details


def test_a_manifest_signed_by_another_key_is_refused(tmp_path: Path, keyring: str, key: Any, stranger: Any) -> None:
    write_bundle(tmp_path / "b", stranger, {"kubelet.deb": Deb().build(key)})
    refused(tmp_path / "b", keyring, "bundle.json is signed by a key that is not trusted here", "trusted key")


def test_a_changed_manifest_is_refused(bundle: Path, keyring: str) -> None:
    path = bundle / "bundle.json"
    path.write_bytes(path.read_bytes().replace(b"v1.35.1", b"v1.35.2"))
    refused(bundle, keyring, "bundle.json was changed after it was signed", "signature")


@pytest.mark.parametrize(
    "maintainer",
    [
        "Somebody <s@example.org>",
        "Coredge <support@coredge.io>",
        "Not Coredge.io <a@b.c>",
        "coredge.io.example <x@y.z>",
        "Coredge.io.evil <x@y.z>",
        "x <Coredge.io@example.org>",
    ],
)
def test_another_maintainer_is_refused_though_the_key_is_good(tmp_path: Path, keyring: str, key: Any, maintainer: str) -> None:
    write_bundle(tmp_path / "b", key, {"kubelet.deb": Deb(maintainer=maintainer).build(key)})
    error = refused(tmp_path / "b", keyring, "Maintainer is", "maintainer")
    assert maintainer in error.brief


def test_coredge_is_the_only_maintainer() -> None:
    assert maintained_by_coredge("Coredge.io")
    assert maintained_by_coredge(GOOD_MAINTAINER)
    assert not maintained_by_coredge("")


def test_a_stripped_signature_is_refused(tmp_path: Path, keyring: str, key: Any) -> None:
    write_bundle(tmp_path / "b", key, {"kubelet.deb": ar(Deb().signed_members())})
    refused(tmp_path / "b", keyring, "kubelet.deb is not signed", "signature present")


def test_garbage_in_place_of_a_signature_is_refused(tmp_path: Path, keyring: str, key: Any) -> None:
    write_bundle(tmp_path / "b", key, {"kubelet.deb": ar([*Deb().signed_members(), ("_gpgorigin", b"not a signature")])})
    refused(tmp_path / "b", keyring, "no readable OpenPGP signature")


def test_two_signatures_are_refused_even_if_both_are_good(tmp_path: Path, keyring: str, key: Any) -> None:
    members = Deb().signed_members()
    signature = detached(key, b"".join(data for _, data in members))
    write_bundle(tmp_path / "b", key, {"kubelet.deb": ar([*members, ("_gpgorigin", signature + signature)])})
    refused(tmp_path / "b", keyring, "2 signatures", "one signature")


@pytest.mark.parametrize("position", [0, 1, 2, 3, 4])
def test_an_extra_member_anywhere_is_refused(tmp_path: Path, keyring: str, key: Any, position: int) -> None:
    members = Deb().signed_members()
    members.append(("_gpgorigin", detached(key, b"".join(data for _, data in members))))
    members.insert(position, ("_extra", b"x"))
    write_bundle(tmp_path / "b", key, {"kubelet.deb": ar(members)})
    refused(tmp_path / "b", keyring, "does not have the members", "members")


def test_a_second_data_member_in_place_of_another_is_refused(tmp_path: Path, keyring: str, key: Any) -> None:
    members = Deb().signed_members()
    members = [members[0], members[2], members[1]]
    members.append(("_gpgorigin", detached(key, b"".join(data for _, data in members))))
    write_bundle(tmp_path / "b", key, {"kubelet.deb": ar(members)})
    refused(tmp_path / "b", keyring, "does not have the members", "members")


def test_bytes_after_the_last_member_are_refused(tmp_path: Path, keyring: str, key: Any) -> None:
    path = tmp_path / "kubelet.deb"
    raw = Deb().build(key)
    path.write_bytes(raw + b"\n" * (len(raw) % 2) + b"trailing")
    with pytest.raises(VerificationFailed, match="not a well-formed Debian package"):
        verify_deb(str(path), keyring)


@pytest.mark.parametrize(
    ("deb", "words"),
    [
        (Deb(name="kubectl"), "Package is 'kubectl', must be 'kubelet'"),
        (Deb(version="1.35.0-ckp"), "Version is '1.35.0-ckp'"),
        (Deb(architecture="arm64"), "Architecture is 'arm64'"),
    ],
)
def test_a_well_signed_package_that_is_not_the_expected_one_is_refused(tmp_path: Path, keyring: str, key: Any, deb: Deb, words: str) -> None:
    write_bundle(tmp_path / "b", key, {"kubelet.deb": deb.build(key)})
    refused(tmp_path / "b", keyring, words)


@pytest.mark.parametrize("evil", ["../control", "/control", "./../../etc/passwd", "a/control"])
def test_a_control_archive_with_paths_outside_is_refused(tmp_path: Path, keyring: str, key: Any, evil: str) -> None:
    path = tmp_path / "kubelet.deb"
    path.write_bytes(Deb(extra={evil: b"x"}).build(key))
    with pytest.raises(VerificationFailed, match="outside the control folder"):
        verify_package(str(path), keyring)


def test_a_control_archive_that_unpacks_to_gigabytes_is_refused(tmp_path: Path, keyring: str, key: Any) -> None:
    path = tmp_path / "kubelet.deb"
    path.write_bytes(Deb(extra={"./bomb": b"\0" * (32 << 20)}).build(key))
    with pytest.raises(VerificationFailed, match="longer than 16 MiB"):
        verify_package(str(path), keyring)


def test_an_unlisted_file_is_refused(bundle: Path, keyring: str) -> None:
    (bundle / "extra.sh").write_text("echo")
    refused(bundle, keyring, "extra.sh is in the bundle, but is not named", "nothing unlisted")


def test_a_missing_file_is_refused(bundle: Path, keyring: str) -> None:
    (bundle / "chart-cilium.tgz").unlink()
    refused(bundle, keyring, "chart-cilium.tgz is named in bundle.json, but is missing", "completeness")


def test_a_changed_plain_file_is_refused(bundle: Path, keyring: str) -> None:
    (bundle / "chart-cilium.tgz").write_bytes(b"chart!")
    refused(bundle, keyring, "SHA-256 of chart-cilium.tgz", "sha256")


@pytest.mark.parametrize("name", ["../evil.deb", "/etc/evil.deb", "a/b.deb", ".hidden.deb", "..", "bundle.json", "a b.deb", "a\n.deb", ""])
def test_a_name_that_is_a_path_is_refused_though_it_is_signed(bundle: Path, keyring: str, key: Any, name: str) -> None:
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["packages"][0]["file"] = name
    sign_manifest(bundle, key, manifest)
    refused(bundle, keyring, "bundle.json is malformed", "manifest")


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"packages": {}},
        {"release": ""},
        {"version": 3},
        {"images": ["x"]},
        {"images": {"pause": "3.10"}},
        {"images": {"pause": "@sha256:" + "a" * 64}},
        {"images": {"pause": "3.10@sha256:abc"}},
        {"stand_ins": [1]},
        {"registry": None},
    ],
)
def test_a_malformed_manifest_is_refused_though_it_is_signed(bundle: Path, keyring: str, key: Any, change: dict[str, Any]) -> None:
    manifest = {**json.loads((bundle / "bundle.json").read_text()), **change}
    sign_manifest(bundle, key, manifest)
    refused(bundle, keyring, "bundle.json is malformed", "manifest")


def test_a_file_named_twice_is_refused(bundle: Path, keyring: str, key: Any) -> None:
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["packages"].append(manifest["packages"][0])
    sign_manifest(bundle, key, manifest)
    refused(bundle, keyring, "named twice", "manifest")


def test_another_release_is_refused(bundle: Path, keyring: str) -> None:
    refused(bundle, keyring, "bundle.json is of release v1.35.1, but must be of v1.34.0", "release", "v1.34.0")


def test_links_and_folders_are_refused(bundle: Path, keyring: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside.deb"
    (bundle / "kubelet.deb").rename(outside)
    (bundle / "kubelet.deb").symlink_to(outside)
    refused(bundle, keyring, "kubelet.deb in the bundle is not a regular file", "regular files only")
    (bundle / "kubelet.deb").unlink()
    outside.rename(bundle / "kubelet.deb")
    (bundle / "folder").mkdir()
    refused(bundle, keyring, "folder in the bundle is not a regular file", "regular files only")


def test_without_a_keyring_nothing_is_trusted(bundle: Path, tmp_path: Path) -> None:
    refused(bundle, str(tmp_path / "none.gpg"), "the keyring", "keyring")
    (tmp_path / "empty.gpg").write_bytes(b"")
    refused(bundle, str(tmp_path / "empty.gpg"), "the keyring", "keyring")


def test_the_manifest_and_its_signature_must_be_there(bundle: Path, keyring: str) -> None:
    (bundle / "bundle.json.asc").rename(bundle.parent / "kept")
    refused(bundle, keyring, "bundle.json.asc is missing", "manifest present")
    (bundle / "bundle.json.asc").write_bytes(b"")
    refused(bundle, keyring, "no readable OpenPGP signature")


def test_a_signature_over_something_else_does_not_count(bundle: Path, keyring: str, key: Any) -> None:
    (bundle / "bundle.json.asc").write_bytes(detached(key, b"another document", armor=True))
    refused(bundle, keyring, "bundle.json was changed after it was signed", "signature")


def test_an_inline_signed_message_is_no_detached_signature(bundle: Path, keyring: str, key: Any) -> None:
    raw = (bundle / "bundle.json").read_bytes()
    (bundle / "bundle.json.asc").write_bytes(bytes(sign(key.signer(), raw, mode=SignatureMode.INLINE)))
    with pytest.raises(VerificationFailed):
        verify_bundle(str(bundle), keyring)


def test_a_signature_over_a_text_is_no_signature_over_the_bytes(bundle: Path, tmp_path: Path, key: Any) -> None:
    """A text signature forgives other line ends; a package's bytes must fit exactly."""
    home = tmp_path / "gpg"
    home.mkdir(mode=0o700)
    gpg = ["gpg", "--homedir", str(home), "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""]
    subprocess.run([*gpg, "--quick-generate-key", "text@example.org", "ed25519", "sign", "never"], check=True, capture_output=True)
    ring = tmp_path / "text.gpg"
    ring.write_bytes(public(key) + subprocess.run([*gpg, "--export"], check=True, capture_output=True).stdout)
    for textmode, words in (([], ""), (["--textmode"], "of class 01")):
        signature = subprocess.run(
            [*gpg, *textmode, "--armor", "--detach-sign", "-o", "-", str(bundle / "bundle.json")], check=True, capture_output=True
        ).stdout
        (bundle / "bundle.json.asc").write_bytes(signature)
        if words:
            refused(bundle, str(ring), words, "signature class")
        else:
            verify_bundle(str(bundle), str(ring))
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=False, capture_output=True)


def test_an_expired_key_has_its_own_sentence(tmp_path: Path) -> None:
    old = Tsk.generate("Old <old@example.org>")
    folder = tmp_path / "b"
    write_bundle(folder, old, {"kubelet.deb": Deb().build(old)})
    ring = tmp_path / "old.gpg"
    ended = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=10)  # keys are made a minute old
    ring.write_bytes(bytes(old.extract_certificate().set_expiration(ended, old.certifier())))
    refused(folder, str(ring), "an expired key", "expired key")


def test_an_unreadable_bundle_is_a_sentence(tmp_path: Path, keyring: str) -> None:
    refused(tmp_path / "nowhere", keyring, "can't be read")
