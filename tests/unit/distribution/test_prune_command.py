"""`ckp dist prune`: what a bundle that stays names stays too, whether or not the catalog knows its release; who can't be asked stops it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ckp.cli.distribution import registry as module
from ckp.clients.oci.registry import LAYER_ZSTD, BlobStore, Registry, image_manifest
from ckp.kits.errors import CkpError, NotFound, VerificationFailed
from tests.simulators.registry import Fault, RegistrySimulator
from tests.support.spoilt_packages import tar_of

DEBIAN, RHEL = "ckp/byoh-bundle-debian_12_x86-64_k8s", "ckp/byoh-bundle-rhel_9_x86-64_k8s"
SHARED = {"etcd": "3.5.15-0", "pause": "3.10"}


class Site:
    """A registry that holds what a test pushes."""

    def __init__(self, folder: Path) -> None:
        self.simulator = RegistrySimulator()
        self.store = BlobStore(folder / "blobs")
        self.client = self.open("registry.test:5000")

    def open(self, address: str, *_: object, **__: object) -> Registry:
        return Registry(address, transport=self.simulator.transport, sleep=lambda _: None)

    def push(self, repository: str, tag: str, content: bytes) -> None:
        layer = self.store.put(content, LAYER_ZSTD)
        self.client.push(self.store, image_manifest(self.store, [(layer, layer.digest)], {}, "2026-01-01T00:00:00Z"), repository, tag)

    def bundle(self, release: str, images: dict[str, str], *, repository: str = DEBIAN, tag: str = "") -> None:
        """A bundle, and the images that it names."""
        for name, version in images.items():
            self.push(f"ckp/{name}", version, f"{name} {version}".encode())
        listed = json.dumps({"release": release, "images": images}).encode()
        self.push(repository, tag or f"{release}-ckp", gzip.compress(tar_of(("bundle.json", listed)), mtime=0))

    def prune(self, release: str, *more: str) -> Result:
        return CliRunner().invoke(module.prune, ["registry.test:5000", "--release", release, *more])

    def there(self) -> set[str]:
        return {f"{name}:{tag}" for name in self.simulator.repositories for tag in self.simulator.tags(name)}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setenv("CKP_CACHE", str(tmp_path / "cache"))
    made = Site(tmp_path)
    monkeypatch.setattr(module, "Registry", made.open)
    return made


def refused(result: Result, kind: type[CkpError], *words: str) -> None:
    assert isinstance(result.exception, kind), result.output
    for word in words:
        assert word in result.exception.render()


def test_what_a_release_outside_of_the_catalog_names_stays(site: Site) -> None:
    site.bundle("v1.35.1", {"kube-apiserver": "v1.35.1-ckp", "only-old": "v1", **SHARED})
    site.bundle("v1.32.9", {"kube-apiserver": "v1.32.9-ckp", **SHARED})
    result = site.prune("v1.35.1", "--yes")
    assert result.exit_code == 0, result.output
    assert site.there() == {"ckp/kube-apiserver:v1.32.9-ckp", "ckp/etcd:3.5.15-0", "ckp/pause:3.10", f"{DEBIAN}:v1.32.9-ckp"}


def test_a_release_outside_of_the_catalog_can_go_itself(site: Site) -> None:
    site.bundle("v1.35.1", {"kube-apiserver": "v1.35.1-ckp", **SHARED})
    before = site.there()
    site.bundle("v1.32.9", {"kube-apiserver": "v1.32.9-ckp", **SHARED})
    assert site.prune("v1.32.9", "--yes").exit_code == 0
    assert site.there() == before


def test_a_bundle_for_a_system_that_the_catalog_does_not_have_counts(site: Site) -> None:
    site.bundle("v1.35.1", SHARED)
    site.bundle("v1.34.3", {"kube-proxy": "v1.34.3-ckp", **SHARED}, repository="ckp/byoh-bundle-suse_15_x86-64_k8s")
    assert site.prune("v1.35.1", "--yes").exit_code == 0
    assert {"ckp/etcd:3.5.15-0", "ckp/pause:3.10", "ckp/kube-proxy:v1.34.3-ckp"} <= site.there()


def test_all_bundles_of_a_release_go_with_it_and_its_images_with_the_last(site: Site) -> None:
    for repository, tag in ((DEBIAN, ""), (RHEL, ""), (DEBIAN, "a-copy"), ("ckp/byoh-bundle-suse_15_x86-64_k8s", "")):
        site.bundle("v1.35.1", SHARED, repository=repository, tag=tag)
    assert site.prune("v1.35.1", "--yes").exit_code == 0
    assert site.there() == set()


def test_without_yes_nothing_goes(site: Site) -> None:
    site.bundle("v1.35.1", SHARED)
    before = site.there()
    assert "3 would be removed; nothing was" in site.prune("v1.35.1").output
    assert site.there() == before


def test_who_cannot_be_read_stops_it(site: Site) -> None:
    site.bundle("v1.35.1", SHARED)
    site.push(RHEL, "v1.34.3-ckp", b"no bundle at all")
    before = site.there()
    refused(site.prune("v1.35.1", "--yes"), VerificationFailed, f"{RHEL}:v1.34.3-ckp", "it is not known which images it needs", "nothing was removed")
    assert site.there() == before


def test_a_bundle_without_its_content_stops_it(site: Site) -> None:
    site.bundle("v1.35.1", SHARED)
    site.bundle("v1.34.3", SHARED, repository=RHEL)
    site.simulator.repositories[RHEL].blobs.clear()
    before = site.there()
    refused(site.prune("v1.35.1", "--yes"), VerificationFailed, f"{RHEL}:v1.34.3-ckp", "it is not known which images it needs")
    assert site.there() == before


def test_a_tag_that_was_given_to_another_releases_bundle_stops_it(site: Site) -> None:
    site.bundle("v1.35.1", SHARED)
    site.bundle("v1.35.1", SHARED, repository=RHEL, tag="v1.34.3-ckp")
    before = site.there()
    refused(site.prune("v1.35.1", "--yes"), VerificationFailed, f"{RHEL}:v1.34.3-ckp", "is the bundle of v1.35.1")
    assert site.there() == before


def test_a_registry_that_does_not_say_what_it_holds_is_not_pruned(site: Site) -> None:
    site.bundle("v1.35.1", SHARED)
    before = site.there()
    site.simulator.faults = [Fault("_catalog", 9, status=404)]
    refused(site.prune("v1.35.1", "--yes"), NotFound, "does not list its repositories", "nothing was removed")
    assert site.there() == before


def test_a_release_that_is_not_there_is_said_to_be_not_there(site: Site) -> None:
    site.bundle("v1.35.1", SHARED)
    refused(site.prune("v1.34.3", "--yes"), NotFound, "has no bundle of v1.34.3")


def test_a_removal_that_was_cut_off_can_be_run_again(site: Site) -> None:
    site.bundle("v1.35.1", {"a-first": "v1", "z-last": "v1"})
    site.simulator.faults = [Fault("DELETE .*z-last", 99, status=403)]
    assert site.prune("v1.35.1", "--yes").exit_code != 0
    assert "ckp/z-last:v1" in site.there()
    site.simulator.faults = []
    result = site.prune("v1.35.1", "--yes")
    assert result.exit_code == 0, result.output
    assert site.there() == set()
