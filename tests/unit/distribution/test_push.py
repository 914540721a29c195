"""Tags stand for one content: pushing another under the same tag is a conflict that names both, unless it is asked for."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ckp.catalog.load import Catalog
from ckp.catalog.models import BundleTarget
from ckp.cli.distribution import dist as dist_module
from ckp.clients.oci.registry import LAYER_ZSTD, BlobStore, Registry, image_manifest
from ckp.clients.signing.cosign import TAG, sign_image, signature_tag, verify_image
from ckp.distribution import bundles as bundle_module
from ckp.distribution.builder.component import Built
from ckp.distribution.bundles import Bundle
from ckp.distribution.carry.airgap import ImportedRelease, collect
from ckp.distribution.images.layers import store
from ckp.distribution.images.make import Image
from ckp.distribution.release import Distribution
from ckp.kits.errors import Conflict
from ckp.site import publish as site_publish
from ckp.site.inventory import SiteRegistry
from ckp.site.lab import LabHosts
from tests.simulators.registry import RegistrySimulator
from tests.support.lab_sites import inventory_of
from tests.support.spoilt_packages import tar_of

ADDRESS = "registry.test:5000"
TARGET = BundleTarget(os="debian", os_version="12")
BUNDLE = f"ckp/{TARGET.repository}"
STAMP = "v1.35.1-ckp"


class World:
    """A registry, and an imgpkg that pushes into it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.simulator = RegistrySimulator()
        self.client = self.open()
        self.said: list[str] = []
        self.imgpkg_runs = 0

    def open(self, *_: object, **__: object) -> Registry:
        return Registry(ADDRESS, transport=self.simulator.transport, sleep=lambda _: None)

    def imgpkg(self, argv: Sequence[str | Path], **_options: object) -> None:
        """`imgpkg push --image REFERENCE --file FOLDER`: one layer, the same content the same digest."""
        self.imgpkg_runs += 1
        reference, source = str(argv[argv.index("--image") + 1]), Path(argv[argv.index("--file") + 1])
        repository, _, tag = reference.removeprefix(f"{ADDRESS}/").rpartition(":")
        layer = gzip.compress(tar_of(*((path.name, path.read_bytes()) for path in sorted(source.iterdir()))), mtime=0)
        blobs = BlobStore(self.folder / "imgpkg")
        blob = blobs.put(layer, LAYER_ZSTD)
        self.client.push(blobs, image_manifest(blobs, [(blob, blob.digest)], {}, "2026-01-01T00:00:00Z"), repository, tag)

    def release(self, name: str, *, image: bytes = b"kube-apiserver", bundle: bytes = b"kubelet") -> Distribution:
        """v1.35.1 of one image and one bundle, as a machine `name` has made it."""
        layer = store().put(image, LAYER_ZSTD)
        folder = self.folder / name / "bundle"
        folder.mkdir(parents=True)
        (folder / "bundle.json").write_text(json.dumps({"release": "v1.35.1", "images": {"kube-apiserver": STAMP}, "content": bundle.decode()}))
        (folder / "kubelet.deb").write_bytes(bundle)
        catalog = Catalog()
        built = {"imgpkg": cast(Built, SimpleNamespace(binary=lambda _: Path("imgpkg")))}
        made = Distribution(catalog, catalog.release("v1.35.1"), "lab", self.said.append, built=built)
        made.images = [Image("kube-apiserver", STAMP, ((layer, layer.digest),))]
        made.bundles = [Bundle(TARGET, folder)]
        return made

    def push(self, release: Distribution | ImportedRelease, *, replace: bool = False) -> dict[str, str]:
        return release.push(self.client, ADDRESS, None, replace=replace)

    def tags(self) -> dict[str, dict[str, str]]:
        return {name: self.simulator.tags(name) for name in sorted(self.simulator.repositories)}

    def writes(self) -> int:
        return len(self.simulator.requests("^(PUT|POST|PATCH|DELETE)"))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("CKP_CACHE", str(tmp_path / "cache"))
    made = World(tmp_path)
    monkeypatch.setattr(bundle_module, "run", made.imgpkg)
    # Signatures and documents have tests of their own (test_cosign.py, test_provenance.py).
    monkeypatch.setattr(Distribution, "_attest", lambda *_: None)
    return made


def test_the_same_release_again_sends_nothing(world: World) -> None:
    first = world.push(world.release("here"))
    before = world.writes()
    assert world.push(world.release("again")) == first
    assert world.writes() == before and world.imgpkg_runs == 1, "another machine finds by the content that all is there"
    assert not any("replac" in line for line in world.said)


@pytest.mark.parametrize(("part", "tag"), [("image", f"ckp/kube-apiserver:{STAMP}"), ("bundle", f"{BUNDLE}:{STAMP}")])
def test_another_content_under_a_tag_is_a_conflict_and_nothing_is_pushed(world: World, part: str, tag: str) -> None:
    world.push(world.release("here"))
    before, tags = world.writes(), world.tags()
    other = world.release("there", **cast(dict[str, Any], {part: b"other"}))
    with pytest.raises(Conflict) as caught:
        world.push(other)
    text = caught.value.render()
    repository, _, name = tag.rpartition(":")
    assert tag in text and tags[repository][name] in text and "--replace" in text and "nothing was pushed" in text
    if part == "image":
        assert other.images[0].manifest().digest in text
    assert (world.writes(), world.tags()) == (before, tags)


