"""From the objects of a cluster to its fourteen steps."""

from __future__ import annotations

from dataclasses import dataclass

from ckp.api.kinds import BYO_MACHINE, BYO_MACHINE_TEMPLATE, CERTIFICATE, CLUSTER, KUBEADM_CONFIG_TEMPLATE, MACHINE, MACHINE_DEPLOYMENT, MANAGED_CONTROL_PLANE
from ckp.api.names import CLUSTER_NAME_LABEL, REQUESTED_AT_ANNOTATION
from ckp.api.objects.byo_host import ByoHost
from ckp.api.objects.byo_machine import ByoMachineTemplate
from ckp.clients.kube import Kube, Obj
from ckp.controllers.scope import Scope, cluster_name, deleting, owner
from ckp.kits.clock import Clock
from ckp.rules.claims import Wanted, candidate
from ckp.rules.conditions import get_condition, is_true
from ckp.rules.lifecycle import Seen, advance, complete
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
        """Look, judge, write."""
        obj = await self.kube.get(MANAGED_CONTROL_PLANE, name, namespace)
        if obj is None or deleting(obj):
            return Result()
        cluster = await self.kube.get(CLUSTER, cluster_name(obj), namespace)
        if cluster is None or deleting(cluster):
            return Result()
        seen = await self._look(obj, cluster)
        scope = Scope(self.kube, self.clock, MANAGED_CONTROL_PLANE, obj)
        steps = advance((obj.get("status") or {}).get("steps") or [], seen, self.clock.now())
        scope.status["steps"] = steps
        await scope.close()
        return Result(after=POLL_DONE if complete(steps) else POLL)

    async def _look(self, obj: Obj, cluster: Obj) -> Seen:
        namespace, name = cluster["metadata"]["namespace"], cluster["metadata"]["name"]
        labels = {CLUSTER_NAME_LABEL: name}
        deployments = await self.kube.list(MACHINE_DEPLOYMENT, namespace, labels=labels)
        templates = await self.kube.list(BYO_MACHINE_TEMPLATE, namespace, labels=labels)
        bootstraps = await self.kube.list(KUBEADM_CONFIG_TEMPLATE, namespace, labels=labels)
        machines = [item for item in await self.kube.list(MACHINE, namespace, labels=labels) if not deleting(item)]
        byo = [item for item in await self.kube.list(BYO_MACHINE, namespace, labels=labels) if not deleting(item)]
        certificates = [item for item in await self.kube.list(CERTIFICATE, namespace, labels=labels) if owner(item, "ManagedControlPlane")]
        uids = {item["metadata"]["uid"] for item in byo}
        group = self._group(namespace, templates)
        addon: Obj = next(iter((obj.get("status") or {}).get("addons") or []), {})
        return Seen(
            requested_at=(cluster["metadata"].get("annotations") or {}).get(REQUESTED_AT_ANNOTATION) or cluster["metadata"]["creationTimestamp"],
            infrastructure_ready=bool((cluster.get("status") or {}).get("infrastructureReady")),
            workers=sum(int(item["spec"].get("replicas") or 0) for item in deployments),
            hosts_in_group=len(group),
            hosts_connected=sum(candidate(ByoHost.of(item)).connected for item in group),
            resources=bool(deployments and templates and bootstraps),
            machines=len(machines),
            machines_claimed=sum(candidate(ByoHost.of(item)).claimed_by in uids for item in group),
            machines_failed=_failure(byo),
            control_plane_ready=bool((obj.get("status") or {}).get("ready")),
            control_plane_message=(get_condition(obj, "Ready") or {}).get("message", ""),
            nodes_joined=sum(bool((item.get("status") or {}).get("nodeRef")) for item in machines),
            nodes_ready=sum(is_true(item, "NodeHealthy") for item in machines),
            cni=(obj["spec"].get("addons") or {}).get("cni") or "cilium",
            cni_installed=addon.get("state") == "Installed",
            cni_message=addon.get("message", ""),
            certificates=len(certificates),
            certificates_ready=sum(is_true(item, "Ready") for item in certificates),
        )

    def _group(self, namespace: str, templates: list[Obj]) -> list[Obj]:
        """The hosts that any of the cluster's machine templates may claim."""
        asked = [Wanted.of(ByoMachineTemplate.of(item).spec.template.spec) for item in templates]
        return [host for host in self.hosts.all(namespace) if any(wanted.fits(candidate(ByoHost.of(host))) for wanted in asked)]


def _failure(machines: list[Obj]) -> str:
    """What the first machine that is in trouble says."""
    for machine in machines:
        condition = get_condition(machine, "BYOHostReady")
        if condition and condition["status"] == "False" and condition.get("severity") == "Error":
            return f"{machine['metadata']['name']}: {condition.get('message') or condition['reason']}"
    return ""
