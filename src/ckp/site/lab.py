"""The lab as a site: hosts of this machine, on a bridge of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from ckp.catalog.models import BundleTarget
from ckp.distribution.registries.server import RegistryServer
from ckp.kits import paths
from ckp.lab.lab import Lab, LabHost
from ckp.site.install import forget
from ckp.site.inventory import HostGroup, Inventory, SiteNetwork, SiteRegistry

OS = BundleTarget(os="debian", os_version="12")
"""What the lab's hosts run."""
REGISTRY = SiteRegistry("registry.ckp.lab", Lab.GATEWAY)
"""On the lab's bridge."""
GROUP = HostGroup("lab", "The lab's workers")

# A lab's hosts share one disk that is far from empty, so percentages would evict everything (facts of the lab, docs/how-to/lab.md).
HOST_SETTINGS = {
    "kubelet": {
        "evictionHard": {"nodefs.available": "1Gi", "imagefs.available": "1Gi", "memory.available": "100Mi"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
    }
}
# In a sandbox the capability CAP_SYS_RESOURCE cannot be granted, and Cilium's own list of capabilities names it.
ADDON_VALUES: dict[str, dict[str, object]] = {"cilium": {"securityContext": {"privileged": True}}}


@dataclass(frozen=True)
class LabHosts:
    """The management host and some workers.

    Args:
        count: how many workers.
    """

    count: int
    lab: Lab = field(default_factory=Lab)

    def boot(self, say: Callable[[str], None]) -> None:
        """Boot all hosts side by side; those that run are left alone."""
        self.lab.ensure_base(say)
        specs = self.lab.network.hosts(self.count)
        with ThreadPoolExecutor(len(specs)) as pool:
            for host in pool.map(self.lab.ensure_host, specs):
                say(f"{host.name} runs at {host.address}")

    @property
    def management(self) -> LabHost:
        """The host with the management cluster. Raises NotFound before it was booted for the first time."""
        return self.lab.host(self.lab.network.management().name)

    @property
    def masters(self) -> list[LabHost]:
        """The same one."""
        return [self.management]

    @property
    def workers(self) -> list[LabHost]:
        """The hosts for workload clusters. Raises NotFound before they were booted for the first time."""
        return [self.lab.host(spec.name) for spec in self.lab.network.hosts(self.count)[1:]]


def inventory(hosts: LabHosts) -> Inventory:
    """The lab's inventory."""
    network = hosts.lab.network
    first, last = network.load_balancers
    addresses = SiteNetwork(
        hosts=str(network.subnet),
        load_balancers=(first, last),
        compass=str(network.subnet[100]),
        hub=str(network.subnet[101]),
        management_pods="10.244.0.0/16",
        management_services="10.96.0.0/16",
        workload_pods="10.42.0.0/16",
        workload_services="10.43.0.0/16",
    )
    return Inventory(OS, hosts, REGISTRY, addresses, GROUP, "ckp lab shell {host}", HOST_SETTINGS, ADDON_VALUES)


def remove() -> None:
    """Remove hosts, bridge, nameserver, registry, mounts and processes of the lab, and what this machine keeps of its installation. Nothing there is fine."""
    registry = RegistryServer(Path("/nonexistent"), REGISTRY.listen, REGISTRY.name)
    registry.stop()
    Lab().down()
    if registry.folder.exists():
        shutil.rmtree(registry.folder)
    forget(paths.state())
