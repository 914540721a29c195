"""Which packages a release has, and in which versions, by its file in the catalog."""

from __future__ import annotations

from collections.abc import Collection

from ckp.catalog.models import Release

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
