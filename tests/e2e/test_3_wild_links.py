"""Three hosts that are unlike a fresh installation in many ways at once: how they get their address, what their link and disk can do, what their owner set.

They join the main job's cluster beside its own workers, and leave it in the end. What each of them is like is in tests/support/odd_hosts.py.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pytest

from ckp.clients.compass import Session, read_config
from ckp.kits.errors import CkpError
from ckp.lab.lab import LabHost
from ckp.site.enrol import Enrolment
from ckp.site.install import Site
from tests.e2e.conftest import PLAIN, WORKERS, World, ckp
from tests.support import odd_hosts as odd
from tests.support.odd_hosts import DHCP_SERVER, NAMES, OTHER_LEASE, SMALL_MTU, SYSTEM, WIRE, OddHosts

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.usefixtures("well")]

TENANT = "ckp-default-default"
STARTUP_SECONDS = 45
"""Of new workers, while one is slow: the bundle comes within this time, the images do not."""


@dataclass
class Odd:
    """The odd hosts: by the name of the machine, the machine and the host's name in CKP."""

    world: World
    session: Session
    machines: dict[str, LabHost]
    names: dict[str, str]

    def row(self, machine: str) -> Any:
        return self.session.get(f"/hosts/{self.names[machine]}")

    def blocking(self, machine: str) -> list[str]:
        return [item["problem"] for item in self.row(machine)["facts"]["findings"] if item["blocking"]]

    def said(self, machine: str) -> list[str]:
        return [item["problem"] for item in self.row(machine)["facts"]["findings"]]

    def look_again(self, machine: str) -> None:
        """An agent reports its findings when it connects; else every five minutes."""
        self.machines[machine].run(["systemctl", "restart", "ckp-agent"], timeout=60)

    def node(self, machine: str) -> Any:
        return json.loads(self.world.kubectl("get", "node", self.names[machine], "-o", "json", check=False).stdout or "{}")

    def ready(self, machine: str) -> bool:
        return any(item["type"] == "Ready" and item["status"] == "True" for item in self.node(machine).get("status", {}).get("conditions", []))

    def address(self, machine: str) -> str:
        return next((str(item["address"]) for item in self.node(machine)["status"]["addresses"] if item["type"] == "InternalIP"), "")

    def limit(self, machine: str, rate: str) -> None:
        odd.limit(self.world.hosts.lab.network, self.machines[machine], rate)

    def wait(self, probe: Any, what: str, seconds: float) -> Any:
        return self.world.wait(probe, what, timeout=seconds)

    def journal(self, machine: str) -> str:
        return self.machines[machine].run(["journalctl", "-u", "ckp-agent", "--no-pager", "-o", "cat"], timeout=60).stdout


@pytest.fixture(scope="module")
def hosts(world: World) -> Iterator[Odd]:
    lab, session = world.hosts.lab, Session(read_config())
    specs = (DHCP_SERVER, WIRE, SYSTEM, NAMES)
    try:
        with ThreadPoolExecutor(len(specs)) as pool:
            server, *rest = pool.map(lab.ensure_host, specs)
        machines = {machine.name: machine for machine in rest}
        odd.serve_leases(server, {odd.mac(machines[WIRE.name]): WIRE.address})
        odd.take_leases(machines[WIRE.name])
        odd.harden(machines[SYSTEM.name])
        odd.confuse(machines[NAMES.name])
        world.wait(lambda: f"inet {WIRE.address}/" in machines[WIRE.name].run(["ip", "-4", "addr"], timeout=10).stdout, "it has its lease", timeout=180)
        Enrolment(Site(world.dist, replace(world.site.inventory, hosts=OddHosts(world.hosts.management, rest)), print), session).run()
        rows = {row["address"]: str(row["name"]) for row in session.get("/hosts")["items"]}
        ckp("cluster", "resume-replacement", "demo")  # what failed in an earlier run of these tests does not count
        yield Odd(world, session, {**machines, DHCP_SERVER.name: server}, {machine.name: rows[machine.address] for machine in rest})
    finally:
        _remove(world, session, [spec.address for spec in specs] + [OTHER_LEASE])


