"""What is read of a cluster before and while it is upgraded: its machines with their nodes, and what stands against the upgrade."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from ckp.api.host_protocol import UPGRADE_NODE
from ckp.api.kinds import (
    BYO_HOST,
    BYO_MACHINE,
    CERTIFICATE,
    CLUSTER_UPGRADE,
    DEPLOYMENT,
    ENDPOINT_SLICE,
    MACHINE,
    MUTATING_WEBHOOK,
    NODE,
    PDB,
    VALIDATING_WEBHOOK,
)
from ckp.api.names import CLUSTER_NAME_LABEL, DEPLOYMENT_NAME_LABEL, UPGRADE_CORDON_ANNOTATION
from ckp.api.objects.base import time_of
from ckp.api.objects.byo_host import ByoHost
from ckp.api.objects.byo_machine import ByoMachine
from ckp.api.objects.cluster_upgrade import ClusterUpgrade
from ckp.api.objects.control_plane import ManagedControlPlane
from ckp.api.platform import Releases
from ckp.api.states import ConditionType
from ckp.clients.kube import Kube, KubeError, Obj
from ckp.controllers.scope import deleting
from ckp.controllers.workload import WorkloadClients, workload_cluster
from ckp.rules.addons import requested
from ckp.rules.claims import candidate
from ckp.rules.conditions import is_true
from ckp.rules.upgrade_checks import TROUBLE, Facts, NodeFacts, deprecated_apis
from ckp.rules.upgrade_options import Used, of_command, of_configz
from ckp.rules.upgrades import path

AT_ONCE = 50
"""So many kubelets are asked for their configuration at the same time; each has as long as any request to a workload cluster (workload.SECONDS)."""


@dataclass(frozen=True)
class Member:
    """A worker: its Machine, its ByoMachine, and what is known of its node."""

    machine: str
    byo: ByoMachine
    facts: NodeFacts
    asked: str
    """Machine.spec.version."""
    kubelet_flags: Sequence[str] = ()
    """Names of the flags that the host's owner gives the kubelet; none from an agent that does not say them."""

    @property
    def name(self) -> str:
        """The node's name, which is its host's; the Machine's while it has none."""
        return self.facts.name


async def members(kube: Kube, namespace: str, cluster: str) -> list[Member]:
    """The workers of a cluster that are not being deleted.

    Raises:
        KubeError: they can't be read.
    """
    labels = {CLUSTER_NAME_LABEL: cluster}
    machines, byo, hosts = await asyncio.gather(
        kube.list(MACHINE, namespace, labels=labels), kube.list(BYO_MACHINE, namespace, labels=labels), kube.list(BYO_HOST, namespace)
    )
    by_name = {item["metadata"]["name"]: item for item in byo}
    hosts_by_name = {item["metadata"]["name"]: ByoHost.of(item) for item in hosts}
    found = []
    for machine in machines:
        of = by_name.get(machine["spec"]["infrastructureRef"]["name"])
        if of is None or deleting(machine):
            continue
        byo_machine = ByoMachine.of(of)
        host = hosts_by_name.get(byo_machine.status.host_ref.name)
        status = machine.get("status") or {}
        facts = NodeFacts(
            name=byo_machine.status.host_ref.name or machine["metadata"]["name"],
            pool=str((machine["metadata"].get("labels") or {}).get(DEPLOYMENT_NAME_LABEL, "")),
            kubelet=str((status.get("nodeInfo") or {}).get("kubeletVersion") or ""),
            system=candidate(host).system if host else "",
            ready=bool(status.get("nodeRef")) and is_true(machine, ConditionType.NODE_HEALTHY),
            online=bool(host and host.status.agent.connected),
            old_agent="" if host is None or UPGRADE_NODE in host.status.facts.features else host.status.agent.version or "of an unknown version",
            free=host.status.facts.disk_free_bytes if host and host.status.facts.disk_bytes else None,
        )
        found.append(
            Member(machine["metadata"]["name"], byo_machine, facts, str(machine["spec"].get("version") or ""), host.status.facts.kubelet_flags if host else ())
        )
    return sorted(found, key=lambda member: member.name)


def chosen(upgrade: ClusterUpgrade, workers: Sequence[Member]) -> list[Member]:
    """Those that the upgrade is of."""
    spec = upgrade.spec
    return [worker for worker in workers if (not spec.pools or worker.facts.pool in spec.pools) and (not spec.nodes or worker.name in spec.nodes)]


