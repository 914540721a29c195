"""Which host a machine gets: by rule, never by chance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ckp.rules.certificates import agent_of
from ckp.rules.conditions import get_condition

UNAVAILABLE = ("in use", "offline", "cordoned", "not yet clean", "cloned", "flapping", "unfit", "going away")
"""Why a host is not free, in the order in which people are told."""
_ORDER = ("going away", "in use", "cordoned", "offline", "cloned", "not yet clean", "flapping", "unfit")


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

    def unavailable(self) -> str:
        """Why no new machine may have it, in a word or two; "" if it is free."""
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
        return next((word for word in _ORDER if holds[word]), "")


def candidate(host: Mapping[str, Any]) -> Candidate:
    """The candidate that a ByoHost object describes."""
    spec, status = host.get("spec") or {}, host.get("status") or {}
    facts = status.get("facts") or {}
    blocking = [item for item in facts.get("findings") or [] if item.get("blocking")]
    return Candidate(
        name=host["metadata"]["name"],
        labels=host["metadata"].get("labels") or {},
        claimed_by=(spec.get("machineRef") or {}).get("uid", ""),
        connected=bool(agent_of(host).get("connected")),
        cordoned=bool(spec.get("cordoned") or spec.get("drain")),  # a drain that was asked for would go on with the next machine's node
        deleting="deletionTimestamp" in host["metadata"],
        idle=(status.get("observed") or {}).get("phase") == "Free",
        unique=not _is_false(host, "IdentityUnique"),
        stable=not _is_false(host, "Stable"),
        unfit=f"{blocking[0].get('problem', '')}: {blocking[0].get('remediation') or blocking[0].get('mend', '')}" if blocking else "",
        cpus=int(facts.get("cpus") or 0),
        memory_bytes=int(facts.get("memory_bytes") or 0),
        system=system_of(facts),
    )


def system_of(facts: Mapping[str, Any]) -> str:
    """A host's operating system as bundles are named for it (ckp.agent.system.facts.host_facts_os): debian-12, and rhel-9 for 9.4; "" if it has not said."""
    name, number = str(facts.get("os_id") or ""), str(facts.get("os_version") or "")
    return f"{name}-{number.partition('.')[0] if name == 'rhel' else number}" if name else ""


def _is_false(host: Mapping[str, Any], condition: str) -> bool:
    return (get_condition(dict(host), condition) or {}).get("status") == "False"


OTHERS = ("ckp.coredge.io", "cluster.x-k8s.io", "kubernetes.io", "k8s.io")
"""Domains of labels that are not the users' to set, with all below them."""


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
    expressions: tuple[Mapping[str, Any], ...] = ()
    cpus: int = 0
    memory_bytes: int = 0
    release: str = ""
    systems: frozenset[str] = frozenset()
    """Those that there is a bundle of the release for; none: whichever."""

    @classmethod
    def of(cls, spec: Mapping[str, Any], release: str = "", systems: Iterable[str] = ()) -> Wanted:
        """From the spec of a ByoMachine, or of a template's machine; for a release, if a host is to be chosen for it."""
        selector, least = spec.get("selector") or {}, spec.get("minimum") or {}
        return cls(
            labels=selector.get("matchLabels") or {},
            expressions=tuple(selector.get("matchExpressions") or ()),
            cpus=int(least.get("cpus") or 0),
            memory_bytes=int(least.get("memoryBytes") or 0),
            release=release,
            systems=frozenset(systems),
        )

    def has_bundle(self, host: Candidate) -> bool:
        """Whether the release can be installed on the host's operating system."""
        return not self.systems or not host.system or host.system in self.systems

    def unavailable(self, host: Candidate) -> str:
        """Why the machine may not have this host, in a word or two; "" if it may."""
        return host.unavailable() or ("" if self.has_bundle(host) else "unfit")

    def fits(self, host: Candidate) -> bool:
        """Whether a host is one of those asked for, free or not."""
        return (
            all(host.labels.get(key) == value for key, value in self.labels.items())
            and all(_holds(expression, host.labels) for expression in self.expressions)
            and host.cpus >= self.cpus
            and host.memory_bytes >= self.memory_bytes
        )


def _holds(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """One matchExpression (apimachinery, labels/selector.go); an operator that is not known holds for nobody."""
    key, values = str(expression.get("key")), expression.get("values") or []
    match expression.get("operator"):
        case "In":
            return labels.get(key) in values
        case "NotIn":
            return labels.get(key) not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
    return False


@dataclass(frozen=True)
class Choice:
    """The chosen host's name, or why there is none."""

    host: str = ""
    reason: str = ""


def choose_host(candidates: Iterable[Candidate], wanted: Wanted, machine: str) -> Choice:
    """The host that the machine with this uid holds already, else the smallest free one that will do, the first by name among equals.

    The smallest, so that large hosts stay for those who ask for them. One that is not free (Candidate.unavailable) is never taken.
    """
    everyone = list(candidates)
    if held := [item for item in everyone if item.claimed_by == machine]:
        return Choice(min(item.name for item in held))
    matching = [item for item in everyone if wanted.fits(item)]
    if free := [item for item in matching if not wanted.unavailable(item)]:
        return Choice(min(free, key=lambda item: (item.memory_bytes, item.cpus, item.name)).name)
    return Choice(reason=_why_none(matching, wanted))


def no_bundle(release: str, host: Candidate) -> str:
    """What is said of a host that no bundle is for."""
    return f"there is no bundle of {release} for {host.system}"


def _why_none(matching: list[Candidate], wanted: Wanted) -> str:
    if not matching:
        size = " and is large enough" if wanted.cpus or wanted.memory_bytes else ""
        return f"no host carries the labels that the machine asks for{size}"
    counts = Counter(wanted.unavailable(item) for item in matching)
    found = ", ".join(f"{counts[what]} {what}" for what in UNAVAILABLE if counts[what])
    unfit = next((f"; {item.name}: {item.unfit or no_bundle(wanted.release, item)}" for item in matching if wanted.unavailable(item) == "unfit"), "")
    return f"none of {len(matching)} matching hosts is free: {found}{unfit}"
