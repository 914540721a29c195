"""What an installer can do, and what a node needs of one."""

from __future__ import annotations

from typing import Callable, Protocol, Sequence

from ckp.hostkit.processes import have
from ckp.verify.bundle import BundleManifest, Package

NODE_PACKAGES = ("containerd", "kubernetes-cni", "cri-tools", "kubelet", "kubectl", "kubeadm")
"""What a node needs of a bundle, as far as the bundle has it; ckp-agent upgrades itself in another way, helm is for control planes."""
REQUIRED_PACKAGES = ("containerd", "kubernetes-cni", "kubelet", "kubeadm")
FOREIGN_RUNTIMES = (
    *("containerd", "containerd.io", "docker.io", "docker-ce", "moby-engine", "moby-containerd", "moby-runc", "cri-o", "runc"),
    *("kubelet", "kubeadm", "kubectl", "kubernetes-cni", "cri-tools", "k3s", "rke2-server", "rke2-agent"),
)
"""Packages that must not be there before us: replacing them would break what somebody runs with them."""

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
"""A tool that Kubernetes or its network calls, and the programs that each count as it (nft flavours have other names)."""


class Installer(Protocol):
    """A package manager of a host. Only packages that were verified are handed to it."""

    name: str

    def installed(self, names: Sequence[str]) -> dict[str, str]:
        """Those of `names` that are installed, with their versions."""
        ...

    def install(self, manifest: BundleManifest, packages: Sequence[Package]) -> None:
        """Install these files of the verified bundle, and repair what a power cut left half-done. Keeps configuration files of the host."""
        ...

    def remove(self, names: Sequence[str]) -> None:
        """Remove these packages with their configuration; those that are not there are no error."""
        ...

    def broken(self, names: Sequence[str]) -> list[str]:
        """Those of `names` whose files are half there, so that only an installation anew leads on."""
        ...

    def unpack(self, manifest: BundleManifest, packages: Sequence[Package]) -> None:
        """Bring the files of broken packages into a state from which they can be removed."""
        ...

    def put(self, file: str) -> None:
        """Install one verified file in place of whichever version is there, older or newer. The host's own configuration files stay."""
        ...

    def add_tools(self, tools: Sequence[str], remember: Callable[[Sequence[str]], None]) -> list[str]:
        """Install the distribution's own packages for missing tools; returns the packages.

        Args:
            remember: is told the names of all packages that this brings to the host, those that others depend on included, before they come
                (where the package manager can't tell before, the rest of them at once after).
        """
        ...

    def remove_tools(self, names: Sequence[str]) -> list[str]:
        """Remove what `add_tools` brought, as far as nothing else needs it now; returns what stays."""
        ...


def missing_tools() -> list[str]:
    """The tools of TOOLS that this host lacks."""
    return [tool for tool, programs in TOOLS.items() if not any(have(program) for program in programs)]


def remove_unneeded(installer: Installer, names: Sequence[str], remove: Callable[[str], object]) -> list[str]:
    """Remove packages one by one, again as long as that makes others free to go; returns those that stay.

    Args:
        remove: tries to remove one package, and leaves it if anything depends on it.
    """
    left = list(installer.installed(names))
    before: list[str] = []
    while left and left != before:
        before = left
        for name in left:
            remove(name)
        left = list(installer.installed(left))
    return left
