"""QEMU virtual machines as hosts: each a Debian 12 with Debian's own kernel, so with cgroup v2 whatever the machine has, and a disk of its own.

They are on a bridge of the lab, at whose end they are killed and removed like its hosts (`Lab.down`). The processor is emulated, since a KVM that can be
opened need not work (where virtual machines can't be nested). So all takes ten to twenty times as long as on a lab host. The folder of one, in the place
of a lab host's:

    disk.img             the root file system: ext4, sparse
    vmlinuz initrd.img   Debian's kernel, as the root file system has it in /boot
    pid console.log      QEMU's pid, and what QEMU and the console print
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ckp.kits import paths
from ckp.kits.errors import CkpError
from ckp.kits.files import atomic_write, building_directory, exclusive, require_free_space
from ckp.kits.processes import Daemon, run
from ckp.kits.retry import wait_until
from ckp.lab import base, cgroups, ssh
from ckp.lab.hosts import LOCK_TIMEOUT, HostRecord, identity_files
from ckp.lab.lab import HostSpec, Lab
from ckp.site.ssh import SshHost, SshSettings

PROGRAM = "qemu-system-x86_64"
RECIPE = 1
"""To be increased with every change of `_tree` that changes its result."""
PACKAGES = (*base.PACKAGES, "linux-image-cloud-amd64", "initramfs-tools", "udev")
"""As the lab's hosts have them, and a kernel. Nothing else is taken over from these: what they leave out is not there in containers."""
UNWANTED = ("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer")
"""Units that would begin work of their own beside the test."""

CPU = "Nehalem,+aes,+pclmulqdq"
"""x86-64-v2 and AES. Wider registers would be emulated as well, and slow down whatever chooses them."""
CPUS = 2
KERNEL_OPTIONS = "root=/dev/vda rw console=ttyS0 mitigations=off panic=-1"
"""Mitigations cost an emulated processor most of its time. On a panic it ends (`-no-reboot`), so that a boot fails at once."""
DISK_BYTES = 24 << 30
BUILD_TIMEOUT = 1800.0
DISK_TIMEOUT = 250.0
BOOT_TIMEOUT = 900.0
KILL_TIMEOUT = 30.0

_MAKE_DISK = """
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2,workdir=$3" "$4"
truncate -s "$6" "$5"
exec mke2fs -q -F -t ext4 -d "$4" -E lazy_itable_init=1,discard "$5"
"""


@dataclass(frozen=True)
class VirtualMachine:
    """One that has been booted.

    Args:
        ssh: commands and files go this way; there is no other.
        boot_seconds: from the start of QEMU until systemd had started all units.
    """

    spec: HostSpec
    ssh: SshHost
    boot_seconds: float

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def address(self) -> str:
        return self.spec.address


def boot(lab: Lab, spec: HostSpec, *, memory: int) -> VirtualMachine:
    """Make a virtual machine on the lab's bridge, start it, and wait until it is up. `Lab.down` ends and removes it. Thread-safe.

    Args:
        lab: its network is set up, if need be.
        memory: MiB of it.

    Raises:
        CkpError: QEMU is not installed, or ended.
        TimedOut: the virtual machine was not up in time; the details have the end of its console.
    """
    if shutil.which(PROGRAM) is None:
        raise CkpError(f"{PROGRAM} is not installed", resolution="packaging/setup/setup.sh test")
    lab.network.check(spec)
    tree = _tree(print)
    folder = lab.root / "hosts" / spec.name
    with exclusive(lab.root / "locks" / "network.lock", what="setting up the virtual machines' network", timeout=LOCK_TIMEOUT):  # as the lab itself has it
        lab.network.up()
        lab.nameserver.ensure()
        keys = ssh.SshFolder(lab.root / "ssh")
        public = _furnish(folder, tree, lab, spec, keys.public_key())
        keys.remember(spec.name, spec.address, public)
        _plug(lab, spec)
    group = cgroups.HostCgroup(lab.network.bridge, spec.name, tuple(cgroups.machine_hierarchies()))
    daemon = Daemon(f"virtual machine {spec.name}", folder / "pid", folder / "console.log")
    daemon.start(qemu(lab, spec, folder, memory), cgroups=group.make(cgroups.MACHINE))
    way = lab.ssh_way(spec.address)
    settings = SshSettings(way.host, way.user, way.port, Path(os.devnull), way.identity_file, way.known_hosts_file, connect_timeout=60)
    host = SshHost(spec.name, spec.address, settings)
    return VirtualMachine(spec, host, _wait_up(host, daemon))


