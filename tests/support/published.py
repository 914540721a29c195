"""A release as `ckp dist publish` leaves it in a registry: small, and really signed."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from ckp.catalog.load import Catalog
from ckp.catalog.models import BundleTarget
from ckp.clients.oci.registry import LAYER_ZSTD, BlobStore, Registry, image_manifest
from ckp.clients.signing.openpgp import SigningKey
from tests.support.spoilt_packages import Deb, tar_of

IMAGES = {"kube-apiserver": "{name}-ckp", "etcd": "3.5.24-0", "pause": "3.10.1"}
GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
DEBIAN = BundleTarget(os="debian", os_version="12")


def push(registry: Registry, folder: Path, repository: str, tag: str, content: bytes, media_type: str = LAYER_ZSTD) -> str:
    """An image of one layer; its digest."""
    store = BlobStore(folder / "blobs")
    layer = store.put(content, media_type)
    manifest = image_manifest(store, [(layer, f"sha256:{'0' * 64}")], {}, "2026-01-01T00:00:00Z")
    registry.push(store, manifest, f"ckp/{repository}", tag)
    return manifest.digest


def publish(
    registry: Registry,
    folder: Path,
    name: str,
    key: SigningKey,
    registry_name: str,
    *,
    targets: Sequence[BundleTarget] = (DEBIAN,),
    build: str = "",
    change: Callable[[dict[str, bytes]], None] = lambda files: None,
    at: str = "",
) -> dict[str, str]:
    """Push a release's images and bundles; the digests by repository.

    Args:
        build: another one gives other images.
        change: changes a bundle's files after they were signed.
        at: the tag of the bundles, if not the release's.
    """
    release = Catalog().release(name)
    tags = {repository: tag.format(name=name) for repository, tag in IMAGES.items()}
    digests = {repository: push(registry, folder, repository, tag, f"{repository} {tag} {build}".encode()) for repository, tag in tags.items()}
    for target in targets:
        deb = Deb(version=release.package_version).build(key.sign)
        listing = {
            "schema": 1,
            "release": name,
            "version": release.package_version,
            "os": target.os,
            "os_version": target.os_version,
            "architecture": "amd64",
            "registry": f"{registry_name}/ckp",
            "packages": [{"file": "kubelet.deb", "name": "kubelet", "version": release.package_version, "sha256": hashlib.sha256(deb).hexdigest()}],
            "files": [],
            "images": {repository: f"{tag}@{digests[repository]}" for repository, tag in tags.items()},
            "stand_ins": [],
        }
        raw = json.dumps(listing).encode()
        files = {"bundle.json": raw, "bundle.json.asc": key.sign(raw, armor=True), "kubelet.deb": deb}
        change(files)
        digests[target.repository] = push(registry, folder, target.repository, at or release.stamp, gzip.compress(tar_of(*files.items()), mtime=0), GZIP)
    return digests
