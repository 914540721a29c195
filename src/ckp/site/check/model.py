"""What is checked, what was seen, and what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from ckp.api.host_protocol import Finding as HostFinding
from ckp.catalog.models import BundleTarget
from ckp.kits.errors import CkpError
from ckp.site.inventory import OutsideRegistry, SiteHost, SiteStorage


class Severity(StrEnum):
    """An error must be corrected before the site is set up; a warning need not be."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Args:
        host: the host's name; empty if it is about the site as a whole.
        check: which check found it, in a word or two.
        what: what is so, without a full stop.
        remedy: what to do, without a full stop.
    """

    host: str
    check: str
    severity: Severity
    what: str
    remedy: str


def failed(name: str, check: str, error: CkpError, remedy: str = "see what the host's journal says, and check again") -> Finding:
    """A look that failed, as a finding about the host `name`; `remedy` is for errors that name none."""
    details = error.details.strip().splitlines()
    what = f"{error.brief}: {details[-1].strip()}" if details else error.brief
    return Finding(name, check, Severity.ERROR, what, error.resolution or remedy)


class Role(StrEnum):
    """What a host is for."""

    MANAGEMENT = "management"
    WORKER = "worker"


@dataclass(frozen=True)
class HostToCheck:
    """A host with its role."""

    host: SiteHost
    role: Role = Role.MANAGEMENT

    @property
    def name(self) -> str:
        """The host's name."""
        return self.host.name


@dataclass(frozen=True)
class SiteToCheck:
    """A site before it is set up. All addresses are IPv4, networks are CIDRs; what is empty is not checked.

    Args:
        network: the hosts' network.
        pods: network of the management cluster's pods.
        services: network of its Services.
        pool: first and last address for load balancers.
        free: what an address is for -> an address that nothing may have yet. At most MAX_FREE are looked at.
        names: names that must resolve on each host.
        proxy: URL of a proxy that each host must reach.
        systems: operating systems that hosts may have.
        ports: TCP ports of CKP on management hosts beside those of Kubernetes -> what for. All hosts must reach them.
        settings: `host.json` that management hosts are to get.
        database: host and port of a database that management hosts must reach.
        site_settings: the document that all hosts are to get (ckp.site.settings); empty if none.
        nameservers: addresses that must answer each host.
        time_servers: names or addresses that must answer each host.
        known: what was found in the files that the site's file names.
        storage: of the workload clusters' etcd.
        registry: one that was there before the site; None for CKP's own.
        on_hosts: addresses that management hosts must have.
        foreign_load_balancer: another load balancer gives Compass and the hub their addresses: once the site is set up, it answers for them.
        leads: names that must lead to an address, on each host and on this machine -> that address.
    """

    hosts: Sequence[HostToCheck]
    network: str = ""
    pods: str = ""
    services: str = ""
    pool: tuple[str, str] | None = None
    free: Mapping[str, str] = field(default_factory=dict)
    names: Sequence[str] = ()
    proxy: str = ""
    systems: Sequence[BundleTarget] = ()
    ports: Mapping[int, str] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    database: tuple[str, int] | None = None
    site_settings: str = ""
    nameservers: Sequence[str] = ()
    time_servers: Sequence[str] = ()
    known: Sequence[Finding] = ()
    storage: SiteStorage = field(default_factory=SiteStorage)
    registry: OutsideRegistry | None = None
    on_hosts: Sequence[str] = ()
    foreign_load_balancer: bool = False
    leads: Mapping[str, str] = field(default_factory=dict)


class Link(BaseModel):
    """A network link of a host."""

    name: str
    mac: str = ""


class Facts(BaseModel):
    """What a host is. Unlike a HostFacts, it takes whatever a host says: that it is wrong is what is to be found."""

    hostname: str
    machine_id: str
    os_id: str
    os_version: str
    architecture: str
    addresses: tuple[str, ...] = ()
    swap: bool = False
    links: tuple[Link, ...] = ()


class Survey(BaseModel):
    """What a host says of itself (ckp.hosttool.preflight.survey), and what it sees of its surroundings (remote.py)."""

    model_config = ConfigDict(frozen=True)

    facts: Facts
    findings: tuple[HostFinding, ...] = ()
    member: str = ""
    ports: tuple[int, ...] = ()
    ports_between: tuple[int, ...] = ()
    listening: tuple[int, ...] = ()
    owners: Mapping[int, str] = {}
    """Of the site's own ports those that something listens on -> what that is, as `nginx (pid 7)`."""
    firewalls: tuple[str, ...] = ()
    opened: tuple[str, ...] = ()
    names: Mapping[str, tuple[str, ...]] = {}
    """Name -> its addresses; none if it does not resolve."""
    proxy: str = ""
    """Why the proxy is not reached; empty if it is, or if there is none."""
    database: str = ""
    """Why the database is not reached, as for the proxy."""
    registry: int | str = 0
    """What an existing registry answers to a pull by the host's login (a status of HTTP), or why it is not reached; 0 if it was not asked."""
    untaken: tuple[tuple[str, str], ...] = ()
    """Why the host can't take the site's settings, and what to do."""
    nameservers: Mapping[str, str] = {}
    """Name server -> why it does not answer; empty if it does."""
    time_servers: Mapping[str, float | str] = {}
    """Time server -> seconds that it is ahead of the host's clock, or why it does not answer."""


@dataclass(frozen=True)
class Clock:
    """A host's clock against this machine's: seconds that it is ahead, and by how much that may be wrong."""

    ahead: float
    uncertain: float


@dataclass(frozen=True)
class Blocked:
    """A connection that was tried and not made."""

    source: str
    target: str
    port: int
    why: str


@dataclass(frozen=True)
class Seen:
    """All that was seen, by the hosts' names.

    Args:
        answers: address -> hardware address of what answers for it.
        here: name of `SiteToCheck.leads` -> its addresses on this machine; None if they were not asked for.
    """

    surveys: Mapping[str, Survey] = field(default_factory=dict)
    clocks: Mapping[str, Clock] = field(default_factory=dict)
    answers: Mapping[str, str] = field(default_factory=dict)
    blocked: Sequence[Blocked] = ()
    here: Mapping[str, Sequence[str]] | None = None
