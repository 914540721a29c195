"""What CKP signs is good for the tools that others wrote, and what those refuse, CKP refuses: gpgv, debsig-verify, rpmkeys and rpm are the judges."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from ckp.cli.distribution.keys import keys as keys_command
from ckp.cli.distribution.verify import verify as verify_command
from ckp.clients.signing.cosign import sign_image
from ckp.clients.signing.openpgp import PRIMARY, SigningKey, add_signing_subkey
from ckp.distribution.keys.signing import KeyRing
from ckp.distribution.packages.pack import Package
from ckp.distribution.packages.rpm import sign_rpm
from ckp.distribution.registries.server import RegistryServer
from ckp.hostkit.errors import VerificationFailed
from ckp.kits.errors import InvalidInput
from ckp.kits.errors import VerificationFailed as VerificationRefused
from ckp.verify import rpmfile
from ckp.verify.debfile import read_ar
from ckp.verify.packages import verify_package
from tests.support.control_plane import built, free_port
from tests.support.signing_keys import signing_key
from tests.support.small_packages import small_package


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed (make setup installs it)")


def said(*argv: str | Path, home: Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """A program's answer; `home` keeps gpg out of ours."""
    surroundings = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(home), "GNUPGHOME": str(home), "LC_ALL": "C.UTF-8"}
    return subprocess.run([str(part) for part in argv], input=stdin, capture_output=True, timeout=120, check=False, env=surroundings)


@dataclass(frozen=True)
class World:
    """A key, two packages that it signed, and a folder that programs may call home."""

    key: SigningKey
    deb: Package
    rpm: Package
    home: Path

    @property
    def keyring(self) -> str:
        return str(self.key.keyring)

    def rpmkeys(self, path: Path, database: str = "db") -> subprocess.CompletedProcess[bytes]:
        """rpmkeys with our key alone, asking for digests and signatures of all parts."""
        return said("rpmkeys", "--dbpath", self.home / database, "--define", "_pkgverify_level all", "--checksig", "--verbose", path, home=self.home)

    def debsig(self, path: Path) -> subprocess.CompletedProcess[bytes]:
        """debsig-verify with our policy alone."""
        return said("debsig-verify", "--root", self.home / "root", path, home=self.home)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    home = folder / "home"
    home.mkdir(mode=0o700)
    key = signing_key(folder / "keys")
    content = {"/etc/default/kubelet": "KUBELET_EXTRA_ARGS=\n"}
    deb, rpm = (small_package(folder / kind, key, "kubelet", "1.35.1-ckp", kind, files=content) for kind in ("deb", "rpm"))
    made = World(key, deb, rpm, home)
    (folder / "ckp.asc").write_bytes(KeyRing.at(key.folder).export(armor=True))
    for name in ("db", "empty"):
        (home / name).mkdir()
    if shutil.which("rpmkeys"):
        assert said("rpmkeys", "--dbpath", home / "db", "--import", folder / "ckp.asc", home=home).returncode == 0
    if shutil.which("debsig-verify"):
        for name, policy in KeyRing.at(key.folder).debsig().items():
            path = home / "root" / name
            path.parent.mkdir(parents=True)
            path.write_bytes(policy)
    yield made
    said("gpgconf", "--kill", "all", home=home)


def test_gpgv_takes_the_signature_of_a_deb_over_its_members(world: World, tmp_path: Path) -> None:
    with world.deb.path.open("rb") as stream:
        names = [member.name for member in read_ar(stream, "kubelet.deb")]
    parts = {name: said("ar", "p", world.deb.path, name, home=world.home).stdout for name in names}
    assert names == ["debian-binary", "control.tar.gz", "data.tar.zst", "_gpgorigin"]
    (tmp_path / "signature").write_bytes(parts.pop("_gpgorigin"))
    done = said("gpgv", "--keyring", world.keyring, tmp_path / "signature", "-", home=world.home, stdin=b"".join(parts.values()))
    assert done.returncode == 0 and b"Good signature" in done.stderr
    done = said("gpgv", "--keyring", world.keyring, tmp_path / "signature", "-", home=world.home, stdin=b"".join(parts.values()) + b"x")
    assert done.returncode == 1 and b"BAD signature" in done.stderr


