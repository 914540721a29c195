"""Hosts as people see them: ByoHost objects with what the agent last reported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ckp.api import kinds, names
from ckp.api.objects.base import time_of
from ckp.api.objects.byo_host import ByoHost
from ckp.api.states import ConditionType, HostPhase
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


def groups_of(host: Obj) -> tuple[str, ...]:
    """The groups that a host is in."""
    return tuple(sorted(label.removeprefix(GROUP_PREFIX) for label in host["metadata"].get("labels") or {} if label.startswith(GROUP_PREFIX)))


def is_claimed(host: Obj) -> bool:
    """Whether a machine of a cluster holds it."""
    return ByoHost.of(host).claimed


def is_free(host: Obj) -> bool:
    """Whether a cluster could have it now, by the rule that the claim itself goes by."""
    return not why_not_free(host)


def why_not_free(host: Obj, wanted: Wanted | None = None) -> str:
    """What keeps a host from being claimed (rules.claims), by whomever or for what is wanted, in words; '' if nothing does."""
    return _why_not_free(ByoHost.of(host), wanted or Wanted())


def _why_not_free(host: ByoHost, wanted: Wanted) -> str:
    seen = candidate(host)
    if host.claimed and not seen.deleting:
        return f"is claimed by machine {host.spec.machine_ref.name}"
    words = {
        "going away": "is being removed",
        "cordoned": "is cordoned" if host.spec.cordoned else "is drained",
        "offline": "its agent is not connected",
        "cloned": "is two machines with one certificate",
        "not yet clean": "is not clean yet",
        "flapping": "has come and gone several times lately",
        "unfit": f"is not fit: {seen.unfit or no_bundle(wanted.release, seen)}",
    }
    return words.get(wanted.unavailable(seen), "")


def creation(host: ByoHost) -> str:
    """How far a claimed host is on its way to a node, in the three words of the product's API; '' for one that does not become a node."""
    phase = host.status.observed.phase
    if not host.claimed or phase == HostPhase.RESETTING:
        return ""
    words: dict[str, str] = {HostPhase.JOINED: "Create Completed", HostPhase.FAILED: "Create Failed"}
    return words.get(phase, "Create Pending")


def addresses_of(host: Obj) -> list[str]:
    """All addresses that a host reported."""
    return [address for network in ByoHost.of(host).status.network for address in network.ip_addrs]


def view(obj: Obj) -> HostView:
    """A ByoHost as people see it."""
    host, status = ByoHost.of(obj), obj.get("status") or {}
    agent, facts, observed = host.status.agent, host.status.facts, host.status.observed
    connected = host.condition(ConditionType.AGENT_CONNECTED).is_true
    if host.deleting:
        state = "Deleting"
    elif not connected:
        state = "Offline"
    elif host.claimed or observed.phase not in (HostPhase.FREE, ""):
        state = observed.phase if observed.phase not in (HostPhase.FREE, "") else "Claimed"
    else:
        state = "Cordoned" if host.spec.cordoned else "Free"
    return HostView(
        name=host.name,
        state=state,
        connected=connected,
        cordoned=host.spec.cordoned,
        free=not _why_not_free(host, Wanted()),
        groups=groups_of(obj),
        labels={key: value for key, value in host.metadata.labels.items() if not key.startswith(GROUP_PREFIX)},
        taints=host.spec.taints,
        cluster=observed.cluster_name,
        machine=host.spec.machine_ref.name,
        address=agent.address or facts.default_address,
        os=f"{facts.os_id} {facts.os_version}".strip() if facts.os_id else "",
        agent_version=agent.version,
        agent_wanted=host.spec.agent_version,
        last_seen=time_of(agent.last_seen),
        clock_offset_seconds=agent.clock_offset_seconds,
        created_at=parse_rfc3339(host.metadata.creation_timestamp),
        phase=observed.phase,
        creation=creation(host),
        release=observed.release,
        reason=observed.reason,
        message=observed.message,
        facts=status.get("facts") or {},
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
