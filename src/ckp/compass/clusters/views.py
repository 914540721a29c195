"""A cluster as people see it, put together from its Cluster API objects. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ckp.api import names
from ckp.api.objects.byo_host import ByoHost
from ckp.api.states import ConditionType, HostPhase, StepState
from ckp.clients.kube import Obj
from ckp.kits.clock import parse_rfc3339
from ckp.rules.conditions import get_condition, is_true


@dataclass(frozen=True)
class MachineView:
    """One worker."""

    name: str
    phase: str
    host: str
    node: str
    version: str
    ready: bool
    message: str


@dataclass(frozen=True)
class ClusterView:
    """One cluster."""

    name: str
    phase: str
    ready: bool
    failed: bool
    message: str
    version: str
    cni: str
    cni_version: str
    host_group: str
    workers: int
    workers_ready: int
    pod_cidr: str
    service_cidr: str
    control_plane_replicas: int
    control_plane_ready: bool
    endpoint: str
    created_at: datetime
    requested_at: datetime
    steps: tuple[Mapping[str, Any], ...]
    conditions: tuple[Mapping[str, Any], ...]
    machines: tuple[MachineView, ...]


def is_deleting(cluster: Obj) -> bool:
    """Whether its deletion was asked for, here or of Kubernetes."""
    meta = cluster["metadata"]
    return bool(meta.get("deletionTimestamp")) or names.DELETE_REQUESTED_ANNOTATION in (meta.get("annotations") or {})


def view(cluster: Obj, control_plane: Obj | None, deployment: Obj | None, machines: Sequence[Obj], hosts: Sequence[Obj]) -> ClusterView:
    """Put a cluster together; what is not there yet is shown as empty."""
    meta, spec, status = cluster["metadata"], cluster["spec"], cluster.get("status") or {}
    plane_spec = (control_plane or {}).get("spec") or {}
    plane_status = (control_plane or {}).get("status") or {}
    workers = int(((deployment or {}).get("spec") or {}).get("replicas", 0))
    workers_ready = int(((deployment or {}).get("status") or {}).get("readyReplicas") or 0)
    steps = tuple(sorted(plane_status.get("steps") or (), key=lambda step: int(step.get("number", 0))))
    failure = str(status.get("failureMessage") or plane_status.get("failureMessage") or "")
    failed = bool(failure or status.get("phase") == "Failed")
    deleting = is_deleting(cluster)
    ready = (
        not deleting
        and not failed
        and deployment is not None
        and bool(status.get("controlPlaneReady") and status.get("infrastructureReady"))
        and workers_ready >= workers
        and all(step.get("state") in (StepState.DONE, StepState.SKIPPED) for step in steps)
    )
    endpoint = spec.get("controlPlaneEndpoint") or plane_spec.get("controlPlaneEndpoint") or {}
    network = spec.get("clusterNetwork") or {}
    addons = plane_spec.get("addons") or {}
    claimed = [host for host in map(ByoHost.of, hosts) if host.claimed]
    created_at = parse_rfc3339(meta["creationTimestamp"])
    requested = (meta.get("annotations") or {}).get(names.REQUESTED_AT_ANNOTATION)
    return ClusterView(
        name=meta["name"],
        phase="Deleting" if deleting else "Failed" if failed else "Ready" if ready else str(status.get("phase") or "Pending"),
        ready=ready,
        failed=failed,
        message=failure or ("" if ready else _why_not_ready(cluster, control_plane, steps)),
        version=str(plane_spec.get("version", "")),
        cni=str(addons.get("cni", "")),
        cni_version=str(addons.get("cniVersion", "")),
        host_group="",
        workers=workers,
        workers_ready=workers_ready,
        pod_cidr=_first(network.get("pods")),
        service_cidr=_first(network.get("services")),
        control_plane_replicas=int(plane_spec.get("replicas", 0)),
        control_plane_ready=bool(status.get("controlPlaneReady")),
        endpoint=f"https://{endpoint['host']}:{endpoint.get('port', 6443)}" if endpoint.get("host") else "",
        created_at=created_at,
        requested_at=parse_rfc3339(requested) if requested else created_at,
        steps=steps,
        conditions=tuple(
            {"object": obj["kind"], **entry}
            for obj in (cluster, control_plane, deployment)
            if obj
            for entry in (obj.get("status") or {}).get("conditions") or ()
        ),
        machines=tuple(_machine(machine, claimed) for machine in sorted(machines, key=lambda m: str(m["metadata"]["name"]))),
    )


def _machine(machine: Obj, claimed: Sequence[ByoHost]) -> MachineView:
    name, status = machine["metadata"]["name"], machine.get("status") or {}
    infrastructure = (machine["spec"].get("infrastructureRef") or {}).get("name", name)
    host = next((host for host in claimed if host.spec.machine_ref.name in (name, infrastructure)), ByoHost())
    failed = bool(status.get("failureMessage"))  # its node may well go on for a while: it is to be replaced all the same
    ready = not failed and (is_true(machine, ConditionType.NODE_HEALTHY) or (is_true(machine, ConditionType.READY) and bool(status.get("nodeRef"))))
    said = [entry for entry in status.get("conditions") or () if entry.get("status") == "False" and entry.get("message")]
    bad = next(iter(sorted(said, key=lambda entry: entry.get("type") == ConditionType.READY)), None)  # Ready only counts the others: "1 of 2 completed"
    observed = host.status.observed
    message = str(status.get("failureMessage") or (observed.message if observed.phase == HostPhase.FAILED else "") or (bad or {}).get("message", ""))
    return MachineView(
        name=name,
        phase=str(status.get("phase") or "Pending"),
        host=host.name,
        node=str((status.get("nodeRef") or {}).get("name", "")),
        version=str((status.get("nodeInfo") or {}).get("kubeletVersion") or machine["spec"].get("version", "")),
        ready=ready,
        message="" if ready else message,
    )


def _why_not_ready(cluster: Obj, control_plane: Obj | None, steps: Sequence[Mapping[str, Any]]) -> str:
    """The one sentence that says most: the failed step, else the running one, else what the Ready condition says."""
    for state in (StepState.FAILED, StepState.RUNNING):
        for step in steps:
            if step.get("state") == state:
                said = step.get("message")
                return f"step {step.get('number')} ({step.get('title')}): {said or 'under way'}"
    for obj in (control_plane, cluster):
        entry = get_condition(obj, ConditionType.READY) if obj else None
        if entry and entry.get("status") != "True" and (entry.get("message") or entry.get("reason")):
            return str(entry.get("message") or entry.get("reason"))
    return "" if control_plane else "its control plane object is not there yet"


def _first(blocks: Mapping[str, Any] | None) -> str:
    cidrs = (blocks or {}).get("cidrBlocks") or [""]
    return str(cidrs[0])
