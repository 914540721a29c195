"""Which host a machine gets: by rule, never by chance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ckp.rules.conditions import get_condition


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


def candidate(host: Mapping[str, Any]) -> Candidate:
    """The candidate that a ByoHost object describes."""
    spec, status = host.get("spec") or {}, host.get("status") or {}
    return Candidate(
        name=host["metadata"]["name"],
        labels=host["metadata"].get("labels") or {},
        claimed_by=(spec.get("machineRef") or {}).get("uid", ""),
        connected=bool((status.get("agent") or {}).get("connected")),
        cordoned=bool(spec.get("cordoned")),
        deleting="deletionTimestamp" in host["metadata"],
        idle=(status.get("observed") or {}).get("phase") == "Free",
        unique=(get_condition(dict(host), "IdentityUnique") or {}).get("status") != "False",
    )


@dataclass(frozen=True)
class Choice:
    """The chosen host's name, or why there is none."""

    host: str = ""
    reason: str = ""


def choose_host(candidates: Iterable[Candidate], selector: Mapping[str, str], machine: str) -> Choice:
    """The host that the machine with this uid holds already, else the first free one by name.

    A host that another machine holds, that is offline, cordoned, going away, not yet clean, or two machines at once, is never taken.
    """
    matching = [item for item in candidates if all(item.labels.get(key) == value for key, value in selector.items())]
    if held := [item for item in matching if item.claimed_by == machine]:
        return Choice(min(item.name for item in held))
    if free := [item for item in matching if not item.claimed_by and item.connected and not item.cordoned and not item.deleting and item.idle and item.unique]:
        return Choice(min(item.name for item in free))
    return Choice(reason=_why_none(matching))


def _why_none(matching: list[Candidate]) -> str:
    if not matching:
        return "no host carries the labels that the machine asks for"
    counts = {
        "in use": sum(bool(item.claimed_by) for item in matching),
        "offline": sum(not item.claimed_by and not item.connected for item in matching),
        "cordoned": sum(not item.claimed_by and item.cordoned for item in matching),
        "cloned": sum(not item.claimed_by and not item.unique for item in matching),
        "not yet clean": sum(not item.claimed_by and item.connected and not item.idle for item in matching),
    }
    found = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    return f"none of {len(matching)} matching hosts is free: {found or 'all going away'}"
