"""The lab as a whole: its network, its hosts, and how all of it goes away again."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar

from ckp.kits import paths
from ckp.kits.errors import CkpError, Conflict, InvalidInput, NotFound
from ckp.kits.files import building_directory, exclusive
from ckp.kits.processes import run
from ckp.lab import APT_PACKAGES, base, cgroups, machine
from ckp.lab.hosts import KILL_TIMEOUT, LOCK_TIMEOUT, HostRecord, LabHost, discard, furnish, machine_name
from ckp.lab.network import HostSpec, LabNetwork

__all__ = ["HostSpec", "Lab", "LabHost", "LabNetwork"]

PROGRAMS = ("systemd-nspawn", "mmdebstrap", "nsenter", "unshare", "ip", "iptables")


class Lab:
    """Hosts on one bridge. All that is known of them is below `root`, so any process, of any checkout, finds and removes them."""

    BRIDGE: ClassVar[str] = LabNetwork.bridge
    GATEWAY: ClassVar[str] = LabNetwork.gateway

    def __init__(self, root: Path | None = None, network: LabNetwork | None = None) -> None:
        self.root = (root or paths.state() / "lab").absolute()
        self.network = network or LabNetwork()

    def ensure_base(self, say: Callable[[str], None]) -> Path:
        """The root file system that the hosts share; see ckp.lab.base.ensure."""
        self._require_machine()
        return base.ensure(say)

    def ensure_host(self, spec: HostSpec) -> LabHost:
        """Make the host unless it is there, boot it unless it runs, and wait until it is up. May be called from many threads.

        Raises:
            InvalidInput: its name or address can't be used in this lab.
            Conflict: the host exists with another address, or another host has its address; or the subnet is in use elsewhere.
            TimedOut: it did not come up.
        """
        self.network.check(spec)
        base_directory = self.ensure_base(lambda _line: None)
        with self._locked("network", "setting up the lab's network"):
            machine.prepare()
            self.network.up()
            host = self._ensure_record(spec, base_directory)
        host.start()
        return host

    def hosts(self) -> list[LabHost]:
        """All hosts of the lab, running or not, by name."""
        directories = sorted(path.parent for path in self._hosts.glob("[!.]*/host.json"))
        return [self._host(directory) for directory in directories]

    def host(self, name: str) -> LabHost:
        """The host of that name. Raises NotFound."""
        directory = self._hosts / name
        if not re.fullmatch(r"[a-z0-9-]+", name) or not (directory / "host.json").exists():
            known = ", ".join(host.name for host in self.hosts()) or "none"
            raise NotFound(f"the lab has no host {name!r}", resolution=f"hosts there are: {known}")
        return self._host(directory)

    def down(self) -> None:
        """Stop and remove every host, the bridge, cgroups, mounts and firewall rules: all that a lab with this root and bridge may have

        left, whoever made it, and wherever it was killed. What is not there is fine. A host takes a fraction of a second and its disk some
        seconds; nothing is waited for without an end.

        Raises:
            TimedOut: a process can't be killed, or somebody else was at work on a host all the time.
        """
        hierarchies = tuple(cgroups.machine_hierarchies())
        lab = self.network.bridge
        # Everything dies first: whoever is just booting a host sees it fail, and lets go of its lock.
        names = cgroups.known_hosts(lab, hierarchies) | {path.name for path in self._hosts.glob("[!.]*")}
        groups = {name: cgroups.HostCgroup(lab, name, hierarchies) for name in sorted(names)}
        for group in groups.values():
            group.kill(timeout=KILL_TIMEOUT)
        for name, group in groups.items():
            with self._locked(f"host-{name}", f"removing host {name}"):
                group.kill(timeout=KILL_TIMEOUT)
                group.remove(timeout=KILL_TIMEOUT)
                self.network.unplug(machine_name(self.network, name))
                discard(self._hosts / name)
        with self._locked("network", "taking down the lab's network"):
            if cgroups.remove_empty_levels(lab, hierarchies):
                machine.restore()
            self.network.down()
            self._unmount()
            if self._hosts.exists():  # half-made and half-deleted hosts are left in it
                run(["rm", "-rf", "--one-file-system", self._hosts], timeout=600, what="deleting the lab's hosts")

    # -- how

    @property
    def _hosts(self) -> Path:
        return self.root / "hosts"

    def _locked(self, name: str, what: str) -> AbstractContextManager[None]:
        return exclusive(self._lock(name), what=what, timeout=LOCK_TIMEOUT)

    def _lock(self, name: str) -> Path:
        # Outside of what is deleted: a lock whose file is gone would be held by two.
        return self.root / "locks" / f"{name}.lock"

    def _host(self, directory: Path) -> LabHost:
        record = HostRecord.from_json((directory / "host.json").read_text())
        return LabHost(directory, self._lock(f"host-{record.name}"), self.network, record)

    def _ensure_record(self, spec: HostSpec, base_directory: Path) -> LabHost:
        for other in self.hosts():
            if other.name == spec.name and other.address != spec.address:
                raise Conflict(f"host {spec.name} exists with the address {other.address}, not {spec.address}")
            if other.name != spec.name and other.address == spec.address:
                raise Conflict(f"the address {spec.address} of {spec.name} is taken by host {other.name}")
            if other.name == spec.name:
                return other
        directory = self._hosts / spec.name
        with building_directory(directory) as scratch:
            furnish(scratch, self.network, HostRecord(spec.name, spec.address, secrets.token_hex(16), str(base_directory)))
        return self._host(directory)

    def _unmount(self) -> None:
        """Hosts mount in namespaces of their own; this is for what a person may have mounted below our root."""
        mountinfo = Path("/proc/self/mountinfo").read_text()
        for point in mounts_below(self.root.resolve(), mountinfo):
            run(["umount", "--lazy", point], timeout=30, check=False, what=f"unmounting {point}")

    def _require_machine(self) -> None:
        if os.geteuid() != 0:
            raise CkpError("the lab needs root: it boots whole hosts", resolution="run it with sudo, or as root")
        missing = [program for program in PROGRAMS if shutil.which(program) is None]
        if missing:
            raise CkpError(f"the lab needs {', '.join(missing)}", resolution=f"apt-get install {' '.join(APT_PACKAGES)}")
        for path in (self.root, paths.cache()):
            if any(character in str(path) for character in ",:\\"):
                raise InvalidInput(f"{path} can't hold the lab: overlay mounts take no comma, colon or backslash in a path")
        self._hosts.mkdir(parents=True, exist_ok=True)
        self._hosts.chmod(0o700)  # as systemd keeps /var/lib/machines: what is private inside a host stays so
        kind = run(["stat", "--file-system", "--format=%T", self.root], timeout=30, what="looking at the lab's disk").stdout.strip()
        if kind == "overlayfs":
            raise CkpError(
                f"{self.root} is on an overlay (a container's file system?), and the hosts' disks can't be",
                resolution="point CKP_STATE to a directory on a real disk, such as a volume",
            )
        # systemd-nspawn derives the hosts' hardware addresses from it.
        identity = Path("/etc/machine-id")
        if not identity.exists() or not identity.read_text().strip():
            run(["systemd-machine-id-setup"], timeout=30, what="giving this machine an id")


def mounts_below(root: Path, mountinfo: str) -> list[str]:
    """Mount points at or below `root` in a /proc/PID/mountinfo, the last mounted first."""
    points = [re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), line.split()[4]) for line in mountinfo.splitlines()]
    return [point for point in reversed(points) if Path(point) == root or root in Path(point).parents]
