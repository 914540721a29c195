"""Upgrades of clusters: asking for one, or only for its plan; following it; pause, resume, abort. All is kept in ClusterUpgrades."""

from __future__ import annotations

from typing import Any

from ckp.api import kinds
from ckp.api.compass.upgrades import FindingView, UpgradedView, UpgradeRequest, UpgradeView
from ckp.api.names import CLUSTER_NAME_LABEL
from ckp.api.objects.base import time_of
from ckp.api.objects.cluster_upgrade import ClusterUpgrade
from ckp.api.objects.control_plane import ManagedControlPlane
from ckp.clients.kube import Kube, Obj
from ckp.compass.access.kube_errors import translate_kube_errors
from ckp.compass.access.projects import Namespaces
from ckp.compass.identity import Caller, ProjectRef
from ckp.compass.store.database import Database
from ckp.kits.clock import Clock, parse_duration
from ckp.kits.errors import Conflict, InvalidInput, NotFound
from ckp.rules.cluster_backups import begun_at
from ckp.rules.leaving import is_going
from ckp.rules.upgrades import Version, soak_refusal


@translate_kube_errors
class ClusterUpgrades:
    """Use cases around the upgrades of one cluster."""

    def __init__(self, database: Database, kube: Kube, namespaces: Namespaces, clock: Clock) -> None:
        self._database = database
        self._kube = kube
        self._namespaces = namespaces
        self._clock = clock

    async def get(self, project: ProjectRef, name: str, identifier: str = "") -> UpgradeView:
        """A cluster's upgrade; the newest that changes something if none is named.

        Raises:
            NotFound: there is no such cluster, or it has no such upgrade.
        """
        found = await self._require(project, name, identifier)
        return _view(found, await self._plane_if_there(project, name))

    async def start(self, caller: Caller, project: ProjectRef, name: str, request: UpgradeRequest) -> UpgradeView:
        """Ask for an upgrade, or only for its checks and its plan. It is led after the answer.

        Raises:
            Conflict: another upgrade of the cluster goes on, it was never up, or it is being deleted.
            InvalidInput: the version is older than what runs.
        """
        plane = await self._plane(project, name)
        reached = plane.status.version
        if not reached:
            raise Conflict(f"the control plane of cluster {name} was never up", resolution=f"see: ckp cluster describe {name}")
        if Version.parse(request.version) < Version.parse(reached):
            raise InvalidInput(f"version: {request.version} is older than {reached}, which cluster {name} has", resolution="Kubernetes does not go back")
        if request.soak and (refusal := soak_refusal(reached, request.version)):
            raise InvalidInput(f"soak: {refusal}")
        before = await self._all(project, name)
        going = [item for item in before if not item.over and not item.spec.dry_run]
        if going and not request.dry_run:
            raise Conflict(f"cluster {name} is being upgraded to {going[-1].spec.version} already", resolution=f"see: ckp cluster upgrade {name}")
        # Of two at the same moment the second is refused as already there. Names sort by time.
        identifier = f"{name}-{self._clock.now():%Y%m%d-%H%M%S}-{len(before):04}"
        made = await self._kube.create(_manifest(project.namespace, identifier, name, request))
        if not request.dry_run:
            await self._note(caller, project, "start", name, {"version": request.version, "accept": request.accept})
        return _view(ClusterUpgrade.of(made), plane)

    async def pause(self, caller: Caller, project: ProjectRef, name: str) -> UpgradeView:
        """Begin nothing further: what has begun is finished."""
        return await self._change(caller, project, name, "pause", {"pause": True})

    async def resume(self, caller: Caller, project: ProjectRef, name: str) -> UpgradeView:
        """Go on after a pause, or after the first nodes."""
        return await self._change(caller, project, name, "resume", {"pause": False, "afterFirst": 0})

    async def abort(self, caller: Caller, project: ProjectRef, name: str) -> UpgradeView:
        """Begin nothing further, for good. What is upgraded stays so, and a later upgrade goes on with the rest."""
        return await self._change(caller, project, name, "abort", {"abort": True})

    async def commit(self, caller: Caller, project: ProjectRef, name: str) -> UpgradeView:
        """End the soak of the control plane's step: from then on it does not go back.

        Raises:
            Conflict: no step soaks, or is going to.
        """
        plane = await self._uncommitted(project, name, "commit")
        version = plane.status.upgrade.version
        found = await self._decided(caller, project, plane, "commit", {"commit": version}, {"upgrade": {"soak": False}})
        return found.model_copy(update={"way_back": _by_backup(plane)})

    async def rollback(self, caller: Caller, project: ProjectRef, name: str) -> UpgradeView:
        """Undo the control plane's step that was not committed. An upgrade that leads it ends.

        Raises:
            Conflict: no step is uncommitted.
        """
        plane = await self._uncommitted(project, name, "roll back")
        return await self._decided(caller, project, plane, "rollback", {"rollback": True}, {"version": plane.status.version})

    async def _uncommitted(self, project: ProjectRef, name: str, verb: str) -> ManagedControlPlane:
        plane = await self._plane(project, name)
        record = plane.status.upgrade
        if record.goes_back:
            raise Conflict(f"the control plane of cluster {name} goes back to {record.version} already", resolution=f"see: ckp cluster upgrade {name}")
        if not record.uncommitted:
            so = (
                f"its step to {record.version} is committed"
                if record.under_way
                else f"it is of {plane.status.version or 'no version yet'}, and no step goes on"
            )
            raise Conflict(f"there is nothing to {verb} of the control plane of cluster {name}: {so}", resolution=_by_backup(plane))
        return plane

    async def _decided(
        self, caller: Caller, project: ProjectRef, plane: ManagedControlPlane, verb: str, spec: dict[str, Any], of_plane: dict[str, Any]
    ) -> UpgradeView:
        """Told to the upgrade that leads the control plane; to the control plane itself where none does."""
        name = plane.name
        changing = [item for item in await self._all(project, name) if not item.spec.dry_run]
        leading = next((item for item in reversed(changing) if not item.over), None)
        if leading is not None:
            found = ClusterUpgrade.of(await self._kube.merge(kinds.CLUSTER_UPGRADE, leading.name, project.namespace, {"spec": spec}))
        else:
            await self._kube.merge(kinds.MANAGED_CONTROL_PLANE, name, project.namespace, {"spec": of_plane})
            found = changing[-1] if changing else ClusterUpgrade.of(_manifest(project.namespace, "", name, UpgradeRequest(version=plane.spec.version)))
        await self._note(caller, project, verb, name, {"version": plane.status.upgrade.version})
        return _view(found, plane)

    async def _change(self, caller: Caller, project: ProjectRef, name: str, verb: str, spec: dict[str, Any]) -> UpgradeView:
        found = await self._require(project, name)
        if found.over:
            raise Conflict(f"the upgrade of cluster {name} to {found.spec.version} is over ({found.status.phase})", resolution="ask for another one")
        changed = await self._kube.merge(kinds.CLUSTER_UPGRADE, found.name, project.namespace, {"spec": spec})
        await self._note(caller, project, verb, name, {"version": found.spec.version})
        return _view(ClusterUpgrade.of(changed), await self._plane_if_there(project, name))

    async def _plane(self, project: ProjectRef, name: str) -> ManagedControlPlane:
        cluster = await self._cluster(project, name)
        found = await self._namespaces.get(kinds.MANAGED_CONTROL_PLANE, name, project)
        if found is None:
            raise Conflict(f"cluster {name} has no ManagedControlPlane {name}", resolution="it was removed by hand, or its creation was interrupted")
        if is_going(cluster):
            raise Conflict(f"cluster {name} is being deleted")
        return ManagedControlPlane.of(found)

    async def _plane_if_there(self, project: ProjectRef, name: str) -> ManagedControlPlane | None:
        found = await self._namespaces.get(kinds.MANAGED_CONTROL_PLANE, name, project)
        return ManagedControlPlane.of(found) if found else None

    async def _cluster(self, project: ProjectRef, name: str) -> Obj:
        cluster = await self._namespaces.get(kinds.CLUSTER, name, project)
        if cluster is None:
            raise NotFound(f"there is no cluster {name} in {project}", resolution="list them: ckp cluster list")
        return cluster

    async def _all(self, project: ProjectRef, name: str) -> list[ClusterUpgrade]:
        """The oldest first."""
        found = [ClusterUpgrade.of(item) for item in await self._kube.list(kinds.CLUSTER_UPGRADE, project.namespace)]
        return sorted((item for item in found if item.spec.cluster_name == name), key=lambda item: (item.metadata.creation_timestamp, item.name))

    async def _require(self, project: ProjectRef, name: str, identifier: str = "") -> ClusterUpgrade:
        await self._cluster(project, name)
        found = [item for item in await self._all(project, name) if (item.name == identifier if identifier else not item.spec.dry_run)]
        if not found:
            what = f"no upgrade {identifier}" if identifier else "not been upgraded"
            raise NotFound(f"cluster {name} has {what}", resolution=f"begin one: ckp cluster upgrade {name} --to VERSION")
        return found[-1]

    async def _note(self, caller: Caller, project: ProjectRef, verb: str, name: str, detail: dict[str, Any]) -> None:
        async with self._database.unit() as unit:
            unit.audit(caller, project, f"cluster-upgrade.{verb}", name, detail)