def test_what_is_no_bundle_under_a_bundles_tag_is_a_conflict(world: World) -> None:
    blobs = BlobStore(world.folder / "blobs")
    blob = blobs.put(b"no tar", LAYER_ZSTD)
    world.client.push(blobs, image_manifest(blobs, [(blob, blob.digest)], {}, "x"), BUNDLE, STAMP)
    with pytest.raises(Conflict, match="nothing was pushed"):
        world.push(world.release("here"))


def test_with_replace_the_tags_move_and_it_is_said(world: World) -> None:
    world.push(world.release("here"))
    old = world.tags()
    other = world.release("there", image=b"other", bundle=b"other")
    digests = world.push(other, replace=True)
    for repository in ("ckp/kube-apiserver", BUNDLE):
        new = world.tags()[repository][STAMP]
        assert new == digests[repository.removeprefix("ckp/")] != old[repository][STAMP]
        assert any(f"{repository}:{STAMP}" in line and old[repository][STAMP] in line and new in line for line in world.said), world.said
    before = world.writes()
    world.push(other, replace=True)
    assert world.writes() == before


# -- a release from a file


def imported(world: World, name: str, content: bytes) -> tuple[ImportedRelease, bytes]:
    """A release of one signed image as `ckp dist export` lays it out, and the public key."""
    private = ec.generate_private_key(ec.SECP256R1())
    secret = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public = private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    origin = Registry("origin.test", transport=RegistrySimulator().transport, sleep=lambda _: None)
    blobs = BlobStore(world.folder / name / "blobs")
    layer = blobs.put(content, LAYER_ZSTD)
    image = image_manifest(blobs, [(layer, layer.digest)], {}, "2026-01-01T00:00:00Z")
    origin.push(blobs, image, "ckp/pause", "3.10")
    sign_image(origin, "ckp/pause", image.digest, secret, {TAG: "3.10"})
    items = collect(origin, "ckp/pause", "3.10", blobs)
    (world.folder / name / "oci.json").write_text(json.dumps([item.__dict__ for item in items]))
    return ImportedRelease(world.folder / name, {"digests": {"pause": image.digest}}, world.said.append), public


def test_a_file_does_not_move_a_tag_either(world: World) -> None:
    first, _ = imported(world, "one", b"one")
    second, public = imported(world, "two", b"two")
    digests = world.push(first)
    before = world.writes()
    world.push(first)
    assert world.writes() == before
    with pytest.raises(Conflict) as caught:
        world.push(second)
    text = caught.value.render()
    assert "ckp/pause:3.10" in text and digests["pause"] in text and second.about["digests"]["pause"] in text and "--replace" in text
    assert world.writes() == before
    world.push(second, replace=True)
    assert world.client.digest("ckp/pause", "3.10") == second.about["digests"]["pause"]
    verify_image(world.client, "ckp/pause", second.about["digests"]["pause"], public, tag="3.10")


def test_signatures_that_others_put_beside_the_makers_stay(world: World) -> None:
    release, public = imported(world, "one", b"one")
    again, own = imported(world, "two", b"one")
    digest = world.push(release)["pause"]
    world.push(again)
    for key in (public, own):
        verify_image(world.client, "ckp/pause", digest, key, tag="3.10")
    assert len(world.client.get_manifest("ckp/pause", signature_tag(digest)).layers) == 2


# -- who asks for what


class Asked:
    """A Deliverable that notes how it was pushed."""

    tags: dict[str, str] = {}
    targets: Sequence[BundleTarget] = ()

    def __init__(self) -> None:
        self.replace: list[bool] = []

    def push(self, *_: object, replace: bool = False) -> dict[str, str]:
        self.replace.append(replace)
        return {}


def test_make_up_replaces_what_an_earlier_build_left_and_publish_only_if_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked()
    server = SimpleNamespace(ensure=lambda _say: world.client, endpoint=ADDRESS, credentials=None, ca=None, address=ADDRESS)
    monkeypatch.setattr(site_publish, "registry_server", lambda *_: server)
    place = replace(inventory_of(LabHosts(1)), registry=SiteRegistry("registry.example", "192.0.2.1"))
    site_publish.publish_all(cast(Distribution, asked), place, world.said.append)
    assert asked.replace == [True]
    monkeypatch.setattr(dist_module, "Registry", world.open)
    monkeypatch.setattr(dist_module, "made", lambda *_: asked)
    for more in ([], ["--replace"]):
        done = CliRunner().invoke(dist_module.dist_publish, ["v1.35.1", "--registry", ADDRESS, *more])
        assert done.exit_code == 0, done.output
    assert asked.replace == [True, False, True]
