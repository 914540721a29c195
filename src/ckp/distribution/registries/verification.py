"""Verifying the content of a registry: an image's signature by key, and of a bundle all its content, as a host does."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ckp.catalog.load import Catalog
from ckp.catalog.models import BundleTarget
from ckp.clients.oci.registry import Registry
from ckp.distribution.bundles import pulled_bundle
from ckp.distribution.packages.versions import package_versions
from ckp.kits.errors import InvalidInput, VerificationFailed
from ckp.verify.bundle import BundleManifest, check_versions, describe_bundle, verify_bundle

BUNDLE = "byoh-bundle-"
_REFERENCE = re.compile(
    r"(?P<address>[A-Za-z0-9.\[\]:-]+)/(?P<repository>[a-z0-9][a-z0-9._/-]*)(:(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(@(?P<digest>sha256:[0-9a-f]{64}))?"
)


@dataclass(frozen=True)
class Reference:
    """An image in a registry: by tag, by digest, or by a tag that must have a digest."""

    address: str
    repository: str
    tag: str
    digest: str

    @classmethod
    def parse(cls, text: str) -> Reference:
        """`host:port/repository:tag@digest`, tag or digest left out. InvalidInput for anything else."""
        match = _REFERENCE.fullmatch(text)
        if match is None or not (match["tag"] or match["digest"]):
            raise InvalidInput(
                f"{text!r} is neither a file or folder here nor a reference to an image", resolution="write an image as host:port/repository:tag or …@sha256:…"
            )
        return cls(match["address"], match["repository"], match["tag"] or "", match["digest"] or "")

    @property
    def is_bundle(self) -> bool:
        """Whether the repository's name is a bundle's."""
        return self.repository.rpartition("/")[2].startswith(BUNDLE)


def verify_reference(reference: Reference, registry: Registry, image_key: bytes, keyring: Path, release: str | None = None) -> list[str]:
    """Check an image or a bundle; returns what was checked, in lines for people.

    Args:
        image_key: public keys for images, PEM.
        keyring: OpenPGP keys that bundles and packages are signed by.
        release: the release that a bundle must be of; a tag names it as well.

    Raises:
        VerificationFailed, ckp.hostkit.errors.VerificationFailed: the first thing that is wrong.
        NotFound: there is no such image.
    """
    from ckp.clients.signing.cosign import verify_image

    name = f"{reference.address}/{reference.repository}{f':{reference.tag}' if reference.tag else ''}"
    if release is not None and not reference.is_bundle:
        raise InvalidInput(f"{name} is not a bundle, so it can't be of release {release}", resolution="leave out --release")
    manifest = registry.get_manifest(reference.repository, reference.tag or reference.digest)
    if reference.digest and manifest.digest != reference.digest:
        raise VerificationFailed(
            f"{reference.repository}:{reference.tag} is {manifest.digest}, expected is {reference.digest}",
            resolution="the tag was moved: use the image by its digest, or push the right one again",
        )
    verify_image(registry, reference.repository, manifest.digest, image_key, tag=reference.tag)
    lines = [f"{name}: {manifest.digest} is signed by a trusted key for images"]
    if not reference.is_bundle:
        return lines
    with pulled_bundle(registry, reference.repository, manifest, name) as folder:
        found = verify_bundle(str(folder), str(keyring), release)
    _check_place(reference, found, name)
    return [*lines, *describe_bundle(found), *against_catalog(found)]


def against_catalog(found: BundleManifest, catalog: Catalog | None = None) -> list[str]:
    """Check the packages of a bundle, which is signed and whole, against the release's file in the catalog; returns a line that says what was done.

    Raises:
        ckp.hostkit.errors.VerificationFailed: one has another version.
    """
    known = catalog or Catalog()
    if found.release not in known.names():
        return [f"  the catalog here does not have release {found.release}: the versions of its packages were not compared"]
    check_versions(found, package_versions(known.release(found.release), found.stand_ins), "the catalog")
    return [f"  the packages have the versions that the catalog's release {found.release} names"]


def _check_place(reference: Reference, found: BundleManifest, name: str) -> None:
    """A bundle lies where its own list says: another release's tag, or another system's repository, is a swap."""
    if reference.tag and reference.tag != f"{found.release}-ckp":
        raise VerificationFailed(
            f"{name} holds the bundle of {found.release}: the tag was moved to another release's bundle",
            resolution="push the right bundle again (ckp dist publish), and find out who can write there",
        )
    home = BundleTarget.model_construct(os=found.os, os_version=found.os_version).repository
    if reference.repository.rpartition("/")[2] != home:
        raise VerificationFailed(f"{name} holds the bundle for {found.os} {found.os_version}, which belongs in {home}")
