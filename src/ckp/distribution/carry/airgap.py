"""Carrying a release to a site without a network: one signed file with all that `ckp up`, a registry and package repositories need.

oci.json, blobs/sha256/…     images and bundles as a registry holds them, with signatures, SBOMs and provenance
repositories/…               the signed apt and dnf repositories
packages/…                   the agent's packages
builds/<component>/…         the programs and manifests that a site itself runs: registry, imgpkg, kubectl, helm, Cluster API, cert-manager
lab/base.tar                 the root file system of lab hosts
wheels/…                     the Python packages of the `ckp` command
trusted.gpg, cosign.pub      the keys that it is all signed by (whom to trust is the reader's own decision, made before)
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ckp import __version__
from ckp.catalog.load import Chosen
from ckp.catalog.models import BundleTarget, Release, Source
from ckp.clients.oci.registry import Registry
from ckp.clients.oci.store import BlobStore, Manifest
from ckp.clients.signing.cosign import append_layer, signature_tag
from ckp.distribution.builder.component import Built
from ckp.distribution.bundles import PREFIX
from ckp.distribution.carry.archive import Member, read_archive, write_archive
from ckp.distribution.images.layers import store
from ckp.distribution.packages.pack import Format, Package
from ckp.distribution.registries.mirror import belongs_to
from ckp.distribution.registries.server import RegistryServer
from ckp.distribution.registries.tags import check_tags
from ckp.distribution.release import Distribution
from ckp.kits import paths
from ckp.kits.errors import InvalidInput
from ckp.kits.files import exclusive
from ckp.kits.processes import run

SITE_PARTS: dict[str, tuple[str, ...]] = {
    "distribution": ("bin/registry",),
    "imgpkg": ("bin/imgpkg",),
    "kubernetes": ("bin/kubectl",),
    "helm": ("bin/helm",),
    "cluster-api": ("bin/clusterctl", "files"),
    "cert-manager": ("files",),
    "etcd": ("bin/etcd", "bin/etcdutl"),
}
"""What a site uses of the components' builds; everything else reaches it in images and packages."""
WHEEL_SECONDS = 600.0


@dataclass(frozen=True)
class Item:
    """A manifest of a registry: under a tag, or (a referrer) only by its digest."""

    repository: str
    tag: str
    digest: str
    media_type: str


def collect(registry: Registry, repository: str, tag: str, blobs: BlobStore) -> list[Item]:
    """Pull what a tag names into `blobs`, with its image signatures and everything that refers to it."""
    found = registry.pull(repository, tag, blobs)
    items = [Item(repository, tag, found.digest, found.media_type)]
    if registry.digest(repository, signature_tag(found.digest)):
        signature = registry.pull(repository, signature_tag(found.digest), blobs)
        items.append(Item(repository, signature_tag(found.digest), signature.digest, signature.media_type))
    for referrer in registry.referrers(repository, found.digest):
        pulled = registry.pull(repository, referrer.digest, blobs)
        items.append(Item(repository, "", pulled.digest, pulled.media_type))
    return items


def deliver(registry: Registry, items: Sequence[Item], blobs: BlobStore) -> None:
    """Push what was collected; what the registry has is not sent again, and signatures by others are kept."""
    for item in items:
        if registry.digest(item.repository, item.tag or item.digest) == item.digest:
            continue
        manifest = Manifest(item.media_type, blobs.path(item.digest).read_bytes())
        for child in manifest.children:
            deliver(registry, [Item(item.repository, "", child.digest, child.media_type)], blobs)
        for blob in manifest.blobs:
            registry.push_blob(item.repository, blob, blobs.path(blob.digest))
        if item.tag and belongs_to(item.tag) and registry.digest(item.repository, item.tag):
            for layer in manifest.layers:
                append_layer(registry, item.repository, item.tag, layer, None)
            continue
        registry.put_manifest(item.repository, manifest, item.tag)


# -- out


