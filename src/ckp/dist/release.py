"""The distribution's main path: from the catalog to signed packages, images and bundles in a registry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ckp.catalog.load import Catalog, Chosen, Profile
from ckp.catalog.models import Release
from ckp.clients.oci import Descriptor, Registry
from ckp.clients.openpgp import SigningKey
from ckp.dist.agent import agent_version, build_zipapp
from ckp.dist.build import Built, build_component
from ckp.dist.bundle import PREFIX, Bundle, make_bundle, push_bundle
from ckp.dist.images import Image, ImageBuilder
from ckp.dist.layers import store
from ckp.dist.packages import Package, Recipe, make_package
from ckp.kits import paths

KEY_OWNER = "Coredge.io CKP packages <support@coredge.io>"

PACKAGES: tuple[tuple[str, str], ...] = (
    ("kubeadm", "kubernetes"),
    ("kubelet", "kubernetes"),
    ("kubectl", "kubernetes"),
    ("kubernetes-cni", "cni-plugins"),
    ("cri-tools", "cri-tools"),
    ("containerd", "containerd"),
    ("helm", "helm"),
)
"""Packages of a bundle, each with the component that its version comes from."""


@dataclass
class Distribution:
    """One release, as far as it is made.

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
    agent: Package | None = None
    """The agent's package: it is CKP's own, changes with CKP's code, and so is not part of a release's bundle."""
    bundles: list[Bundle] = field(default_factory=list)

    @cached_property
    def key(self) -> SigningKey:
        """The signing key, made on first use."""
        return SigningKey.ensure(paths.keys(), user_id=KEY_OWNER)

    def chosen(self) -> list[Chosen]:
        """All components of the release, tools first, since packing needs them."""
        roles = [*self.release.tools, *self.release.pins]
        return [self.catalog.choose(self.release, role, self.profile) for role in roles]

    def build(self) -> None:
        """Build every component that is not built."""
        components = self.chosen()
        for number, chosen in enumerate(components, start=1):
            source = chosen.source
            if chosen.stands_in_for:
                self.say(f"STAND-IN: {source.component} {source.version} takes the place of {chosen.stands_in_for}, which is not served here")
            item = build_component(self.catalog, chosen, self.release.stamp, self.say)
            self.built[chosen.role] = item
            self.say(f"{number}/{len(components)} {source.component} {source.version}: {'built' if item.fresh else 'unchanged'}")

    def pack(self) -> None:
        """Make and sign the packages, the agent's among them."""
        key, nfpm = self.key, self.built["nfpm"].binary("nfpm")
        for name, role in PACKAGES:
            source = self.built[role].chosen.source
            version = self.release.package_version if role == "kubernetes" else f"{source.version.removeprefix('v')}-ckp"
            self.packages.append(make_package(Recipe.read(name), version, self.built, nfpm, key))
            self.say(f"package {name} {version}")
        extra = {"ckp-agent": build_zipapp(), "trusted.gpg": key.keyring}
        self.agent = make_package(Recipe.read("ckp-agent"), agent_version(), self.built, nfpm, key, extra=extra)
        self.say(f"package ckp-agent {agent_version()}, signed by {key.fingerprint}")

    def make_images(self) -> None:
        """Make the images."""
        self.images = ImageBuilder(self.release, self.built, self.say).all()

    def make_bundles(self, registry: str) -> None:
        """Make a bundle for each operating system; `registry` is the address that hosts pull from."""
        self.bundles = [make_bundle(self.release, target, self.packages, self.images, self.built, registry, self.key) for target in self.release.bundles]

    def push(self, registry: Registry, address: str, ca: Path) -> dict[str, str]:
        """Push images and bundles; returns each repository's digest. What is there already is not sent again."""
        digests: dict[str, str] = {}
        for image in self.images:
            manifest: Descriptor = image.manifest()
            registry.push(store(), manifest, f"{PREFIX}/{image.repository}", image.tag)
            digests[image.repository] = manifest.digest
        for bundle in self.bundles:
            imgpkg = self.built["imgpkg"].binary("imgpkg")
            digests[bundle.target.repository] = push_bundle(bundle, self.release, registry, address, ca, imgpkg)
            self.say(f"bundle {bundle.target.repository}:{self.release.stamp}")
        return digests
