"""The phases of a control plane that are about its etcd: how large it is, whether it serves, and whether it has space."""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from ckp.api.kinds import PVC, STATEFUL_SET
from ckp.api.objects.control_plane import ManagedControlPlane
from ckp.api.states import ConditionType, Reason
from ckp.clients.etcd import ConnectEtcd, EtcdError
from ckp.clients.kube import Kube
from ckp.controllers.controlplane.etcd import Sizing, quota_of, sizing
from ckp.controllers.controlplane.etcd_care import EtcdCare, record
from ckp.controllers.controlplane.phases import POLL, SOON, NotYet
from ckp.controllers.controlplane.plan import Plan
from ckp.controllers.scope import Scope
from ckp.kits.clock import Clock
from ckp.rules.etcd import nearly_full

log = structlog.get_logger()
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

    async def ready(self, scope: Scope, plan: Plan) -> None:
        """A quorum of the members is ready."""
        found = await self.kube.get(STATEFUL_SET, plan.name("etcd"), plan.namespace)
        ready = int(((found or {}).get("status") or {}).get("readyReplicas") or 0)
        if ready < plan.etcd_replicas // 2 + 1:
            self.care.look_anew(plan.namespace, plan.cluster)
            raise NotYet(ConditionType.ETCD_READY, f"{ready} of {plan.etcd_replicas} members of etcd are ready")

    async def space(self, scope: Scope, plan: Plan) -> float | None:
        """What the members say of their space is recorded; where it is short, some is freed, one member at a time."""
        kind = ConditionType.ETCD_SPACE_AVAILABLE
        found = await self.kube.get(STATEFUL_SET, plan.name("etcd"), plan.namespace)
        if not ((found or {}).get("status") or {}).get("readyReplicas"):
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
