"""The cgroups of a host: one in every hierarchy of the machine, v1 and v2.

They are the roots of the host's cgroup namespace, so that what a host attaches to its cgroup2 root (Cilium's socket programs) affects only
that host. And they hold exactly the processes of the host, so that a power cut can be simulated by killing them all.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ckp.kits.errors import CkpError, TimedOut

TOP = "ckp-lab"
"""The parent cgroup of all labs of a machine; each lab's cgroup in it has the name of its bridge."""

KEEPER = "keeper"
"""The cgroup of the process that starts systemd-nspawn, and starts it again after a reboot."""

MACHINE = "machine"
"""The cgroup of systemd-nspawn and the host; in the hierarchy that systemd uses, nspawn puts the host into `payload` below it."""

NAMESERVER = "_nameserver"
"""In a host's place, for the lab's nameserver; no host can have this name."""

SESSION = "ckp-session"
"""The cgroup of commands that the lab runs inside a host: below the root of the host's cgroup namespace, so part of the host."""


@dataclass(frozen=True)
class Hierarchy:
    """One mounted cgroup hierarchy of the machine."""

    mount: Path
    unified: bool
    options: frozenset[str]

    @property
    def is_cpuset(self) -> bool:
        """Whether it is a v1 cpuset: a new group has no CPUs until they are set, and no process can enter it before."""
        return not self.unified and "cpuset" in self.options


def parse_hierarchies(mountinfo: str) -> list[Hierarchy]:
    """The hierarchies in a /proc/PID/mountinfo (proc(5)), each once, even if it has several mounts."""
    found: dict[str, Hierarchy] = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        kind, _source, options = after.split(" ", 2)
        # Only mounts of a complete hierarchy: field 4 is the part of it that is mounted.
        if kind in {"cgroup", "cgroup2"} and fields[3] == "/":
            found.setdefault(fields[2], Hierarchy(Path(fields[4]), kind == "cgroup2", frozenset(options.split(","))))
    return list(found.values())


def machine_hierarchies() -> list[Hierarchy]:
    """The hierarchies of this machine. Raises CkpError if there are none."""
    found = parse_hierarchies(Path("/proc/self/mountinfo").read_text())
    if not found:
        raise CkpError("no cgroup hierarchy is mounted on this machine", resolution="mount cgroup2 on /sys/fs/cgroup, as every distribution does")
    return found


@dataclass(frozen=True)
class HostCgroup:
    """The cgroups of one host of one lab, or of its nameserver, in all hierarchies."""

    lab: str
    host: str
    hierarchies: tuple[Hierarchy, ...]

    @property
    def roots(self) -> list[Path]:
        """The host's directory in each hierarchy, existing or not."""
        return [hierarchy.mount / TOP / self.lab / self.host for hierarchy in self.hierarchies]

    def make(self, leaf: str) -> list[Path]:
        """Create the host's cgroup `leaf` in every hierarchy; returns their cgroup.procs files, into which a process writes its pid to enter."""
        files = [self._make(hierarchy, leaf) / "cgroup.procs" for hierarchy in self.hierarchies]
        _forbid_swap(self.roots)
        return files

    def _make(self, hierarchy: Hierarchy, leaf: str) -> Path:
        for _ in range(10):
            current = hierarchy.mount
            try:
                for step in (TOP, self.lab, self.host, leaf):
                    _open_controllers(hierarchy, current)
                    current /= step
                    current.mkdir(exist_ok=True)
                    if hierarchy.is_cpuset:
                        _inherit_cpuset(current)
            except FileNotFoundError:
                continue  # Another lab, on its way down, has just removed the parent that all labs share.
            return current
        raise CkpError(f"cgroup {current} could not be created: something keeps removing its parents")

    def session(self) -> list[Path]:
        """As `make`, for the cgroup of the commands that are run inside the host."""
        files = []
        for hierarchy, root in zip(self.hierarchies, self.roots, strict=True):
            namespace = root / MACHINE
            if (namespace / "payload").is_dir():
                namespace /= "payload"
            inside = namespace / SESSION
            inside.mkdir(exist_ok=True)
            if hierarchy.is_cpuset:
                _inherit_cpuset(inside)
            files.append(inside / "cgroup.procs")
        return files

    def pids(self) -> set[int]:
        """The pids of all processes of the host, without zombies."""
        return {pid for root in self.roots for group in _groups(root) for pid in _pids(group)}

    def memory(self) -> int:
        """Bytes of memory that the host uses, with its page cache; 0 if the machine does not account memory."""
        for root in self.roots:
            for name in ("memory.usage_in_bytes", "memory.current"):
                if (root / name).exists():
                    return int((root / name).read_text())
        return 0

    def kill(self, *, timeout: float) -> None:
        """Kill every process of the host at once, and wait until they are gone.

        Raises:
            TimedOut: some were still alive after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while True:
            for root in self.roots:
                if (root / "cgroup.kill").exists():
                    _write(root / "cgroup.kill", "1")
            left = self.pids()
            if not left:
                return
            # For kernels before 5.14, and for a process that entered only some of the hierarchies (a command killed while it started).
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            if time.monotonic() >= deadline:
                raise TimedOut(
                    f"host {self.host}: {len(left)} processes did not die within {timeout:.0f} s",
                    details="\n".join(f"{pid} {_command(pid)}" for pid in sorted(left)),
                    resolution="see what they wait for (state D in `ps`): most likely a network mount or disk that does not answer",
                )
            time.sleep(0.02)

    def remove(self, *, timeout: float) -> None:
        """Remove the host's cgroups, which must be empty of processes. Raises TimedOut after `timeout` seconds."""
        for root in self.roots:
            remove_tree(root, timeout=timeout)


