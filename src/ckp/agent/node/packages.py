"""The packages of a verified bundle on this host: whether they fit, and their installation."""

from __future__ import annotations

from ckp.agent.journal import Journal
from ckp.agent.system import facts, holds
from ckp.agent.system.installers.base import Installer
from ckp.hostkit.errors import AgentError
from ckp.verify.bundle import BundleManifest
from ckp.verify.versions import refuse_downgrade


def check_fits(manifest: BundleManifest) -> None:
    """AgentError if the bundle is not for this host's operating system and architecture."""
    here = facts.host_facts_os()
    if (manifest.os, manifest.os_version, manifest.architecture) != here:
        raise AgentError(
            f"the bundle is for {manifest.os} {manifest.os_version} ({manifest.architecture}), this host is {here[0]} {here[1]} ({here[2]})",
            resolution="use hosts with that operating system in this group, or a release with a bundle for this one (ckp release show)",
            reason="BundleUnfit",
            permanent=True,
        )


def install_packages(journal: Journal, installer: Installer, manifest: BundleManifest, names: list[str], *, allow_downgrade: bool = False) -> None:
    """Install verified packages by name. Those that were not installed before are recorded in the journal before the package manager runs.

    Raises:
        VerificationFailed: an installed one is newer, and a downgrade is not allowed.
        AgentError: the package manager failed.
    """
    before = installer.installed(names)
    packages = [package for package in (manifest.package(name) for name in names) if package is not None]
    refuse_downgrade(installer.name, before, {package.name: package.version for package in packages}, allowed=allow_downgrade)
    journal.add_packages(name for name in names if name not in before)
    holds.remember(journal, installer, [package.name for package in packages])
    installer.install(manifest, packages)
    holds.hold(journal, installer, [package.name for package in packages])
