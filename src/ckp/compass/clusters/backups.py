"""Backups of clusters: asking for one, listing them, restoring one in place, and when they are made. All is kept in the ManagedControlPlane."""

from __future__ import annotations

from typing import Any

from ckp.api import kinds, names
from ckp.api.compass.clusters import BackupSettings, BackupsView, BackupView, RestoreView
from ckp.api.objects.control_plane import ManagedControlPlane
from ckp.api.states import ConditionType
from ckp.clients.kube import Kube, Obj
from ckp.compass.access.kube_errors import translate_kube_errors
from ckp.compass.access.projects import Namespaces
from ckp.compass.identity import Caller, ProjectRef
from ckp.compass.store.database import Database
from ckp.kits.clock import Clock, exact_duration, parse_rfc3339, rfc3339
from ckp.kits.errors import Conflict, InvalidInput, NotFound
from ckp.rules.cluster_backups import RestorePhase, begun_at
from ckp.rules.leaving import is_going


@translate_kube_errors
class ClusterBackups:
    """Use cases around the backups of one cluster."""

    def __init__(self, database: Database, kube: Kube, namespaces: Namespaces, clock: Clock) -> None:
        self._database = database
        self._kube = kube
        self._namespaces = namespaces
        self._clock = clock

    async def list(self, project: ProjectRef, name: str) -> BackupsView:
        """A cluster's backups, and its last restore; nothing of one whose control plane object is not there."""
        await self._cluster(project, name)
        found = await self._namespaces.get(kinds.MANAGED_CONTROL_PLANE, name, project)
        return _view(ManagedControlPlane.of(found)) if found is not None else BackupsView()

    async def request(self, caller: Caller, project: ProjectRef, name: str) -> BackupsView:
        """Ask for a backup now, beside the schedule. One that is being made is not made twice: the next is begun after it.

        Raises:
            Conflict: the cluster names no place for backups, was never up, or is being deleted.
        """
        plane = await self._require(project, name)
        _require_place(plane, name)
        await self._annotate(project, name, names.BACKUP_ANNOTATION, rfc3339(self._clock.now()))
        await self._note(caller, project, "cluster.backup", name, {})
        return _view(await self._require(project, name))

    async def restore(self, caller: Caller, project: ProjectRef, name: str, backup: str) -> BackupsView:
        """Put a cluster's etcd back to a backup, in place. What was written after the backup is lost.

        Raises:
            InvalidInput: there is no such backup.
            Conflict: the cluster names no place for backups, was never up, is being deleted, or is being restored to another one.
        """
        plane = await self._require(project, name)
        _require_place(plane, name)
        kept = [entry.id for entry in plane.status.backup.kept]
        if begun_at(backup) is None or (kept and backup not in kept):
            raise InvalidInput(f"backup: cluster {name} has no backup {backup!r}", details="\n".join(kept), resolution=f"list them: ckp cluster backups {name}")
        running = plane.status.restore
        if running.phase in (RestorePhase.STOPPING, RestorePhase.PLACING, RestorePhase.STARTING) and running.backup == backup:
            raise Conflict(f"cluster {name} is being restored to {backup} already", resolution=f"see: ckp cluster describe {name}")
        await self._annotate(project, name, names.RESTORE_ANNOTATION, f"{backup} {rfc3339(self._clock.now())}")
        await self._note(caller, project, "cluster.restore", name, {"backup": backup})
        return _view(await self._require(project, name))

    async def set(self, caller: Caller, project: ProjectRef, name: str, settings: BackupSettings) -> BackupsView:
        """Change when a cluster is backed up, and to where.

        Raises:
            InvalidInput: it would have two places, or none.
        """
        plane = await self._require(project, name)
        given: dict[str, Any] = settings.model_dump(exclude_unset=True)
        if settings.off:
            if len(given) > 1:
                raise InvalidInput("backup: off excludes all other settings")
            patch: dict[str, Any] | None = None
        else:
            patch = _patch(plane, settings)
        await self._kube.merge(kinds.MANAGED_CONTROL_PLANE, name, project.namespace, {"spec": {"backup": patch}})
        await self._note(caller, project, "cluster.set", name, {"backup": settings.model_dump(mode="json", exclude_unset=True)})
        return _view(await self._require(project, name))

    async def _cluster(self, project: ProjectRef, name: str) -> Obj:
        cluster = await self._namespaces.get(kinds.CLUSTER, name, project)
        if cluster is None:
            raise NotFound(f"there is no cluster {name} in {project}", resolution="list them: ckp cluster list")
        return cluster

    async def _require(self, project: ProjectRef, name: str) -> ManagedControlPlane:
        cluster = await self._cluster(project, name)
        found = await self._namespaces.get(kinds.MANAGED_CONTROL_PLANE, name, project)
        if found is None:
            raise Conflict(f"cluster {name} has no ManagedControlPlane {name}", resolution="it was removed by hand, or its creation was interrupted")
        if is_going(cluster):
            raise Conflict(f"cluster {name} is being deleted")
        return ManagedControlPlane.of(found)

    async def _annotate(self, project: ProjectRef, name: str, key: str, value: str) -> None:
        await self._kube.merge(kinds.MANAGED_CONTROL_PLANE, name, project.namespace, {"metadata": {"annotations": {key: value}}})

    async def _note(self, caller: Caller, project: ProjectRef, action: str, name: str, detail: dict[str, Any]) -> None:
        async with self._database.unit() as unit:
            unit.audit(caller, project, action, name, detail)


