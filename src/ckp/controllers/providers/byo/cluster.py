"""ByoCluster: people's own hosts need no infrastructure to be made, so it is ready once a Cluster owns it.

Contract (InfraCluster): `status.ready`; `spec.controlPlaneEndpoint` comes from the control plane provider here, and is optional for us.
"""

from __future__ import annotations

from dataclasses import dataclass

from ckp.api.kinds import BYO_CLUSTER
from ckp.api.names import MANAGED_BY_ANNOTATION
from ckp.api.states import ConditionType
from ckp.clients.kube import Kube
from ckp.controllers.providers.byo.remediation import Remediation
from ckp.controllers.scope import Scope, deleting, owner, paused
from ckp.kits.clock import Clock
from ckp.rules.conditions import make_condition
from ckp.runtime.controller import Result


@dataclass
class ByoClusterReconciler:
    """Marks a ByoCluster ready, and has the cluster's unhealthy workers replaced."""

    kube: Kube
    clock: Clock
    remediation: Remediation

    async def reconcile(self, namespace: str, name: str) -> Result:
        """Ready as soon as Cluster API has set the owner; unhealthy workers are replaced or left."""
        obj = await self.kube.get(BYO_CLUSTER, name, namespace)
        if obj is None or deleting(obj) or owner(obj, "Cluster") is None or MANAGED_BY_ANNOTATION in (obj["metadata"].get("annotations") or {}):
            return Result()
        scope = Scope(self.kube, self.clock, BYO_CLUSTER, obj)
        cluster = await scope.cluster()
        if paused(cluster, obj):
            return Result()
        scope.status["ready"] = True
        scope.conditions = [make_condition(ConditionType.CLUSTER_READY, True, self.clock.now())]
        async with scope:
            after = await self.remediation.reconcile(scope, cluster) if cluster is not None else None
        return Result(after=after) if after else Result()
