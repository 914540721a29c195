"""From what is seen inside a workload cluster to whether a pod can be scheduled there, resolve a name and reach the API. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from ckp.api.objects.control_plane import ManagedControlPlane
from ckp.api.states import ConditionType, Reason
from ckp.kits.clock import parse_rfc3339
from ckp.rules.conditions import get_condition, is_true

NETWORK = ("cilium",)
"""DaemonSets without whose pod a node has no network. The kubelet does not notice: its node is ready as soon as a configuration lies in /etc/cni/net.d,
and that stays when the plugin's agent fails."""
NETWORK_GRACE = timedelta(minutes=3)
"""What the network plugin may take to start, or to start again, on a node."""
SAID = 300
"""Characters of what a program printed that a message repeats at most."""


@dataclass(frozen=True)
class Seen:
    """What was read of one cluster at one moment. While the canary is ready and no DaemonSet lacks pods, the rest is not asked for."""

    canary: Sequence[Mapping[str, Any]] = ()
    """Its pods."""
    deployment: Mapping[str, Any] | None = None
    """The canary's."""
    nodes: Sequence[Mapping[str, Any]] = ()
    dns_ready: int = 0
    """Pods of CoreDNS that are available."""
    blockers: Sequence[str] = ()
    """Sentences about webhooks that refuse pods of kube-system while some are missing."""
    probe: str = ""
    """What the canary's probe printed last."""
    has_cni: bool = True
    """False: the cluster was made without a network plugin, which is its owner's to install."""
    pod_network: str = ""
    pod_network_room: int = 0
    """Nodes that the pod network has room for; 0: not known."""
    network: Sequence[Mapping[str, Any]] = ()
    """Pods of the network plugin, while some are not ready."""
    now: datetime | None = None


def unreached(plane: ManagedControlPlane) -> str:
    """Why a workload cluster can't be asked now; "" if it can, or never could.

    Meanwhile Cluster API leaves what it saw last of nodes in Machines and MachineDeployments (v1.7.7: without a client, reconcileNode ends with an error
    before it touches a condition), and that may be over.
    """
    if not plane.status.initialized:
        return ""
    if not plane.status.ready:
        said = plane.condition(ConditionType.READY)
        return f"the cluster's API server does not serve{f': {said.message}' if said.message and not said.is_true else ''}"
    seen = plane.condition(ConditionType.WORKLOAD_READY)
    return seen.message if seen.status == "Unknown" and seen.reason == Reason.CLUSTER_NOT_REACHED else ""


@dataclass(frozen=True)
class Verdict:
    """Whether the cluster is usable; with the reason if not. `ok` None: it can't be seen."""

    ok: bool | None
    reason: str = ""
    message: str = ""


def evaluate(seen: Seen) -> Verdict:
    """The verdict, by the deepest cause that can be seen."""
    full = _pod_network_full(seen)
    if seen.blockers:
        return Verdict(False, Reason.WEBHOOK_BLOCKS, "; ".join(seen.blockers))
    if any(is_true(pod, "Ready") for pod in seen.canary if "deletionTimestamp" not in pod["metadata"]):
        if full:
            return Verdict(False, Reason.POD_NETWORK_FULL, full)
        without = _node_without_network(seen)
        return Verdict(False, Reason.NODE_NETWORK_NOT_READY, without) if without else Verdict(True)
    if not seen.nodes:
        return Verdict(False, Reason.NO_NODE, "the cluster has no node yet")
    if not any(is_true(node, "Ready") for node in seen.nodes):
        return _no_ready_node(seen, full)
    pods = [pod for pod in seen.canary if "deletionTimestamp" not in pod["metadata"]]
    if not pods:
        return Verdict(False, Reason.POD_NOT_CREATED, f"the pod ckp-canary is not created yet{_because(_replica_failure(seen.deployment))}")
    return _why_not_ready(pods[-1], seen)


def _no_ready_node(seen: Seen, full: str) -> Verdict:
    node = seen.nodes[0]
    said = f"node {node['metadata']['name']}: {(get_condition(node, 'Ready') or {}).get('message') or 'not ready'}"
    if full:
        return Verdict(False, Reason.POD_NETWORK_FULL, full)
    if not seen.has_cni:
        return Verdict(False, Reason.NO_NETWORK, f"the cluster has no network yet, as it was made with cni none: install a network plugin ({said})")
    return Verdict(False, Reason.NODES_NOT_READY, f"no node is ready: {said}")


