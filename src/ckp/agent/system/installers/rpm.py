"""RHEL 9 and its derivatives: dnf installs the files that ckp.verify.rpmfile has verified."""

from __future__ import annotations

import os
from typing import Callable, Sequence

from ckp.agent.system.installers.base import remove_unneeded
from ckp.hostkit.errors import AgentError
from ckp.hostkit.files import remove
from ckp.hostkit.processes import run
from ckp.verify.bundle import BundleManifest, Package

PACKAGE_OF = {
    "socat": "socat",
    "conntrack": "conntrack-tools",
    "ethtool": "ethtool",
    "iptables": "iptables-nft",
    "ebtables": "iptables-nft",
    "ip": "iproute",
    "tc": "iproute-tc",
    "ipset": "ipset",
    "modprobe": "kmod",
    "mount": "util-linux",
    "losetup": "util-linux",
}


BETWEEN_VERSIONS = " and "
LEFT_BY_RPM = (".rpmsave", ".rpmnew", ".rpmorig")
"""Endings of the files that rpm leaves beside a configuration file that was changed on the host."""


class RpmInstaller:
    """See base.Installer.

    Args:
        root: the root folder of the system that packages are installed into.
    """

    name = "rpm"

    def __init__(self, root: str = "/") -> None:
        self.root = root
        self._rpm = ["rpm"] if root == "/" else ["rpm", "--root", root]
        self._dnf = ["dnf", "-y", "--setopt=install_weak_deps=False", *([] if root == "/" else [f"--installroot={root}", "--releasever=9"])]

    def installed(self, names: Sequence[str]) -> dict[str, str]:
        """See base.Installer. A package that an interrupted transaction left in two versions has both in its text, which equals no wanted version."""
        found = {}
        for name in names:
            result = run([*self._rpm, "-q", "--qf", "%{VERSION}-%{RELEASE}\n", name], timeout=60, check=False)
            if result.code == 0:
                found[name] = BETWEEN_VERSIONS.join(result.stdout.split())
        return found

    def install(self, manifest: BundleManifest, packages: Sequence[Package]) -> None:
        have = self.installed([package.name for package in packages])
        for package in packages:
            if BETWEEN_VERSIONS in have.get(package.name, ""):
                self._repair_duplicate(package, manifest.path(package.file))
                have[package.name] = package.version
        todo = [package for package in packages if have.get(package.name) != package.version]
        if todo:
            what = f"installing {', '.join(package.name for package in todo)}"
            # our own verification is stricter than dnf's (one keyring, one maintainer), and rpm's key database does not have the key
            flags = ["--nogpgcheck", "--disablerepo=*"]
            files = [manifest.path(package.file) for package in todo]
            run([*self._dnf, *flags, "install", *files], timeout=900, what=what, reason="InstallFailed")
        now = self.installed([package.name for package in packages])
        wrong = [
            f"{package.name} is {now.get(package.name, 'missing')}, expected {package.version}"
            for package in packages
            if now.get(package.name) != package.version
        ]
        if wrong:
            raise AgentError("dnf succeeded, but not everything is installed", details="\n".join(wrong), reason="InstallFailed")

    def _repair_duplicate(self, package: Package, file: str) -> None:
        """Leave one version of a package whose old version an interrupted transaction did not erase. dnf would do nothing: it counts the newer one."""
        self._force(file, f"completing an interrupted installation of {package.name}")

    def _force(self, file: str, what: str) -> None:
        """Install this version, whichever is installed now."""
        argv = [*self._rpm, "-U", "--oldpackage", "--replacepkgs", "--nosignature", file]
        run(argv, timeout=600, what=what, reason="InstallFailed")

    def remove(self, names: Sequence[str]) -> None:
        present = list(self.installed(names))
        if not present:
            return
        configuration = run([*self._rpm, "-qc", *present], timeout=60, check=False).stdout.splitlines()
        run([*self._rpm, "-e", "--allmatches", *present], timeout=600, what=f"removing {', '.join(present)}")
        for path in configuration:
            if path.startswith("/"):
                for ending in LEFT_BY_RPM:
                    remove(os.path.join(self.root, path.lstrip("/")) + ending)

    def broken(self, names: Sequence[str]) -> list[str]:
        return []  # rpm can remove what an interrupted transaction left

    def unpack(self, manifest: BundleManifest, packages: Sequence[Package]) -> None:
        for package in packages:
            self._repair_duplicate(package, manifest.path(package.file))

    def install_file(self, file: str) -> None:
        self._force(file, f"installing {os.path.basename(file)}")

    def _all(self) -> dict[str, str]:
        """Every installed package, with the number of the transaction that installed it."""
        result = run([*self._rpm, "-qa", "--qf", "%{NAME}\t%{INSTALLTID}\n"], timeout=120, check=False)
        return {name: number for name, _, number in (line.partition("\t") for line in result.stdout.splitlines())}

    def add_tools(self, tools: Sequence[str], remember: Callable[[Sequence[str]], None]) -> list[str]:
        packages = sorted({PACKAGE_OF.get(tool, tool) for tool in tools})
        if packages:
            before = self._all()
            remember([name for name in packages if name not in before])
            run(
                [*self._dnf, "install", *packages],
                timeout=900,
                what=f"installing the system tools {', '.join(packages)} by dnf",
                resolution=f"make a package source reachable, or install {' '.join(packages)} by hand",
                reason="SystemToolsMissing",
            )
            now = self._all()
            ours = {now[name] for name in packages if name in now and name not in before}
            remember([name for name, number in now.items() if name not in before and number in ours])
        return packages

    def remove_tools(self, names: Sequence[str]) -> list[str]:
        return remove_unneeded(self, names, lambda name: run([*self._rpm, "-e", name], timeout=300, check=False))
