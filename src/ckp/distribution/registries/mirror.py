"""Copying releases between registries, with the signatures and referrers that belong to them.

A registry is filled from the inside out: blobs, manifests, signatures, referrers, and the tag last. So a tag at the target never names an image
that is not whole or not yet signed, and a copy that was killed can be continued.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ckp.catalog.models import Release
from ckp.clients.oci.registry import Registry
from ckp.clients.oci.store import BlobStore, Descriptor, Manifest, is_digest
from ckp.clients.signing.cosign import append_layer, attestation_tag, signature_tag, verify_image
from ckp.distribution.bundles import MAX_BUNDLE, PREFIX, tag_of
from ckp.hostkit.errors import VerificationFailed as Refused
from ckp.kits import paths
from ckp.kits.errors import Conflict, InvalidInput, NotFound, VerificationFailed
from ckp.kits.files import atomic_write, exclusive, sha256_bytes
from ckp.verify import strictjson
from ckp.verify.archives import opened_tar
from ckp.verify.bundle import MANIFEST

T = TypeVar("T")
R = TypeVar("R")
Selection = Iterable[tuple[str, str]]
"""What belongs to a release: pairs of repository and tag."""
Say = Callable[[str], None]

THREADS = 4
DEPTH = 4
"""How deep referrers of referrers, and indices in indices, are followed."""
WAIT_SECONDS = 6 * 3600.0
"""For another copy to the same registry."""
LIST_LIMIT = 1 << 20
"""Bytes that a `bundle.json` may have."""
SUFFIXES = ("", ".sig", ".att", ".sbom")
"""What cosign, and clients of registries that don't list referrers, append to `sha256-<hex>` for a tag that belongs to that manifest."""


# -- what there is to copy


def everything(registry: Registry, prefix: str = PREFIX) -> list[tuple[str, str]]:
    """All tags of all repositories below `prefix`, without those that only belong to a manifest (signatures and the like)."""
    names = [name for name in registry.catalog() if name.startswith(f"{prefix}/")]
    return [(name, tag) for name in names for tag in registry.tags(name) if belongs_to(tag) is None]


def belongs_to(tag: str) -> str | None:
    """The digest of the manifest that a tag such as `sha256-<hex>.sig` belongs to; None for a tag of its own."""
    digest, suffix = tag[:71].replace("sha256-", "sha256:", 1), tag[71:]
    return digest if is_digest(digest) and suffix in SUFFIXES else None


def release_selection(registry: Registry, release: Release, *, image_key: bytes | None, prefix: str = PREFIX) -> list[tuple[str, str]]:
    """A release's bundles that a registry has, with the images that their `bundle.json` names.

    Args:
        image_key: public keys (PEM) that the bundles must be signed by; None does not verify them.

    Raises:
        NotFound: the registry has no bundle of it.
        VerificationFailed: a bundle is not signed by the key, or is of another release.
    """
    found: set[tuple[str, str]] = set()
    for target in release.bundles:
        repository = f"{prefix}/{target.repository}"
        manifest = registry.find_manifest(repository, release.stamp)
        if manifest is None:
            continue
        if image_key is not None:
            verify_image(registry, repository, manifest.digest, image_key, tag=release.stamp)
        listed = bundle_list(registry, repository, manifest)
        if listed.get("release") != release.name:
            raise VerificationFailed(f"{registry.address}/{repository}:{release.stamp} is the bundle of {listed.get('release')}, not of {release.name}")
        found.add((repository, release.stamp))
        found.update((f"{prefix}/{name}", tag_of(str(pinned))) for name, pinned in listed["images"].items())
    if not found:
        raise NotFound(
            f"{registry.address} has no bundle of {release.name}",
            resolution="check the release's name, and whether it was published to this registry (ckp dist publish)",
        )
    return sorted(found)


