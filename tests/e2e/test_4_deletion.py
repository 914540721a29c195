"""A deleted cluster leaves nothing behind, and the same hosts make another one."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from ckp.cli.up import save_kubeconfig
from ckp.clients.compass import Session, read_config
from ckp.kits.processes import run
from ckp.lab.lab import Lab, LabHost
from ckp.lab.nameserver import PROGRAM
from ckp.site.enrol import Enrolment
from ckp.site.install import Site
from ckp.site.lab import LabHosts, inventory
from tests.e2e.conftest import STAMP, WORKERS, World, ckp
from tests.support.host_snapshot import changes, snapshot
from tests.support.lab_packages import install

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("well")]

BUNDLES = "/var/lib/ckp-agent/bundles"
KINDS = (
    "secrets,configmaps,services,deployments,statefulsets,jobs,pods,persistentvolumeclaims,networkpolicies,certificates,issuers,"
    "clusters,machines,machinesets,machinedeployments,kubeadmconfigs,kubeadmconfigtemplates,byoclusters,byomachines,byomachinetemplates,"
    "byoremediations,byoremediationtemplates,managedcontrolplanes"
)


def leftovers(world: World) -> list[str]:
    found = world.management("get", KINDS, "-n", "ckp-default-default", "-o", "name").stdout.split()
    volumes = json.loads(world.management("get", "persistentvolumes", "-o", "json").stdout)["items"]
    found += [item["metadata"]["name"] for item in volumes if item["spec"]["claimRef"]["namespace"] == "ckp-default-default"]
    return [name for name in found if name != "configmap/kube-root-ca.crt"]


def remains(host: LabHost) -> str:
    """Packages, links, mounts, processes, rules and files of a cluster on a host: empty when it is clean."""
    script = r"""
