"""Backups of a control plane: begun by the schedule or by a person's request, made by a Job each, and told by the condition BackupFresh.

What is to be made is written to the status before its Job is: a pass that is cut off, or a process that is killed, finds the same id again, and the Job of
an id makes a backup once, however often it is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from ckp.api.backup_job import JobReport, Task
from ckp.api.kinds import SECRET
from ckp.api.names import BACKUP_ANNOTATION
from ckp.api.objects.control_plane import BackupEntry, BackupSpec, BackupStatus, ManagedControlPlane
from ckp.api.states import ConditionType, Reason
from ckp.clients.kube import Kube
from ckp.controllers.controlplane import backup_jobs, certificates
from ckp.controllers.controlplane.backup_jobs import Ended
from ckp.controllers.controlplane.phases import POLL, SOON
from ckp.controllers.controlplane.plan import Plan
from ckp.controllers.scope import Scope
from ckp.kits.clock import Clock, parse_duration, rfc3339
from ckp.rules.cluster_backups import Attempts, RestorePhase, backup_id, begun_at, due_at, freshness
from ckp.rules.conditions import Severity, make_condition

SHORTEST = 300
"""Seconds between backups at least."""
LONGEST_MESSAGE = 500
BUSY = (RestorePhase.CHECKING, RestorePhase.STOPPING, RestorePhase.PLACING, RestorePhase.STARTING)
"""Phases of a restore in which no backup is begun."""


@dataclass
class Backups:
    """For all clusters.

    Args:
        image: of the Jobs.
    """

    kube: Kube
    clock: Clock
    image: str

    async def look(self, scope: Scope, plan: Plan) -> float | None:
        """One look: the next step is made, and the condition is told. When to look again, in seconds.

        Raises:
            KubeError: the API server refuses, or can't be reached.
        """
        plane = ManagedControlPlane.of(scope.obj)
        spec, status = plane.spec.backup, plane.status.backup
        if not spec.asked:
            if plane.condition(ConditionType.BACKUP_FRESH).type:
                scope.notes.append(
                    make_condition(ConditionType.BACKUP_FRESH, None, self.clock.now(), reason=Reason.NO_SCHEDULE, message="no backups are asked for")
                )
            return None
        if not plane.status.initialized:
            return None
        every = timedelta(seconds=max(SHORTEST, _seconds(spec)))
        if status.running:
            after: float | None = await self._follow(scope, plan, spec, status)
        else:
            after = self._begin(scope, plane, every)
        now = BackupStatus.model_validate(scope.status.get("backup", status.model_dump(by_alias=True)))
        ok, reason, message = freshness(_attempts(now), every, self.clock.now())
        severity: Severity = "Info" if reason is Reason.WAITING else "Warning"
        scope.notes.append(make_condition(ConditionType.BACKUP_FRESH, ok, self.clock.now(), reason=reason, message=message, severity=severity))
        return after

    def _begin(self, scope: Scope, plane: ManagedControlPlane, every: timedelta) -> float | None:
        """Put the next one down, if it is due. Its Job is made by the next pass, when that is stored."""
        status, now = plane.status.backup, self.clock.now()
        asked = str((scope.obj["metadata"].get("annotations") or {}).get(BACKUP_ANNOTATION, ""))
        wanted = bool(asked) and asked != status.handled
        due = due_at(_attempts(status), every)
        if plane.status.restore.phase in BUSY:
            return POLL
        if not wanted and due is not None and due > now:
            return min(60.0, (due - now).total_seconds() + 1)
        identifier = backup_id(now)
        if identifier in {status.failed, *(entry.id for entry in status.kept)}:
            return 1.0  # an id is of one second
        self._write(scope, status, running=identifier, handled=asked or status.handled)
        return SOON

    async def _follow(self, scope: Scope, plan: Plan, spec: BackupSpec, status: BackupStatus) -> float | None:
        """The one that is being made."""
        name = plan.name(f"backup-{status.running[2:8]}{status.running[9:15]}")
        state = await backup_jobs.look(self.kube, plan, name)
        if isinstance(state, Ended):
            self._ended(scope, status, state.report)
            return SOON
        if not state:
            authority = await self.kube.get(SECRET, plan.name("ca"), plan.namespace)
            if authority is None or not self.image:
                why = f"the Secret {plan.name('ca')} is gone" if self.image else "this management layer has no image that makes backups (CKP_BACKUP_IMAGE)"
                self._ended(scope, status, JobReport(ok=False, message=why))
                return POLL
            await backup_jobs.ensure_keys(self.kube, plan.namespace)
            request = backup_jobs.request(plan, spec, certificates.identity(authority), Task.TAKE, status.running)
            await self.kube.apply(backup_jobs.manifest(plan, self.image, name, request, spec))
        return POLL

    def _ended(self, scope: Scope, status: BackupStatus, report: JobReport) -> None:
        if not report.ok:
            failures = status.failures + 1
            self._write(scope, status, running="", failed=status.running, failures=failures, message=report.message[:LONGEST_MESSAGE])
            return
        finished = rfc3339(self.clock.now())
        made = {"id": status.running, "sizeBytes": report.size, "revision": report.revision, "version": report.version, "finishedAt": finished}
        known = {**{entry.id: entry for entry in status.kept}, status.running: BackupEntry.model_validate(made)}
        kept = [known.get(each, BackupEntry(id=each)) for each in sorted(report.kept)]
        self._write(scope, status, running="", kept=_dumped(kept), failed="", failures=0, message="")

    @staticmethod
    def _write(scope: Scope, status: BackupStatus, **changes: Any) -> None:
        before = {"handled": status.handled, "running": status.running, "failed": status.failed, "failures": status.failures, "message": status.message}
        scope.status["backup"] = {**before, "kept": _dumped(status.kept), **changes}


def _dumped(entries: Sequence[BackupEntry]) -> list[dict[str, Any]]:
    return [entry.model_dump(by_alias=True) for entry in entries]


def _attempts(status: BackupStatus) -> Attempts:
    good = sorted(moment for entry in status.kept if (moment := begun_at(entry.id)) is not None)
    return Attempts(good, begun_at(status.failed), status.failures, status.message)


def _seconds(spec: BackupSpec) -> int:
    """The interval; a day where it can't be read, which the CRD refuses."""
    try:
        return parse_duration(spec.every)
    except ValueError:
        return 24 * 3600
