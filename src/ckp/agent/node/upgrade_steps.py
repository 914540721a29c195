"""The steps of a node's upgrade on a real host: its packages, kubeadm, and the kubelet (see ckp.agent.node.upgrade).

What `kubeadm upgrade node` does on a worker (cmd/kubeadm/app/cmd/upgrade/node.go at v1.35.1): with the kubelet's own kubeconfig it reads the ConfigMaps
kubeadm-config and kubelet-config and its own Node, writes /var/lib/kubelet/config.yaml with the patches of this host, and takes flags that the new kubelet
does not know out of kubeadm-flags.env (phase post-upgrade: --pod-infra-container-image). It restarts nothing, and may be repeated. So it comes after the
packages and before the kubelet's restart, and the control plane must be of the new release by then.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from typing import Any, Callable, Sequence

from ckp.agent.config import Config
from ckp.agent.fetch.bundles import bundle_folder, drop_other_bundles, pull_bundle
from ckp.agent.journal import Journal
from ckp.agent.messages import Membership
from ckp.agent.node import join
from ckp.agent.node.packages import check_fits, install_packages
from ckp.agent.node.upgrade import MISSING, Record
from ckp.agent.system import facts, holds, prepare
from ckp.agent.system.installers.base import NODE_PACKAGES
from ckp.agent.system.installers.detect import of_host, select
from ckp.hostkit.errors import AgentError, VerificationFailed
from ckp.hostkit.files import atomic_write, read_text, remove
from ckp.hostkit.processes import run
from ckp.hostkit.waits import wait_for
from ckp.verify.bundle import BundleManifest, Package, verify_bundle
from ckp.verify.versions import refuse_downgrade

KUBELET_FILES = ("/var/lib/kubelet/config.yaml", "/var/lib/kubelet/kubeadm-flags.env", "/var/lib/kubelet/instance-config.yaml")
"""What `kubeadm upgrade node` writes on a worker."""
PACKAGES_PLACE, KUBELET_PLACE = "/usr", "/var/lib"
USUAL_BUNDLE = 600 << 20
"""Bytes of a bundle whose predecessor is not here to be measured."""
UNPACKED = 5
"""An unpacked package of Go programs has at most so many times the bytes of its file."""
SPARE = 256 << 20
"""Bytes that stay free: for logs and the cluster's own pods while the node is upgraded."""
KUBEADM_SECONDS = 300.0
CHECK_SECONDS, STEADY_SECONDS = 180.0, 12.0
"""How long the new kubelet has until it is healthy, and for how long it must stay so: systemd starts it again 10 s after it ended (RestartSec)."""
PROC = "/proc"


