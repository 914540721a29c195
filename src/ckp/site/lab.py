"""The lab as a site: hosts of this machine on a bridge of its own, and the file that describes a site on them.

Where they come from is all that is the lab's own. From the file on it is a site as any other, and its hosts are reached by SSH.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckp.catalog.models import BundleTarget
from ckp.distribution.registries.server import RegistryServer
from ckp.kits import paths
from ckp.kits.errors import Conflict
from ckp.kits.files import atomic_write
from ckp.lab.lab import HostSpec, Lab, LabHost, LabNetwork
from ckp.site import described
from ckp.site.install import forget
from ckp.site.inventory import Inventory, SiteHost
from ckp.site.registries.hosted import REGISTRY_STATE
from ckp.site.spec import model, yamltree
from ckp.site.spec.read import dump_site, parse_site, read_site
from ckp.site.ssh import SshHost, SshSettings

NAME = "lab"
"""The site's."""
OS = BundleTarget(os="debian", os_version="12")
"""What the lab's hosts run."""
REGISTRY = "registry.ckp.lab"
"""The name of the site's registry; the lab's hosts have it in /etc/hosts."""
REGISTRY_ADDRESS = f"{REGISTRY}:{model.REGISTRY_PORT}"
GROUP = "lab"
PODS, SERVICES = "10.42.0.0/16", "10.43.0.0/16"
"""Of the workload cluster that `ckp up` makes."""
SHELL = "ckp lab shell {host}"
"""The command that opens a shell on a host."""
FILE = "site.yaml"
HEAD = """\
# The lab's site. `ckp up` writes this file; with it, `ckp site` works on the lab: `ckp site status -f FILE`, `ckp site plan -f FILE --profile lab`.
"""

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
    """The management hosts and some workers.

    Args:
        count: how many workers.
        management_count: how many management hosts: one, three or five.
    """

    count: int
    lab: Lab = field(default_factory=Lab)
    management_count: int = 1

    @property
    def specs(self) -> list[HostSpec]:
        """All of them, management hosts first."""
        return self.lab.network.hosts(self.count, self.management_count)

    def boot(self, say: Callable[[str], None]) -> None:
        """Boot all hosts side by side; those that run are left alone.

        Raises:
            Conflict: the lab has another number of management hosts, or was made by CKP 0.2.0.
        """
        self.lab.ensure_base(say)
        if older_registry().running() and not (state() / FILE).exists():
            raise Conflict("the lab on this machine was made by CKP 0.2.0, with another kind of registry", resolution="remove it first: `ckp down`")
        wanted = {spec.name for spec in self.specs[: self.management_count]}
        there = {host.name for host in self.lab.hosts()} & {spec.name for spec in self.lab.network.hosts(0, max(model.HOST_COUNTS))}
        if there and there != wanted:
            has = "1 management host" if len(there) == 1 else f"{len(there)} management hosts"
            raise Conflict(f"the lab has {has}, not {self.management_count}", resolution="remove it first: `ckp down`")
        with ThreadPoolExecutor(len(self.specs)) as pool:
            for host in pool.map(self.lab.ensure_host, self.specs):
                say(f"{host.name} runs at {host.address}")

    @property
    def management(self) -> LabHost:
        """The first host of the management cluster. Raises NotFound before it was booted for the first time."""
        return self.masters[0]

    @property
    def masters(self) -> list[LabHost]:
        """The hosts of the management cluster. Raises NotFound before they were booted for the first time."""
        return [self.lab.host(spec.name) for spec in self.specs[: self.management_count]]

    @property
    def workers(self) -> list[LabHost]:
        """The hosts for workload clusters. Raises NotFound before they were booted for the first time."""
        return [self.lab.host(spec.name) for spec in self.specs[self.management_count :]]


def lab_of(management_count: int) -> Lab:
    """The lab of this machine. With several management hosts, the registry is found at their virtual address."""
    network = LabNetwork()
    return Lab(network=LabNetwork(registry=network.virtual_address) if management_count > 1 else network)


