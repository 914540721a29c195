"""A node that is upgraded, effect by effect: what survives a kill, what only a sync makes survive a power cut, and what can go wrong on it.

It implements ckp.agent.node.upgrade.UpgradeSteps, and checks at each effect the rules that must hold there.
"""

from __future__ import annotations

import copy
import errno
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ckp.agent.journal import Journal
from ckp.agent.messages import Membership
from ckp.agent.node.upgrade import MISSING, UPGRADE, Record
from ckp.hostkit.errors import AgentError, Cancelled, VerificationFailed

PACKAGES = ("containerd", "kubernetes-cni", "kubelet", "kubeadm")


@dataclass
class Files:
    """What is on the node's disk."""

    packages: dict[str, str]
    """Releases, by package."""
    config: str
    """The release whose kubeadm wrote the kubelet's configuration."""
    bundles: set[str] = field(default_factory=set)
    saved: dict[str, str] | None = None
    """What `save` kept: the packages, and the configuration as `config`."""


@dataclass
class NodeSimulator:
    """A node of `release`, with its bundle `image`.

    Args:
        tick: called between any two effects; it may end the agent by an exception.
    """

    release: str
    image: str
    tick: Callable[[], None] = lambda: None
    files: Files = field(init=False)
    on_disk: Files = field(init=False)
    """What a power cut leaves."""
    kubelet: str = field(init=False)
    """The release that the running kubelet is of; "" if it does not run."""
    ran: list[str] = field(default_factory=list)
    restarts: int = 0
    # What can be wrong:
    registry_away: bool = False
    api_away: bool = False
    full: bool = False
    bad_bundles: set[str] = field(default_factory=set)
    """Images that do not verify."""
    bad_package: tuple[str, str] = ("", "")
    """Release and name of a package that dpkg can't install."""
    bad_kubelets: set[str] = field(default_factory=set)
    """Releases whose kubelet ends at once."""
    crashes_at: str = ""
    """The step at which the host itself ends, each time."""
    one_way: bool = False
    """Whether the old packages must not be put back over the new ones."""

    def __post_init__(self) -> None:
        self.files = Files(dict.fromkeys(PACKAGES, self.release), self.release, {self.image})
        self.kubelet = self.release
        self.sync()

    def sync(self) -> None:
        """All that was written survives a power cut."""
        self.on_disk = copy.deepcopy(self.files)

    def power_cut(self) -> None:
        """What was not synced is lost, and the host starts again: with the kubelet that is installed."""
        self.files = copy.deepcopy(self.on_disk)
        self._start_kubelet()

    def _start_kubelet(self) -> None:
        release = self.files.packages["kubelet"]
        self.kubelet = "" if release in self.bad_kubelets else release
        self.restarts += 1

    def wholly(self) -> str:
        """The one release that packages, configuration and running kubelet are of; "" if they are not of one."""
        found = {*self.files.packages.values(), self.files.config, self.kubelet}
        return found.pop() if len(found) == 1 else ""

    def write(self) -> None:
        """Before each write."""
        self.tick()
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@dataclass
class SimulatedUpgrade:
    """The steps on a NodeSimulator, for one process of the agent."""

    node: NodeSimulator
    journal: Journal
    verified: set[str] = field(default_factory=set)

    def run(self, step: str, record: Record, wanted: Membership | None, cancelled: Callable[[], bool]) -> str:
        node = self.node
        node.ran.append(step)
        written = json.loads(Path(self.journal.path).read_text())["notes"][UPGRADE]
        assert (written["step"], written["request"]) == (step, record.request), "the journal says so before the host is changed"
        if step == node.crashes_at:
            node.tick()
            raise KeyboardInterrupt  # no `except Exception` sees it, as no program sees the end of its host
        node.tick()
        note = getattr(self, f"_{step.replace('-', '_')}")(record, wanted, cancelled)
        node.tick()
        return str(note or "")

    def no_way_back(self, record: Record) -> str:
        return "containerd 1.7 may not read what containerd 2.1 has written" if self.node.one_way else ""

    def tidy(self, images: Sequence[str]) -> None:
        self.node.tick()
        self.node.files.bundles &= set(images)
        self.node.files.saved = None

    def _verify_again(self, image: str) -> None:
        if image not in self.node.files.bundles:
            raise AgentError("the bundle is no longer there", reason=MISSING)
        if image in self.node.bad_bundles:
            raise VerificationFailed("the bundle was changed after it was signed")
        self.verified.add(image)

    # prepare

    def _space(self, record: Record, wanted: Membership | None, cancelled: Callable[[], bool]) -> None:
        if self.node.full:
            raise AgentError("12 MiB are free, and the upgrade needs 900 MiB", reason="DiskFull")

    def _pull(self, record: Record, wanted: Membership | None, cancelled: Callable[[], bool]) -> None:
        assert wanted is not None and wanted.upgrade is not None and wanted.upgrade.bundle.image == record.image
        self.node.files.bundles &= {record.image, record.old_image}
        for image in (record.image, record.old_image):
            if image not in self.node.files.bundles:
                if cancelled():
                    raise Cancelled("the pull was cancelled")
                if self.node.registry_away:
                    raise AgentError("the registry does not answer", reason="PullFailed")
                self.node.write()
                self.node.files.bundles.add(image)

    def _verify(self, record: Record, wanted: Membership | None, cancelled: Callable[[], bool]) -> None:
        self._verify_again(record.image)
        self._verify_again(record.old_image)

    # install

    def _save(self, record: Record, wanted: Membership | None, cancelled: Callable[[], bool]) -> None:
        self._verify(record, wanted, cancelled)
        if not record.saved:
            self.node.write()
            self.node.files.saved = {**self.node.files.packages, "config": self.node.files.config}

    def _put(self, image: str, release: str, names: Sequence[str]) -> None:
        if image not in self.verified:  # another process had verified it
            self._verify_again(image)
        for name in names:
            self.node.write()
            if self.node.bad_package == (release, name):
                raise AgentError(f"dpkg: error processing package {name}", reason="InstallFailed")
            self.node.files.packages[name] = release

    def _install(self, record: Record, wanted: Membership | None, cancelled: Callable[[], bool]) -> str:
        assert self.node.files.saved is not None, "nothing is changed before what is there is kept"
        assert {record.image, record.old_image} <= self.node.files.bundles, "nothing is changed without a way back"
        self._put(record.image, record.release, PACKAGES)
        return "configuration kept as the owner changed it: /etc/default/kubelet"

    def _configure(self, record: Record, wanted: Membership | None, cancelled: Callable[[], bool]) -> None:
        assert set(self.node.files.packages.values()) == {record.release}
        if self.node.api_away:
            raise AgentError("kubeadm upgrade node failed: the API server does not answer", reason="KubeadmUpgradeFailed")
        self.node.write()
        self.node.files.config = record.release

    def _restart(self, record: Record, wanted: Membership | None, cancelled: Callable[[], bool]) -> None:
        assert self.node.files.config == record.release, "a kubelet is not started with the configuration of another release"
        self.node._start_kubelet()

    def _check(self, record: Record, wanted: Membership | None, cancelled: Callable[[], bool]) -> None:
        if self.node.kubelet != record.release:
            raise AgentError("timed out after 180 s waiting until the kubelet is healthy", reason="KubeletUnhealthy")

    # back

    def _reinstall(self, record: Record, wanted: Membership | None, cancelled: Callable[[], bool]) -> None:
        self._put(record.old_image, record.old_release, PACKAGES)

    def _restore(self, record: Record, wanted: Membership | None, cancelled: Callable[[], bool]) -> None:
        assert self.node.files.saved is not None
        self.node.write()
        self.node.files.config = self.node.files.saved["config"]

    def _restart_old(self, record: Record, wanted: Membership | None, cancelled: Callable[[], bool]) -> None:
        self.node._start_kubelet()

    def _check_old(self, record: Record, wanted: Membership | None, cancelled: Callable[[], bool]) -> None:
        if self.node.kubelet != record.old_release:
            raise AgentError("the kubelet is not healthy", reason="KubeletUnhealthy")
