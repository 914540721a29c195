"""Hosts as people see them: ByoHost objects with what the agent last reported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ckp.api import kinds, names
from ckp.clients.kube import Kube, Obj
from ckp.compass.access.projects import Namespaces, ProjectRef, check_label
from ckp.compass.store.database import Database
from ckp.kits.clock import Clock, parse_rfc3339
from ckp.kits.errors import Conflict, NotFound
from ckp.rules.claims import Wanted, candidate, no_bundle

GROUP_PREFIX = f"{names.HOST_GROUP_LABEL}/"


@dataclass(frozen=True)
class HostView:
    """One host."""

    name: str
    state: str
    connected: bool
    cordoned: bool
    free: bool
    groups: tuple[str, ...]
    labels: Mapping[str, str]
    taints: tuple[str, ...]
    cluster: str
    machine: str
    address: str
    os: str
    agent_version: str
    agent_wanted: str
    last_seen: datetime | None  # while it is connected up to five minutes old
    clock_offset_seconds: float | None
    created_at: datetime
    phase: str
    creation: str
    release: str
    reason: str
    message: str
    facts: Mapping[str, Any]
    conditions: tuple[Mapping[str, Any], ...]
    journal: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class EventView:
    """Something that became so."""

    at: datetime
    type: str
    reason: str
    message: str


def condition(obj: Obj, kind: str) -> dict[str, Any] | None:
    """A condition of an object by its type."""
    for entry in (obj.get("status") or {}).get("conditions") or []:
        if entry.get("type") == kind:
            return dict(entry)
    return None


def is_true(obj: Obj, kind: str) -> bool:
    """Whether a condition is there and True."""
    return (condition(obj, kind) or {}).get("status") == "True"


def groups_of(host: Obj) -> tuple[str, ...]:
    """The groups that a host is in."""
    return tuple(sorted(label.removeprefix(GROUP_PREFIX) for label in host["metadata"].get("labels") or {} if label.startswith(GROUP_PREFIX)))


def is_claimed(host: Obj) -> bool:
    """Whether a machine of a cluster holds it."""
    return bool((host.get("spec") or {}).get("machineRef"))


def is_free(host: Obj) -> bool:
    """Whether a cluster could have it now, by the rule that the claim itself goes by."""
    return not why_not_free(host)


def why_not_free(host: Obj, wanted: Wanted | None = None) -> str:
    """What keeps a host from being claimed (rules.claims), by whomever or for what is wanted, in words; '' if nothing does."""
    wanted, seen = wanted or Wanted(), candidate(host)
    if is_claimed(host) and not seen.deleting:
        return f"is claimed by machine {host['spec']['machineRef'].get('name')}"
    words = {
        "going away": "is being removed",
        "cordoned": "is cordoned" if (host.get("spec") or {}).get("cordoned") else "is drained",
        "offline": "its agent is not connected",
        "cloned": "is two machines with one certificate",
        "not yet clean": "is not clean yet",
        "flapping": "has come and gone several times lately",
        "unfit": f"is not fit: {seen.unfit or no_bundle(wanted.release, seen)}",
    }
    return words.get(wanted.unavailable(seen), "")


def creation(host: Obj) -> str:
    """How far a claimed host is on its way to a node, in the three words of the product's API; '' for one that is on no such way."""
    phase = ((host.get("status") or {}).get("observed") or {}).get("phase")
    if not is_claimed(host) or phase == "Resetting":
        return ""
    return {"Joined": "Create Completed", "Failed": "Create Failed"}.get(str(phase), "Create Pending")


def addresses_of(host: Obj) -> list[str]:
    """All addresses that a host reported."""
    return [address for network in (host.get("status") or {}).get("network") or [] for address in network.get("ipAddrs") or []]


