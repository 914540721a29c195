"""What a site is: its hosts and how they are reached, its registry, its addresses and the settings of its own.

An inventory is made once, before anything else, and checked as it is made. What is done at a site (publish, install, enrol) reads it
and knows nothing else of where it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from itertools import chain
from pathlib import Path
from typing import Protocol

from ckp.catalog.models import BundleTarget
from ckp.kits import paths
from ckp.kits.errors import InvalidInput
from ckp.kits.processes import Finished
from ckp.site.settings.model import HostSettings
from ckp.site.spec import addresses


class SiteHost(Protocol):
    """A host of the site, and how this machine reaches it: as root, whatever lies between."""

    @property
    def name(self) -> str:
        """Its hostname."""
        ...

    @property
    def address(self) -> str:
        """Its IPv4 address in the site's host network."""
        ...

    def run(self, argv: Sequence[str | Path], *, timeout: float, stdin: str | bytes | None = None, check: bool = True, what: str = "") -> Finished:
        """Run a command there to its end.

        Args:
            timeout: seconds after which it is killed.
            stdin: its standard input. Secrets go this way: arguments can be read by every user there.
            check: raise when it ends with another code than 0.
            what: how to name the work in an error.

        Raises:
            CkpError: it failed (with `check`), ran out of time, or the host cannot be reached.
        """
        ...

    def stream(self, argv: Sequence[str | Path], *, timeout: float, on_line: Callable[[str], None]) -> int:
        """Run a command there and hand over its output line by line; returns its exit code. Raises CkpError as `run` does."""
        ...

    def push(self, source: Path | bytes, target: str, *, mode: int = 0o644) -> None:
        """Write a file of this machine, or some bytes, to `target` there: whole or not at all. Raises CkpError."""
        ...

    def pull(self, source: str) -> bytes:
        """The content of a file there. Raises CkpError."""
        ...


class SiteHosts(Protocol):
    """The hosts of a site. They are asked for each time, since hosts may be added while a site runs."""

    @property
    def management(self) -> SiteHost:
        """The host by which the management cluster is reached: one of `masters`, that has it already if any has."""
        ...

    @property
    def masters(self) -> Sequence[SiteHost]:
        """The hosts that carry the management cluster: one, three or five."""
        ...

    @property
    def workers(self) -> Sequence[SiteHost]:
        """The hosts that are enrolled, for workload clusters."""
        ...


@dataclass(frozen=True)
class KnownHosts:
    """Hosts that were named before anything was done, as `SiteHosts` has them."""

    management: SiteHost
    masters: Sequence[SiteHost]
    workers: Sequence[SiteHost] = ()


def acted_on_first(hosts: SiteHosts) -> list[SiteHost]:
    """All management hosts: the one that is acted on, then the others as the site names them."""
    return sorted(hosts.masters, key=lambda host: host.name != hosts.management.name)


@dataclass(frozen=True)
class OutsideRegistry:
    """A registry that was there before the site (ckp.site.registries).

    Args:
        host: `host:port`.
        prefix: what names of repositories begin with there; empty for nothing.
        ca: the CA (PEM) of its certificate; None for those that hosts trust already.
        credentials: a file in the format of docker's config.json with the user who may push; None if everybody may. It stays on this machine.
        login: base64 of `user:password` of the one whom hosts pull as; empty if everybody may pull.
    """

    host: str
    prefix: str = ""
    ca: Path | None = None
    credentials: Path | None = None
    login: str = field(default="", repr=False)

    @property
    def address(self) -> str:
        """`host:port`, and the prefix if there is one, as hosts and images name it."""
        return f"{self.host}/{self.prefix}" if self.prefix else self.host


@dataclass(frozen=True)
class SiteRegistry:
    """The registry that the site's hosts pull from.

    Args:
        name: the host name that hosts know it by; bundles name it, and they are signed.
        listen: the IPv4 address that it listens on, of `host` or of this machine.
        host: the host that runs it, for good (ckp.site.registries.hosted); None: this machine runs it, and takes pushes from everybody who reaches it.
            Where the site has several management hosts, each runs one with the same content, and `Inventory.on` gives each its own.
        push_port: where `host` takes pushes.
        storage: the folder of its content on `host`.
        outside: the registry that is used instead of one of CKP's own; the rest says nothing then.
    """

    name: str
    listen: str
    port: int = 5000
    host: SiteHost | None = None
    push_port: int = 5001
    storage: str = "/var/lib/ckp-registry"
    outside: OutsideRegistry | None = None

    @property
    def address(self) -> str:
        """`host:port` as hosts and images name it; with the prefix of a registry that has one."""
        if self.outside is not None:
            return self.outside.address
        return f"{self.name}:{self.port}"

    @property
    def endpoint(self) -> str:
        """`address:port` by which this machine reaches it: its name need not resolve here."""
        return f"{self.listen}:{self.port}"


