"""Which machines are approved as hosts without a person's decision: by a project's rules, each a list of conditions that must all hold. Pure."""

from __future__ import annotations

import fnmatch
import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Criteria:
    """What a machine must be; an empty criterion is not checked.

    A machine reports its own facts, so a rule is as strong as the pre-shared key behind it; `networks` is checked against the address that the hub saw.
    """

    hostnames: tuple[str, ...] = ()  # patterns with * and ?, any of them
    networks: tuple[str, ...] = ()  # CIDRs of the address that the request came from, any of them
    systems: tuple[str, ...] = ()  # "debian-12", "ubuntu-24.04": any of them
    min_cpus: int = 0
    min_memory_bytes: int = 0

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Criteria:
        """From the plain data that a request or a database holds."""
        texts = {name: tuple(str(value) for value in data.get(name) or ()) for name in ("hostnames", "networks", "systems")}
        return cls(**texts, min_cpus=int(data.get("min_cpus") or 0), min_memory_bytes=int(data.get("min_memory_bytes") or 0))

    @property
    def empty(self) -> bool:
        """Whether there is no criterion at all."""
        return self == Criteria()


def why_not(criteria: Criteria, facts: Mapping[str, Any], source: str) -> str:
    """What keeps a machine from being approved by these criteria, in words; '' if nothing does."""
    hostname, system = str(facts.get("hostname", "")).lower(), f"{facts.get('os_id', '')}-{facts.get('os_version', '')}"
    if criteria.hostnames and not any(fnmatch.fnmatchcase(hostname, pattern.lower()) for pattern in criteria.hostnames):
        return f"its name {hostname} matches none of {', '.join(criteria.hostnames)}"
    if criteria.networks and not _inside(source, criteria.networks):
        return f"its address {source} is in none of {', '.join(criteria.networks)}"
    if criteria.systems and system not in criteria.systems:
        return f"it runs {system}, not {' or '.join(criteria.systems)}"
    if int(facts.get("cpus", 0)) < criteria.min_cpus:
        return f"it has {facts.get('cpus', 0)} CPUs, {criteria.min_cpus} are required"
    if int(facts.get("memory_bytes", 0)) < criteria.min_memory_bytes:
        return f"it has {int(facts.get('memory_bytes', 0)) >> 20} MiB of memory, {criteria.min_memory_bytes >> 20} are required"
    return ""


def first_match(rules: Sequence[tuple[str, Criteria]], facts: Mapping[str, Any], source: str) -> str:
    """The name of the first rule, by name, that approves the machine; '' if none does. A rule without criteria approves no machine."""
    return next((name for name, criteria in sorted(rules, key=lambda rule: rule[0]) if not criteria.empty and not why_not(criteria, facts, source)), "")


def _inside(source: str, networks: Sequence[str]) -> bool:
    try:
        address = ipaddress.ip_address(source)
    except ValueError:
        return False
    return any(address in ipaddress.ip_network(network) for network in networks)