dpkg-query -W -f '${Package}\n' kubeadm kubelet kubectl kubernetes-cni cri-tools containerd 2>/dev/null
ip -br link | grep -E 'cilium|lxc|cni|vxlan|veth'
grep -E ' /(var/lib/kubelet|run/containerd|run/netns|var/run/cilium|run/cilium)/' /proc/self/mountinfo
ps -eo comm= | grep -E '^(kubelet|containerd|cilium|pause|coredns|proxy-agent)'
iptables-save 2>/dev/null | grep -E 'KUBE|CILIUM'
ip rule | grep -E '2004|2005'
for path in /etc/kubernetes /etc/cni /var/lib/cni /var/lib/etcd/member /run/cilium /etc/sysctl.d/*cilium* /etc/sysctl.d/99-ckp.conf /opt/cni/bin/*; do
    test ! -e "$path" || echo "$path"
done
ls -A /var/lib/kubelet /var/lib/containerd 2>/dev/null | grep -vE '^(/.*:)?$'
ls /sys/fs/bpf 2>/dev/null | grep -E 'tc|cilium'
true
"""
    return host.run(["sh", "-c", script], timeout=60).stdout.strip()


def test_deletion_leaves_nothing_of_the_cluster(world: World) -> None:
    done = ckp("cluster", "delete", "demo", "--wait", "--timeout", "10m", timeout=700)
    assert "cluster/demo deleted" in done.stdout
    world.wait(lambda: leftovers(world) == [], "Kubernetes has collected what the cluster owned", timeout=60)
    for host in world.hosts.workers:
        assert remains(host) == ""
    rows = [line.split() for line in ckp("host", "list").stdout.splitlines()[1:]]
    assert [row[1] for row in rows if row[0].startswith("worker-")] == ["Free"] * WORKERS


@pytest.fixture
def newcomer(world: World) -> LabHost:
    """One host more, with a firewall, enrolled and free: nothing was ever installed on it but the agent."""
    hosts = LabHosts(WORKERS + 1)
    site = Site(world.dist, inventory(hosts), lambda _line: None)
    host = hosts.lab.ensure_host(hosts.lab.network.hosts(WORKERS + 1)[-1])
    install(host, "ufw")
    host.run(["sh", "-c", "ufw allow 22/tcp && ufw --force enable && systemctl enable ufw && ufw reload"], timeout=60)
    Enrolment(site, Session(read_config())).run()
    return host


@contextlib.contextmanager
def small_disk(host: LabHost) -> Iterator[Callable[[], None]]:
    """For the block a file system of its own where the agent keeps bundles, too small for one; what is yielded makes it large enough.

    What is in it then lies in memory, and is gone with it.
    """
    host.run(["mkdir", "-p", "-m", "700", BUNDLES], timeout=30)
    host.run(["mount", "-t", "tmpfs", "-o", "size=16m,mode=700", "ckp-small-disk", BUNDLES], timeout=30)

    def enlarge() -> None:
        host.run(["mount", "-o", "remount,size=2g", BUNDLES], timeout=30)

    try:
        yield enlarge
    finally:
        enlarge()  # also when the test has failed: what waits for the host can end


def listens(host: LabHost, port: int) -> bool:
    """Whether packets from outside come to this port."""
    try:
        with socket.create_connection((host.address, port), timeout=2):
            return True
    except OSError:
        return False


def test_the_same_hosts_and_one_more_make_a_second_cluster_and_the_new_one_is_then_as_it_was(world: World, newcomer: LabHost) -> None:
    session = Session(read_config())
    name = next(item["name"] for item in session.get("/hosts")["items"] if item["address"] == newcomer.address)
    world.wait(lambda: session.get(f"/hosts/{name}")["free"], "the new host is free", timeout=60)
    finding = session.get(f"/hosts/{name}")["facts"]["findings"]
    assert any(item["problem"] == "ufw is on" and not item["blocking"] for item in finding)
    before = snapshot(newcomer)
    arguments = ["--version", "v1.35.1", "--host-group", "lab", "--pod-cidr", "10.52.0.0/16", "--service-cidr", "10.53.0.0/16"]
    with ThreadPoolExecutor(1) as pool, small_disk(newcomer) as enlarge:
        making = pool.submit(ckp, "cluster", "create", "second", "--workers", str(WORKERS + 1), *arguments, "--wait", "--timeout", "15m", timeout=1000)
        world.wait(lambda: session.get(f"/hosts/{name}")["reason"] == "DiskFull", "the host tells that its disk is full", timeout=300)
        assert re.search(r"the disk is full: \d+ MiB are left", ckp("host", "describe", name).stdout)
        enlarge()
        done = making.result()
    assert re.search(r"cluster/second is ready", done.stdout + done.stderr), "and it goes on by itself when there is room"
    world.cluster = "second"

    save_kubeconfig(session, "second")
    nodes = world.get("nodes")["items"]
    assert len(nodes) == WORKERS + 1
    assert {node["status"]["nodeInfo"]["kubeletVersion"] for node in nodes} == {STAMP}
    assert all(node["spec"]["podCIDR"].startswith("10.52.") for node in nodes)
    assert listens(newcomer, 10250), "ufw lets the kubelet be reached"
    ckp("cluster", "delete", "second", "--wait", "--timeout", "10m", timeout=700)
    newcomer.run(["umount", BUNDLES], timeout=30)
    assert not listens(newcomer, 10250)
    left = changes(before, snapshot(newcomer))
    assert not left, "all that was installed must be gone, and only that:\n" + "\n".join(left)


def test_down_leaves_no_host_bridge_mount_or_process(world: World) -> None:
    """Only of this lab: what an earlier run has left, and the hosts of other tests' labs, are not its business."""
    nameserver, root = f"{PROGRAM.name} {Lab.GATEWAY}", f"{world.hosts.lab.root}/"
    assert nameserver in run(["ps", "-eww", "-o", "args"], timeout=10).stdout
    ckp("down", timeout=300)
    assert "ckp0" not in run(["ip", "-br", "link"], timeout=10).stdout
    assert root not in run(["cat", "/proc/self/mountinfo"], timeout=10).stdout
    listing = run(["ps", "-eww", "-o", "args"], timeout=10).stdout
    assert f"--directory={root}" not in listing
    assert "registry serve" not in listing
    assert nameserver not in listing
