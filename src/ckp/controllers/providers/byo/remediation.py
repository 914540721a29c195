"""Unhealthy workers of a cluster: reported by its MachineHealthCheck, replaced or left by what rules/remediation.py decides.

Contract (external remediation, Cluster API v1.7.7, internal/controllers/machinehealthcheck): for a Machine that is not healthy the health check makes a
ByoRemediation of the Machine's name, and deletes it when the Machine is healthy again. It goes through the unhealthy Machines in order and ends at the
first one that has its request already, so that a second one would never be reported; and it counts Machines that are being deleted. Both are avoided by
its own annotation skip-remediation: what is reported or leaves is no target of the health check any more, and is watched here.

A MachineSet counts a Machine until it is gone, and a dead host never says that it is clean: its Machine would keep its successor from being made. So a
Machine that leaves while its host does not answer is taken out of its set by its label, as a Pod is isolated from its ReplicaSet. It keeps its host and its
Node until the host is back and clean, or a person forces it away: nothing is started twice.

The history is in `ByoCluster.status`, and is written before a Machine is deleted: a controller that is killed in between deletes it when it is back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import structlog

from ckp.api.compass.clusters import Timeouts
from ckp.api.kinds import BYO_MACHINE, BYO_REMEDIATION, BYO_REMEDIATION_TEMPLATE, MACHINE, MACHINE_HEALTH_CHECK, MANAGED_CONTROL_PLANE, NODE
from ckp.api.names import (
    CKP,
    CLUSTER_NAME_LABEL,
    DEPLOYMENT_NAME_LABEL,
    DOMAIN_LABEL,
    REMEDIATE_ANNOTATION,
    RESUMED_ANNOTATION,
    SKIP_REMEDIATION_ANNOTATION,
    workers_name,
)
from ckp.api.objects.base import time_of
from ckp.api.objects.byo_cluster import ByoCluster, Replacement
from ckp.api.objects.byo_host import ByoHost
from ckp.api.objects.byo_machine import ByoMachine
from ckp.api.objects.control_plane import ManagedControlPlane
from ckp.api.states import ConditionType, Reason
from ckp.clients.kube import Kube, KubeError, Obj
from ckp.controllers.providers.byo.node_upgrade import exempt_until
from ckp.controllers.scope import Scope, cluster_name, deleting, owner_reference
from ckp.controllers.workload import WorkloadClients, workload_cluster
from ckp.kits.clock import Clock, parse_duration, parse_rfc3339, rfc3339
from ckp.kits.errors import CkpError
from ckp.rules.conditions import Condition, Severity, get_condition, is_true, make_condition
from ckp.rules.leaving import is_going
from ckp.rules.remediation import KEPT, Action, Cause, Policy, Sick, Verdict, decide, replacement
from ckp.runtime.informer import Informer

log = structlog.get_logger()
POLL = 30.0
NO_ANSWER = timedelta(minutes=2)
"""How long a host does not answer before a Machine that leaves it is given a successor without waiting for it."""
MADE_BY_0_2_0 = ("50%", "100%")
"""`maxUnhealthy` of the health checks that Compass 0.2.0 made, which replaced Machines by themselves."""
_WORST = (
    Reason.HELD,
    Reason.TOO_MANY_UNHEALTHY,
    Reason.CLUSTER_NOT_REACHED,
    Reason.WAITING_FOR_NETWORK,
    Reason.BACKING_OFF,
    Reason.WAITING_FOR_STARTUP,
    Reason.NODE_UPGRADING,
)
_WARNINGS = _WORST[:3]


@dataclass
class Remediation:
    """The part of a ByoCluster's reconcile that replaces its unhealthy workers."""

    kube: Kube
    clock: Clock
    requests: Informer
    machines: Informer
    hosts: Informer
    clients: WorkloadClients = field(default_factory=WorkloadClients)
    _adopted: set[str] = field(default_factory=set)

    async def reconcile(self, scope: Scope, cluster: Obj) -> float | None:
        """One pass: what it decides is in the scope's status and notes afterwards. Returns the seconds until the next one, None: nothing is open."""
        if is_going(cluster):
            return None
        name, namespace = str(cluster["metadata"]["name"]), scope.namespace
        await self._adopt(cluster)
        reported = {request["metadata"]["name"] for request in self.requests.all(namespace) if cluster_name(request) == name}
        machines = [machine for machine in self.machines.all(namespace) if cluster_name(machine) == name]
        if reported:  # our copies may be old, and this is not the time to be wrong
            labels = {CLUSTER_NAME_LABEL: name}
            machines = await self.kube.list(MACHINE, namespace, labels=labels)
            requests = {request["metadata"]["name"]: request for request in await self.kube.list(BYO_REMEDIATION, namespace, labels=labels)}
        else:
            requests = {}
        await self._mark(machines, requests.keys() | reported)
        leaving = [machine for machine in machines if deleting(machine)]
        for machine in leaving:
            await self._isolate(machine)
        after = await self._decide(scope, cluster, [machine for machine in machines if not deleting(machine)], requests)
        return min(POLL, after or POLL) if leaving else after

    async def _decide(self, scope: Scope, cluster: Obj, machines: Sequence[Obj], requests: Mapping[str, Obj]) -> float | None:
        now, seen = self.clock.now(), ByoCluster.of(scope.obj).status
        history = seen.replacements
        # The controller was stopped after it had decided: it goes on.
        decided = {entry.uid for entry in history}
        unfinished = [machine for machine in machines if machine["metadata"]["uid"] in decided]
        open_ = [machine for machine in machines if machine["metadata"]["name"] in requests and machine not in unfinished]
        policy = await self._policy(scope, cluster, len(machines), bool(open_))
        ready, unreachable = await self._nodes(scope.namespace, str(cluster["metadata"]["name"]), machines) if open_ else ({}, "")
        held = {entry.machine: entry.held_at for entry in seen.unhealthy if entry.held_at}
        sick = []
        for machine in open_:
            if ready.get(machine["metadata"]["name"]) and _cause(machine) is not Cause.LOST:
                await self._recovered(machine)
            else:
                since = parse_rfc3339(requests[machine["metadata"]["name"]]["metadata"]["creationTimestamp"])
                sick.append(await self._sick(machine, since, held.get(machine["metadata"]["name"], "")))
        names = {machine["metadata"]["name"] for machine in (*open_, *unfinished)}
        others = tuple(machine for machine, is_ready in ready.items() if not is_ready and machine not in names)
        verdicts = decide(sick, history, replace(policy, api_unreachable=unreachable, not_reported=others), now)
        made = [replacement(verdict, now) for verdict in verdicts if verdict.action is Action.REPLACE]
        if made:
            scope.status["replacements"] = [_entry(item) for item in [*history, *made][-KEPT:]]
        if verdicts or seen.unhealthy:
            scope.status["unhealthy"] = [_worker(verdict, held, now) for verdict in verdicts]
        scope.notes = [self._condition(verdicts)]
        if made:
            await scope.close()
        for uid in {item.uid for item in made} | {machine["metadata"]["uid"] for machine in unfinished}:
            machine = next(machine for machine in machines if machine["metadata"]["uid"] == uid)
            log.warning("an unhealthy worker is replaced", machine=f"{scope.namespace}/{machine['metadata']['name']}")
            await self.kube.delete(MACHINE, machine["metadata"]["name"], scope.namespace)
        if not verdicts:
            return None
        pauses = [(verdict.until - now).total_seconds() for verdict in verdicts if verdict.until]
        return max(1.0, min([POLL, *pauses]))

    async def _policy(self, scope: Scope, cluster: Obj, workers: int, open_: bool) -> Policy:
        """What the decision depends on; objects are read only if there is something to decide."""
        name = str(cluster["metadata"]["name"])
        if not open_:
            return Policy(name, workers)
        check = await self.kube.get(MACHINE_HEALTH_CHECK, workers_name(name), scope.namespace)
        spec, defaults = (check or {}).get("spec") or {}, Timeouts()
        reference = (cluster.get("spec") or {}).get("controlPlaneRef") or {}
        plane = await self.kube.get(MANAGED_CONTROL_PLANE, str(reference["name"]), scope.namespace) if reference.get("kind") == "ManagedControlPlane" else None
        resumed = (scope.obj["metadata"].get("annotations") or {}).get(RESUMED_ANNOTATION)
        return Policy(
            name,
            workers,
            startup=_duration(spec.get("nodeStartupTimeout"), defaults.node_startup),
            unhealthy=_duration(next((entry.get("timeout") for entry in spec.get("unhealthyConditions") or ()), None), defaults.node_unhealthy),
            network=plane is None or ManagedControlPlane.of(plane).spec.addons.cni != "none",
            resumed=_time(str(resumed or "")),
        )

    async def _nodes(self, namespace: str, cluster: str, machines: Iterable[Obj]) -> tuple[dict[str, bool], str]:
        """Whether the nodes of those machines that have one are Ready now, by the machine's name; and why they cannot be asked, "" if they were."""
        names = {machine["metadata"]["name"]: str(((machine.get("status") or {}).get("nodeRef") or {}).get("name") or "") for machine in machines}
        if not names:
            return {}, ""
        try:
            async with workload_cluster(self.kube, namespace, cluster, self.clients) as client:
                if client is None:
                    return {}, "the cluster has no kubeconfig"
                ready = {node["metadata"]["name"] for node in await client.list(NODE) if is_true(node, ConditionType.READY)}
        except CkpError as error:
            return {}, error.brief
        return {machine: node in ready for machine, node in names.items() if node}, ""

    async def _sick(self, machine: Obj, since: datetime, held_at: str) -> Sick:
        reference = (machine.get("spec") or {}).get("infrastructureRef") or {}
        found = await self.kube.get(BYO_MACHINE, str(reference.get("name") or machine["metadata"]["name"]), machine["metadata"]["namespace"])
        byo = ByoMachine.of(found or {})
        return Sick(
            machine=machine["metadata"]["name"],
            uid=machine["metadata"]["uid"],
            host=byo.status.host_ref.name,
            cause=_cause(machine),
            why=_why(machine),
            since=since,
            ready_at=_time(byo.status.node_ready_at),
            held_at=_time(held_at),
            node_joined=bool((machine.get("status") or {}).get("nodeRef")),
            upgrading_until=exempt_until(byo.status.upgrade),
        )

    async def _recovered(self, machine: Obj) -> None:
        """Its node is Ready again: it is a target of the health check again. In this order, so that it is never left without a watcher."""
        await self._annotate(machine, None)
        await self.kube.delete(BYO_REMEDIATION, machine["metadata"]["name"], machine["metadata"]["namespace"])

    async def _mark(self, machines: Iterable[Obj], reported: Iterable[str]) -> None:
        """What leaves or is reported is no target of the health check; all else is, unless a person said otherwise."""
        names = set(reported)
        for machine in machines:
            value = (machine["metadata"].get("annotations") or {}).get(SKIP_REMEDIATION_ANNOTATION)
            ours = deleting(machine) or machine["metadata"]["name"] in names
            if ours and value is None:
                await self._annotate(machine, CKP)
            elif not ours and value == CKP:
                await self._annotate(machine, None)

    async def _isolate(self, machine: Obj) -> None:
        """Let a Machine that leaves have a successor although its host does not answer."""
        labels, meta = machine["metadata"].get("labels") or {}, machine["metadata"]
        if DEPLOYMENT_NAME_LABEL not in labels:
            return
        reference = ((machine.get("spec") or {}).get("infrastructureRef") or {}).get("name")
        hosts = (ByoHost.of(host) for host in self.hosts.all(meta["namespace"]) if ((host.get("spec") or {}).get("machineRef") or {}).get("name") == reference)
        connection = next((host.condition(ConditionType.AGENT_CONNECTED) for host in hosts), None)
        lost = _time(connection.last_transition_time) if connection is not None and connection.is_false else None
        if lost is not None and self.clock.now() - lost >= NO_ANSWER:
            log.warning("a worker whose host does not answer is taken out of its set", machine=f"{meta['namespace']}/{meta['name']}")
            await self._merge(machine, {"metadata": {"labels": {DEPLOYMENT_NAME_LABEL: None}}})

    async def _annotate(self, machine: Obj, value: str | None) -> None:
        if value is None and (machine["metadata"].get("annotations") or {}).get(SKIP_REMEDIATION_ANNOTATION) != CKP:
            return  # a person's, or none
        await self._merge(machine, {"metadata": {"annotations": {SKIP_REMEDIATION_ANNOTATION: value}}})

    async def _merge(self, machine: Obj, patch: Obj) -> None:
        """Change a Machine; one that is gone by now is no error."""
        try:
            await self.kube.merge(MACHINE, machine["metadata"]["name"], machine["metadata"]["namespace"], patch)
        except KubeError as error:
            if error.code != 404:
                raise

    def _condition(self, verdicts: Sequence[Verdict]) -> Condition:
        waiting = [verdict for verdict in verdicts if verdict.action is not Action.REPLACE and verdict.reason is not None]
        if not waiting:
            return make_condition(ConditionType.REMEDIATION_ALLOWED, True, self.clock.now())
        worst = min(waiting, key=lambda verdict: _WORST.index(verdict.reason) if verdict.reason in _WORST else len(_WORST))
        more = f" (and {len(waiting) - 1} more)" if len(waiting) > 1 and worst.reason is not Reason.TOO_MANY_UNHEALTHY else ""
        message = worst.message if worst.reason is Reason.TOO_MANY_UNHEALTHY else f"worker {worst.sick.host or worst.sick.machine}: {worst.message}{more}"
        severity: Severity = "Warning" if worst.reason in _WARNINGS else "Info"
        return make_condition(ConditionType.REMEDIATION_ALLOWED, False, self.clock.now(), reason=str(worst.reason), message=message, severity=severity)

    async def _adopt(self, cluster: Obj) -> None:
        """Let the health check that Compass 0.2.0 made report instead of replacing by itself. One that a person changed, or made, stays as it is."""
        meta = cluster["metadata"]
        if meta["uid"] in self._adopted:
            return
        name = workers_name(meta["name"])
        check = await self.kube.get(MACHINE_HEALTH_CHECK, name, meta["namespace"])
        if check is None:
            return  # perhaps not yet
        spec, labels = check["spec"], check["metadata"].get("labels") or {}
        if DOMAIN_LABEL in labels and "remediationTemplate" not in spec and spec.get("maxUnhealthy") in MADE_BY_0_2_0:
            template = {
                "apiVersion": BYO_REMEDIATION_TEMPLATE.api_version,
                "kind": BYO_REMEDIATION_TEMPLATE.kind,
                "metadata": {"name": name, "namespace": meta["namespace"], "labels": labels, "ownerReferences": [owner_reference(cluster, controller=False)]},
                "spec": {"template": {"spec": {}}},
            }
            await self.kube.apply(template)
            reference = {"apiVersion": template["apiVersion"], "kind": template["kind"], "name": name, "namespace": meta["namespace"]}
            patch = {"spec": {"remediationTemplate": reference, "maxUnhealthy": "100%"}}
            await self.kube.merge(MACHINE_HEALTH_CHECK, name, meta["namespace"], patch)
        self._adopted.add(meta["uid"])


