"""The fourteen steps of a cluster, in four phases (white paper §8): which are done, by what is observed. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ckp.api.objects.control_plane import StepStatus
from ckp.api.states import FINISHED_STEPS, StepState
from ckp.kits.clock import rfc3339
from ckp.rules.addons import Progress
from ckp.rules.cluster_hosts import HostCounts

Record = dict[str, Any]
"""An entry of `status.steps`, to be written."""

PROVISIONING, BOOTSTRAP, CLUSTER_READY, ADDONS = PHASES = ("Provisioning", "Bootstrap", "Cluster Ready", "Addons")

CLUSTER_READY_STEP = "ClusterReady"
"""The name of the step that is finished once pods work in the cluster."""


@dataclass(frozen=True)
class Observation:
    """What is observed of a cluster right now."""

    requested_at: str = ""
    infrastructure_ready: bool = False
    workers: int = 0
    """Replicas of its MachineDeployments; 0 before there is one."""
    hosts: HostCounts = field(default_factory=HostCounts)
    resources: bool = False
    machines: int = 0
    machines_failed: str = ""
    control_plane_ready: bool = False
    control_plane_message: str = ""
    unreached: str = ""
    """Why the workload cluster can't be asked now. Its nodes are then as they were seen last."""
    nodes_joined: int = 0
    nodes_ready: int = 0
    workload_ready: bool | None = False
    """A pod inside resolves a name and reaches the API server. None: that can't be seen."""
    workload_message: str = ""
    network: tuple[Progress, ...] = ()
    storage: tuple[Progress, ...] = ()
    """Addons for storage and backup."""
    certificates: int = 0
    certificates_ready: int = 0

    def enough(self, count: int) -> bool:
        """Whether as many as the cluster has workers; never before it has a MachineDeployment."""
        return 0 < self.workers <= count


@dataclass(frozen=True)
class Step:
    """One step, and how it is evaluated."""

    phase: str
    name: str
    title: str
    done: Callable[[Observation], bool | None]
    """None: it was not requested."""
    waiting: Callable[[Observation], str]
    """What it waits for, for people, while it is not done."""
    unseen: Callable[[Observation], str] = lambda seen: ""
    """Why it can't be seen whether it is done; "" if it can."""


def _installed(addons: Sequence[Progress]) -> bool | None:
    return all(addon.installed for addon in addons) if addons else None


def _installing(addons: Sequence[Progress]) -> str:
    return next((addon.message or f"{addon.name} is being installed" for addon in addons if not addon.installed), "")


def _usable_unseen(seen: Observation) -> str:
    if not seen.control_plane_ready:
        return ""  # no cluster is ready without one
    if seen.unreached or not seen.enough(seen.nodes_ready):
        return seen.unreached
    return seen.workload_message or "it can't be seen whether pods work" if seen.workload_ready is None else ""


def _not_usable(seen: Observation) -> str:
    if seen.unreached:
        return seen.unreached
    nodes = "" if seen.enough(seen.nodes_ready) else f"{seen.nodes_ready} of {seen.workers} nodes ready"
    pods = "" if seen.workload_ready else seen.workload_message or ("" if nodes else "no pod has been seen to work yet")
    return "; ".join(part for part in (nodes, pods) if part)


