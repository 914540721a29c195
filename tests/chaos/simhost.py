"""A host that is a folder: what the agent's actions do to it survives the agent, and what was not synced does not survive a power cut.

root/                the host's own disk: files, packages, the node
state/               the agent's state folder: journal, key, certificate
history.jsonl        what happened on the host, for the checker; no part of the host
unsynced.jsonl       what is still only in memory: the contents of before, by path
full, skew, registry, die-after, boot-id     how the harness speaks to the host
"""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from time import time as real_time  # the agent's process skews time.time
from typing import Any

from ckp.agent.journal import Journal
from ckp.agent.messages import AgentTarget, Membership
from ckp.agent.node.settings import Settled
from ckp.hostkit.errors import AgentError, Cancelled, VerificationFailed

PACKAGES = ("containerd", "kubelet")
OWN_FILE, OWN_CONTENT = "etc/sysctl.conf", "the host's own\n"
WRITTEN_BACK_SECONDS = 1.5
"""After this time the kernel has written a change to the disk by itself (30 s on a real host; the harness runs about fifteen times as fast)."""


class Disk:
    """The host's files. Used by the agent's process, and by the harness while there is none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "root"
        self._unsynced = folder / "unsynced.jsonl"
        self._told, self._left = "", -1

    @classmethod
    def install(cls, folder: Path) -> Disk:
        """A new host as its owner left it."""
        disk = cls(folder)
        own = disk.root / OWN_FILE
        own.parent.mkdir(parents=True)
        own.write_text(OWN_CONTENT)
        (disk.root / "packages").mkdir()
        (folder / "state").mkdir(mode=0o700)
        return disk

    # What the harness says.

    def flag(self, name: str) -> str:
        """The content of one of the harness' files; '' if there is none."""
        try:
            return (self.folder / name).read_text().strip()
        except OSError:
            return ""

    def tick(self, pace: float = 0.0) -> None:
        """An instant between two instructions: the agent may end here for good."""
        told = self.flag("die-after")
        if told != self._told:
            self._told, self._left = told, int(told.partition(" ")[0] or -1)
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self._left = max(-1, self._left - 1)
        if pace:
            time.sleep(pace)

    def check_space(self) -> None:
        """OSError, as every write gives it, while the disk is full."""
        if (self.folder / "full").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    # The files.

    def read(self, path: str) -> str | None:
        """A file's content; None if there is none."""
        try:
            return (self.root / path).read_text()
        except OSError:
            return None

    def write(self, path: str, content: str) -> None:
        """As programs write that never heard of fsync."""
        self.check_space()
        self._remember(path)
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.new")
        temporary.write_text(content)
        temporary.replace(target)

    def delete(self, path: str) -> None:
        """Remove a file, if it is there."""
        if self.read(path) is not None:
            self._remember(path)
            (self.root / path).unlink()

    def sync(self) -> None:
        """What is on the host now stays, whatever comes."""
        self._unsynced.unlink(missing_ok=True)

    def power_cut(self) -> list[str]:
        """Go back to what had reached the disk; the paths that lost something. The agent must be dead."""
        try:
            lines = [json.loads(line) for line in self._unsynced.read_text().splitlines()]
        except (OSError, ValueError):
            lines = []
        lost = [line for line in lines if real_time() - line["at"] < WRITTEN_BACK_SECONDS]
        for line in reversed(lost):
            target = self.root / line["path"]
            if line["before"] is None:
                target.unlink(missing_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(line["before"])
        self.sync()
        return sorted({line["path"] for line in lost})

    def _remember(self, path: str) -> None:
        with self._unsynced.open("a") as stream:
            stream.write(json.dumps({"at": real_time(), "path": path, "before": self.read(path)}) + "\n")

    def happened(self, what: str, **more: Any) -> None:
        """Note for the checker."""
        with (self.folder / "history.jsonl").open("a") as stream:
            stream.write(json.dumps({"what": what, **more}) + "\n")

    def history(self) -> list[dict[str, Any]]:
        """What happened, oldest first."""
        try:
            return [json.loads(line) for line in (self.folder / "history.jsonl").read_text().splitlines()]
        except OSError:
            return []

    @property
    def node(self) -> dict[str, str]:
        """The node that this host is: cluster, machine, node_name, provider_id; empty if it has not joined."""
        return dict(json.loads(self.read("node.json") or "{}"))

    def installed(self) -> list[str]:
        """The packages on the host."""
        return sorted(path.name for path in (self.root / "packages").iterdir() if not path.name.startswith("."))


class SimulatedActions:
    """Does to a Disk what HostActions does to a real host, effect by effect, with the same rules of what is recognised as done."""

    def __init__(self, disk: Disk, journal: Journal, pace: float) -> None:
        self.disk, self.journal, self.pace = disk, journal, pace
        self._verified = ""

    def step(self, name: str, member: Membership, cancelled: Callable[[], bool]) -> str:
        self.disk.happened(name, machine=member.machine, provider_id=member.provider_id)
        self._tick()
        note = str(getattr(self, f"_{name}")(member, cancelled) or "")
        self._tick()
        return note

    def _tick(self) -> None:
        self.disk.tick(self.pace)

    def _preflight(self, member: Membership, cancelled: Callable[[], bool]) -> None:
        pass

    def _pull(self, member: Membership, cancelled: Callable[[], bool]) -> None:
        if self.disk.read("bundle") == member.bundle.image:
            return
        for _ in range(100):
            mode = self.disk.flag("registry")
            if cancelled():
                raise Cancelled("the pull was stopped, because something newer is wanted")
            if mode != "slow":
                break
            time.sleep(0.05)
        if mode in ("down", "slow"):
            raise AgentError("pulling the bundle failed: the registry does not answer", reason="PullFailed")
        if mode == "wrong-digest":
            raise AgentError("pulling the bundle failed: the digest is another", reason="PullFailed")
        self.disk.write("bundle", "garbage" if mode == "garbage" else member.bundle.image)

    def _verify(self, member: Membership, cancelled: Callable[[], bool]) -> None:
        bundle = self.disk.read("bundle")
        if bundle is None:
            raise AgentError("the pulled bundle is no longer there", reason="BundleMissing")
        if bundle != member.bundle.image:
            self.disk.delete("bundle")
            raise VerificationFailed("the bundle was changed after it was signed")
        self._verified = bundle

    def _prepare(self, member: Membership, cancelled: Callable[[], bool]) -> None:
        for path in (OWN_FILE, "etc/ckp/kubelet.conf"):
            self.journal.replace_file(str(self.disk.root / path), f"of ckp for {member.machine}\n")
            self._tick()
        self.disk.write("prepared", member.provider_id)

    def _install(self, member: Membership, cancelled: Callable[[], bool]) -> None:
        if self._verified != member.bundle.image:
            raise AgentError("nothing was verified, so nothing is installed", reason="NotVerified")
        before = self.disk.installed()
        self.journal.add_packages(name for name in PACKAGES if name not in before)
        for name in PACKAGES:
            self._tick()
            self.disk.write(f"packages/{name}", member.bundle.image)

    def _fetch(self, member: Membership, cancelled: Callable[[], bool]) -> None:
        pass

    def _join(self, member: Membership, cancelled: Callable[[], bool]) -> str:
        if self.disk.node.get("node_name") == member.node_name:  # as HostActions: the node's certificate knows only the node's name
            self.disk.delete("bootstrap.conf")
            return "kubeadm join had succeeded before"
        if self.disk.installed() != sorted(PACKAGES):
            raise AgentError("kubeadm could not be started", reason="CommandMissing")
        if self.disk.node or self.disk.read("bootstrap.conf"):
            self.disk.delete("node.json")
            self.disk.delete("bootstrap.conf")
        self.journal.add_file(str(self.disk.root / "run/join.yaml"))
        self.disk.write("run/join.yaml", member.files[0].content)
        self._tick()
        self.disk.write("bootstrap.conf", "token")
        self._tick()
        if cancelled():
            raise Cancelled("kubeadm join was stopped, because something newer is wanted")
        facts = {"cluster": member.cluster, "machine": member.machine, "node_name": member.node_name, "provider_id": member.provider_id}
        self.disk.write("node.json", json.dumps(facts))
        self.disk.happened("joined", machine=member.machine, provider_id=member.provider_id)
        self._tick()
        self.disk.delete("bootstrap.conf")
        self.disk.delete("run/join.yaml")
        return ""

    def _check(self, member: Membership, cancelled: Callable[[], bool]) -> None:
        if self.disk.node.get("node_name") != member.node_name:
            raise AgentError("the kubelet is not well", reason="KubeletUnhealthy")

    def reset(self, cancelled: Callable[[], bool]) -> str:
        self.disk.happened("reset")
        for path in ("node.json", "bootstrap.conf"):
            self._tick()
            self.disk.delete(path)
        for name in self.journal.packages:
            self._tick()
            self.disk.delete(f"packages/{name}")
        self.disk.delete("prepared")
        self._tick()
        self.journal.restore_files()
        self._tick()
        self.journal.remove_files()
        self.disk.delete("bundle")
        self._tick()
        self.disk.happened("was reset")
        return ""

    def settle(self, membership: Membership) -> Settled:
        return Settled()

    def unhealthy(self) -> str:
        return "" if self.disk.node else "the kubelet does not answer on its health port"

    def upgrade_agent(self, target: AgentTarget | None) -> str:
        raise AssertionError("no schedule here asks for another agent")
