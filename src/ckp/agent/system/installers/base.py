"""The interface of installers, and the packages and tools that a node needs."""

from __future__ import annotations

from typing import Callable, Protocol, Sequence

from ckp.hostkit.processes import have
from ckp.verify.bundle import BundleManifest, Package

NODE_PACKAGES = ("containerd", "kubernetes-cni", "cri-tools", "kubelet", "kubectl", "kubeadm")
"""What a node installs from a bundle, as far as the bundle has it. Not ckp-agent, which upgrades itself, and not helm, which control planes need."""
REQUIRED_PACKAGES = ("containerd", "kubernetes-cni", "kubelet", "kubeadm")
FOREIGN_RUNTIMES = (
    *("containerd", "containerd.io", "docker.io", "docker-ce", "moby-engine", "moby-containerd", "moby-runc", "cri-o", "runc"),
    *("kubelet", "kubeadm", "kubectl", "kubernetes-cni", "cri-tools", "k3s", "rke2-server", "rke2-agent"),
)
"""Packages that must not be installed already: replacing them would break what the host runs with them."""

TOOLS = {
    "socat": ("socat",),
    "conntrack": ("conntrack",),
    "ethtool": ("ethtool",),
    "iptables": ("iptables",),
    "ebtables": ("ebtables", "ebtables-nft"),
    "ip": ("ip",),
    "ipset": ("ipset",),
    "mount": ("mount",),
    "losetup": ("losetup",),
    "tc": ("tc",),
    "modprobe": ("modprobe",),
}
"""Tools that Kubernetes or its network plugin calls, and the programs that provide each (the nft variants have other names)."""


class Installer(Protocol):
    """A host's package manager. It is only given packages that were verified."""

    name: str

    def installed(self, names: Sequence[str]) -> dict[str, str]:
        """Those of `names` that are installed, with their versions."""
        ...

    def install(self, manifest: BundleManifest, packages: Sequence[Package]) -> None:
        """Install these packages of the verified bundle, and complete what a power cut interrupted. The host's configuration files stay. Raises AgentError."""
        ...

    def replace(self, manifest: BundleManifest, packages: Sequence[Package]) -> None:
        """Install these packages of the verified bundle over any version of them, older or newer, in one transaction. Otherwise as `install`."""
        ...

    def changed_configuration(self, names: Sequence[str]) -> list[str]:
        """The configuration files of these installed packages that are no longer as the package has them."""
        ...

    def sources(self, names: Sequence[str]) -> dict[str, tuple[str, str]]:
        """Those of `names` that are installed, each with its version and its maintainer (rpm: packager)."""
        ...

    def held(self, names: Sequence[str]) -> list[str]:
        """Those of `names` that a general upgrade leaves as they are, whoever asked for it. They need not be installed."""
        ...

    def hold(self, names: Sequence[str]) -> None:
        """Keep general upgrades from changing these packages; `install` and `remove` still do (and may lift the hold). Raises AgentError."""
        ...

    def release(self, names: Sequence[str]) -> None:
        """Undo `hold` for these names. Raises AgentError."""
        ...

    def remove(self, names: Sequence[str]) -> None:
        """Remove these packages with their configuration; those that are not installed are skipped. Raises AgentError."""
        ...

    def broken(self, names: Sequence[str]) -> list[str]:
        """Those of `names` whose files are incomplete: they can't be removed before they are unpacked again."""
        ...

    def unpack(self, manifest: BundleManifest, packages: Sequence[Package]) -> None:
        """Unpack broken packages again, so that they can be removed. Raises AgentError."""
        ...

    def install_file(self, file: str) -> None:
        """Install one verified package file over any version of it, older or newer. The host's configuration files stay. Raises AgentError."""
        ...

    def add_tools(self, tools: Sequence[str], remember: Callable[[Sequence[str]], None]) -> list[str]:
        """Install the distribution's own packages for missing tools; returns the packages. Raises AgentError.

        Args:
            remember: called with the names of all packages that this adds to the host, dependencies included, before they are installed
                (where the package manager can't tell beforehand, again right after, with the rest).
        """
        ...

    def remove_tools(self, names: Sequence[str]) -> list[str]:
        """Remove what `add_tools` installed, as far as no other package needs it; returns what stays."""
        ...


def missing_tools() -> list[str]:
    """The tools of TOOLS that this host lacks."""
    return [tool for tool, programs in TOOLS.items() if not any(have(program) for program in programs)]


def remove_unneeded(installer: Installer, names: Sequence[str], remove: Callable[[str], object]) -> list[str]:
    """Remove packages one by one, in several rounds, since each removal may free others of dependents; returns those that stay.

    Args:
        remove: removes one package, unless something depends on it.
    """
    left = list(installer.installed(names))
    before: list[str] = []
    while left and left != before:
        before = left
        for name in left:
            remove(name)
        left = list(installer.installed(left))
    return left
