"""OCI images: a content-addressed blob store on disk, and the distribution API to push to and ask a registry.

What is stored and sent follows the OCI image and distribution specifications 1.1.
"""

from __future__ import annotations

import hashlib
import json
import os
import ssl
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from ckp.kits.errors import CkpError
from ckp.kits.files import CHUNK, atomic_write

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
INDEX = "application/vnd.oci.image.index.v1+json"


@dataclass(frozen=True)
class Descriptor:
    """A blob by its digest (`sha256:…`)."""

    media_type: str
    digest: str
    size: int

    def to_json(self) -> dict[str, Any]:
        """As it stands in a manifest."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


@dataclass(frozen=True)
class BlobStore:
    """Blobs below `root/sha256/<hex>`; a blob under its final name is whole and is what its name says."""

    root: Path

    def path(self, digest: str) -> Path:
        """Where the blob with this digest lies."""
        return self.root / "sha256" / digest.removeprefix("sha256:")

    def put(self, data: bytes, media_type: str) -> Descriptor:
        """Store some bytes."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
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
    stored = store.put(_canonical(body), CONFIG)
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": stored.to_json(), "layers": [layer.to_json() for layer, _ in layers]}
    return store.put(_canonical(manifest), MANIFEST)


def _canonical(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, sort_keys=True, separators=(",", ":")).encode()


class Registry:
    """A registry that speaks the distribution API over TLS.

    Args:
        address: `host:port`.
        ca: the CA that its certificate chains to.
    """

    def __init__(self, address: str, ca: Path) -> None:
        self.address = address
        context = ssl.create_default_context(cafile=str(ca))
        self._http = httpx.Client(base_url=f"https://{address}", verify=context, timeout=120, trust_env=False)

    def alive(self) -> bool:
        """Whether it answers `GET /v2/`."""
        try:
            return self._http.get("/v2/", timeout=3).status_code == 200
        except httpx.HTTPError:
            return False

    def digest(self, repository: str, reference: str) -> str | None:
        """The digest of a manifest by tag or digest; None if there is none."""
        answer = self._http.head(f"/v2/{repository}/manifests/{reference}", headers={"Accept": f"{MANIFEST}, {INDEX}"})
        if answer.status_code == 404:
            return None
        self._expect(answer, 200, f"asking for {repository}:{reference}")
        return answer.headers["Docker-Content-Digest"]

    def push(self, store: BlobStore, manifest: Descriptor, repository: str, tag: str) -> None:
        """Push an image; blobs and manifests that are there already are not sent again."""
        if self.digest(repository, tag) == manifest.digest:
            return
        body = store.path(manifest.digest).read_bytes()
        content = json.loads(body)
        for blob in [content["config"], *content["layers"]]:
            self._push_blob(store, repository, blob["digest"], blob["size"])
        answer = self._http.put(f"/v2/{repository}/manifests/{tag}", content=body, headers={"Content-Type": manifest.media_type})
        self._expect(answer, 201, f"pushing {repository}:{tag}")

    def _push_blob(self, store: BlobStore, repository: str, digest: str, size: int) -> None:
        if self._http.head(f"/v2/{repository}/blobs/{digest}").status_code == 200:
            return
        started = self._http.post(f"/v2/{repository}/blobs/uploads/")
        self._expect(started, 202, f"starting an upload to {repository}")
        location = httpx.URL(started.headers["Location"]).copy_merge_params({"digest": digest})
        with store.path(digest).open("rb") as stream:
            answer = self._http.put(
                location, content=iter(lambda: stream.read(CHUNK), b""), headers={"Content-Type": "application/octet-stream", "Content-Length": str(size)}
            )
        self._expect(answer, 201, f"uploading {digest} to {repository}")

    def _expect(self, answer: httpx.Response, code: int, what: str) -> None:
        if answer.status_code != code:
            raise CkpError(f"{what}: the registry {self.address} answered {answer.status_code}", details=answer.text[:500] if answer.is_closed else "")

    def close(self) -> None:
        """Close its connections."""
        self._http.close()