def bundle_list(registry: Registry, repository: str, manifest: Manifest) -> dict[str, Any]:
    """A bundle's `bundle.json`; cached by the manifest's digest, since the layer with it has some hundred MiB."""
    kept = paths.cache() / "bundle-lists" / f"{manifest.digest.removeprefix('sha256:')}.json"
    if kept.exists():
        return dict(json.loads(kept.read_bytes()))
    with scratch_store(f"read {registry.address} {manifest.digest}") as store:
        for layer in manifest.layers:
            text = _member(registry.pull_blob(repository, layer, store), MANIFEST)
            try:
                data = strictjson.parse(text, Refused) if text is not None else None
            except Refused:
                data = None
            if isinstance(data, dict) and isinstance(data.get("images"), dict):
                atomic_write(kept, json.dumps(data))
                return data
    raise VerificationFailed(f"{registry.address}/{repository}@{manifest.digest} is not a bundle: it has no {MANIFEST} that can be read")


def _member(layer: Path, name: str) -> bytes | None:
    """The content of a file in a layer; None if it has none of this name, or can't be read up to it."""
    try:
        with opened_tar(str(layer), MAX_BUNDLE, Refused) as tar:
            for entry in tar.entries():
                if entry.path.removeprefix("./") == name and entry.kind == "file" and entry.size <= LIST_LIMIT:
                    return b"".join(tar.content())
    except (Refused, OSError):
        pass
    return None


@contextmanager
def scratch_store(name: str) -> Iterator[BlobStore]:
    """A temporary store for blobs, for one process at a time; what a failed or killed run left in it is used by the next."""
    folder = paths.cache() / "mirror" / sha256_bytes(name.encode())[:16]
    with exclusive(folder.with_suffix(".lock"), what="another copy of the same", timeout=WAIT_SECONDS):
        yield BlobStore(folder)
        shutil.rmtree(folder, ignore_errors=True)


# -- copying


@dataclass
class Mirrored:
    """What a copy did."""

    images: int = 0
    unchanged: int = 0
    """Of these images, those that were there under their tag."""
    attached: int = 0
    """Signatures and referrers that the target did not have."""
    blobs: int = 0
    bytes: int = 0

    def __str__(self) -> str:
        sent = f"{self.blobs} blobs with {self.bytes / (1 << 20):.1f} MiB sent"
        return f"{self.images} images, of which {self.unchanged} were there, and {self.attached} signatures and referrers: {sent}"


def mirror(
    source: Registry, target: Registry, selection: Selection, say: Say, *, image_key: bytes | None, replace: bool = False, threads: int = THREADS
) -> Mirrored:
    """Copy images and bundles with their signatures and referrers; digests stay what they are, and what the target has is not sent again.

    Everything is checked before anything is copied. Two copies to the same registry on one machine take turns; an interrupted run is continued by the next.

    Args:
        image_key: the public keys (PEM) that each image must be signed by; None copies without verification.
        replace: let a tag that names another image at the target name the new one.

    Raises:
        VerificationFailed: a signature is not good, and nothing was copied; or bytes are not what their digest says, and that image has no tag.
        Conflict: a tag at the target names another image; nothing was copied.
        NotFound: the source does not have what was selected; nothing was copied.
    """
    wanted = sorted(set(selection))
    if not wanted:
        raise InvalidInput("there is nothing to copy", resolution="check what the source has, and --release and --only")
    with scratch_store(f"mirror to {target.address}") as store:
        copy = _Copy(source, target, store, say, image_key, replace)
        _at_once(threads, copy.image, _at_once(threads, copy.plan, wanted, copy.stop), copy.stop)
    return copy.done


def _at_once(threads: int, work: Callable[[T], R], items: Sequence[T], stop: threading.Event) -> list[R]:
    """Do the same with all items, in some threads. The first failure ends all: the others stop at their next blob."""
    with ThreadPoolExecutor(threads) as pool:
        jobs = [pool.submit(work, item) for item in items]
        try:
            return [job.result() for job in jobs]
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            # A job that stopped because another failed is not the reason.
            reasons = [job.exception() for job in jobs if job.done() and not job.cancelled()]
            real = [reason for reason in reasons if reason is not None and not isinstance(reason, _Stopped)]
            if real:
                raise real[0] from None
            raise


class _Stopped(Exception):
    pass


@dataclass(frozen=True)
class _Planned:
    repository: str
    tag: str
    manifest: Manifest
    present: bool