def remove_empty_levels(lab: str, hierarchies: tuple[Hierarchy, ...]) -> bool:
    """Remove the cgroup of a lab without hosts, and the parent of all labs if it was the last; returns whether it was."""
    for hierarchy in hierarchies:
        for level in (hierarchy.mount / TOP / lab, hierarchy.mount / TOP):
            try:
                level.rmdir()
            except FileNotFoundError:
                continue
            except OSError:  # Another lab's hosts are in it.
                break
    return not any((hierarchy.mount / TOP).exists() for hierarchy in hierarchies)


def known_hosts(lab: str, hierarchies: tuple[Hierarchy, ...]) -> set[str]:
    """The names of all hosts of `lab` that have a cgroup."""
    groups = [hierarchy.mount / TOP / lab for hierarchy in hierarchies]
    return {entry.name for group in groups if group.is_dir() for entry in group.iterdir() if entry.is_dir()} - {NAMESERVER}


def remove_tree(root: Path, *, timeout: float) -> None:
    """Remove a cgroup and those below it. While one is busy, as just after a kill, it is retried. Raises TimedOut after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    for group in reversed(list(_groups(root))):
        while True:
            try:
                group.rmdir()
            except FileNotFoundError:
                pass
            except OSError as error:
                if error.errno == errno.EBUSY and time.monotonic() < deadline:
                    time.sleep(0.02)
                    continue
                raise TimedOut(f"cgroup {group} could not be removed within {timeout:.0f} s: {error.strerror}") from error
            break


def _groups(root: Path) -> Iterator[Path]:
    """`root` and all cgroups below it, each before its children, without groups that are removed in the meantime."""
    try:
        children = [Path(entry.path) for entry in os.scandir(root) if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return
    yield root
    for child in children:
        yield from _groups(child)


def _pids(group: Path) -> list[int]:
    try:
        return [int(line) for line in (group / "cgroup.procs").read_text().split()]
    except OSError:  # ENOENT, or ENODEV for a group that is just being removed; EOPNOTSUPP for a threaded one, whose domain lists them
        return []


def _open_controllers(hierarchy: Hierarchy, group: Path) -> None:
    """Enable all available controllers of a v2 cgroup for its children, as far as possible."""
    if not hierarchy.unified:
        return
    available = (group / "cgroup.controllers").read_text().split()
    enabled = (group / "cgroup.subtree_control").read_text().split()
    for controller in sorted(set(available) - set(enabled)):
        _write(group / "cgroup.subtree_control", f"+{controller}")


def _inherit_cpuset(group: Path) -> None:
    for name in ("cpuset.cpus", "cpuset.mems"):
        if not (group / name).read_text().strip():
            (group / name).write_text((group.parent / name).read_text())


def _forbid_swap(roots: list[Path]) -> None:
    """Keep the host out of the machine's swap: kubelets refuse to run with swap, and the host shows none (rootfs/.../prepare)."""
    for root in roots:
        for name in ("memory.swap.max", "memory.swappiness"):
            if (root / name).exists():
                _write(root / name, "0")


def _write(path: Path, text: str) -> None:
    """Write to a control file; a refusal by the kernel, or a group that was just removed, is not an error."""
    try:
        path.write_text(text)
    except OSError:
        pass


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip() or "(kernel)"
    except OSError:
        return "(gone)"
