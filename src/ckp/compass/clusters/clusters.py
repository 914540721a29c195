"""Clusters: creating, showing, scaling and deleting them. Their state is in Kubernetes; nothing of it is stored here."""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import TypeVar

from ckp.api import kinds, names
from ckp.api.compass.clusters import ClusterChange, ClusterRequest, ClusterView, Timeouts
from ckp.api.kinds import Kind
from ckp.api.names import workers_name
from ckp.api.objects.control_plane import ManagedControlPlane
from ckp.clients.kube import Kube, Obj
from ckp.compass.access.kube_errors import translate_kube_errors
from ckp.compass.access.projects import Namespaces
from ckp.compass.clusters import addresses, networks
from ckp.compass.clusters.backups import ClusterBackups
from ckp.compass.clusters.cert_sans import check as check_cert_sans
from ckp.compass.clusters.manifests import (
    REQUEST_ANNOTATION,
    SERVICE_DOMAIN,
    cluster_objects,
    health_check_timeouts,
    infrastructure_timeouts,
    machine_timeouts,
    request_digest,
)
from ckp.compass.clusters.views import view
from ckp.compass.hosts.groups import group_of_template
from ckp.compass.hosts.hosts import addresses_of, is_claimed, why_not_free
from ckp.compass.identity import Caller, ProjectRef, check_label
from ckp.compass.releases import Releases
from ckp.compass.settings import Reserved
from ckp.compass.store.database import Database
from ckp.kits.clock import Clock, rfc3339
from ckp.kits.errors import CkpError, Conflict, InvalidInput, NotFound
from ckp.rules import pod_network
from ckp.rules.claims import Networks, Wanted, cluster_networks
from ckp.rules.endpoints import server_addresses, server_names
from ckp.rules.leaving import is_going

T = TypeVar("T")

MAX_NAME = 40
"""Names of Machines, nodes and Secrets are made from a cluster's name with suffixes, and must stay below 63."""
MAX_WORKERS = 5000
"""Upstream's limit of nodes for one cluster."""


@dataclass(frozen=True)
class _Capacity:
    """A group's hosts, and what is left of them for one cluster."""

    hosts: list[Obj]
    everyone: list[Obj]
    """The hosts of the whole project."""
    taken: dict[str, str]
    """Those that the cluster cannot have, with the reason."""
    promised: dict[str, int]
    """Free hosts that other clusters of the group asked for and have not claimed yet."""
    own: int
    """Hosts that the cluster itself holds already."""


