"""Hosts as their owners have them, out of a cluster and back: names that no node may have and that others have too, name servers that pods can't reach,
an address that changes."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from ckp.clients.compass import Session, read_config
from ckp.lab.lab import LabHost
from tests.e2e.conftest import PLAIN, WORKERS, World, ckp
from tests.support.odd_hosts import UMASK_OF_SERVICES

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("well")]

OS_NAME = "Worker_1.Site.example"
NETWORK = "/etc/systemd/network/10-host0.network"
RESOLV_CONF = "/etc/resolv.conf"
HOSTS = "/etc/hosts"
ASK = """
import socket, sys, time
print(socket.gethostbyname("kubernetes.default.svc.cluster.local"))
started = time.monotonic()
try: socket.gethostbyname("outside.example")
except OSError as error: print(f"no outside name: {time.monotonic() - started:.1f} s", file=sys.stderr)
"""


@dataclass
class Wild:
    """The two workers, by their names in CKP."""

    world: World
    renamed: tuple[str, LabHost]  # while it is a node
    rejoined: tuple[str, LabHost]  # before it becomes one

    def node_is_ready(self, name: str) -> bool:
        node = json.loads(self.world.kubectl("get", "node", name, "-o", "json", check=False).stdout or "{}")
        return any(item["type"] == "Ready" and item["status"] == "True" for item in node.get("status", {}).get("conditions", []))

    def node_names(self) -> list[str]:
        return sorted(item["metadata"]["name"] for item in self.world.get("nodes")["items"])

    def renewed(self, name: str) -> str:
        """When the kubelet renewed its lease last: it can only as the node that its certificate is for."""
        return str(self.world.get("lease", name, "-n", "kube-node-lease")["spec"]["renewTime"])

    def findings(self, name: str) -> list[str]:
        return [item["problem"] for item in Session(read_config()).get(f"/hosts/{name}")["facts"]["findings"]]


def rename(machine: LabHost, name: str) -> None:
    machine.push(f"{name}\n".encode(), "/etc/hostname")
    machine.run(["python3", "-c", f"import socket; socket.sethostname({name!r})"], timeout=10)  # hostname(1) takes no underscore, the kernel and clouds do
    machine.run(["systemctl", "restart", "ckp-agent"], timeout=60)


@pytest.fixture(scope="module")
def wild(world: World) -> Iterator[Wild]:
    machines = {machine.address: machine for machine in world.hosts.workers}
    rows = [item for item in Session(read_config()).get("/hosts")["items"] if item["address"] in machines]
    first, second = ((str(row["name"]), machines[row["address"]]) for row in rows[:WORKERS])
    kept = {machine.name: {path: machine.pull(path) for path in (NETWORK, RESOLV_CONF, HOSTS)} for _, machine in (first, second)}
    yield Wild(world, first, second)
    for _, machine in (first, second):
        for path, content in kept[machine.name].items():
            machine.push(content, path)
        machine.run(["networkctl", "reload"], timeout=30, check=False)
        machine.run(["networkctl", "reconfigure", "host0"], timeout=30, check=False)
        rename(machine, machine.name)
    second[1].run(["rm", "-f", UMASK_OF_SERVICES], timeout=10)
    second[1].run(["systemctl", "daemon-reload"], timeout=60)


def test_a_machine_that_is_renamed_stays_the_node_that_it_is(wild: Wild) -> None:
    name, machine = wild.renamed
    names = wild.node_names()
    rename(machine, OS_NAME)
    machine.run(["systemctl", "restart", "kubelet"], timeout=60)
    before = wild.renewed(name)
    wild.world.wait(lambda: wild.renewed(name) > before, "the kubelet renews the lease of the same node", timeout=90)
    wild.world.wait(lambda: wild.node_is_ready(name), "and its node is ready", timeout=90)
    assert wild.node_names() == names


@pytest.fixture(scope="module")
def left(wild: Wild) -> Wild:
    """The second worker was taken out of its cluster, and is free."""
    name, _ = wild.rejoined
    session = Session(read_config())
    ckp("host", "remove", name)
    wild.world.wait(lambda: (row := session.get(f"/hosts/{name}"))["phase"] == "Free" and not row["machine"], "the host is free", timeout=240)
    return wild


def test_a_chosen_host_leaves_its_cluster_and_may_come_back(left: Wild) -> None:
    """How it comes back, under whatever name, is the next test."""
    name, machine = left.rejoined
    session = Session(read_config())
    assert machine.run(["ls", "/etc/kubernetes"], timeout=10, check=False).code != 0
    assert session.get(f"/hosts/{name}")["cordoned"] is True
    assert session.get("/clusters/demo")["workers"] == WORKERS, "the cluster stays at its size, and looks for another host"
    left.world.wait(lambda: any("free" in item["message"] for item in session.get("/clusters/demo")["machines"]), "it says that none is free", timeout=90)


def test_a_machine_of_an_impossible_name_and_with_a_local_name_server_becomes_a_node_called_like_the_host(left: Wild) -> None:
    wild, (name, machine) = left, left.rejoined
    machine.push(b"nameserver 127.0.0.1\n", RESOLV_CONF)
    machine.push(machine.pull(HOSTS) + f"127.0.1.1 {OS_NAME} worker_1\n".encode(), HOSTS)  # as Debian's installer writes it
    machine.push(b"[Service]\nUMask=0077\n", UMASK_OF_SERVICES)  # as hardening guides have it; the pod that asks below is not root's
    machine.run(["systemctl", "daemon-reload"], timeout=60)
    rename(machine, OS_NAME)  # the other worker has this name as well
    wild.world.wait(lambda: any("127.0.0.1" in problem for problem in wild.findings(name)), "it is said beforehand", timeout=90)
    ckp("host", "uncordon", name)
    wild.world.wait(lambda: wild.node_is_ready(name), "the host is a node", timeout=300)
    assert len(wild.node_names()) == WORKERS
    subject = machine.run(["openssl", "x509", "-noout", "-subject", "-in", "/var/lib/kubelet/pki/kubelet-client-current.pem"], timeout=30).stdout
    assert f"system:node:{name}" in subject


def test_names_of_the_cluster_resolve_where_no_name_server_is_reached(wild: Wild) -> None:
    world, (name, machine) = wild.world, wild.rejoined
    other = wild.renamed[0]
    world.kubectl("cordon", other)
    try:
        world.kubectl("delete", "pods", "-n", "kube-system", "-l", "k8s-app=kube-dns", "--wait=false")
        world.kubectl("rollout", "status", "deployment/coredns", "-n", "kube-system", "--timeout=120s", timeout=150)

        def on_this_node() -> bool:
            pods = world.get("pods", "-n", "kube-system", "-l", "k8s-app=kube-dns")["items"]
            return bool(pods) and all(
                pod["spec"].get("nodeName") == name and all(item["ready"] for item in pod["status"].get("containerStatuses") or [{"ready": False}])
                for pod in pods
            )

        world.wait(on_this_node, "CoreDNS runs on that node alone", timeout=180)
        container = {"name": "ask", "image": world.image, "command": ["python3", "-c", ASK], "securityContext": PLAIN}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ask"}, "spec": {"nodeName": name, "restartPolicy": "Never", "containers": [container]}}
        world.kubectl("apply", "-f", "-", stdin=json.dumps(pod))
        world.wait(lambda: world.get("pod", "ask")["status"]["phase"] in ("Succeeded", "Failed"), "the pod has asked", timeout=120)
        said = world.kubectl("logs", "ask").stdout
        assert ipaddress.ip_address(said.splitlines()[0]), said
    finally:
        world.kubectl("delete", "pod", "ask", "--ignore-not-found", "--wait=false", check=False)
        world.kubectl("uncordon", other)
    for unit in ("containerd", "kubelet"):
        assert machine.run(["systemctl", "show", "--property=UMask", "--value", unit], timeout=10).stdout.strip() == "0022"
    assert f"nameserver {machine.address}" in machine.run(["cat", "/etc/kubernetes/ckp-resolv.conf"], timeout=10).stdout
    world.wait(lambda: any("127.0.0.1" in problem for problem in wild.findings(name)), "it is said of the node as well", timeout=90)


@pytest.mark.long
def test_a_nodes_address_follows_its_host(wild: Wild) -> None:
    world, (name, machine) = wild.world, wild.rejoined
    network = machine.pull(NETWORK).decode()
    address = str(ipaddress.ip_address(machine.address) + 40)
    moved = re.sub(r"(?m)^Address=[0-9.]+", f"Address={address}", network)
    assert moved != network

    def node_address() -> str:
        found = world.get("node", name)["status"]["addresses"]
        return next(str(item["address"]) for item in found if item["type"] == "InternalIP")

    def agent_of_konnectivity() -> str:
        pods = world.get("pods", "-n", "kube-system", "-l", "k8s-app=konnectivity-agent", "--field-selector", f"spec.nodeName={name}")["items"]
        return str(pods[0]["metadata"]["name"]) if pods else ""

    for content, wanted in ((moved, address), (network, machine.address)):
        machine.push(content.encode(), NETWORK)
        machine.run(["networkctl", "reload"], timeout=30)
        machine.run(["networkctl", "reconfigure", "host0"], timeout=30)
        world.wait(lambda wanted=wanted: node_address() == wanted, f"the node's address is {wanted}", timeout=300)
        world.wait(lambda: wild.node_is_ready(name), "the node is ready", timeout=120)
        # through konnectivity, to the kubelet's new address
        world.wait(
            lambda: (pod := agent_of_konnectivity()) and world.kubectl("logs", "-n", "kube-system", pod, "--tail=1", check=False).code == 0,
            "logs of a pod there are read",
            timeout=180,
        )
        machines = Session(read_config()).get("/clusters/demo")["machines"]
        assert [item["host"] for item in machines].count(name) == 1, "it is the same machine"
