"""Brings the labels and taints of a host to its node when they change after the join: the kubelet applies them only when it registers."""

from __future__ import annotations

from dataclasses import dataclass

from ckp.api.kinds import BYO_MACHINE, NODE
from ckp.api.names import provider_id
from ckp.api.objects.byo_host import ByoHost
from ckp.api.objects.byo_machine import ByoMachine
from ckp.api.states import ConditionType, HostPhase, Reason
from ckp.clients.kube import Kube, KubeError
from ckp.controllers.workload import WorkloadClients, workload_cluster
from ckp.kits.clock import Clock
from ckp.rules.conditions import Condition, make_condition
from ckp.rules.labels_and_taints import LabelsAndTaints, node_patch

POLL = 15.0


@dataclass(frozen=True)
class NodeMetadata:
    """What is to be recorded: the labels and taints that the node has from its host, a condition, and the seconds until the next pass."""

    carried: LabelsAndTaints
    condition: Condition | None = None
    after: float | None = None


async def reconcile_node_metadata(kube: Kube, clock: Clock, host: ByoHost, clients: WorkloadClients) -> NodeMetadata:
    """One step: record what a joining node is given; once it has joined, bring its labels and taints in line with its host's."""
    recorded, wanted = LabelsAndTaints.recorded(host), LabelsAndTaints.wanted(host)
    if not wanted.machine:
        return NodeMetadata(LabelsAndTaints())
    given = recorded if recorded.machine == wanted.machine else LabelsAndTaints(wanted.machine)
    if not given and not wanted:
        return NodeMetadata(LabelsAndTaints())
    now = clock.now()
    settled = make_condition(ConditionType.NODE_MARKED, True, now)
    if given == wanted:
        return NodeMetadata(wanted, settled)
    if host.status.observed.phase != HostPhase.JOINED:
        return NodeMetadata(given.joined_with(wanted))
    try:
        missing = await _patch_node(kube, host, given, wanted, clients)
    except KubeError as error:
        missing = error.brief
    if missing:
        condition = make_condition(ConditionType.NODE_MARKED, False, now, reason=Reason.NODE_NOT_REACHED, message=missing, severity="Warning")
        return NodeMetadata(given.joined_with(wanted), condition, POLL)
    return NodeMetadata(wanted, settled)


async def _patch_node(kube: Kube, host: ByoHost, given: LabelsAndTaints, wanted: LabelsAndTaints, clients: WorkloadClients) -> str:
    """Patch the node; returns what is missing for it, "" when it is as wanted.

    Raises:
        KubeError: one of the two clusters can't be reached, or refuses.
    """
    found = await kube.get(BYO_MACHINE, host.spec.machine_ref.name, host.namespace)
    machine = ByoMachine.of(found or {})
    if machine.uid != wanted.machine:
        return "the machine that holds it is not there"
    cluster = machine.cluster_name
    async with workload_cluster(kube, host.namespace, cluster, clients) as client:
        if client is None:
            return f"cluster {cluster} has no kubeconfig"
        node = await client.get(NODE, host.name)
        if node is None or (node.get("spec") or {}).get("providerID") != provider_id(host.namespace, host.name, wanted.machine):
            return f"cluster {cluster} does not have the node yet"
        if patch := node_patch(node, given, wanted):
            await client.merge(NODE, host.name, None, patch)
    return ""