def _cause(machine: Obj) -> Cause:
    status = machine.get("status") or {}
    asked = REMEDIATE_ANNOTATION in (machine["metadata"].get("annotations") or {})
    if asked or status.get("failureReason") or status.get("failureMessage"):
        return Cause.LOST
    return Cause.UNHEALTHY if status.get("nodeRef") else Cause.STARTUP


def _why(machine: Obj) -> str:
    """What is wrong with it, for people."""
    status = machine.get("status") or {}
    if failure := status.get("failureMessage") or status.get("failureReason"):
        return str(failure)
    if REMEDIATE_ANNOTATION in (machine["metadata"].get("annotations") or {}):
        return f"a person asked for another one (annotation {REMEDIATE_ANNOTATION})"
    condition = get_condition(machine, ConditionType.HEALTH_CHECK_SUCCEEDED) or {}
    told = str(condition.get("message") or condition.get("reason") or "") if condition.get("status") == "False" else ""
    return told or ("its node is not Ready" if status.get("nodeRef") else "it did not become a node in time")


def _entry(item: Replacement) -> dict[str, Any]:
    return item.model_dump(mode="json", by_alias=True)


def _worker(verdict: Verdict, held: Mapping[str, str], now: datetime) -> dict[str, Any]:
    sick = verdict.sick
    entry = {
        "machine": sick.machine,
        "host": sick.host,
        "action": str(verdict.action),
        "reason": str(verdict.reason or ""),
        "message": verdict.message or sick.why,
    }
    # Once it is held it stays so until a person decides, also when the earlier failures are a day old, or its node cannot be looked at.
    if verdict.action is Action.HOLD or sick.machine in held:
        entry["heldAt"] = held.get(sick.machine) or rfc3339(now)
    return entry


def _duration(value: object, default: int) -> timedelta:
    try:
        return timedelta(seconds=parse_duration(str(value)) if value else default)
    except ValueError:
        return timedelta(seconds=default)


def _time(text: str) -> datetime | None:
    """A time of an object; None where there is none, or none that can be read."""
    try:
        return time_of(text)
    except ValueError:
        return None
