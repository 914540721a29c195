"""Facts about this host, for enrolment, inventory and the decisions of the installers. Nothing is changed here."""

from __future__ import annotations

import os
import re
import socket

from ckp.agent.messages import FEATURES, HostFacts
from ckp.hostkit.files import read_text

CAP_SYS_RESOURCE = 24
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def version() -> str:
    """The agent's own version."""
    try:
        from ckp import __version__
    except ImportError:  # an agent that was packed without the project's top package
        return "0"
    return __version__


def host_name() -> str:
    """What the operating system calls this host, for people: any bytes are allowed there, and those that are no text are replaced."""
    return os.fsencode(socket.gethostname()).decode("utf-8", "replace")[:253]


def boot_id() -> str:
    """The kernel's ID of this boot."""
    return read_text("/proc/sys/kernel/random/boot_id").strip()


def os_release() -> dict[str, str]:
    """/etc/os-release as a table."""
    text = read_text("/etc/os-release") or read_text("/usr/lib/os-release")
    found = re.findall(r"^([A-Z_]+)=(.*)$", text, re.M)
    return {name: value.strip().strip("\"'") for name, value in found}


def cgroup_version() -> str:
    """v2 if the unified hierarchy is mounted with controllers (a v2 mount without any, beside v1, does not count)."""
    return "v2" if read_text("/sys/fs/cgroup/cgroup.controllers").strip() else "v1"


def cgroup_driver(cgroup: str) -> str:
    """The kubelet's cgroup driver: systemd on v2; cgroupfs on v1, where systemd may not own the controllers."""
    return "systemd" if cgroup == "v2" else "cgroupfs"


def swap_on() -> bool:
    """Whether any swap is in use."""
    return len(read_text("/proc/swaps").splitlines()) > 1


def memory_bytes() -> int:
    """The host's memory (MemTotal)."""
    match = re.search(r"^MemTotal:\s+(\d+) kB", read_text("/proc/meminfo"), re.M)
    return int(match.group(1)) * 1024 if match else 0


def cpus() -> int:
    """Processors that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except OSError:
        return os.cpu_count() or 1


def disk(path: str = "/var/lib") -> tuple[int, int]:
    """(size, available bytes) of the file system of `path`; zeros if it can't be read."""
    try:
        info = os.statvfs(path)
    except OSError:
        return 0, 0
    return info.f_blocks * info.f_frsize, info.f_bavail * info.f_frsize


PLUGIN_LINKS = re.compile(r"(cilium_|lxc|cni|cali|vxlan\.calico|docker|kube-|flannel|weave|nodelocaldns|tunl)")
"""Links that network plugins make, some of which stay after a node has left its cluster."""


def addresses() -> list[str]:
    """The host's global addresses, without those of links that a cluster's network plugin made."""
    from ckp.hostkit.errors import ProcessFailed
    from ckp.hostkit.processes import run

    try:
        text = run(["ip", "-o", "addr", "show", "scope", "global", "up"], timeout=10).stdout
    except ProcessFailed:
        return []
    found = []
    for line in text.splitlines():
        parts = line.split()
        if len(parts) > 3 and parts[2] in ("inet", "inet6") and not PLUGIN_LINKS.match(parts[1]):
            found.append(parts[3].split("/")[0])
    return found


def address_towards(host: str, port: int = 9, family: int = socket.AF_UNSPEC) -> str:
    """The source address of packets to `host`; "" without a route. No packet is sent."""
    try:
        targets = socket.getaddrinfo(host, port, family=family, type=socket.SOCK_DGRAM)
    except OSError:
        return ""
    for found, kind, _, _, address in targets:
        try:
            with socket.socket(found, kind) as probe:
                probe.connect(address)
                return str(probe.getsockname()[0])
        except OSError:  # no route to this one: the host may have one to the next
            continue
    return ""


def resolves(host: str) -> bool:
    """Whether `host` is an address, or a name that resolves here. Behind a proxy it need not."""
    try:
        return bool(host and socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM))
    except OSError:
        return False


ANYWHERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
"""Addresses of no network (for documentation): only the default route leads to them. IPv4 first, since clusters have IPv4 networks."""


def default_address(hub_host: str = "", current: str = "") -> str:
    """The address by which others reach this host: the source address towards the hub, or else that of the default route; "" if there is none.

    `current`, the address in use, is kept while the host has it, whatever addresses and routes are added; and while no route leads to the hub, since a
    link that is down for a minute must not make a node change its address. It is followed by one of the same family.
    """
    have = addresses()
    if current and (current in have or not have or (resolves(hub_host) and not address_towards(hub_host))):
        return current
    for family, anywhere in ANYWHERE.items():
        if current and (family == socket.AF_INET6) != (":" in current):
            continue
        for target in (hub_host, anywhere):
            found = address_towards(target, family=family) if target else ""
            if found and not found.startswith(("127.", "169.254.", "fe80:")) and found != "::1":
                return found
    return current or next(iter(have), "")


def can_lower_oom_score() -> bool:
    """Whether this host grants CAP_SYS_RESOURCE: it is in the bounding set, and this process can lower its own oom_score_adj (which is set back)."""
    match = re.search(r"^CapBnd:\s+([0-9a-f]+)", read_text("/proc/self/status"), re.M)
    if match is None or not int(match.group(1), 16) >> CAP_SYS_RESOURCE & 1:
        return False
    path = "/proc/self/oom_score_adj"
    try:
        current = int(read_text(path, "0"))
        if current <= -1000:
            return True
        with open(path, "w", encoding="ascii") as stream:
            stream.write(str(current - 1))
        with open(path, "w", encoding="ascii") as stream:
            stream.write(str(current))
    except OSError:
        return False
    return True


def file_system_of(path: str) -> str:
    """The type of the file system of `path` (or of its nearest existing parent), as in mountinfo."""
    real = os.path.realpath(path)
    best, kind = "", ""
    for line in read_text("/proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        point = left.split()[4].replace("\\040", " ")
        inside = point in ("/", real) or real.startswith(point + "/")
        if inside and len(point) >= len(best):
            best, kind = point, right.split()[0]
    return kind


def host_facts(hub_host: str = "", node_ip: str = "") -> HostFacts:
    """The facts that need no installer; ckp.agent.node.inventory adds the rest. `node_ip` is the address of the node that this host is."""
    release = os_release()
    total, free = disk()
    uname = os.uname()
    return HostFacts(
        hostname=host_name(),
        machine_id=read_text("/etc/machine-id").strip(),
        os_id=release.get("ID", ""),
        os_version=release.get("VERSION_ID", ""),
        kernel=uname.release,
        architecture=_ARCHITECTURES.get(uname.machine, uname.machine),
        cpus=cpus(),
        memory_bytes=memory_bytes(),
        disk_bytes=total,
        disk_free_bytes=free,
        addresses=tuple(addresses()),
        default_address=default_address(hub_host, node_ip),
        cgroup=cgroup_version(),
        swap=swap_on(),
        agent_version=version(),
        features=FEATURES,
    )


def host_facts_os() -> tuple[str, str, str]:
    """(ID, VERSION_ID, architecture) as bundles name them; for RHEL the major version only."""
    release = os_release()
    machine = os.uname().machine
    number = release.get("VERSION_ID", "")
    return release.get("ID", ""), number.split(".")[0] if release.get("ID") == "rhel" else number, _ARCHITECTURES.get(machine, machine)
