"""Which installer this host needs, and which packages of a bundle it installs."""

from __future__ import annotations

from typing import Sequence

from ckp.agent.system.installers.base import REQUIRED_PACKAGES, Installer
from ckp.agent.system.installers.dpkg import DpkgInstaller
from ckp.agent.system.installers.rpm import RpmInstaller
from ckp.hostkit.errors import InvalidInput
from ckp.hostkit.processes import have
from ckp.verify.bundle import BundleManifest, Package


def of_host() -> Installer:
    """The installer for this host. InvalidInput if it has neither dpkg nor rpm."""
    if have("dpkg") and have("apt-get"):
        return DpkgInstaller()
    if have("dnf") and have("rpm"):
        return RpmInstaller()
    raise InvalidInput("this host has neither dpkg and apt-get nor dnf and rpm", resolution="use Debian 12, Ubuntu 22.04 or 24.04, or RHEL 9")


def select(manifest: BundleManifest, wanted: Sequence[str]) -> list[Package]:
    """Those of `wanted` that the bundle has, in this order. InvalidInput if the bundle lacks one that every node needs."""
    missing = [name for name in REQUIRED_PACKAGES if manifest.package(name) is None]
    if missing:
        raise InvalidInput(f"the bundle {manifest.release} lacks {', '.join(missing)}", resolution="build it again (ckp dist build)")
    found = [manifest.package(name) for name in wanted]
    return [package for package in found if package is not None]