def view(host: Obj) -> HostView:
    """A ByoHost as people see it."""
    meta, spec, status = host["metadata"], host.get("spec") or {}, host.get("status") or {}
    agent, facts, observed = status.get("agent") or {}, status.get("facts") or {}, status.get("observed") or {}
    connected = is_true(host, "AgentConnected")
    claimed = is_claimed(host)
    if meta.get("deletionTimestamp"):
        state = "Deleting"
    elif not connected:
        state = "Offline"
    elif claimed or observed.get("phase", "Free") not in ("Free", ""):
        state = str(observed.get("phase") or "Claimed")
        state = "Claimed" if state == "Free" else state
    else:
        state = "Cordoned" if spec.get("cordoned") else "Free"
    return HostView(
        name=meta["name"],
        state=state,
        connected=connected,
        cordoned=bool(spec.get("cordoned")),
        free=is_free(host),
        groups=groups_of(host),
        labels={key: value for key, value in (meta.get("labels") or {}).items() if not key.startswith(GROUP_PREFIX)},
        taints=tuple(spec.get("taints") or ()),
        cluster=str(observed.get("cluster") or "").rpartition("/")[2] if claimed or observed.get("cluster") else "",
        machine=str((spec.get("machineRef") or {}).get("name") or ""),
        address=str(agent.get("address") or facts.get("default_address") or ""),
        os=f"{facts['os_id']} {facts.get('os_version', '')}".strip() if facts.get("os_id") else "",
        agent_version=str(agent.get("version") or ""),
        agent_wanted=str(spec.get("agentVersion") or ""),
        last_seen=parse_rfc3339(agent["lastSeen"]) if agent.get("lastSeen") else None,
        clock_offset_seconds=agent.get("clockOffsetSeconds"),
        created_at=parse_rfc3339(meta["creationTimestamp"]),
        phase=str(observed.get("phase") or ""),
        creation=creation(host),
        release=str(observed.get("release") or ""),
        reason=str(observed.get("reason") or ""),
        message=str(observed.get("message") or ""),
        facts=facts,
        conditions=tuple(status.get("conditions") or ()),
        journal=tuple(status.get("journal") or ()),
    )


def _not_found(project: ProjectRef, name: str) -> NotFound:
    return NotFound(f"there is no host {name} in {project.domain}/{project.project}", resolution="list them: ckp host list")


class Hosts:
    """Use cases around enrolled hosts."""

    def __init__(self, database: Database, kube: Kube, namespaces: Namespaces, clock: Clock) -> None:
        self._database = database
        self._kube = kube
        self._namespaces = namespaces
        self._clock = clock

    async def list(self, project: ProjectRef, *, group: str = "") -> list[HostView]:
        """All hosts of a project, or those of a group, by name."""
        labels = {names.group_label(check_label("group", group)): None} if group else None
        return sorted((view(obj) for obj in await self._namespaces.list(kinds.BYO_HOST, project, labels=labels)), key=lambda host: host.name)

    async def get(self, project: ProjectRef, name: str) -> HostView:
        """One host."""
        return view(await self.require(project, name))

    async def events(self, project: ProjectRef, name: str) -> tuple[EventView, ...]:
        """What became of a host lately, oldest first. Kubernetes keeps Events for an hour."""
        host = await self.require(project, name)
        found = await self._namespaces.list(kinds.EVENT, project, labels={names.EVENT_LABEL: host["metadata"]["uid"]})
        views = [
            EventView(parse_rfc3339(item["lastTimestamp"]), str(item.get("type")), str(item.get("reason")), str(item.get("message")))
            for item in found
            if item.get("lastTimestamp")
        ]
        return tuple(sorted(views, key=lambda event: (event.at, event.reason)))

    async def require(self, project: ProjectRef, name: str) -> Obj:
        """The host's object; NotFound if there is none."""
        found = await self._namespaces.get(kinds.BYO_HOST, name, project)
        if found is None:
            raise _not_found(project, name)
        return found

    async def delete(self, actor: str, project: ProjectRef, name: str, *, force: bool = False) -> None:
        """Take a host out of CKP. Its certificate is void from then on, and the machine may enrol anew.

        Raises:
            Conflict: a cluster uses it, and `force` is not set.
        """
        host = await self._namespaces.get(kinds.BYO_HOST, name, project)
        if host is None and not await self._requests_of(project, name):
            raise _not_found(project, name)
        if host is not None and is_claimed(host) and not force:
            raise Conflict(
                f"host {name} is claimed by machine {host['spec']['machineRef'].get('name')}",
                resolution="scale the cluster down or delete it first; force takes the host away without cleaning it",
            )
        # The object goes first: if we die in between, the machine is locked out and doing it again cleans up the request.
        await self._kube.delete(kinds.BYO_HOST, name, project.namespace)
        async with self._database.unit() as unit:
            for row in await unit.requests_of_host(project.domain, project.project, name):
                await unit.session.delete(row)
            unit.audit(self._clock.now(), actor, project.domain, project.project, "host.delete", name, {"force": force})

    async def _requests_of(self, project: ProjectRef, name: str) -> int:
        """How many requests the host has come from: they are left where a deletion broke off, and would keep the machine from enrolling anew."""
        async with self._database.unit() as unit:
            return len(await unit.requests_of_host(project.domain, project.project, name))
