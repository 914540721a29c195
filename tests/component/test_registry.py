"""The registry that CKP builds and runs, with cosign and imgpkg as judges of what our client puts there."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ckp.cli.distribution.registry import mirror as mirror_command
from ckp.cli.distribution.registry import prune as prune_command
from ckp.cli.distribution.registry import sign as sign_command
from ckp.clients.oci.registry import LAYER_ZSTD, BlobStore, Descriptor, Registry, fallback_tag, image_manifest
from ckp.clients.signing.cosign import TAG, attest_image, sign_image, signature_tag, verify_image
from ckp.distribution.registries.mirror import mirror
from ckp.distribution.registries.prune import prune
from ckp.distribution.registries.server import RegistryServer
from ckp.kits import paths
from ckp.kits.errors import CkpError, Conflict, VerificationFailed
from ckp.kits.processes import Finished, run
from tests.support.checkout import REPO
from tests.support.control_plane import built, built_test_tool, free_port

pytestmark = pytest.mark.component

CYCLONEDX = "application/vnd.cyclonedx+json"
IN_TOTO = "application/vnd.in-toto+json"


@dataclass
class Served:
    """A running registry of ours."""

    client: Registry
    ca: Path
    storage: Path
    program: Path


@dataclass
class KeyPair:
    """An image key as files and bytes."""

    folder: Path
    private: bytes
    public: bytes

    @property
    def public_file(self) -> Path:
        return self.folder / "cosign.pub"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks and blobs on their way go below the test's own folder."""
    monkeypatch.setenv("CKP_CACHE", str(tmp_path / "cache"))


@contextmanager
def serving(program: Path, folder: Path) -> Iterator[Served]:
    server = RegistryServer(program, "127.0.0.1", "registry.test", free_port())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CKP_STATE", str(folder / "state"))
        patch.setenv("CKP_CACHE", str(folder / "cache"))
        client = server.start()
        ca = server.ca
    try:
        yield Served(client, ca, folder / "cache/registry/docker/registry/v2", program)
    finally:
        client.close()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CKP_STATE", str(folder / "state"))
            server.stop()


@pytest.fixture(scope="module")
def program() -> Path:
    return built("distribution").binary("registry")


@pytest.fixture(scope="module")
def source(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(program, tmp_path_factory.mktemp("source")) as served:
        yield served


@pytest.fixture
def target(program: Path, tmp_path: Path) -> Iterator[Served]:
    with serving(program, tmp_path / "target") as served:
        yield served


@pytest.fixture(scope="module")
def cosign() -> Path:
    return built_test_tool("cosign").binary("cosign")


@pytest.fixture(scope="module")
def imgpkg() -> Path:
    return built("imgpkg").binary("imgpkg")


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    return make_key(tmp_path_factory.mktemp("key"))


def make_key(folder: Path) -> KeyPair:
    private = ec.generate_private_key(ec.SECP256R1())
    secret = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public = private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / "private.pem").write_bytes(secret)
    (folder / "private.pem").chmod(0o600)
    (folder / "cosign.pub").write_bytes(public)
    return KeyPair(folder, secret, public)


def make_image(folder: Path, *contents: bytes) -> tuple[BlobStore, Descriptor]:
    store = BlobStore(folder / "blobs")
    layers = [(store.put(content, LAYER_ZSTD), f"sha256:{'0' * 64}") for content in contents]
    return store, image_manifest(store, layers, {"Entrypoint": ["/x"]}, "2026-01-01T00:00:00Z")


def pushed(served: Served, folder: Path, repository: str, tag: str, *contents: bytes) -> Descriptor:
    store, manifest = make_image(folder, *contents)
    served.client.push(store, manifest, repository, tag)
    return manifest


def run_cosign(program: Path, served: Served, home: Path, *arguments: str | Path, check: bool = True) -> Finished:
    env = {"HOME": str(home), "COSIGN_PASSWORD": "", "DOCKER_CONFIG": str(home / ".docker")}
    return run([program, *arguments], env=env, cwd=home, timeout=60, check=check, what=f"cosign {arguments[0]}")