def test_gpgv_takes_the_signature_of_an_rpm_over_its_header(world: World, tmp_path: Path) -> None:
    raw = world.rpm.path.read_bytes()
    with world.rpm.path.open("rb") as stream:
        rpm = rpmfile.parse(stream, len(raw))
    signature = rpm.signature[rpmfile.SIG_RSA]
    assert isinstance(signature, bytes)
    (tmp_path / "signature").write_bytes(signature)
    done = said("gpgv", "--keyring", world.keyring, tmp_path / "signature", "-", home=world.home, stdin=rpm.header)
    assert done.returncode == 0 and b"Good signature" in done.stderr
    assert raw.endswith(raw[rpm.payload_start :]) and rpm.header == raw[rpm.payload_start - len(rpm.header) : rpm.payload_start]


@needs("debsig-verify")
def test_debsig_verify_takes_our_debs(world: World, tmp_path: Path) -> None:
    done = world.debsig(world.deb.path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert b"Verified package from" in done.stdout + done.stderr
    stranger = small_package(tmp_path / "s", signing_key(tmp_path / "stranger", "stranger"), "kubelet", "1.35.1-ckp", "deb")
    assert world.debsig(stranger.path).returncode == 11  # an origin that it knows nothing of
    unsigned = small_package(tmp_path / "u", None, "kubelet", "1.35.1-ckp", "deb")
    assert world.debsig(unsigned.path).returncode == 10  # no signature


@needs("debsig-verify")
def test_debsig_verify_takes_what_each_key_signed_until_that_is_revoked(tmp_path: Path) -> None:
    """After a rotation, after a new primary key, and after a revocation; exported into the same folder each time."""
    home, away = tmp_path / "home", tmp_path / "away.pgp"
    home.mkdir(mode=0o700)
    key = signing_key(tmp_path / "keys")
    ring = KeyRing.at(key.folder)
    packages: list[Path] = []
    signers: list[str] = []

    def sign() -> None:
        packages.append(small_package(tmp_path / str(len(packages)), key, "kubelet", f"1.35.{len(packages)}-ckp", "deb").path)
        signers.append(key.subkey)

    def judged() -> list[int]:
        done = CliRunner(env={"CKP_KEYS": str(key.folder)}).invoke(keys_command, ["export", "--debsig", str(tmp_path / "root")], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return [said("debsig-verify", "--root", tmp_path / "root", package, home=home).returncode for package in packages]

    sign()
    ring.rotate()
    sign()
    assert judged() == [0, 0]
    ring.detach(away)
    ring.rotate_primary()
    sign()
    assert judged() == [0, 0, 0]
    ring.revoke(signers[0], primary=away)
    assert judged() == [11, 0, 0], "an origin that it knows nothing of"
    assert not list((tmp_path / "root").rglob(f"*{signers[0]}*/*"))
    said("gpgconf", "--kill", "all", home=home)


@needs("dpkg-deb")
def test_dpkg_reads_a_signed_deb_as_if_it_were_none(world: World) -> None:
    fields = said("dpkg-deb", "-f", world.deb.path, "Package", "Version", "Maintainer", home=world.home).stdout.decode()
    assert fields.splitlines() == ["Package: kubelet", "Version: 1.35.1-ckp", "Maintainer: Coredge.io <support@coredge.io>"]
    assert "./usr/bin/kubelet" in said("dpkg-deb", "-c", world.deb.path, home=world.home).stdout.decode()


@needs("rpmkeys")
def test_rpmkeys_takes_our_rpms_and_asks_for_nothing_more(world: World, tmp_path: Path) -> None:
    done = world.rpmkeys(world.rpm.path)
    words = done.stdout.decode()
    assert done.returncode == 0, words
    assert "Header V4 RSA/SHA512 Signature" in words and words.count(": OK") == 3
    assert "Header SHA256 digest: OK" in words and "Payload SHA256 digest: OK" in words
    assert "NOKEY" in world.rpmkeys(world.rpm.path, "empty").stdout.decode()
    unsigned = small_package(tmp_path / "u", None, "kubelet", "1.35.1-ckp", "rpm")
    assert world.rpmkeys(unsigned.path).returncode == 1


@needs("rpmkeys")
def test_rpmkeys_takes_what_an_earlier_signing_key_made(world: World, tmp_path: Path) -> None:
    """One certificate with two signing subkeys, as it is after a rotation."""
    key = signing_key(tmp_path / "keys")
    before = small_package(tmp_path / "before", key, "kubelet", "1.35.0-ckp", "rpm")
    with key.locked():
        add_signing_subkey(key, (key.folder / PRIMARY).read_bytes())
    after = small_package(tmp_path / "after", key, "kubelet", "1.35.1-ckp", "rpm")
    (tmp_path / "ckp.asc").write_bytes(KeyRing.at(key.folder).export(armor=True))
    (world.home / "rotated").mkdir()
    assert said("rpmkeys", "--dbpath", world.home / "rotated", "--import", tmp_path / "ckp.asc", home=world.home).returncode == 0
    for package in (before, after):
        assert world.rpmkeys(package.path, "rotated").returncode == 0, world.rpmkeys(package.path, "rotated").stdout
        verify_package(str(package.path), str(key.keyring))


@needs("rpm")
def test_rpm_reads_what_we_read(world: World) -> None:
    query = "%{NAME}|%{VERSION}-%{RELEASE}|%{ARCH}|%{PACKAGER}|%{VENDOR}|%{SIGPGP}|[%{FILENAMES} ]"
    text = said("rpm", "--dbpath", world.home / "db", "-qp", "--qf", query, world.rpm.path, home=world.home).stdout.decode()
    name, version, architecture, packager, vendor, legacy, names = text.split("|")
    info = verify_package(str(world.rpm.path), world.keyring)
    assert (name, version, architecture) == (info.name, info.version, "x86_64") and info.architecture == "amd64"
    assert (packager, vendor, legacy) == ("Coredge.io <support@coredge.io>", "Coredge.io", "(none)")
    assert names.split() == ["/etc/default/kubelet", "/usr/bin/kubelet"]
    shown = said("rpm", "--dbpath", world.home / "db", "-qpi", world.rpm.path, home=world.home).stdout.decode()
    assert "RSA/SHA512" in shown
    assert world.key.subkey[-16:].lower() in shown.lower()


@pytest.mark.parametrize("kind", ["deb", "rpm"])
def test_what_the_other_tools_refuse_we_refuse(world: World, tmp_path: Path, kind: str) -> None:
    """A flipped byte anywhere. The reverse does not hold: rpm ignores its lead, dpkg the times in an archive, and we do not."""
    if shutil.which("rpmkeys" if kind == "rpm" else "debsig-verify") is None:
        pytest.skip("rpm or debsig-verify is not installed (make setup installs them)")
    raw = (world.rpm if kind == "rpm" else world.deb).path.read_bytes()
    path = tmp_path / f"kubelet.{kind}"
    choose = random.Random(20260101)
    theirs = ours = 0
    for _ in range(40):
        spoilt = bytearray(raw)
        spoilt[choose.randrange(len(raw))] ^= 1 << choose.randrange(8)
        path.write_bytes(spoilt)
        refused = (world.rpmkeys(path) if kind == "rpm" else world.debsig(path)).returncode != 0
        try:
            verify_package(str(path), world.keyring)
        except VerificationFailed:
            ours += 1
        else:
            assert not refused
        theirs += refused
    assert ours >= theirs > 20


@needs("rpmkeys")
def test_a_changed_payload_or_header_is_refused_by_rpmkeys_too(world: World, tmp_path: Path) -> None:
    raw = world.rpm.path.read_bytes()
    with world.rpm.path.open("rb") as stream:
        start = rpmfile.parse(stream, len(raw)).payload_start
    for position, words in ((start + 20, b"Payload SHA256 digest: BAD"), (start - 50, b"Header SHA256 digest: BAD")):
        spoilt = bytearray(raw)
        spoilt[position] ^= 1
        path = tmp_path / "kubelet.rpm"
        path.write_bytes(spoilt)
        done = world.rpmkeys(path)
        assert done.returncode == 1 and words in done.stdout


def test_a_bundle_that_imgpkg_pushed_is_verified_in_the_registry(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pushed as the build pushes it; signed for its tag; refused under another release's tag and without a signature."""
    program, pusher = built("distribution").binary("registry"), built("imgpkg").binary("imgpkg")
    for name, place in (("STATE", tmp_path / "state"), ("CACHE", tmp_path / "cache"), ("KEYS", world.key.folder)):
        monkeypatch.setenv(f"CKP_{name}", str(place))
    folder, repository = tmp_path / "bundle", "ckp/byoh-bundle-debian_12_x86-64_k8s"
    write_bundle(folder, world.key, world.deb.path.read_bytes())
    server = RegistryServer(program, "127.0.0.1", "registry.test", free_port())
    registry = server.start()
    try:
        address = registry.address
        imgpkg: list[str | Path] = [pusher, "push", "--file", folder, "--registry-ca-cert-path", server.ca, "--tty=false"]
        digests = {}
        for tag in ("v1.35.1-ckp", "v1.35.2-ckp", "unsigned"):
            done = said(*imgpkg, "--image", f"{address}/{repository}:{tag}", home=world.home)
            assert done.returncode == 0, done.stderr
            digests[tag] = registry.digest(repository, tag)
        assert digests["v1.35.1-ckp"] == digests["v1.35.2-ckp"]
        verify = ["verify", "--registry-ca", str(server.ca), f"{address}/{repository}:v1.35.1-ckp"]
        result = CliRunner().invoke(group, verify)
        assert isinstance(result.exception, VerificationRefused) and "has no signature" in result.output
        assert digests["v1.35.1-ckp"]
        sign_image(registry, repository, digests["v1.35.1-ckp"], world.key.image_key.read_bytes())
        result = CliRunner().invoke(group, [*verify, "--release", "v1.35.1"])
        assert result.exit_code == 0, result.output
        assert "is signed by a trusted key for images" in result.output and "bundle v1.35.1 (1.35.1-ckp) for debian 12/amd64: verified" in result.output
        result = CliRunner().invoke(group, [*verify[:-1], f"{address}/{repository}:v1.35.2-ckp"])
        assert isinstance(result.exception, VerificationRefused) and "the tag was moved to another release's bundle" in result.output
    finally:
        registry.close()
        server.stop()


def write_bundle(folder: Path, key: SigningKey, deb: bytes) -> None:
    folder.mkdir()
    (folder / "kubelet.deb").write_bytes(deb)
    listed = [{"file": "kubelet.deb", "name": "kubelet", "version": "1.35.1-ckp", "sha256": hashlib.sha256(deb).hexdigest()}]
    manifest = {
        "schema": 1,
        "release": "v1.35.1",
        "version": "1.35.1-ckp",
        "os": "debian",
        "os_version": "12",
        "architecture": "amd64",
        "registry": "r:5000/ckp",
    }
    text = json.dumps({**manifest, "packages": listed, "files": []}).encode()
    (folder / "bundle.json").write_bytes(text)
    (folder / "bundle.json.asc").write_bytes(key.sign(text, armor=True))


@click.group()
def group() -> None:
    """Where the command hangs in the test."""


group.add_command(verify_command)


def test_signing_an_rpm_again_changes_its_signature_alone(world: World) -> None:
    raw = world.rpm.path.read_bytes()
    again = sign_rpm(sign_rpm(raw, world.key), world.key)
    with world.rpm.path.open("rb") as stream:
        start = rpmfile.parse(stream, len(raw)).payload_start
    assert len(again) == len(raw) and again[:96] == raw[:96] and again[start:] == raw[start:]
    for broken in (b"", raw[:90], raw[:200], b"\0" * 500, world.deb.path.read_bytes()):
        with pytest.raises(InvalidInput, match="can't be signed"):
            sign_rpm(broken, world.key)
