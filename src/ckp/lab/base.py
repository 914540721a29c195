"""The root file system that all hosts share, built once by mmdebstrap: Debian 12, with what a Kubernetes node needs from its distribution."""

from __future__ import annotations

import hashlib
import platform
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from ckp.kits import paths
from ckp.kits.files import building_directory, exclusive, require_free_space, tree_size
from ckp.kits.processes import run

SUITE = "bookworm"

RECIPE = 3
"""To be increased with every change of this module that changes its result."""

PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "kmod", "mount", "util-linux", "procps", "e2fsprogs"),
    *("iproute2", "iptables", "nftables", "ipset", "conntrack", "ebtables", "ethtool", "socat", "iputils-ping"),
    *("ca-certificates", "curl", "openssl", "gnupg", "gpgv", "openssh-server", "python3", "sudo", "xz-utils", "zstd", "less"),
)

ROOTFS = Path(__file__).parent / "rootfs"
"""Files that are copied over those of the packages."""

LEFT_OUT = ("/usr/share/man/*", "/usr/share/locale/*", "/usr/share/doc/*")

ENABLED = {
    "sysinit.target.wants/ckp-lab-prepare.service": "/etc/systemd/system/ckp-lab-prepare.service",
    "multi-user.target.wants/systemd-networkd.service": "/lib/systemd/system/systemd-networkd.service",
    "sockets.target.wants/systemd-networkd.socket": "/lib/systemd/system/systemd-networkd.socket",
    "network-online.target.wants/systemd-networkd-wait-online.service": "/lib/systemd/system/systemd-networkd-wait-online.service",
    "dbus-org.freedesktop.network1.service": "/lib/systemd/system/systemd-networkd.service",
    "multi-user.target.wants/ssh.service": "/lib/systemd/system/ssh.service",
    "sshd.service": "/lib/systemd/system/ssh.service",
    "default.target": "/lib/systemd/system/multi-user.target",
}
"""Links below /etc/systemd/system, as `systemctl enable` makes them."""

MASKED = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer"),
    *("e2scrub_reap.service", "getty.target", "console-getty.service", "modprobe@.service", "systemd-pstore.service"),
    *("systemd-firstboot.service", "systemd-sysusers.service", "systemd-journal-flush.service", "systemd-update-utmp.service"),
    *("systemd-update-utmp-runlevel.service", "systemd-random-seed.service", "systemd-machine-id-commit.service"),
    *("systemd-journald-audit.socket", "systemd-ask-password-console.path", "systemd-ask-password-wall.path"),
    "systemd-network-generator.service",
)
"""Units that a lab host does not need, and that would slow down its boot or run later."""

MASKED_SYSCTLS = ("50-pid-max.conf", "99-protect-links.conf")
"""Debian's files with global sysctls: a booting host must not change them for the whole machine."""

BUILD_TIMEOUT = 1800.0


