"""Clients of workload clusters, by the administrator's kubeconfig that each control plane provider writes (contract: `<c>-kubeconfig`)."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from ckp.api.kinds import NODE, SECRET
from ckp.api.names import PROVIDER_ID_PREFIX
from ckp.clients.kube import Kube

SECONDS = 5.0
"""Timeout of one request to a cluster's API server: one that can't be reached must not hold up the other hosts."""

Connect = Callable[[str], Kube]


def connect(kubeconfig: str) -> Kube:
    """A client of a workload cluster."""
    return Kube.from_kubeconfig(kubeconfig, manager="ckp-controllers", timeout=SECONDS)


@asynccontextmanager
async def workload_cluster(kube: Kube, namespace: str, cluster: str, connect_to: Connect) -> AsyncIterator[Kube | None]:
    """A client of the cluster of this name while the block runs; None while it has no kubeconfig."""
    secret = await kube.get(SECRET, f"{cluster}-kubeconfig", namespace)
    if secret is None:
        yield None
        return
    client = connect_to(base64.b64decode(secret["data"]["value"]).decode())
    try:
        yield client
    finally:
        await client.close()


async def remove_stale_node(client: Kube, namespace: str, host: str, identity: str) -> None:
    """Remove the Node that an earlier machine left under the host's name: a kubelet that joins again would take it over with its old providerID.

    Cluster API gives up deleting a Node after ten seconds in which the API server does not answer (Machine.spec.nodeDeletionTimeout), and lets the
    machine go all the same. Only a Node of this very host is removed, and the caller holds the host.

    Raises:
        KubeError: the cluster can't be reached.
    """
    node = await client.get(NODE, host)
    found = str(((node or {}).get("spec") or {}).get("providerID") or "")
    if node is not None and found != identity and found.startswith(f"{PROVIDER_ID_PREFIX}{namespace}/{host}/"):
        await client.delete(NODE, host)
