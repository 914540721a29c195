"""Workers with cgroup v2, where CKP chooses the systemd driver: virtual machines, which join a lab host's cluster."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from ckp.catalog.load import Catalog
from ckp.conformance.cluster import is_ready
from ckp.distribution.bundles import PREFIX
from ckp.distribution.registries.server import RegistryServer
from ckp.distribution.release import Distribution
from ckp.kits import paths
from ckp.kits.retry import wait_until
from ckp.lab.lab import HostSpec, Lab, LabHost, LabNetwork
from ckp.site.install import REGISTRY_CA
from ckp.site.lab import HOST_SETTINGS, OS, REGISTRY, REGISTRY_ADDRESS
from ckp.site.ssh import SshHost
from tests.support.virtual_machine import VirtualMachine, boot

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.lab, pytest.mark.root("boots virtual machines on a bridge of its own")]

RELEASE = "v1.35.1"
NETWORK = LabNetwork(bridge="ckpvm0", gateway="10.177.97.1", registry="10.177.97.1")
# The control plane is on a lab host: an emulated processor is too slow for limits that are an API server's own (60 s for its first look at all Services).
MASTER = HostSpec("m1", "10.177.97.11")
# A conformance test asks for two nodes that take pods.
WORKERS = (HostSpec("g1", "10.177.97.21"), HostSpec("g2", "10.177.97.22"))
MEMORY = 3072
ADMIN = "/etc/kubernetes/admin.conf"
STANDALONE = ("ckp-agent", "standalone")
STEP_TIMEOUT = 3600.0
NODE_TIMEOUT = 1800.0


@dataclass
class Place:
    """A master, virtual machines for workers, and a release that they can be installed from."""

    dist: Distribution
    registry: RegistryServer
    bundle: str
    master: LabHost
    vms: list[VirtualMachine]

    def kubectl(self, *arguments: str) -> str:
        return self.master.run(["kubectl", f"--kubeconfig={ADMIN}", "--request-timeout=60s", *arguments], timeout=120).stdout

    def prepare(self, host: LabHost | SshHost) -> None:
        """The agent's package, and the registry's CA."""
        package = self.dist.agent(OS.format)
        host.push(self.registry.ca, REGISTRY_CA)
        host.push(package.path, "/var/cache/ckp-agent.deb")
        host.run(["dpkg", "-i", "/var/cache/ckp-agent.deb"], timeout=600, what="installing ckp-agent")

    def standalone(self, host: LabHost | SshHost, command: str, *more: str) -> None:
        """`ckp-agent standalone install` or `join` to its end; shows what it says as it comes."""
        source = ["--bundle-image", self.bundle, "--registry-ca", REGISTRY_CA]
        argv = [*STANDALONE, command, *source, "--advertise-address", host.address, "--node-name", host.name, *more]
        lines: list[str] = []
        begun = time.monotonic()

        def one(line: str) -> None:
            lines.append(line)
            print(f"  {host.name} {time.monotonic() - begun:6.1f}s {line}", flush=True)

        code = host.stream(argv, timeout=STEP_TIMEOUT, on_line=one)
        assert code == 0, f"{command} on {host.name} ended with {code}:\n" + "\n".join(lines[-40:])

    def join(self, vm: VirtualMachine) -> None:
        """A virtual machine joins as a worker, by a new token."""
        token = self.master.run([*STANDALONE, "token", "create"], timeout=300).stdout
        vm.ssh.push(token.encode(), "/root/token", mode=0o600)
        self.standalone(vm.ssh, "join", "--token-file", "/root/token")

    def wait_for_nodes(self) -> None:
        """Until all three are Ready."""
        wanted = {MASTER.name, *(spec.name for spec in WORKERS)}

        def ready() -> bool:
            items = json.loads(self.kubectl("get", "nodes", "-o", "json"))["items"]
            return {item["metadata"]["name"] for item in items if is_ready(item)} == wanted

        wait_until(ready, what="all nodes are ready", timeout=NODE_TIMEOUT, every=5, reason=lambda: self.kubectl("get", "nodes,pods", "-A", "-o", "wide"))


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    lab = Lab(paths.state() / "lab-vm", NETWORK)
    catalog = Catalog()
    dist = Distribution(catalog, catalog.release(RELEASE), "lab", print)
    dist.build()
    dist.pack([OS.format])
    dist.make_images()
    dist.make_bundles(REGISTRY_ADDRESS, [OS])
    registry = RegistryServer(dist.built["distribution"].binary("registry"), NETWORK.gateway, REGISTRY, state=lab.root / "registry")
    registry.stop()
    lab.down()
    try:
        master = lab.ensure_host(MASTER)
        with ThreadPoolExecutor() as pool:
            vms = list(pool.map(lambda spec: boot(lab, spec, memory=MEMORY), WORKERS))
        client = registry.start()
        digests = dist.push(client, registry.endpoint, registry.ca, None, replace=True)
        [target] = dist.targets
        yield Place(dist, registry, f"{registry.address}/{PREFIX}/{target.repository}@{digests[target.repository]}", master, vms)
    finally:
        if not os.environ.get("CKP_KEEP_LAB"):
            registry.stop()
            lab.down()
            shutil.rmtree(lab.root, ignore_errors=True)


def test_the_virtual_machines_have_cgroup_v2(place: Place) -> None:
    for vm in place.vms:
        print(f"  {vm.name} was up after {vm.boot_seconds:.0f} s")
        assert vm.ssh.run(["stat", "-f", "-c", "%T", "/sys/fs/cgroup"], timeout=60).stdout == "cgroup2fs\n"
        assert vm.ssh.run(["systemctl", "is-system-running"], timeout=60, check=False).stdout == "running\n"
        assert vm.ssh.run(["systemd-detect-virt", "--container"], timeout=60, check=False).stdout == "none\n"


def test_they_join_a_cluster_as_workers(place: Place) -> None:
    place.master.push(json.dumps(HOST_SETTINGS).encode(), "/etc/ckp-agent/host.json")
    place.prepare(place.master)
    place.standalone(place.master, "install")
    for vm in place.vms:
        place.prepare(vm.ssh)
    with ThreadPoolExecutor() as pool:
        list(pool.map(place.join, place.vms))
    place.wait_for_nodes()
    # From now on pods go to the virtual machines alone, as where kubeadm makes a master.
    place.kubectl("taint", "node", MASTER.name, "node-role.kubernetes.io/control-plane=:NoSchedule")


def test_kubelet_and_containerd_have_the_systemd_driver_and_systemd_has_the_pods(place: Place) -> None:
    for vm in place.vms:
        assert not vm.ssh.run(["sh", "-c", "ls /etc/ckp-agent/host.json 2>/dev/null || true"], timeout=60).stdout, "nothing was said about this host"
        kubelet = json.loads(place.kubectl("get", "--raw", f"/api/v1/nodes/{vm.name}/proxy/configz"))["kubeletconfig"]
        assert kubelet["cgroupDriver"] == "systemd"
        config = vm.ssh.run(["containerd", "config", "dump"], timeout=120).stdout
        assert [line.strip() for line in config.splitlines() if "SystemdCgroup" in line] == ["SystemdCgroup = true"]
        # A container of the driver cgroupfs would be in a cgroup that systemd has no unit of.
        running = json.loads(vm.ssh.run(["crictl", "ps", "-o", "json"], timeout=120).stdout)["containers"]
        listed = vm.ssh.run(["systemctl", "list-units", "--type=scope", "--plain", "--no-legend", "cri-containerd-*"], timeout=120).stdout
        units = {line.split()[0] for line in listed.splitlines()}
        assert running and {f"cri-containerd-{item['id']}.scope" for item in running} <= units
