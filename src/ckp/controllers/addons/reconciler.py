"""Installs the addons that a ManagedControlPlane names, and keeps `status.addons` (no other field) up to date."""

from __future__ import annotations

from dataclasses import dataclass

from ckp.api.kinds import CLUSTER, MANAGED_CONTROL_PLANE
from ckp.api.platform import Releases
from ckp.clients.kube import Kube, Obj
from ckp.controllers.addons import cilium
from ckp.controllers.controlplane.plan import Plan
from ckp.controllers.jobs import JobState, run_once
from ckp.controllers.scope import Scope, cluster_name, deleting, paused
from ckp.kits.clock import Clock
from ckp.runtime.controller import Result

POLL = 15.0


@dataclass
class AddonsReconciler:
    """One pass over one control plane's addons.

    Args:
        image: helm with the charts, as CKP builds it.
    """

    kube: Kube
    clock: Clock
    releases: Releases
    image: str

    async def reconcile(self, namespace: str, name: str) -> Result:
        """Nothing before the API server is ready, nothing during deletion."""
        obj = await self.kube.get(MANAGED_CONTROL_PLANE, name, namespace)
        if obj is None or deleting(obj) or not (obj.get("status") or {}).get("ready"):
            return Result()
        cluster = await self.kube.get(CLUSTER, cluster_name(obj), namespace)
        if cluster is None or paused(cluster, obj):
            return Result()
        plan = Plan.of(obj, cluster, self.releases, str(obj["spec"]["controlPlaneEndpoint"]["host"]))
        if plan.cni != "cilium":
            return Result()
        addon = await self._cilium(plan)
        scope = Scope(self.kube, self.clock, MANAGED_CONTROL_PLANE, obj)
        scope.status["addons"] = [addon]
        await scope.close()
        return Result(after=POLL if addon["state"] != "Installed" else None)

    async def _cilium(self, plan: Plan) -> Obj:
        config, job = cilium.install_objects(plan, self.releases, self.image)
        addon: Obj = {"name": "cilium", "version": plan.release.cni["cilium"], "state": "Installing", "message": "helm is installing the chart"}
        name = str(job["metadata"]["name"])

        async def manifests() -> list[Obj]:
            return [config, job]

        state = await run_once(self.kube, plan.namespace, name, manifests)
        if state is JobState.SUCCEEDED:
            return {"name": addon["name"], "version": addon["version"], "state": "Installed"}
        if state is JobState.FAILED:
            addon["message"] = f"the Job {name} failed and is started again"
        return addon