async def read(
    kube: Kube, clients: WorkloadClients, releases: Releases, upgrade: ClusterUpgrade, plane: ManagedControlPlane, workers: Sequence[Member], backup: str = ""
) -> Facts:
    """All that the checks need.

    Args:
        backup: why there is no backup as new as an upgrade asks for (backups.missing).

    Raises:
        KubeError: the management cluster can't be read.
    """
    spec, current = upgrade.spec, plane.status.version
    way = path(current, spec.version, releases.releases)
    steps = [*way.steps, *([spec.version] if not way.steps else [])]
    selected = chosen(upgrade, workers)
    there = {worker.facts.pool for worker in workers} | {worker.name for worker in workers}
    workload, unseen = _Workload(), ""
    nodes: dict[str, Obj] = {}
    kubelets: list[Used] = []
    unseen_options: list[tuple[str, str]] = []
    try:
        async with workload_cluster(kube, upgrade.namespace, spec.cluster_name, clients) as client:
            if client is None:
                unseen = "it has no kubeconfig yet"
            else:
                workload, (kubelets, unseen_options), found = await asyncio.gather(_workload(client), _kubelets(client, selected), client.list(NODE))
                nodes = {item["metadata"]["name"]: item for item in found}
    except KubeError as error:
        unseen = error.brief
    return Facts(
        current=current,
        wanted=spec.version,
        path=way,
        releases={name: tuple(release.bundles) for name, release in releases.releases.items()},
        nodes=[_seen(worker, nodes.get(worker.name), spec.version) for worker in selected],
        left=[worker.facts for worker in workers if worker not in selected],
        plane=_plane(plane),
        etcd=_untrue(plane, ConditionType.ETCD_READY),
        etcd_space=_untrue(plane, ConditionType.ETCD_SPACE_AVAILABLE),
        addons=_addons(plane, releases, steps),
        unseen=unseen,
        unknown=[name for name in (*spec.pools, *spec.nodes) if name not in there],
        budgets=workload.budgets,
        webhooks=workload.webhooks,
        deprecated=deprecated_apis(workload.metrics),
        backup=backup,
        certificates=await _certificates(kube, upgrade.namespace, spec.cluster_name),
        options={name: release.options for name, release in releases.releases.items()},
        control_plane=await _control_plane(kube, plane),
        kubelets=kubelets,
        unseen_options=unseen_options,
        other=await _other(kube, upgrade),
    )


def _plane(plane: ManagedControlPlane) -> str:
    ready = plane.condition(ConditionType.READY)
    return "" if plane.status.ready and ready.is_true else ready.message or "it was not ready yet"


def _untrue(plane: ManagedControlPlane, kind: ConditionType) -> str:
    condition = plane.condition(kind)
    return condition.message or condition.reason or f"{kind} is {condition.status}" if condition.status and not condition.is_true else ""


def _addons(plane: ManagedControlPlane, releases: Releases, steps: Sequence[str]) -> list[tuple[str, str]]:
    """Addons whose chart a release on the way does not have: the catalog's matrix decides what a release is made of."""
    wanted = [request.name for request in requested(plane.spec)]
    return [(name, step) for step in steps if step in releases.releases for name in wanted if name not in releases.releases[step].cni]


def _seen(worker: Member, node: Obj | None, wanted: str) -> NodeFacts:
    """With what its Node says, and its ByoMachine."""
    facts = replace(worker.facts, prepared=worker.byo.status.upgrade.prepared_version == wanted)
    if node is None:
        return facts
    spec, ours = node.get("spec") or {}, UPGRADE_CORDON_ANNOTATION in (node["metadata"].get("annotations") or {})
    keys = [str(taint.get("key", "")) for taint in spec.get("taints") or ()]
    taints = [key for key in keys if key.removeprefix("node.kubernetes.io/") in TROUBLE]
    return replace(facts, cordoned=bool(spec.get("unschedulable")) and not ours, taints=taints)


async def _certificates(kube: Kube, namespace: str, cluster: str) -> dict[str, datetime]:
    found = await kube.list(CERTIFICATE, namespace, labels={CLUSTER_NAME_LABEL: cluster})
    ends = {item["metadata"]["name"]: time_of(str((item.get("status") or {}).get("notAfter") or "")) for item in found}
    return {name: end for name, end in ends.items() if end is not None}


async def _other(kube: Kube, upgrade: ClusterUpgrade) -> str:
    """An older upgrade of the same cluster that is not over."""
    all_ = [ClusterUpgrade.of(item) for item in await kube.list(CLUSTER_UPGRADE, upgrade.namespace)]
    before = [item for item in all_ if item.spec.cluster_name == upgrade.spec.cluster_name and _goes_on(item) and _age(item) < _age(upgrade)]
    return min(before, key=_age).name if before else ""


def _goes_on(upgrade: ClusterUpgrade) -> bool:
    return not upgrade.over and not upgrade.spec.dry_run


