"""The root file system that all hosts share: Debian 12 and what a Kubernetes node needs from its distribution, made once by mmdebstrap."""

from __future__ import annotations

import hashlib
import platform
import shutil
from collections.abc import Callable
from pathlib import Path

from ckp.kits import paths
from ckp.kits.files import building_directory, exclusive, require_free_space, tree_size
from ckp.kits.processes import run

SUITE = "bookworm"

RECIPE = 1
"""Counts up with every change of this module that changes what it makes."""

PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "kmod", "mount", "util-linux", "procps", "e2fsprogs"),
    *("iproute2", "iptables", "nftables", "ipset", "conntrack", "ebtables", "ethtool", "socat", "iputils-ping"),
    *("ca-certificates", "curl", "openssl", "gpgv", "python3", "xz-utils", "zstd", "less"),
)

ROOTFS = Path(__file__).parent / "rootfs"
"""Files that are laid over the packages' own."""

LEFT_OUT = ("/usr/share/man/*", "/usr/share/locale/*", "/usr/share/doc/*")

ENABLED = {
    "sysinit.target.wants/ckp-lab-prepare.service": "/etc/systemd/system/ckp-lab-prepare.service",
    "multi-user.target.wants/systemd-networkd.service": "/lib/systemd/system/systemd-networkd.service",
    "sockets.target.wants/systemd-networkd.socket": "/lib/systemd/system/systemd-networkd.socket",
    "network-online.target.wants/systemd-networkd-wait-online.service": "/lib/systemd/system/systemd-networkd-wait-online.service",
    "dbus-org.freedesktop.network1.service": "/lib/systemd/system/systemd-networkd.service",
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
"""Units that have nothing to do on a lab host, and would cost it time at boot or wake it up later."""

MASKED_SYSCTLS = ("50-pid-max.conf", "99-protect-links.conf")
"""Kernel settings of Debian that are not per network namespace: a host that boots must not change them for the whole machine."""

BUILD_TIMEOUT = 1800.0


def key() -> str:
    """Names one base: equal keys mean equal packages and files (as far as Debian's archive stands still)."""
    digest = hashlib.sha256()
    for part in (str(RECIPE), SUITE, platform.machine(), *PACKAGES, *LEFT_OUT, *MASKED, *MASKED_SYSCTLS, *map(str, ENABLED.items())):
        digest.update(part.encode() + b"\0")
    for file in _rootfs_files():
        digest.update(str(file.relative_to(ROOTFS)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def directory() -> Path:
    """Where the base of this recipe is, or will be."""
    return paths.cache().absolute() / "lab" / f"base-{key()}"


def ensure(say: Callable[[str], None]) -> Path:
    """The base's directory; makes it (1 to 3 minutes, some 250 MB, from a Debian mirror) unless it is there.

    Raises:
        ProcessFailed: mmdebstrap failed, its own words in the details.
        TimedOut: another process has been making it for half an hour.
    """
    final = directory()
    if final.is_dir():
        return final
    with exclusive(final.parent / "base.lock", what="making the base of the lab's hosts", timeout=BUILD_TIMEOUT):
        if final.is_dir():
            return final
        final.parent.chmod(0o700)  # the base has setuid programs, which users of this machine shall not find here
        require_free_space(final.parent, 2, what="the base of the lab's hosts")
        for leftover in final.parent.glob(".base-*"):  # of a build that was killed; we hold the lock, so nobody is at it
            run(["rm", "-rf", "--one-file-system", leftover], timeout=300, check=False, what="removing a half-made base")
        say(f"making the hosts' base file system: Debian 12 ({SUITE}) with {len(PACKAGES)} packages and what they need, a minute or two")
        with building_directory(final) as scratch:
            run(
                mmdebstrap(scratch),
                timeout=BUILD_TIMEOUT,
                what="mmdebstrap (the base of the lab's hosts)",
                resolution="it needs a Debian mirror; see the details for what it could not do",
            )
            furnish(scratch)
        say(f"base file system made: {tree_size(final) / 1e6:.0f} MB in {final}")
    return final


def adopt(archive: Path, say: Callable[[str], None]) -> Path:
    """Unpack a base that another machine made (a tar of `directory()`), unless there is one. The caller has verified it.

    Raises:
        ProcessFailed: tar could not unpack it.
        TimedOut: another process has been making it for half an hour.
    """
    final = directory()
    with exclusive(final.parent / "base.lock", what="making the base of the lab's hosts", timeout=BUILD_TIMEOUT):
        if final.is_dir():
            return final
        final.parent.chmod(0o700)
        require_free_space(final.parent, 2, what="the base of the lab's hosts")
        with building_directory(final) as scratch:
            argv: list[str | Path] = ["tar", "--xattrs", "--numeric-owner", "--same-owner", "--preserve-permissions", "-C", scratch, "-xf", archive]
            run(argv, timeout=600, what="unpacking the base of the lab's hosts")
    say(f"base file system unpacked: {tree_size(final) / 1e6:.0f} MB in {final}")
    return final


def mmdebstrap(target: Path) -> list[str | Path]:
    """The command that unpacks Debian into `target`, an empty directory.

    It runs in namespaces that end with us: if we are killed, so is all that it has started, and what it has mounted is gone.
    """
    left_out = [f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT]
    return [
        *("setpriv", "--pdeathsig", "KILL"),
        *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        "--format=directory",
        f"--include={','.join(PACKAGES)}",
        *left_out,
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        SUITE,
        target,
    ]


def furnish(tree: Path) -> None:
    """Lay our files over Debian's, and decide which units start."""
    for file in _rootfs_files():
        target = tree / file.relative_to(ROOTFS)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.parent.chmod(0o755)  # whatever our umask
        shutil.copyfile(file, target)
        target.chmod(0o644)
    units = tree / "etc/systemd/system"
    for unit in MASKED:
        _link(units / unit, "/dev/null")
    for link, unit in ENABLED.items():
        _link(units / link, unit)
    for name in MASKED_SYSCTLS:
        _link(tree / "etc/sysctl.d" / name, "/dev/null")
    # Each host brings its own: an empty file would be taken for a first boot.
    for name in ("etc/machine-id", "var/lib/dbus/machine-id", "etc/hostname", "etc/resolv.conf", "etc/hosts"):
        (tree / name).unlink(missing_ok=True)
    _link(tree / "var/lib/dbus/machine-id", "/etc/machine-id")
    for name in ("var/lib/containerd", "var/lib/kubelet", "var/lib/etcd", "var/lib/ckp"):
        (tree / name).mkdir(parents=True, exist_ok=True)
    # There is nobody to type a password, and nothing that asks for one.
    run(["chroot", tree, "passwd", "--lock", "root"], timeout=30, what="locking root's password in the base")


def _link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.parent.chmod(0o755)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def _rootfs_files() -> list[Path]:
    return sorted(path for path in ROOTFS.rglob("*") if path.is_file())
