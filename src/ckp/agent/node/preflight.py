"""Preflight: may this host become a node? Nothing is changed; all findings are reported at once, each with its remediation."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Iterable

from ckp.agent.journal import Journal
from ckp.agent.messages import Finding
from ckp.agent.node import machine_checks
from ckp.agent.system import facts, firewall, folders, resolver
from ckp.agent.system.installers.base import FOREIGN_RUNTIMES, Installer
from ckp.hostkit.errors import AgentError
from ckp.hostkit.files import read_text
from ckp.hostkit.processes import have

GIB = 1 << 30
MIB = 1 << 20
WORKER_MEMORY_MIB = 900
WORKER_DISK_GIB = 5
KUBELET_CONF = "/etc/kubernetes/kubelet.conf"
PROGRAMS = {"gpgv": "gpgv", "openssl": "openssl", "systemctl": "systemd"}


class Unfit(AgentError):
    """The host does not meet the requirements; nothing was changed."""

    exit_code = 2
    default_reason = "PreflightFailed"


@dataclass
class Findings:
    """What the checks found on this host."""

    items: list[Finding] = field(default_factory=list)

    def add(self, problem: str, remediation: str, *, blocking: bool = True) -> None:
        """Add a finding. One that does not block is for information: the installer handles it."""
        self.items.append(Finding(problem, remediation, blocking))

    @property
    def lines(self) -> list[str]:
        """The blocking findings, each with its remediation."""
        return [f"{item.problem}: {item.remediation}" for item in self.items if item.blocking]

    def raise_if_any(self, brief: str) -> None:
        """Raise Unfit with all blocking findings, if there are any."""
        if self.lines:
            raise Unfit(
                f"{brief}, nothing was changed: {self.lines[0]}" if len(self.lines) == 1 else f"{brief} for {len(self.lines)} reasons, nothing was changed",
                details="" if len(self.lines) == 1 else "\n".join(self.lines),
                resolution="fix this and try again" if len(self.lines) == 1 else "fix these and try again",
            )


def worker(journal: Journal, installer: Installer) -> Findings:
    """The checks for a worker node."""
    found = Findings()
    common(found, journal, installer)
    found.items += machine_checks.findings()
    memory(found, WORKER_MEMORY_MIB)
    disk(found, WORKER_DISK_GIB)
    if not journal.packages:
        ports(found, (10250,))
    names(found)
    address(found)
    if facts.swap_on():
        found.add("swap is on", "the installer will turn it off, and on again when the host leaves", blocking=False)
    for problem, remediation in firewall.findings():
        found.add(problem, remediation, blocking=False)
    if facts.cgroup_version() == "v1":
        found.add(
            "this host has cgroup v1",
            "the installer will configure the kubelet to accept it; Kubernetes will end its support, so move to cgroup v2",
            blocking=False,
        )
    return found


def node() -> Findings:
    """What a person should know about a host that is a node: the findings for free hosts that matter later as well. None blocks."""
    found = Findings()
    names(found)
    return found


def names(found: Findings) -> None:
    """Say it if pods on this host can't resolve names outside of their cluster."""
    if problem := resolver.problem():
        remediation = "names of the cluster resolve; for others name a server there that pods reach, or let that one answer on the host's address"
        found.add(problem, remediation, blocking=False)


def address(found: Findings) -> None:
    """Require an address of IPv4: workload clusters have IPv4 networks only."""
    have_now = facts.addresses()
    if have_now and all(":" in item for item in have_now):
        found.add("this host has no IPv4 address", "give it one by which the other hosts of its cluster reach it")


def common(found: Findings, journal: Journal, installer: Installer) -> None:
    """Root, required programs, and nothing of another cluster or container runtime."""
    if os.geteuid() != 0:
        found.add("this command does not run as root", "run it as root")
    for program, package in PROGRAMS.items():
        if not have(program):
            found.add(f"{program} is missing", f"install the package {package}")
    if not os.path.isdir("/run/systemd/system"):
        found.add("systemd is not this host's init", "use a host that runs systemd")
    if not journal.packages:
        if os.path.exists(KUBELET_CONF):
            found.add(f"this host is already a node ({KUBELET_CONF} exists)", "reset it with the tool that set it up (kubeadm reset), or use another host")
        foreign = installer.installed(FOREIGN_RUNTIMES)
        if foreign:
            names = ", ".join(f"{name} {version}" for name, version in sorted(foreign.items()))
            found.add(f"a container runtime or Kubernetes is installed already ({names})", "remove it, or use another host")
    if not journal.touched:
        for folder in folders.taken():
            found.add(
                f"{folder} is not empty: software that was not installed from a package uses it", "remove its content if it is not needed, or use another host"
            )


def memory(found: Findings, mib: int) -> None:
    """Require `mib` MiB of memory."""
    have_mib = facts.memory_bytes() // MIB
    if have_mib < mib:
        found.add(f"this host has {have_mib} MiB of memory, {mib} MiB are needed", "add memory, or use another host")


def disk(found: Findings, gib: int) -> None:
    """Require `gib` GiB of free space below /var/lib."""
    free = facts.disk("/var/lib")[1]
    if free < gib * GIB:
        found.add(f"/var/lib has {free / GIB:.1f} GiB free, {gib} GiB are needed", "free some space, or use a larger disk")


def listeners(proc: str = "/proc/net") -> set[int]:
    """The TCP ports in use (state LISTEN in /proc/net/tcp)."""
    used = set()
    for name in ("tcp", "tcp6"):
        for line in read_text(f"{proc}/{name}").splitlines()[1:]:
            parts = line.split()
            if len(parts) > 3 and parts[3] == "0A":
                used.add(int(parts[1].rsplit(":", 1)[1], 16))
    return used


def owner_of(port: int) -> str:
    """The program that listens on a port, for a message; "another program" if /proc does not show it."""
    inodes = set()
    for name in ("tcp", "tcp6"):
        for line in read_text(f"/proc/net/{name}").splitlines()[1:]:
            parts = line.split()
            if len(parts) > 9 and parts[3] == "0A" and int(parts[1].rsplit(":", 1)[1], 16) == port:
                inodes.add(f"socket:[{parts[9]}]")
    for pid in (name for name in os.listdir("/proc") if name.isdigit()):
        try:
            for handle in os.listdir(f"/proc/{pid}/fd"):
                if os.readlink(f"/proc/{pid}/fd/{handle}") in inodes:
                    return f"{read_text(f'/proc/{pid}/comm').strip()} (pid {pid})"
        except OSError:
            continue
    return "another program"


def ports(found: Findings, wanted: Iterable[int]) -> None:
    """Require that these ports are free."""
    used = listeners()
    for port in wanted:
        if port in used:
            found.add(f"port {port} is taken by {owner_of(port)}", "stop it, or configure it to use another port")