@contextmanager
def own_registry(program: Path) -> Iterator[tuple[Registry, str, Path]]:
    """A registry on loopback for the block, over the content that this machine's registries share; its client, address and CA."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="ckp-registry-") as folder:
        server = RegistryServer(program, "127.0.0.1", "localhost", port, state=Path(folder))
        try:
            yield server.start(), f"127.0.0.1:{port}", server.ca
        finally:
            server.stop()


def export_release(dist: Distribution, repositories: Path, base: Path | None, file: Path, registry_name: str, say: Callable[[str], None]) -> None:
    """Write a release into one signed file.

    Args:
        repositories: the root of the published package repositories.
        base: the lab hosts' root file system, if it is to be included.
        registry_name: `host:port` that the bundles name; the site's registry answers to it.
    """
    with (
        exclusive(paths.cache() / "export.lock", what="exporting a release", timeout=3600),
        tempfile.TemporaryDirectory(dir=paths.cache(), prefix=".export-") as name,
    ):
        scratch = Path(name)
        with own_registry(dist.built["distribution"].binary("registry")) as (registry, address, ca):
            say("pushing images and bundles into a temporary registry")
            digests = dist.push(registry, address, ca, replace=True)
            tags = {**dist.tags, **{target.repository: dist.release.stamp for target in dist.targets}}
            items = [item for repository in digests for item in collect(registry, f"{PREFIX}/{repository}", tags[repository], store())]
        members = [Member("oci.json", _json(scratch / "oci.json", [item.__dict__ for item in items]))]
        members += [Member(f"blobs/sha256/{digest.removeprefix('sha256:')}", store().path(digest)) for digest in sorted(_digests(items))]
        members += [Member(f"packages/{package.file_name}", package.path) for package in dist.agents]
        members += tree("repositories", repositories)
        members += _builds(dist, scratch)
        members += [Member("trusted.gpg", dist.keyring), Member("cosign.pub", dist.key.image_public)]
        if base is not None:
            say("packing the lab hosts' root file system")
            tar = scratch / "base.tar"
            run(["tar", "--xattrs", "--numeric-owner", "--sort=name", "-C", base, "-cf", tar, "."], timeout=600, what="packing the base")
            members.append(Member("lab/base.tar", tar))
        say("fetching the Python packages of the ckp command")
        members += tree("wheels", _wheels(scratch / "wheels"))
        about = {
            "kind": "ckp-release",
            "ckp": __version__,
            "release": dist.release.model_dump(mode="json"),
            "profile": dist.profile,
            "registry": registry_name,
            "key": dist.key.fingerprint,
            "stand_ins": dist.stand_ins,
            "tags": dist.tags,
            "digests": digests,
            "targets": [target.model_dump(mode="json") for target in dist.targets],
            "agents": [
                {"name": item.name, "version": item.version, "format": item.format, "file": item.file_name, "sha256": item.sha256} for item in dist.agents
            ],
            "builds": {role: dist.built[role].chosen.stands_in_for for role in SITE_PARTS},
        }
        write_archive(file, about, members, dist.key, say)


def tree(prefix: str, folder: Path) -> list[Member]:
    """All regular files below a folder as members, links followed: an archive holds none."""
    return [
        Member(f"{prefix}/{path.relative_to(folder)}", path, 0o755 if os.access(path, os.X_OK) and path.stat().st_mode & 0o100 else 0o644)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    ]


def _digests(items: Sequence[Item]) -> set[str]:
    found: set[str] = set()
    todo = [(item.digest, item.media_type) for item in items]
    while todo:
        digest, media_type = todo.pop()
        found.add(digest)
        manifest = Manifest(media_type, store().path(digest).read_bytes())
        found |= {blob.digest for blob in manifest.blobs}
        todo += [(child.digest, child.media_type) for child in manifest.children]
    return found


def _builds(dist: Distribution, scratch: Path) -> list[Member]:
    members = []
    for role, parts in SITE_PARTS.items():
        built = dist.built[role]
        source = _json(scratch / f"{role}.json", built.chosen.source.model_dump(mode="json", by_alias=True))
        members.append(Member(f"builds/{role}/source.json", source))
        for part in parts:
            path = built.folder / part
            members += tree(f"builds/{role}/{part}", path) if path.is_dir() else [Member(f"builds/{role}/{part}", path, 0o755)]
    return members


def _wheels(folder: Path) -> Path:
    requirements = paths.data("requirements", "dev.txt")
    argv: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--disable-pip-version-check",
        "--require-hashes",
        "--no-deps",
        "--only-binary=:all:",  # what packaging/setup/wheels.py takes
        "-r",
        requirements,
        "-d",
        folder,
    ]
    run(argv, timeout=WHEEL_SECONDS, what="fetching the Python packages")
    return folder


def _json(path: Path, data: Any) -> Path:
    path.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n")
    return path


# -- in


@dataclass(frozen=True)
class ImportedRelease:
    """A release that was read from a file: the Deliverable of a site that builds nothing and holds no signing key."""

    folder: Path
    about: dict[str, Any]
    say: Callable[[str], None]

    @classmethod
    def read(cls, file: Path, keyring: Path, say: Callable[[str], None]) -> ImportedRelease:
        """Verify and unpack a file that `ckp dist export` wrote.

        Raises:
            VerificationFailed: see read_archive.
            InvalidInput: it is another kind of archive, or was made for another version of CKP.
        """
        folder, about = read_archive(file, keyring, paths.cache() / "imported", say)
        if about.get("kind") != "ckp-release":
            raise InvalidInput(f"{file} holds no release", resolution="name a file that `ckp dist export` wrote")
        if about["ckp"] != __version__:
            raise InvalidInput(f"{file} was made by CKP {about['ckp']}, and this is {__version__}", resolution=f"use CKP {about['ckp']} with it")
        return cls(folder, about, say)

    @cached_property
    def release(self) -> Release:
        """See Deliverable."""
        return Release(**self.about["release"])

    @cached_property
    def built(self) -> dict[str, Built]:
        """See Deliverable."""
        found = {}
        for role, stands_in_for in self.about["builds"].items():
            folder = self.folder / "builds" / role
            source = Source(**json.loads((folder / "source.json").read_text()))
            found[role] = Built(Chosen(role, source, stands_in_for), folder, key="", fresh=False)
        return found

    @property
    def keyring(self) -> Path:
        """See Deliverable."""
        return self.folder / "trusted.gpg"

    @property
    def repositories(self) -> Path:
        """The root of its package repositories."""
        return self.folder / "repositories"

    @property
    def base(self) -> Path | None:
        """The lab hosts' root file system, packed, if the file has it."""
        path = self.folder / "lab" / "base.tar"
        return path if path.exists() else None

    @property
    def registry_name(self) -> str:
        """`host:port` of the registry that its bundles name."""
        return str(self.about["registry"])

    @property
    def tags(self) -> dict[str, str]:
        """See Deliverable."""
        return dict(self.about["tags"])

    @property
    def targets(self) -> list[BundleTarget]:
        """See Deliverable."""
        return [BundleTarget(**item) for item in self.about["targets"]]

    @property
    def stand_ins(self) -> list[str]:
        """See Deliverable."""
        return list(self.about["stand_ins"])

    def agent(self, format: Format) -> Package:
        """See Deliverable."""
        item = next(entry for entry in self.about["agents"] if entry["format"] == format)
        return Package(item["name"], item["version"], self.folder / "packages" / item["file"], item["sha256"], format)

    def push(self, registry: Registry, address: str, ca: Path | None, credentials: Path | None = None, *, replace: bool = False) -> dict[str, str]:
        """See Deliverable. Signatures, SBOMs and provenance are pushed too."""
        items = [Item(**entry) for entry in json.loads((self.folder / "oci.json").read_text())]
        wanted = [(item.repository, item.tag, item.digest) for item in items if item.tag and not belongs_to(item.tag)]
        check_tags(registry, wanted, self.say, replace=replace)
        deliver(registry, items, BlobStore(self.folder / "blobs"))
        self.say(f"{len(items)} manifests are in the registry")
        return dict(self.about["digests"])