class HostUpgrade:
    """Implements ckp.agent.node.upgrade.UpgradeSteps.

    Args:
        ignored: kubeadm's preflight checks that this host can't pass (prepare.HostDecisions.ignored_preflight).
    """

    def __init__(self, config: Config, journal: Journal, *, ignored: Callable[[], list[str]] = lambda: prepare.decide().ignored_preflight()) -> None:
        self.config = config
        self.journal = journal
        self.ignored = ignored
        self.folder = os.path.join(config.state_dir, "upgrade")
        self._manifests: dict[str, BundleManifest] = {}  # verified by this process, by image

    def run(self, step: str, record: Record, wanted: Membership | None, cancelled: Callable[[], bool]) -> str:
        steps: dict[str, Callable[[Record, Membership | None, Callable[[], bool]], str]] = {
            "space": self._space,
            "pull": self._pull,
            "verify": self._verify,
            "save": self._save,
            "install": self._install,
            "configure": self._configure,
            "restart": self._restart,
            "check": self._check,
            "reinstall": self._reinstall,
            "restore": self._restore,
            "restart-old": self._restart,
            "check-old": self._check_old,
        }
        return steps[step](record, wanted, cancelled)

    def no_way_back(self, record: Record) -> str:
        """containerd writes its database so that an older minor version may not read it: its releases are supported upwards only (containerd RELEASES.md)."""
        before = self._saved().get("versions", {}).get("containerd", "")
        after = of_host().installed(["containerd"]).get("containerd", "")
        if before and after and _minor(before) != _minor(after):
            return f"containerd {before} may not read what containerd {after} has written"
        return ""

    def tidy(self, images: Sequence[str]) -> None:
        folders = [bundle_folder(self.config.state_dir, image) for image in images]
        drop_other_bundles(self.config.state_dir, *folders)
        shutil.rmtree(self.folder, ignore_errors=True)

    # -- prepare ---------------------------------------------------------------------------------------------------------

    def _space(self, record: Record, wanted: Membership | None, cancelled: Callable[[], bool]) -> str:
        """Room for the pull: its blobs, and the bundle that is unpacked from them."""
        if os.path.isdir(bundle_folder(self.config.state_dir, record.image)):
            return "the bundle was pulled before"
        size = _size(bundle_folder(self.config.state_dir, record.old_image)) or USUAL_BUNDLE
        check_space({self.config.state_dir: 2 * size})
        return f"{2 * size >> 20} MiB for the bundle"

    def _pull(self, record: Record, wanted: Membership | None, cancelled: Callable[[], bool]) -> str:
        """The new bundle; and the old one, which is the way back, if it is no longer here."""
        assert wanted is not None and wanted.upgrade is not None
        new, old = (bundle_folder(self.config.state_dir, image) for image in (record.image, record.old_image))
        drop_other_bundles(self.config.state_dir, new, old)
        ca = wanted.upgrade.bundle.registry_ca or wanted.registry_ca
        pulled = pull_bundle(self.config.imgpkg, record.image, new, ca, cancelled)
        note = f"{wanted.upgrade.bundle.tag or record.image}{f': {pulled}' if pulled else ' was pulled before'}"
        if not os.path.isdir(old):
            pull_bundle(self.config.imgpkg, record.old_image, old, ca, cancelled)
            note += f"; and {record.old_release}, to go back to"
        return note

    def _verify(self, record: Record, wanted: Membership | None, cancelled: Callable[[], bool]) -> str:
        """Both bundles by all rules, this host's system, no downgrade, and the space for the packages."""
        assert wanted is not None
        manifest = self._verified(record.image, record.release, again=True)
        check_fits(manifest)
        packages = select(manifest, NODE_PACKAGES)
        installer = of_host()
        have = installer.installed([package.name for package in packages])
        refuse_downgrade(installer.name, have, {package.name: package.version for package in packages}, allowed=wanted.allow_downgrade)
        try:
            self._verified(record.old_image, record.old_release, again=True)
        except VerificationFailed as error:
            raise AgentError(
                f"this node is not upgraded: the bundle of {record.old_release}, to which it would go back, does not verify",
                details=error.brief,
                resolution=f"publish {record.old_release} again with a key that this host trusts (ckp dist publish), and request the upgrade again",
                reason="NoWayBack",
                permanent=True,
            ) from None
        self._check_packages_space(manifest, packages, have)
        return f"{len(packages)} packages, signed by {manifest.key}"

    def _verified(self, image: str, release: str, *, again: bool = False) -> BundleManifest:
        """The manifest of a bundle that this process has verified. Raises VerificationFailed, with the bundle deleted, or AgentError (MISSING)."""
        if image in self._manifests and not again:
            return self._manifests[image]
        self._manifests.pop(image, None)
        folder = bundle_folder(self.config.state_dir, image)
        if not os.path.isdir(folder):
            raise AgentError(f"the bundle of {release} is no longer there", resolution="the agent pulls it again", reason=MISSING)
        try:
            manifest = verify_bundle(folder, self.config.keyring, release)
        except VerificationFailed:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._manifests[image] = manifest
        return manifest

    def _check_packages_space(self, manifest: BundleManifest, packages: Sequence[Package], have: dict[str, str]) -> None:
        changed = sum(os.path.getsize(manifest.path(package.file)) for package in packages if have.get(package.name) != package.version)
        check_space({PACKAGES_PLACE: UNPACKED * changed, KUBELET_PLACE: SPARE})

    # -- install ---------------------------------------------------------------------------------------------------------

    def _save(self, record: Record, wanted: Membership | None, cancelled: Callable[[], bool]) -> str:
        """Nothing is changed before both bundles verify (again), there is space (still), and the kubelet's configuration is kept."""
        manifest = self._verified(record.image, record.release, again=True)
        self._verified(record.old_image, record.old_release, again=True)
        packages, installer = select(manifest, NODE_PACKAGES), of_host()
        have = installer.installed([package.name for package in packages])
        self._check_packages_space(manifest, packages, have)
        if record.saved:
            return "kept before"
        files: dict[str, Any] = {}
        for number, path in enumerate(KUBELET_FILES):
            try:
                with open(path, "rb") as stream:
                    content, mode = stream.read(), os.fstat(stream.fileno()).st_mode & 0o7777
            except FileNotFoundError:
                files[path] = None
                continue
            atomic_write(os.path.join(self.folder, str(number)), content, mode=0o600)
            files[path] = {"copy": str(number), "mode": mode}
        atomic_write(self._saved_path, json.dumps({"versions": have, "files": files}, indent=1), mode=0o600)
        return f"{sum(1 for entry in files.values() if entry)} files of the kubelet"

    @property
    def _saved_path(self) -> str:
        return os.path.join(self.folder, "saved.json")

    def _saved(self) -> dict[str, Any]:
        try:
            data = json.loads(read_text(self._saved_path, "{}"))
        except ValueError:
            return {}
        return data if isinstance(data, dict) else {}

    def _install(self, record: Record, wanted: Membership | None, cancelled: Callable[[], bool]) -> str:
        """All packages in one transaction. Containers run on: the package of containerd restarts it (only if it changed), and nothing restarts the kubelet."""
        manifest, installer = self._verified(record.image, record.release), of_host()
        names = [package.name for package in select(manifest, NODE_PACKAGES)]
        install_packages(self.journal, installer, manifest, names, allow_downgrade=True)  # it was refused, or allowed, when it was prepared
        kept = [path for path in installer.changed_configuration(names) if path not in self.journal.saved]
        return f"configuration kept as the owner changed it: {', '.join(kept)}" if kept else ""

    def _configure(self, record: Record, wanted: Membership | None, cancelled: Callable[[], bool]) -> str:
        argv = ["kubeadm", "upgrade", "node"]
        if os.path.isdir(prepare.PATCHES_DIR):
            argv += ["--patches", prepare.PATCHES_DIR]
        ignored = self.ignored()
        if ignored:
            argv.append(f"--ignore-preflight-errors={','.join(ignored)}")
        run(
            argv,
            timeout=KUBEADM_SECONDS,
            what="kubeadm upgrade node",
            resolution="see kubeadm's output; the control plane must answer, and be of this release already",
            reason="KubeadmUpgradeFailed",
            cancelled=cancelled,
        )
        return ""

    def _restart(self, record: Record, wanted: Membership | None, cancelled: Callable[[], bool]) -> str:
        """containerd only if it still runs from a program that was replaced; the kubelet always, since its configuration may have changed."""
        run(["systemctl", "daemon-reload"], timeout=60)
        done = ["kubelet"]
        if not runs_program("containerd", "/usr/bin/containerd"):
            prepare.start_containerd()
            done.insert(0, "containerd")
        run(["systemctl", "restart", "kubelet"], timeout=120, what="restarting the kubelet", resolution="journalctl -u kubelet", reason="KubeletUnhealthy")
        return f"restarted {' and '.join(done)}"

    def _check(self, record: Record, wanted: Membership | None, cancelled: Callable[[], bool]) -> str:
        return self._healthy_at(record.release, cancelled)

    def _healthy_at(self, release: str, cancelled: Callable[[], bool]) -> str:
        version = of_host().installed(["kubelet"]).get("kubelet", "")
        found = run(["kubelet", "--version"], timeout=60, check=False).stdout.strip()
        if found != f"Kubernetes v{version}" or version.partition("-")[0] != release[1:]:
            raise AgentError(f"the kubelet of the package {version or 'none'} says {found or 'nothing'}, and {release} is expected", reason="WrongVersion")
        since: list[float] = []
        pids: list[str] = []

        def missing() -> str:
            pid = main_pid("kubelet")
            problem = "it does not run" if not pid else "" if runs_program("kubelet", "/usr/bin/kubelet") else "an older program runs"
            problem = problem or join.kubelet_health()
            if problem or [pid] != pids:
                since.clear()
                pids[:] = [pid]
            if problem:
                return problem
            since.append(time.monotonic())
            steady = since[-1] - since[0]
            return "" if steady >= STEADY_SECONDS else f"it is healthy since {steady:.0f} s"

        try:
            wait_for(
                missing,
                timeout=CHECK_SECONDS,
                every=1.0,
                what=f"the kubelet is healthy at {release}",
                resolution="journalctl -u kubelet",
                reason="KubeletUnhealthy",
                cancelled=cancelled,
            )
        except AgentError as error:
            if error.reason == "KubeletUnhealthy":
                error.details = f"{join.kubelet_log_tail()}\n{error.details}".strip()
            raise
        return f"kubelet {version}"

    # -- back ------------------------------------------------------------------------------------------------------------

    def _reinstall(self, record: Record, wanted: Membership | None, cancelled: Callable[[], bool]) -> str:
        """The old packages in one transaction. What the new release brought, and this host did not have, is removed."""
        installer = of_host()
        manifest = self._verified(record.old_image, record.old_release)
        before: dict[str, str] = self._saved().get("versions", {})
        packages = [package for package in select(manifest, NODE_PACKAGES) if package.name in before]
        names = [package.name for package in packages]
        installer.replace(manifest, packages)
        holds.hold(self.journal, installer, names)
        added = [name for name in NODE_PACKAGES if name not in before and name in self.journal.packages]
        installer.remove(added)
        self.journal.drop_packages(added)
        return ", ".join(f"{package.name} {package.version}" for package in packages)

    def _restore(self, record: Record, wanted: Membership | None, cancelled: Callable[[], bool]) -> str:
        for path, entry in self._saved().get("files", {}).items():
            if entry is None:
                remove(path)
                continue
            with open(os.path.join(self.folder, entry["copy"]), "rb") as stream:
                atomic_write(path, stream.read(), mode=entry["mode"])
        return ""

    def _check_old(self, record: Record, wanted: Membership | None, cancelled: Callable[[], bool]) -> str:
        return self._healthy_at(record.old_release, cancelled)