@dataclass
class _Copy:
    source: Registry
    target: Registry
    store: BlobStore
    say: Say
    image_key: bytes | None
    replace: bool
    done: Mirrored = field(default_factory=Mirrored)
    stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _blobs: dict[str, threading.Lock] = field(default_factory=dict)

    def plan(self, item: tuple[str, str]) -> _Planned:
        """Check one image: it exists, it is signed, and its tag at the target is free or names the same."""
        self._go_on()
        repository, tag = item
        manifest = self.source.get_manifest(repository, tag)
        if self.image_key is not None:
            verify_image(self.source, repository, manifest.digest, self.image_key, tag=tag)
        there = self.target.digest(repository, tag)
        if there not in (None, manifest.digest) and not self.replace:
            raise Conflict(
                f"{self.target.address}/{repository}:{tag} names another image than the same tag of {self.source.address}",
                details=f"source {manifest.digest}\ntarget {there}",
                resolution="find out which is right; --replace moves the tag to the source's image",
            )
        return _Planned(repository, tag, manifest, there == manifest.digest)

    def image(self, planned: _Planned) -> None:
        """Copy one image with what belongs to it; its tag comes last."""
        attached = self._whole(planned.repository, planned.manifest, DEPTH)
        if not planned.present:
            self.target.put_manifest(planned.repository, planned.manifest, planned.tag)
        with self._lock:
            self.done.images += 1
            self.done.unchanged += planned.present
            if not planned.present or attached:
                more = f", {attached} attached" if attached else ""
                self.say(f"{planned.repository}:{planned.tag} {planned.manifest.digest[7:19]}{more}")

    def _whole(self, repository: str, manifest: Manifest, depth: int) -> int:
        """A manifest, its blobs or children, and all that is attached to it; returns how much of the attached was new."""
        if depth == 0:
            raise VerificationFailed(f"{self.source.address}/{repository}@{manifest.digest} is nested deeper than {DEPTH} levels")
        attached = sum(self._whole(repository, self.source.get_manifest(repository, child.digest), depth - 1) for child in manifest.children)
        # A registry takes a manifest only when it has its blobs, so what is there is whole.
        if self.target.digest(repository, manifest.digest) is None:
            for blob in manifest.blobs:
                self._blob(repository, blob)
            self.target.put_manifest(repository, manifest)
        for tag in (signature_tag(manifest.digest), attestation_tag(manifest.digest)):
            attached += self._layers(repository, tag)
        have = {item.digest for item in self.target.referrers(repository, manifest.digest)}
        for referrer in self.source.referrers(repository, manifest.digest):
            content = self.source.get_manifest(repository, referrer.digest)
            if content.subject is None or content.subject.digest != manifest.digest:
                raise VerificationFailed(f"{self.source.address}/{repository}@{referrer.digest} is listed as referring to {manifest.digest}, and does not")
            unlisted = referrer.digest not in have and self.target.digest(repository, referrer.digest) is not None
            attached += self._whole(repository, content, depth - 1)
            if unlisted:
                self.target.put_manifest(repository, content)  # whoever copied it was killed before it was listed
            if referrer.digest not in have:
                attached += self._count_attached()
        return attached

    def _layers(self, repository: str, tag: str) -> int:
        """The manifest under one of cosign's tags; if the target has another, what it lacks is added, and what others added stays."""
        wanted = self.source.find_manifest(repository, tag)
        present = self.target.find_manifest(repository, tag) if wanted else None
        if wanted is None or (present and {*wanted.layers} <= {*present.layers}):
            return 0
        for blob in wanted.blobs:
            self._blob(repository, blob)
        if present is None:
            self.target.put_manifest(repository, wanted, tag)
            return self._count_attached()
        for layer in wanted.layers:
            append_layer(self.target, repository, tag, layer, None)
        return self._count_attached()

    def _count_attached(self) -> int:
        with self._lock:
            self.done.attached += 1
        return 1

    def _blob(self, repository: str, blob: Descriptor) -> None:
        self._go_on()
        with self._lock:
            mine = self._blobs.setdefault(blob.digest, threading.Lock())
        with mine:
            if self.target.push_blob(repository, blob, lambda: self.source.pull_blob(repository, blob, self.store)):
                with self._lock:
                    self.done.blobs += 1
                    self.done.bytes += blob.size
                # Mounted from where it is now, if another image has it too.
                self.store.path(blob.digest).unlink(missing_ok=True)

    def _go_on(self) -> None:
        if self.stop.is_set():
            raise _Stopped
