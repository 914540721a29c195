"""A disruption budget for CoreDNS, which kubeadm makes none for: both its pods often stand on the node that joined first, and a drain would end both at once.

The eviction API refuses a pod that two budgets select (pkg/registry/core/pod/storage/eviction.go). So ours is there only while its owner has none.
"""

from __future__ import annotations

import structlog

from ckp.api.kinds import PDB
from ckp.clients.kube import Kube, KubeError, Obj
from ckp.rules.admission import selects

log = structlog.get_logger("controllers.workload-health")

NAME = "ckp-coredns"
NAMESPACE = "kube-system"
PODS = {"k8s-app": "kube-dns"}
"""The labels of CoreDNS' pods, as kubeadm has them (cmd/kubeadm/app/phases/addons/dns/manifests.go)."""


def budget() -> Obj:
    """Ours: one of them at a time. One that is the only one can still be evicted."""
    meta = {"name": NAME, "namespace": NAMESPACE}
    return {"apiVersion": PDB.api_version, "kind": PDB.kind, "metadata": meta, "spec": {"maxUnavailable": 1, "selector": {"matchLabels": PODS}}}


async def keep(workload: Kube) -> None:
    """Bring it about, or take it away where somebody else's selects the same pods. What the cluster refuses says nothing about its health: it is logged."""
    try:
        await _keep(workload)
    except KubeError as error:
        log.warning("the disruption budget of CoreDNS could not be kept", error=error.brief)


async def _keep(workload: Kube) -> None:
    of_dns = [item for item in await workload.list(PDB, NAMESPACE) if _selects(item)]
    ours = next((item for item in of_dns if item["metadata"]["name"] == NAME), None)
    if len(of_dns) > (ours is not None):
        if ours is not None:
            await workload.delete(PDB, NAME, NAMESPACE)
    elif ours is None or ours["spec"].get("maxUnavailable") != 1:
        await workload.apply(budget())


def _selects(item: Obj) -> bool:
    selector = (item.get("spec") or {}).get("selector")
    return selector is not None and selects(selector, PODS)