def _age(upgrade: ClusterUpgrade) -> tuple[str, str]:
    return upgrade.metadata.creation_timestamp, upgrade.name


async def _control_plane(kube: Kube, plane: ManagedControlPlane) -> list[Used]:
    """What the programs of the control plane are started with now, by CKP and by the cluster's settings."""
    names = [f"{plane.name}-{part}" for part in ("apiserver", "controller-manager", "scheduler")]
    found = await asyncio.gather(*(kube.get(DEPLOYMENT, name, plane.namespace) for name in names))
    containers = [container for item in found if item for container in item["spec"]["template"]["spec"]["containers"]]
    return [of_command("control plane", plane.status.version, container["command"]) for container in containers if container.get("command")]


# -- in the workload cluster


async def _kubelets(client: Kube, workers: Sequence[Member]) -> tuple[list[Used], list[tuple[str, str]]]:
    """What kubelets are started with: gates as each says at /configz, flags as its host's agent says. Of nodes that are not Ready there is a finding already.

    /configz is read by the API server's proxy, with the kubeconfig that the controllers have for drains: so no host is given a right for it, and what
    counts is what the kubelet has made of all its files. It does not say flags that are no configuration: the agent does (facts.kubelet_flags).
    """
    limit, seen = asyncio.Semaphore(AT_ONCE), list[Used]()
    unseen: list[tuple[str, str]] = []

    async def read_one(worker: Member) -> None:
        async with limit:
            try:
                found = of_configz(worker.name, worker.facts.kubelet, await client.text(f"/api/v1/nodes/{worker.name}/proxy/configz"))
            except (KubeError, ValueError) as error:
                unseen.append((worker.name, error.brief if isinstance(error, KubeError) else str(error)))
                found = Used(worker.name, "kubelet", worker.facts.kubelet)
        seen.append(replace(found, flags=worker.kubelet_flags))

    await asyncio.gather(*(read_one(worker) for worker in workers if worker.facts.ready and worker.facts.kubelet))
    return sorted(seen, key=lambda used: used.where), sorted(unseen)


@dataclass(frozen=True)
class _Workload:
    budgets: Sequence[tuple[str, str]] = ()
    webhooks: Sequence[tuple[str, str]] = ()
    metrics: str = ""


async def _workload(client: Kube) -> _Workload:
    budgets, validating, mutating, metrics = await asyncio.gather(
        client.list(PDB), client.list(VALIDATING_WEBHOOK), client.list(MUTATING_WEBHOOK), client.text("/metrics")
    )
    configurations = [(kind.kind, item) for kind, items in ((VALIDATING_WEBHOOK, validating), (MUTATING_WEBHOOK, mutating)) for item in items]
    return _Workload([entry for item in budgets if (entry := _budget(item))], await _webhooks(client, configurations), metrics)


def _budget(item: Obj) -> tuple[str, str] | None:
    """A budget that allows no disruption of the pods that it has."""
    status = item.get("status") or {}
    expected = int(status.get("expectedPods") or 0)
    if not expected or int(status.get("disruptionsAllowed") or 0) > 0:
        return None
    healthy, needed = int(status.get("currentHealthy") or 0), int(status.get("desiredHealthy") or 0)
    return f"{item['metadata']['namespace']}/{item['metadata']['name']}", f"{healthy} of {expected} pods are healthy, {needed} have to be"


async def _webhooks(client: Kube, configurations: Sequence[tuple[str, Obj]]) -> list[tuple[str, str]]:
    """Those that are asked fail-closed through a Service without a ready endpoint; of those that are asked by URL nothing is known here."""
    asked: dict[str, set[tuple[str, str]]] = {}
    for kind, item in configurations:
        for webhook in item.get("webhooks") or ():
            service = (webhook.get("clientConfig") or {}).get("service")
            if service and webhook.get("failurePolicy", "Fail") == "Fail":
                asked.setdefault(f"{kind}/{item['metadata']['name']}", set()).add((str(service["namespace"]), str(service["name"])))
    services, limit = sorted({service for of in asked.values() for service in of}), asyncio.Semaphore(AT_ONCE)

    async def reachable(service: tuple[str, str]) -> bool:
        async with limit:
            return await _has_endpoint(client, *service)

    answers = dict(zip(services, await asyncio.gather(*map(reachable, services)), strict=True))
    return sorted((name, "/".join(service)) for name, of in asked.items() for service in sorted(of) if not answers[service])


async def _has_endpoint(client: Kube, namespace: str, name: str) -> bool:
    slices = await client.list(ENDPOINT_SLICE, namespace, labels={"kubernetes.io/service-name": name})
    return any((endpoint.get("conditions") or {}).get("ready") is not False for item in slices for endpoint in item.get("endpoints") or ())