def main_pid(unit: str) -> str:
    """The process of a service; "" if it does not run."""
    pid = run(["systemctl", "show", "-p", "MainPID", "--value", unit], timeout=20, check=False).stdout.strip()
    return pid if pid not in ("", "0") else ""


def runs_program(unit: str, path: str) -> bool:
    """Whether a service runs, from the program that is at `path` now. (proc(5): the link of a process whose program was replaced ends in " (deleted)".)"""
    pid = main_pid(unit)
    try:
        return bool(pid) and os.path.samefile(f"{PROC}/{pid}/exe", path)
    except OSError:
        return False


def check_space(needed: dict[str, int]) -> None:
    """AgentError if a file system has less free than what is needed below these folders together, and SPARE."""
    by_device: dict[int, tuple[str, int]] = {}
    for place, size in needed.items():
        there = place
        while not os.path.exists(there):
            there = os.path.dirname(there)
        device = os.stat(there).st_dev
        first, sum_ = by_device.get(device, (there, SPARE))
        by_device[device] = (first, sum_ + size)
    for place, size in by_device.values():
        free = facts.disk(place)[1]
        if free < size:
            raise AgentError(
                f"{free >> 20} MiB are free on the disk of {place}, and the upgrade needs {size >> 20} MiB",
                resolution="free some space there; the agent tries again by itself",
                reason="DiskFull",
            )


def _size(folder: str) -> int:
    """The bytes of the files in a folder; 0 if there is none."""
    try:
        with os.scandir(folder) as entries:
            return sum(entry.stat(follow_symlinks=False).st_size for entry in entries)
    except OSError:
        return 0


def _minor(version: str) -> list[str]:
    return re.findall(r"\d+", version)[:2]