STEPS: tuple[Step, ...] = (
    Step(
        PROVISIONING,
        "Requested",
        "Cluster requested",
        done=lambda seen: bool(seen.requested_at),
        waiting=lambda seen: "",
    ),
    Step(
        PROVISIONING,
        "ProviderResolved",
        "Infrastructure provider resolved",
        done=lambda seen: seen.infrastructure_ready,
        waiting=lambda seen: "the ByoCluster is not ready yet",
    ),
    Step(
        PROVISIONING,
        "HostsProvisioned",
        "Hosts provisioned",
        done=lambda seen: seen.enough(seen.hosts.provisioned),
        waiting=lambda seen: f"{seen.hosts.provisioned} of {seen.workers} hosts report a system that fits",
    ),
    Step(
        PROVISIONING,
        "AgentsRegistered",
        "Agents registered over mTLS",
        done=lambda seen: seen.enough(seen.hosts.connected),
        waiting=lambda seen: f"{seen.hosts.connected} of {seen.workers} hosts connected",
    ),
    Step(
        BOOTSTRAP,
        "HostsApproved",
        "Hosts approved",
        done=lambda seen: seen.enough(seen.hosts.approved),
        waiting=lambda seen: f"{seen.hosts.approved} of {seen.workers} hosts approved",
    ),
    Step(
        BOOTSTRAP,
        "HostsAssigned",
        "Hosts assigned to the group",
        done=lambda seen: seen.enough(seen.hosts.assigned),
        waiting=lambda seen: f"{seen.hosts.assigned} of {seen.workers} hosts in the group and not held by another cluster",
    ),
    Step(
        BOOTSTRAP,
        "ResourcesCreated",
        "Cluster API resources created",
        done=lambda seen: seen.resources,
        waiting=lambda seen: "not all objects are there yet",
    ),
    Step(
        BOOTSTRAP,
        "ReconcilersBootstrapped",
        "Machines bootstrapped by the reconcilers",
        done=lambda seen: seen.enough(min(seen.machines, seen.hosts.claimed)),
        waiting=lambda seen: seen.machines_failed or f"{seen.hosts.claimed} of {seen.workers} machines hold a host",
    ),
    Step(
        CLUSTER_READY,
        "ControlPlaneUp",
        "Control plane up",
        done=lambda seen: seen.control_plane_ready,
        waiting=lambda seen: seen.control_plane_message or "starting",
    ),
    Step(
        CLUSTER_READY,
        "WorkersJoined",
        "Workers joined",
        done=lambda seen: seen.enough(seen.nodes_joined),
        waiting=lambda seen: seen.machines_failed or f"{seen.nodes_joined} of {seen.workers} nodes joined",
        unseen=lambda seen: seen.unreached,
    ),
    Step(
        CLUSTER_READY,
        CLUSTER_READY_STEP,
        "Cluster ready",
        done=lambda seen: seen.control_plane_ready and seen.enough(seen.nodes_ready) and seen.workload_ready is True,
        waiting=_not_usable,
        unseen=_usable_unseen,
    ),
    Step(
        ADDONS,
        "NetworkInstalled",
        "Network (CNI) installed",
        done=lambda seen: _installed(seen.network),
        waiting=lambda seen: _installing(seen.network),
    ),
    Step(
        ADDONS,
        "StorageAndBackup",
        "Storage and backup installed",
        done=lambda seen: _installed(seen.storage),
        waiting=lambda seen: _installing(seen.storage),
    ),
    Step(
        ADDONS,
        "CertificatesIssued",
        "TLS certificates issued for ten years",
        done=lambda seen: 0 < seen.certificates == seen.certificates_ready,
        waiting=lambda seen: f"{seen.certificates_ready} of {seen.certificates} certificates",
    ),
)


def evaluate(seen: Observation) -> list[tuple[Step, bool | None, str]]:
    """For each step: whether it is done (None: not requested), and what it waits for."""
    return [(step, step.done(seen), step.waiting(seen)) for step in STEPS]


def advance(previous: Sequence[StepStatus], seen: Observation, now: datetime) -> list[Record]:
    """The steps as they stand now. A time once written stays: a step that was done and no longer is runs again, with its first start, and so does one
    that was done when it was last seen.

    Args:
        previous: what the status records of them.
    """
    before = {step.number: step for step in previous}
    records: list[Record] = []
    earlier_done = True
    for number, (step, done, waiting) in enumerate(evaluate(seen), start=1):
        old = before.get(number, StepStatus())
        record: Record = {"number": number, "phase": step.phase, "name": step.name, "title": step.title}
        if done is None:
            record |= {"state": str(StepState.SKIPPED), "message": "not asked for"}
        elif unseen := step.unseen(seen):
            record |= {"state": str(StepState.UNKNOWN), "message": unseen}
            record |= {key: at for key, at in (("startedAt", old.started_at), ("finishedAt", old.finished_at)) if at}
        elif done:
            started = old.started_at or seen.requested_at or rfc3339(now)
            finished = seen.requested_at if number == 1 else rfc3339(now)
            record |= {"state": str(StepState.DONE), "startedAt": started, "finishedAt": old.finished_at or finished}
        elif earlier_done or old.state in (StepState.RUNNING, StepState.DONE) or (old.state == StepState.UNKNOWN and old.started_at):
            record |= {"state": str(StepState.RUNNING), "startedAt": old.started_at or rfc3339(now), "message": waiting}
            if old.finished_at:
                record["finishedAt"] = old.finished_at
        else:
            record |= {"state": str(StepState.PENDING), "message": waiting}
        earlier_done = earlier_done and done is not False and record["state"] != StepState.UNKNOWN
        records.append(record)
    return records


def complete(records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether nothing is left to wait for."""
    return len(records) == len(STEPS) and all(record["state"] in FINISHED_STEPS for record in records)
