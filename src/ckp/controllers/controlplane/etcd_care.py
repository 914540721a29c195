"""Looks at a cluster's etcd by what its members say, and frees space in it: compaction, defragmentation, the end of an alarm.

The controllers show the API server's client certificate, from a Secret of the cluster's own that they read anyway; the cluster's NetworkPolicy lets them
in. They read and write no key. What is remembered here only keeps from doing a thing again too soon; after a restart it is done once more.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from ckp.api.kinds import SECRET
from ckp.api.objects.control_plane import EtcdStatus as RecordedEtcd
from ckp.api.states import Reason
from ckp.clients.etcd import NO_SPACE, Alarm, ConnectEtcd, Credentials, EtcdError, EtcdMember, EtcdStatus, connect
from ckp.clients.kube import Kube, Obj
from ckp.controllers.controlplane.etcd import CLIENT_PORT, member_host, member_names
from ckp.controllers.controlplane.plan import Plan
from ckp.controllers.events import emit
from ckp.kits.clock import Clock
from ckp.rules.etcd import Action, Member, Step, next_step
from ckp.rules.events import Transition

FRESH = 5.0
"""Seconds for which a look is good."""
REVISIONS = 1000
"""How far the highest revision may be ahead of the recorded one."""
AGAIN_AFTER = 600.0
"""Seconds before the same member is defragmented again."""


@dataclass(frozen=True)
class View:
    """A cluster's etcd as it was seen.

    Attributes:
        members: what each member that answered says, by its name.
        silent: why each of the others could not be asked.
    """

    members: dict[str, EtcdStatus]
    silent: dict[str, str]
    alarms: tuple[Alarm, ...] = ()

    @property
    def no_space(self) -> bool:
        """Whether etcd refuses writes for want of space."""
        return any(alarm.kind == NO_SPACE for alarm in self.alarms)

    def for_rules(self) -> list[Member]:
        """The members as the rules know them."""
        return [Member(name, seen.member_id, seen.leader == seen.member_id, seen.size, seen.in_use) for name, seen in self.members.items()]


def record(before: RecordedEtcd, view: View, quota: int) -> Obj:
    """`status.etcd` after a look; as before where only little has changed, since each change wakes who watches the object."""
    largest = max(view.members.values(), key=lambda seen: seen.size)
    revision = max(seen.revision for seen in view.members.values())
    kept = before.cluster_id == largest.cluster_id and before.quota_bytes == quota and before.revision <= revision < before.revision + REVISIONS
    if kept and abs(largest.size - before.database_bytes) * 10 <= quota and abs(largest.in_use - before.in_use_bytes) * 10 <= quota:
        return before.model_dump(by_alias=True)
    return {
        "clusterId": largest.cluster_id,
        "revision": max(revision, before.revision),
        "databaseBytes": largest.size,
        "inUseBytes": largest.in_use,
        "quotaBytes": quota,
    }


@dataclass
class _Memory:
    at: float = 0.0
    view: View | None = None
    defragmented: dict[str, float] = field(default_factory=dict)


@dataclass
class EtcdCare:
    """For all clusters."""

    kube: Kube
    clock: Clock
    connect_to: ConnectEtcd = connect
    _memory: dict[tuple[str, str], _Memory] = field(default_factory=dict)

    def forget(self, namespace: str, cluster: str) -> None:
        """Of a cluster that is gone."""
        self._memory.pop((namespace, cluster), None)

    def forget_view(self, namespace: str, cluster: str) -> None:
        """Its etcd is away: what was seen before no longer counts."""
        if (memory := self._memory.get((namespace, cluster))) is not None:
            memory.view = None

    async def look(self, plan: Plan) -> View:
        """What the members say now, or said a few seconds ago. Nobody's silence is an error."""
        memory = self._memory.setdefault((plan.namespace, plan.cluster), _Memory())
        if memory.view is None or self.clock.monotonic() - memory.at >= FRESH:
            memory.view, memory.at = await self._look(plan), self.clock.monotonic()
        return memory.view

    async def _look(self, plan: Plan) -> View:
        names = member_names(plan)
        try:
            credentials = await self._credentials(plan)
        except EtcdError as error:
            return View({}, dict.fromkeys(names, error.brief))
        members: dict[str, EtcdStatus] = {}
        silent: dict[str, str] = {}
        alarms: set[Alarm] = set()

        async def ask(name: str) -> None:
            try:
                async with self._member(plan, name, credentials) as member:
                    members[name] = await member.status()
                    alarms.update(await member.alarms())
            except EtcdError as error:
                if name not in members:  # without a quorum a member still speaks for itself
                    silent[name] = error.brief

        await asyncio.gather(*map(ask, names))
        return View(dict(sorted(members.items())), dict(sorted(silent.items())), tuple(sorted(alarms, key=lambda alarm: (alarm.kind, alarm.member_id))))

    async def free_space(self, plan: Plan, view: View, quota: int) -> bool:
        """The next step for more space, if one is due; whether one was made, so that it is worth looking again soon.

        Raises:
            EtcdError: a member refused, or did not answer.
        """
        memory = self._memory.setdefault((plan.namespace, plan.cluster), _Memory())
        now = self.clock.monotonic()
        recently = {name for name, at in memory.defragmented.items() if now - at < AGAIN_AFTER}
        step = next_step(view.for_rules(), view.no_space, quota, recently)
        if step is None or (view.silent and step.action is Action.DEFRAGMENT):  # without need no member is stopped while another is away
            return False
        memory.view = None
        async with self._member(plan, step.member or next(iter(view.members)), await self._credentials(plan)) as member:
            if step.action is Action.COMPACT:  # this alone gives no space, but the next look shows whether there is some to gain
                await self._compact(member, view)
                return False
            message = await self._do(step, member, view, memory)
        await emit(self.kube, self.clock, plan.owner, Transition(f"etcd {now}", step.action, Reason.SPACE_FREED, message, warning=False))
        return True

    async def _do(self, step: Step, member: EtcdMember, view: View, memory: _Memory) -> str:
        if step.action is Action.DISARM:
            for alarm in view.alarms:
                if alarm.kind == NO_SPACE:
                    await member.disarm(alarm)
            return "etcd has space again: its alarm is ended, and the cluster takes writes"
        if step.action is Action.COMPACT_AND_DEFRAGMENT:
            await self._compact(member, view)
        memory.defragmented[step.member] = self.clock.monotonic()
        await member.defragment()
        before, after = view.members[step.member].size, (await member.status()).size
        return f"etcd member {step.member} was defragmented: {before >> 20} MiB before, {after >> 20} MiB now"

    async def _compact(self, member: EtcdMember, view: View) -> None:
        await member.compact(max(seen.revision for seen in view.members.values()))

    @asynccontextmanager
    async def _member(self, plan: Plan, name: str, credentials: Credentials) -> AsyncIterator[EtcdMember]:
        member = self.connect_to(f"https://{member_host(plan, name)}:{CLIENT_PORT}", credentials)
        try:
            yield member
        finally:
            await member.close()

    async def _credentials(self, plan: Plan) -> Credentials:
        authority = await self._data(plan, "etcd")
        client = await self._data(plan, "apiserver-etcd-client")
        return Credentials(authority["tls.crt"], client["tls.crt"], client["tls.key"])

    async def _data(self, plan: Plan, part: str) -> dict[str, bytes]:
        found: Obj | None = await self.kube.get(SECRET, plan.name(part), plan.namespace)
        data = {key: base64.b64decode(value) for key, value in ((found or {}).get("data") or {}).items()}
        if not {"tls.crt", "tls.key"} <= data.keys():
            raise EtcdError(f"Secret {plan.namespace}/{plan.name(part)} holds no certificate yet")
        return data
