"""A registry's client: the distribution API to push to, pull from and ask, with referrers.

What is stored and sent follows the OCI image and distribution specifications 1.1. Every byte that comes in is checked against its digest.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import httpx

from ckp.clients.oci.http import RETRIED, Answer, RegistryHttp, Tries, retry_after
from ckp.clients.oci.store import (
    CONFIG,
    EMPTY,
    INDEX,
    LAYER_ZSTD,
    MANIFEST,
    MANIFEST_LIMIT,
    MANIFESTS,
    BlobStore,
    Descriptor,
    Manifest,
    canonical,
    fallback_tag,
    image_manifest,
    is_digest,
    sha256,
)
from ckp.kits import paths
from ckp.kits.errors import CkpError, InvalidInput, NotFound, VerificationFailed
from ckp.kits.files import CHUNK, exclusive, sha256_bytes
from ckp.kits.stopping import pause

__all__ = [
    "CONFIG",
    "INDEX",
    "LAYER_ZSTD",
    "MANIFEST",
    "BlobStore",
    "Descriptor",
    "Manifest",
    "Registry",
    "fallback_tag",
    "image_manifest",
]

ACCEPT = {"Accept": ", ".join(MANIFESTS)}
PAGE = 1000
PAGES = 1000
"""Bounds of a listing: entries asked for at once, and pages."""
AMENDS = 12
"""How often a tag that others change at the same time is written."""
BLOB_LIMIT = 64 << 20
"""Bytes of the largest blob that is read into memory: an SBOM of a large image has a few."""
_REPOSITORY = re.compile(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


class Registry:
    """A registry that speaks the distribution API over TLS. Its methods may be called from several threads.

    Args:
        address: `host:port`.
        ca: the CA that its certificate chains to; None for those that the system trusts.
        credentials: a file in the format of docker's config.json, readable by its owner only.
        transport: takes the place of the network (tests.simulators.registry).
        sleep: how to pause before a request is made again.
        prefix: what the names of all repositories begin with there; callers leave it out, and see no others.

    What cannot be had of it within a bounded number of tries is a CkpError with the reason; bytes that are not what their digest says
    are VerificationFailed; what is not there is NotFound.
    """

    def __init__(
        self,
        address: str,
        ca: Path | None = None,
        *,
        credentials: Path | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = pause,
        prefix: str = "",
    ) -> None:
        self.address = address
        self._prefix = f"{_repository(prefix)}/" if prefix else ""
        self._http = RegistryHttp(address, ca, credentials, transport, sleep)
        self._sleep = sleep
        self._homes: dict[str, str] = {}
        self._homes_lock = threading.Lock()

    def alive(self) -> bool:
        """Whether it answers `GET /v2/`."""
        return self._http.alive()

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def _path(self, repository: str) -> str:
        """A repository's name in URLs."""
        return _repository(self._prefix + repository)

    def may_push(self, repository: str) -> bool:
        """Whether these credentials may push to a repository: an upload is begun there, and cancelled.

        Raises:
            CkpError: the registry does not answer, or answers something else.
        """
        what = f"asking whether {repository} may be pushed to"
        began = self._http.send("POST", f"/v2/{self._path(repository)}/blobs/uploads/", what=what, allow=(202, 401, 403, 404, 405))
        if began.status != 202:
            return False
        location = httpx.URL(f"https://{self.address}").join(began.headers["Location"])
        self._http.send("DELETE", location, what=f"{what}: cancelling it", allow=(200, 202, 204, 404, 405))
        return True

    # -- manifests

    def digest(self, repository: str, reference: str) -> str | None:
        """The digest of a manifest by tag or digest, as the registry says; None if there is none."""
        answer = self._manifest("HEAD", repository, reference, f"asking for {_name(repository, reference)}")
        if answer.status == 404:
            return None
        said = answer.headers.get("Docker-Content-Digest", "")
        return said if is_digest(said) else self.get_manifest(repository, reference).digest

    def get_manifest(self, repository: str, reference: str) -> Manifest:
        """A manifest by tag or digest, checked."""
        found = self.find_manifest(repository, reference)
        if found is None:
            raise NotFound(f"{self.address}/{_name(repository, reference)} is not there")
        return found

    def find_manifest(self, repository: str, reference: str) -> Manifest | None:
        """As `get_manifest`; None if it is not there."""
        name = _name(repository, reference)
        answer = self._manifest("GET", repository, reference, f"pulling {name}")
        if answer.status == 404:
            return None
        media_type = answer.headers.get("Content-Type", "").partition(";")[0].strip()
        found = Manifest(media_type, answer.body)
        expected = reference if is_digest(reference) else answer.headers.get("Docker-Content-Digest", found.digest)
        if found.digest != expected:
            raise VerificationFailed(f"{self.address}/{name}: the bytes received have the digest {found.digest}, not {expected}")
        if media_type not in MANIFESTS:
            raise VerificationFailed(f"{self.address}/{name} is of the type {media_type!r}, which is neither that of an image nor of an index")
        # A document that can be read as two types is how one digest could mean two things (OCI advisory GHSA-mc8v-mgrf-8f4m).
        if found.content.get("mediaType", media_type) != media_type or (
            "manifests" in found.content and ("layers" in found.content or "config" in found.content)
        ):
            raise VerificationFailed(f"{self.address}/{name} came as {media_type} but declares another media type in itself")
        return found

    def put_manifest(self, repository: str, manifest: Manifest, tag: str = "") -> None:
        """Push a manifest under its digest, or a tag; the same twice is one. If it has a subject, it is a referrer of that afterwards."""
        reference = tag or manifest.digest
        if len(manifest.body) > MANIFEST_LIMIT:
            raise InvalidInput(f"the manifest for {_name(repository, reference)} has {len(manifest.body)} bytes, and the limit is {MANIFEST_LIMIT}")
        url = f"/v2/{self._path(repository)}/manifests/{_reference(reference)}"
        headers = {"Content-Type": manifest.media_type}
        answer = self._http.send("PUT", url, what=f"pushing {_name(repository, reference)}", allow=(201,), headers=headers, content=manifest.body)
        said = answer.headers.get("Docker-Content-Digest", manifest.digest)
        if said != manifest.digest:
            raise VerificationFailed(f"pushing {_name(repository, reference)}: {manifest.digest} was sent, but {self.address} has {said}")
        if manifest.subject is not None and "OCI-Subject" not in answer.headers:
            self._list_referrer(repository, manifest.subject.digest, manifest.referrer)

    def delete(self, repository: str, reference: str) -> bool:
        """Delete a manifest by digest, or only a tag; whether it was there.

        Raises:
            CkpError: the registry does not let anything be deleted, or no tags.
        """
        url = f"/v2/{self._path(repository)}/manifests/{_reference(reference)}"
        what = f"deleting {_name(repository, reference)}"
        answer = self._http.send("DELETE", url, what=what, allow=(200, 202, 404, 405))
        if answer.status == 405:
            raise CkpError(
                f"{what}: the registry {self.address} does not support that",
                details=answer.body[:300].decode(errors="replace"),
                resolution="allow it in its configuration (distribution: storage.delete.enabled) and run the same again",
            )
        return answer.status != 404

    def amend(self, repository: str, tag: str, change: Callable[[Manifest | None], Manifest | None]) -> Descriptor | None:
        """Change what a tag names, together with others who do the same; returns what it names in the end.

        The API has no compare-and-swap. So writers on one machine take turns, and for those elsewhere the tag is looked at just before it is
        written, and afterwards until `change` is content: each of two writers finds its own part there in the end, unless both write within the
        same few milliseconds; then the next run of either puts that right.

        Args:
            change: from what the tag names now makes what it should name, or None if nothing is missing. It is called several times.

        Raises:
            CkpError: others changed it each time.
        """
        lock = paths.cache() / "locks" / f"tag-{sha256_bytes(f'{self.address} {repository} {tag}'.encode())[:20]}"
        tries = Tries(f"changing {_name(repository, tag)}", self.address, self._sleep, limit=AMENDS)
        with exclusive(lock, what=f"changing {_name(repository, tag)}", timeout=300):
            written = False
            while True:
                present = self.find_manifest(repository, tag)
                wanted = change(present)
                if wanted is None:
                    return present.descriptor if present else None
                if written or self.digest(repository, tag) != (present.digest if present else None):
                    tries.failed("others change it at the same time")
                    written = False
                    continue
                self.put_manifest(repository, wanted, tag)
                written = True

    def _manifest(self, method: str, repository: str, reference: str, what: str) -> Answer:
        return self._http.send(method, f"/v2/{self._path(repository)}/manifests/{_reference(reference)}", what=what, allow=(200, 404), headers=ACCEPT)

    # -- blobs

    def has_blob(self, repository: str, digest: str) -> bool:
        """Whether a repository has a blob."""
        url = f"/v2/{self._path(repository)}/blobs/{_digest(digest)}"
        return self._http.send("HEAD", url, what=f"asking for {digest} in {repository}", allow=(200, 404)).status == 200

    def get_blob(self, repository: str, blob: Descriptor, limit: int = BLOB_LIMIT) -> bytes:
        """A blob in memory, checked; VerificationFailed if its descriptor says more than `limit` bytes."""
        if blob.size > limit:
            raise VerificationFailed(f"{blob.digest} in {self.address}/{repository} has {blob.size} bytes, and the limit is {limit}")
        url = f"/v2/{self._path(repository)}/blobs/{_digest(blob.digest)}"
        answer = self._http.send("GET", url, what=f"pulling {blob.digest} of {repository}", allow=(200, 404), limit=blob.size)
        if answer.status == 404:
            raise NotFound(f"{self.address}/{repository} does not have the blob {blob.digest}")
        if len(answer.body) != blob.size or sha256(answer.body) != blob.digest:
            raise self._wrong_bytes(repository, blob, len(answer.body), sha256(answer.body))
        return answer.body

    def pull_blob(self, repository: str, blob: Descriptor, store: BlobStore) -> Path:
        """A blob on disk, checked. What a cut connection, or a killed process, had received is kept, and the rest asked for."""
        final, partial = store.path(blob.digest), store.partial(blob.digest)
        final.parent.mkdir(parents=True, exist_ok=True)
        # The partial file is its own lock; who had to wait finds the final one.
        with exclusive(partial, what=f"pulling {blob.digest}", timeout=3600):
            if not final.exists():
                self._download(repository, blob, partial)
                os.replace(partial, final)
            partial.unlink(missing_ok=True)
        return final

    def _download(self, repository: str, blob: Descriptor, partial: Path) -> None:
        what = f"pulling {blob.digest} of {repository}"
        url = f"/v2/{self._path(repository)}/blobs/{_digest(blob.digest)}"
        tries, received = self._http.tries(what), hashlib.sha256()
        with partial.open("a+b") as stream:
            stream.seek(0)
            while chunk := stream.read(CHUNK):
                received.update(chunk)
            resumed = stream.tell() > 0
            while stream.tell() < blob.size or blob.size == 0:
                offset, wait = stream.tell(), 0.0
                headers = {"Range": f"bytes={offset}-"} if offset else {}
                try:
                    with self._http.open("GET", url, headers=headers) as answer:
                        if answer.status_code == 404:
                            raise NotFound(f"{self.address}/{repository} does not have the blob {blob.digest}")
                        if answer.status_code == 416 or (answer.status_code == 200 and offset):
                            stream.seek(0)
                            stream.truncate()
                            received, resumed = hashlib.sha256(), False
                        if answer.status_code in (200, 206):
                            begun = stream.tell()
                            for chunk in answer.iter_raw():
                                if stream.tell() + len(chunk) > blob.size:
                                    raise self._wrong_bytes(repository, blob, stream.tell() + len(chunk), "unknown, as there are too many bytes")
                                stream.write(chunk)
                                received.update(chunk)
                                if stream.tell() - begun >= CHUNK:  # a byte at a time is no progress
                                    tries.progress()
                            if stream.tell() == blob.size:
                                break
                            reason = f"{stream.tell()} of {blob.size} bytes came"
                        elif answer.status_code in RETRIED or answer.status_code == 416:
                            reason, wait = self._http.told(answer), retry_after(answer)
                        else:
                            raise self._http.refused(answer, what)
                except httpx.TransportError as error:
                    reason = self._http.broken(error, what)
                tries.failed(reason, wait)
            stream.flush()
            os.fsync(stream.fileno())
            found = f"sha256:{received.hexdigest()}"
            if found != blob.digest or stream.tell() != blob.size:
                size = stream.tell()
                stream.seek(0)
                stream.truncate()
                if not resumed:
                    raise self._wrong_bytes(repository, blob, size, found)
        if found != blob.digest:
            # What lay there from before may be what is wrong, so once from the start.
            self._download(repository, blob, partial)

    def _wrong_bytes(self, repository: str, blob: Descriptor, size: int, found: str) -> VerificationFailed:
        return VerificationFailed(
            f"{self.address}/{repository} sends other bytes for {blob.digest} than its digest says",
            details=f"expected {blob.size} bytes\nreceived {size} bytes with the digest {found}",
            resolution="the registry's storage or something on the way alters it; push it again, and look at both",
        )

    def push_blob(self, repository: str, blob: Descriptor, source: Path | bytes | Callable[[], Path]) -> bool:
        """Push a blob unless it is there, or can be mounted from another repository; whether it was sent.

        Args:
            source: its content; a function is called only if it must be sent.
        """
        with self._homes_lock:
            home = self._homes.get(blob.digest)
        if home == repository or self.has_blob(repository, blob.digest):
            self._at_home(blob.digest, repository)
            return False
        what, tries = f"uploading {blob.digest} to {repository}", self._http.tries(f"uploading {blob.digest} to {repository}")
        while True:
            started = self._start_upload(repository, blob.digest, home)
            if started.status == 201:
                self._at_home(blob.digest, repository)
                return False
            source = source() if callable(source) else source
            location = httpx.URL(f"https://{self.address}").join(started.headers["Location"]).copy_merge_params({"digest": blob.digest})
            headers = {"Content-Type": "application/octet-stream", "Content-Length": str(blob.size)}
            try:
                # An upload is not resumed but begun again, and so each try has a location of its own.
                with self._http.open("PUT", location, headers=headers, content=_opener(source)) as answer:
                    if answer.status_code == 201:
                        self._at_home(blob.digest, repository)
                        return True
                    if answer.status_code not in RETRIED:
                        raise self._http.refused(answer, what)
                    reason = self._http.told(answer)
            except httpx.TransportError as error:
                reason = self._http.broken(error, what)
            tries.failed(reason)

    def _start_upload(self, repository: str, digest: str, home: str | None) -> Answer:
        """201 if it could be mounted, else 202 with a location."""
        query = f"?mount={digest}&from={self._path(home)}" if home else ""
        return self._http.send("POST", f"/v2/{self._path(repository)}/blobs/uploads/{query}", what=f"starting an upload to {repository}", allow=(201, 202))

    def _at_home(self, digest: str, repository: str) -> None:
        with self._homes_lock:
            self._homes.setdefault(digest, repository)

    # -- whole images

    def push(self, store: BlobStore, manifest: Descriptor, repository: str, tag: str) -> None:
        """Push an image; blobs and manifests that are there already are not sent again. The tag comes last, so it never names half an image."""
        if self.digest(repository, tag) == manifest.digest:
            return
        body = Manifest(manifest.media_type, store.path(manifest.digest).read_bytes())
        for blob in body.blobs:
            self.push_blob(repository, blob, store.path(blob.digest))
        self.put_manifest(repository, body, tag)

    def pull(self, repository: str, reference: str, store: BlobStore) -> Descriptor:
        """Pull an image, or all images of an index, into a store; returns the manifest's descriptor."""
        manifest = self.get_manifest(repository, reference)
        for child in manifest.children:
            self.pull(repository, child.digest, store)
        for blob in manifest.blobs:
            self.pull_blob(repository, blob, store)
        return store.put(manifest.body, manifest.media_type)

    # -- listings

    def tags(self, repository: str) -> list[str]:
        """All tags of a repository, sorted; none if there is no such repository."""
        return self._listing(f"/v2/{self._path(repository)}/tags/list?n={PAGE}", "tags", f"listing the tags of {repository}")

    def catalog(self) -> list[str]:
        """All repositories, sorted, where the registry tells them."""
        found = self._listing(f"/v2/_catalog?n={PAGE}", "repositories", "listing the repositories")
        return [name.removeprefix(self._prefix) for name in found if name.startswith(self._prefix)]

    def _listing(self, url: str, name: str, what: str) -> list[str]:
        found: set[str] = set()
        following: httpx.URL | None = httpx.URL(f"https://{self.address}").join(url)
        for _ in range(PAGES):
            assert following is not None
            answer = self._http.send("GET", following, what=what, allow=(200, 404))
            if answer.status == 404:
                break
            try:
                items = json.loads(answer.body)[name] or []
                found.update(item for item in items if (_TAG if name == "tags" else _REPOSITORY).fullmatch(item))
            except (ValueError, KeyError, TypeError):
                raise CkpError(f"{what}: what {self.address} answers is not such a list", details=answer.body[:300].decode(errors="replace")) from None
            link = re.match(r'<([^>]*)>; *rel="?next"?', answer.headers.get("Link", ""))
            following = following.join(link.group(1)) if link else None
            if following is None:
                break
        return sorted(found)

    # -- referrers (distribution specification 1.1)

    def attach(
        self, repository: str, subject: Descriptor, artifact_type: str, data: bytes, media_type: str, annotations: Mapping[str, str] | None = None
    ) -> Descriptor:
        """Attach a document, such as an SBOM, to a manifest: an artifact that refers to it. The same document twice is attached once."""
        layer = Descriptor(media_type, sha256(data), len(data))
        content = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": artifact_type,
            "config": {"mediaType": EMPTY, "digest": sha256(b"{}"), "size": 2},
            "layers": [layer.to_json()],
            "subject": Descriptor(subject.media_type, subject.digest, subject.size).to_json(),
            **({"annotations": dict(annotations)} if annotations else {}),
        }
        manifest = Manifest(MANIFEST, canonical(content))
        # Present and listed are two things: whoever attached it may have been killed in between.
        if not self.digest(repository, manifest.digest):
            self.push_blob(repository, Descriptor(EMPTY, sha256(b"{}"), 2), b"{}")
            self.push_blob(repository, layer, data)
            self.put_manifest(repository, manifest)
        elif all(found.digest != manifest.digest for found in self.referrers(repository, subject.digest)):
            self.put_manifest(repository, manifest)
        return manifest.referrer

    def referrers(self, repository: str, digest: str, artifact_type: str | None = None) -> list[Descriptor]:
        """What refers to a manifest, sorted by digest; of one artifact type only, if that is given."""
        url = f"/v2/{self._path(repository)}/referrers/{_digest(digest)}"
        found: dict[str, Descriptor] = {}
        following: httpx.URL | None = httpx.URL(f"https://{self.address}").join(url)
        for _ in range(PAGES):
            assert following is not None
            answer = self._http.send("GET", following, what=f"asking what refers to {digest}", allow=(200, 404))
            if answer.status == 404:  # a registry before 1.1
                fallback = self.find_manifest(repository, fallback_tag(digest))
                found.update({item.digest: item for item in (fallback.children if fallback else [])})
                break
            found.update({item.digest: item for item in Manifest(INDEX, answer.body).children})
            link = re.match(r'<([^>]*)>; *rel="?next"?', answer.headers.get("Link", ""))
            if not link:
                break
            following = following.join(link.group(1))
        wanted = [item for item in found.values() if artifact_type in (None, item.artifact_type)]
        return sorted(wanted, key=lambda item: item.digest)

    def _list_referrer(self, repository: str, subject: str, referrer: Descriptor) -> None:
        """Put it into the index under the fallback tag, for a registry that keeps no list of referrers itself."""

        def change(present: Manifest | None) -> Manifest | None:
            listed = present.children if present else []
            if any(item.digest == referrer.digest for item in listed):
                return None
            items = sorted([*listed, referrer], key=lambda item: item.digest)
            return Manifest(INDEX, canonical({"schemaVersion": 2, "mediaType": INDEX, "manifests": [item.to_json() for item in items]}))

        self.amend(repository, fallback_tag(subject), change)


def _opener(source: Path | bytes) -> bytes | Callable[[], Iterator[bytes]]:
    return source if isinstance(source, bytes) else lambda: _chunks(source)


def _chunks(source: Path) -> Iterator[bytes]:
    with source.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            yield chunk


def _name(repository: str, reference: str) -> str:
    return f"{repository}{'@' if is_digest(reference) else ':'}{reference}"


def _repository(name: str) -> str:
    if len(name) > 255 or not _REPOSITORY.fullmatch(name):
        raise InvalidInput(
            f"{name[:300]!r} is not the name of a repository", resolution="lower-case letters, digits, and . _ - between them; / separates parts"
        )
    return name


def _reference(text: str) -> str:
    if not (is_digest(text) or _TAG.fullmatch(text)):
        raise InvalidInput(f"{text[:200]!r} is neither a tag nor a SHA-256 digest")
    return text


def _digest(text: str) -> str:
    if not is_digest(text):
        raise InvalidInput(f"{text[:200]!r} is not a SHA-256 digest")
    return text
