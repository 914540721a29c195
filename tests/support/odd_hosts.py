"""Lab hosts that are unlike a fresh installation in several independent ways each, and what runs on them in the end-to-end tests."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckp.kits.processes import run
from ckp.lab import cgroups
from ckp.lab.hosts import machine_name
from ckp.lab.lab import HostSpec, LabHost
from ckp.lab.network import LabNetwork
from ckp.site.inventory import SiteHost

NETWORK = "/etc/systemd/network/10-host0.network"
DHCP_SERVER = HostSpec("dhcp", "10.88.0.70")
WIRE, SYSTEM, NAMES = HostSpec("odd-wire", "10.88.0.61"), HostSpec("odd-system", "10.88.0.62"), HostSpec("odd-names", "10.88.0.63")
OTHER_LEASE = "10.88.0.68"
LEASE_SECONDS = 40
SMALL_MTU = 1400
NOBODY = "10.88.0.250"
"""An address of the hosts' network that nobody has: its packets end nowhere."""
AGENT_STATE = "/var/lib/ckp-agent"
UMASK_OF_SERVICES = "/etc/systemd/system/service.d/umask.conf"


@dataclass(frozen=True)
class OddHosts:
    """As the hosts of a site, so that ckp.site.enrol brings them in as all others."""

    management: SiteHost
    workers: Sequence[SiteHost]

    @property
    def masters(self) -> Sequence[SiteHost]:
        return [self.management]


# -- the wire ------------------------------------------------------------------------------------------------------------


def mac(machine: LabHost) -> str:
    """The hardware address of its link."""
    return machine.pull("/sys/class/net/host0/address").decode().strip()


def serve_leases(server: LabHost, leases: dict[str, str]) -> None:
    """Make a lab host a DHCP server: hardware address -> address. It gives an MTU as well, as clouds do.

    And a router: Cilium takes a veth, which is what a lab host has for a network card, only where a default route leads over it.
    """
    static = "".join(f"\n[DHCPServerStaticLease]\nMACAddress={link}\nAddress={address}\n" for link, address in leases.items())
    text = f"""[Match]
Name=host0

[Network]
Address={server.address}/24
LinkLocalAddressing=no
IPv6AcceptRA=no
DHCPServer=yes

[DHCPServer]
PoolOffset=60
PoolSize=10
DefaultLeaseTimeSec={LEASE_SECONDS}
MaxLeaseTimeSec={LEASE_SECONDS}
EmitDNS=no
EmitNTP=no
EmitRouter=yes
Router=10.88.0.1
EmitTimezone=no
SendOption=26:uint16:{SMALL_MTU}
{static}"""
    server.push(text.encode(), NETWORK)
    server.run(["systemctl", "restart", "systemd-networkd"], timeout=60)


def take_leases(machine: LabHost) -> None:
    """Give it its address and its default route by DHCP, the server's MTU, and an address of IPv6 beside."""
    text = f"""[Match]
Name=host0

[Network]
DHCP=ipv4
LinkLocalAddressing=ipv6
IPv6AcceptRA=no
Address=fd00:88::{machine.address.rpartition(".")[2]}/64

[DHCPv4]
ClientIdentifier=mac
UseMTU=yes
UseDNS=no
"""
    machine.push(text.encode(), NETWORK)
    begin_network(machine)


def begin_network(machine: LabHost) -> None:
    """Restart systemd-networkd with its changed files, and with no address left of before.

    Not `networkctl reload`: where the leased address is the one that the link has had, it can remove the address right after it has added it, and then
    holds a lease of an address that the link does not have (seen with systemd 252).
    """
    machine.run(["systemctl", "stop", "systemd-networkd.socket", "systemd-networkd"], timeout=60)
    machine.run(["ip", "addr", "flush", "dev", "host0"], timeout=20)
    machine.run(["systemctl", "start", "systemd-networkd"], timeout=60)


def port(network: LabNetwork, machine: LabHost) -> str:
    """The machine's end of a host's cable."""
    listing = json.loads(run(["ip", "-json", "link", "show", f"vb-{machine_name(network, machine.name)}"], timeout=20).stdout)
    return str(listing[0]["ifname"])


