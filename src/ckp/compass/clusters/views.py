"""A cluster as people see it, assembled from its Cluster API objects. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ckp.api import names
from ckp.api.compass.base import readable, readable_items
from ckp.api.compass.clusters import ClusterView, MachineView, ReplacementView, StepView, Timeouts, TimeoutsView
from ckp.api.compass.conditions import ConditionView
from ckp.api.objects.byo_cluster import ByoCluster
from ckp.api.objects.byo_host import ByoHost
from ckp.api.objects.control_plane import ManagedControlPlane
from ckp.api.states import FINISHED_STEPS, ConditionType, HostPhase, Reason, StepState
from ckp.clients.kube import Obj
from ckp.compass.clusters.manifests import MACHINE_TIMEOUTS
from ckp.compass.hosts.groups import group_of_template
from ckp.kits.clock import exact_duration, parse_duration, parse_rfc3339
from ckp.rules.conditions import get_condition, is_true
from ckp.rules.leaving import is_going, waits_for
from ckp.rules.workload_health import unreached


def view(
    cluster: Obj,
    *,
    infrastructure: Obj | None,
    control_plane: Obj | None,
    deployment: Obj | None,
    template: Obj | None,
    health_check: Obj | None,
    machines: Sequence[Obj],
    hosts: Sequence[Obj],
) -> ClusterView:
    """Assemble a cluster; what does not exist yet is shown as empty.

    Args:
        infrastructure: its ByoCluster.
        template: the ByoMachineTemplate of its workers.
        health_check: their MachineHealthCheck.
        machines: its Machines.
        hosts: all hosts of the project.
    """
    meta, spec, status = cluster["metadata"], cluster["spec"], cluster.get("status") or {}
    plane_spec = (control_plane or {}).get("spec") or {}
    plane_status = (control_plane or {}).get("status") or {}
    plane = readable(ManagedControlPlane, control_plane)
    unseen = unreached(plane) if plane is not None else ""
    workers, workers_ready = _replicas(deployment)
    steps = sorted(readable_items(StepView, plane_status.get("steps")), key=lambda step: step.number)
    failure = str(status.get("failureMessage") or plane_status.get("failureMessage") or "")
    failed = bool(failure or status.get("phase") == "Failed")
    deleting = is_going(cluster)
    ready = not deleting and not failed and not unseen and _is_ready(status, deployment, plane_status.get("steps") or ())
    endpoint = spec.get("controlPlaneEndpoint") or plane_spec.get("controlPlaneEndpoint") or {}
    network = spec.get("clusterNetwork") or {}
    addons = plane_spec.get("addons") or {}
    claimed = [host for host in map(ByoHost.of, hosts) if host.claimed]
    of_infrastructure = (infrastructure or {}).get("status") or {}
    unhealthy = {str(entry.get("machine")): str(entry.get("message") or "") for entry in of_infrastructure.get("unhealthy") or ()}
    shown = [_machine(machine, claimed, unhealthy, unseen) for machine in sorted(machines, key=lambda machine: str(machine["metadata"]["name"]))]
    created_at = parse_rfc3339(meta["creationTimestamp"])
    requested = (meta.get("annotations") or {}).get(names.REQUESTED_AT_ANNOTATION)
    return ClusterView(
        name=meta["name"],
        phase="Deleting" if deleting else "Failed" if failed else "Ready" if ready else str(status.get("phase") or "Pending"),
        ready=ready,
        failed=failed,
        message=failure or ("" if ready else _why_not_gone(control_plane, shown) if deleting else _why_not_ready(cluster, control_plane, steps)),
        version=str(plane_spec.get("version", "")),
        cni=str(addons.get("cni", "")),
        cni_version=str(addons.get("cniVersion", "")),
        host_group=group_of_template(template) if template else "",
        workers=workers,
        workers_ready=0 if unseen else workers_ready,
        workers_unknown=sum(machine.ready_status == "Unknown" for machine in shown),
        pod_cidr=_first(network.get("pods")),
        service_cidr=_first(network.get("services")),
        control_plane_replicas=int(plane_spec.get("replicas", 0)),
        control_plane_ready=bool(status.get("controlPlaneReady")) and bool(plane_status.get("ready") or not plane_status.get("initialized")),
        endpoint=f"https://{endpoint['host']}:{endpoint.get('port', 6443)}" if endpoint.get("host") else "",
        cert_sans=[str(name) for name in plane_spec.get("certSANs") or ()],
        created_at=created_at,
        requested_at=parse_rfc3339(requested) if requested else created_at,
        steps=steps,
        conditions=readable_items(
            ConditionView,
            [
                {"object": obj["kind"], **(_unseen(entry, unseen) if obj is deployment and unseen else entry)}
                for obj in (cluster, infrastructure, control_plane, deployment)
                if obj
                for entry in (obj.get("status") or {}).get("conditions") or ()
            ],
        ),
        machines=shown,
        timeouts=timeouts_of(deployment, health_check, infrastructure),
        replacements=readable_items(ReplacementView, of_infrastructure.get("replacements")),
        left_behind=_sentences((meta.get("annotations") or {}).get(names.LEFT_BEHIND_ANNOTATION)),
    )


def _unseen(condition: Mapping[str, Any], why: str) -> dict[str, Any]:
    """A condition that Cluster API derived from nodes, while nobody can ask for them."""
    kept = {key: value for key, value in condition.items() if key not in ("severity", "lastTransitionTime")}
    said = f"{why}; it was {condition.get('status')} when Cluster API saw it last"
    return {**kept, "status": "Unknown", "reason": str(Reason.CLUSTER_NOT_REACHED), "message": said}


def timeouts_of(deployment: Obj | None, health_check: Obj | None, infrastructure: Obj | None) -> TimeoutsView:
    """The timeouts of a cluster, from the objects where they act."""
    found: dict[str, str] = {}
    if deployment is not None:
        spec = deployment["spec"]["template"]["spec"]
        found |= {field: _duration(spec.get(target)) for field, target in MACHINE_TIMEOUTS.items()}
    if health_check is not None:
        spec = health_check["spec"]
        found["node_startup"] = _duration(spec.get("nodeStartupTimeout"))
        found["node_unhealthy"] = _duration(next((entry.get("timeout") for entry in spec.get("unhealthyConditions") or ()), None))
    if infrastructure is not None:
        try:
            found["image_fetch"] = exact_duration(ByoCluster.of(infrastructure).spec.image_fetch_seconds or Timeouts().image_fetch)
        except ValueError:
            found["image_fetch"] = str(infrastructure["spec"]["imageFetchTimeout"])  # as in _duration
    return TimeoutsView(**found)


def _duration(value: object) -> str:
    """As Cluster API stores it (`10m0s`), as people write it. Cluster API waits without end where there is none, or 0."""
    try:
        seconds = parse_duration(str(value or "0"))
    except ValueError:
        return str(value)  # set by hand to what only Go reads
    return exact_duration(seconds) if seconds else "none"


def _is_ready(status: Mapping[str, Any], deployment: Obj | None, steps: Sequence[Mapping[str, Any]]) -> bool:
    """The one place that decides whether a cluster is ready: control plane, infrastructure, workers, and every step.

    Args:
        status: of its Cluster.
        deployment: the MachineDeployment of its workers.
        steps: as the control plane's status has them: also one that cannot be shown must be finished.
    """
    if deployment is None or not (status.get("controlPlaneReady") and status.get("infrastructureReady")):
        return False
    wanted, ready = _replicas(deployment)
    return ready >= wanted and all(step.get("state") in FINISHED_STEPS for step in steps)


def _replicas(deployment: Obj | None) -> tuple[int, int]:
    """How many machines a MachineDeployment is asked for, and how many are ready."""
    spec, status = (deployment or {}).get("spec") or {}, (deployment or {}).get("status") or {}
    return int(spec.get("replicas", 0)), int(status.get("readyReplicas") or 0)


def _machine(machine: Obj, claimed: Sequence[ByoHost], unhealthy: Mapping[str, str], unseen: str = "") -> MachineView:
    """`unseen`: why it can't be seen whether its node is ready; "" if it can."""
    name, status = machine["metadata"]["name"], machine.get("status") or {}
    infrastructure = (machine["spec"].get("infrastructureRef") or {}).get("name", name)
    host = next((host for host in claimed if host.spec.machine_ref.name in (name, infrastructure)), ByoHost())
    failed = bool(status.get("failureMessage"))  # its node may still run for a while: it is replaced all the same
    seen: bool | None = not failed and (is_true(machine, ConditionType.NODE_HEALTHY) or (is_true(machine, ConditionType.READY) and bool(status.get("nodeRef"))))
    failing = [entry for entry in status.get("conditions") or () if entry.get("status") == "False" and entry.get("message")]
    bad = next(iter(sorted(failing, key=lambda entry: entry.get("type") == ConditionType.READY)), None)  # Ready only counts the others: "1 of 2 completed"
    observed = host.status.observed
    message = str(status.get("failureMessage") or (observed.message if observed.phase == HostPhase.FAILED else "") or (bad or {}).get("message", ""))
    message = unhealthy.get(name) or message
    if machine["metadata"].get("deletionTimestamp"):
        message, seen = waits_for(machine, host), False
    elif unseen and not failed and status.get("nodeRef"):
        seen, message = None, unseen
    return MachineView(
        name=name,
        phase=str(status.get("phase") or "Pending"),
        host=host.name,
        node=str((status.get("nodeRef") or {}).get("name", "")),
        version=str((status.get("nodeInfo") or {}).get("kubeletVersion") or machine["spec"].get("version", "")),
        ready=seen is True,
        ready_status="Unknown" if seen is None else str(seen),
        message="" if seen else message,
    )


