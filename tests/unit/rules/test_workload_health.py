"""From what is seen inside a cluster to the verdict: each thing that a pod needs can be missing alone, and is named."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ckp.api.objects.control_plane import ManagedControlPlane
from ckp.kits.clock import rfc3339
from ckp.rules.workload_health import Seen, Verdict, evaluate, unreached


def conditions(**statuses: tuple[str, str]) -> list[dict[str, str]]:
    return [{"type": kind, "status": status, "message": message} for kind, (status, message) in statuses.items()]


def node(name: str, ready: str = "True", message: str = "", cidr: str = "10.42.0.0/24") -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"podCIDR": cidr} if cidr else {}, "status": {"conditions": conditions(Ready=(ready, message))}}


def pod(ready: str = "True", node_name: str = "w1", state: dict[str, Any] | None = None, scheduling: str = "", **meta: Any) -> dict[str, Any]:
    states = [{"state": {"running": {}} if state is None else state}] if node_name else []
    found = conditions(Ready=(ready, ""), PodScheduled=("True" if node_name else "False", scheduling))
    return {
        "metadata": {"name": "p", **meta},
        "spec": {"nodeName": node_name} if node_name else {},
        "status": {"conditions": found, "containerStatuses": states},
    }


NOW = datetime(2026, 11, 30, 2, 16, tzinfo=UTC)


def network_pod(node_name: str, seconds: int, ready: str = "False", **meta: Any) -> dict[str, Any]:
    """A pod of Cilium that is so since some seconds."""
    since = rfc3339(NOW - timedelta(seconds=seconds))
    words = "level=error msg=...\nunable to determine direct routing device\n"
    states = [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": {"message": words}}}]
    status = {"conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": since}], "containerStatuses": states}
    return {"metadata": {"name": f"cilium-{node_name}", **meta}, "spec": {"nodeName": node_name}, "status": status}


GOOD = Seen(canary=[pod()], nodes=[node("w1")], dns_ready=2, pod_network="10.42.0.0/16", pod_network_room=256)
FAILED = replace(GOOD, canary=[pod("False")])
NO_DNS = "Get https://kubernetes.default.svc.cluster.local/readyz: dial tcp: lookup kubernetes.default.svc.cluster.local on 10.43.0.10:53: i/o timeout"


def test_a_pod_that_resolves_a_name_and_reaches_the_api_is_a_cluster_that_works() -> None:
    assert evaluate(GOOD) == Verdict(True)
    assert evaluate(Seen(canary=[pod("False"), pod()])).ok, "a new version beside the old one"


def test_a_ready_node_on_which_the_network_plugin_fails_is_named_though_pods_work_elsewhere() -> None:
    """The kubelet's Ready only means that a configuration lies in /etc/cni/net.d: seen in the lab, a node whose Cilium crashed for eight minutes."""
    seen = replace(GOOD, nodes=[node("w1"), node("w2")], network=[network_pod("w1", 999, "True"), network_pod("w2", 181)], now=NOW)
    words = "node w2 has no network, so that no pod can start there: cilium-w2 does not run: CrashLoopBackOff unable to determine direct routing device"
    assert evaluate(seen) == Verdict(False, "NodeNetworkNotReady", words)


@pytest.mark.parametrize(
    "pod",
    [network_pod("w2", 179), network_pod("w2", 999, deletionTimestamp="2026-11-30T02:15:59Z"), network_pod("w3", 999), network_pod("w2", 999, "True")],
    ids=["starts", "is going", "its node is not ready", "runs"],
)
def test_a_network_plugin_that_starts_or_goes_or_whose_node_is_not_ready_is_no_finding(pod: dict[str, Any]) -> None:
    assert evaluate(replace(GOOD, nodes=[node("w1"), node("w2"), node("w3", "Unknown")], network=[pod], now=NOW)).ok


