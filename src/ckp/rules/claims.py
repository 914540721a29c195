"""Which host a machine gets: by rule, never by chance. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

from ckp.api.objects.byo_host import ByoHost, Facts
from ckp.api.objects.byo_machine import ByoMachineSpec, SelectorRequirement
from ckp.api.states import ConditionType, HostPhase
from ckp.rules.selectors import matches

UNAVAILABLE = ("in use", "offline", "cordoned", "not yet clean", "cloned", "flapping", "unfit", "going away")
"""Why a host is not free, in the order in which messages list the counts."""
_PRECEDENCE = ("going away", "in use", "cordoned", "offline", "cloned", "not yet clean", "flapping", "unfit")


Networks = tuple[tuple[str, IPv4Network | IPv6Network], ...]
"""A cluster's own networks, each with what it is for."""


def cluster_networks(cluster: Mapping[str, Any]) -> Networks:
    """The pod and service networks of a Cluster; blocks that are not networks are left out, as nothing can collide with them."""
    found: list[tuple[str, IPv4Network | IPv6Network]] = []
    for key, what in (("pods", "pod"), ("services", "service")):
        for block in (((cluster.get("spec") or {}).get("clusterNetwork") or {}).get(key) or {}).get("cidrBlocks") or ():
            try:
                found.append((what, ip_network(str(block), strict=False)))
            except ValueError:
                continue
    return tuple(found)


@dataclass(frozen=True)
class Candidate:
    """A host, as far as a claim is concerned."""

    name: str
    labels: Mapping[str, str]
    claimed_by: str  # uid of the ByoMachine that holds it, or ""
    connected: bool
    cordoned: bool
    deleting: bool
    idle: bool  # observed phase is Free: nothing of an earlier cluster is left on it
    unique: bool = True  # no second machine was seen with this host's certificate
    stable: bool = True  # it has not come and gone several times lately
    unfit: str = ""  # its first blocking preflight finding, with the remediation
    cpus: int = 0
    memory_bytes: int = 0
    system: str = ""  # its operating system as bundles are named for it: debian-12, rhel-9
    addresses: tuple[str, ...] = ()  # all that it reported, perhaps with a prefix length

    def unavailable(self) -> str:
        """Why no new machine may claim it, in a word or two; "" if it is free."""
        holds = {
            "going away": self.deleting,
            "in use": bool(self.claimed_by),
            "cordoned": self.cordoned,
            "offline": not self.connected,
            "cloned": not self.unique,
            "not yet clean": not self.idle,
            "flapping": not self.stable,
            "unfit": bool(self.unfit),
        }
        return next((word for word in _PRECEDENCE if holds[word]), "")


def candidate(host: ByoHost) -> Candidate:
    """The candidate that a ByoHost describes."""
    facts = host.status.facts
    blocking = [finding for finding in facts.findings if finding.blocking]
    return Candidate(
        name=host.name,
        labels=host.metadata.labels,
        claimed_by=host.spec.machine_ref.uid,
        connected=host.status.agent.connected,
        cordoned=bool(host.spec.cordoned or host.spec.drain),  # a drain that was asked for would go on with the next machine's node
        deleting=host.deleting,
        idle=host.status.observed.phase == HostPhase.FREE,
        unique=not host.condition(ConditionType.IDENTITY_UNIQUE).is_false,
        stable=not host.condition(ConditionType.STABLE).is_false,
        unfit=f"{blocking[0].problem}: {blocking[0].advice}" if blocking else "",
        cpus=facts.cpus,
        memory_bytes=facts.memory_bytes,
        system=system_of(facts),
        addresses=tuple(address for network in host.status.network for address in network.ip_addrs),
    )


def system_of(facts: Facts) -> str:
    """A host's operating system as bundles are named for it; "" if not reported."""
    return system_name(facts.os_id, facts.os_version)


def system_name(name: str, number: str) -> str:
    """ID and VERSION_ID of os-release(5) as bundles are named for them (ckp.agent.system.facts): debian-12, and rhel-9 for 9.4; "" without an ID."""
    return f"{name}-{number.partition('.')[0] if name == 'rhel' else number}" if name else ""


OTHERS = ("ckp.coredge.io", "cluster.x-k8s.io", "kubernetes.io", "k8s.io")
"""Domains of labels that users may not set, with their subdomains."""


def of_users(key: str) -> bool:
    """Whether a label's key is one that users may set on a host; the host's nodes carry these too."""
    prefix = key.rpartition("/")[0]
    return not any(prefix == domain or prefix.endswith(f".{domain}") for domain in OTHERS)


def user_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Of a host's labels those that users have set."""
    return {key: value for key, value in labels.items() if of_users(key)}


