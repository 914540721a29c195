"""Graceful deletion of a cluster: its workers are drained and reset first, then the cluster is deleted.

The core skips the drain of machines whose Cluster is being deleted (Cluster API v1.7.7, machine controller: errClusterIsBeingDeleted), so a
request for deletion is an annotation at first: the MachineDeployments are deleted while the Cluster still lives, and the Cluster afterwards.
Deleting the Cluster object itself is the core's quick way, without a drain.
"""

from __future__ import annotations

from dataclasses import dataclass

from ckp.api.kinds import CLUSTER, MACHINE, MACHINE_DEPLOYMENT
from ckp.api.names import CLUSTER_NAME_LABEL, DELETE_REQUESTED_ANNOTATION
from ckp.clients.kube import Kube
from ckp.controllers.scope import deleting
from ckp.runtime.controller import Result

POLL = 5.0


@dataclass
class DeletionReconciler:
    """One pass over a cluster whose deletion was requested."""

    kube: Kube

    async def reconcile(self, namespace: str, name: str) -> Result:
        """Delete the MachineDeployments, wait for their Machines to go, then delete the Cluster."""
        cluster = await self.kube.get(CLUSTER, name, namespace)
        if cluster is None or deleting(cluster) or DELETE_REQUESTED_ANNOTATION not in (cluster["metadata"].get("annotations") or {}):
            return Result()
        labels = {CLUSTER_NAME_LABEL: name}
        deployments = await self.kube.list(MACHINE_DEPLOYMENT, namespace, labels=labels)
        for deployment in deployments:
            if not deleting(deployment):
                await self.kube.delete(MACHINE_DEPLOYMENT, deployment["metadata"]["name"], namespace)
        if deployments or await self.kube.list(MACHINE, namespace, labels=labels):
            return Result(after=POLL)
        await self.kube.delete(CLUSTER, name, namespace)
        return Result()
