"""The management layer on several hosts: what has a standby, and how long a pod waits for a host that is away."""

from __future__ import annotations

import copy
from typing import Any

Obj = dict[str, Any]
AWAY_SECONDS = 20
"""How long pods stay with a host that does not answer, once Kubernetes knows (50 s, kube-controller-manager's node-monitor-grace-period); its own
default of 300 s is for nodes whose pods are costly to move."""
REPLICAS = 2
ON_NODE = "kubernetes.io/hostname"


def spread(objects: list[Obj]) -> list[Obj]:
    """Manifests of the management layer for a cluster of several hosts.

    Each Deployment gets a standby, on another host if one has room, which takes over by its lease (Cluster API, cert-manager and CKP's controllers
    elect a leader), except one that must be alone: its update strategy is Recreate.
    """
    return [_spread(copy.deepcopy(each)) if each["kind"] == "Deployment" else each for each in objects]


def _spread(deployment: Obj) -> Obj:
    spec = deployment["spec"]
    pod = spec["template"]["spec"]
    for taint in ("not-ready", "unreachable"):
        toleration = {"key": f"node.kubernetes.io/{taint}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": AWAY_SECONDS}
        pod.setdefault("tolerations", []).append(toleration)
    if (spec.get("strategy") or {}).get("type") != "Recreate":
        spec["replicas"] = max(REPLICAS, int(spec.get("replicas", 1)))
        constraint = {"maxSkew": 1, "topologyKey": ON_NODE, "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": spec["selector"]}
        pod.setdefault("topologySpreadConstraints", [constraint])
    return deployment