def _remove(world: World, session: Session, addresses: list[str]) -> None:
    """The odd hosts leave: by themselves if they can, else by force; the cluster has the size and the patience that it had."""
    lab = world.hosts.lab
    machines = [machine for machine in lab.hosts() if machine.address in addresses]
    for machine in machines:
        with contextlib.suppress(CkpError, IndexError):
            odd.limit(lab.network, machine, "")
    ckp("cluster", "set", "demo", "--node-startup-timeout", "30m", check=False)
    mine = [row for row in session.get("/hosts")["items"] if row["address"] in addresses]
    members = [str(row["name"]) for row in mine if row["machine"]]
    left = ckp("host", "remove", *members, "--shrink", "--wait", "--timeout", "200s", timeout=400, check=False).code == 0 if members else True
    for row in mine:
        ckp("host", "delete", str(row["name"]), *([] if left else ["--force"]), check=False)
    ckp("cluster", "scale", "demo", "--workers", str(WORKERS), check=False)
    for machine in machines:
        machine.remove()


def test_a_full_disk_and_a_runtime_of_others_are_refused_before_anything_is_changed(hosts: Odd) -> None:
    machine = hosts.machines[SYSTEM.name]
    odd.package_of_others(machine, "containerd.io")
    odd.fill_disk_of_var_lib(machine)
    hosts.look_again(SYSTEM.name)
    words = ("/var/lib has", "a container runtime or Kubernetes is installed already (containerd.io 1.7.0-1)")
    hosts.wait(lambda: all(any(item.startswith(word) for item in hosts.blocking(SYSTEM.name)) for word in words), "both are said", 60)
    assert hosts.row(SYSTEM.name)["free"] is False, "so that no cluster claims it"
    assert "5 GiB are needed" in ckp("host", "describe", hosts.names[SYSTEM.name]).stdout
    odd.empty_disk_of_var_lib(machine)
    machine.run(["dpkg", "--purge", "containerd.io"], timeout=60)
    assert machine.run(["test", "-e", "/etc/kubernetes"], timeout=10, check=False).code != 0
    hosts.look_again(SYSTEM.name)
    hosts.wait(lambda: hosts.row(SYSTEM.name)["free"], "it is free again", 60)


def test_hosts_that_are_odd_in_many_ways_at_once_become_nodes(hosts: Odd) -> None:
    """A leased address and default route, IPv6 beside, a small MTU; and: a slow disk that fills up, dpkg locked, umask 077, noexec, a dead proxy, Turkish."""
    machine, network = hosts.machines[SYSTEM.name], hosts.world.hosts.lab.network
    assert any(f"has an MTU of {SMALL_MTU}" in problem for problem in hosts.said(WIRE.name))
    machine.run(["ip", "link", "set", "host0", "mtu", str(SMALL_MTU)], timeout=10)
    odd.put_agent_on_small_disk(machine)
    odd.throttle_disk(machine, network, 20 << 20)
    odd.in_background(machine, "ballast", ["sh", "-c", odd.BALLAST])
    odd.in_background(machine, "unattended-upgrades", ["python3", "-c", odd.HOLD_LOCKS])
    ckp("host", "cordon", hosts.names[NAMES.name])
    hosts.wait(lambda: hosts.row(SYSTEM.name)["free"], "its agent is back", 60)
    hosts.limit(SYSTEM.name, "100mbit")  # ten seconds for the bundle: the ballast is quicker than that on every machine
    ckp("cluster", "scale", "demo", "--workers", str(WORKERS + 2))
    hosts.wait(lambda: hosts.row(SYSTEM.name)["reason"] in ("DiskFull", "JournalNotWritable"), "the disk is full in the middle of the pull", 120)
    hosts.limit(SYSTEM.name, "")
    machine.run(["rm", f"{odd.AGENT_STATE}/ballast"], timeout=10)
    hosts.wait(lambda: "which has locked dpkg" in hosts.journal(SYSTEM.name), "the installation waits for dpkg", 180)
    assert "s for unattended-upgr (pid " in hosts.journal(SYSTEM.name)
    machine.run(["rm", "/run/dpkg-is-locked"], timeout=10)
    for name in (WIRE.name, SYSTEM.name):
        hosts.wait(lambda name=name: hosts.ready(name), f"{name} is a node", 300)
    odd.throttle_disk(machine, network, 0)
    assert "MB, " in (said := hosts.journal(SYSTEM.name)) and "of them from an earlier attempt" in said, "the pull was resumed"
    assert hosts.address(WIRE.name) == WIRE.address, "that of its lease, and none of IPv6"
    assert odd.resets(machine) == odd.resets(hosts.machines[WIRE.name]) == 0


