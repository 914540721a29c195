"""The phases of a control plane that are about its etcd: how large it is, whether it serves, and whether it has space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from ckp.api.kinds import CONFIG_MAP, JOB, MANAGED_CONTROL_PLANE, POD, PVC, STATEFUL_SET
from ckp.api.names import ACCEPT_ETCD_DATA_ANNOTATION, CLUSTER_NAME_LABEL
from ckp.api.objects.control_plane import ManagedControlPlane
from ckp.api.states import ConditionType, Reason
from ckp.clients.etcd import ConnectEtcd, EtcdError
from ckp.clients.kube import Kube, Obj
from ckp.controllers.controlplane.etcd import EXISTING, NEW, STATE_KEY, Sizing, config_map, quota_of, sizing
from ckp.controllers.controlplane.etcd_care import EtcdCare, record
from ckp.controllers.controlplane.phases import POLL, SOON, NotYet
from ckp.controllers.controlplane.plan import Plan
from ckp.controllers.pods import replicas_of
from ckp.controllers.scope import Scope, owner
from ckp.kits.clock import Clock
from ckp.rules.etcd import is_without_data, nearly_full, went_back

log = structlog.get_logger()


def _token(scope: Scope) -> str:
    """What a person must name to go on: it is of this loss alone."""
    recorded = ManagedControlPlane.of(scope.obj).status.etcd
    return f"{recorded.cluster_id or 'unknown'}-{recorded.revision}"


def _accepted(scope: Scope) -> bool:
    return (scope.obj["metadata"].get("annotations") or {}).get(ACCEPT_ETCD_DATA_ANNOTATION) == _token(scope)


def _hold(scope: Scope, reason: Reason, what: str, to_do: str) -> NotYet:
    command = f"kubectl -n {scope.namespace} annotate --overwrite managedcontrolplane {scope.name} {ACCEPT_ETCD_DATA_ANNOTATION}={_token(scope)}"
    held = "The API server is held back, so that nodes keep their pods"
    return NotYet(ConditionType.ETCD_READY, f"{what}, or {to_do}: {command}. {held}.", reason=reason, severity="Error", hold=True)


def _stay_held(scope: Scope) -> None:
    """NotYet as before while nothing is seen: only data that is seen to be right, or a person, ends it."""
    before = ManagedControlPlane.of(scope.obj).condition(ConditionType.ETCD_READY)
    if before.reason in (Reason.DATA_LOST, Reason.REVISION_WENT_BACK) and not _accepted(scope):
        raise NotYet(ConditionType.ETCD_READY, before.message, reason=Reason(before.reason), severity="Error", hold=True)


REMEDY = (
    "delete what is not needed from the cluster (events, ConfigMaps, Secrets), or enlarge its PersistentVolumeClaims "
    "({claim}, …), where their storage class allows it: the quota follows"
)


@dataclass
class EtcdPhases:
    """For all clusters."""

    kube: Kube
    clock: Clock
    connect_to: ConnectEtcd

    def __post_init__(self) -> None:
        self.care = EtcdCare(self.kube, self.clock, self.connect_to)

    def forget(self, namespace: str, cluster: str) -> None:
        """Of a cluster that is gone."""
        self.care.forget(namespace, cluster)

    async def sizing(self, scope: Scope, plan: Plan) -> Sizing:
        """For the manifests; NotYet if the spec's size can't be read."""
        found = await self.kube.get(STATEFUL_SET, plan.name("etcd"), plan.namespace)
        claims = await self.kube.list(PVC, plan.namespace, labels=plan.selector("etcd"))
        try:
            return sizing(plan, found, claims, ManagedControlPlane.of(scope.obj).status.etcd.database_bytes)
        except ValueError as error:
            raise NotYet(ConditionType.ETCD_READY, f"spec.etcd.size: {error}", severity="Error") from error

    async def config_map(self, scope: Scope, plan: Plan) -> Obj:
        """Whether a member may make a new cluster: until the control plane was initialized once, and again where a person gave up what was lost."""
        status = ManagedControlPlane.of(scope.obj).status
        found = await self.kube.get(CONFIG_MAP, plan.name("etcd"), plan.namespace)
        begun = status.initialized or ((found or {}).get("data") or {}).get(STATE_KEY) == EXISTING
        return config_map(plan, EXISTING if begun and not _accepted(scope) else NEW)

    async def _judge(self, scope: Scope, plan: Plan, ready: int, without_data: Sequence[str]) -> None:
        """NotYet, with the API server held back, if data is gone and nobody has accepted it."""
        status = ManagedControlPlane.of(scope.obj).status
        if not status.initialized:
            return
        if not ready:
            if len(without_data) == plan.etcd_replicas and not _accepted(scope):
                what = "etcd has lost its data: its volumes are empty, and it starts no new cluster by itself. Bring the volumes back"
                raise _hold(scope, Reason.DATA_LOST, what, "start empty")
            _stay_held(scope)
            return
        view = await self.care.look(plan)
        if not view.members:
            _stay_held(scope)
        recorded = (status.etcd.cluster_id, status.etcd.revision)
        wrong = went_back(recorded, [(seen.cluster_id, seen.revision) for seen in view.members.values()])
        if wrong and not _accepted(scope):
            raise _hold(
                scope, Reason.REVISION_WENT_BACK, f"etcd has not the data that it had: {wrong}. Bring the right volumes back", "go on with what is there"
            )
        if _accepted(scope) and view.members:
            await self._accept_data(scope, plan)

    async def _accept_data(self, scope: Scope, plan: Plan) -> None:
        """A person goes on with what is there: it is recorded as it is, and what Jobs wrote into the cluster is written again."""
        for item in await self.kube.list(JOB, plan.namespace, labels={CLUSTER_NAME_LABEL: plan.cluster}):
            if owner(item, "ManagedControlPlane"):
                await self.kube.delete(JOB, item["metadata"]["name"], plan.namespace)
        patch = {"metadata": {"annotations": {ACCEPT_ETCD_DATA_ANNOTATION: None}}}
        await self.kube.merge(MANAGED_CONTROL_PLANE, scope.name, plan.namespace, {"status": {"etcd": None}}, subresource="status")
        scope.obj = await self.kube.merge(MANAGED_CONTROL_PLANE, scope.name, plan.namespace, patch)

    async def _without_data(self, plan: Plan) -> list[str]:
        """The members without data, by what their containers wrote last before they ended; one that has not ended, or runs again and is ready, is none."""
        words: dict[str, str] = {}
        for pod in await self.kube.list(POD, plan.namespace, labels=plan.selector("etcd")):
            for status in (pod.get("status") or {}).get("containerStatuses") or []:
                ended = [((status.get(when) or {}).get("terminated") or {}).get("message") or "" for when in ("state", "lastState")]
                words[pod["metadata"]["name"]] = "" if status.get("ready") else "\n".join(ended)
        return sorted(name for name, last in words.items() if is_without_data(last))

    async def ready(self, scope: Scope, plan: Plan) -> None:
        """A quorum of the members is ready, and none of what was seen in etcd before is gone."""
        found = await self.kube.get(STATEFUL_SET, plan.name("etcd"), plan.namespace)
        ready = replicas_of(found, "readyReplicas")
        lost = await self._without_data(plan)
        await self._judge(scope, plan, ready, lost)
        message = f"{ready} of {plan.etcd_replicas} members of etcd are ready" + (f"; without their data: {', '.join(lost)}" if lost else "")
        if ready < plan.etcd_replicas // 2 + 1:
            self.care.forget_view(plan.namespace, plan.cluster)
            raise NotYet(ConditionType.ETCD_READY, message)
        if lost:  # the others go on; a member that merely restarts is no news
            raise NotYet(ConditionType.ETCD_READY, message, reason=Reason.MEMBER_WITHOUT_DATA, severity="Warning", needed=False)

    async def space(self, scope: Scope, plan: Plan) -> float | None:
        """What the members say of their space is recorded; where it is short, some is freed, one member at a time."""
        kind = ConditionType.ETCD_SPACE_AVAILABLE
        found = await self.kube.get(STATEFUL_SET, plan.name("etcd"), plan.namespace)
        if not replicas_of(found, "readyReplicas"):
            raise NotYet(kind, "no member of etcd is ready", seen=False, needed=False, reason=Reason.ETCD_NOT_REACHED)
        view, quota = await self.care.look(plan), quota_of(found)
        if not view.members:
            raise NotYet(kind, next(iter(view.silent.values())), seen=False, needed=False, reason=Reason.ETCD_NOT_REACHED)
        before = ManagedControlPlane.of(scope.obj).status.etcd
        scope.status["etcd"] = record(before, view, quota)
        try:
            again = SOON * 4 if await self.care.free_space(plan, view, quota) else None
        except EtcdError as error:
            log.warning("space was not freed in etcd", cluster=f"{plan.namespace}/{plan.cluster}", error=error.brief)
            again = None
        remedy = REMEDY.format(claim=f"data-{plan.name('etcd')}-0")
        largest, room = max(view.members.values(), key=lambda seen: seen.size), f"of the {quota >> 20} MiB that its volume has room for"
        if view.no_space:
            doing = "space is being freed" if again else remedy
            message = f"etcd takes no writes but deletions: its database has {largest.size >> 20} MiB, {largest.in_use >> 20} MiB in use, {room}; {doing}"
            raise NotYet(kind, message, reason=Reason.NO_SPACE, severity="Error", needed=False, after=again or POLL)
        if nearly_full(view.for_rules(), quota):
            message = f"etcd's database has {largest.in_use >> 20} MiB in use {room}; {remedy}"
            raise NotYet(kind, message, reason=Reason.NEARLY_FULL, severity="Warning", needed=False, after=again or POLL)
        return again