@dataclass(frozen=True)
class SiteNetwork:
    """The site's addresses. All are IPv4; networks are written as CIDRs.

    Args:
        hosts: the network that all hosts have their addresses in.
        load_balancers: first and last address of the range for Services of type LoadBalancer. They are announced by ARP, so it lies in `hosts`.
            None: `load_balancer_class` or `on_hosts` says where they get one from.
        compass: the address of Compass, of that range.
        hub: the address of the hub, of that range.
        compass_names: DNS names that lead to Compass, for its certificate.
        hub_names: DNS names that lead to the hub, for its certificate.
        virtual_address: of the management API, and of the registry as others than its own hosts reach it; one of the management hosts answers to it.
            Empty where the API has the address of its only host.
        api_names: further names and addresses in the certificate of the management API.
        management_pods: of the management cluster.
        management_services: of the management cluster.
        api_name: of `api_names` the one that clients reach the management API by; empty: they reach it by its address.
        load_balancer_class: a load balancer that the management cluster has, by its Services' class.
        on_hosts: addresses that management hosts have already.

    Raises:
        InvalidInput: a value is not an address or network, lies outside of what it must be in, or overlaps another.
    """

    hosts: str
    load_balancers: tuple[str, str] | None
    compass: str
    hub: str
    management_pods: str
    management_services: str
    compass_names: tuple[str, ...] = ()
    hub_names: tuple[str, ...] = ()
    virtual_address: str = ""
    api_names: tuple[str, ...] = ()
    api_name: str = ""
    load_balancer_class: str = ""
    on_hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        networks = {what: _network(what, cidr) for what, cidr in self.reserved.items()}
        ends = [_address("load balancer", item) for item in self.load_balancers or ()]
        lowest, highest = ends[0] if ends else None, ends[1] if ends else None
        compass, hub = _address("Compass", self.compass), _address("hub", self.hub)
        findings = chain(
            addresses.overlaps(networks, {what: what for what in networks}),
            addresses.pool(lowest, highest, networks["hosts"]) if lowest is not None and highest is not None else (),
            addresses.services(compass, hub, lowest, highest),
        )
        for finding in findings:
            raise InvalidInput(finding.what, resolution=finding.remedy)

    @property
    def reserved(self) -> Mapping[str, str]:
        """Networks that no workload cluster may use: what each is for -> CIDR."""
        return {"hosts": self.hosts, "management pods": self.management_pods, "management services": self.management_services}


@dataclass(frozen=True)
class SiteDatabase:
    """The PostgreSQL that Compass keeps its data in.

    Args:
        url: as ckp.rules.postgresql reads it; a secret.
        place: `host:port/database`, which is none.
        ca: the CA (PEM) of its certificate; empty for none.
    """

    url: str = field(repr=False)
    place: str
    ca: bytes = b""


@dataclass(frozen=True)
class SiteStorage:
    """What volumes of the workload clusters' etcd are made of.

    Args:
        etcd_class: a StorageClass that the management cluster has; empty for its default one, or for `etcd_path`.
        etcd_path: a folder of the management hosts, for which CKP makes a class of its own (ckp.site.provided.storage).
    """

    etcd_class: str = ""
    etcd_path: str = ""


@dataclass(frozen=True)
class HostGroup:
    """The group that the site's workers are put into."""

    name: str
    description: str


@dataclass(frozen=True)
class Inventory:
    """A site.

    Args:
        os: what its management hosts run, and its workers unless `worker_systems` names more.
        shell: the command that opens a shell on a host, with `{host}` for its name; for people who are to look there.
        host_settings: `host.json` of each host: its own kubelet settings, over the release's.
        addon_values: chart -> helm values of this site, over the release's.
        state: the folder of this machine with what it keeps of the installation.
        worker_systems: what hosts for workload clusters run beside `os`.
        database: None: Compass has SQLite.
        settings: what all hosts get of keys, CAs, proxy, name servers and time servers.
        storage: of the workload clusters' etcd.
        name: the site's.

    Raises:
        InvalidInput: hosts with such an operating system cannot be given the host tool.
    """

    os: BundleTarget
    hosts: SiteHosts
    registry: SiteRegistry
    network: SiteNetwork
    group: HostGroup
    shell: str
    host_settings: Mapping[str, object] = field(default_factory=dict)
    addon_values: Mapping[str, dict[str, object]] = field(default_factory=dict)
    state: Path = field(default_factory=paths.state)
    worker_systems: Sequence[BundleTarget] = ()
    database: SiteDatabase | None = None
    settings: HostSettings = field(default_factory=HostSettings)
    storage: SiteStorage = field(default_factory=SiteStorage)
    name: str = ""

    def on(self, host: SiteHost) -> Inventory:
        """The site as one of its management hosts has it: the registry is that host's own, and it is the host that is acted on."""
        hosts = KnownHosts(host, self.hosts.masters, self.hosts.workers)
        if self.registry.outside is not None:
            return replace(self, hosts=hosts)
        if self.registry.host is None:
            return self
        return replace(self, hosts=hosts, registry=replace(self.registry, host=host, listen=host.address))

    @property
    def registry_addresses(self) -> frozenset[str]:
        """All addresses at which the registry is found by one host or another; "" may be among them."""
        if self.registry.host is None:
            return frozenset((self.registry.listen,))
        return frozenset((*(host.address for host in self.hosts.masters), self.network.virtual_address))

    @property
    def systems(self) -> tuple[BundleTarget, ...]:
        """All operating systems that the site needs bundles for, that of the management hosts first."""
        return tuple(dict.fromkeys((self.os, *self.worker_systems)))

    def __post_init__(self) -> None:
        if self.os.format != "deb" and self.hosts.masters:  # ckp.site.install brings the package with dpkg
            raise InvalidInput(f"hosts with {self.os.os} {self.os.os_version} cannot be set up from here", resolution="take hosts with Debian or Ubuntu")


def _network(what: str, text: str) -> IPv4Network:
    try:
        return IPv4Network(text)
    except ValueError as error:
        raise InvalidInput(f"the site's network for {what} is not an IPv4 network: {error}") from None


def _address(what: str, text: str) -> IPv4Address:
    try:
        return IPv4Address(text)
    except AddressValueError as error:
        raise InvalidInput(f"the site's address for {what} is not an IPv4 address: {error}") from None
