"""Mirrors and removals against simulated registries: what each kind of registry does, and what breaks in between."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckp.clients.oci.registry import INDEX, LAYER_ZSTD, BlobStore, Descriptor, Manifest, Registry, fallback_tag, image_manifest
from ckp.clients.oci.store import canonical
from ckp.clients.signing.cosign import TAG, sign_image, signature_tag, verify_image
from ckp.distribution.registries.mirror import belongs_to, everything, mirror
from ckp.distribution.registries.prune import prune
from ckp.kits.errors import CkpError, Conflict, InvalidInput, NotFound, VerificationFailed
from tests.simulators.registry import Fault, RegistrySimulator

KEY = ec.generate_private_key(ec.SECP256R1())
SECRET = KEY.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
PUBLIC = KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
SBOM = "application/vnd.cyclonedx+json"


class Site:
    """One simulated registry with a client."""

    def __init__(self, name: str, folder: Path, **options: bool) -> None:
        self.simulator = RegistrySimulator(**options)  # type: ignore[arg-type]
        self.registry = Registry(f"{name}.test", transport=self.simulator.transport, sleep=lambda _: None)
        self.store = BlobStore(folder / name)

    def push(self, repository: str, tag: str, *contents: bytes, sign: bool = True, sbom: bool = True) -> Descriptor:
        layers = [(self.store.put(content, LAYER_ZSTD), f"sha256:{'0' * 64}") for content in contents]
        image = image_manifest(self.store, layers, {}, "2026-01-01T00:00:00Z")
        self.registry.push(self.store, image, repository, tag)
        if sign:
            sign_image(self.registry, repository, image.digest, SECRET, {TAG: tag})
        if sbom:
            document = self.registry.attach(repository, image, SBOM, image.digest.encode(), SBOM)
            # A document about the document, such as a signature of an SBOM.
            self.registry.attach(repository, document, "application/x-review", b"good", "text/plain")
        return image

    def state(self) -> dict[str, dict[str, str]]:
        return {name: dict(sorted(repository.tags.items())) for name, repository in sorted(self.simulator.repositories.items())}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKP_CACHE", str(tmp_path / "cache"))


def nothing(_: str) -> None:
    pass


def copy(source: Site, target: Site, **more: object) -> object:
    options = {"image_key": PUBLIC, **more}
    return mirror(source.registry, target.registry, everything(source.registry), nothing, **options)  # type: ignore[arg-type]


# -- mirrors


@pytest.mark.parametrize("source_api", [True, False])
@pytest.mark.parametrize("target_api", [True, False])
def test_referrers_come_along_between_registries_of_either_kind(tmp_path: Path, source_api: bool, target_api: bool) -> None:
    source, target = Site("source", tmp_path, referrers_api=source_api), Site("target", tmp_path, referrers_api=target_api)
    image = source.push("ckp/etcd", "v1", b"one", b"shared")
    source.push("ckp/coredns", "v1", b"two", b"shared")
    copy(source, target)
    [document] = target.registry.referrers("ckp/etcd", image.digest, SBOM)
    assert document == source.registry.referrers("ckp/etcd", image.digest, SBOM)[0]
    assert len(target.registry.referrers("ckp/etcd", document.digest, "application/x-review")) == 1
    verify_image(target.registry, "ckp/etcd", image.digest, PUBLIC, tag="v1")
    writes = len(target.simulator.requests("PUT|POST"))
    again = copy(source, target)
    assert str(again) == "2 images, of which 2 were there, and 0 signatures and referrers: 0 blobs with 0.0 MiB sent"
    assert len(target.simulator.requests("PUT|POST")) == writes


def test_a_blob_that_two_images_share_is_pulled_and_sent_once(tmp_path: Path) -> None:
    source, target = Site("source", tmp_path), Site("target", tmp_path)
    for name in "abcdef":
        source.push(f"ckp/{name}", "v1", b"shared", name.encode(), sbom=False)
    copy(source, target)
    shared = source.store.put(b"shared", LAYER_ZSTD).digest
    assert len(source.simulator.requests(f"GET .*blobs/{shared}")) == 1
    assert len(target.simulator.requests(f"PUT .*digest={shared.replace(':', '%3A')}|PUT .*digest={shared}")) == 1


def test_the_tag_comes_last(tmp_path: Path) -> None:
    source, target = Site("source", tmp_path), Site("target", tmp_path)
    source.push("ckp/etcd", "v1", b"one")
    copy(source, target)
    writes = target.simulator.requests("PUT .*manifests")
    assert writes[-1].endswith("/manifests/v1")
    assert sum(line.endswith("/v1") for line in writes) == 1


def test_a_referrer_that_was_copied_and_not_yet_listed_is_listed_by_the_next_run(tmp_path: Path) -> None:
    source, target = Site("source", tmp_path), Site("target", tmp_path)
    image = source.push("ckp/etcd", "v1", b"one")
    copy(source, target)
    target.registry.delete("ckp/etcd", fallback_tag(image.digest))
    copy(source, target)
    assert target.registry.referrers("ckp/etcd", image.digest) == source.registry.referrers("ckp/etcd", image.digest)


def test_an_index_comes_with_all_its_images(tmp_path: Path) -> None:
    source, target = Site("source", tmp_path), Site("target", tmp_path)
    children = [source.push("ckp/multi", f"arch-{number}", bytes([number])) for number in range(2)]
    for number in range(2):
        source.registry.delete("ckp/multi", f"arch-{number}")
    index = Manifest(INDEX, canonical({"schemaVersion": 2, "mediaType": INDEX, "manifests": [child.to_json() for child in children]}))
    source.registry.put_manifest("ckp/multi", index, "v1")
    sign_image(source.registry, "ckp/multi", index.digest, SECRET, {TAG: "v1"})
    copy(source, target)
    assert target.registry.pull("ckp/multi", "v1", BlobStore(tmp_path / "fresh")).digest == index.digest
    assert target.registry.referrers("ckp/multi", children[0].digest) == source.registry.referrers("ckp/multi", children[0].digest)


def unsigned(source: Site, target: Site) -> None:
    source.push("ckp/b", "v1", b"b", sign=False)


def swapped_tag(source: Site, target: Site) -> None:
    old = source.push("ckp/b", "v1", b"old")
    source.push("ckp/b", "v2", b"new")
    source.registry.put_manifest("ckp/b", source.registry.get_manifest("ckp/b", old.digest), "v2")


def other_repository(source: Site, target: Site) -> None:
    image = source.push("ckp/b", "v1", b"b", sign=False)
    sign_image(source.registry, "ckp/b", image.digest, SECRET, {TAG: "v1"}, identity="source.test/ckp/c")


def taken_tag(source: Site, target: Site) -> None:
    source.push("ckp/b", "v1", b"b")
    target.push("ckp/b", "v1", b"another")


@pytest.mark.parametrize(
    ("spoil", "error", "sentence"),
    [
        (unsigned, VerificationFailed, "ckp/b@sha256:.* has no signature"),
        (swapped_tag, VerificationFailed, "is under the tag v2, and was signed for v1"),
        (other_repository, VerificationFailed, "is for another repository"),
        (taken_tag, Conflict, "names another image than"),
    ],
)
def test_what_may_not_be_copied_stops_everything_before_it_begins(
    tmp_path: Path, spoil: Callable[[Site, Site], None], error: type[CkpError], sentence: str
) -> None:
    source, target = Site("source", tmp_path), Site("target", tmp_path)
    source.push("ckp/a", "v1", b"a")
    spoil(source, target)
    before = target.state()
    with pytest.raises(error, match=sentence):
        copy(source, target)
    assert target.state() == before


def test_without_a_key_it_is_said_so_by_the_caller_and_with_replace_a_tag_moves(tmp_path: Path) -> None:
    source, target = Site("source", tmp_path), Site("target", tmp_path)
    taken_tag(source, target)
    copy(source, target, image_key=None, replace=True)
    assert target.registry.digest("ckp/b", "v1") == source.registry.digest("ckp/b", "v1")


def test_nothing_to_copy_and_something_that_is_not_there_are_errors(tmp_path: Path) -> None:
    source, target = Site("source", tmp_path), Site("target", tmp_path)
    with pytest.raises(InvalidInput, match="nothing to copy"):
        copy(source, target)
    with pytest.raises(NotFound, match=r"source\.test/ckp/x:v1 is not there"):
        mirror(source.registry, target.registry, [("ckp/x", "v1")], nothing, image_key=PUBLIC)


def test_bytes_that_are_altered_on_the_way_leave_no_tag(tmp_path: Path) -> None:
    source, target = Site("source", tmp_path), Site("target", tmp_path)
    source.push("ckp/etcd", "v1", b"one" * 1000)
    layer = source.store.put(b"one" * 1000, LAYER_ZSTD).digest
    source.simulator.faults.append(Fault(f"GET .*blobs/{layer}", 100, alter=True))
    with pytest.raises(VerificationFailed, match="sends other bytes"):
        copy(source, target)
    assert "v1" not in target.state().get("ckp/etcd", {})
    source.simulator.faults.clear()
    copy(source, target)
    assert target.registry.pull("ckp/etcd", "v1", BlobStore(tmp_path / "fresh"))


def test_a_list_of_referrers_that_lies_is_refused(tmp_path: Path) -> None:
    source, target = Site("source", tmp_path), Site("target", tmp_path)
    image = source.push("ckp/etcd", "v1", b"one", sbom=False)
    other = source.push("ckp/etcd", "v2", b"two")
    stranger = source.registry.referrers("ckp/etcd", other.digest)[0]
    listed = Manifest(INDEX, canonical({"schemaVersion": 2, "mediaType": INDEX, "manifests": [stranger.to_json()]}))
    source.registry.put_manifest("ckp/etcd", listed, fallback_tag(image.digest))
    with pytest.raises(VerificationFailed, match=r"is listed as referring to .*, and does not"):
        mirror(source.registry, target.registry, [("ckp/etcd", "v1")], nothing, image_key=PUBLIC)
    assert "v1" not in target.state().get("ckp/etcd", {})


@given(seed=st.integers(0, 1 << 30))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_copy_that_breaks_anywhere_is_whole_after_the_next_run(tmp_path: Path, seed: int) -> None:
    """Every request to either side may fail for good; a tag is seen only when all behind it is there."""
    choose = random.Random(seed)
    source, target = Site("source", tmp_path), Site("target", tmp_path)
    images = {name: source.push(f"ckp/{name}", "v1", b"shared", name.encode()) for name in "ab"}

    class Cut(Exception):
        pass

    left = choose.randrange(1, 60)

    def count() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Cut

    target.simulator.faults = [Fault("", 1 << 30, hook=count)]
    try:
        copy(source, target, threads=choose.choice([1, 4]))
    except Cut:
        pass
    target.simulator.faults = []
    for name, image in images.items():
        if target.registry.digest(f"ckp/{name}", "v1"):
            verify_image(target.registry, f"ckp/{name}", image.digest, PUBLIC, tag="v1")
            assert target.registry.pull(f"ckp/{name}", "v1", BlobStore(tmp_path / "fresh")) == image
            assert len(target.registry.referrers(f"ckp/{name}", image.digest)) == 1
    copy(source, target)
    assert target.state() == source.state()


# -- tags that belong to a manifest


def test_signatures_and_lists_of_referrers_are_no_images_of_their_own(tmp_path: Path) -> None:
    source = Site("source", tmp_path)
    image = source.push("ckp/etcd", "v1", b"one")
    assert everything(source.registry) == [("ckp/etcd", "v1")]
    assert everything(source.registry, "other") == []
    assert belongs_to(signature_tag(image.digest)) == belongs_to(fallback_tag(image.digest)) == image.digest
    for name in ("v1", "sha256-12", f"sha256-{'0' * 64}.other", f"sha256-{'0' * 64}x"):
        assert belongs_to(name) is None


# -- removing


@pytest.mark.parametrize("api", [True, False])
def test_a_release_goes_with_all_that_belongs_to_it_and_nothing_else(tmp_path: Path, api: bool) -> None:
    site = Site("registry", tmp_path, referrers_api=api)
    kept = site.push("ckp/etcd", "new", b"new", b"shared")
    before = {name: dict(repository.manifests) for name, repository in site.simulator.repositories.items()}
    tags = site.state()
    site.push("ckp/etcd", "old", b"old", b"shared")
    site.push("ckp/only-old", "old", b"x")
    shown = prune(site.registry, [("ckp/etcd", "old"), ("ckp/only-old", "old")], nothing)
    assert site.registry.digest("ckp/etcd", "old") is not None
    assert prune(site.registry, [("ckp/etcd", "old"), ("ckp/only-old", "old")], nothing, yes=True) == shown
    assert {name: repository.manifests for name, repository in site.simulator.repositories.items() if repository.manifests} == before
    assert {name: names for name, names in site.state().items() if names} == tags
    verify_image(site.registry, "ckp/etcd", kept.digest, PUBLIC)


def test_an_image_under_two_tags_loses_only_the_one(tmp_path: Path) -> None:
    site = Site("registry", tmp_path)
    image = site.push("ckp/etcd", "old", b"same")
    site.push("ckp/etcd", "new", b"same")
    [removal] = prune(site.registry, [("ckp/etcd", "old")], nothing, yes=True)
    assert str(removal) == "ckp/etcd:old  the tag only: its manifest stays, as something else names it"
    assert site.registry.digest("ckp/etcd", "new") == image.digest
    verify_image(site.registry, "ckp/etcd", image.digest, PUBLIC, tag="new")
    assert len(site.registry.referrers("ckp/etcd", image.digest)) == 1


def test_what_another_release_has_too_stays(tmp_path: Path) -> None:
    site = Site("registry", tmp_path)
    site.push("ckp/etcd", "3.5.15-0", b"etcd")
    before = site.state()
    assert prune(site.registry, [("ckp/etcd", "3.5.15-0")], nothing, keep=[("ckp/etcd", "3.5.15-0")], yes=True) == []
    assert site.state() == before


def test_an_image_that_a_kept_index_lists_stays(tmp_path: Path) -> None:
    site = Site("registry", tmp_path)
    child = site.push("ckp/multi", "amd64", b"child")
    index = Manifest(INDEX, canonical({"schemaVersion": 2, "mediaType": INDEX, "manifests": [child.to_json()]}))
    site.registry.put_manifest("ckp/multi", index, "v1")
    prune(site.registry, [("ckp/multi", "amd64")], nothing, yes=True)
    assert site.registry.pull("ckp/multi", "v1", BlobStore(tmp_path / "fresh"))
    prune(site.registry, [("ckp/multi", "v1")], nothing, yes=True)
    assert site.simulator.repositories["ckp/multi"].manifests == {}


def test_signatures_of_what_is_not_known_are_left_alone(tmp_path: Path) -> None:
    site = Site("registry", tmp_path)
    image = site.push("ckp/etcd", "old", b"old")
    stranger = f"sha256-{'1' * 64}.sig"
    site.registry.put_manifest("ckp/etcd", site.registry.get_manifest("ckp/etcd", image.digest), stranger)
    prune(site.registry, [("ckp/etcd", "old")], nothing, yes=True)
    assert site.state()["ckp/etcd"][stranger] == image.digest


def test_a_signatures_tag_cannot_be_asked_for_as_a_release(tmp_path: Path) -> None:
    site = Site("registry", tmp_path)
    image = site.push("ckp/etcd", "new", b"new")
    assert prune(site.registry, [("ckp/etcd", signature_tag(image.digest))], nothing, yes=True) == []


def test_a_registry_that_cannot_delete_a_shared_tag_says_so_and_loses_nothing(tmp_path: Path) -> None:
    site = Site("registry", tmp_path, delete_tags=False)
    site.push("ckp/etcd", "old", b"same")
    site.push("ckp/etcd", "new", b"same")
    before = site.state()
    with pytest.raises(CkpError, match="does not support that"):
        prune(site.registry, [("ckp/etcd", "old")], nothing, yes=True)
    assert site.state() == before


@given(seed=st.integers(0, 1 << 30))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_removal_that_breaks_anywhere_ends_the_same_after_the_next_run(tmp_path: Path, seed: int) -> None:
    choose = random.Random(seed)
    site = Site("registry", tmp_path)
    site.push("ckp/etcd", "new", b"new", b"shared")
    before = {name: dict(repository.manifests) for name, repository in site.simulator.repositories.items()}
    children = [site.push("ckp/etcd", f"child-{number}", bytes([number]), b"shared") for number in range(2)]
    body = canonical({"schemaVersion": 2, "mediaType": INDEX, "manifests": [child.to_json() for child in children]})
    site.registry.put_manifest("ckp/etcd", Manifest(INDEX, body), "old")
    selection = [("ckp/etcd", name) for name in ("old", "child-0", "child-1")]
    total = len(prune(site.registry, selection, nothing))
    left = choose.randrange(total)

    class Cut(Exception):
        pass

    def count() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Cut

    site.simulator.faults = [Fault("DELETE", 1 << 30, hook=count)]
    with pytest.raises(Cut):
        prune(site.registry, selection, nothing, yes=True)
    site.simulator.faults = []
    prune(site.registry, selection, nothing, yes=True)
    assert {name: repository.manifests for name, repository in site.simulator.repositories.items()} == before
    assert json.dumps(site.state()).count("child") == 0
