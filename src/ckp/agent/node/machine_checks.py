"""Checks of the machine itself, beside those of its software and network: file systems, clock, kernel, programs in the way. Nothing is changed.

Each finding says what is so and what to do. One that would make a node fail (or be emptied, or be reset again and again) blocks; others inform.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from typing import Any, Callable, List, Mapping, Optional, Sequence

from ckp.agent.messages import Finding
from ckp.agent.system import facts, prepare
from ckp.hostkit.errors import SET_CLOCK, InvalidInput
from ckp.hostkit.files import read_text
from ckp.hostkit.processes import have, own_command, run

MIB = 1 << 20
NEEDED_MIB = {"/usr": 500, "/opt": 100, "/var/lib/ckp-agent": 512, "/var/lib/containerd": 3072}
"""What a node writes to each place that is a disk of its own (what is on /var/lib's disk is checked with that). Measured of v1.35.1: 295 MB below /usr,
49 MB below /opt (either twice while a file is replaced), a bundle of 122 MB (twice while it is unpacked), images of 300 MB packed, and room for pods."""
NEEDED_INODES = 50_000
WRITABLE = ("/usr", "/etc", "/opt", "/var/lib")
EXECUTABLE = {"/opt": "the network's programs in /opt/cni/bin", "/var/lib/dpkg": "the scripts of packages", "/var/lib/kubelet": "programs in pods' volumes"}
EVICTION = {"/var/lib/kubelet": ("nodefs.available", "10%"), "/var/lib/containerd": ("imagefs.available", "15%")}
"""The kubelet's thresholds (its defaults in pkg/kubelet/apis/config/v1beta1): with less available it evicts pods, and starts none."""
SHADOWING = ("containerd", "containerd-shim-runc-v2", "runc", "ctr", "kubelet", "kubeadm")
"""Programs of a node; one of that name in LOCAL would be run in its place."""
LOCAL = ("/usr/local/sbin", "/usr/local/bin")
OTHER_KUBERNETES = {
    "k3s": ("/usr/local/bin/k3s", "k3s-uninstall.sh or k3s-agent-uninstall.sh"),
    "RKE2": ("/usr/local/bin/rke2", "rke2-uninstall.sh"),
    "k0s": ("/usr/local/bin/k0s", "k0s reset"),
    "MicroK8s": ("/snap/bin/microk8s", "snap remove --purge microk8s"),
}
"""Kubernetes that no package manager of ours knows, by a program of it; and how it is removed."""
CONTROLLERS = ("cpu", "memory", "pids")
OLDEST_KERNEL = (5, 10)
"""Cilium 1.19's (its documentation, "System Requirements")."""
SMALL_MTU, SMALLEST_IPV6_MTU = 1500, 1280


def findings(host_json: str = prepare.HOST_JSON) -> List[Finding]:
    """What these checks find on this host."""
    try:
        kubelet: Mapping[str, Any] = prepare.decide(host_json).kubelet()
    except InvalidInput as error:
        return [Finding(error.brief, error.resolution)]
    found = [*image_based(), *read_only(), *not_executable(), *space(), *eviction(kubelet), *clock(), *kernel(), *cgroups(), *in_the_way(), *selinux()]
    return found + small_mtu()


# -- file systems --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FileSystem:
    """The file system that a place is on, in bytes; `inodes` is -1 where there is no limit."""

    size: int
    available: int
    inodes: int
    device: int
    flags: int = 0


def file_system(path: str) -> Optional[FileSystem]:
    """The file system of `path`, or of its nearest parent that exists; None if it can't be read."""
    place = path
    while not os.path.exists(place) and place != "/":
        place = os.path.dirname(place)
    try:
        info, device = os.statvfs(place), os.stat(place).st_dev
    except OSError:
        return None
    return FileSystem(info.f_blocks * info.f_frsize, info.f_bavail * info.f_frsize, info.f_favail if info.f_files else -1, device, info.f_flag)


def image_based(marker: str = "/run/ostree-booted") -> List[Finding]:
    """A system whose /usr is an image can't have packages installed while it runs."""
    if os.path.exists(marker):
        return [
            Finding(
                "this system is an image (ostree): packages can't be installed into it", "use a host with Debian 12, Ubuntu or RHEL 9 that is not image-based"
            )
        ]
    return []


def read_only(look: Callable[[str], Optional[FileSystem]] = file_system) -> List[Finding]:
    """Places that packages and configuration are written to must be writable."""
    places = [path for path in WRITABLE if (there := look(path)) is not None and there.flags & os.ST_RDONLY]
    return (
        [Finding(f"{', '.join(places)}: mounted read-only, so nothing can be installed", "mount it writable (mount -o remount,rw), or use another host")]
        if places
        else []
    )


def not_executable(look: Callable[[str], Optional[FileSystem]] = file_system) -> List[Finding]:
    """Places where programs must run. (/tmp and /var/tmp may be noexec: nothing is run there. So may /var/lib/containerd: overlays have flags of their own.)"""
    found = []
    for path, what in EXECUTABLE.items():
        there = look(path)
        if there is not None and there.flags & os.ST_NOEXEC and (os.path.exists(path) or path != "/var/lib/dpkg"):
            found.append(Finding(f"{path} is mounted noexec: {what} could not run", f"mount -o remount,exec the file system of {path}, also in /etc/fstab"))
    return found


def space(look: Callable[[str], Optional[FileSystem]] = file_system) -> List[Finding]:
    """Room for programs, bundle and images on each disk but that of /var/lib, which preflight.disk checks; and inodes on each."""
    main = look("/var/lib")
    needed: dict[int, int] = {}
    places: dict[int, List[str]] = {}
    disks: dict[int, FileSystem] = {} if main is None else {main.device: main}
    for path, mib in NEEDED_MIB.items():
        there = look(path)
        if there is None:
            continue
        disks[there.device] = there
        if main is None or there.device != main.device:
            needed[there.device] = needed.get(there.device, 0) + mib
            places.setdefault(there.device, []).append(path)
    found = []
    for device, mib in needed.items():
        if disks[device].available < mib * MIB:
            names = ", ".join(places[device])
            found.append(Finding(f"{names}: {disks[device].available // MIB} MiB free, {mib} MiB are needed", "free some space, or use a larger disk"))
    for device, disk in disks.items():
        if 0 <= disk.inodes < NEEDED_INODES:
            name = places.get(device, ["/var/lib"])[0]
            found.append(
                Finding(f"the file system of {name} has {disk.inodes} inodes free, {NEEDED_INODES} are needed", "remove many small files, or use another disk")
            )
    return found


def eviction(kubelet: Mapping[str, Any], look: Callable[[str], Optional[FileSystem]] = file_system) -> List[Finding]:
    """A disk so full that the kubelet would evict every pod as soon as it runs.

    Args:
        kubelet: this host's fields of KubeletConfiguration. An evictionHard in it replaces all defaults, as the kubelet has it.
    """
    own = kubelet.get("evictionHard")
    found = []
    seen = set()
    for path, (signal, default) in EVICTION.items():
        there = look(path)
        text = str(own.get(signal, "0")) if isinstance(own, dict) else default
        if there is None or not there.size:
            continue
        least = _threshold(text, there.size)
        if there.available < least and there.device not in seen:
            seen.add(there.device)
            found.append(
                Finding(
                    f"the disk of {path} is {100 - 100 * there.available // there.size} % full: the kubelet evicts pods while less than {text} is available",
                    f"free {(least - there.available) // MIB + 1} MiB or more, or use a larger disk",
                )
            )
    return found


def _threshold(text: str, size: int) -> int:
    """A threshold of the kubelet (10%, 1Gi, 100Mi, bytes) in bytes; 0 for what is neither."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(%|Ki|Mi|Gi|Ti|k|M|G|T)?", text.strip())
    if match is None:
        return 0
    number, unit = float(match.group(1)), match.group(2) or ""
    if unit == "%":
        return int(size * number / 100)
    powers = {"": 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
    return int(number * powers[unit])


# -- clock ---------------------------------------------------------------------------------------------------------------


def clock(now: Optional[float] = None, tool: str = "") -> List[Finding]:
    """A clock that is behind the making of this very tool is wrong: no certificate would be valid yet."""
    moment = time.time() if now is None else now
    try:
        made = os.stat(tool or own_command()[-1]).st_mtime
    except OSError:
        return []  # not a packed tool
    if moment >= made - 86400:
        return []
    return [Finding(f"this host's clock says {_day(moment)}, and this tool was made on {_day(made)}", SET_CLOCK)]


def _day(moment: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(moment))


# -- kernel --------------------------------------------------------------------------------------------------------------


def kernel(release: str = "", file_systems: str = "/proc/filesystems", modprobe: Optional[Callable[[str], bool]] = None) -> List[Finding]:
    """The kernel must have overlayfs, for containers, and must not be older than what Cilium needs."""
    found = []
    name = release or os.uname().release
    match = re.match(r"(\d+)\.(\d+)", name)
    if match and (int(match.group(1)), int(match.group(2))) < OLDEST_KERNEL:
        oldest = ".".join(str(part) for part in OLDEST_KERNEL)
        found.append(
            Finding(f"the kernel {name} is older than {oldest}, which the network plugin needs", f"install a kernel of at least {oldest}, or use another host")
        )
    if not re.search(r"^nodev\toverlay$", read_text(file_systems), re.M) and not (modprobe or _loadable)("overlay"):
        found.append(
            Finding("this kernel has no overlay file system, which containers need", "install a kernel with overlay, or its package of further modules")
        )
    return found


def _loadable(module: str) -> bool:
    return have("modprobe") and run(["modprobe", "-n", module], timeout=60, check=False).code == 0


def cgroups(top: str = "/sys/fs/cgroup", table: str = "/proc/cgroups") -> List[Finding]:
    """The controllers without which the kubelet does not start."""
    unified = read_text(f"{top}/cgroup.controllers").split()
    if unified:
        there = set(unified)
    else:
        rows = [line.split() for line in read_text(table).splitlines() if line and not line.startswith("#")]
        there = {row[0] for row in rows if len(row) == 4 and row[3] == "1"}
        if not there:
            return []  # nothing is known: /proc is not as usual
    missing = [name for name in CONTROLLERS if name not in there]
    if not missing:
        return []
    how = "remove cgroup_disable=… from the kernel's command line, or add cgroup_enable=memory"
    return [Finding(f"the cgroup controllers {', '.join(missing)} are off, and the kubelet needs them", how)]


def selinux(path: str = "/sys/fs/selinux/enforce") -> List[Finding]:
    """SELinux that enforces: containers run unconfined by it, which no host of the tests has shown."""
    if read_text(path).strip() != "1":
        return []
    return [
        Finding(
            "SELinux enforces its policy; CKP's containerd has no policy of its own",
            "if pods are denied access: `ausearch -m avc`, or setenforce 0",
            blocking=False,
        )
    ]


# -- programs in the way -------------------------------------------------------------------------------------------------


def in_the_way(local: Sequence[str] = LOCAL, others: Optional[Mapping[str, tuple[str, str]]] = None) -> List[Finding]:
    """Another Kubernetes that was not installed from a package, and programs that would be run in place of a node's own."""
    found = []
    for name, (program, removal) in (OTHER_KUBERNETES if others is None else others).items():
        if os.path.lexists(program):
            found.append(Finding(f"{name} is installed on this host ({program})", f"remove it ({removal}), or use another host"))
    shadows = [path for folder in local for name in SHADOWING if os.access(path := os.path.join(folder, name), os.X_OK)]
    if shadows:
        found.append(Finding(f"{', '.join(shadows)}: would be run in place of the release's own", "remove or rename it; a node's programs are in /usr/bin"))
    return found


# -- network -------------------------------------------------------------------------------------------------------------


def small_mtu(routes: str = "/proc/net/route", links: str = "/sys/class/net") -> List[Finding]:
    """A link with a small MTU under the default route, or under any route where there is none: the network plugin takes its own from it, so this works,
    but is worth knowing."""
    rows = [parts for parts in (line.split() for line in read_text(routes).splitlines()[1:]) if len(parts) > 7]
    default = [parts for parts in rows if parts[1] == parts[7] == "00000000"]
    for name in dict.fromkeys(parts[0] for parts in default or rows if not facts.PLUGIN_LINKS.match(parts[0])):
        text = read_text(f"{links}/{name}/mtu").strip()
        if text.isdigit() and int(text) < SMALL_MTU:
            below = ", too small for IPv6" if int(text) < SMALLEST_IPV6_MTU else ""
            return [
                Finding(
                    f"the link {name} has an MTU of {text}{below}",
                    "pods get 50 bytes less, by themselves; all hosts of a cluster should have the same MTU",
                    blocking=False,
                )
            ]
    return []