def key() -> str:
    """The key of the base: equal keys mean equal packages and files, as long as Debian's archive does not change."""
    digest = hashlib.sha256()
    for part in (str(RECIPE), SUITE, platform.machine(), *PACKAGES, *LEFT_OUT, *MASKED, *MASKED_SYSCTLS, *map(str, ENABLED.items())):
        digest.update(part.encode() + b"\0")
    for file in _rootfs_files():
        digest.update(str(file.relative_to(ROOTFS)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def directory() -> Path:
    """The base's directory, existing or not."""
    return paths.cache().absolute() / "lab" / f"base-{key()}"


def ensure(say: Callable[[str], None]) -> Path:
    """The base's directory; builds it (1 to 3 minutes, about 250 MB, from a Debian mirror) unless it exists.

    Raises:
        ProcessFailed: mmdebstrap failed; its output is in the details.
        TimedOut: another process has been building it for half an hour.
    """
    final = directory()
    if final.is_dir():
        return final
    with exclusive(final.parent / "base.lock", what="building the base of the lab's hosts", timeout=BUILD_TIMEOUT):
        if final.is_dir():
            return final
        final.parent.chmod(0o700)  # the base has setuid programs, which other users of this machine must not reach
        require_free_space(final.parent, 2, what="the base of the lab's hosts")
        for leftover in final.parent.glob(".base-*"):  # of a build that was killed: no other is in progress, since this process holds the lock
            run(["rm", "-rf", "--one-file-system", leftover], timeout=300, check=False, what="removing an incomplete base")
        say(f"building the hosts' base file system: Debian 12 ({SUITE}) with {len(PACKAGES)} packages and their dependencies, a minute or two")
        with building_directory(final) as scratch:
            run(
                mmdebstrap(scratch),
                timeout=BUILD_TIMEOUT,
                what="mmdebstrap (the base of the lab's hosts)",
                resolution="it needs a Debian mirror; the details show what failed",
            )
            furnish(scratch)
        say(f"base file system built: {tree_size(final) / 1e6:.0f} MB in {final}")
    return final


def adopt(archive: Path, say: Callable[[str], None]) -> Path:
    """Unpack a base that another machine built (a tar of `directory()`), unless it exists. The caller has verified it.

    Raises:
        ProcessFailed: tar could not unpack it.
        TimedOut: another process has been building it for half an hour.
    """
    final = directory()
    with exclusive(final.parent / "base.lock", what="building the base of the lab's hosts", timeout=BUILD_TIMEOUT):
        if final.is_dir():
            return final
        final.parent.chmod(0o700)
        require_free_space(final.parent, 2, what="the base of the lab's hosts")
        with building_directory(final) as scratch:
            argv: list[str | Path] = ["tar", "--xattrs", "--numeric-owner", "--same-owner", "--preserve-permissions", "-C", scratch, "-xf", archive]
            run(argv, timeout=600, what="unpacking the base of the lab's hosts")
    say(f"base file system unpacked: {tree_size(final) / 1e6:.0f} MB in {final}")
    return final


def mmdebstrap(target: Path, packages: Sequence[str] = PACKAGES) -> list[str | Path]:
    """The command that unpacks Debian into `target`, an empty directory.

    Args:
        packages: what it has beside the smallest Debian, with their dependencies.

    It runs in namespaces that end with this process: if it is killed, so are all child processes, and their mounts are gone.
    """
    left_out = [f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT]
    return [
        *("setpriv", "--pdeathsig", "KILL"),
        *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        "--format=directory",
        f"--include={','.join(packages)}",
        *left_out,
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        SUITE,
        target,
    ]


def furnish(tree: Path) -> None:
    """Copy CKP's files over Debian's, and enable and mask units."""
    for file in _rootfs_files():
        target = tree / file.relative_to(ROOTFS)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.parent.chmod(0o755)  # independent of the umask
        shutil.copyfile(file, target)
        target.chmod(0o644)
    units = tree / "etc/systemd/system"
    for unit in MASKED:
        _link(units / unit, "/dev/null")
    for link, unit in ENABLED.items():
        _link(units / link, unit)
    for name in MASKED_SYSCTLS:
        _link(tree / "etc/sysctl.d" / name, "/dev/null")
    # Each host has its own. Removed, not emptied: systemd takes an empty one for a first boot.
    for name in ("etc/machine-id", "var/lib/dbus/machine-id", "etc/hostname", "etc/resolv.conf", "etc/hosts"):
        (tree / name).unlink(missing_ok=True)
    for key in (tree / "etc/ssh").glob("ssh_host_*"):  # likewise: made by the package, and all hosts would share it
        key.unlink()
    _link(tree / "var/lib/dbus/machine-id", "/etc/machine-id")
    for name in ("var/lib/containerd", "var/lib/kubelet", "var/lib/etcd", "var/lib/ckp"):
        (tree / name).mkdir(parents=True, exist_ok=True)
    # No password login: the lab enters hosts by their namespaces, and SSH takes keys.
    run(["chroot", tree, "passwd", "--lock", "root"], timeout=30, what="locking root's password in the base")


def _link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.parent.chmod(0o755)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def _rootfs_files() -> list[Path]:
    return sorted(path for path in ROOTFS.rglob("*") if path.is_file())