@translate_kube_errors
class Clusters:
    """Use cases around clusters.

    Args:
        reserved: networks that no cluster may use.
    """

    def __init__(
        self,
        database: Database,
        kube: Kube,
        namespaces: Namespaces,
        releases: Releases,
        clock: Clock,
        reserved: Sequence[Reserved] = (),
        backups: ClusterBackups | None = None,
    ) -> None:
        self._database = database
        self._kube = kube
        self._namespaces = namespaces
        self._releases = releases
        self._clock = clock
        self._reserved = tuple(reserved)
        self._backups = backups or ClusterBackups(database, kube, namespaces, clock)

    async def create(self, caller: Caller, project: ProjectRef, spec: ClusterRequest) -> ClusterView:
        """Check a request and apply its objects. After an interruption, the same request again completes it.

        Raises:
            InvalidInput, NotFound, Conflict: the request cannot be fulfilled; nothing was changed.
        """
        cni_version = self._check(spec)
        _check_new_cert_sans(project, spec)
        # Two requests at once must not get the same free hosts (see also _Capacity.promised), nor the same address: those are the site's.
        async with self._database.exclusive(f"hosts of {project.namespace}", *(["addresses"] if spec.address else [])) as held:
            existing = await self._namespaces.get(kinds.CLUSTER, spec.name, project)
            if existing:
                await self._check_unfinished(existing, spec, cni_version, project)
            capacity = await self._capacity(project, spec.host_group, spec.name, spec.version)
            self._check_hosts(spec, capacity)
            await self._check_address(project, spec)
            requested_at = ((existing or {}).get("metadata", {}).get("annotations") or {}).get(names.REQUESTED_AT_ANNOTATION, rfc3339(self._clock.now()))
            await self._namespaces.ensure(project)
            await held.require()
            make = {"namespace": project.namespace, "labels": project.labels, "requested_at": requested_at}
            cluster = await self._kube.apply(cluster_objects(spec, cni_version, **make)[0])
            made = [await self._kube.apply(obj) for obj in cluster_objects(spec, cni_version, **make, cluster_uid=cluster["metadata"]["uid"])[1:]]
            async with self._database.unit() as unit:
                detail = {"version": spec.version, "workers": spec.workers, "hostGroup": spec.host_group}
                unit.audit(caller, project, "cluster.create", spec.name, detail)
        # From the answers, not read again: a read that fails now would report a failure although the cluster exists.
        return _assemble(cluster, [[obj for obj in made if obj["kind"] == kind.kind] for kind in _PARTS])

    async def check(self, project: ProjectRef, spec: ClusterRequest) -> list[CkpError]:
        """All that `create` would refuse, each part judged by itself as far as it can be. Nothing is changed, and no host is promised."""
        refusals: list[CkpError] = []

        def judge(part: Callable[[], T]) -> T | None:
            try:
                return part()
            except InvalidInput as error:
                refusals.append(error)
                return None

        judge(lambda: _check_name(spec.name))
        judge(lambda: check_label("hostGroup", spec.host_group))
        judge(lambda: _check_workers(spec.workers))
        judge(lambda: _check_replicas(spec))
        cni_version = judge(lambda: self._check_release(spec))
        own_networks = judge(lambda: self._check_networks(spec))
        if own_networks is not None:
            judge(lambda: _check_new_cert_sans(project, spec))
        if (existing := await self._namespaces.get(kinds.CLUSTER, spec.name, project)) is not None:
            try:
                await self._check_unfinished(existing, spec, cni_version or "", project)
            except Conflict as error:
                refusals.append(error)
        try:
            capacity = await self._capacity(project, spec.host_group, spec.name, spec.version)
        except InvalidInput as error:
            refusals.append(error)
        else:
            judge(lambda: _check_enough(spec.host_group, spec.workers, capacity))
            if own_networks is not None:
                judge(lambda: self._check_host_addresses(spec, capacity))
        if own_networks is not None:
            try:
                await self._check_address(project, spec)
            except InvalidInput as error:
                refusals.append(error)
        return refusals

    async def list(self, project: ProjectRef) -> list[ClusterView]:
        """All clusters of a project, by name."""
        clusters = await self._namespaces.list(kinds.CLUSTER, project)
        parts = [await self._namespaces.list(kind, project) for kind in _PARTS]
        return sorted((_assemble(cluster, parts) for cluster in clusters), key=lambda cluster: cluster.name)

    async def get(self, project: ProjectRef, name: str) -> ClusterView:
        """One cluster with its steps, conditions and machines."""
        cluster = await self._require(project, name)
        labels = {names.CLUSTER_NAME_LABEL: name}
        return _assemble(cluster, [await self._namespaces.list(kind, project, labels=None if kind is kinds.BYO_HOST else labels) for kind in _PARTS])

    async def change(self, caller: Caller, project: ProjectRef, name: str, change: ClusterChange) -> ClusterView:
        """Apply what the change sets, field by field; one that is refused leaves those before it applied."""
        changes = [part for part in (change.timeouts, change.backup) if part is not None and part.model_fields_set]
        if change.workers is None and change.cert_sans is None and not changes:
            raise InvalidInput("the body changes nothing", resolution="give workers, timeouts, certSANs or backup")
        if change.cert_sans is not None:
            await self.set_cert_sans(caller, project, name, change.cert_sans)
        if change.timeouts is not None:
            await self.set_timeouts(caller, project, name, change.timeouts)
        if change.backup is not None and change.backup.model_fields_set:
            await self._backups.set(caller, project, name, change.backup)
        if change.workers is not None:
            await self.scale(caller, project, name, change.workers)
        return await self.get(project, name)

    async def set_timeouts(self, caller: Caller, project: ProjectRef, name: str, timeouts: Timeouts) -> None:
        """Change those timeouts that are set, for the workers that are there, those that are leaving, and those to come. No worker is replaced for it.

        Raises:
            Conflict: the cluster is being deleted, or its objects are not all there; nothing was changed.
        """
        fields = timeouts.model_fields_set
        cluster = await self._require(project, name)
        check, deployment, infrastructure = (make(timeouts, fields) for make in (health_check_timeouts, machine_timeouts, infrastructure_timeouts))
        if is_going(cluster) and (check or infrastructure):
            raise Conflict(f"cluster {name} is being deleted", resolution="its timeouts drain, volumeDetach and nodeDeletion can still be set")
        parts = ((kinds.MACHINE_HEALTH_CHECK, workers_name(name), check), (kinds.MACHINE_DEPLOYMENT, workers_name(name), deployment))
        for kind, part, changes in (*parts, (kinds.BYO_CLUSTER, name, infrastructure)):
            if changes and not is_going(cluster) and await self._namespaces.get(kind, part, project) is None:
                raise Conflict(f"cluster {name} has no {kind.kind} {part}", resolution="it was removed by hand, or its creation was interrupted")
        if check:
            await self._kube.merge(kinds.MACHINE_HEALTH_CHECK, workers_name(name), project.namespace, {"spec": check})
        if infrastructure:
            await self._kube.merge(kinds.BYO_CLUSTER, name, project.namespace, {"spec": infrastructure})
        if deployment:
            if not is_going(cluster):
                await self._kube.merge(kinds.MACHINE_DEPLOYMENT, workers_name(name), project.namespace, {"spec": {"template": {"spec": deployment}}})
            # Cluster API no longer brings it to those that are being deleted (v1.7.7: MachineSet, syncMachines), which wait the longest.
            for machine in await self._namespaces.list(kinds.MACHINE, project, labels={names.CLUSTER_NAME_LABEL: name}):
                if machine["metadata"].get("deletionTimestamp"):
                    await self._kube.merge(kinds.MACHINE, machine["metadata"]["name"], project.namespace, {"spec": deployment})
        if fields:
            async with self._database.unit() as unit:
                unit.audit(caller, project, "cluster.set", name, timeouts.model_dump(mode="json", include=fields))

    async def set_cert_sans(self, caller: Caller, project: ProjectRef, name: str, cert_sans: Sequence[str]) -> None:
        """Change the further names and addresses in the API server's certificate, all of them: the controllers have it issued again, and it is taken up.

        Raises:
            InvalidInput: a certificate can't have them.
            Conflict: the cluster is being deleted, or has no control plane object. Nothing was changed.
        """
        cluster = await self._require(project, name)
        if is_going(cluster):
            raise Conflict(f"cluster {name} is being deleted")
        found = await self._namespaces.get(kinds.MANAGED_CONTROL_PLANE, name, project)
        if found is None:
            raise Conflict(f"cluster {name} has no ManagedControlPlane {name}", resolution="it was removed by hand, or its creation was interrupted")
        spec, network = ManagedControlPlane.of(found).spec, cluster["spec"].get("clusterNetwork") or {}
        ranges = (network.get("services") or {}).get("cidrBlocks") or ()
        own = [*server_names(name, project.namespace, str(network.get("serviceDomain") or SERVICE_DOMAIN)), *(server_addresses(ranges[0]) if ranges else ())]
        check_cert_sans(cert_sans, present={*own, spec.control_plane_endpoint.host, spec.load_balancer.address})
        await self._kube.merge(kinds.MANAGED_CONTROL_PLANE, name, project.namespace, {"spec": {"certSANs": list(cert_sans)}})
        async with self._database.unit() as unit:
            unit.audit(caller, project, "cluster.set", name, {"certSANs": list(cert_sans)})

    async def scale(self, caller: Caller, project: ProjectRef, name: str, workers: int) -> None:
        """Change the number of workers.

        Raises:
            InvalidInput, Conflict: there are too few free hosts, or no room in the pod network; nothing was changed.
        """
        _check_workers(workers)
        async with self._database.exclusive(f"hosts of {project.namespace}") as held:
            cluster = await self._require(project, name)
            if is_going(cluster):
                raise Conflict(f"cluster {name} is being deleted")
            current = await self.get(project, name)
            capacity = await self._capacity(project, current.host_group, name, current.version, cluster_networks(cluster))
            _check_enough(current.host_group, workers, capacity)
            if current.pod_cidr and workers > current.workers:
                _check_room(current, workers)
            await held.require()
            await self._kube.merge(kinds.MACHINE_DEPLOYMENT, workers_name(name), project.namespace, {"spec": {"replicas": workers}})
            async with self._database.unit() as unit:
                detail = {"from": current.workers, "to": workers}
                unit.audit(caller, project, "cluster.scale", name, detail)

    async def resume_replacement(self, caller: Caller, project: ProjectRef, name: str) -> ClusterView:
        """Let the controllers go on with replacing unhealthy workers by themselves: what failed before does not count any more.

        Raises:
            Conflict: the cluster has no ByoCluster, so that nothing is replaced.
        """
        await self._require(project, name)
        if await self._namespaces.get(kinds.BYO_CLUSTER, name, project) is None:
            raise Conflict(f"cluster {name} has no ByoCluster {name}", resolution="it was removed by hand, or its creation was interrupted")
        resumed = {names.RESUMED_ANNOTATION: rfc3339(self._clock.now())}
        await self._kube.merge(kinds.BYO_CLUSTER, name, project.namespace, {"metadata": {"annotations": resumed}})
        async with self._database.unit() as unit:
            unit.audit(caller, project, "cluster.resume-replacement", name)
        return await self.get(project, name)

    async def delete(self, caller: Caller, project: ProjectRef, name: str, *, force: bool = False) -> None:
        """Request a cluster's deletion: the controllers drain and clean its workers, then delete it. Idempotent.

        Args:
            force: nothing is drained, no volume is waited for, and no host that does not answer; also of a deletion that goes on already.
        """
        cluster = await self._require(project, name)
        asked = dict.fromkeys((names.DELETE_REQUESTED_ANNOTATION, *((names.FORCE_DELETE_ANNOTATION,) if force else ())), rfc3339(self._clock.now()))
        for key in (cluster["metadata"].get("annotations") or {}).keys() & asked.keys():
            del asked[key]  # it counts from the first time
        if asked:
            await self._kube.merge(kinds.CLUSTER, name, project.namespace, {"metadata": {"annotations": asked}})
        async with self._database.unit() as unit:
            unit.audit(caller, project, "cluster.delete", name, {"force": True} if force else None)

    async def kubeconfig(self, caller: Caller, project: ProjectRef, name: str) -> str:
        """The administrator's kubeconfig, as the control plane provider stores it (contract: Secret `<c>-kubeconfig`, key `value`)."""
        cluster = await self._require(project, name)
        secret = await self._namespaces.get(kinds.SECRET, f"{name}-kubeconfig", project)
        value = ((secret or {}).get("data") or {}).get("value")
        if not value:
            raise NotFound(
                f"cluster {name} has no kubeconfig yet",
                details=str((cluster.get("status") or {}).get("phase", "")),
                resolution=f"its control plane is not up: see ckp cluster describe {name}",
            )
        async with self._database.unit() as unit:
            unit.audit(caller, project, "cluster.kubeconfig", name)
        return base64.b64decode(value).decode()

    # Checks.

    def _check(self, request: ClusterRequest) -> str:
        """Everything that can be checked without reading objects; gives the version of the network plugin."""
        _check_name(request.name)
        check_label("hostGroup", request.host_group)
        _check_workers(request.workers)
        _check_replicas(request)
        cni_version = self._check_release(request)
        self._check_networks(request)
        return cni_version

    async def _check_address(self, project: ProjectRef, spec: ClusterRequest) -> None:
        """That the address that is asked for, if one is, can be had."""
        if spec.address:
            among = self._releases.host_addresses()
            await addresses.check_free(self._kube, spec.address, namespace=project.namespace, cluster=spec.name, among=among)

    def _check_release(self, request: ClusterRequest) -> str:
        """The version of the network plugin."""
        try:
            release = self._releases.get(request.version)
        except NotFound as error:
            # Named in a field of the body, an unknown release is a bad request, not a missing page.
            raise InvalidInput(error.brief, details=error.details, resolution=error.resolution) from None
        offered: dict[str, str] = {**release["cni"], "none": ""}
        if request.cni not in offered:
            raise InvalidInput(f"cni: {request.cni!r} is not offered with {request.version}", resolution=f"take one of: {', '.join(sorted(offered))}")
        return offered[request.cni]

    def _check_networks(self, request: ClusterRequest) -> tuple[IPv4Network, IPv4Network]:
        pods, services = networks.check_networks(request.pod_cidr, request.service_cidr, workers=request.workers, reserved=self._reserved, host_addresses=())
        if request.address:
            networks.check_address(request.address, [("podCIDR", pods), ("serviceCIDR", services)])
        return pods, services

    async def _check_unfinished(self, existing: Obj, spec: ClusterRequest, cni_version: str, project: ProjectRef) -> None:
        """Pass only if the Cluster was made by this same request, and not all of its objects exist.

        Raises:
            Conflict: it was made by another request, is complete, or is being deleted.
        """
        if is_going(existing):
            raise Conflict(f"a cluster named {spec.name} is still being deleted", resolution=f"wait for it: ckp cluster delete {spec.name} --wait")
        if (existing["metadata"].get("annotations") or {}).get(REQUEST_ANNOTATION) == request_digest(spec, cni_version):
            for kind, name in _COMPLETE:
                if await self._namespaces.get(kind, name(spec.name), project) is None:
                    return
        raise Conflict(f"a cluster named {spec.name} exists already", resolution="choose another name, or delete it first")

    def _check_hosts(self, spec: ClusterRequest, capacity: _Capacity) -> None:
        _check_enough(spec.host_group, spec.workers, capacity)
        self._check_host_addresses(spec, capacity)

    def _check_host_addresses(self, spec: ClusterRequest, capacity: _Capacity) -> None:
        of_hosts = [(host["metadata"]["name"], address) for host in capacity.hosts for address in addresses_of(host)]
        networks.check_networks(spec.pod_cidr, spec.service_cidr, workers=spec.workers, reserved=self._reserved, host_addresses=of_hosts)
        of_anyone = ((host["metadata"]["name"], address) for host in capacity.everyone for address in addresses_of(host))
        if spec.address and (owner := next((host for host, address in of_anyone if address.partition("/")[0] == spec.address), "")):
            raise InvalidInput(f"address: {spec.address} is the address of host {owner}", resolution="take a free address of the hosts' network")

    async def _capacity(self, project: ProjectRef, group: str, cluster: str, version: str, networks: Networks = ()) -> _Capacity:
        """Which hosts of a group a cluster can have; `networks`: those that no host of it may have an address in."""
        async with self._database.reading() as unit:
            if await unit.host_group(project, group) is None:
                known = [row.name for row in await unit.host_groups(project)]
                raise InvalidInput(
                    f"hostGroup: there is no host group {group!r}",
                    resolution=f"take one of: {', '.join(known)}" if known else "create one: ckp hostgroup create",
                )
        everyone = await self._namespaces.list(kinds.BYO_HOST, project)
        hosts = [host for host in everyone if names.group_label(group) in (host["metadata"].get("labels") or {})]
        claims = {str(host["spec"]["machineRef"].get("name")) for host in everyone if is_claimed(host)}
        claimed: defaultdict[str, int] = defaultdict(int)
        for machine in await self._namespaces.list(kinds.BYO_MACHINE, project):
            if machine["metadata"]["name"] in claims:
                claimed[_cluster_of(machine)] += 1
        drawing = {_cluster_of(t) for t in await self._namespaces.list(kinds.BYO_MACHINE_TEMPLATE, project) if group_of_template(t) == group}
        promised: defaultdict[str, int] = defaultdict(int)
        for deployment in await self._namespaces.list(kinds.MACHINE_DEPLOYMENT, project):
            owner = _cluster_of(deployment)
            if owner in drawing and owner != cluster and not deployment["metadata"].get("deletionTimestamp"):
                promised[owner] += deployment["spec"].get("replicas", 1)
        waiting = {name: count - claimed[name] for name, count in promised.items() if count > claimed[name]}
        wanted = Wanted(release=version, systems=self._systems(version), networks=networks)
        reasons = {host["metadata"]["name"]: why_not_free(host, wanted) for host in hosts}
        return _Capacity(hosts, everyone, {name: why for name, why in reasons.items() if why}, waiting, claimed[cluster])

    def _systems(self, version: str) -> frozenset[str]:
        """The operating systems that the release can be installed on; none for a release that is no longer known: its machines report that."""
        return frozenset(self._releases.get(version).get("os") or ()) if version in self._releases.names() else frozenset()

    async def _require(self, project: ProjectRef, name: str) -> Obj:
        found = await self._namespaces.get(kinds.CLUSTER, name, project)
        if found is None:
            raise NotFound(f"there is no cluster {name} in {project}", resolution="list them: ckp cluster list")
        return found


