"""What images are made of: descriptors, manifests, and a content-addressed store of blobs on disk (OCI image specification 1.1)."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ckp.kits.errors import InvalidInput, VerificationFailed
from ckp.kits.files import CHUNK, atomic_write

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
INDEX = "application/vnd.oci.image.index.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
"""What imgpkg and older tools write; the same shape as OCI's, under other names."""
MANIFESTS = (MANIFEST, INDEX, DOCKER_MANIFEST, DOCKER_INDEX)

MANIFEST_LIMIT = 4 << 20
"""Bytes of the largest manifest that is read: the size that every registry must take (distribution specification, "Pushing Manifests")."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def sha256(data: bytes) -> str:
    """The digest of some bytes, as `sha256:…`."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def is_digest(text: str) -> bool:
    """Whether this is a digest as CKP takes it: SHA-256 only."""
    return _DIGEST.fullmatch(text) is not None


def fallback_tag(digest: str) -> str:
    """The tag of the index of a manifest's referrers, where the registry does not list them (specification, "Referrers Tag Schema")."""
    return digest.replace(":", "-")


def canonical(data: Mapping[str, Any]) -> bytes:
    """JSON that is the same for the same content."""
    return json.dumps(data, sort_keys=True, separators=(",", ":")).encode()


@dataclass(frozen=True)
class Descriptor:
    """A blob by its digest (`sha256:…`)."""

    media_type: str
    digest: str
    size: int
    artifact_type: str = ""
    annotations: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As it stands in a manifest."""
        data: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        if self.artifact_type:
            data["artifactType"] = self.artifact_type
        if self.annotations:
            data["annotations"] = dict(self.annotations)
        return data

    @classmethod
    def from_json(cls, data: object) -> Descriptor:
        """From a manifest of another origin.

        Raises:
            VerificationFailed: it is not a descriptor, or of another hash than SHA-256.
        """
        item = data if isinstance(data, dict) else {}
        media_type, digest, size, annotations = item.get("mediaType"), item.get("digest"), item.get("size"), item.get("annotations") or {}
        named = isinstance(media_type, str) and isinstance(digest, str) and is_digest(digest)
        if named and type(size) is int and size >= 0 and isinstance(annotations, dict) and all(isinstance(value, str) for value in annotations.values()):
            return cls(str(media_type), str(digest), size, str(item.get("artifactType") or ""), tuple(sorted(annotations.items())))
        raise VerificationFailed(f"this is not a descriptor of a blob by SHA-256: {json.dumps(data)[:200]}")


@dataclass(frozen=True)
class Manifest:
    """A manifest's bytes as they were read, with what they say. Their digest is the manifest's name, so they are never serialised again."""

    media_type: str
    body: bytes

    @cached_property
    def digest(self) -> str:
        """The digest of these bytes."""
        return sha256(self.body)

    @property
    def descriptor(self) -> Descriptor:
        """As an index or a subject names it."""
        return Descriptor(self.media_type, self.digest, len(self.body))

    @cached_property
    def content(self) -> dict[str, Any]:
        """The parsed manifest; VerificationFailed if it is not a JSON object."""
        try:
            data = json.loads(self.body)
        except (ValueError, RecursionError):
            data = None
        if not isinstance(data, dict):
            raise VerificationFailed(f"the manifest {self.digest} is not a JSON object")
        return data

    @property
    def blobs(self) -> list[Descriptor]:
        """Config and layers, each once."""
        listed = [self.content["config"]] if "config" in self.content else []
        return list({blob.digest: blob for blob in map(Descriptor.from_json, [*listed, *self._list("layers")])}.values())

    @property
    def layers(self) -> list[Descriptor]:
        """The layers in order."""
        return [Descriptor.from_json(item) for item in self._list("layers")]

    @property
    def children(self) -> list[Descriptor]:
        """The manifests that an index lists."""
        return [Descriptor.from_json(item) for item in self._list("manifests")]

    @property
    def subject(self) -> Descriptor | None:
        """What a referrer refers to."""
        return Descriptor.from_json(self.content["subject"]) if self.content.get("subject") is not None else None

    @property
    def referrer(self) -> Descriptor:
        """As the list of referrers names it: with its artifact type, or its config's type in its place, and its annotations."""
        config = self.content.get("config")
        fallback = str(config.get("mediaType") or "") if isinstance(config, dict) else ""
        item = {**self.descriptor.to_json(), "artifactType": self.content.get("artifactType") or fallback, "annotations": self.content.get("annotations")}
        return Descriptor.from_json(item)

    def _list(self, name: str) -> list[Any]:
        value = self.content.get(name) or []
        if not isinstance(value, list):
            raise VerificationFailed(f"{name} of the manifest {self.digest} is not a list")
        return value


@dataclass(frozen=True)
class BlobStore:
    """Blobs below `root/sha256/<hex>`; a blob under its final name is whole and is what its name says."""

    root: Path

    def path(self, digest: str) -> Path:
        """Where the blob with this digest lies; InvalidInput if this is not a digest, since it becomes a path."""
        if not is_digest(digest):
            raise InvalidInput(f"{digest[:100]!r} is not a SHA-256 digest")
        return self.root / "sha256" / digest.removeprefix("sha256:")

    def partial(self, digest: str) -> Path:
        """Where as much of a blob lies as was received before a download was cut."""
        return self.root / "partial" / self.path(digest).name

    def put(self, data: bytes, media_type: str) -> Descriptor:
        """Store some bytes."""
        digest = sha256(data)
        if not self.path(digest).exists():
            atomic_write(self.path(digest), data)
        return Descriptor(media_type, digest, len(data))

    def adopt(self, file: Path, media_type: str) -> Descriptor:
        """Move a file into the store."""
        digest = hashlib.sha256()
        with file.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
        size = file.stat().st_size
        name = f"sha256:{digest.hexdigest()}"
        self.path(name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, self.path(name))
        return Descriptor(media_type, name, size)

    def scratch(self) -> Path:
        """A new empty file on the same file system, for `adopt`."""
        self.root.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.root, prefix=".blob-")
        os.close(handle)
        return Path(name)


def image_manifest(store: BlobStore, layers: list[tuple[Descriptor, str]], config: Mapping[str, Any], created: str) -> Descriptor:
    """Store the config and the manifest of a linux/amd64 image.

    Args:
        layers: each layer's blob and the digest of its uncompressed tar (`diff_id`).
        config: the OCI runtime part (`Entrypoint`, `Env`, `User`, …).
        created: RFC 3339 time, a constant for reproducible images.
    """
    body = {
        "created": created,
        "architecture": "amd64",
        "os": "linux",
        "config": dict(config),
        "rootfs": {"type": "layers", "diff_ids": [diff for _, diff in layers]},
        "history": [{"created": created, "created_by": "ckp dist build"} for _ in layers],
    }
    stored = store.put(canonical(body), CONFIG)
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": stored.to_json(), "layers": [layer.to_json() for layer, _ in layers]}
    return store.put(canonical(manifest), MANIFEST)
