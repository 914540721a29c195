"""Keeps the condition WorkloadReady of a control plane truthful, by the canary in its workload cluster, for as long as the cluster exists."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from ipaddress import IPv4Network

from ckp.api.kinds import (
    CLUSTER,
    DAEMON_SET,
    DEPLOYMENT,
    ENDPOINTS,
    EVENT,
    MANAGED_CONTROL_PLANE,
    MUTATING_WEBHOOK,
    NAMESPACE,
    NODE,
    POD,
    VALIDATING_WEBHOOK,
)
from ckp.api.objects.control_plane import NO_CNI, ManagedControlPlane
from ckp.api.platform import Releases
from ckp.api.states import FINISHED_STEPS, ConditionType, Reason
from ckp.clients.kube import Kube, KubeError, Obj
from ckp.controllers.pods import replicas_of
from ckp.controllers.scope import cluster_name, deleting, paused
from ckp.controllers.workload import WorkloadClients, workload_cluster
from ckp.controllers.workload_health import canary
from ckp.controllers.workload_health.canary import Canary
from ckp.kits.clock import Clock
from ckp.kits.errors import NotFound
from ckp.rules import pod_network
from ckp.rules.admission import Backend, blockers
from ckp.rules.conditions import Severity, make_condition, merge_conditions
from ckp.rules.leaving import is_going
from ckp.rules.lifecycle import CLUSTER_READY_STEP
from ckp.rules.workload_health import NETWORK, Seen, Verdict, evaluate
from ckp.runtime.controller import Result

SYSTEM = canary.NAMESPACE
SOON, POLL, POLL_READY = 2.0, 15.0, 30.0
EAGER = timedelta(minutes=5)
"""So long after the reason why it is not ready changed, a cluster is looked at every SOON seconds, then every POLL."""
HOLD = timedelta(seconds=30)
"""How long ago a cluster must have been seen ready for what is seen now to be written at once: a canary that moves to another node, or one request that
fails, is no news."""
SETTLE = timedelta(minutes=5)
"""A cluster that was ready before there were canaries (CKP 0.2.0) stays so for this long, until its own has started."""


PROBE = 10.0
"""Seconds between two looks for what the probe of a canary printed, as long as it is of the same pods: a probe runs every ten seconds, Events are no
index, and an API server reads all of a namespace's to find some."""
NEEDS_A_PERSON = (Reason.WEBHOOK_BLOCKS, Reason.POD_NETWORK_FULL)
"""Reasons that are warnings in a cluster that has never been ready, too: waiting does not help."""


@dataclass
class _Memory:
    since: datetime
    """When it was last seen ready, or first seen."""
    ready: bool = False
    reason: str = ""
    changed: datetime | None = None
    """When the reason why it is not ready changed last."""
    probed: tuple[float, frozenset[str], str] = (0.0, frozenset(), "")
    """When the Events of which pods were asked for last (by the monotonic clock), and what a probe had printed then."""