def test_a_host_whose_link_is_too_slow_for_its_images_is_replaced_once(hosts: Odd) -> None:
    name, machine = hosts.names[NAMES.name], hosts.machines[NAMES.name]
    ckp("cluster", "set", "demo", "--node-startup-timeout", f"{STARTUP_SECONDS}s")
    hosts.limit(NAMES.name, "60mbit")
    ckp("host", "uncordon", name)
    ckp("cluster", "scale", "demo", "--workers", str(WORKERS + 3))
    hosts.wait(lambda: hosts.row(NAMES.name)["phase"] == "Fetching", "it fetches images", 180)
    hosts.limit(NAMES.name, "1mbit")
    odd.rename(machine, "Odd_Names.Site.example")
    hosts.wait(lambda: odd.resets(machine) == 1, "its machine is replaced, and it stops fetching for that", 180)


def test_a_lease_that_is_lost_takes_the_node_away_and_one_that_is_given_again_brings_it_back(hosts: Odd) -> None:
    """Meanwhile the slow host is slow for longer than a new worker may take."""
    server, machine = hosts.machines[DHCP_SERVER.name], hosts.machines[WIRE.name]
    before = [item["name"] for item in hosts.session.get("/clusters/demo")["machines"] if item["host"] == hosts.names[WIRE.name]]
    server.run(["systemctl", "stop", "systemd-networkd.socket", "systemd-networkd"], timeout=30)
    hosts.wait(lambda: f"inet {WIRE.address}/" not in machine.run(["ip", "-4", "addr"], timeout=10).stdout, "the lease is lost", odd.LEASE_SECONDS + 30)
    hosts.wait(lambda: not hosts.ready(WIRE.name), "its node is not ready", 120)
    server.run(["systemctl", "start", "systemd-networkd"], timeout=30)
    hosts.wait(lambda: hosts.ready(WIRE.name), "and is ready again", 180)
    hosts.wait(lambda: hosts.row(WIRE.name)["connected"], "its agent is connected", 90)
    assert hosts.address(WIRE.name) == WIRE.address
    after = [item["name"] for item in hosts.session.get("/clusters/demo")["machines"] if item["host"] == hosts.names[WIRE.name]]
    assert after == before and len(after) == 1 and odd.resets(machine) == 0, "it is the same machine"


def test_the_slow_host_is_not_reset_again_and_becomes_a_node_when_its_link_is_good(hosts: Odd) -> None:
    machine = hosts.machines[NAMES.name]

    def held() -> bool:
        found = json.loads(hosts.world.management("get", "byocluster", "demo", "-n", TENANT, "-o", "json").stdout)
        return any(item["type"] == "RemediationAllowed" and item.get("reason") == "BackingOff" for item in found["status"]["conditions"])

    hosts.wait(held, "the next machine that is as slow is left alone, and it is said why", 180)
    time.sleep(20)
    assert odd.resets(machine) == 1
    hosts.limit(NAMES.name, "")
    hosts.wait(lambda: hosts.row(NAMES.name)["phase"] in ("Installing", "Fetching", "Joining", "Checking", "Joined"), "it has its bundle", 180)
    odd.rename(machine, "renamed-while-joining")
    hosts.wait(lambda: hosts.ready(NAMES.name), "it is a node, called as the host is", 240)
    assert odd.resets(machine) == 1
    assert hosts.address(NAMES.name) == NAMES.address, "not that of the network with the better default route"
    ckp("cluster", "set", "demo", "--node-startup-timeout", "30m")