def limit(network: LabNetwork, machine: LabHost, rate: str) -> None:
    """So much a second towards the host (`1mbit`), what queues waits; "" for no limit."""
    link = port(network, machine)
    run(["tc", "qdisc", "del", "dev", link, "root"], timeout=20, check=False)
    if rate:
        run(["tc", "qdisc", "add", "dev", link, "root", "tbf", "rate", rate, "burst", "64kbit", "latency", "600ms"], timeout=20)


# -- disks ---------------------------------------------------------------------------------------------------------------


def throttle_disk(machine: LabHost, network: LabNetwork, bytes_a_second: int) -> bool:
    """Limit reads and synchronous writes of all of a host's processes to so many bytes a second (0: no limit); False if the kernel has no such controller.

    cgroup v1 (Documentation/admin-guide/cgroup-v1/blkio-controller.rst): a limit is of one cgroup and not of those below it, and does not count what the
    kernel writes back later.
    """
    disk = Path("/sys/dev/block") / _device(machine.directory)
    device = (disk / ".." / "dev" if (disk / "partition").exists() else disk / "dev").read_text().strip()
    found = False
    group = cgroups.HostCgroup(network.bridge, machine.name, tuple(cgroups.machine_hierarchies()))
    for root in group.roots:
        for name in ("blkio.throttle.read_bps_device", "blkio.throttle.write_bps_device"):
            for file in root.rglob(name):
                file.write_text(f"{device} {bytes_a_second}")
                found = True
    return found


def _device(path: Path) -> str:
    number = path.stat().st_dev
    return f"{number >> 8 & 0xFFF}:{number & 0xFF}"


BALLAST = f"""
until ls {AGENT_STATE}/bundles/*.blobs/*.part >/dev/null 2>&1; do sleep 0.02; done
dd if=/dev/zero of={AGENT_STATE}/ballast bs=1M 2>/dev/null
truncate -s -8M {AGENT_STATE}/ballast
"""
"""As soon as a bundle is being pulled, another program takes all of the disk and leaves 8 MiB: too little for the bundle, enough for the journal."""


def put_agent_on_small_disk(machine: LabHost) -> None:
    """700 MiB for the agent's journal and its bundles, as a disk of their own; enough for a node, if nobody else fills it."""
    machine.run(["systemctl", "stop", "ckp-agent"], timeout=60)
    script = f"""
    mount -t tmpfs -o size=700m tmpfs /mnt
    cp -a {AGENT_STATE}/. /mnt/
    mount --bind /mnt {AGENT_STATE}
    umount /mnt
    chmod 700 {AGENT_STATE}
    """
    machine.run(["sh", "-euc", script], timeout=60)
    machine.run(["systemctl", "start", "ckp-agent"], timeout=60)


def fill_disk_of_var_lib(machine: LabHost) -> None:
    """/var/lib with 2 GiB of room (less would be another finding, of eviction), and what is in it."""
    machine.run(["sh", "-euc", "mount -t tmpfs -o size=2g tmpfs /mnt; cp -ax /var/lib/. /mnt/; mount --bind /mnt /var/lib; umount /mnt"], timeout=60)


def empty_disk_of_var_lib(machine: LabHost) -> None:
    """As before `fill_disk_of_var_lib`."""
    machine.run(["umount", "-l", "/var/lib"], timeout=60)


# -- software ------------------------------------------------------------------------------------------------------------


def package_of_others(machine: LabHost, name: str) -> None:
    """Install a package of this name, with nothing in it."""
    control = f"Package: {name}\nVersion: 1.7.0-1\nArchitecture: all\nMaintainer: Somebody Else <else@site.example>\nDescription: not ours\n"
    machine.push(control.encode(), "/tmp/odd/DEBIAN/control")
    machine.run(["sh", "-euc", "dpkg-deb --build /tmp/odd /tmp/odd.deb && dpkg -i /tmp/odd.deb && rm -r /tmp/odd /tmp/odd.deb"], timeout=60)


