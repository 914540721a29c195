"""Hosts as people see them: ByoHost objects with what the agent last reported."""

from __future__ import annotations

from collections.abc import Sequence

from ckp.api import kinds, names
from ckp.api.compass.base import readable, readable_items
from ckp.api.compass.conditions import ConditionView
from ckp.api.compass.facts import HostFactsView
from ckp.api.compass.hosts import EventView, HostView
from ckp.api.host_protocol import JournalEntry
from ckp.api.objects.base import time_of
from ckp.api.objects.byo_host import ByoHost
from ckp.api.states import ConditionType, HostPhase
from ckp.clients.kube import Kube, Obj
from ckp.compass.access.kube_errors import translate_kube_errors
from ckp.compass.access.projects import Namespaces
from ckp.compass.identity import Caller, ProjectRef, check_label
from ckp.compass.store.database import Database
from ckp.kits.clock import parse_rfc3339
from ckp.kits.errors import Conflict, NotFound
from ckp.rules.claims import Wanted, candidate

GROUP_PREFIX = f"{names.HOST_GROUP_LABEL}/"


def groups_of(host: Obj) -> list[str]:
    """The groups that a host is in, by name."""
    return sorted(label.removeprefix(GROUP_PREFIX) for label in host["metadata"].get("labels") or {} if label.startswith(GROUP_PREFIX))


def is_claimed(host: Obj) -> bool:
    """Whether a machine of a cluster holds it."""
    return ByoHost.of(host).claimed


def is_free(host: Obj) -> bool:
    """Whether a cluster could have it now, by the same rule as the claim itself."""
    return not why_not_free(host)


def why_not_free(host: Obj, wanted: Wanted | None = None) -> str:
    """What keeps a host from being claimed (rules.claims), by any machine or by what is `wanted`, in words; '' if nothing does."""
    return _why_not_free(ByoHost.of(host), wanted or Wanted())


def _why_not_free(host: ByoHost, wanted: Wanted) -> str:
    seen = candidate(host)
    if host.claimed and not seen.deleting:
        return f"is claimed by machine {host.spec.machine_ref.name}"
    words = {
        "going away": "is being removed",
        "cordoned": "is cordoned" if host.spec.cordoned else "is drained",
        "offline": "its agent is not connected",
        "cloned": "has a duplicate identity: two machines use its certificate",
        "not yet clean": "is not clean yet",
        "flapping": "has lost its connection several times lately",
        "unfit": f"is not fit: {wanted.why_unfit(seen)}",
    }
    return words.get(wanted.unavailable(seen), "")


def creation(host: ByoHost) -> str:
    """How far a claimed host is on its way to a node, as the product's API names it; '' for a host that is not claimed, or is being reset."""
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
        taints=list(host.spec.taints),
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
        facts=readable(HostFactsView, status.get("facts")),
        conditions=readable_items(ConditionView, status.get("conditions")),
        journal=readable_items(JournalEntry, status.get("journal")),
    )


def _not_found(project: ProjectRef, name: str) -> NotFound:
    return NotFound(f"there is no host {name} in {project}", resolution="list them: ckp host list")


@translate_kube_errors
class Hosts:
    """Use cases around enrolled hosts."""

    def __init__(self, database: Database, kube: Kube, namespaces: Namespaces) -> None:
        self._database = database
        self._kube = kube
        self._namespaces = namespaces

    async def list(self, project: ProjectRef, *, group: str = "") -> list[HostView]:
        """All hosts of a project, or those of a group, by name."""
        labels = {names.group_label(check_label("group", group)): None} if group else None
        return sorted((view(obj) for obj in await self._namespaces.list(kinds.BYO_HOST, project, labels=labels)), key=lambda host: host.name)

    async def get(self, project: ProjectRef, name: str) -> HostView:
        """One host."""
        return view(await self.require(project, name))

    async def events(self, project: ProjectRef, name: str) -> Sequence[EventView]:
        """What happened to a host lately, oldest first. Kubernetes keeps Events for an hour."""
        host = await self.require(project, name)
        found = await self._namespaces.list(kinds.EVENT, project, labels={names.EVENT_LABEL: host["metadata"]["uid"]})
        views = [
            EventView(at=parse_rfc3339(item["lastTimestamp"]), type=str(item.get("type")), reason=str(item.get("reason")), message=str(item.get("message")))
            for item in found
            if item.get("lastTimestamp")
        ]
        return sorted(views, key=lambda event: (event.at, event.reason))

    async def require(self, project: ProjectRef, name: str) -> Obj:
        """The host's object; NotFound if there is none."""
        found = await self._namespaces.get(kinds.BYO_HOST, name, project)
        if found is None:
            raise _not_found(project, name)
        return found

    async def delete(self, caller: Caller, project: ProjectRef, name: str, *, force: bool = False) -> None:
        """Remove a host from CKP. Its certificate is void from then on, and the machine may enrol again.

        Raises:
            Conflict: a cluster uses it, and `force` is not set.
        """
        host = await self._namespaces.get(kinds.BYO_HOST, name, project)
        if host is None and not await self._requests_of(project, name):
            raise _not_found(project, name)
        if host is not None and is_claimed(host) and not force:
            raise Conflict(
                f"host {name} is claimed by machine {host['spec']['machineRef'].get('name')}",
                resolution=f"take it out of its cluster first (ckp host remove {name}); with force it is deleted without being cleaned",
            )
        # The object goes first: if Compass is killed in between, the machine is locked out, and doing it again deletes the request.
        await self._kube.delete(kinds.BYO_HOST, name, project.namespace)
        async with self._database.unit() as unit:
            for row in await unit.requests_of_host(project, name):
                await unit.session.delete(row)
            unit.audit(caller, project, "host.delete", name, {"force": force})

    async def _requests_of(self, project: ProjectRef, name: str) -> int:
        """How many requests the host came from: an interrupted deletion leaves them, and they would keep the machine from enrolling again."""
        async with self._database.reading() as unit:
            return len(await unit.requests_of_host(project, name))
