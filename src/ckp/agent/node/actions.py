"""The engine's actions on a real host: each step of a membership."""

from __future__ import annotations

import os
import shutil
from typing import Callable, Sequence

from ckp.agent.config import Config
from ckp.agent.fetch.bundles import bundle_folder, drop_other_bundles, pull_bundle
from ckp.agent.journal import Journal
from ckp.agent.messages import AgentTarget, Membership
from ckp.agent.node import join, preflight
from ckp.agent.node.packages import check_fits, install_packages
from ckp.agent.node.settings import Settings, Settled
from ckp.agent.node.upgrade_steps import HostUpgrade
from ckp.agent.system import facts, folders, holds, prepare, resolver, runtime_proxy, swap
from ckp.agent.system.installers.base import NODE_PACKAGES, Installer, missing_tools
from ckp.agent.system.installers.detect import of_host, select
from ckp.agent.upgrade import Upgrades, own_version
from ckp.hostkit.errors import AgentError, Cancelled
from ckp.hostkit.logs import log
from ckp.hostkit.processes import run
from ckp.verify.bundle import BundleManifest, verify_bundle


class HostActions:
    """Implements ckp.agent.node.engine.Actions."""

    def __init__(self, config: Config, journal: Journal) -> None:
        self.config = config
        self.journal = journal
        self.version = own_version(facts.version())
        self.upgrades = Upgrades(config.state_dir)
        self.settings = Settings(journal, config.hub_host)
        self.node_upgrade = HostUpgrade(config, journal)
        self._manifest: BundleManifest | None = None

    def step(self, name: str, membership: Membership, cancelled: Callable[[], bool]) -> str:
        steps: dict[str, Callable[[Membership, Callable[[], bool]], str]] = {
            "preflight": self._preflight,
            "pull": self._pull,
            "verify": self._verify,
            "prepare": self._prepare,
            "install": self._install,
            "fetch": self._fetch,
            "join": self._join,
            "check": join.check,
        }
        return steps[name](membership, cancelled)

    def _preflight(self, membership: Membership, cancelled: Callable[[], bool]) -> str:
        bundle_folder(self.config.state_dir, membership.bundle.image)
        join.check_files(membership.files)
        installer = of_host()
        preflight.worker(self.journal, installer).raise_if_any("this host can't become a node")
        return ""

    def _pull(self, membership: Membership, cancelled: Callable[[], bool]) -> str:
        folder = bundle_folder(self.config.state_dir, membership.bundle.image)
        drop_other_bundles(self.config.state_dir, folder)
        ca = membership.bundle.registry_ca or membership.registry_ca
        pulled = pull_bundle(self.config.imgpkg, membership.bundle.image, folder, ca, cancelled)
        return f"{membership.bundle.tag or membership.bundle.image}{f': {pulled}' if pulled else ' was pulled before'}"

    def _verify(self, membership: Membership, cancelled: Callable[[], bool]) -> str:
        folder = bundle_folder(self.config.state_dir, membership.bundle.image)
        self._manifest = None
        if not os.path.isdir(folder):
            raise AgentError("the pulled bundle is no longer there", resolution="the agent pulls it again", reason="BundleMissing")
        try:
            manifest = verify_bundle(folder, self.config.keyring, membership.release)
        except AgentError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        check_fits(manifest)
        self._manifest = manifest
        return f"{len(manifest.packages)} packages, signed by {manifest.key}"

    def _prepare(self, membership: Membership, cancelled: Callable[[], bool]) -> str:
        installer = of_host()
        folders.remember_present(self.journal)
        added = add_tools(self.journal, installer)
        decisions = prepare.decide()
        node_ip = facts.default_address(self.config.hub_host)
        given = "resolvConf" in decisions.overrides.get("kubelet", {}) or any(
            file.path == membership.join_config and "resolv-conf" in file.content for file in membership.files
        )
        resolv_conf = resolver.wanted("", given)
        if resolv_conf:
            resolver.write(self.journal, node_ip)
        note = prepare.prepare(
            self.journal,
            decisions,
            sandbox_image=membership.sandbox_image,
            registry=membership.registry,
            registry_ca=membership.registry_ca,
            kubelet_args=prepare.kubelet_arguments(
                membership.provider_id,
                node_ip,
                membership.node_labels,
                membership.node_taints,
                node_name=membership.node_name,
                resolv_conf=resolv_conf,
            ),
        )
        return "; ".join(part for part in (added, note, runtime_proxy.write(self.journal)) if part)

    def _install(self, membership: Membership, cancelled: Callable[[], bool]) -> str:
        manifest = self._manifest
        if manifest is None:
            raise AgentError("no bundle was verified, so nothing is installed", reason="NotVerified")
        installer = of_host()
        packages = select(manifest, NODE_PACKAGES)
        names = [package.name for package in packages]
        install_packages(self.journal, installer, manifest, names, allow_downgrade=membership.allow_downgrade)
        prepare.start_containerd()
        run(["systemctl", "enable", "kubelet"], timeout=60, what="enabling the kubelet")
        return ", ".join(f"{package.name} {package.version}" for package in packages)

    def _fetch(self, membership: Membership, cancelled: Callable[[], bool]) -> str:
        """Pull the images that every node runs from the start. A failure does not prevent the join: the kubelet pulls them again."""
        if not membership.images:
            return ""
        from ckp.agent.fetch.images import IMAGE_SECONDS, ImagePulls

        pulls = ImagePulls(list(membership.images), parallel=2, seconds=membership.image_fetch_seconds or IMAGE_SECONDS)
        try:
            pulls.wait(list(membership.images), cancelled)
        except Cancelled:
            raise
        except AgentError as error:
            return f"not all images could be pulled yet: {error.sentence()}"
        return f"{len(membership.images)} images"

    def _join(self, membership: Membership, cancelled: Callable[[], bool]) -> str:
        return join.join(self.journal, membership, prepare.decide(), cancelled)

    def reset(self, cancelled: Callable[[], bool]) -> str:
        from ckp.agent.node.reset import NOTHING, reset

        note = NOTHING
        if self.journal.touched:
            installer = of_host()
            self._finish_packages(installer)
            note = reset(self.journal, installer)
        self.node_upgrade.tidy([])
        return note

    def _finish_packages(self, installer: Installer) -> None:
        """Unpack packages again whose unpacking was interrupted, from the same bundle: only then does their removal remove all of their files."""
        broken = installer.broken(self.journal.packages)
        if not broken or self.journal.member is None:
            return
        folder = bundle_folder(self.config.state_dir, self.journal.member.bundle)  # of the old release, if an upgrade was interrupted: either completes them
        try:
            manifest = verify_bundle(folder, self.config.keyring, self.journal.member.release)
            installer.unpack(manifest, [package for package in map(manifest.package, broken) if package is not None])
        except AgentError as error:
            log(f"{', '.join(broken)}: unpacking was interrupted, and can't be repeated: {error.sentence()}")

    def upgrade_agent(self, target: AgentTarget | None) -> str:
        """See ckp.agent.node.engine.Actions."""
        if target is None:
            self.upgrades.forget_failure()
            return ""
        if target.version == self.version:
            return ""

        def pull(image: str, folder: str, ca: str) -> None:
            pull_bundle(self.config.imgpkg, image, folder, ca)

        return self.upgrades.begin(target, self.version, self.config.keyring, pull)

    def settle(self, membership: Membership) -> Settled:
        return self.settings.apply(membership)

    def unhealthy(self) -> str:
        holds.adopt(self.journal, of_host())
        return runtime_proxy.follow(self.journal) or swap.keep_off(self.journal) or join.kubelet_health()


def add_tools(journal: Journal, installer: Installer) -> str:
    """Install the system tools that this host lacks; returns a note, "" if none. A reset removes them again. Raises AgentError."""
    missing = missing_tools()
    if not missing:
        return ""

    def remember(names: Sequence[str]) -> None:
        journal.note("tools", sorted({*journal.notes.get("tools", []), *names}))

    return f"system packages added: {', '.join(installer.add_tools(missing, remember))}"
