"""Installs the addons that a ManagedControlPlane names, and keeps `status.addons` (no other field) up to date."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ckp.api.kinds import CLUSTER, MANAGED_CONTROL_PLANE
from ckp.api.objects.control_plane import ManagedControlPlane
from ckp.api.platform import Releases
from ckp.api.states import AddonState
from ckp.clients.kube import Kube, Obj
from ckp.controllers.addons.addon import Addon
from ckp.controllers.addons.registry import ADDONS
from ckp.controllers.controlplane.plan import Plan
from ckp.controllers.jobs import JobState, run_once
from ckp.controllers.scope import Scope, cluster_name, deleting, paused
from ckp.kits.clock import Clock
from ckp.kits.errors import NotFound
from ckp.rules.addons import requested
from ckp.runtime.controller import Result

POLL = 15.0


@dataclass
class AddonsReconciler:
    """One pass over one control plane's addons.

    Args:
        image: helm with the charts, as CKP builds it.
        addons: those that can be installed, by name.
    """

    kube: Kube
    clock: Clock
    releases: Releases
    image: str
    addons: Mapping[str, Addon] = field(default_factory=lambda: ADDONS)

    async def reconcile(self, namespace: str, name: str) -> Result:
        """Nothing before the API server is ready, nothing during deletion."""
        obj = await self.kube.get(MANAGED_CONTROL_PLANE, name, namespace)
        if obj is None or deleting(obj):
            return Result()
        plane = ManagedControlPlane.of(obj)
        wanted = requested(plane.spec)
        if not plane.status.ready or not wanted:
            return Result()
        cluster = await self.kube.get(CLUSTER, cluster_name(obj), namespace)
        if cluster is None or paused(cluster, obj):
            return Result()
        plan = Plan.of(obj, cluster, self.releases, plane.spec.control_plane_endpoint.host)
        scope = Scope(self.kube, self.clock, MANAGED_CONTROL_PLANE, obj)
        scope.status["addons"] = [await self._install(plan, request.name) for request in wanted]
        await scope.close()
        installing = any(addon["state"] == AddonState.INSTALLING for addon in scope.status["addons"])
        return Result(after=POLL if installing else None)

    async def _install(self, plan: Plan, name: str) -> Obj:
        """The next step of one addon's installation; returns its entry in `status.addons`."""
        addon = self.addons.get(name)
        if addon is None:
            known = ", ".join(sorted(self.addons))
            return {"name": name, "state": str(AddonState.UNAVAILABLE), "message": f"this version of CKP cannot install {name}, only: {known}"}
        try:
            version = addon.version(plan.release)
        except NotFound as error:
            return {"name": name, "state": str(AddonState.UNAVAILABLE), "message": error.brief}
        objects = addon.manifests(plan, self.releases, self.image)
        job = str(objects[-1]["metadata"]["name"])

        async def manifests() -> Sequence[Obj]:
            return objects

        state = await run_once(self.kube, plan.namespace, job, manifests)
        if state is JobState.SUCCEEDED:
            return {"name": name, "version": version, "state": str(AddonState.INSTALLED)}
        message = f"the Job {job} failed and is started again" if state is JobState.FAILED else "helm is installing the chart"
        return {"name": name, "version": version, "state": str(AddonState.INSTALLING), "message": message}
