"""What keeps a node from being drained: pods that a disruption budget holds, and pods that take their time to end. Pure.

Which pods a drain evicts: kubectl's filters (k8s.io/kubectl pkg/drain/filters.go, v1.35.1) with --ignore-daemonsets, --force and --delete-emptydir-data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ckp.rules.admission import selects

MIRROR = "kubernetes.io/config.mirror"
"""The annotation of a static pod's image in the API; such a pod can't be evicted."""
NAMED = 3
"""So many are named; the others are counted."""

Obj = Mapping[str, Any]


def is_evicted(pod: Obj) -> bool:
    """Whether a drain waits until this pod is gone."""
    meta = pod["metadata"]
    owned = any(owner.get("kind") == "DaemonSet" and owner.get("controller") for owner in meta.get("ownerReferences") or ())
    ended = (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
    return not owned and not ended and MIRROR not in (meta.get("annotations") or {})


def blockers(pods: Iterable[Obj], budgets: Sequence[Obj]) -> list[str]:
    """A sentence for each pod that a drain waits for and that has not just been evicted: which pod, and which budget or what else holds it."""
    found = []
    for pod in filter(is_evicted, pods):
        meta = pod["metadata"]
        name = f"pod {meta['namespace']}/{meta['name']}"
        if since := meta.get("deletionTimestamp"):
            found.append(f"{name} has until {since} to end")  # the API server adds the grace period to it
            continue
        holding = [budget for budget in budgets if _holds(budget, meta["namespace"], meta.get("labels") or {})]
        if len(holding) > 1:  # the eviction API refuses such a pod (pkg/registry/core/pod/storage/eviction.go)
            found.append(f"{name} is of more than one disruption budget, so it can't be evicted: {', '.join(_name(budget) for budget in holding)}")
        elif holding and (holding[0].get("status") or {}).get("disruptionsAllowed", 0) <= 0:
            status = holding[0].get("status") or {}
            counts = f"{status.get('currentHealthy', 0)} pods are healthy, {status.get('desiredHealthy', 0)} must be"
            found.append(f"{name} is held by the disruption budget {_name(holding[0])}: {counts}")
    return found


def summary(sentences: Sequence[str]) -> str:
    """The first few of them, and how many more there are; "" for none."""
    more = f"; and {len(sentences) - NAMED} more" if len(sentences) > NAMED else ""
    return "; ".join(sentences[:NAMED]) + more


def _holds(budget: Obj, namespace: str, labels: Mapping[str, str]) -> bool:
    """policy/v1: a selector that is empty selects all pods of the namespace, one that is absent none."""
    selector = (budget.get("spec") or {}).get("selector")
    return bool(budget["metadata"]["namespace"] == namespace and selector is not None and selects(selector, labels))


def _name(budget: Obj) -> str:
    return f"{budget['metadata']['namespace']}/{budget['metadata']['name']}"