@pytest.mark.parametrize(
    ("seen", "reason", "message"),
    [
        (replace(FAILED, nodes=[], canary=[pod("False", "")]), "NoNode", "the cluster has no node yet"),
        (
            replace(FAILED, has_cni=False, nodes=[node("w1", "False", "cni plugin not initialized")]),
            "NoNetwork",
            "the cluster has no network yet, as it was made with cni none: install a network plugin (node w1: cni plugin not initialized)",
        ),
        (
            replace(FAILED, nodes=[node("w1", "False", "cni plugin not initialized")]),
            "NodesNotReady",
            "no node is ready: node w1: cni plugin not initialized",
        ),
        (
            replace(FAILED, nodes=[node("w1", "Unknown"), node("w2", "False", cidr="")], pod_network="10.42.0.0/24", pod_network_room=1),
            "PodNetworkFull",
            "node w2 can't get a network for its pods: 10.42.0.0/24 has room for 1 node, and all of it is taken until another node is removed",
        ),
        (replace(FAILED, blockers=["the webhook x refuses"]), "WebhookBlocks", "the webhook x refuses"),
        (replace(FAILED, canary=[]), "PodNotCreated", "the pod ckp-canary is not created yet"),
        (
            replace(FAILED, canary=[], deployment={"spec": {"replicas": 0}}),
            "PodNotCreated",
            "the pod ckp-canary is not created yet: its Deployment is scaled to 0",
        ),
        (
            replace(FAILED, canary=[], deployment={"spec": {}, "status": {"conditions": conditions(ReplicaFailure=("True", "exceeded quota"))}}),
            "PodNotCreated",
            "the pod ckp-canary is not created yet: exceeded quota",
        ),
        (
            replace(FAILED, canary=[pod("False", "", scheduling="0/1 nodes are available: 1 node(s) had untolerated taint(s)")]),
            "Unschedulable",
            "the pod ckp-canary can't be scheduled: 0/1 nodes are available: 1 node(s) had untolerated taint(s)",
        ),
        (
            replace(FAILED, canary=[pod("False", state={"waiting": {"reason": "ImagePullBackOff", "message": "no such\nhost"}})]),
            "PodNotStarted",
            "the pod ckp-canary does not run yet on node w1: ImagePullBackOff no such host",
        ),
        (replace(FAILED, dns_ready=0), "DNSNotReady", "no pod of CoreDNS is ready, so that no name is resolved"),
        (replace(FAILED, probe=NO_DNS), "NameNotResolved", f"a pod on node w1 can't resolve a name: {NO_DNS}"),
        (
            replace(FAILED, probe="x509: certificate signed by unknown authority"),
            "APINotReached",
            "a pod on node w1 does not reach the API server by its name in the cluster: x509: certificate signed by unknown authority",
        ),
        (FAILED, "APINotReached", "a pod on node w1 does not reach the API server by its name in the cluster"),
    ],
)
def test_what_is_missing_is_the_reason(seen: Seen, reason: str, message: str) -> None:
    assert evaluate(seen) == Verdict(False, reason, message)


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (replace(GOOD, blockers=["the webhook x refuses"]), "WebhookBlocks"),
        (replace(GOOD, nodes=[node("w1"), node("w2", "False", cidr="")], pod_network_room=1), "PodNetworkFull"),
    ],
)
def test_what_keeps_other_nodes_away_is_said_though_one_works(seen: Seen, reason: str) -> None:
    assert (evaluate(seen).ok, evaluate(seen).reason) == (False, reason)


def test_a_pod_that_is_going_is_no_evidence() -> None:
    assert evaluate(replace(GOOD, canary=[pod(deletionTimestamp="2026-05-01T12:00:00Z")])).reason == "PodNotCreated"


def test_a_node_that_waits_for_its_network_where_there_is_room_is_only_new() -> None:
    assert evaluate(replace(GOOD, nodes=[node("w1"), node("w2", "False", cidr="")])).ok


def test_what_a_program_printed_is_cut() -> None:
    assert evaluate(replace(FAILED, probe="x" * 5000)).message.endswith("x…") and len(evaluate(replace(FAILED, probe="x" * 5000)).message) < 400


def condition(kind: str, status: str, reason: str = "", message: str = "") -> dict[str, str]:
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": "2026-05-01T12:00:00Z"}


WORKS = condition("WorkloadReady", "True")


@pytest.mark.parametrize(
    ("status", "why"),
    [
        ({}, ""),
        ({"conditions": [condition("WorkloadReady", "Unknown", "ClusterNotReached", "no kubeconfig yet")]}, ""),
        ({"initialized": True, "ready": True, "conditions": [WORKS]}, ""),
        ({"initialized": True, "ready": True}, ""),
        ({"initialized": True, "ready": True, "conditions": [condition("WorkloadReady", "False", "NoNode", "no node")]}, ""),
        ({"initialized": True, "ready": True, "conditions": [condition("WorkloadReady", "Unknown", "UnknownVersion", "no canary")]}, ""),
        ({"initialized": True, "ready": True, "conditions": [condition("WorkloadReady", "Unknown", "ClusterNotReached", "timed out")]}, "timed out"),
        ({"initialized": True, "conditions": [WORKS]}, "the cluster's API server does not serve"),
        ({"initialized": True, "conditions": [condition("Ready", "False", "DataLost", "no data"), WORKS]}, "the cluster's API server does not serve: no data"),
    ],
)
def test_a_workload_cluster_can_not_be_asked_without_its_api_server_and_before_it_had_one_nothing_was_seen(status: dict[str, Any], why: str) -> None:
    assert unreached(ManagedControlPlane.of({"metadata": {"name": "demo"}, "status": status})) == why
