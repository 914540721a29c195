"""ClusterUpgrade: checks, hosts made ready, the control plane minor by minor, nodes in their order, and at last what pools ask for.

What comes next is worked out in each pass from what is: the control plane's version, each node's, what hosts have prepared. The status only tells it. So a
process that is killed goes on, and a second ClusterUpgrade to the same version continues where a failed one has stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from ckp.api.kinds import BYO_MACHINE, CLUSTER, CLUSTER_UPGRADE, MANAGED_CONTROL_PLANE
from ckp.api.names import CLUSTER_NAME_LABEL, CLUSTER_UPGRADE_FINALIZER, RETRY_UPGRADE_ANNOTATION
from ckp.api.objects.base import time_of
from ckp.api.objects.cluster_upgrade import OVER, ClusterUpgrade, UpgradedNode
from ckp.api.objects.control_plane import ManagedControlPlane
from ckp.api.platform import Releases
from ckp.api.states import ConditionType, NodeUpgradeState, Reason, UpgradePhase
from ckp.clients.kube import Kube, KubeError, Obj
from ckp.controllers.scope import Scope, deleting, owner_reference, paused
from ckp.controllers.upgrades import backups, pools
from ckp.controllers.upgrades.facts import Member, chosen, members, read
from ckp.controllers.upgrades.waits import OWN_END, HostWait, blocked_until, given_up, wait_of
from ckp.controllers.workload import WorkloadClients
from ckp.kits.clock import Clock, rfc3339
from ckp.rules.conditions import make_condition
from ckp.rules.leaving import is_going
from ckp.rules.upgrade_checks import Check, Finding, check, holding
from ckp.rules.upgrades import NodeState, Stage, Turn, Version, Worker, order, path, stages, turn
from ckp.runtime.controller import Result

POLL = 15.0
BLOCKED = 30.0
"""Seconds between two looks at what holds an upgrade up."""
KEPT = timedelta(hours=1)
"""How long a plan (dry run) is kept."""
REFUSALS = (400, 403, 422)
BY_BACKUP = "A backup of before brings the data back, not the version (ckp cluster restore)"
GO_ON = "when that is put right, ask for the same upgrade again: it goes on with what is left"


class _Stop(Exception):
    """The upgrade ends in this phase, for this reason."""

    def __init__(self, phase: UpgradePhase, message: str) -> None:
        super().__init__(message)
        self.phase, self.message = phase, message


@dataclass
class _Pass:
    """One pass over one upgrade that goes on."""

    scope: Scope
    upgrade: ClusterUpgrade
    plane: ManagedControlPlane
    workers: list[Member]
    selected: list[Member] = field(default_factory=list)

    @property
    def wanted(self) -> str:
        return self.upgrade.spec.version


@dataclass
class ClusterUpgradeReconciler:
    """One pass over one upgrade."""

    kube: Kube
    clock: Clock
    releases: Releases
    clients: WorkloadClients = field(default_factory=WorkloadClients)

    async def reconcile(self, namespace: str, name: str) -> Result:
        """Nothing once it is over, or while its cluster is paused."""
        obj = await self.kube.get(CLUSTER_UPGRADE, name, namespace)
        if obj is None:
            return Result()
        upgrade = ClusterUpgrade.of(obj)
        scope = Scope(self.kube, self.clock, CLUSTER_UPGRADE, obj)
        if deleting(obj) or upgrade.over:
            if CLUSTER_UPGRADE_FINALIZER in upgrade.metadata.finalizers:
                await pools.release(self.kube, namespace, upgrade.spec.cluster_name)
            await scope.remove_finalizer(CLUSTER_UPGRADE_FINALIZER)
            return await self._clear(upgrade) if upgrade.spec.dry_run and not upgrade.deleting else Result()
        cluster = await self.kube.get(CLUSTER, upgrade.spec.cluster_name, namespace)
        if paused(cluster, obj):
            return Result()
        async with scope:
            try:
                return await self._go(scope, upgrade, cluster)
            except _Stop as stop:
                self._tell(scope, stop.phase, stop.message)
                return Result()

    async def _clear(self, upgrade: ClusterUpgrade) -> Result:
        """A plan is of no use for long."""
        left = (time_of(upgrade.status.finished_at) or self.clock.now()) + KEPT - self.clock.now()
        if left.total_seconds() > 0:
            return Result(after=left.total_seconds())
        await self.kube.delete(CLUSTER_UPGRADE, upgrade.name, upgrade.namespace)
        return Result()

    async def _go(self, scope: Scope, upgrade: ClusterUpgrade, cluster: Obj | None) -> Result:
        name = upgrade.spec.cluster_name
        found = await self.kube.get(MANAGED_CONTROL_PLANE, name, scope.namespace) if cluster else None
        if cluster is None or found is None or is_going(cluster):
            raise _Stop(
                UpgradePhase.FAILED, f"there is no cluster {name} with a control plane of CKP" if found is None else f"the cluster {name} is being deleted"
            )
        await scope.add_finalizer(CLUSTER_UPGRADE_FINALIZER)
        await self._adopt(scope, cluster)
        one = _Pass(scope, upgrade, ManagedControlPlane.of(found), await members(self.kube, scope.namespace, name))
        one.selected = chosen(upgrade, one.workers)
        if not upgrade.status.started_at:
            scope.status |= {"startedAt": rfc3339(self.clock.now()), "from": one.plane.status.version}
        if upgrade.spec.rollback and not upgrade.spec.dry_run:
            return await self._roll_back(one)
        if upgrade.spec.abort:
            self._tell_nodes(one, self._stage_of_nodes(one))
            raise _Stop(UpgradePhase.ABORTED, f"it was aborted; what is upgraded stays so. {_left(one)}".strip())
        if upgrade.spec.dry_run:
            self._tell_nodes(one, self._stage_of_nodes(one))
            held = not await self._passes(one)
            made = "" if Check.BACKUP in upgrade.spec.accept or backups.is_fresh(one.plane, self.clock.now()) else "; a backup is made first"
            raise _Stop(UpgradePhase.PLANNED, str(scope.status.get("message")) if held else f"nothing holds it up{made}")
        if upgrade.status.phase in ("", UpgradePhase.CHECKING, UpgradePhase.BLOCKED) and not await self._passes(one):
            self._blocked(one)
            return Result(after=BLOCKED)
        if upgrade.status.phase in ("", UpgradePhase.CHECKING, UpgradePhase.BLOCKED) and (waiting := await self._backup(one)):
            return self._wait(one, UpgradePhase.CHECKING, waiting)
        return await self._advance(one)

    async def _adopt(self, scope: Scope, cluster: Obj) -> None:
        """It goes with its cluster, and is found by the cluster's label."""
        meta = scope.obj["metadata"]
        if not meta.get("ownerReferences") or (meta.get("labels") or {}).get(CLUSTER_NAME_LABEL) != cluster["metadata"]["name"]:
            owner = {**owner_reference(cluster, controller=False), "blockOwnerDeletion": False}  # that would need a right on the Cluster
            patch = {"ownerReferences": [owner], "labels": {CLUSTER_NAME_LABEL: cluster["metadata"]["name"]}}
            scope.obj = await self.kube.merge(CLUSTER_UPGRADE, scope.name, scope.namespace, {"metadata": patch})

    # -- checks

    async def _passes(self, one: _Pass) -> bool:
        """Whether nothing holds it up; what was found is told."""
        if not one.plane.status.version:
            self._tell(one.scope, UpgradePhase.BLOCKED, "the control plane was not ready yet")
            return False
        now = self.clock.now()
        backup = backups.missing(one.upgrade, one.plane, now)
        found = check(await read(self.kube, self.clients, self.releases, one.upgrade, one.plane, one.workers, backup), now)
        accepted = one.upgrade.spec.accept
        hold = holding(found, accepted)
        one.scope.status["findings"] = [_entry(finding, accepted=finding not in hold) for finding in found]
        one.scope.status["path"] = list(path(one.plane.status.version, one.wanted, self.releases.releases).steps)
        if hold:
            more = f", and {len(hold) - 1} more" if len(hold) > 1 else ""
            self._tell(one.scope, UpgradePhase.BLOCKED, f"nothing was changed: {hold[0].name}, {hold[0].where}: {hold[0].message}{more}")
        return not hold

    async def _backup(self, one: _Pass) -> str:
        """A backup is made before anything is changed, where there is a place for it. Returns what is waited for; "" once it is there, or not to be made."""
        now, asked = self.clock.now(), one.upgrade.status.backup_requested_at
        if Check.BACKUP in one.upgrade.spec.accept or backups.is_fresh(one.plane, now) or (asked and backups.missing(one.upgrade, one.plane, now)):
            return ""
        if asked:
            await backups.request(self.kube, one.plane, asked)
        else:
            one.scope.status["backupRequestedAt"] = asked = rfc3339(now)
        return backups.waiting(asked)

    def _blocked(self, one: _Pass) -> None:
        """It is looked at again, for a time: hosts have theirs, and everything else has another."""
        self._tell_nodes(one, self._stage_of_nodes(one))
        now, held = self.clock.now(), str(one.scope.status.get("message"))
        for worker in one.selected:
            if (wait := self._wait_of(one, worker)) and wait.ended(now) and not worker.facts.online:
                raise _Stop(UpgradePhase.FAILED, f"{given_up(wait, worker)} Bring the host back, or leave it out (pools, nodes). {held}")
        until = blocked_until(one.upgrade, now)
        if now >= until:
            raise _Stop(UpgradePhase.FAILED, f"it was held up until {rfc3339(until)}, and is not looked at again: {held}")
        self._tell(one.scope, UpgradePhase.BLOCKED, f"{held}; it is looked at again until {rfc3339(min([until, *self._ends(one)]))}")

    def _ends(self, one: _Pass) -> list[datetime]:
        return [wait.until for worker in one.selected if not worker.facts.online and (wait := self._wait_of(one, worker))]

    def _wait_of(self, one: _Pass, worker: Member) -> HostWait | None:
        return None if _is_of(worker, one.wanted) and not _is_begun(worker, one.wanted) else wait_of(one.upgrade, worker, self.clock.now())

    async def _withdraw(self, one: _Pass, worker: Member) -> None:
        """A host that was given up is asked for nothing any longer: it would drain its node after the upgrade is over. What it has begun to install it ends."""
        if worker.byo.status.upgrade.state not in OWN_END:
            await self._set(one, worker, kubernetesVersion="", prepareVersion="")

    # -- what comes next

    async def _advance(self, one: _Pass) -> Result:
        reached = one.plane.status.version
        way = path(reached, one.wanted, self.releases.releases)
        if not way.is_open:
            raise _Stop(UpgradePhase.FAILED, f"{way.refusal or 'no longer installed: ' + ', '.join(way.missing)}; {GO_ON}")
        left = stages(reached, way.steps, [worker.facts.kubelet or reached for worker in one.selected])
        nodes = next((stage for stage in left if stage.workers), None)
        unfinished = [worker for worker in one.selected if _is_begun(worker, one.wanted) and self._node(one, worker, one.wanted)[0] is not NodeState.DONE]
        if nodes is None and unfinished:
            nodes = Stage(one.wanted, workers=True)
        self._tell_nodes(one, nodes)
        if one.plane.status.upgrade.under_way:
            await self._commit(one)
            return self._control_plane(one, one.plane.status.upgrade.version)
        if nodes is not None and (waiting := await self._prepare(one, nodes)):
            return self._wait(one, UpgradePhase.PREPARING, waiting)
        if left and not left[0].workers:
            return await self._begin_control_plane(one, left[0].version)
        if nodes is not None:
            return await self._upgrade_nodes(one, nodes)
        return await self._finish(one)

    def _wait(self, one: _Pass, phase: UpgradePhase, message: str) -> Result:
        self._tell(one.scope, phase, message)
        return Result(after=POLL)

    async def _prepare(self, one: _Pass, stage: Stage) -> str:
        """All hosts have what they will install before the first node is drained. Returns what is waited for; "" once they have it."""
        pulling: list[str] = []
        away: list[str] = []
        for worker in one.selected:
            if _is_begun(worker, stage.version) or _is_of(worker, stage.version):
                continue
            status = worker.byo.status.upgrade
            if status.prepared_version == stage.version:
                continue
            failed = status.version == stage.version and status.state == NodeUpgradeState.FAILED
            if failed and self._is_ours(one, status.finished_at):
                raise _Stop(UpgradePhase.FAILED, f"host {worker.name} could not prepare {stage.version}: {status.message}; nothing of it was changed; {GO_ON}")
            if failed or worker.byo.spec.prepare_version != stage.version:
                if one.upgrade.spec.pause:
                    raise _Stop(UpgradePhase.PAUSED, "it was paused before all hosts were prepared")
                await self._set(one, worker, prepareVersion=stage.version)
            wait = self._wait_of(one, worker)
            if wait and wait.ended(self.clock.now()):
                await self._withdraw(one, worker)
                raise _Stop(UpgradePhase.FAILED, f"{given_up(wait, worker)} See: ckp host describe {worker.name}; {GO_ON}, or leave it out (pools, nodes)")
            (away if wait else pulling).append(str(wait or worker.name))
        return "; ".join([*([f"{', '.join(pulling)}: the bundle of {stage.version} is pulled and verified"] if pulling else []), *away])

    async def _begin_control_plane(self, one: _Pass, version: str) -> Result:
        if one.upgrade.spec.pause:
            return self._wait(one, UpgradePhase.PAUSED, f"it was paused before the control plane goes to {version}")
        if one.plane.spec.version != version:
            try:
                soak = {"soak": one.upgrade.spec.soaks(version), "commitAfter": one.upgrade.spec.commit_after}
                await self._ask_plane(one, version=version, upgrade=soak)
            except KubeError as error:
                if error.code in REFUSALS:
                    raise _Stop(UpgradePhase.FAILED, f"the control plane's version was refused: {error.brief}; {GO_ON}") from error
                raise
            return self._control_plane(one, version)
        condition = one.plane.condition(ConditionType.UPGRADED)
        if condition.is_false and condition.reason == Reason.UPGRADE_REFUSED:
            raise _Stop(UpgradePhase.FAILED, f"the control plane refuses {version}: {condition.message}; {GO_ON}")
        return self._control_plane(one, version)

    def _control_plane(self, one: _Pass, version: str) -> Result:
        """A step that has begun is finished by the control plane's own controller, also while the upgrade is paused."""
        before, condition = one.upgrade.status.control_plane, one.plane.condition(ConditionType.UPGRADED)
        message = condition.message if condition.is_false else "it begins"
        started = before.started_at if before.version == version and before.started_at else rfc3339(self.clock.now())
        one.scope.status["controlPlane"] = {"version": version, "state": str(NodeState.RUNNING), "message": message, "startedAt": started, "finishedAt": None}
        phase = UpgradePhase.SOAKING if condition.is_false and condition.reason == Reason.SOAKING else UpgradePhase.CONTROL_PLANE
        return self._wait(one, phase, f"control plane to {version}: {message}")

    async def _ask_plane(self, one: _Pass, **spec: object) -> None:
        await self.kube.merge(MANAGED_CONTROL_PLANE, one.plane.name, one.plane.namespace, {"spec": spec})

    async def _commit(self, one: _Pass) -> None:
        """A step that soaks, and need not any longer."""
        record = one.plane.status.upgrade
        if record.uncommitted and one.plane.spec.upgrade.soak and not one.upgrade.spec.soaks(record.version):
            await self._ask_plane(one, upgrade={"soak": False})

    async def _roll_back(self, one: _Pass) -> Result:
        """Undo the step that was not committed. What is committed is not undone, and nothing further begins."""
        record, reached = one.plane.status.upgrade, one.plane.status.version
        self._tell_nodes(one, self._stage_of_nodes(one))
        if record.goes_back or record.uncommitted or (one.plane.spec.version != reached and not record.under_way):
            if one.plane.spec.version != reached:
                await self._ask_plane(one, version=reached)
            return self._control_plane(one, reached)
        if record.under_way:
            raise _Stop(UpgradePhase.ABORTED, f"{record.version} is committed, so the control plane does not go back: that step is finished. {BY_BACKUP}")
        self._control_plane_is_done(one)
        if record.rolled_back and self._is_ours(one, record.finished_at):
            raise _Stop(UpgradePhase.ROLLED_BACK, f"the control plane is of {reached} again, with what was written meanwhile; no node was changed for it")
        raise _Stop(UpgradePhase.ABORTED, f"no step was uncommitted: the control plane is of {reached}. {BY_BACKUP}")

    def _control_plane_is_done(self, one: _Pass) -> None:
        before = one.upgrade.status.control_plane
        if before.version and before.state != NodeState.DONE:
            done = {"version": one.plane.status.version, "state": str(NodeState.DONE), "message": "", "finishedAt": rfc3339(self.clock.now())}
            one.scope.status["controlPlane"] = {**done, "startedAt": before.started_at}

    # -- nodes

    async def _upgrade_nodes(self, one: _Pass, stage: Stage) -> Result:
        self._control_plane_is_done(one)
        spec = one.upgrade.spec
        told = {worker.name: self._node(one, worker, stage.version) for worker in one.selected}
        now = self._turn(one, told)
        waits = {worker.name: wait for worker in one.selected if worker.name in now.begin and (wait := self._wait_of(one, worker))}
        for worker in one.selected:
            if (wait := waits.get(worker.name)) and wait.ended(self.clock.now()):
                told[worker.name] = NodeState.FAILED, given_up(wait, worker)
                self._tell_node(one, worker, stage.version, *told[worker.name])
        now, states = self._turn(one, told), {name: state for name, (state, _) in told.items()}
        running = [name for name, state in states.items() if state is NodeState.RUNNING]
        if now.stopped and not now.canary:
            failed = next(worker for worker in one.selected if states[worker.name] is NodeState.FAILED)
            if running:
                return self._wait(one, UpgradePhase.NODES, f"{now.stopped}; {', '.join(running)} is finished before the upgrade ends")
            for worker in one.selected:
                if states[worker.name] is NodeState.FAILED and self._wait_of(one, worker):
                    await self._withdraw(one, worker)
            message = f"node {failed.name} to {stage.version}: {told[failed.name][1] or now.stopped}"
            raise _Stop(UpgradePhase.FAILED, f"{message}. {_left(one)} See: ckp host describe {failed.name}; {GO_ON}")
        if now.canary:
            return self._wait(one, UpgradePhase.PAUSED, now.stopped)
        if spec.pause:
            return self._wait(one, UpgradePhase.NODES if running else UpgradePhase.PAUSED, "it was paused; what has begun is finished")
        begin = [name for name in now.begin if name not in waits]  # its node is not drained while nothing can be installed
        for worker in one.selected:
            if worker.name in begin:
                await self._set(one, worker, kubernetesVersion=stage.version)
        away = [str(wait) for worker in one.selected if worker.name in (*running, *waits) and (wait := self._wait_of(one, worker))]
        busy = [f"{', '.join([*running, *begin])} to {stage.version}"] if running or begin else []
        return self._wait(
            one, UpgradePhase.NODES, "; ".join([*busy, *away, f"{sum(state is NodeState.DONE for state in states.values())} of {len(states)} done"])
        )

    def _turn(self, one: _Pass, told: Mapping[str, tuple[NodeState, str]]) -> Turn:
        spec = one.upgrade.spec
        ordered = order([Worker(worker.name, worker.facts.pool, told[worker.name][0]) for worker in one.selected], spec.pools, spec.nodes)
        return turn(ordered, spec.at_once, spec.after_first)

    async def _set(self, one: _Pass, worker: Member, **spec: str) -> None:
        """Ask a node for something; what failed in an earlier upgrade is tried once more in this one."""
        failed = worker.byo.status.upgrade.state == NodeUpgradeState.FAILED
        retry = {"metadata": {"annotations": {RETRY_UPGRADE_ANNOTATION: one.upgrade.name}}} if failed else {}
        await self.kube.merge(BYO_MACHINE, worker.byo.name, one.scope.namespace, {"spec": spec, **retry})

    def _is_ours(self, one: _Pass, at: str) -> bool:
        """Whether something that ended at this time ended during this upgrade, and not an earlier one."""
        ended, begun = time_of(at), time_of(one.upgrade.status.started_at) or self.clock.now()
        return ended is None or ended >= begun

    def _node(self, one: _Pass, worker: Member, version: str) -> tuple[NodeState, str]:
        """How far a node is, with what it does now, for people."""
        seen = worker.byo.status.upgrade
        if not _is_begun(worker, version):
            return (NodeState.DONE, "") if _is_of(worker, version) else (NodeState.PENDING, "")
        wait = self._wait_of(one, worker)
        if wait and wait.ended(self.clock.now()) and not (seen.version == version and seen.state in (NodeUpgradeState.FAILED, NodeUpgradeState.DONE)):
            return NodeState.FAILED, given_up(wait, worker)
        if seen.version != version:
            return (NodeState.DONE, "") if _is_of(worker, version) else (NodeState.RUNNING, "it begins")
        if seen.state == NodeUpgradeState.FAILED:
            return (NodeState.FAILED, seen.message) if self._is_ours(one, seen.finished_at) else (NodeState.PENDING, "")
        if seen.state == NodeUpgradeState.DONE:
            return (NodeState.DONE, "") if _is_of(worker, version) else (NodeState.RUNNING, "Cluster API has not seen the new kubelet yet")
        return NodeState.RUNNING, f"{seen.state}: {seen.message}" if seen.message else seen.state

    def _stage_of_nodes(self, one: _Pass) -> Stage | None:
        return Stage(one.wanted, workers=True) if one.selected else None

    def _tell_nodes(self, one: _Pass, stage: Stage | None) -> None:
        before = {node.name: node for node in one.upgrade.status.nodes}
        version = stage.version if stage else one.wanted
        one.scope.status["nodes"] = [
            self._told(one, before.get(worker.name, UpgradedNode()), worker, version, *self._node(one, worker, version)) for worker in one.selected
        ]

    def _tell_node(self, one: _Pass, worker: Member, version: str, state: NodeState, message: str) -> None:
        before = next((node for node in one.upgrade.status.nodes if node.name == worker.name), UpgradedNode())
        entry = self._told(one, before, worker, version, state, message)
        one.scope.status["nodes"] = [entry if item["name"] == worker.name else item for item in one.scope.status["nodes"]]

    def _told(self, one: _Pass, before: UpgradedNode, worker: Member, version: str, state: NodeState, message: str) -> Obj:
        now, begun = rfc3339(self.clock.now()), state is not NodeState.PENDING
        same = before.to == version
        entry = {
            "name": worker.name,
            "pool": worker.facts.pool,
            "from": before.from_version or worker.facts.kubelet,
            "to": version,
            "state": str(state),
            "message": message,
            "startedAt": before.started_at if same and before.started_at else now if begun and _is_begun(worker, version) else "",
            "finishedAt": before.finished_at if same and before.finished_at else now if state in (NodeState.DONE, NodeState.FAILED) else "",
        }
        if state in (NodeState.PENDING, NodeState.RUNNING):
            entry["finishedAt"] = ""
        if state is not NodeState.DONE and (wait := self._wait_of(one, worker)):
            entry |= {"waitingSince": rfc3339(wait.since), "waitingUntil": rfc3339(wait.until), "message": message or str(wait)}
        return {key: value for key, value in entry.items() if value}

    # -- the end

    async def _finish(self, one: _Pass) -> Result:
        """What pools ask for, where all of a pool's nodes are of the version; then what Machines say, which is copied from it."""
        self._control_plane_is_done(one)
        waiting = []
        for name in sorted({worker.facts.pool for worker in one.selected if worker.facts.pool}):
            of = [worker for worker in one.workers if worker.facts.pool == name]
            if all(_is_of(worker, one.wanted) for worker in of):
                why = await pools.settle(self.kube, one.scope.namespace, one.plane.name, name, one.wanted)
                behind = [worker.machine for worker in of if worker.asked != one.wanted]
                waiting += [why] if why else [f"Cluster API writes the version of {', '.join(behind)}"] if behind else []
            elif not one.upgrade.spec.nodes:  # a Machine that was made meanwhile: it becomes a node of the old version, and is upgraded then
                waiting.append(f"{', '.join(worker.name for worker in of if not _is_of(worker, one.wanted))}: not a node yet")
        if waiting:
            return self._wait(one, UpgradePhase.NODES, waiting[0])
        for worker in one.selected:
            spec = worker.byo.spec
            if worker.asked == one.wanted and (spec.kubernetes_version or spec.prepare_version):
                await self._set(one, worker, kubernetesVersion="", prepareVersion="")
        raise _Stop(UpgradePhase.DONE, f"the control plane and {len(one.selected)} nodes are of {one.wanted}")

    def _tell(self, scope: Scope, phase: UpgradePhase, message: str) -> None:
        now: datetime = self.clock.now()
        scope.status |= {"phase": str(phase), "message": message}
        if phase in OVER:
            scope.status["finishedAt"] = rfc3339(now)
        done = phase is UpgradePhase.DONE
        severe = phase in (UpgradePhase.FAILED, UpgradePhase.BLOCKED)
        reason = Reason.WAITING if not severe else Reason.UPGRADE_REFUSED if phase is UpgradePhase.BLOCKED else Reason.UPGRADE_FAILED
        scope.conditions = [
            make_condition(ConditionType.UPGRADED, done, now, reason=reason, message="" if done else message, severity="Error" if severe else "Info")
        ]


def _is_begun(worker: Member, version: str) -> bool:
    return worker.byo.spec.kubernetes_version == version


def _is_of(worker: Member, version: str) -> bool:
    return bool(worker.facts.kubelet) and Version.parse(worker.facts.kubelet) >= Version.parse(version)


def _left(one: _Pass) -> str:
    left: Sequence[str] = [worker.name for worker in one.selected if not _is_of(worker, one.wanted)]
    return f"Not of {one.wanted}: {', '.join(left)}." if left else ""


def _entry(finding: Finding, *, accepted: bool) -> Obj:
    told = {"name": str(finding.name), "where": finding.where, "message": finding.message, "remedy": finding.remedy}
    return {**told, "acceptable": finding.acceptable, "accepted": accepted}
