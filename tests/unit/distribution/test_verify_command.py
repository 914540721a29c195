"""`ckp dist verify` and `ckp-agent verify`: any kind of target, a sentence for each, and code 3 for what is not good."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ckp.agent.main import main as agent
from ckp.cli.distribution import verify as module
from ckp.clients.oci.registry import BlobStore, Registry, image_manifest
from ckp.clients.signing.cosign import TAG, sign_image
from ckp.clients.signing.openpgp import SigningKey
from ckp.distribution.bundles import unpack_bundle
from ckp.distribution.registries.verification import Reference, verify_reference
from ckp.hostkit.errors import VerificationFailed as Refused
from ckp.kits.errors import CkpError, InvalidInput, NotFound, VerificationFailed
from tests.simulators.registry import RegistrySimulator
from tests.support.costs import cost
from tests.support.signing_keys import signing_key
from tests.support.spoilt_packages import Deb, Rpm, special, tar_of

LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
BUNDLES = "ckp/byoh-bundle-debian_12_x86-64_k8s"


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return signing_key(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def packages(key: SigningKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CKP_KEYS", str(key.folder))
    folder = tmp_path / "packages"
    folder.mkdir()
    (folder / "kubelet.deb").write_bytes(Deb().build(key.sign))
    (folder / "kubelet.rpm").write_bytes(Rpm().build(key.sign))
    return folder


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(module.verify, [str(argument) for argument in arguments])


def test_files_and_a_folder_of_packages(packages: Path) -> None:
    result = run(packages / "kubelet.deb", packages / "kubelet.rpm", packages)
    assert result.exit_code == 0, result.output
    assert result.output.count("kubelet 1.35.1-ckp amd64, Coredge.io <support@coredge.io>: verified") == 4


def test_all_targets_are_looked_at_and_one_bad_one_is_enough(packages: Path) -> None:
    raw = bytearray((packages / "kubelet.deb").read_bytes())
    raw[-30] ^= 1
    (packages / "bad.deb").write_bytes(raw)
    result = run(packages / "bad.deb", packages / "kubelet.rpm")
    assert isinstance(result.exception, VerificationFailed) and result.exception.exit_code == 3
    assert "1 of 2 failed" in result.exception.brief
    assert "REFUSED" in result.output and "kubelet.rpm: good" in result.output


@pytest.mark.parametrize("target", ["nowhere.deb", "registry/with space:1", "registry:5000/ckp/etcd", "registry:5000/ckp/etcd@sha256:12"])
def test_what_is_neither_here_nor_an_image_is_bad_input(packages: Path, target: str) -> None:
    result = run(target)
    assert isinstance(result.exception, InvalidInput) and "nor a reference to an image" in result.exception.brief


def test_without_keys_nothing_is_verified(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKP_KEYS", str(tmp_path / "none"))
    result = run(packages / "kubelet.deb")
    assert isinstance(result.exception, InvalidInput) and "there is no keyring" in result.exception.brief


def test_a_release_is_asked_of_bundles_only(packages: Path) -> None:
    result = run(packages / "kubelet.deb", "--release", "v1.35.1")
    assert result.exception is not None and "is not a bundle" in str(result.exception)


def test_the_agent_says_the_same(packages: Path, key: SigningKey, capsys: pytest.CaptureFixture[str]) -> None:
    assert agent(["verify", str(packages), "--keyring", str(key.keyring)]) == 0
    assert capsys.readouterr().err.count("verified, signed by") == 2
    (packages / "notes.txt").write_text("x")
    assert agent(["verify", str(packages), "--keyring", str(key.keyring)]) == 3
    assert "notes.txt" in capsys.readouterr().err


# -- registries ----------------------------------------------------------------------------------------------------------


@dataclass
class Images:
    """A registry with what a test pushes."""

    registry: Registry
    store: BlobStore
    key: SigningKey

    def push(self, repository: str, tag: str, layer: bytes, *, signed: bool = True, signed_tag: str = "") -> str:
        blob = self.store.put(layer, LAYER_GZIP)
        image = image_manifest(self.store, [(blob, blob.digest)], {}, "2026-01-01T00:00:00Z")
        self.registry.push(self.store, image, repository, tag)
        if signed:
            sign_image(self.registry, repository, image.digest, self.key.image_key.read_bytes(), {TAG: signed_tag} if signed_tag else None)
        return image.digest

    def verify(self, reference: str, release: str | None = None) -> list[str]:
        parsed = Reference.parse(f"{self.registry.address}/{reference}")
        return verify_reference(parsed, self.registry, self.key.image_public.read_bytes(), self.key.keyring, release)


@pytest.fixture
def images(key: SigningKey, tmp_path: Path) -> Images:
    registry = Registry("registry.test:5000", transport=RegistrySimulator().transport, sleep=lambda _: None)
    return Images(registry, BlobStore(tmp_path / "blobs"), key)


def bundle(key: SigningKey, *, release: str = "v1.35.1", os_version: str = "12") -> dict[str, bytes]:
    deb = Deb(version=f"{release[1:]}-ckp").build(key.sign)
    manifest = {
        "schema": 1,
        "release": release,
        "version": f"{release[1:]}-ckp",
        "os": "debian",
        "os_version": os_version,
        "architecture": "amd64",
        "registry": "r:5000/ckp",
        "packages": [{"file": "kubelet.deb", "name": "kubelet", "version": f"{release[1:]}-ckp", "sha256": hashlib.sha256(deb).hexdigest()}],
        "files": [],
    }
    text = json.dumps(manifest).encode()
    return {"bundle.json": text, "bundle.json.asc": key.sign(text, armor=True), "kubelet.deb": deb}


def bundle_of(key: SigningKey, release: str, versions: dict[str, str], *stand_ins: str) -> dict[str, bytes]:
    """A bundle of small packages, well signed, whatever their versions are."""
    files = bundle(key, release=release)
    manifest = json.loads(files["bundle.json"])
    for name, version in versions.items():
        files[f"{name}.deb"] = Deb(name=name, version=version).build(key.sign)
        digest = hashlib.sha256(files[f"{name}.deb"]).hexdigest()
        manifest["packages"].append({"file": f"{name}.deb", "name": name, "version": version, "sha256": digest})
    files["bundle.json"] = json.dumps({**manifest, "stand_ins": stand_ins}).encode()
    return {**files, "bundle.json.asc": key.sign(files["bundle.json"], armor=True)}


PINNED = {"cri-tools": "1.27.0-ckp", "containerd": "1.7.28-ckp", "helm": "3.19.2-ckp", "kubernetes-cni": "1.3.0-ckp"}
STAND_IN = "cri-tools v1.30.0 stands in for cri-tools v1.27.0"


def verified(images: Images, packages: Path, how: str, files: dict[str, bytes], release: str) -> str:
    """What is said of a bundle, as a folder by the command or as an image."""
    if how == "image":
        images.push(BUNDLES, f"{release}-ckp", layer_of(files))
        return "\n".join(images.verify(f"{BUNDLES}:{release}-ckp"))
    folder = packages.parent / "bundle"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    result = run(folder)
    if result.exception:
        raise VerificationFailed(result.output)
    return result.output


@pytest.mark.parametrize("how", ["folder", "image"])
@pytest.mark.parametrize(
    ("versions", "stand_ins"), [(PINNED, ()), ({**PINNED, "cri-tools": "1.30.0-ckp"}, (STAND_IN, "cert-manager v1.11.5 stands in for cert-manager v1.15.3"))]
)
def test_a_bundles_packages_are_held_against_the_catalogs_release(
    images: Images, packages: Path, key: SigningKey, how: str, versions: dict[str, str], stand_ins: tuple[str, ...]
) -> None:
    said = verified(images, packages, how, bundle_of(key, "v1.35.1", versions, *stand_ins), "v1.35.1")
    assert "the packages have the versions that the catalog's release v1.35.1 names" in said


@pytest.mark.parametrize("how", ["folder", "image"])
@pytest.mark.parametrize(
    ("versions", "stand_ins", "words"),
    [
        ({**PINNED, "containerd": "1.7.27-ckp"}, (), "lists containerd 1.7.27-ckp, but the catalog has 1.7.28-ckp"),
        ({**PINNED, "helm": "3.99.0-ckp"}, (), "lists helm 3.99.0-ckp, but the catalog has 3.19.2-ckp"),
        ({**PINNED, "cri-tools": "1.30.0-ckp"}, (), "lists cri-tools 1.30.0-ckp, but the catalog has 1.27.0-ckp"),
        ({**PINNED, "cri-tools": "1.27.0-ckp"}, (STAND_IN,), "lists cri-tools 1.27.0-ckp, but the catalog has 1.30.0-ckp"),
        # A stand-in that the release file does not know is none.
        ({**PINNED, "helm": "3.0.0-ckp"}, ("helm v3.0.0 stands in for helm v3.19.2",), "lists helm 3.0.0-ckp, but the catalog has 3.19.2-ckp"),
        ({**PINNED, "cri-tools": "1.31.0-ckp"}, ("cri-tools v1.31.0 stands in for cri-tools v1.27.0",), "lists cri-tools 1.31.0-ckp, but the catalog"),
    ],
)
def test_a_well_signed_bundle_with_other_packages_than_its_release_is_refused(
    images: Images, packages: Path, key: SigningKey, how: str, versions: dict[str, str], stand_ins: tuple[str, ...], words: str
) -> None:
    with pytest.raises((VerificationFailed, Refused)) as caught:
        verified(images, packages, how, bundle_of(key, "v1.35.1", versions, *stand_ins), "v1.35.1")
    assert words in str(caught.value)


@pytest.mark.parametrize("how", ["folder", "image"])
def test_a_release_that_the_catalog_does_not_have_is_verified_without_and_it_is_said(images: Images, packages: Path, key: SigningKey, how: str) -> None:
    said = verified(images, packages, how, bundle_of(key, "v1.30.9", {"containerd": "1.6.0-ckp"}), "v1.30.9")
    assert "bundle v1.30.9" in said
    assert "the catalog here does not have release v1.30.9: the versions of its packages were not compared" in said


def layer_of(files: dict[str, bytes]) -> bytes:
    return gzip.compress(tar_of(*files.items()), mtime=0)


def test_an_image_is_verified_by_its_signature(images: Images) -> None:
    digest = images.push("ckp/etcd", "3.5", b"layer")
    assert "is signed by a trusted key" in images.verify("ckp/etcd:3.5")[0]
    images.verify(f"ckp/etcd@{digest}")
    images.verify(f"ckp/etcd:3.5@{digest}")
    other = images.push("ckp/etcd", "3.6", b"another layer")
    with pytest.raises(VerificationFailed, match="expected is"):
        images.verify(f"ckp/etcd:3.5@{other}")
    images.push("ckp/etcd", "3.7", b"a third", signed=False)
    with pytest.raises(VerificationFailed, match="has no signature"):
        images.verify("ckp/etcd:3.7")
    with pytest.raises(NotFound):
        images.verify("ckp/etcd:3.8")
    with pytest.raises(InvalidInput, match="is not a bundle"):
        images.verify("ckp/etcd:3.5", "v1.35.1")


def test_a_bundle_is_verified_to_its_packages(images: Images, key: SigningKey) -> None:
    images.push(BUNDLES, "v1.35.1-ckp", layer_of(bundle(key)), signed_tag="v1.35.1-ckp")
    assert any("bundle v1.35.1" in line for line in images.verify(f"{BUNDLES}:v1.35.1-ckp", "v1.35.1"))


@pytest.mark.parametrize(
    ("files", "tag", "release", "words"),
    [
        (lambda key: bundle(key, release="v1.35.0"), "v1.35.1-ckp", None, "the tag was moved to another release's bundle"),
        (lambda key: bundle(key, release="v1.35.0"), "v1.35.1-ckp", "v1.35.1", "is of release v1.35.0, but must be of v1.35.1"),
        (lambda key: bundle(key, os_version="13"), "v1.35.1-ckp", None, "belongs in byoh-bundle-debian_13"),
        (lambda key: {**bundle(key), "extra": b"x"}, "v1.35.1-ckp", None, "extra is in the bundle, but is not named"),
        (lambda key: {**bundle(key), "kubelet.deb": b"x"}, "v1.35.1-ckp", None, "the SHA-256 of kubelet.deb"),
        (lambda key: {**bundle(key), "../evil": b"x"}, "v1.35.1-ckp", None, "a flat folder of regular files"),
        (lambda key: {name: data for name, data in bundle(key).items() if name != "bundle.json.asc"}, "v1.35.1-ckp", None, "bundle.json.asc is missing"),
    ],
)
def test_a_swapped_or_spoilt_bundle_is_refused_though_its_image_is_signed(
    images: Images, key: SigningKey, files: Callable[[SigningKey], dict[str, bytes]], tag: str, release: str | None, words: str
) -> None:
    images.push(BUNDLES, tag, layer_of(files(key)))
    with pytest.raises((VerificationFailed, Refused)) as caught:
        images.verify(f"{BUNDLES}:{tag}", release)
    error = caught.value
    assert isinstance(error, (CkpError, Refused)) and words in error.brief


def test_a_tag_that_was_signed_for_another_name_is_refused(images: Images, key: SigningKey) -> None:
    images.push(BUNDLES, "v1.35.1-ckp", layer_of(bundle(key, release="v1.35.0")), signed_tag="v1.35.0-ckp")
    with pytest.raises(VerificationFailed, match=r"was signed for v1\.35\.0-ckp"):
        images.verify(f"{BUNDLES}:v1.35.1-ckp")


@pytest.mark.parametrize(
    "raw",
    [
        tar_of(special("x", tarfile.SYMTYPE, target="/etc/passwd")),
        tar_of(special("x", tarfile.LNKTYPE, target="/etc/passwd")),
        tar_of(special("x", tarfile.FIFOTYPE)),
        tar_of(("/etc/x", b"x")),
        tar_of(("a/b", b"x")),
        tar_of((".hidden", b"x")),
        tar_of(("x", b"1"), ("x", b"2")),
        tar_of(*((f"f{number}", b"") for number in range(300))),
        b"no tar at all" * 100,
        gzip.compress(tar_of(("x", b"x" * 9999)), mtime=0)[:60],
    ],
)
def test_a_layer_leaves_nothing_outside_of_its_folder(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "layer").write_bytes(raw)
    folder = tmp_path / "inside" / "folder"
    folder.mkdir(parents=True)
    with pytest.raises(VerificationFailed):
        unpack_bundle(tmp_path / "layer", folder, "image")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inside", "layer"]
    assert all(path.is_file() and not path.is_symlink() for path in folder.iterdir())


def unpack(layer: str, folder: str) -> None:
    """For a process of its own."""
    unpack_bundle(Path(layer), Path(folder), "image")


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g"])
@pytest.mark.parametrize("pack", [partial(gzip.compress, compresslevel=1), partial(lzma.compress, preset=1), bytes], ids=["gz", "xz", "plain"])
def test_a_long_name_in_a_layer_costs_little(tmp_path: Path, kind: bytes, pack: Callable[[bytes], bytes]) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, 128 << 20
    (tmp_path / "layer").write_bytes(pack(info.tobuf(tarfile.GNU_FORMAT) + bytes(128 << 20)))
    (tmp_path / "folder").mkdir()
    found = cost(__name__, "unpack", str(tmp_path / "layer"), str(tmp_path / "folder"))
    assert "image has a layer that is not a tar archive" in found.said
    assert found.cpu_seconds < 2 and found.memory_mib < 200, found


def test_a_layer_of_many_gigabytes_is_refused_by_its_headers(tmp_path: Path) -> None:
    info = tarfile.TarInfo("huge")
    info.size = 5 << 30
    (tmp_path / "layer").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(VerificationFailed, match="unpacks to more than"):
        unpack_bundle(tmp_path / "layer", tmp_path, "image")
    assert not (tmp_path / "huge").exists()