def cosign_verify(program: Path, served: Served, home: Path, image: str, public: Path, *more: str, check: bool = True) -> Finished:
    reference = f"{served.client.address}/{image}"
    flags: list[str | Path] = ["--insecure-ignore-tlog=true", "--registry-cacert", served.ca, *more]
    return run_cosign(program, served, home, "verify", "--key", public, *flags, reference, check=check)


# -- signatures


def test_cosign_accepts_what_we_sign_and_refuses_it_under_another_key(source: Served, cosign: Path, key: KeyPair, tmp_path: Path) -> None:
    image = pushed(source, tmp_path, "ckp/signed", "v1", b"one")
    assert cosign_verify(cosign, source, tmp_path, "ckp/signed:v1", key.public_file, check=False).code != 0
    sign_image(source.client, "ckp/signed", image.digest, key.private, {TAG: "v1"})
    accepted = cosign_verify(cosign, source, tmp_path, f"ckp/signed@{image.digest}", key.public_file, "-a", "tag=v1")
    said = json.loads(accepted.stdout)
    assert [item["critical"]["image"]["docker-manifest-digest"] for item in said] == [image.digest]
    other = make_key(tmp_path)
    refused = cosign_verify(cosign, source, tmp_path, "ckp/signed:v1", other.public_file, check=False)
    assert refused.code != 0
    assert "no matching signatures" in refused.stderr
    assert cosign_verify(cosign, source, tmp_path, "ckp/signed:v1", key.public_file, "-a", "tag=v2", check=False).code != 0
    verify_image(source.client, "ckp/signed", image.digest, key.public, tag="v1")
    with pytest.raises(VerificationFailed, match="not by a trusted key"):
        verify_image(source.client, "ckp/signed", image.digest, other.public)


def test_we_accept_what_cosign_signs_and_keep_it_beside_ours(source: Served, cosign: Path, key: KeyPair, tmp_path: Path) -> None:
    image = pushed(source, tmp_path, "ckp/both", "v1", b"two")
    other = make_key(tmp_path)
    run_cosign(cosign, source, tmp_path, "import-key-pair", "--key", other.folder / "private.pem", "--output-key-prefix", tmp_path / "imported")
    reference = f"{source.client.address}/ckp/both@{image.digest}"
    flags: list[str | Path] = ["--tlog-upload=false", "--yes", "--registry-cacert", source.ca]
    run_cosign(cosign, source, tmp_path, "sign", "--key", tmp_path / "imported.key", *flags, reference)
    verify_image(source.client, "ckp/both", image.digest, other.public)
    theirs = source.client.get_manifest("ckp/both", signature_tag(image.digest))
    assert sign_image(source.client, "ckp/both", image.digest, other.private).digest == theirs.digest, "signed by this key already: nothing is pushed"
    sign_image(source.client, "ckp/both", image.digest, key.private)
    for public in (key, other):
        cosign_verify(cosign, source, tmp_path, "ckp/both:v1", public.public_file)
        verify_image(source.client, "ckp/both", image.digest, public.public)
    ours = source.client.get_manifest("ckp/both", signature_tag(image.digest))
    assert theirs.layers[0] in ours.layers
    # The same payload byte for byte, under another key; and the same shape around it.
    assert {layer.digest for layer in ours.layers} == {theirs.layers[0].digest}
    assert ours.content.keys() == theirs.content.keys()
    assert ours.content["config"]["mediaType"] == theirs.content["config"]["mediaType"]
    configs = [json.loads(source.client.get_blob("ckp/both", manifest.blobs[0])) for manifest in (theirs, ours)]
    assert configs[0].keys() == configs[1].keys()
    # And cosign adds to ours what we added to its own.
    third = make_key(tmp_path)
    run_cosign(cosign, source, tmp_path, "import-key-pair", "--key", third.folder / "private.pem", "--output-key-prefix", tmp_path / "third")
    run_cosign(cosign, source, tmp_path, "sign", "--key", tmp_path / "third.key", *flags, reference)
    for public in (key, other, third):
        verify_image(source.client, "ckp/both", image.digest, public.public)