def _pod_network_full(seen: Seen) -> str:
    """Which node waits for a part of the pod network in vain; "" if none does."""
    without = [node["metadata"]["name"] for node in seen.nodes if not (node.get("spec") or {}).get("podCIDR")]
    if not without or not seen.pod_network_room or len(seen.nodes) - len(without) < seen.pod_network_room:
        return ""
    return (
        f"node {without[0]} can't get a network for its pods: {seen.pod_network} has room for {seen.pod_network_room} "
        f"{'node' if seen.pod_network_room == 1 else 'nodes'}, and all of it is taken until another node is removed"
    )


def _node_without_network(seen: Seen) -> str:
    """Which node is ready by its own word while the network plugin does not run on it; "" if none is."""
    ready = {node["metadata"]["name"] for node in seen.nodes if is_true(node, "Ready")}
    for pod in seen.network:
        node, said = str((pod.get("spec") or {}).get("nodeName") or ""), get_condition(pod, "Ready") or {}
        since = str(said.get("lastTransitionTime") or "")
        if node not in ready or is_true(pod, "Ready") or "deletionTimestamp" in pod["metadata"] or not since or seen.now is None:
            continue
        if seen.now - parse_rfc3339(since) >= NETWORK_GRACE:
            return f"node {node} has no network, so that no pod can start there: {pod['metadata']['name']} does not run{_because(_last_words(pod))}"
    return ""


def _last_words(pod: Mapping[str, Any]) -> str:
    """Why a pod's container does not run, and the end of what it printed last."""
    container: Mapping[str, Any] = next(iter((pod.get("status") or {}).get("containerStatuses") or ()), {})
    waiting = (container.get("state") or {}).get("waiting") or {}
    ended = (container.get("lastState") or {}).get("terminated") or {}
    printed = str(ended.get("message") or "").strip().splitlines()[-1:]
    return " ".join([str(waiting.get("reason") or ""), *printed]).strip()


def _replica_failure(deployment: Mapping[str, Any] | None) -> str:
    if deployment is None:
        return ""
    if (deployment.get("spec") or {}).get("replicas") == 0:
        return "its Deployment is scaled to 0"
    found = get_condition(deployment, "ReplicaFailure") or {}
    return str(found.get("message") or "") if found.get("status") == "True" else ""


def _why_not_ready(pod: Mapping[str, Any], seen: Seen) -> Verdict:
    scheduled = get_condition(pod, "PodScheduled") or {}
    node = str((pod.get("spec") or {}).get("nodeName") or "")
    if not node:
        return Verdict(False, Reason.UNSCHEDULABLE, f"the pod ckp-canary can't be scheduled{_because(str(scheduled.get('message') or ''))}")
    container: Mapping[str, Any] = next(iter((pod.get("status") or {}).get("containerStatuses") or ()), {})
    state: Mapping[str, Any] = container.get("state") or {}
    if "running" not in state:
        waiting = state.get("waiting") or state.get("terminated") or {}
        why = " ".join(part for part in (str(waiting.get("reason") or ""), str(waiting.get("message") or "")) if part)
        return Verdict(False, Reason.POD_NOT_STARTED, f"the pod ckp-canary does not run yet on node {node}{_because(why)}")
    if not seen.dns_ready:
        return Verdict(False, Reason.DNS_NOT_READY, f"no pod of CoreDNS is ready, so that no name is resolved{_because(seen.probe)}")
    if "lookup " in seen.probe:
        return Verdict(False, Reason.NAME_NOT_RESOLVED, f"a pod on node {node} can't resolve a name{_because(seen.probe)}")
    return Verdict(False, Reason.API_NOT_REACHED, f"a pod on node {node} does not reach the API server by its name in the cluster{_because(seen.probe)}")


def _because(text: str) -> str:
    short = " ".join(text.split())
    return f": {short[:SAID]}{'…' if len(short) > SAID else ''}" if short else ""