@dataclass
class WorkloadHealthReconciler:
    """One look into one workload cluster."""

    kube: Kube
    clock: Clock
    releases: Releases
    clients: WorkloadClients = field(default_factory=WorkloadClients)
    _memory: dict[tuple[str, str], _Memory] = field(default_factory=dict)

    async def reconcile(self, namespace: str, name: str) -> Result:
        """Deploy the canary where it is missing or old, look, and write the condition if it says something else now."""
        obj = await self.kube.get(MANAGED_CONTROL_PLANE, name, namespace)
        cluster = await self.kube.get(CLUSTER, cluster_name(obj), namespace) if obj is not None and not deleting(obj) else None
        if obj is None or cluster is None or is_going(cluster):
            self._memory.pop((namespace, name), None)
            return Result()
        plane = ManagedControlPlane.of(obj)
        if not plane.status.initialized or paused(cluster, obj):
            return Result()
        memory = self._memory.setdefault((namespace, name), _Memory(self.clock.now()))
        verdict = await self._verdict(plane, cluster, memory)
        if memory.reason != verdict.reason or memory.changed is None:
            memory.reason, memory.changed = verdict.reason, self.clock.now()
        if verdict.ok:
            memory.since, memory.ready = self.clock.now(), True
        elif self._is_held(plane, memory):
            return Result(after=SOON)
        await self._write(plane, verdict)
        if verdict.ok:
            return Result(after=POLL_READY)
        # A cluster that can't be reached costs each look a timeout: it must not hold up the others.
        eager = verdict.ok is False and self.clock.now() - memory.changed < EAGER
        return Result(after=SOON if eager else POLL)

    def _is_held(self, plane: ManagedControlPlane, memory: _Memory) -> bool:
        """Whether what is written stays for now although something else is seen."""
        old = plane.condition(ConditionType.WORKLOAD_READY)
        age = self.clock.now() - memory.since
        if not old.status:
            return bool(plane.status.steps) and all(step.state in FINISHED_STEPS for step in plane.status.steps) and age < SETTLE
        return old.is_true and memory.ready and age < HOLD

    async def _verdict(self, plane: ManagedControlPlane, cluster: Obj, memory: _Memory) -> Verdict:
        try:
            image = self.releases.get(version := plane.running_version).image("kubeadm")
        except (NotFound, KeyError):
            return Verdict(None, Reason.UNKNOWN_VERSION, f"version {version} is not among the installed releases, so that no canary can be started")
        domain = str((cluster["spec"].get("clusterNetwork") or {}).get("serviceDomain") or "cluster.local")
        try:
            async with workload_cluster(self.kube, plane.namespace, str(cluster["metadata"]["name"]), self.clients) as workload:
                if workload is None:
                    return Verdict(None, Reason.CLUSTER_NOT_REACHED, "the cluster has no kubeconfig yet")
                deployment = await _deploy(workload, Canary(image, domain))
                return evaluate(await self._look(workload, deployment, plane, cluster, memory))
        except KubeError as error:
            return Verdict(None, Reason.CLUSTER_NOT_REACHED, f"the cluster's API server can't be asked: {error.brief}")

    async def _write(self, plane: ManagedControlPlane, verdict: Verdict) -> None:
        """Beside the conditions of the control plane's own controller: on top of exactly what is there."""
        starting = verdict.reason not in NEEDS_A_PERSON and not any(step.name == CLUSTER_READY_STEP and step.finished_at for step in plane.status.steps)
        severity: Severity = "Info" if starting else "Warning"
        kind = ConditionType.WORKLOAD_READY
        condition = make_condition(kind, verdict.ok, self.clock.now(), reason=verdict.reason, message=verdict.message, severity=severity)

        def patch(now: Obj) -> Obj | None:
            before = (now.get("status") or {}).get("conditions") or []
            after = merge_conditions(before, [condition])
            return {"status": {"conditions": after}} if after != before else None

        await self.kube.change(MANAGED_CONTROL_PLANE, plane.name, plane.namespace, patch, subresource="status")

    async def _look(self, workload: Kube, deployment: Obj | None, plane: ManagedControlPlane, cluster: Obj, memory: _Memory) -> Seen:
        """Read what the verdict needs; of a cluster in order that is little."""
        pods, sets = await asyncio.gather(workload.list(POD, SYSTEM, labels=dict(canary.LABELS)), workload.list(DAEMON_SET, SYSTEM))
        ready = evaluate(Seen(canary=pods)).ok
        short = [item for item in sets if _count(item, "numberReady") < _count(item, "desiredNumberScheduled")]
        if ready and not short:
            return Seen(canary=pods)
        nodes, dns = await asyncio.gather(workload.list(NODE), workload.get(DEPLOYMENT, "coredns", SYSTEM))
        missing = [_labels(item) for item in short if _count(item, "currentNumberScheduled") < _count(item, "desiredNumberScheduled")]
        missing += [] if pods or deployment is None else [dict(canary.LABELS)]
        selectors = [_selector(item) for item in short if item["metadata"]["name"] in NETWORK]
        network = [pod for labels in selectors if labels for pod in await workload.list(POD, SYSTEM, labels=labels)]
        block = str(next(iter(((cluster["spec"].get("clusterNetwork") or {}).get("pods") or {}).get("cidrBlocks") or ()), ""))
        return Seen(
            canary=pods,
            deployment=deployment,
            nodes=nodes,
            dns_ready=replicas_of(dns, "availableReplicas"),
            blockers=await _blockers(workload, missing, sets) if missing and nodes else (),
            probe="" if ready else await self._probe_output(workload, pods, memory),
            has_cni=plane.spec.addons.cni != NO_CNI,
            pod_network=block,
            pod_network_room=_room(block),
            network=network,
            now=self.clock.now(),
        )

    async def _probe_output(self, workload: Kube, pods: list[Obj], memory: _Memory) -> str:
        """What the probe of a canary that runs printed last, from the kubelet's Events."""
        names = frozenset(pod["metadata"]["name"] for pod in pods if (pod.get("status") or {}).get("phase") == "Running")
        asked, of_pods, said = memory.probed
        if not names or (names == of_pods and self.clock.monotonic() - asked < PROBE):
            return said if names else ""
        about = {"involvedObject.kind": POD.kind, "reason": "Unhealthy"}
        events = [item for name in names for item in await workload.list(EVENT, SYSTEM, fields={**about, "involvedObject.name": name})]
        last = max(events, key=lambda item: str(item.get("lastTimestamp") or item.get("eventTime") or ""), default=None)
        said = str((last or {}).get("message") or "").partition("probe failed: ")[2]
        memory.probed = (self.clock.monotonic(), names, said)
        return said