def qemu(lab: Lab, spec: HostSpec, folder: Path, memory: int) -> list[str | Path]:
    """The command that is the virtual machine. What it is sent by the virtual machine is all that it may act on: it starts no program and gains no rights."""
    return [
        *("nice", "-n", "10", PROGRAM, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"),
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        *("-accel", "tcg,thread=multi,tb-size=1024", "-cpu", CPU, "-smp", str(CPUS), "-m", f"{memory}M", "-rtc", "base=utc,clock=host"),
        *("-kernel", folder / "vmlinuz", "-initrd", folder / "initrd.img", "-append", KERNEL_OPTIONS),
        # Its disk need only outlive the virtual machine, not this machine.
        *("-drive", f"file={folder}/disk.img,if=virtio,format=raw,cache=unsafe,discard=unmap"),
        *("-netdev", f"tap,id=net,ifname={_tap(lab, spec)},script=no,downscript=no", "-device", f"virtio-net-pci,netdev=net,mac={_mac(spec)}"),
        *("-object", "rng-random,id=random,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=random"),
    ]


# -- its disk --------------------------------------------------------------------------------------------------------------


def _tree(say: Callable[[str], None]) -> Path:
    """Debian 12 with a kernel, unpacked and kept in the cache; made unless it is there (some minutes, from a Debian mirror)."""
    digest = hashlib.sha256("\0".join((str(RECIPE), base.SUITE, *PACKAGES, *base.LEFT_OUT, *UNWANTED)).encode()).hexdigest()
    final = paths.cache().absolute() / "test-vm" / f"tree-{digest[:16]}"
    with exclusive(final.parent / "tree.lock", what="building the root file system of virtual machines", timeout=BUILD_TIMEOUT):
        if final.is_dir():
            return final
        final.parent.chmod(0o700)  # it has setuid programs
        require_free_space(final.parent, 3, what="the root file system of virtual machines")
        say(f"building the virtual machines' root file system: Debian 12 ({base.SUITE}) with its kernel")
        with building_directory(final) as scratch:
            run(base.mmdebstrap(scratch, PACKAGES), timeout=BUILD_TIMEOUT, what="mmdebstrap (the root file system of virtual machines)")
            for name in ("etc/machine-id", "var/lib/dbus/machine-id", "etc/hostname", "etc/resolv.conf", "etc/hosts"):
                (scratch / name).unlink(missing_ok=True)
            for key in (scratch / "etc/ssh").glob("ssh_host_*"):
                key.unlink()
            inside: list[str | Path] = ["chroot", scratch]
            run(
                [*inside, "systemctl", "enable", "systemd-networkd", "systemd-networkd-wait-online", "ssh"],
                timeout=60,
                what="enabling the virtual machines' units",
            )
            run([*inside, "systemctl", "mask", *UNWANTED], timeout=60, what="masking units of virtual machines")
            run([*inside, "passwd", "--lock", "root"], timeout=30, what="locking root's password")
    return final


def _furnish(folder: Path, tree: Path, lab: Lab, spec: HostSpec, authorized: str) -> list[str]:
    """Make the virtual machine's folder; returns the public parts of its SSH host keys."""
    require_free_space(lab.root, 12, what="the disk of a virtual machine")
    record = HostRecord(spec.name, spec.address, secrets.token_hex(16), str(tree))
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.parent.chmod(0o700)  # a disk has private keys
    with building_directory(folder) as scratch:
        for name in ("upper", "work", "root"):
            (scratch / name).mkdir()
        for path, content in identity_files(lab.network, record).items():
            # A container's link is host0, and a machine's is named after its slot.
            atomic_write(scratch / "upper" / path.replace("host0", "wired"), content.replace("Name=host0", "Name=en*"))
        (scratch / "upper/etc/machine-id").chmod(0o444)
        keys = ssh.furnish(scratch / "upper", spec.name, authorized)
        for made in (scratch / "upper", *(path for path in (scratch / "upper").rglob("*") if path.is_dir() and path.name not in {"root", ".ssh"})):
            made.chmod(0o755)  # independent of the umask
        argv: list[str | Path] = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", _MAKE_DISK, "disk"]
        parts: list[str | Path] = [tree, scratch / "upper", scratch / "work", scratch / "root", scratch / "disk.img", str(DISK_BYTES)]
        run([*argv, *parts], timeout=DISK_TIMEOUT, what=f"making the disk of {spec.name}")
        for name, pattern in (("vmlinuz", "vmlinuz-*"), ("initrd.img", "initrd.img-*")):
            [found] = (tree / "boot").glob(pattern)
            shutil.copyfile(found, scratch / name)
        for name in ("upper", "work", "root"):
            shutil.rmtree(scratch / name)
    return keys


# -- its link and its boot -------------------------------------------------------------------------------------------------


def _tap(lab: Lab, spec: HostSpec) -> str:
    """Of its link to the bridge: at most 15 characters, as Linux has it."""
    return f"q{hashlib.sha256(f'{lab.network.bridge} {spec.name}'.encode()).hexdigest()[:12]}"


def _mac(spec: HostSpec) -> str:
    return "02:43:" + ":".join(f"{int(octet):02x}" for octet in spec.address.split("."))


def _plug(lab: Lab, spec: HostSpec) -> None:
    tap = _tap(lab, spec)
    for argv in (["tuntap", "add", "dev", tap, "mode", "tap"], ["link", "set", tap, "master", lab.network.bridge, "up"]):
        run(["ip", *argv], timeout=30, what=f"making the link of {spec.name}")


def _wait_up(host: SshHost, daemon: Daemon) -> float:
    """Seconds until systemd has started all units, and SSH answers."""
    state = ""

    def up() -> bool:
        nonlocal state
        if daemon.pid() is None:
            raise CkpError(f"{daemon.name} ended while it was booting", details=daemon.tail(40))
        try:
            state = host.run(["systemctl", "is-system-running"], timeout=120, check=False).stdout.strip()
        except CkpError as error:
            state = error.brief
        return state in {"running", "degraded"}

    begun = time.monotonic()
    wait_until(up, what=f"{daemon.name} is up", timeout=BOOT_TIMEOUT, every=1, reason=lambda: f"{state}\n{daemon.tail(40)}")
    return time.monotonic() - begun