HOLD_LOCKS = """
import fcntl, pathlib, time
pathlib.Path("/proc/self/comm").write_text("unattended-upgr")
held = [open(f"/var/lib/dpkg/{name}", "w") for name in ("lock-frontend", "lock")]
for file in held:
    fcntl.lockf(file, fcntl.LOCK_EX)
pathlib.Path("/run/dpkg-is-locked").touch()
deadline = time.monotonic() + 110
while pathlib.Path("/run/dpkg-is-locked").exists() and time.monotonic() < deadline:
    time.sleep(0.2)
"""
"""dpkg's locks as unattended-upgrades has them, until the file is removed."""


def in_background(machine: LabHost, unit: str, argv: Sequence[str]) -> None:
    """Run a command as a service of its own."""
    machine.run(["systemd-run", "--quiet", "--collect", f"--unit={unit}", *argv], timeout=30)


def harden(machine: LabHost) -> None:
    """As a company has its servers: umask, languages and a proxy for all services, noexec, no login of root, another time zone."""
    files = {
        UMASK_OF_SERVICES: "[Service]\nUMask=0077\n",
        "/etc/systemd/system.conf.d/site.conf": (
            f'[Manager]\nDefaultEnvironment="HTTPS_PROXY=http://{NOBODY}:3128" "HTTP_PROXY=http://{NOBODY}:3128" '
            f'"NO_PROXY=10.88.0.101,registry.ckp.lab" "LANG=tr_TR.UTF-8" "LANGUAGE=tr:de" "TZ=<+14>-14"\n'
        ),
        "/etc/systemd/system/ckp-agent.service.d/path.conf": "[Service]\nEnvironment=PATH=/usr/bin:/bin SHELL=/bin/false\n",
        "/etc/environment": f"https_proxy=http://{NOBODY}:3128\nHTTPS_PROXY=http://{NOBODY}:3128\nLANG=tr_TR.UTF-8\n",
        "/etc/profile.d/umask.sh": "umask 077\n",
    }
    for path, text in files.items():
        machine.push(text.encode(), path)
    script = r"""
    sed -i 's|^\(root:.*:\)[^:]*$|\1/bin/false|' /etc/passwd
    for place in /tmp /var/tmp /dev/shm; do mountpoint -q $place || mount --bind $place $place; mount -o remount,bind,noexec,nosuid,nodev $place; done
    systemctl daemon-reload
    """
    machine.run(["sh", "-euc", script], timeout=60)


HARDENED = ("ipv4.ip_forward = 0", "ipv4.conf.all.rp_filter = 1", "ipv4.conf.default.rp_filter = 1", "ipv6.conf.all.disable_ipv6 = 1")


def confuse(machine: LabHost) -> None:
    """Names and routes: 127.0.1.1 as Debian's installer writes it, no resolv.conf behind its link, a second network with the better default route, no IPv6."""
    address = machine.address
    files = {
        "/etc/hosts": f"127.0.0.1 localhost\n127.0.1.1 {machine.name}.site.example {machine.name}\n10.88.0.10 registry.ckp.lab\n",
        NETWORK: f"[Match]\nName=host0\n\n[Network]\nAddress={address}/24\nLinkLocalAddressing=no\n\n[Route]\nGateway=10.88.0.1\nMetric=1024\n",
        "/etc/systemd/network/20-eth0.network": "[Match]\nName=eth0\n\n[Network]\nAddress=192.168.77.2/24\nLinkLocalAddressing=no\n\n"
        "[Route]\nGateway=192.168.77.1\nMetric=100\n",
        "/etc/sysctl.conf": "".join(f"net.{name}\n" for name in HARDENED),
    }
    for path, text in files.items():
        machine.push(text.encode(), path)
    machine.run(["ln", "-sf", "/etc/sysctl.conf", "/etc/sysctl.d/99-sysctl.conf"], timeout=10)  # as Debian's procps has it
    machine.run(["ln", "-sf", "/run/systemd/resolve/stub-resolv.conf", "/etc/resolv.conf"], timeout=10)
    machine.run(["rm", "/etc/systemd/networkd.conf.d/10-ckp-lab.conf"], timeout=10)  # networkd as it is on a machine
    machine.run(["sh", "-euc", "ip link add eth0 type veth peer name eth0-far; ip link set eth0-far up; ip link set eth0 up; ip route del default"], timeout=10)
    machine.run(["/lib/systemd/systemd-sysctl"], timeout=30, check=False)  # as at its start
    machine.run(["systemctl", "restart", "systemd-networkd"], timeout=60)