async def _deploy(workload: Kube, wanted: Canary) -> Obj | None:
    """The canary's Deployment as it is, or None if it was applied just now."""
    found = await workload.get(DEPLOYMENT, canary.NAME, SYSTEM)
    if found is not None and (found["metadata"].get("annotations") or {}).get(canary.DIGEST_ANNOTATION) == wanted.digest:
        return found
    for obj in wanted.manifests():
        await workload.apply(obj)
    return None


def _count(daemon_set: Obj, key: str) -> int:
    return int((daemon_set.get("status") or {}).get(key) or 0)


def _labels(daemon_set: Obj) -> Mapping[str, str]:
    return dict(((daemon_set["spec"].get("template") or {}).get("metadata") or {}).get("labels") or {})


def _selector(daemon_set: Obj) -> dict[str, str]:
    return dict((daemon_set["spec"].get("selector") or {}).get("matchLabels") or {})


def _room(block: str) -> int:
    try:
        return pod_network.room(IPv4Network(block))
    except ValueError:
        return 0


async def _blockers(workload: Kube, missing: list[Mapping[str, str]], sets: list[Obj]) -> list[str]:
    """Sentences about webhooks that keep the missing pods away. Their backends are reached through konnectivity: without an agent, none is."""
    tunnel = any(item["metadata"]["name"] == "konnectivity-agent" and _count(item, "numberReady") for item in sets)
    configurations = [
        {"kind": kind.kind, **item} for kind in (VALIDATING_WEBHOOK, MUTATING_WEBHOOK) for item in await workload.list(kind) if item.get("webhooks")
    ]
    if not configurations:
        return []
    space = await workload.get(NAMESPACE, SYSTEM)
    labels = {"kubernetes.io/metadata.name": SYSTEM, **((space or {}).get("metadata", {}).get("labels") or {})}
    asked: dict[Backend, bool] = {}
    # First all that would refuse if no backend answered; then those backends are looked at.
    for blocker in blockers(configurations, namespace=labels, pods=missing, is_reachable=lambda _: False):
        if blocker.backend not in asked:
            asked[blocker.backend] = tunnel and await _has_endpoint(workload, blocker.backend)
    found = blockers(configurations, namespace=labels, pods=missing, is_reachable=lambda backend: asked.get(backend, True))
    return [blocker.sentence for blocker in found]


async def _has_endpoint(workload: Kube, backend: Backend) -> bool:
    endpoints = await workload.get(ENDPOINTS, backend.name, backend.namespace)
    return any(subset.get("addresses") for subset in (endpoints or {}).get("subsets") or ())