@pytest.fixture(scope="module")
def pods(hosts: Odd) -> Iterator[dict[str, str]]:
    """A pod on each odd host and on one of the cluster's own: its address by the node's machine."""
    world = hosts.world
    own = next(row["name"] for row in hosts.session.get("/hosts")["items"] if row["address"] == world.hosts.workers[0].address)
    nodes = {**{name: hosts.names[name] for name in (WIRE.name, SYSTEM.name, NAMES.name)}, "own": own}
    objects = [odd.CONFIGURATION, *(odd.pod(name, node, world.image, PLAIN) for name, node in nodes.items())]
    world.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
    try:
        world.kubectl("wait", "pod", "-l", "odd=yes", "--for=condition=Ready", "--timeout=180s", timeout=200)
        yield {name: str(world.get("pod", name)["status"]["podIP"]) for name in nodes}
    finally:
        world.kubectl("delete", "pods", "-l", "odd=yes", "--wait=false", check=False)


def inside(hosts: Odd, name: str, script: str, *arguments: str) -> str:
    return hosts.world.kubectl("exec", name, "--", "python3", "-c", script, *arguments, timeout=120).stdout


@pytest.mark.parametrize("name", [WIRE.name, SYSTEM.name, NAMES.name])
def test_pods_of_users_other_than_root_find_what_they_need_there(hosts: Odd, pods: dict[str, str], name: str) -> None:
    said = inside(hosts, name, odd.LOOK)
    assert "user 65532" in said and "resolv True" in said and "configuration readable" in said, said
    assert f"mtu {SMALL_MTU - 50 if name != NAMES.name else 1450}" in said, "VXLAN takes 50 bytes"


def test_pods_on_all_of_them_exchange_much_with_one_another(hosts: Odd, pods: dict[str, str]) -> None:
    """By TCP with each; datagrams of 8000 bytes, in fragments, between hosts with the same MTU: others are lost, as `ckp host describe` warns."""
    small = (WIRE.name, SYSTEM.name)
    for name in pods:
        others = [other for other in pods if other != name]
        datagrams = [f"udp:{pods[other]}" for other in others if (other in small) == (name in small)]
        said = inside(hosts, name, odd.CLIENT, *(f"tcp:{pods[other]}" for other in others), *datagrams)
        assert said.count("ok ") == len(others) + len(datagrams), said


def test_a_nodes_routes_stay_when_networkd_starts_again(hosts: Odd, pods: dict[str, str]) -> None:
    """With networkd as systems have it: the lab's other hosts have a setting of their own."""
    machine = hosts.machines[NAMES.name]
    assert machine.run(["ls", "/etc/systemd/networkd.conf.d"], timeout=10).stdout == ""
    before = odd.routing(machine)
    assert any("cilium_host" in line for line in before)
    machine.run(["systemctl", "restart", "systemd-networkd"], timeout=60)
    hosts.wait(lambda: odd.routing(machine) == before, f"rules and routes are as before: {before}", 20)
    assert "ok " in inside(hosts, NAMES.name, odd.CLIENT, f"tcp:{pods['own']}")


def test_forwarding_that_its_owners_file_turns_off_is_on_again(hosts: Odd) -> None:
    machine = hosts.machines[NAMES.name]
    machine.run(["/lib/systemd/systemd-sysctl"], timeout=30, check=False)  # as at its start
    assert machine.pull("/proc/sys/net/ipv4/ip_forward").strip() == b"0"
    hosts.wait(lambda: machine.pull("/proc/sys/net/ipv4/ip_forward").strip() == b"1", "the agent has set it", 90)


def test_a_node_follows_the_address_of_its_next_lease(hosts: Odd) -> None:
    server, machine = hosts.machines[DHCP_SERVER.name], hosts.machines[WIRE.name]
    odd.serve_leases(server, {odd.mac(machine): OTHER_LEASE})
    hosts.wait(lambda: f"inet {OTHER_LEASE}/" in machine.run(["ip", "-4", "addr"], timeout=10).stdout, "the lease is of another address", 120)
    hosts.wait(lambda: hosts.address(WIRE.name) == OTHER_LEASE, "the node's address is that", 240)
    hosts.wait(lambda: hosts.ready(WIRE.name), "the node is ready", 120)
    assert odd.resets(machine) == 0
