"""The fourteen steps of a cluster, in four phases (white paper §8): which are done, from what is seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ckp.kits.clock import rfc3339

Step = dict[str, Any]

PHASES = ("Provisioning", "Bootstrap", "Cluster Ready", "Addons")
STEPS: tuple[tuple[str, str, str], ...] = (
    ("Provisioning", "Requested", "Cluster requested"),
    ("Provisioning", "ProviderResolved", "Infrastructure provider resolved"),
    ("Provisioning", "HostsProvisioned", "Hosts provisioned"),
    ("Provisioning", "AgentsRegistered", "Agents registered over mTLS"),
    ("Bootstrap", "HostsApproved", "Hosts approved"),
    ("Bootstrap", "HostsAssigned", "Hosts assigned to the group"),
    ("Bootstrap", "ResourcesCreated", "Cluster API resources created"),
    ("Bootstrap", "ReconcilersBootstrapped", "Machines bootstrapped by the reconcilers"),
    ("Cluster Ready", "ControlPlaneUp", "Control plane up"),
    ("Cluster Ready", "WorkersJoined", "Workers joined"),
    ("Cluster Ready", "ClusterReady", "Cluster ready"),
    ("Addons", "NetworkInstalled", "Network (CNI) installed"),
    ("Addons", "StorageAndBackup", "Storage and backup installed"),
    ("Addons", "CertificatesIssued", "TLS certificates issued for ten years"),
)


@dataclass(frozen=True)
class Seen:
    """What is seen of a cluster right now."""

    requested_at: str = ""
    infrastructure_ready: bool = False
    workers: int = 0
    hosts_in_group: int = 0
    hosts_connected: int = 0
    resources: bool = False
    machines: int = 0
    machines_claimed: int = 0
    machines_failed: str = ""
    control_plane_ready: bool = False
    control_plane_message: str = ""
    nodes_joined: int = 0
    nodes_ready: int = 0
    cni: str = "cilium"
    cni_installed: bool = False
    cni_message: str = ""
    storage_requested: bool = False
    certificates: int = 0
    certificates_ready: int = 0


def judge(seen: Seen) -> list[tuple[bool | None, str]]:
    """For each step: whether it is done (None: not asked for), and what it waits for."""
    enough = f"of {seen.workers} hosts"
    known = seen.workers > 0  # the MachineDeployment is there, so that "enough" means something
    claimed = known and seen.machines_claimed >= seen.workers and seen.machines >= seen.workers
    return [
        (bool(seen.requested_at), ""),
        (seen.infrastructure_ready, "the ByoCluster is not ready yet"),
        (known and seen.hosts_in_group >= seen.workers, f"{seen.hosts_in_group} {enough} in the group"),
        (known and seen.hosts_connected >= seen.workers, f"{seen.hosts_connected} {enough} connected"),
        (known and seen.hosts_in_group >= seen.workers, f"{seen.hosts_in_group} {enough} approved"),
        (known and seen.hosts_in_group >= seen.workers, f"{seen.hosts_in_group} {enough} in the group"),
        (seen.resources, "not all objects are there yet"),
        (claimed, seen.machines_failed or f"{seen.machines_claimed} of {seen.workers} machines hold a host"),
        (seen.control_plane_ready, seen.control_plane_message or "starting"),
        (known and seen.nodes_joined >= seen.workers, seen.machines_failed or f"{seen.nodes_joined} of {seen.workers} nodes joined"),
        (known and seen.control_plane_ready and seen.nodes_ready >= seen.workers, f"{seen.nodes_ready} of {seen.workers} nodes ready"),
        (None if seen.cni == "none" else seen.cni_installed, seen.cni_message or f"{seen.cni} is being installed"),
        (None if not seen.storage_requested else False, "not asked for"),
        (seen.certificates > 0 and seen.certificates_ready == seen.certificates, f"{seen.certificates_ready} of {seen.certificates} certificates"),
    ]


def advance(previous: Sequence[Mapping[str, Any]], seen: Seen, now: datetime) -> list[Step]:
    """The steps as they stand now. A time once written stays: a step that was done and is not any more shows Running again, with its first start."""
    before = {int(step["number"]): step for step in previous}
    steps: list[Step] = []
    earlier_done = True
    for number, ((phase, name, title), (done, waiting)) in enumerate(zip(STEPS, judge(seen), strict=True), start=1):
        old = before.get(number, {})
        started = old.get("startedAt") or seen.requested_at or rfc3339(now)
        step: Step = {"number": number, "phase": phase, "name": name, "title": title}
        if done is None:
            step |= {"state": "Skipped", "message": "not asked for"}
        elif done:
            at = seen.requested_at if number == 1 else rfc3339(now)
            step |= {"state": "Done", "startedAt": started, "finishedAt": old.get("finishedAt") or at}
        elif earlier_done or old.get("state") in ("Running", "Done"):
            step |= {"state": "Running", "startedAt": old.get("startedAt") or rfc3339(now), "message": waiting}
            if "finishedAt" in old:
                step["finishedAt"] = old["finishedAt"]
        else:
            step |= {"state": "Pending", "message": waiting}
        earlier_done = earlier_done and done is not False
        steps.append(step)
    return steps


def complete(steps: Sequence[Mapping[str, Any]]) -> bool:
    """Whether nothing is left to wait for."""
    return len(steps) == len(STEPS) and all(step["state"] in ("Done", "Skipped") for step in steps)