def _manifest(namespace: str, identifier: str, cluster: str, request: UpgradeRequest) -> Obj:
    given = request.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return {
        "apiVersion": kinds.CLUSTER_UPGRADE.api_version,
        "kind": kinds.CLUSTER_UPGRADE.kind,
        "metadata": {"name": identifier, "namespace": namespace, "labels": {CLUSTER_NAME_LABEL: cluster}},
        "spec": {"clusterName": cluster, **given},
    }


def _way_back(upgrade: ClusterUpgrade, plane: ManagedControlPlane) -> str:
    """How the control plane goes back, and what that costs; "" where nothing was changed."""
    record = plane.status.upgrade
    if record.uncommitted:
        return f"ckp cluster upgrade {plane.name} --rollback: to {plane.status.version}, etcd is not touched and nothing that was written is lost"
    begun = record.version == plane.spec.version and not record.rolled_back
    return _by_backup(plane) if begun and not upgrade.spec.dry_run else ""


def _by_backup(plane: ManagedControlPlane) -> str:
    started = time_of(plane.status.upgrade.started_at)
    before = [entry.id for entry in plane.status.backup.kept if (at := begun_at(entry.id)) and started and at <= started]
    if not before:
        return "no backup of before the step is kept, so there is no way back"
    return f"ckp cluster restore {plane.name} {before[-1]}: the data of before the step; what was written since is lost, and the version stays"


