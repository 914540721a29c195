"""Installs the addons that a ManagedControlPlane names, and keeps `status.addons` (no other field) up to date."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from ckp.api.kinds import CLUSTER, JOB, MANAGED_CONTROL_PLANE, POD
from ckp.api.names import CLUSTER_NAME_LABEL
from ckp.api.objects.control_plane import ManagedControlPlane
from ckp.api.platform import Releases
from ckp.api.states import AddonState
from ckp.clients.kube import Kube, KubeError, Obj
from ckp.controllers.addons.addon import Addon
from ckp.controllers.addons.registry import ADDONS
from ckp.controllers.controlplane.plan import Plan
from ckp.controllers.jobs import JobState, has_failed, run_once
from ckp.controllers.scope import Scope, cluster_name, deleting, paused
from ckp.controllers.workload import WorkloadClients, workload_cluster
from ckp.kits.clock import Clock, parse_rfc3339
from ckp.kits.errors import NotFound
from ckp.rules.addons import requested
from ckp.runtime.controller import Result

POLL = 15.0
SOON = 3.0
"""Before a Job is started: what it waits for is over within seconds."""
PAUSES = (5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0)
"""Seconds between the failure of a Job and its next start, by how many failed before."""
GIVEN_UP = timedelta(minutes=5)
"""A pod that was to end this long ago is on a node that is gone; it is not waited for any longer."""


@dataclass
class AddonsReconciler:
    """One pass over one control plane's addons.

    Args:
        image: helm with the charts of the management layer's release, for releases whose entry names no image of their own.
        addons: those that can be installed, by name.
    """

    kube: Kube
    clock: Clock
    releases: Releases
    image: str
    addons: Mapping[str, Addon] = field(default_factory=lambda: ADDONS)
    clients: WorkloadClients = field(default_factory=WorkloadClients)
    _failures: dict[str, tuple[int, datetime, str]] = field(default_factory=dict)
    """By namespace and Job: how often it failed in a row, when it may start again, and why it failed last. Lost with the process: it starts at once then."""

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
        # Charts follow a control plane that is whole: while it is upgraded they stay as they are.
        version = plane.status.version or plane.running_version
        plan = Plan.of(obj, cluster, self.releases, plane.spec.control_plane_endpoint.host, version=version)
        scope = Scope(self.kube, self.clock, MANAGED_CONTROL_PLANE, obj)
        steps = [await self._install(plan, request.name) for request in wanted]
        scope.status["addons"] = [entry for entry, _ in steps]
        await scope.close()
        return Result(after=min((after for _, after in steps if after is not None), default=None))

    async def _install(self, plan: Plan, name: str) -> tuple[Obj, float | None]:
        """The next step of one addon's installation; returns its entry in `status.addons`, and the seconds until the next look."""
        addon = self.addons.get(name)
        if addon is None:
            known = ", ".join(sorted(self.addons))
            return {"name": name, "state": str(AddonState.UNAVAILABLE), "message": f"this version of CKP cannot install {name}, only: {known}"}, None
        try:
            version = addon.version(plan.release)
        except NotFound as error:
            return {"name": name, "state": str(AddonState.UNAVAILABLE), "message": error.brief}, None
        objects = addon.manifests(plan, self.releases, plan.release.addons or self.image)
        job = str(objects[-1]["metadata"]["name"])
        waiting = ""

        async def manifests() -> Sequence[Obj]:
            nonlocal waiting
            waiting = await self._not_yet(plan, addon, job)
            return () if waiting else objects

        await self._note_failure(plan, addon, job)
        state = await run_once(self.kube, plan.namespace, job, manifests)
        if state is JobState.SUCCEEDED:
            self._failures.pop(f"{plan.namespace}/{job}", None)
            return {"name": name, "version": version, "state": str(AddonState.INSTALLED)}, None
        message = waiting or (self._failure(plan, job) if state is JobState.FAILED else "helm is installing the chart")
        after = SOON if waiting or state is JobState.FAILED else POLL
        return {"name": name, "version": version, "state": str(AddonState.INSTALLING), "message": message}, after

    def _failure(self, plan: Plan, job: str) -> str:
        why = self._failures.get(f"{plan.namespace}/{job}", (0, self.clock.now(), ""))[2]
        return f"the Job {job} failed and is started again{f': {why}' if why else ''}"

    async def _not_yet(self, plan: Plan, addon: Addon, job: str) -> str:
        """Why the Job can't be started now; "" once nothing of an earlier one runs any longer, and the workload cluster is prepared for it.

        Two helms at once would spoil each other's work, and what one of them is at could not be told from what a killed one has left.
        """
        failed = self._failures.get(f"{plan.namespace}/{job}")
        if failed and self.clock.now() < failed[1]:
            return self._failure(plan, job)
        for other in await self.kube.list(JOB, plan.namespace, labels={CLUSTER_NAME_LABEL: plan.cluster}):
            name, status = str(other["metadata"]["name"]), other.get("status") or {}
            if name != job and name.startswith(plan.name(f"{addon.name}-")) and not status.get("succeeded") and not deleting(other):
                await self.kube.delete(JOB, name, plan.namespace)  # of an earlier version, or of other values
        for pod in await self._pods(plan, addon):
            if (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed") and not self._is_given_up(pod):
                return f"an earlier installation of {addon.name} is being ended (pod {pod['metadata']['name']})"
        try:
            async with workload_cluster(self.kube, plan.namespace, plan.cluster, self.clients) as workload:
                if workload is None:
                    return "the cluster has no kubeconfig yet"
                await addon.prepare(workload)
        except KubeError as error:
            return f"the cluster's API server can't be reached: {error.brief}"
        return ""

    def _is_given_up(self, pod: Obj) -> bool:
        ended = pod["metadata"].get("deletionTimestamp")
        return bool(ended) and self.clock.now() > parse_rfc3339(str(ended)) + GIVEN_UP

    async def _pods(self, plan: Plan, addon: Addon) -> list[Obj]:
        return await self.kube.list(POD, plan.namespace, labels=dict(plan.selector(f"addon-{addon.name}")))

    async def _note_failure(self, plan: Plan, addon: Addon, job: str) -> None:
        """If the Job has failed: when it is to start again, and the last line of what its helm printed."""
        found = await self.kube.get(JOB, job, plan.namespace)
        if found is None or deleting(found) or not has_failed(found):
            return
        lines = [line for pod in await self._pods(plan, addon) if _of_job(pod, job) for line in _last_words(pod)]
        count = self._failures.get(f"{plan.namespace}/{job}", (0, self.clock.now(), ""))[0]
        next_start = self.clock.now() + timedelta(seconds=PAUSES[min(count, len(PAUSES) - 1)])
        self._failures[f"{plan.namespace}/{job}"] = (count + 1, next_start, lines[-1] if lines else "")


def _of_job(pod: Obj, job: str) -> bool:
    return any(ref["kind"] == JOB.kind and ref["name"] == job for ref in pod["metadata"].get("ownerReferences") or [])


def _last_words(pod: Obj) -> list[str]:
    """The last line that each of a pod's containers printed before it failed."""
    states = [(item.get("state") or {}).get("terminated") or {} for item in (pod.get("status") or {}).get("containerStatuses") or []]
    return [lines[-1].strip() for state in states if state.get("exitCode") and (lines := str(state.get("message") or "").strip().splitlines())]
