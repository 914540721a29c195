"""Approves the serving certificates of a cluster's kubelets, so that who reads metrics or logs can verify them by the cluster's CA.

Kubernetes leaves this to the provider of the machines: only it knows which addresses a node has. Nothing tells us of a request, so the cluster is asked:
often while hosts join, since until then their kubelets serve neither logs nor metrics, and rarely afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import structlog

from ckp.api.kinds import CSR
from ckp.api.objects.byo_host import ByoHost
from ckp.api.states import ConditionType, HostPhase
from ckp.clients.kube import Kube, KubeError, Obj
from ckp.controllers.events import emit
from ckp.controllers.scope import cluster_name, deleting
from ckp.controllers.workload import WorkloadClients, workload_cluster
from ckp.kits.clock import Clock
from ckp.kits.errors import CkpError
from ckp.rules.events import Transition
from ckp.rules.kubelet_certificates import Member, is_pending, node_of, normal, objection
from ckp.runtime.controller import Result
from ckp.runtime.informer import Informer

log = structlog.get_logger()
OFTEN, RARELY = 3.0, 120.0
JOINS_WITHIN = 300.0
"""Seconds after a host's join in which its kubelet asks."""
WITH_A_KUBELET = (HostPhase.JOINING, HostPhase.CHECKING, HostPhase.JOINED)
REASON = "HostOfTheCluster"
Key = tuple[str, str]


@dataclass
class ServingCertificatesReconciler:
    """One pass over one cluster's requests, if it is time for one.

    Args:
        planes: the control planes that are reconciled.
        hosts: all hosts.
        machines: the ByoMachines, which tell a host's cluster; what a host itself reports of its cluster is not believed.
    """

    kube: Kube
    clock: Clock
    planes: Informer
    hosts: Informer
    machines: Informer
    clients: WorkloadClients = field(default_factory=WorkloadClients)
    _joined: dict[Key, dict[str, float]] = field(default_factory=dict)
    _due: dict[Key, float] = field(default_factory=dict)

    async def reconcile(self, namespace: str, name: str) -> Result:
        """One pass."""
        plane, key = self.planes.get(namespace, name), (namespace, name)
        if plane is None or deleting(plane):
            self._joined.pop(key, None)
            self._due.pop(key, None)
            return Result()
        hosts = self._hosts(namespace, cluster_name(plane))
        now = self.clock.monotonic()
        before = self._joined.get(key, {})
        joined = {uid: before.get(uid, now) for uid, host in hosts.items() if host.status.observed.phase in WITH_A_KUBELET}
        self._joined[key] = joined
        if not joined:
            return Result()
        due = self._due.get(key, now)
        if now < due and joined.keys() <= before.keys():
            return Result(after=due - now)
        try:
            async with workload_cluster(self.kube, namespace, cluster_name(plane), self.clients) as client:
                if client is not None:
                    await self._decide(client, plane, {host.name: host for host in hosts.values()})
        except KubeError as error:
            log.info("kubelets' requests for certificates can't be read", cluster=f"{namespace}/{cluster_name(plane)}", error=error.brief)
        after = OFTEN if any(now - at < JOINS_WITHIN for at in joined.values()) else RARELY
        self._due[key] = now + after
        return Result(after=after)

    def _hosts(self, namespace: str, cluster: str) -> dict[str, ByoHost]:
        """The hosts that machines of this cluster hold, by the uid of the machine."""
        found: dict[str, ByoHost] = {}
        for obj in self.hosts.all(namespace):
            reference = (obj.get("spec") or {}).get("machineRef") or {}
            machine = self.machines.get(namespace, str(reference.get("name") or ""))
            if machine and machine["metadata"].get("uid") == reference.get("uid") and cluster_name(machine) == cluster:
                try:
                    found[str(reference.get("uid"))] = ByoHost.of(obj)
                except CkpError as error:
                    log.warning("this host's kubelet gets no certificate", host=obj["metadata"]["name"], error=error.brief)
        return found

    async def _decide(self, client: Kube, plane: Obj, hosts: Mapping[str, ByoHost]) -> None:
        """Approve what is a host's own. What is not is left, and said: a host whose address has just changed is believed once it has reported that."""
        members = {name: _member(host) for name, host in hosts.items()}
        for request in filter(is_pending, await client.list(CSR)):
            if said := objection(request, members):
                await self._emit(plane, hosts.get(node_of(request)), request, said)
                continue
            message = f"its name and addresses are those of host {node_of(request)}"
            try:
                await client.approve(request, reason=REASON, message=message)
            except KubeError as error:
                if error.code not in (404, 409):  # gone, or somebody else decided: the next pass sees what
                    raise

    async def _emit(self, plane: Obj, host: ByoHost | None, request: Obj, said: str) -> None:
        """Once for a request and what is wrong with it, as of when it was made."""
        about = self.hosts.get(host.namespace, host.name) if host else None
        request_meta = request["metadata"]
        message = f"cluster {cluster_name(plane)}: the request {request_meta['name']} for a kubelet's serving certificate is not approved: {said}"
        made = str(request_meta.get("creationTimestamp") or "")
        transition = Transition(f"request {request_meta.get('uid')}", said, "KubeletCertificateNotApproved", message, warning=True, since=made)
        await emit(self.kube, self.clock, about or plane, transition)


def _member(host: ByoHost) -> Member:
    """By what the host reports of its addresses. Where the hub sees it is not asked: behind a translation of addresses that is another machine's."""
    facts = host.status.facts
    addresses = frozenset(filter(None, map(normal, [*facts.addresses, facts.default_address])))
    return Member(host.name, addresses, online=not host.condition(ConditionType.AGENT_CONNECTED).is_false)
