"""Installs the addons that a ManagedControlPlane names, and keeps `status.addons` (no other field) up to date."""

from __future__ import annotations

from dataclasses import dataclass

from ckp.api.kinds import CLUSTER, JOB, MANAGED_CONTROL_PLANE
from ckp.api.platform import Releases
from ckp.clients.kube import Kube, Obj
from ckp.controllers.addons import cilium
from ckp.controllers.apply import Applier
from ckp.controllers.controlplane.plan import Plan
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
    applier: Applier
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
        found = await self.kube.get(JOB, job["metadata"]["name"], plan.namespace)
        if found is None:
            await self.applier.apply(config)
            await self.kube.apply(job)
            return addon
        status = found.get("status") or {}
        if status.get("succeeded"):
            return {"name": addon["name"], "version": addon["version"], "state": "Installed"}
        if any(item["type"] == "Failed" and item["status"] == "True" for item in status.get("conditions") or []):
            await self.kube.delete(JOB, job["metadata"]["name"], plan.namespace)
            addon["message"] = f"the Job {job['metadata']['name']} failed and is started again"
        return addon