def test_the_same_signature_again_is_the_same_bytes(source: Served, key: KeyPair, tmp_path: Path) -> None:
    image = pushed(source, tmp_path, "ckp/again", "v1", b"three")
    first = sign_image(source.client, "ckp/again", image.digest, key.private, {TAG: "v1"})
    source.client.delete("ckp/again", first.digest)
    assert sign_image(source.client, "ckp/again", image.digest, key.private, {TAG: "v1"}) == first


def test_cosign_accepts_an_attestation_that_we_attach(source: Served, cosign: Path, key: KeyPair, tmp_path: Path) -> None:
    image = pushed(source, tmp_path, "ckp/attested", "v1", b"four")
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "ckp/attested", "digest": {"sha256": image.digest.removeprefix("sha256:")}}],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {"buildDefinition": {"buildType": "https://example.org/test", "externalParameters": {}}, "runDetails": {"builder": {"id": "test"}}},
    }
    body = json.dumps(statement).encode()
    encoded = f"DSSEv1 {len(IN_TOTO)} {IN_TOTO} {len(body)} ".encode() + body
    private = serialization.load_pem_private_key(key.private, None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    from cryptography.hazmat.primitives import hashes

    signature = base64.b64encode(private.sign(encoded, ec.ECDSA(hashes.SHA256()))).decode()
    envelope = {"payloadType": IN_TOTO, "payload": base64.b64encode(body).decode(), "signatures": [{"keyid": "", "sig": signature}]}
    for _ in range(2):
        manifest = attest_image(source.client, "ckp/attested", image.digest, json.dumps(envelope).encode(), "https://slsa.dev/provenance/v1")
    assert len(source.client.get_manifest("ckp/attested", manifest.digest).layers) == 1
    flags: list[str | Path] = ["--insecure-ignore-tlog=true", "--registry-cacert", source.ca, "--type", "slsaprovenance1"]
    reference = f"{source.client.address}/ckp/attested@{image.digest}"
    run_cosign(cosign, source, tmp_path, "verify-attestation", "--key", key.public_file, *flags, reference)
    refused = run_cosign(cosign, source, tmp_path, "verify-attestation", "--key", make_key(tmp_path).public_file, *flags, reference, check=False)
    assert refused.code != 0


# -- referrers


def test_a_document_is_attached_once_and_listed(source: Served, tmp_path: Path) -> None:
    client = source.client
    image = pushed(source, tmp_path, "ckp/referred", "v1", b"five")
    sbom = client.attach("ckp/referred", image, CYCLONEDX, b'{"a":1}', CYCLONEDX, {"org.opencontainers.image.title": "sbom"})
    proof = client.attach("ckp/referred", image, IN_TOTO, b'{"b":2}', IN_TOTO)
    assert client.attach("ckp/referred", image, CYCLONEDX, b'{"a":1}', CYCLONEDX, {"org.opencontainers.image.title": "sbom"}) == sbom
    assert {item.digest for item in client.referrers("ckp/referred", image.digest)} == {sbom.digest, proof.digest}
    [found] = client.referrers("ckp/referred", image.digest, CYCLONEDX)
    assert (found.artifact_type, dict(found.annotations)) == (CYCLONEDX, {"org.opencontainers.image.title": "sbom"})
    assert client.get_blob("ckp/referred", client.get_manifest("ckp/referred", found.digest).layers[0]) == b'{"a":1}'
    # distribution v3 does not list referrers, so we keep the list; when a later one does, this says so.
    assert fallback_tag(image.digest) in client.tags("ckp/referred")


def test_many_who_attach_at_once_all_find_theirs_listed(source: Served, tmp_path: Path) -> None:
    image = pushed(source, tmp_path, "ckp/crowd", "v1", b"six")
    clients = [Registry(source.client.address, source.ca) for _ in range(6)]
    threads = [
        threading.Thread(target=client.attach, args=("ckp/crowd", image, CYCLONEDX, json.dumps({"number": number}).encode(), CYCLONEDX))
        for number, client in enumerate(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(source.client.referrers("ckp/crowd", image.digest)) == len(clients)
    for client in clients:
        client.close()


# -- pushing and pulling


def test_two_who_push_the_same_at_once_do_no_harm(source: Served, tmp_path: Path) -> None:
    contents = [os.urandom(1 << 20) for _ in range(4)]
    store, manifest = make_image(tmp_path, *contents)
    clients = [Registry(source.client.address, source.ca) for _ in range(3)]
    failures: list[BaseException] = []

    def push(client: Registry) -> None:
        try:
            client.push(store, manifest, "ckp/twice", "v1")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=push, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    fresh = BlobStore(tmp_path / "fresh")
    assert source.client.pull("ckp/twice", "v1", fresh).digest == manifest.digest
    for content in contents:
        assert fresh.path(fresh.put(content, LAYER_ZSTD).digest).read_bytes() == content


def test_a_blob_of_another_repository_is_mounted_and_not_sent(source: Served, tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "store")
    blob = store.put(b"shared" * 1000, LAYER_ZSTD)
    client = Registry(source.client.address, source.ca)
    assert client.push_blob("ckp/first-home", blob, store.path(blob.digest))
    assert not client.push_blob("ckp/second-home", blob, store.path(blob.digest))
    assert client.has_blob("ckp/second-home", blob.digest)
    client.close()


def test_a_byte_that_the_registrys_disk_has_flipped_is_noticed(source: Served, tmp_path: Path) -> None:
    content = os.urandom(5000)
    pushed(source, tmp_path, "ckp/rotten", "v1", content)
    digest = BlobStore(tmp_path).put(content, LAYER_ZSTD).digest.removeprefix("sha256:")
    data = source.storage / "blobs/sha256" / digest[:2] / digest / "data"
    data.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    fresh = BlobStore(tmp_path / "fresh")
    with pytest.raises(VerificationFailed, match="sends other bytes"):
        source.client.pull("ckp/rotten", "v1", fresh)
    assert not fresh.path(f"sha256:{digest}").exists()


def test_a_certificate_of_another_ca_is_refused_at_once(source: Served, target: Served) -> None:
    stranger = Registry(source.client.address, target.ca)
    started = time.monotonic()
    with pytest.raises(CkpError, match=r"certificate of .* is not trusted"):
        stranger.catalog()
    assert time.monotonic() - started < 20, "it is not tried again"
    stranger.close()


# -- mirrors


@pytest.fixture(scope="module")
def release(source: Served, key: KeyPair, imgpkg: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    """A small release at the source: two signed images with a layer in common, an SBOM, and a bundle that imgpkg pushed."""
    folder = tmp_path_factory.mktemp("release")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CKP_CACHE", str(folder / "cache"))
        shared = os.urandom(3 << 20)
        images = {"kube-apiserver": "v1.35.1-ckp", "etcd": "3.5.15-0"}
        for name, tag in images.items():
            image = pushed(source, folder, f"release/{name}", tag, shared, name.encode())
            sign_image(source.client, f"release/{name}", image.digest, key.private, {TAG: tag})
            source.client.attach(f"release/{name}", image, CYCLONEDX, json.dumps({"of": name}).encode(), CYCLONEDX)
        repository = "release/byoh-bundle-debian_12_x86-64_k8s"
        push_small_bundle(source, imgpkg, folder, repository, "v1.35.1-ckp", "v1.35.1", images)
        bundle = source.client.get_manifest(repository, "v1.35.1-ckp")
        sign_image(source.client, repository, bundle.digest, key.private, {TAG: "v1.35.1-ckp"})
    return [(repository, "v1.35.1-ckp"), *((f"release/{name}", tag) for name, tag in images.items())]


def push_small_bundle(served: Served, imgpkg: Path, folder: Path, repository: str, tag: str, name: str, images: dict[str, str]) -> None:
    content = folder / f"bundle-{name}"
    content.mkdir()
    (content / "bundle.json").write_text(json.dumps({"release": name, "images": images}))
    (content / "kubelet.deb").write_bytes(b"a package" * 1000)
    reference = f"{served.client.address}/{repository}:{tag}"
    run([imgpkg, "push", "--image", reference, "--file", content, "--registry-ca-cert-path", served.ca, "--tty=false"], timeout=60)


def test_a_mirror_holds_the_same_and_cosign_and_imgpkg_accept_it(
    source: Served, target: Served, key: KeyPair, release: list[tuple[str, str]], cosign: Path, imgpkg: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    done = mirror(source.client, target.client, release, said.append, image_key=key.public)
    assert (done.images, done.unchanged) == (3, 0)
    for repository, tag in release:
        digest = source.client.digest(repository, tag)
        assert digest is not None
        assert target.client.digest(repository, tag) == digest
        assert target.client.referrers(repository, digest) == source.client.referrers(repository, digest)
        assert target.client.digest(repository, signature_tag(digest)) == source.client.digest(repository, signature_tag(digest))
        cosign_verify(cosign, target, tmp_path, f"{repository}@{digest}", key.public_file, "-a", f"tag={tag}")
    repository, tag = release[0]
    reference = f"{target.client.address}/{repository}:{tag}"
    run([imgpkg, "pull", "--image", reference, "--output", tmp_path / "pulled", "--registry-ca-cert-path", target.ca, "--tty=false"], timeout=60)
    assert (tmp_path / "pulled/kubelet.deb").read_bytes() == b"a package" * 1000
    again = mirror(source.client, target.client, release, said.append, image_key=key.public)
    assert (again.images, again.unchanged, again.attached, again.blobs) == (3, 3, 0, 0)
    assert not list((paths.cache() / "mirror").glob("*/sha256/*"))


def test_a_mirror_that_is_killed_goes_on_and_shows_no_tag_too_early(source: Served, target: Served, key: KeyPair, tmp_path: Path) -> None:
    contents = [os.urandom(2 << 20) for _ in range(12)]
    image = pushed(source, tmp_path, "kill/big", "v1", *contents)
    sign_image(source.client, "kill/big", image.digest, key.private, {TAG: "v1"})
    script = (
        "import sys; from pathlib import Path; from ckp.clients.oci.registry import Registry; from ckp.distribution.registries.mirror import mirror\n"
        "a, b = Registry(sys.argv[1], Path(sys.argv[2])), Registry(sys.argv[3], Path(sys.argv[4]))\n"
        "mirror(a, b, [('kill/big', 'v1')], print, image_key=Path(sys.argv[5]).read_bytes())\n"
    )
    argv = [sys.executable, "-c", script, source.client.address, str(source.ca), target.client.address, str(target.ca), str(key.public_file)]
    env = {**os.environ, "PYTHONPATH": str(REPO / "src")}
    killed = 0
    for pause in (0.05, 0.1, 0.2, 0.3):
        child = subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL)
        blobs = target.storage / "blobs"
        before = len(list(blobs.glob("sha256/*/*")))
        deadline = time.monotonic() + 20
        while child.poll() is None and len(list(blobs.glob("sha256/*/*"))) == before and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(pause / 10)
        child.send_signal(signal.SIGKILL)
        killed += child.wait() == -signal.SIGKILL
        if target.client.digest("kill/big", "v1") is not None:
            break
        with pytest.raises(CkpError):
            target.client.get_manifest("kill/big", "v1")
    assert killed > 0, "no run was killed at work"
    there = len(list((target.storage / "blobs").glob("sha256/*/*")))
    assert there > 0
    done = mirror(source.client, target.client, [("kill/big", "v1")], print, image_key=key.public)
    assert done.blobs < 14, "what was there is not sent again"
    assert target.client.pull("kill/big", "v1", BlobStore(tmp_path / "fresh")).digest == image.digest
    verify_image(target.client, "kill/big", image.digest, key.public, tag="v1")


def test_two_mirrors_at_once_end_alike(source: Served, target: Served, key: KeyPair, release: list[tuple[str, str]]) -> None:
    results: list[object] = []

    def work() -> None:
        client = Registry(target.client.address, target.ca)
        try:
            results.append(mirror(source.client, client, release, lambda _: None, image_key=key.public).images)
        except BaseException as error:
            results.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [3, 3]


def test_a_mirror_refuses_a_swapped_tag_and_an_unsigned_image_and_copies_nothing(source: Served, target: Served, key: KeyPair, tmp_path: Path) -> None:
    old = pushed(source, tmp_path, "swap/bundle", "v1.33.7-ckp", b"old")
    sign_image(source.client, "swap/bundle", old.digest, key.private, {TAG: "v1.33.7-ckp"})
    new = pushed(source, tmp_path, "swap/bundle", "v1.35.1-ckp", b"new")
    sign_image(source.client, "swap/bundle", new.digest, key.private, {TAG: "v1.35.1-ckp"})
    source.client.put_manifest("swap/bundle", source.client.get_manifest("swap/bundle", old.digest), "v1.35.1-ckp")
    pushed(source, tmp_path, "swap/plain", "v1", b"unsigned")
    everything = [("swap/bundle", "v1.33.7-ckp"), ("swap/bundle", "v1.35.1-ckp")]
    with pytest.raises(VerificationFailed, match=r"under the tag v1\.35\.1-ckp, and was signed for v1\.33\.7-ckp"):
        mirror(source.client, target.client, everything, print, image_key=key.public)
    with pytest.raises(VerificationFailed, match=r"swap/plain@sha256:.* has no signature"):
        mirror(source.client, target.client, [everything[0], ("swap/plain", "v1")], print, image_key=key.public)
    assert target.client.catalog() == []
    mirror(source.client, target.client, [("swap/plain", "v1")], print, image_key=None)
    pushed(target, tmp_path, "swap/plain", "v1", b"somebody else's")
    with pytest.raises(Conflict, match="names another image"):
        mirror(source.client, target.client, [("swap/plain", "v1")], print, image_key=None)
    mirror(source.client, target.client, [("swap/plain", "v1")], print, image_key=None, replace=True)
    assert target.client.digest("swap/plain", "v1") == source.client.digest("swap/plain", "v1")


def test_a_mirror_adds_signatures_to_those_that_the_target_has(source: Served, target: Served, key: KeyPair, cosign: Path, tmp_path: Path) -> None:
    image = pushed(source, tmp_path, "ckp/more", "v1", b"seven")
    sign_image(source.client, "ckp/more", image.digest, key.private)
    pushed(target, tmp_path, "ckp/more", "v1", b"seven")
    local = make_key(tmp_path)
    sign_image(target.client, "ckp/more", image.digest, local.private)
    mirror(source.client, target.client, [("ckp/more", "v1")], print, image_key=key.public)
    for public in (key, local):
        cosign_verify(cosign, target, tmp_path, "ckp/more:v1", public.public_file)


# -- removing


def test_an_old_release_goes_and_what_is_shared_stays(target: Served, key: KeyPair, cosign: Path, tmp_path: Path) -> None:
    client = target.client
    old = pushed(target, tmp_path, "ckp/kubelet", "old", b"old", b"common")
    same = pushed(target, tmp_path, "ckp/kubelet", "old-alias", b"shared content")
    pushed(target, tmp_path, "ckp/kubelet", "new-alias", b"shared content")
    new = pushed(target, tmp_path, "ckp/kubelet", "new", b"new", b"common")
    etcd = pushed(target, tmp_path, "ckp/etcd", "3.5", b"etcd")
    for repository, image in (("ckp/kubelet", old), ("ckp/kubelet", same), ("ckp/kubelet", new), ("ckp/etcd", etcd)):
        sign_image(client, repository, image.digest, key.private)
        client.attach(repository, image, CYCLONEDX, image.digest.encode(), CYCLONEDX)
    sbom = client.referrers("ckp/kubelet", old.digest)[0]
    selection = [("ckp/kubelet", "old"), ("ckp/kubelet", "old-alias"), ("ckp/etcd", "3.5"), ("ckp/gone", "x")]
    before = {name: client.tags(name) for name in client.catalog()}
    shown = prune(client, selection, print, keep=[("ckp/etcd", "3.5")])
    assert {name: client.tags(name) for name in client.catalog()} == before
    done = prune(client, selection, print, keep=[("ckp/etcd", "3.5")], yes=True)
    assert done == shown
    assert client.find_manifest("ckp/kubelet", old.digest) is None
    assert client.find_manifest("ckp/kubelet", sbom.digest) is None
    left = {tag for tag in client.tags("ckp/kubelet") if not tag.startswith("sha256-")}
    assert left == {"new", "new-alias"}
    assert not any(tag.startswith(fallback_tag(old.digest)) for tag in client.tags("ckp/kubelet"))
    assert prune(client, selection, print, keep=[("ckp/etcd", "3.5")], yes=True) == []
    config = tmp_path / "target/state/registry/config.yml"
    run([target.program, "garbage-collect", config], timeout=60, env={"OTEL_TRACES_EXPORTER": "none"})
    for repository, tag, image in (("ckp/kubelet", "new", new), ("ckp/kubelet", "new-alias", same), ("ckp/etcd", "3.5", etcd)):
        assert client.pull(repository, tag, BlobStore(tmp_path / "fresh")).digest == image.digest
        cosign_verify(cosign, target, tmp_path, f"{repository}:{tag}", key.public_file)
        assert len(client.referrers(repository, image.digest)) == 1


# -- the commands


def test_the_commands_sign_mirror_and_prune_a_release(
    source: Served, target: Served, key: KeyPair, release: list[tuple[str, str]], imgpkg: Path, tmp_path: Path
) -> None:
    runner = CliRunner()
    arguments = [source.client.address, target.client.address, "--source-ca", str(source.ca), "--target-ca", str(target.ca)]
    arguments += ["--prefix", "release", "--image-key", str(key.public_file)]
    done = runner.invoke(mirror_command, [*arguments, "--release", "v1.35.1"], catch_exceptions=False)
    assert "3 images, of which 0 were there" in done.output
    for repository, tag in release:
        assert target.client.digest(repository, tag) == source.client.digest(repository, tag)
    pushed(target, tmp_path, "release/mine", "v1", b"eight")
    signing = [f"{target.client.address}/release/mine:v1", "--key", str(key.folder / "private.pem"), "--ca", str(target.ca)]
    assert "is signed for the tag v1" in runner.invoke(sign_command, signing, catch_exceptions=False).output
    verify_image(target.client, "release/mine", target.client.get_manifest("release/mine", "v1").digest, key.public, tag="v1")
    pruning = [target.client.address, "--ca", str(target.ca), "--prefix", "release", "--release", "v1.35.1"]
    assert "nothing was" in runner.invoke(prune_command, pruning, catch_exceptions=False).output
    assert target.client.digest(*release[0]) is not None
    assert "removed" in runner.invoke(prune_command, [*pruning, "--yes"], catch_exceptions=False).output
    assert all(target.client.digest(*item) is None for item in release)
    assert target.client.digest("release/mine", "v1") is not None