def _why_not_ready(cluster: Obj, control_plane: Obj | None, steps: Sequence[StepView]) -> str:
    """The most telling sentence: the failed step, else the running one, else one that can't be seen, else the message of the Ready condition."""
    for state in (StepState.FAILED, StepState.RUNNING, StepState.UNKNOWN):
        for step in steps:
            if step.state == state:
                return f"step {step.number} ({step.title}): {step.message or 'running'}"
    for obj in (control_plane, cluster):
        entry = get_condition(obj, ConditionType.READY) if obj else None
        if entry and entry.get("status") != "True" and (entry.get("message") or entry.get("reason")):
            return str(entry.get("message") or entry.get("reason"))
    return "" if control_plane else "its control plane object does not exist yet"


def _why_not_gone(control_plane: Obj | None, machines: Sequence[MachineView]) -> str:
    """What the deletion of a cluster waits for: its first machine that says so, else its control plane."""
    if machines:
        own = [machine for machine in machines if machine.message and machine.ready_status != "Unknown"]
        told = next(iter(own), machines[0].model_copy(update={"message": ""}))
        more = f" (and {len(machines) - 1} more machines)" if len(machines) > 1 else ""
        return f"machine {told.name}: {told.message or 'its deletion begins'}{more}"
    entry = get_condition(control_plane, ConditionType.DELETED) if control_plane else None
    return f"its control plane is being removed{': ' + str(entry['message']) if entry and entry.get('message') else ''}"


def _sentences(text: object) -> list[str]:
    """A JSON list of sentences; none where there is nothing that can be read."""
    try:
        found = json.loads(str(text or "[]"))
    except ValueError:
        return []
    return [str(item) for item in found] if isinstance(found, list) else []


def _first(blocks: Mapping[str, Any] | None) -> str:
    cidrs = (blocks or {}).get("cidrBlocks") or [""]
    return str(cidrs[0])