def _require_place(plane: ManagedControlPlane, name: str) -> None:
    if not plane.spec.backup.asked:
        how = f"say where they go: ckp cluster set {name} --backup-endpoint URL --backup-bucket NAME --backup-secret NAME, or --backup-claim NAME"
        raise Conflict(f"cluster {name} names no place for backups", resolution=how)
    if not plane.status.initialized:
        raise Conflict(f"the control plane of cluster {name} was never up", resolution=f"see: ckp cluster describe {name}")


def _patch(plane: ManagedControlPlane, settings: BackupSettings) -> dict[str, Any]:
    before = plane.spec.backup
    s3 = {key: value for key in ("endpoint", "bucket", "prefix", "region", "secret") if (value := getattr(settings, key)) is not None}
    if settings.claim and s3:
        raise InvalidInput("backup: name one place, a bucket or a claim")
    patch: dict[str, Any] = {}
    if settings.every is not None:
        patch["every"] = exact_duration(settings.every)
    if settings.keep is not None:
        patch["keep"] = settings.keep
    if settings.claim:
        patch |= {"claim": settings.claim, "s3": None}
    if s3:
        whole = {**{key: getattr(before.s3, key) for key in ("endpoint", "bucket", "secret")}, **s3}
        if missing := [key for key in ("endpoint", "bucket", "secret") if not whole[key]]:
            raise InvalidInput(f"backup: a bucket needs {', '.join(missing)} as well")
        patch |= {"s3": s3, "claim": None}
    if not before.asked and not settings.claim and not s3:
        raise InvalidInput("backup: no place is named where backups go", resolution="name a bucket (endpoint, bucket and secret) or a claim")
    return patch


def _view(plane: ManagedControlPlane) -> BackupsView:
    spec, status, restore = plane.spec.backup, plane.status.backup, plane.status.restore
    fresh = plane.condition(ConditionType.BACKUP_FRESH)
    made = [
        BackupView(id=entry.id, made_at=begun_at(entry.id), result="Proved", size_bytes=entry.size_bytes, revision=entry.revision, version=entry.version)
        for entry in status.kept
    ]
    if status.failed:
        made.append(BackupView(id=status.failed, made_at=begun_at(status.failed), result="Failed", message=status.message))
    if status.running:
        made.append(BackupView(id=status.running, made_at=begun_at(status.running), result="Running"))
    annotations = plane.metadata.annotations
    asked, wanted = annotations.get(names.BACKUP_ANNOTATION, ""), annotations.get(names.RESTORE_ANNOTATION, "")
    shown = RestoreView(
        backup=restore.backup,
        phase=restore.phase,
        message=restore.message,
        finished_at=parse_rfc3339(restore.finished_at) if restore.finished_at else None,
    )
    if wanted and wanted != restore.id:
        shown = RestoreView(backup=wanted.split()[0], phase="Requested")
    return BackupsView(
        schedule=spec.every if spec.asked else "",
        keep=spec.keep if spec.asked else 0,
        place=(f"{spec.s3.endpoint.rstrip('/')}/{spec.s3.bucket}" if spec.s3.endpoint else f"claim {spec.claim}") if spec.asked else "",
        fresh=fresh.status or "Unknown",
        message=fresh.message,
        pending=bool(status.running) or bool(asked and asked != status.handled),
        items=sorted(made, key=lambda entry: entry.id, reverse=True),
        restore=shown,
    )