def describe(hosts: LabHosts, releases: Sequence[str] = ()) -> model.SiteSpec:
    """The lab as a site's file has it.

    Args:
        releases: that it offers; none: the default of a site.
    """
    network, first = hosts.lab.network, hosts.lab.network.load_balancers[0]
    masters = hosts.specs[: hosts.management_count]
    data: dict[str, Any] = {
        "apiVersion": model.API_VERSION,
        "kind": model.KIND,
        "metadata": {"name": NAME},
        "management": {"hosts": [{"name": spec.name, "address": spec.address, "ssh": _ssh(hosts.lab, spec)} for spec in masters]},
        "addresses": {
            "hosts": str(network.subnet),
            "loadBalancers": {"ciliumPool": dict(zip(("first", "last"), network.load_balancers, strict=True))},
            "compass": {"address": first},
            "hub": {"address": str(network.subnet[101])},
            **({"api": {"virtualAddress": network.virtual_address}} if len(masters) > 1 else {}),
        },
        "registry": {"own": {"name": REGISTRY}},
        "workers": {"group": {"name": GROUP, "description": "The lab's workers"}},
        "hostSettings": HOST_SETTINGS,
        "addonValues": ADDON_VALUES,
        **({"releases": list(releases)} if releases else {}),
    }
    return parse_site(yamltree.dump(data).encode(), state() / FILE)


def _ssh(lab: Lab, spec: HostSpec) -> dict[str, str]:
    way = lab.ssh_way(spec.address)
    return {"host": way.host, "user": way.user, "identityFile": str(way.identity_file), "knownHostsFile": str(way.known_hosts_file)}


def state() -> Path:
    """What this machine keeps of the lab's site."""
    return described.state_of(NAME)


def registry_files() -> Path:
    """The folder with the CA (ca.pem) of the lab's registry and the password for pushing to it (credentials.json)."""
    return state() / REGISTRY_STATE


def push_endpoints() -> tuple[str, ...]:
    """`address:port` of the lab's registry on each of its management hosts. InvalidInput if the lab has no site."""
    spec = read_site(state() / FILE)
    assert spec.registry.own is not None
    return tuple(f"{host.address}:{spec.registry.own.push_port}" for host in spec.management.hosts or ())


def write(hosts: LabHosts, releases: Sequence[str]) -> Path:
    """Write the lab's site.yaml, and return where it is."""
    file = state() / FILE
    atomic_write(file, HEAD + dump_site(describe(hosts, releases)))
    return file


def inventory(hosts: LabHosts) -> Inventory:
    """The lab's inventory, with hosts that are entered without SSH."""
    return described.inventory(describe(hosts), hosts, OS)


@contextmanager
def reached_workers(hosts: LabHosts) -> Iterator[list[SiteHost]]:
    """The workers by SSH, for as long as the block lasts."""
    with ExitStack() as stack:
        workers: list[SiteHost] = []
        for spec in hosts.specs[hosts.management_count :]:
            way = hosts.lab.ssh_way(spec.address)
            settings = SshSettings(way.host, way.user, identity_file=way.identity_file, known_hosts_file=way.known_hosts_file)
            worker = SshHost(spec.name, spec.address, settings)
            stack.callback(worker.close)
            workers.append(worker)
        yield workers


def older_registry() -> RegistryServer:
    """Labs of CKP 0.2.0 had their registry on this machine, to be looked at or stopped."""
    return RegistryServer(Path("/nonexistent"), Lab.GATEWAY, REGISTRY)


def remove() -> None:
    """Remove hosts, bridge, nameserver, mounts and processes of the lab, and what this machine keeps of its site. Nothing there is fine.

    So for a lab of CKP 0.2.0, which kept its things in the folder of all state.
    """
    registry = older_registry()
    registry.stop()
    Lab().down()
    for folder in (registry.folder, state()):
        if folder.exists():
            shutil.rmtree(folder)
    forget(paths.state())
