"""Puts a control plane back to a backup, in place: checked while the cluster goes on, then stopped, given the data, and started (docs/adr/0037).

Each step is repeated until it is done, and the next one is put down before it is begun; so any process may be killed at any moment.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from ckp.api.backup_job import Placement, Task
from ckp.api.kinds import JOB, MANAGED_CONTROL_PLANE, POD, PVC, SECRET, STATEFUL_SET
from ckp.api.names import CLUSTER_NAME_LABEL, RESTORE_ANNOTATION
from ckp.api.objects.control_plane import BackupSpec, ManagedControlPlane, RestoreStatus
from ckp.api.states import ConditionType, Reason
from ckp.clients.kube import Kube, Obj
from ckp.controllers.apply import Applier
from ckp.controllers.controlplane import apiserver, backup_jobs, certificates, etcd
from ckp.controllers.controlplane.backup_jobs import Ended
from ckp.controllers.controlplane.etcd_phases import EtcdPhases
from ckp.controllers.controlplane.phases import ENDING, POLL, NotYet
from ckp.controllers.controlplane.plan import Plan
from ckp.controllers.scope import Scope, owner
from ckp.kits.clock import Clock, rfc3339
from ckp.rules.cluster_backups import HOLDING, RestorePhase, begun_at, describe_step
from ckp.rules.conditions import Condition, make_condition

SERVING = ("apiserver", "controller-manager", "scheduler")
"""Components that are gone before etcd is stopped: the controllers and the scheduler act on what they remember, which is of the time after the backup."""
LONGEST_MESSAGE = 500


@dataclass
class Restores:
    """For all clusters.

    Args:
        image: of the Jobs.
    """

    kube: Kube
    clock: Clock
    applier: Applier
    etcd: EtcdPhases
    image: str

    async def advance(self, scope: Scope, plan: Plan) -> NotYet | None:
        """One step. What is returned says that nothing of the cluster may run now; None: it goes on as ever.

        Raises:
            KubeError: the API server refuses, or can't be reached.
        """
        plane = ManagedControlPlane.of(scope.obj)
        record = plane.status.restore
        asked = str((scope.obj["metadata"].get("annotations") or {}).get(RESTORE_ANNOTATION, "")).strip()
        if asked and asked != record.id and plane.status.initialized:
            # What was begun and not finished has changed volumes, perhaps: nothing may run on them until a restore is done.
            begun = {"id": asked, "backup": asked.split(maxsplit=1)[0], "startedAt": self._now()}
            self._write(scope, RestoreStatus(), phase=RestorePhase.CHECKING, held=record.held, **begun)
            return self._hold(RestorePhase.CHECKING) if record.held else None
        if not record.id:
            return None
        phase = _phase(record)
        if phase in (RestorePhase.DONE, RestorePhase.FAILED):
            if asked == record.id:
                patch = {"metadata": {"annotations": {RESTORE_ANNOTATION: None}}}
                scope.obj = await self.kube.merge(MANAGED_CONTROL_PLANE, scope.name, scope.namespace, patch)
        elif phase is RestorePhase.CHECKING:
            await self._check(scope, plan, plane.spec.backup, record)
        elif phase is RestorePhase.STOPPING:
            await self._stop(scope, plan, record)
        elif phase is RestorePhase.PLACING:
            await self._place(scope, plan, plane, record)
        self._tell(scope, record)
        return self._hold(phase, record) if record.held or phase in HOLDING else None

    async def finish(self, scope: Scope) -> None:
        """The control plane is ready: a restore that was started is done."""
        record = ManagedControlPlane.of(scope.obj).status.restore
        if record.phase == RestorePhase.STARTING:
            self._write(scope, record, phase=RestorePhase.DONE, finishedAt=self._now(), message="")
            scope.notes = [note for note in scope.notes if note["type"] != ConditionType.DATA_RESTORED]
            scope.notes.append(make_condition(ConditionType.DATA_RESTORED, True, self.clock.now()))

    # -- steps

    async def _check(self, scope: Scope, plan: Plan, spec: BackupSpec, record: RestoreStatus) -> None:
        if begun_at(record.backup) is None:
            self._refuse(scope, record, f"{record.backup!r} is no id of a backup; ids look like 20260131T040500Z")
            return
        if not spec.asked or not self.image:
            self._refuse(scope, record, "the cluster names no place where its backups are (spec.backup)" if self.image else "CKP_BACKUP_IMAGE is not set")
            return
        state = await self._job(plan, spec, record, "check", Task.CHECK)
        if isinstance(state, Ended):
            if state.report.ok:
                self._write(scope, record, phase=RestorePhase.STOPPING, held=True, message="")
            else:
                self._refuse(scope, record, state.report.message)

    async def _stop(self, scope: Scope, plan: Plan, record: RestoreStatus) -> None:
        deployments = [apiserver.api_server(plan), apiserver.controller_manager(plan), apiserver.scheduler(plan)]
        await self.applier.apply(*map(apiserver.held, deployments))
        if await self._pods(plan, *SERVING):
            return
        objects = etcd.etcd_objects(plan, await self.etcd.sizing(scope, plan))
        await self.applier.apply(*map(apiserver.held, objects[-1:]))
        found = await self.kube.get(STATEFUL_SET, plan.name("etcd"), plan.namespace) or {}
        if int((found.get("spec") or {}).get("replicas") or 0) == 0 and not await self._pods(plan, "etcd"):
            self.etcd.care.forget_view(plan.namespace, plan.cluster)
            self._write(scope, record, phase=RestorePhase.PLACING)

    async def _place(self, scope: Scope, plan: Plan, plane: ManagedControlPlane, record: RestoreStatus) -> None:
        members = etcd.member_names(plan)
        peers = {member: f"https://{etcd.member_host(plan, member)}:{etcd.PEER_PORT}" for member in members}
        key, done, failed = self._key(record), 0, ""
        for number, member in enumerate(members):
            claim = f"data-{member}"
            if await self.kube.get(PVC, claim, plan.namespace) is None:
                sized = await self.etcd.sizing(scope, plan)
                meta = {"name": claim, "namespace": plan.namespace, "labels": plan.selector("etcd")}
                await self.kube.apply({"apiVersion": PVC.api_version, "kind": PVC.kind, "metadata": meta, "spec": dict(sized.claim)})
            place = Placement(restore=f"{plan.namespace}.{plan.cluster}.{key}", member=member, peers=peers, seen=plane.status.etcd.revision)
            state = await self._job(plan, plane.spec.backup, record, f"place-{number}", Task.PLACE, place, claim)
            if isinstance(state, Ended) and state.report.ok:
                done += 1
            elif isinstance(state, Ended):
                failed = state.report.message
                await self.kube.delete(JOB, self._job_name(plan, record, f"place-{number}"), plan.namespace)  # and tried again by the next pass
        if done < len(members):
            self._write(scope, record, message=failed[:LONGEST_MESSAGE] or record.message)
            return
        # What Jobs have written into the cluster may not be in the backup: they run again.
        for item in await self.kube.list(JOB, plan.namespace, labels={CLUSTER_NAME_LABEL: plan.cluster}):
            ours = (item["spec"]["template"]["metadata"].get("labels") or {}).get("app.kubernetes.io/component") == etcd.BACKUP_COMPONENT
            if owner(item, "ManagedControlPlane") and not ours:
                await self.kube.delete(JOB, item["metadata"]["name"], plan.namespace)
        # The record of before is of another etcd cluster, with other revisions.
        scope.status["etcd"] = None
        self._write(scope, record, phase=RestorePhase.STARTING, held=False, message="")

    # -- what they share

    async def _job(
        self, plan: Plan, spec: BackupSpec, record: RestoreStatus, part: str, task: Task, place: Placement | None = None, claim: str = ""
    ) -> Ended | bool:
        name = self._job_name(plan, record, part)
        state = await backup_jobs.look(self.kube, plan, name)
        if state is False:
            authority = await self.kube.get(SECRET, plan.name("ca"), plan.namespace)
            if authority is None:
                raise NotYet(ConditionType.CERTIFICATES_AVAILABLE, f"the Secret {plan.name('ca')} is gone")
            await backup_jobs.ensure_keys(self.kube, plan.namespace)
            asked = backup_jobs.request(plan, spec, certificates.identity(authority), task, record.backup, place)
            await self.kube.apply(backup_jobs.manifest(plan, self.image, name, asked, spec, claim))
        return state

    async def _pods(self, plan: Plan, *parts: str) -> list[Obj]:
        return [pod for part in parts for pod in await self.kube.list(POD, plan.namespace, labels=plan.selector(part))]

    def _job_name(self, plan: Plan, record: RestoreStatus, part: str) -> str:
        return plan.name(f"restore-{self._key(record)}-{part}")

    @staticmethod
    def _key(record: RestoreStatus) -> str:
        """Tells a restore from others: 6 characters."""
        return hashlib.sha256(record.id.encode()).hexdigest()[:6]

    def _refuse(self, scope: Scope, record: RestoreStatus, message: str) -> None:
        self._write(scope, record, phase=RestorePhase.FAILED, finishedAt=self._now(), message=message[:LONGEST_MESSAGE])

    def _hold(self, phase: RestorePhase, record: RestoreStatus | None = None) -> NotYet:
        message = record.message if record is not None else ""
        if phase is RestorePhase.FAILED:
            message = f"the data of an interrupted restore is not whole, and the backup that was named after it was refused: {message}; name another one"
        else:
            message = describe_step(phase) + (f"; tried again: {message}" if message else "")
        after = ENDING if phase is RestorePhase.STOPPING else POLL
        return NotYet(ConditionType.ETCD_READY, message, after=after, reason=Reason.RESTORING, severity="Warning", hold=True)

    def _tell(self, scope: Scope, before: RestoreStatus) -> None:
        """The condition, by what is on record after this pass."""
        record = RestoreStatus.model_validate(scope.status.get("restore") or before.model_dump(by_alias=True))
        scope.notes.append(self._condition(record))

    def _condition(self, record: RestoreStatus) -> Condition:
        now, kind = self.clock.now(), ConditionType.DATA_RESTORED
        phase = _phase(record)
        if phase is RestorePhase.DONE:
            return make_condition(kind, True, now)
        if phase is RestorePhase.FAILED:
            so = "the cluster's data is that of an interrupted restore, which is not whole" if record.held else "nothing was changed"
            message = f"the backup {record.backup} was not restored, and {so}: {record.message}"
            return make_condition(kind, False, now, reason=Reason.RESTORE_REFUSED, severity="Warning", message=message)
        return make_condition(kind, False, now, reason=Reason.RESTORING, severity="Info", message=f"{record.backup}: {describe_step(phase)}")

    def _write(self, scope: Scope, record: RestoreStatus, **changes: str | bool) -> None:
        scope.status["restore"] = {**record.model_dump(by_alias=True), **changes}

    def _now(self) -> str:
        return rfc3339(self.clock.now())


def _phase(record: RestoreStatus) -> RestorePhase:
    """Where it is; one that a later version has written is not gone on with."""
    return RestorePhase(record.phase) if record.phase in set(RestorePhase) else RestorePhase.FAILED