def rename(machine: LabHost, name: str) -> None:
    """Another name, as by DHCP or cloud-init, while everything runs."""
    machine.push(f"{name}\n".encode(), "/etc/hostname")
    machine.run(["python3", "-c", f"import socket; socket.sethostname({name!r})"], timeout=10)


def resets(machine: LabHost) -> int:
    """How often its agent has reset it."""
    entries = json.loads(machine.pull(f"{AGENT_STATE}/journal.json"))["entries"]
    return sum(entry["step"] == "reset" and entry["outcome"] == "started" for entry in entries)


def routing(machine: LabHost) -> list[str]:
    """Rules and routes that the network plugin needs on a node, without counters and lifetimes."""
    lines = machine.run(["sh", "-c", "ip -4 rule show; ip -4 route show table all"], timeout=20)
    return sorted(re.sub(r" expires \S+", "", line.strip()) for line in lines.stdout.splitlines())


# -- pods ----------------------------------------------------------------------------------------------------------------

SIZE = 24 << 20
SERVER = f"""
import hashlib, os, socket, socketserver, threading
data = bytes(range(256)) * {SIZE // 256}
class Take(socketserver.StreamRequestHandler):
    def handle(self):
        digest, left = hashlib.sha256(), {SIZE}
        while left:
            part = self.rfile.read(min(left, 1 << 20))
            if not part: return
            digest.update(part); left -= len(part)
        self.wfile.write(digest.digest()); self.wfile.write(data)
class Serve(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("", 9001))
def echo():
    while True:
        data, peer = udp.recvfrom(65536)
        udp.sendto(data, peer)
threading.Thread(target=echo, daemon=True).start()
Serve(("", 9000), Take).serve_forever()
"""
CLIENT = f"""
import hashlib, socket, sys
data = bytes(range(256)) * {SIZE // 256}
for where in sys.argv[1:]:
    kind, _, address = where.partition(":")
    if kind == "tcp":
        link = socket.create_connection((address, 9000), timeout=20)
        link.settimeout(40)
        link.sendall(data)
        stream = link.makefile("rb")
        assert stream.read(32) == hashlib.sha256(data).digest(), where
        assert stream.read() == data, where
    else:
        link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        link.settimeout(2)
        for _ in range(5):
            link.sendto(data[:8000], (address, 9001))
            try:
                assert link.recvfrom(65536)[0] == data[:8000], where
                break
            except TimeoutError:
                continue
        else:
            raise SystemExit(f"no answer to 8000 bytes from {{where}}")
    print("ok", where)
"""
LOOK = """
import os, socket
print("user", os.getuid(), "hosts", len(open("/etc/hosts").read()), "resolv", "nameserver" in open("/etc/resolv.conf").read())
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
    way.connect(("192.0.2.1", 9))  # sends nothing
    print("root", sorted(os.listdir("/"))[:3], "mtu", way.getsockopt(socket.IPPROTO_IP, 14))  # IP_MTU (linux/in.h): that of the route
print("service", socket.gethostbyname("kubernetes.default.svc.cluster.local"))
print("configuration", open("/configuration/word").read())
open("/scratch/file", "w").write("x")
"""
CONFIGURATION: dict[str, Any] = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "odd"}, "data": {"word": "readable"}}


def pod(name: str, node: str, image: str, security: dict[str, Any]) -> dict[str, Any]:
    """A pod of a user who is not root: server of the transfers, with a configuration and an empty folder."""
    mounts = [{"name": "configuration", "mountPath": "/configuration"}, {"name": "scratch", "mountPath": "/scratch"}]
    container = {"name": "odd", "image": image, "command": ["python3", "-c", SERVER], "securityContext": security, "volumeMounts": mounts}
    volumes = [{"name": "configuration", "configMap": {"name": "odd"}}, {"name": "scratch", "emptyDir": {}}]
    spec = {"nodeName": node, "terminationGracePeriodSeconds": 1, "tolerations": [{"operator": "Exists"}], "containers": [container], "volumes": volumes}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"odd": "yes"}}, "spec": spec}