def _view(upgrade: ClusterUpgrade, of: ManagedControlPlane | None = None) -> UpgradeView:
    spec, status = upgrade.spec, upgrade.status
    plane = status.control_plane
    return UpgradeView(
        id=upgrade.name,
        version=spec.version,
        dry_run=spec.dry_run,
        phase=status.phase or "Checking",
        message=status.message,
        over=upgrade.over,
        before=status.from_version,
        path=list(status.path),
        soak=spec.soak,
        commit_after=parse_duration(spec.commit_after) if spec.commit_after else None,
        way_back=_way_back(upgrade, of) if of else "",
        findings=[
            FindingView(name=item.name, where=item.where, message=item.message, remedy=item.remedy, acceptable=item.acceptable, accepted=item.accepted)
            for item in status.findings
        ],
        control_plane=UpgradedView(
            version=plane.version,
            state=plane.state,
            message=plane.message,
            started_at=time_of(plane.started_at),
            finished_at=time_of(plane.finished_at),
        ),
        nodes=[
            UpgradedView(
                name=node.name,
                pool=node.pool,
                before=node.from_version,
                version=node.to,
                state=node.state,
                message=node.message,
                started_at=time_of(node.started_at),
                finished_at=time_of(node.finished_at),
                waiting_since=time_of(node.waiting_since),
                waiting_until=time_of(node.waiting_until),
            )
            for node in status.nodes
        ],
        started_at=time_of(status.started_at),
        finished_at=time_of(status.finished_at),
    )
