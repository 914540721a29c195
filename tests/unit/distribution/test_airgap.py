"""Collecting from one registry and delivering to another keeps every digest, signature and referrer; what is not ours is not read."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckp.clients.oci.registry import Registry
from ckp.clients.oci.store import BlobStore, Descriptor, image_manifest
from ckp.distribution.carry.airgap import ImportedRelease, collect, deliver
from ckp.distribution.carry.archive import Member, write_archive
from ckp.kits.errors import InvalidInput
from tests.simulators.registry import RegistrySimulator
from tests.support.signing_keys import signing_key

REPOSITORY = "ckp/pause"
TAG = "3.10"


def registry(simulator: RegistrySimulator) -> Registry:
    return Registry("registry.test:5000", transport=simulator.transport, sleep=lambda _seconds: None)


def filled(folder: Path) -> tuple[Registry, BlobStore, Descriptor]:
    """A registry with one image, an SBOM that refers to it, and a signature under cosign's tag."""
    client, blobs = registry(RegistrySimulator()), BlobStore(folder)
    layer = blobs.put(b"a layer", "application/vnd.oci.image.layer.v1.tar+zstd")
    image = image_manifest(blobs, [(layer, layer.digest)], {}, "2026-01-01T00:00:00Z")
    client.push(blobs, image, REPOSITORY, TAG)
    client.attach(REPOSITORY, image, "application/vnd.cyclonedx+json", b'{"bomFormat": "CycloneDX"}', "application/vnd.cyclonedx+json")
    client.push(blobs, image_manifest(blobs, [(blobs.put(b"{}", "x/y"), layer.digest)], {}, "x"), REPOSITORY, f"sha256-{image.digest.partition(':')[2]}.sig")
    return client, blobs, image


def test_image_signature_and_sbom_arrive_with_their_digests(tmp_path: Path) -> None:
    source, _, image = filled(tmp_path / "source")
    carried = BlobStore(tmp_path / "carried")
    items = collect(source, REPOSITORY, TAG, carried)
    assert [item.tag for item in items] == [TAG, f"sha256-{image.digest.partition(':')[2]}.sig", ""]
    target = registry(RegistrySimulator())
    deliver(target, items, carried)
    assert target.digest(REPOSITORY, TAG) == image.digest
    assert [item.artifact_type for item in target.referrers(REPOSITORY, image.digest)] == ["application/vnd.cyclonedx+json"]
    assert target.digest(REPOSITORY, items[1].tag) == items[1].digest


def test_delivering_again_sends_nothing(tmp_path: Path) -> None:
    source, _, _ = filled(tmp_path / "source")
    carried = BlobStore(tmp_path / "carried")
    items = collect(source, REPOSITORY, TAG, carried)
    simulator = RegistrySimulator()
    deliver(registry(simulator), items, carried)
    before = len(simulator.requests("^(PUT|POST|PATCH)"))
    deliver(registry(simulator), items, carried)
    assert len(simulator.requests("^(PUT|POST|PATCH)")) == before


def test_an_archive_of_another_kind_or_version_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKP_CACHE", str(tmp_path / "cache"))
    key = signing_key(tmp_path / "keys")
    (tmp_path / "a").write_text("x")
    for about, sentence in (({"kind": "backup"}, "holds no release"), ({"kind": "ckp-release", "ckp": "99.0"}, "was made by CKP 99.0")):
        file = tmp_path / f"{about['kind']}.ckp"
        write_archive(file, about, [Member("a", tmp_path / "a")], key, lambda _line: None)
        with pytest.raises(InvalidInput, match=sentence):
            ImportedRelease.read(file, key.keyring, lambda _line: None)
