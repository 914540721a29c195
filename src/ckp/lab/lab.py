"""The lab as a whole: its network, its nameserver and its hosts, and their removal."""

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
from ckp.lab.nameserver import Nameserver
from ckp.lab.network import HostSpec, LabNetwork
from ckp.lab.ssh import LabSsh, SshFolder

__all__ = ["HostSpec", "Lab", "LabHost", "LabNetwork", "LabSsh", "require_root"]

PROGRAMS = ("systemd-nspawn", "mmdebstrap", "nsenter", "unshare", "ip", "iptables", "ssh-keygen")


def require_root(what: str) -> None:
    """Booting and removing lab hosts changes mounts, bridges and namespaces.

    Args:
        what: who needs root, for the error: a command in backticks, or the lab.

    Raises:
        CkpError: the user is not root.
    """
    if os.geteuid() != 0:
        raise CkpError(f"{what} needs root, to boot and remove hosts", resolution="run it with sudo, or as root")


class Lab:
    """Hosts on one bridge, with a nameserver of their own. All state is below `root`, so any process of any checkout can find and remove them."""

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
        """Create the host unless it exists, boot it unless it runs, and wait until it is up; so with bridge and nameserver. Thread-safe.

        Raises:
            InvalidInput: its name or address can't be used in this lab.
            Conflict: the host exists with another address, or another host has its address; or the subnet is in use elsewhere.
            CkpError: the nameserver can't listen at the gateway's address.
            TimedOut: it did not come up.
        """
        self.network.check(spec)
        base_directory = self.ensure_base(lambda _line: None)
        with self._locked("network", "setting up the lab's network"):
            machine.prepare()
            self.network.up()
            self.nameserver.ensure()
            host = self._ensure_record(spec, base_directory)
        host.start()
        return host

    @property
    def nameserver(self) -> Nameserver:
        """The nameserver at the gateway's address, running or not. Raises CkpError if this machine has no cgroups."""
        group = cgroups.HostCgroup(self.network.bridge, cgroups.NAMESERVER, tuple(cgroups.machine_hierarchies()))
        return Nameserver(self.root / "nameserver", self.network.gateway, group)

    def hosts(self) -> list[LabHost]:
        """All hosts of the lab, running or not, by name."""
        directories = sorted(path.parent for path in self._hosts.glob("[!.]*/host.json"))
        return [self._host(directory) for directory in directories]

    def host(self, name: str) -> LabHost:
        """The host with this name. Raises NotFound."""
        directory = self._hosts / name
        if not re.fullmatch(r"[a-z0-9-]+", name) or not (directory / "host.json").exists():
            known = ", ".join(host.name for host in self.hosts()) or "none"
            raise NotFound(f"the lab has no host {name!r}", resolution=f"its hosts are: {known}")
        return self._host(directory)

    def ssh_settings(self, name: str) -> LabSsh:
        """How a host is reached by SSH: as root, by the lab's own key. Raises NotFound."""
        return self.ssh_way(self.host(name).address)

    def ssh_way(self, address: str) -> LabSsh:
        """How a host with this address is reached by SSH once there is one."""
        return LabSsh(address, "root", 22, self._ssh.key, self._ssh.known_hosts)

    def down(self) -> None:
        """Stop and remove everything that a lab with this root and bridge may have left: hosts, nameserver, bridge, cgroups, mounts and firewall rules.

        Works on an incomplete lab, too, and whichever process created it. All waits have timeouts; a host takes less than a second, and its
        disk some seconds.

        Raises:
            TimedOut: a process can't be killed, or another process kept the lock of a host.
        """
        hierarchies = tuple(cgroups.machine_hierarchies())
        lab = self.network.bridge
        # Kill everything first: a process that is booting a host then fails, and releases its lock.
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
            self.nameserver.stop()
            if cgroups.remove_empty_levels(lab, hierarchies):
                machine.restore()
            self.network.down()
            self._unmount()
            if self._hosts.exists():  # incomplete and partly deleted hosts
                run(["rm", "-rf", "--one-file-system", self._hosts], timeout=600, what="deleting the lab's hosts")
            if self._ssh.folder.exists():
                shutil.rmtree(self._ssh.folder)

    # -- how

    @property
    def _ssh(self) -> SshFolder:
        return SshFolder(self.root / "ssh")

    @property
    def _hosts(self) -> Path:
        return self.root / "hosts"

    def _locked(self, name: str, what: str) -> AbstractContextManager[None]:
        return exclusive(self._lock(name), what=what, timeout=LOCK_TIMEOUT)

    def _lock(self, name: str) -> Path:
        # Not in the host's directory, which is deleted: with a new file, a second process could take the lock.
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
            record = HostRecord(spec.name, spec.address, secrets.token_hex(16), str(base_directory))
            keys = furnish(scratch, self.network, record, self._ssh.public_key())
            # Before the host exists: one that is not known could never be reached, but the next start replaces one that is known and does not exist.
            self._ssh.remember(spec.name, spec.address, keys)
        return self._host(directory)

    def _unmount(self) -> None:
        """Unmount what a user may have mounted below the root; hosts mount in namespaces of their own."""
        mountinfo = Path("/proc/self/mountinfo").read_text()
        for point in mounts_below(self.root.resolve(), mountinfo):
            run(["umount", "--lazy", point], timeout=30, check=False, what=f"unmounting {point}")

    def _require_machine(self) -> None:
        require_root("the lab")
        missing = [program for program in PROGRAMS if shutil.which(program) is None]
        if missing:
            raise CkpError(f"the lab needs {', '.join(missing)}", resolution=f"apt-get install {' '.join(APT_PACKAGES)}")
        for path in (self.root, paths.cache()):
            if any(character in str(path) for character in ",:\\"):
                raise InvalidInput(f"the lab can't be in {path}: paths of overlay mounts must not have a comma, colon or backslash")
        self._hosts.mkdir(parents=True, exist_ok=True)
        self._hosts.chmod(0o700)  # like systemd's /var/lib/machines: private files of hosts stay private
        kind = run(["stat", "--file-system", "--format=%T", self.root], timeout=30, what="reading the type of the lab's file system").stdout.strip()
        if kind == "overlayfs":
            raise CkpError(
                f"{self.root} is on an overlay file system (of a container?), on which the hosts' disks can't be",
                resolution="set CKP_STATE to a directory on a real disk, such as a volume",
            )
        # systemd-nspawn derives the hosts' hardware addresses from it.
        identity = Path("/etc/machine-id")
        if not identity.exists() or not identity.read_text().strip():
            run(["systemd-machine-id-setup"], timeout=30, what="giving this machine an id")


def mounts_below(root: Path, mountinfo: str) -> list[str]:
    """Mount points at or below `root` in a /proc/PID/mountinfo, the last mounted first."""
    points = [re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), line.split()[4]) for line in mountinfo.splitlines()]
    return [point for point in reversed(points) if Path(point) == root or root in Path(point).parents]
