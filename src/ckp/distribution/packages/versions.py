"""Which packages a release has, and in which versions, by its file in the catalog; and the versions of CKP's own packages, which no release has."""

from __future__ import annotations

from collections.abc import Collection

from ckp import __version__
from ckp.catalog.models import Release
from ckp.kits import paths
from ckp.kits.files import sha256_bytes, sha256_file

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


def component_version(version: str) -> str:
    """The version of the package that a component becomes, other than Kubernetes: `1.7.28-ckp` of v1.7.28."""
    return f"{version.removeprefix('v')}-ckp"


def own_version(name: str, code: str, *more: str) -> str:
    """The version of one of CKP's own packages: the project's, with what is in the package, so that other content is another version.

    The digest is written as a decimal number: dpkg and rpm sort numbers alike, and letters not. It does not order two versions; the
    project's version does.

    Args:
        code, more: digests of what is in it beside its recipe.
    """
    recipe = sorted(path for path in paths.data("packaging", name).iterdir() if path.is_file())
    parts = [code, *(f"{path.name}{sha256_file(path)}" for path in recipe), *more]
    return f"{__version__}+{int(sha256_bytes(''.join(parts).encode())[:8], 16)}-ckp"


def stand_in_line(component: str, version: str, stands_in_for: str) -> str:
    """How a bundle's list names a stand-in."""
    return f"{component} {version} stands in for {stands_in_for}"


def package_versions(release: Release, stand_ins: Collection[str]) -> dict[str, str]:
    """The version of each package of a release's bundles.

    Args:
        stand_ins: the stand-ins of the bundle's signed list; only those that the release names are considered.
    """
    found = {}
    for package, role in PACKAGES:
        if role == "kubernetes":
            found[package] = release.package_version
            continue
        pin, other = release.pins[role], release.stand_ins.get(role)
        taken = other is not None and stand_in_line(other.component, other.version, f"{role} {pin}") in stand_ins
        found[package] = component_version(other.version if other is not None and taken else pin)
    return found