@dataclass(frozen=True)
class Wanted:
    """What a machine asks of a host: labels as a Kubernetes label selector has them, and a least size."""

    labels: Mapping[str, str] = field(default_factory=dict)
    expressions: tuple[SelectorRequirement, ...] = ()
    cpus: int = 0
    memory_bytes: int = 0
    release: str = ""
    systems: frozenset[str] = frozenset()
    """Those that the release has a bundle for; empty: any."""
    networks: Networks = ()
    """The cluster's own networks: a host with an address in one of them would be cut off from its pods or services, or they from it."""

    @classmethod
    def of(cls, spec: ByoMachineSpec, release: str = "", systems: Iterable[str] = (), networks: Networks = ()) -> Wanted:
        """From the spec of a ByoMachine, or of a template's machine; for a release, if a host is to be chosen for it."""
        return cls(
            labels=spec.selector.match_labels,
            expressions=spec.selector.match_expressions,
            cpus=spec.minimum.cpus,
            memory_bytes=spec.minimum.memory_bytes,
            release=release,
            systems=frozenset(systems),
            networks=networks,
        )

    def has_bundle(self, host: Candidate) -> bool:
        """Whether the release can be installed on the host's operating system."""
        return not self.systems or not host.system or host.system in self.systems

    def unavailable(self, host: Candidate) -> str:
        """Why the machine may not claim this host, in a word or two; "" if it may."""
        return host.unavailable() or ("unfit" if self.why_unfit(host) else "")

    def why_unfit(self, host: Candidate) -> str:
        """What is found against the host, with the remediation where there is one; "" if nothing is."""
        return host.unfit or ("" if self.has_bundle(host) else no_bundle(self.release, host)) or self.collision(host)

    def collision(self, host: Candidate) -> str:
        """Which address of the host lies in one of the cluster's networks, or whose network overlaps one; "" if none."""
        for text in host.addresses:
            try:
                address, network = ip_address(text.partition("/")[0]), ip_network(text, strict=False)
            except ValueError:
                continue
            for what, own in self.networks:
                if address.version == own.version and address in own:
                    return f"its address {address} lies in the cluster's {what} network {own}"
                if "/" in text and network.version == own.version and network.prefixlen and network.overlaps(own):
                    return f"its network {network} overlaps the cluster's {what} network {own}"
        return ""

    def fits(self, host: Candidate) -> bool:
        """Whether a host is one of those asked for, free or not."""
        return self.selects(host) and self.is_large_enough(host)

    def selects(self, host: Candidate) -> bool:
        """Whether a host carries the labels that are asked for."""
        return all(host.labels.get(key) == value for key, value in self.labels.items()) and all(
            matches(expression.key, expression.operator, expression.values, host.labels) for expression in self.expressions
        )

    def is_large_enough(self, host: Candidate) -> bool:
        """Whether a host has the least size that is asked for."""
        return host.cpus >= self.cpus and host.memory_bytes >= self.memory_bytes


@dataclass(frozen=True)
class Choice:
    """The chosen host's name, or why there is none."""

    host: str = ""
    reason: str = ""


def choose_host(candidates: Iterable[Candidate], wanted: Wanted, machine: str) -> Choice:
    """The host that the machine with this uid holds already, else the smallest free one that will do, the first by name among equals.

    The smallest, so that large hosts stay free for machines that need them. One that is not free (Candidate.unavailable) is never taken.
    """
    hosts = list(candidates)
    if held := [item for item in hosts if item.claimed_by == machine]:
        return Choice(min(item.name for item in held))
    matching = [item for item in hosts if wanted.fits(item)]
    if free := [item for item in matching if not wanted.unavailable(item)]:
        return Choice(min(free, key=lambda item: (item.memory_bytes, item.cpus, item.name)).name)
    return Choice(reason=_why_none(matching, wanted))


def no_bundle(release: str, host: Candidate) -> str:
    """Why a host without a bundle for its system is unfit, in words."""
    return f"there is no bundle of {release} for {host.system}"


def _why_none(matching: list[Candidate], wanted: Wanted) -> str:
    if not matching:
        size = " and is large enough" if wanted.cpus or wanted.memory_bytes else ""
        return f"no host carries the labels that the machine asks for{size}"
    counts = Counter(wanted.unavailable(item) for item in matching)
    found = ", ".join(f"{counts[what]} {what}" for what in UNAVAILABLE if counts[what])
    unfit = next((f"; {item.name}: {wanted.why_unfit(item)}" for item in matching if wanted.unavailable(item) == "unfit"), "")
    return f"none of {len(matching)} matching hosts is free: {found}{unfit}"
