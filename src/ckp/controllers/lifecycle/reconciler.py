"""From the objects of a cluster to its fourteen steps."""

from __future__ import annotations

from dataclasses import dataclass

from ckp.api.kinds import BYO_MACHINE, BYO_MACHINE_TEMPLATE, CERTIFICATE, CLUSTER, KUBEADM_CONFIG_TEMPLATE, MACHINE, MACHINE_DEPLOYMENT, MANAGED_CONTROL_PLANE
from ckp.api.names import CLUSTER_NAME_LABEL, REQUESTED_AT_ANNOTATION
from ckp.api.objects.byo_host import ByoHost
from ckp.api.objects.byo_machine import ByoMachine, ByoMachineTemplate
from ckp.api.objects.control_plane import ManagedControlPlane
from ckp.api.states import ConditionType, StepState
from ckp.clients.kube import Kube, Obj
from ckp.controllers.scope import Scope, cluster_name, deleting, owner
from ckp.kits.clock import Clock
from ckp.rules.addons import Purpose, progress
from ckp.rules.claims import Wanted
from ckp.rules.cluster_hosts import count_hosts
from ckp.rules.conditions import is_true
from ckp.rules.lifecycle import CLUSTER_READY_STEP, Observation, advance, complete
from ckp.rules.workload_health import unreached
from ckp.runtime.controller import Result
from ckp.runtime.informer import Informer

POLL = 5.0
POLL_DONE = 60.0


@dataclass
class LifecycleReconciler:
    """One pass over one cluster's steps."""

    kube: Kube
    clock: Clock
    hosts: Informer

    async def reconcile(self, namespace: str, name: str) -> Result:
        """Observe, evaluate, write."""
        obj = await self.kube.get(MANAGED_CONTROL_PLANE, name, namespace)
        if obj is None or deleting(obj):
            return Result()
        cluster = await self.kube.get(CLUSTER, cluster_name(obj), namespace)
        if cluster is None or deleting(cluster):
            return Result()
        plane = ManagedControlPlane.of(obj)
        scope = Scope(self.kube, self.clock, MANAGED_CONTROL_PLANE, obj)
        steps = advance(plane.status.steps, await self._observe(plane, cluster), self.clock.now())
        scope.status["steps"] = steps
        await scope.close()
        return Result(after=POLL_DONE if complete(steps) else POLL)

    async def _observe(self, plane: ManagedControlPlane, cluster: Obj) -> Observation:
        namespace, name = cluster["metadata"]["namespace"], cluster["metadata"]["name"]
        labels = {CLUSTER_NAME_LABEL: name}
        deployments = await self.kube.list(MACHINE_DEPLOYMENT, namespace, labels=labels)
        templates = await self.kube.list(BYO_MACHINE_TEMPLATE, namespace, labels=labels)
        bootstraps = await self.kube.list(KUBEADM_CONFIG_TEMPLATE, namespace, labels=labels)
        machines = [item for item in await self.kube.list(MACHINE, namespace, labels=labels) if not deleting(item)]
        byo = [ByoMachine.of(item) for item in await self.kube.list(BYO_MACHINE, namespace, labels=labels)]
        certificates = [item for item in await self.kube.list(CERTIFICATE, namespace, labels=labels) if owner(item, "ManagedControlPlane")]
        workload = plane.condition(ConditionType.WORKLOAD_READY)
        workers = sum(int(item["spec"].get("replicas") or 0) for item in deployments)
        return Observation(
            requested_at=(cluster["metadata"].get("annotations") or {}).get(REQUESTED_AT_ANNOTATION) or cluster["metadata"]["creationTimestamp"],
            infrastructure_ready=bool((cluster.get("status") or {}).get("infrastructureReady")),
            workers=workers,
            hosts=count_hosts(
                map(ByoHost.of, self.hosts.all(namespace)),
                [Wanted.of(ByoMachineTemplate.of(item).spec.template.spec) for item in templates],
                machines={item.uid for item in byo if not item.deleting},
                leaving={item.uid for item in byo if item.deleting},
                workers=workers,
            ),
            resources=bool(deployments and templates and bootstraps),
            machines=len(machines),
            machines_failed=_failure([item for item in byo if not item.deleting]),
            control_plane_ready=plane.status.ready,
            control_plane_message=plane.condition(ConditionType.READY).message,
            unreached=unreached(plane),
            nodes_joined=sum(bool((item.get("status") or {}).get("nodeRef")) for item in machines),
            nodes_ready=sum(is_true(item, ConditionType.NODE_HEALTHY) for item in machines),
            # Without a condition a cluster of 0.2.0 keeps its step until its canary has started; a new one is not ready.
            workload_ready=None if workload.status == "Unknown" else workload.is_true or (not workload.status and _was_ready(plane)),
            workload_message=workload.message,
            network=progress(plane, Purpose.NETWORK),
            storage=progress(plane, Purpose.STORAGE, Purpose.BACKUP),
            certificates=len(certificates),
            certificates_ready=sum(is_true(item, ConditionType.READY) for item in certificates),
        )


def _was_ready(plane: ManagedControlPlane) -> bool:
    return any(step.name == CLUSTER_READY_STEP and step.state in (StepState.DONE, StepState.UNKNOWN) and step.finished_at for step in plane.status.steps)


def _failure(machines: list[ByoMachine]) -> str:
    """What the first machine that failed reports; "" if none did."""
    for machine in machines:
        condition = machine.condition(ConditionType.BYO_HOST_READY)
        if condition.is_false and condition.severity == "Error":
            return f"{machine.name}: {condition.message or condition.reason}"
    return ""
