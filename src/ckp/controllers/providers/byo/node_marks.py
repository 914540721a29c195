"""Brings the labels and taints of a host to its node when they change after the join: the kubelet takes them only as it registers."""

from __future__ import annotations

from dataclasses import dataclass

from ckp.api.kinds import BYO_MACHINE, NODE
from ckp.api.names import provider_id
from ckp.clients.kube import Kube, KubeError, Obj
from ckp.controllers.scope import cluster_name
from ckp.controllers.workload import Connect, guest
from ckp.kits.clock import Clock
from ckp.rules.conditions import Condition, make_condition
from ckp.rules.marks import Marks, node_patch

POLL = 15.0


@dataclass(frozen=True)
class Marked:
    """What is to be written of a host's marks: what its node has, a condition, and when to look again."""

    marks: Marks
    condition: Condition | None = None
    after: float | None = None


async def mark_node(kube: Kube, clock: Clock, host: Obj, connect_to: Connect) -> Marked:
    """One step: remember what a joining node is told; once it has joined, make its node say what the host says."""
    before, wanted = Marks.read(host), Marks.wanted(host)
    observed = (host.get("status") or {}).get("observed") or {}
    if not wanted.machine:
        return Marked(Marks())
    told = before if before.machine == wanted.machine else Marks(wanted.machine)
    if not told and not wanted:
        return Marked(Marks())
    now = clock.now()
    settled = make_condition("NodeMarked", True, now)
    if told == wanted:
        return Marked(wanted, settled)
    if observed.get("phase") != "Joined":
        return Marked(told.told(wanted))
    try:
        missing = await _bring(kube, host, told, wanted, connect_to)
    except KubeError as error:
        missing = error.brief
    if missing:
        condition = make_condition("NodeMarked", False, now, reason="NodeNotReached", message=missing, severity="Warning")
        return Marked(told.told(wanted), condition, POLL)
    return Marked(wanted, settled)


async def _bring(kube: Kube, host: Obj, told: Marks, wanted: Marks, connect_to: Connect) -> str:
    """Patch the node; returns what is missing for it, "" when it is as wanted."""
    name, namespace = host["metadata"]["name"], host["metadata"]["namespace"]
    machine = await kube.get(BYO_MACHINE, host["spec"]["machineRef"]["name"], namespace)
    if machine is None or machine["metadata"]["uid"] != wanted.machine:
        return "the machine that holds it is not there"
    cluster = cluster_name(machine)
    async with guest(kube, namespace, cluster, connect_to) as client:
        if client is None:
            return f"cluster {cluster} has no kubeconfig"
        node = await client.get(NODE, name)
        if node is None or (node.get("spec") or {}).get("providerID") != provider_id(namespace, name, wanted.machine):
            return f"cluster {cluster} does not have the node yet"
        if patch := node_patch(node, told, wanted):
            await client.merge(NODE, name, None, patch)
    return ""
