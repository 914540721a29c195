"""The distribution's main path: from the catalog to signed packages, images and bundles in a registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

from ckp.catalog.load import Catalog, Chosen, Profile
from ckp.catalog.models import BundleTarget, Release
from ckp.clients.oci.registry import Registry
from ckp.clients.signing.cosign import TAG, sign_image
from ckp.clients.signing.openpgp import SigningKey
from ckp.clients.signing.sequoia import sequoia
from ckp.distribution.attest.attestations import attach_all
from ckp.distribution.attest.builtrelease import BuiltRelease
from ckp.distribution.attest.cyclonedx import Json
from ckp.distribution.attest.provenance import bundle_statement, image_statement
from ckp.distribution.attest.sbom import bundle_sbom, image_sbom
from ckp.distribution.builder.component import Built
from ckp.distribution.builder.gobuildinfo import Reader
from ckp.distribution.builder.schedule import build_all
from ckp.distribution.bundles import PREFIX, Bundle, is_pushed, make_bundle, push_bundle
from ckp.distribution.images.layers import store
from ckp.distribution.images.make import Image, ImageBuilder
from ckp.distribution.keys.signing import OWNER
from ckp.distribution.packages.agent import agent_version, build_zipapp
from ckp.distribution.packages.pack import Format, Package, Recipe, make_package
from ckp.distribution.packages.versions import PACKAGES, component_version
from ckp.distribution.registries.tags import check_tags
from ckp.distribution.repositories.agents import agent_repositories
from ckp.kits import paths
from ckp.kits.files import sha256_bytes
from ckp.kits.steps import Steps
from ckp.kits.stopping import pool, raise_if_cancelled
from ckp.verify.bundle import MANIFEST

PUSHES = 4
"""How many images are signed and attested at the same time."""

FORMATS: tuple[Format, ...] = ("deb", "rpm")


class Deliverable(Protocol):
    """What a site needs of a release: built on this machine (Distribution) or imported from a file (ckp.distribution.carry.airgap.ImportedRelease).

    `ckp.site` takes either, and does not know which.
    """

    @property
    def release(self) -> Release: ...
    @property
    def built(self) -> Mapping[str, Built]:
        """Components of which programs or files are used: the registry, imgpkg, kubectl, helm, manifests."""
        ...

    @property
    def keyring(self) -> Path:
        """The keyring that hosts trust."""
        ...

    @property
    def tags(self) -> Mapping[str, str]:
        """Repositories of the images, with their tags."""
        ...

    @property
    def targets(self) -> Sequence[BundleTarget]:
        """Operating systems that there is a bundle for."""
        ...

    @property
    def stand_ins(self) -> Sequence[str]:
        """Pins that a stand-in replaces."""
        ...

    def agent(self, format: Format) -> Package:
        """The agent's package."""
        ...

    def push(self, registry: Registry, address: str, ca: Path | None, credentials: Path | None = None, *, replace: bool = False) -> dict[str, str]:
        """Push images and bundles, and return each repository's digest. What the registry has is not sent again.

        Args:
            replace: move tags that name other content to this release's, and report each.

        Raises:
            Conflict: a tag names other content; nothing was pushed.
        """
        ...