_PARTS: tuple[Kind, ...] = (
    kinds.MANAGED_CONTROL_PLANE,
    kinds.MACHINE_DEPLOYMENT,
    kinds.MACHINE,
    kinds.BYO_MACHINE_TEMPLATE,
    kinds.MACHINE_HEALTH_CHECK,
    kinds.BYO_CLUSTER,
    kinds.BYO_HOST,
)
_COMPLETE = (
    (kinds.MANAGED_CONTROL_PLANE, str),
    (kinds.BYO_CLUSTER, str),
    (kinds.BYO_MACHINE_TEMPLATE, workers_name),
    (kinds.KUBEADM_CONFIG_TEMPLATE, workers_name),
    (kinds.MACHINE_HEALTH_CHECK, workers_name),
    (kinds.MACHINE_DEPLOYMENT, workers_name),
)


def _assemble(cluster: Obj, parts: list[list[Obj]]) -> ClusterView:
    """The view of a cluster from objects of the kinds of _PARTS, of this and other clusters."""
    name = cluster["metadata"]["name"]
    planes, deployments, machines, templates, checks, infrastructures = ([obj for obj in objs if _cluster_of(obj) == name] for objs in parts[:6])
    return view(
        cluster,
        infrastructure=next(iter(infrastructures), None),
        control_plane=next(iter(planes), None),
        deployment=next(iter(deployments), None),
        template=next(iter(templates), None),
        health_check=next((check for check in checks if check["metadata"]["name"] == workers_name(name)), None),
        machines=machines,
        hosts=parts[6],
    )


