"""A release as another registry has it, where `ckp dist publish` or another site has pushed it: taken from there by what its signed bundles name.

A bundle's list is signed, and names each image of the release by digest and the registry that hosts pull from. So nothing of the registry is
believed: neither its tags nor who may write there. CKP's own images are no part of a release, and are not taken.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ckp.catalog.models import BundleTarget, Release
from ckp.clients.oci.registry import Registry
from ckp.distribution.builder.component import Built
from ckp.distribution.bundles import PREFIX, pulled_bundle, tag_of
from ckp.distribution.packages.pack import Format, Package
from ckp.distribution.packages.versions import package_versions, stand_in_line
from ckp.distribution.registries.mirror import mirror
from ckp.kits.errors import InvalidInput, NotFound, VerificationFailed
from ckp.verify.bundle import BundleManifest, check_versions, verify_bundle

_ADDRESS = re.compile(r"([A-Za-z0-9][A-Za-z0-9.-]{0,252}):([0-9]{1,5})")
PUBLISH_AGAIN = "publish the release there again (ckp dist publish), and find out who can write there"

Say = Callable[[str], None]
Connect = Callable[[str, Path | None, Path | None], Registry]


def connect(address: str, ca: Path | None, credentials: Path | None) -> Registry:
    """A client over the network."""
    return Registry(address, ca, credentials=credentials)


@dataclass(frozen=True)
class Source:
    """A registry that releases are taken from.

    Args:
        address: `host:port`.
        ca: the CA of its certificate; None for those that this system trusts.
        credentials: a file in the format of docker's config.json, readable by its owner only; None if it lets everybody pull.
        connect: makes clients.

    Raises:
        InvalidInput: not an address.
    """

    address: str
    ca: Path | None = None
    credentials: Path | None = None
    connect: Connect = connect

    def __post_init__(self) -> None:
        match = _ADDRESS.fullmatch(self.address)
        if match is None or not 0 < int(match[2]) < 65536:
            raise InvalidInput(f"{self.address[:300]!r} is not the address of a registry", resolution="write HOST:PORT")

    @contextmanager
    def opened(self) -> Iterator[Registry]:
        """A client for as long as the block lasts."""
        with closing(self.connect(self.address, self.ca, self.credentials)) as client:
            yield client


@dataclass(frozen=True)
class PublishedRelease:
    """The Deliverable of a release that lies in another registry. It brings no programs and no agent: a site that is set up has them.

    Args:
        bundles: repository -> digest of what was verified.
        images: repository -> `tag@sha256:…`, as the bundles name them.
        registry_name: `host:port` of the registry that its bundles name.
        stand_ins: pins that a stand-in replaces.
    """

    source: Source
    release: Release
    targets: tuple[BundleTarget, ...]
    bundles: Mapping[str, str]
    images: Mapping[str, str]
    registry_name: str
    stand_ins: tuple[str, ...]

    @classmethod
    def read(cls, source: Source, release: Release, keyring: Path, say: Say) -> PublishedRelease:
        """Verify all bundles of a release that a registry has, as a host does, and that it has the images that they name. Nothing is copied.

        Args:
            release: as this machine's catalog has it: the bundles' packages must be of its versions.
            keyring: OpenPGP keys that bundles and packages must be signed by (binary).

        Raises:
            NotFound: the registry has no bundle of it.
            VerificationFailed, ckp.hostkit.errors.VerificationFailed: a bundle is not signed by one of the keys, is not whole, or is another's;
                or an image is not the one that the bundles name.
        """
        found: dict[BundleTarget, tuple[str, BundleManifest]] = {}
        with source.opened() as registry:
            for target in release.bundles:
                repository = f"{PREFIX}/{target.repository}"
                manifest = registry.find_manifest(repository, release.stamp)
                if manifest is None:
                    continue
                name = f"{source.address}/{repository}:{release.stamp}"
                with pulled_bundle(registry, repository, manifest, name) as folder:
                    listed = verify_bundle(str(folder), str(keyring), release.name)
                check_versions(listed, package_versions(release, listed.stand_ins), "the catalog")
                if (listed.os, listed.os_version) != (target.os, target.os_version):
                    raise VerificationFailed(f"{name} holds the bundle for {listed.os} {listed.os_version}", resolution=PUBLISH_AGAIN)
                say(f"{target.system}: {manifest.digest}, signed by {listed.key}")
                found[target] = manifest.digest, listed
            if not found:
                raise NotFound(
                    f"{source.address} has no bundle of {release.name}",
                    resolution="check the release's name, and whether it was published to this registry (ckp dist publish)",
                )
            first = next(iter(found.values()))[1]
            if other := next((listed for _, listed in found.values() if (listed.registry, listed.images) != (first.registry, first.images)), None):
                raise VerificationFailed(
                    f"the bundles of {release.name} at {source.address} are not of one build: those for {first.os} and {other.os} name other images",
                    resolution=PUBLISH_AGAIN,
                )
            for repository, pinned in first.images.items():
                _require(registry, repository, pinned)
        lines = {line for _, listed in found.values() for line in listed.stand_ins}
        pins = {f"{role} {release.pins[role]}": other for role, other in release.stand_ins.items()}
        return cls(
            source,
            release,
            tuple(found),
            {target.repository: digest for target, (digest, _) in found.items()},
            dict(first.images),
            first.registry.removesuffix(f"/{PREFIX}"),
            tuple(sorted(pin for pin, other in pins.items() if stand_in_line(other.component, other.version, pin) in lines)),
        )

    @property
    def built(self) -> Mapping[str, Built]:
        """See Deliverable: none."""
        return {}

    @property
    def tags(self) -> dict[str, str]:
        """See Deliverable."""
        return {repository: tag_of(pinned) for repository, pinned in self.images.items()}

    @property
    def keyring(self) -> Path:
        """See Deliverable."""
        raise self._not_for_management("keyring")

    def agent(self, format: Format) -> Package:
        """See Deliverable."""
        raise self._not_for_management("agent's package")

    def _not_for_management(self, what: str) -> InvalidInput:
        return InvalidInput(
            f"a release from a registry brings no {what}, which a management cluster of {self.release.name} needs",
            resolution="take the release that the management cluster is of from a file (--from), or build it",
        )

    def push(self, registry: Registry, address: str, ca: Path | None, credentials: Path | None = None, *, replace: bool = False) -> dict[str, str]:
        """See Deliverable. Signatures, SBOMs and provenance are copied too. Digests stay what they are.

        Raises:
            VerificationFailed: the other registry's content has changed since it was verified. What was copied is not offered.
        """
        tags = {**self.tags, **dict.fromkeys(self.bundles, self.release.stamp)}
        digests = {**{repository: pinned.partition("@")[2] for repository, pinned in self.images.items()}, **self.bundles}
        with self.source.opened() as source:
            selection = [(f"{PREFIX}/{repository}", tag) for repository, tag in tags.items()]
            mirror(source, registry, selection, lambda _line: None, image_key=None, replace=replace)
        for repository, digest in digests.items():
            _require(registry, repository, f"{tags[repository]}@{digest}")
        return digests


def _require(registry: Registry, repository: str, pinned: str) -> None:
    """Raise VerificationFailed if a tag does not name what the bundles say."""
    tag, _, digest = pinned.partition("@")
    there = registry.digest(f"{PREFIX}/{repository}", tag)
    if there != digest:
        raise VerificationFailed(
            f"{registry.address}/{PREFIX}/{repository}:{tag} is not what the release's signed bundles name",
            details=f"expected {digest}\nfound    {there or 'nothing'}",
            resolution=PUBLISH_AGAIN,
        )