@dataclass
class Distribution:
    """One release, built step by step on this machine: build, pack, make_images, make_bundles, push.

    Args:
        say: takes lines of progress.
    """

    catalog: Catalog
    release: Release
    profile: Profile
    say: Callable[[str], None]
    built: dict[str, Built] = field(default_factory=dict)
    images: list[Image] = field(default_factory=list)
    packages: list[Package] = field(default_factory=list)
    agents: list[Package] = field(default_factory=list)
    """The agent's packages: the agent is CKP's own, changes with CKP's code, and so is not part of a release's bundle."""
    bundles: list[Bundle] = field(default_factory=list)
    registry_name: str = ""
    trusted: Path | None = None
    """The keyring that the agent's package brings, if it is not that of the signing key: a rebuild is signed by another key than the published release."""

    @cached_property
    def key(self) -> SigningKey:
        """The signing key, made on first use."""
        return SigningKey.ensure(paths.keys(), user_id=OWNER)

    @property
    def keyring(self) -> Path:
        """See Deliverable."""
        return self.trusted or self.key.keyring

    @property
    def tags(self) -> dict[str, str]:
        """See Deliverable."""
        return {image.repository: image.tag for image in self.images}

    @property
    def targets(self) -> list[BundleTarget]:
        """See Deliverable."""
        return [bundle.target for bundle in self.bundles]

    @property
    def stand_ins(self) -> list[str]:
        """See Deliverable."""
        return sorted({item.chosen.stands_in_for for item in self.built.values() if item.chosen.stands_in_for})

    def chosen(self) -> list[Chosen]:
        """All components of the release, tools first, since packing needs them."""
        roles = [*self.release.tools, *self.release.pins]
        return [self.catalog.choose(self.release, role, self.profile) for role in roles]

    def build(self, steps: Steps | None = None, also: Sequence[Chosen] = ()) -> None:
        """Build every component that is not in the cache.

        Args:
            steps: shows each of them inside its current step.
            also: programs that are not part of the release, built in the same schedule.

        Raises:
            CkpError: a component could not be built; or packages could not be signed here, which is found before anything is built.
        """
        sequoia()
        components = self.chosen()
        for chosen in components:
            if chosen.stands_in_for:
                self.say(f"STAND-IN: {chosen.source.component} {chosen.source.version} takes the place of {chosen.stands_in_for}")
        built = build_all(self.catalog, [*components, *also], self.release.stamp, self.say, steps)
        self.built = {chosen.role: built[chosen.role] for chosen in components}
        self.say(f"{len(components)} components of {self.release.stamp} are built")

    def pack(self, formats: Sequence[Format] = FORMATS) -> None:
        """Make and sign the packages, the agent's among them."""
        key, nfpm = self.key, self.built["nfpm"].binary("nfpm")
        self.packages, self.agents = [], []
        agent = {"ckp-agent": build_zipapp(), "trusted.gpg": self.keyring}
        for kind in formats:
            for name, role in PACKAGES:
                self.packages.append(make_package(Recipe.read(name), self.package_version(role), self.built, nfpm, key, format=kind))
            self.agents.append(make_package(Recipe.read("ckp-agent"), agent_version(self.keyring), self.built, nfpm, key, extra=agent, format=kind))
            self.say(f"{len(PACKAGES) + 1} {kind} packages, {self.release.package_version}")
        self.say(f"signed by {key.subkey}")

    def package_version(self, role: str) -> str:
        """The version of the package that a component becomes."""
        return self.release.package_version if role == "kubernetes" else component_version(self.built[role].chosen.source.version)

    def agent(self, format: Format) -> Package:
        """See Deliverable."""
        return next(package for package in self.agents if package.format == format)

    def make_images(self) -> None:
        """Make the images."""
        repositories = {"agent-repositories": lambda: (agent_repositories(self.agents, self.key),)}
        self.images = ImageBuilder(self.release, self.built, self.say, self.agents, made=repositories).all()

    def make_bundles(self, registry: str, targets: Sequence[BundleTarget] | None = None) -> None:
        """Make a bundle for each operating system (or for `targets`); `registry` is the address that hosts pull from."""
        wanted = self.release.bundles if targets is None else targets
        self.registry_name = registry
        self.bundles = [make_bundle(self.release, target, self.packages, self.images, self.built, registry, self.key) for target in wanted]

    def push(self, registry: Registry, address: str, ca: Path | None, credentials: Path | None = None, *, replace: bool = False) -> dict[str, str]:
        """See Deliverable. Each image and bundle is signed, and carries its SBOM and its provenance as referrers."""
        wanted = [(f"{PREFIX}/{image.repository}", image.tag, image.manifest().digest) for image in self.images]
        if not replace:
            wanted += [self._claim(bundle) for bundle in self.bundles if not is_pushed(bundle, self.release, registry)]
        check_tags(registry, wanted, self.say, replace=replace)
        digests: dict[str, str] = {}
        for image in self.images:
            manifest = image.manifest()
            registry.push(store(), manifest, f"{PREFIX}/{image.repository}", image.tag)
            digests[image.repository] = manifest.digest
        imgpkg = self.built["imgpkg"].binary("imgpkg")
        for bundle in self.bundles:
            name = f"{PREFIX}/{bundle.target.repository}:{self.release.stamp}"
            before = registry.digest(f"{PREFIX}/{bundle.target.repository}", self.release.stamp)
            digest = push_bundle(bundle, self.release, registry, address, ca, imgpkg, credentials)
            digests[bundle.target.repository] = digest
            self.say(f"bundle {name}" if before in (None, digest) else f"replaced {name}: {before} was there, {digest} came")
        self._attest(registry, digests)
        return digests

    def _claim(self, bundle: Bundle) -> tuple[str, str, str]:
        """What a bundle's tag will name, for check_tags. In words: imgpkg decides the digest when it pushes."""
        listing = sha256_bytes(bundle.listing)
        return f"{PREFIX}/{bundle.target.repository}", self.release.stamp, f"a bundle whose {MANIFEST} has the SHA-256 {listing}"

    def _attest(self, registry: Registry, digests: Mapping[str, str]) -> None:
        """Sign what was pushed and attach SBOMs and provenance; what has them already does not change."""
        built = BuiltRelease(Reader(self.catalog), self.release, self.profile, self.built)
        key = self.key.image_key.read_bytes()

        def one(repository: str, tag: str, sbom: Json, statement: Json) -> None:
            name, digest = f"{PREFIX}/{repository}", digests[repository]
            sign_image(registry, name, digest, key, {TAG: tag}, identity=f"{self.registry_name or registry.address}/{name}")
            raise_if_cancelled()
            attach_all(registry, name, registry.get_manifest(name, digest).descriptor, sbom, statement, self.key.image_key)

        with pool(PUSHES) as threads:
            jobs = [threads.submit(one, image.repository, image.tag, image_sbom(built, image), image_statement(built, image)) for image in self.images]
            for bundle in self.bundles:
                digest = digests[bundle.target.repository]
                packages = [package for package in self.packages if package.format == bundle.target.format]
                sbom = bundle_sbom(built, bundle, packages, self.images, digest)
                statement = bundle_statement(built, bundle, packages, self.images, digest)
                jobs.append(threads.submit(one, bundle.target.repository, self.release.stamp, sbom, statement))
            for job in jobs:
                job.result()
        self.say(f"{len(jobs)} images and bundles are signed, with SBOM and provenance attached")