def _cluster_of(obj: Obj) -> str:
    return str((obj["metadata"].get("labels") or {}).get(names.CLUSTER_NAME_LABEL, ""))


def _check_new_cert_sans(project: ProjectRef, spec: ClusterRequest) -> None:
    own = [*server_names(spec.name, project.namespace, SERVICE_DOMAIN), *server_addresses(spec.service_cidr)]
    check_cert_sans(spec.cert_sans, present={*own, spec.address})


def _check_name(name: str) -> None:
    check_label("name", name, limit=MAX_NAME)
    if not name[0].isalpha():
        raise InvalidInput(f"name: {name!r} begins with a digit", resolution="begin with a letter: services are named after it")


def _check_replicas(request: ClusterRequest) -> None:
    if request.control_plane.replicas != 1:
        raise InvalidInput(
            f"controlPlane.replicas: {request.control_plane.replicas} is not supported, only 1",
            details="etcd runs as one member, so that more API servers would not make the control plane highly available",
            resolution="leave it out, or use 1",
        )


def _check_workers(workers: int) -> None:
    if not 1 <= workers <= MAX_WORKERS:
        raise InvalidInput(f"workers: {workers} is not between 1 and {MAX_WORKERS}")


def _check_room(cluster: ClusterView, workers: int) -> None:
    """Pass if the pod network, which can't be changed any more, has room for more workers."""
    try:
        networks.check_networks(cluster.pod_cidr, cluster.service_cidr, workers=workers, reserved=(), host_addresses=())
    except InvalidInput as error:
        most = pod_network.room(networks.parse_cidr("podCIDR", cluster.pod_cidr)) - networks.SPARE
        more = f"this cluster can have {max(most, 0)} workers" if most > cluster.workers else "this cluster has as many workers as it can have"
        raise InvalidInput(error.brief, details=error.details, resolution=f"{more}: make another with a larger pod network") from None


def _check_enough(group: str, workers: int, capacity: _Capacity) -> None:
    """As many free hosts as are still needed, beside those that other clusters of the group wait for."""
    needed = workers - capacity.own
    available = len(capacity.hosts) - len(capacity.taken) - sum(capacity.promised.values())
    if needed <= available:
        return
    reasons = [f"{name}: {why}" for name, why in capacity.taken.items()]
    reasons += [f"{count} of the free hosts are promised to cluster {name}" for name, count in sorted(capacity.promised.items())]
    raise InvalidInput(
        f"workers: host group {group} has {max(available, 0)} free host{'' if available == 1 else 's'}, and {needed} {'is' if needed == 1 else 'are'} needed",
        details="\n".join(reasons),
        resolution=f"put more hosts into the group (ckp hostgroup add {group} HOST...), or ask for fewer workers",
    )
