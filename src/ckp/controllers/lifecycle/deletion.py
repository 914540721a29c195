"""Graceful deletion of a cluster: its workers are drained and reset first, then the cluster is deleted.

The core skips the drain of machines whose Cluster is being deleted (Cluster API v1.7.7, machine controller: errClusterIsBeingDeleted), so a
request for deletion is an annotation at first: the MachineDeployments are deleted while the Cluster still lives, and the Cluster afterwards.
Deleting the Cluster object itself is the core's quick way, without a drain.

Nothing here waits without an end that somebody can set: each Machine has its timeouts (rules/leaving.py), and a host that does not answer is waited for
until a person says that it is not (`ckp cluster delete --force`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta

from ckp.api.kinds import BYO_HOST, BYO_MACHINE, CLUSTER, MACHINE, MACHINE_DEPLOYMENT, PERSISTENT_VOLUME
from ckp.api.names import (
    CLUSTER_NAME_LABEL,
    DELETE_REQUESTED_ANNOTATION,
    FORCE_DELETE_ANNOTATION,
    FORCE_RELEASE_ANNOTATION,
    FORCED,
    LEFT_BEHIND_ANNOTATION,
)
from ckp.api.objects.byo_host import ByoHost
from ckp.api.objects.byo_machine import ByoMachine
from ckp.api.states import ConditionType
from ckp.clients.kube import Kube, Obj
from ckp.controllers.scope import deleting
from ckp.controllers.workload import WorkloadClients, workload_cluster
from ckp.kits.clock import Clock, SystemClock, parse_rfc3339
from ckp.kits.errors import CkpError
from ckp.runtime.controller import Result

POLL = 5.0
RESET_GRACE = timedelta(minutes=5)
"""How long a forced deletion waits for hosts that do answer: they are cleaned, unless that takes longer."""
MOST_VOLUMES = 20


@dataclass
class DeletionReconciler:
    """One pass over a cluster whose deletion was requested."""

    kube: Kube
    clock: Clock = field(default_factory=SystemClock)
    clients: WorkloadClients = field(default_factory=WorkloadClients)

    async def reconcile(self, namespace: str, name: str) -> Result:
        """Note what it leaves, delete the MachineDeployments, wait for their Machines to go, then delete the Cluster."""
        cluster = await self.kube.get(CLUSTER, name, namespace)
        annotations = ((cluster or {}).get("metadata") or {}).get("annotations") or {}
        if cluster is None or DELETE_REQUESTED_ANNOTATION not in annotations:
            return Result()
        labels = {CLUSTER_NAME_LABEL: name}
        forced = str(annotations.get(FORCE_DELETE_ANNOTATION) or "")
        if forced:
            await self._force(namespace, labels, forced)
        if deleting(cluster):
            return Result(after=POLL) if forced else Result()
        if LEFT_BEHIND_ANNOTATION not in annotations:
            found = json.dumps(await self._volumes(namespace, name))
            await self.kube.merge(CLUSTER, name, namespace, {"metadata": {"annotations": {LEFT_BEHIND_ANNOTATION: found}}})
        deployments = await self.kube.list(MACHINE_DEPLOYMENT, namespace, labels=labels)
        for deployment in deployments:
            if not deleting(deployment):
                await self.kube.delete(MACHINE_DEPLOYMENT, deployment["metadata"]["name"], namespace)
        if deployments or await self.kube.list(MACHINE, namespace, labels=labels):
            return Result(after=POLL)
        await self.kube.delete(CLUSTER, name, namespace)
        return Result()

    async def _force(self, namespace: str, labels: dict[str, str], since: str) -> None:
        """Nothing is drained or detached any more. Hosts that answer have some minutes to become clean, the others are released as they are."""
        for machine in await self.kube.list(MACHINE, namespace, labels=labels):
            if not FORCED.items() <= (machine["metadata"].get("annotations") or {}).items():
                await self.kube.merge(MACHINE, machine["metadata"]["name"], namespace, {"metadata": {"annotations": FORCED}})
        waited = self.clock.now() - parse_rfc3339(since)
        for obj in await self.kube.list(BYO_MACHINE, namespace, labels=labels):
            byo = ByoMachine.of(obj)
            if FORCE_RELEASE_ANNOTATION in byo.metadata.annotations:
                continue
            host = await self.kube.get(BYO_HOST, byo.status.host_ref.name, namespace) if byo.status.host_ref.name else None
            answers = host is not None and ByoHost.of(host).condition(ConditionType.AGENT_CONNECTED).is_true
            if not answers or waited > RESET_GRACE:
                await self.kube.merge(BYO_MACHINE, byo.name, namespace, {"metadata": {"annotations": {FORCE_RELEASE_ANNOTATION: "true"}}})

    async def _volumes(self, namespace: str, cluster: str) -> list[str]:
        """The cluster's persistent volumes: nothing deletes what they are made of, and their API goes with the cluster."""
        try:
            async with workload_cluster(self.kube, namespace, cluster, self.clients) as client:
                return sentences(await client.list(PERSISTENT_VOLUME)) if client is not None else []
        except CkpError as error:
            return [f"its volumes are not known: {error.brief}"]


def sentences(volumes: Iterable[Obj]) -> list[str]:
    """Which volumes they are, for people who look for them where they are stored."""
    found = sorted(_volume(volume) for volume in volumes)
    more = len(found) - MOST_VOLUMES
    return [*found[:MOST_VOLUMES], *([f"and {more} more volumes"] if more > 0 else [])]


def _volume(volume: Obj) -> str:
    spec, name = volume.get("spec") or {}, volume["metadata"]["name"]
    csi, claim = spec.get("csi") or {}, spec.get("claimRef") or {}
    kinds = sorted(set(spec) & {"local", "hostPath", "nfs", "iscsi", "fc", "rbd", "cephfs"})
    where = f"{csi.get('driver')} {csi.get('volumeHandle')}" if csi else " ".join(kinds) or "unknown storage"
    return f"volume {name} ({where}), of claim {claim.get('namespace', '')}/{claim.get('name', '')}"
