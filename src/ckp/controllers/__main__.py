"""`python -m ckp.controllers`: all of CKP's controllers in one process, under one lease."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path

import structlog

from ckp.api.host_protocol import RegistryLogin
from ckp.api.kinds import (
    BYO_CLUSTER,
    BYO_HOST,
    BYO_MACHINE,
    BYO_REMEDIATION,
    CLUSTER,
    CLUSTER_UPGRADE,
    DEPLOYMENT,
    JOB,
    MACHINE,
    MANAGED_CONTROL_PLANE,
    SERVICE,
    STATEFUL_SET,
)
from ckp.api.names import SYSTEM_NAMESPACE
from ckp.api.platform import Releases
from ckp.clients.kube import Kube, Obj
from ckp.controllers.addons.reconciler import AddonsReconciler
from ckp.controllers.apply import Applier
from ckp.controllers.controlplane.reconciler import ManagedControlPlaneReconciler
from ckp.controllers.events import EventsReconciler
from ckp.controllers.host_addresses import HostAddressesReconciler, waits
from ckp.controllers.lifecycle.deletion import DeletionReconciler
from ckp.controllers.lifecycle.reconciler import LifecycleReconciler
from ckp.controllers.providers.byo.cluster import ByoClusterReconciler
from ckp.controllers.providers.byo.host import ByoHostReconciler
from ckp.controllers.providers.byo.machine import ByoMachineReconciler
from ckp.controllers.providers.byo.remediation import Remediation
from ckp.controllers.providers.byo.serving_certificates import ServingCertificatesReconciler
from ckp.controllers.scope import cluster_name, owner
from ckp.controllers.settings import Settings
from ckp.controllers.upgrades.reconciler import ClusterUpgradeReconciler
from ckp.controllers.workload import WorkloadClients
from ckp.controllers.workload_health.reconciler import WorkloadHealthReconciler
from ckp.kits.clock import SystemClock
from ckp.kits.errors import CkpError, InvalidInput
from ckp.runtime import logs
from ckp.runtime.controller import Controller
from ckp.runtime.informer import Informer, Key, key_of
from ckp.runtime.lease import LeaderLease, LeaseLost
from ckp.runtime.manager import Manager, identity

log = structlog.get_logger()
MANAGER = "ckp-controllers"


def login_of(file: Path) -> RegistryLogin | None:
    """How hosts log in to the registry, as the site's Secret has it now; None without one.

    Raises:
        InvalidInput: the file is not as `ckp site apply` writes it. It is not quoted.
    """
    try:
        return RegistryLogin.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InvalidInput(f"the login to the registry in {file} can't be read: {type(error).__name__}", resolution="run `ckp site apply`") from None


def build(
    kube: Kube,
    releases: Releases,
    addons_image: str,
    workloads: WorkloadClients,
    login: Callable[[], RegistryLogin | None] = lambda: None,
    *,
    backup_image: str = "",
) -> Manager:
    """The manager with every controller and the objects whose changes wake it.

    Args:
        login: as of ByoHostReconciler.
        workloads: the clients of workload clusters, which the caller closes.
    """
    clock = SystemClock()
    lease = LeaderLease(kube, os.environ.get("POD_NAMESPACE", SYSTEM_NAMESPACE), MANAGER, identity(), connect=lambda: Kube(manager=MANAGER))
    manager = Manager(kube, lease)
    hosts, machines = manager.informer(BYO_HOST), manager.informer(BYO_MACHINE)
    clusters, planes = manager.informer(CLUSTER), manager.informer(MANAGED_CONTROL_PLANE)
    jobs = manager.informer(JOB)
    byo_clusters, core_machines, remediations = manager.informer(BYO_CLUSTER), manager.informer(MACHINE), manager.informer(BYO_REMEDIATION)

    def of_cluster(informer: Informer) -> Callable[[Obj], list[Key]]:
        """From an object to those of `informer` that are of the same cluster."""
        return lambda obj: [key_of(item) for item in informer.all(obj["metadata"].get("namespace")) if _belongs(item, obj)]

    def machines_of_host(obj: Obj) -> list[Key]:
        """A changed host wakes the machine that holds it; a free one wakes those that still need one."""
        reference = (obj.get("spec") or {}).get("machineRef")
        if reference:
            return [(obj["metadata"]["namespace"], reference["name"])]
        return [key_of(item) for item in machines.all(obj["metadata"]["namespace"]) if not (item.get("status") or {}).get("hostRef")]

    def infra_of_machine(obj: Obj) -> list[Key]:
        return [(obj["metadata"]["namespace"], obj["spec"]["infrastructureRef"]["name"])]

    def owned(obj: Obj) -> list[Key]:
        reference = owner(obj, "ManagedControlPlane")
        return [(obj["metadata"]["namespace"], str(reference["name"]))] if reference else []

    planes_of_cluster = of_cluster(planes)

    def planes_of_host(obj: Obj) -> list[Key]:
        reference = (obj.get("spec") or {}).get("machineRef") or {}
        machine = machines.get(obj["metadata"]["namespace"], str(reference.get("name") or ""))
        return planes_of_cluster(machine) if machine else []

    remediation = Remediation(kube, clock, remediations, core_machines, hosts, workloads)
    control_planes = ManagedControlPlaneReconciler(kube, clock, releases, Applier(kube, clock), workloads, backup_image=backup_image)
    controllers = [
        Controller("byocluster", ByoClusterReconciler(kube, clock, remediation), byo_clusters, workers=2)
        .watches(remediations, of_cluster(byo_clusters))
        .watches(core_machines, of_cluster(byo_clusters)),
        Controller("byohost", ByoHostReconciler(kube, clock, releases, workloads, login), hosts, workers=2).watches(machines, _host_of),
        Controller("byomachine", ByoMachineReconciler(kube, clock, hosts, releases, workloads), machines)
        .watches(hosts, machines_of_host)
        .watches(core_machines, infra_of_machine)
        .watches(clusters, of_cluster(machines)),
        Controller("managedcontrolplane", control_planes, planes)
        .watches(clusters, planes_of_cluster)
        .watches(manager.informer(DEPLOYMENT), owned)
        .watches(manager.informer(STATEFUL_SET), owned)
        .watches(jobs, owned),
        Controller("addons", AddonsReconciler(kube, clock, releases, addons_image, clients=workloads), planes, workers=2).watches(jobs, owned),
        Controller("lifecycle", LifecycleReconciler(kube, clock, hosts), planes, workers=2)
        .watches(core_machines, planes_of_cluster)
        .watches(machines, planes_of_cluster),
        Controller("servingcertificates", ServingCertificatesReconciler(kube, clock, planes, hosts, machines, workloads), planes, workers=2)
        .watches(hosts, planes_of_host)
        .watches(machines, planes_of_cluster),
    ]
    # More workers than clusters that may be out of reach at once: each look at one of them waits for a timeout.
    health = Controller("workloadhealth", WorkloadHealthReconciler(kube, clock, releases, workloads), planes, workers=8)
    controllers.append(health.watches(core_machines, planes_of_cluster))
    deletion = Controller("deletion", DeletionReconciler(kube, clock, workloads), clusters, workers=2)
    deletion.watches(core_machines, lambda obj: [(obj["metadata"]["namespace"], cluster_name(obj))])
    upgrades = manager.informer(CLUSTER_UPGRADE)

    def upgrades_of_cluster(obj: Obj) -> list[Key]:
        return [key_of(item) for item in upgrades.all(obj["metadata"]["namespace"]) if item["spec"]["clusterName"] == cluster_name(obj)]

    upgrade = Controller("clusterupgrade", ClusterUpgradeReconciler(kube, clock, releases, workloads), upgrades, workers=2)
    for changed in (planes, machines, core_machines):
        upgrade.watches(changed, upgrades_of_cluster)
    controllers.append(upgrade)
    if releases.load_balancer_addresses:
        services = manager.informer(SERVICE)
        given = Controller("hostaddresses", HostAddressesReconciler(kube, releases.load_balancer_addresses), services, workers=1)
        # One that goes leaves its address to those that wait.
        controllers.append(given.watches(services, lambda obj: [key_of(item) for item in services.all() if waits(item)]))
    watched = {"byocluster": byo_clusters, "byohost": hosts, "byomachine": machines, "managedcontrolplane": planes, "clusterupgrade": upgrades}
    events = [Controller(f"{name}-events", EventsReconciler(kube, clock, informer), informer, workers=1) for name, informer in watched.items()]
    manager.controllers.extend([*controllers, deletion, *events])
    return manager


def _belongs(item: Obj, obj: Obj) -> bool:
    """Whether both are of one cluster; `obj` may be the Cluster itself."""
    name = obj["metadata"]["name"] if obj["kind"] == CLUSTER.kind else cluster_name(obj)
    return bool(name) and cluster_name(item) == name


def _host_of(machine: Obj) -> list[Key]:
    name = ((machine.get("status") or {}).get("hostRef") or {}).get("name")
    return [(machine["metadata"]["namespace"], name)] if name else []


async def _run(settings: Settings) -> None:
    releases = Releases.load(settings.releases_file)
    kube, workloads = Kube(manager=MANAGER), WorkloadClients()
    manager = build(kube, releases, settings.addons_image, workloads, lambda: login_of(settings.registry_login_file), backup_image=settings.backup_image)
    try:
        await manager.run(manager.probes(settings.bind, settings.probe_port), asyncio.Event())
    finally:
        await workloads.close()
        await kube.close()


def main() -> int:
    """Run until SIGTERM; 1 if the lease was lost or the work failed, 2 if the configuration is not right."""
    code = 0
    try:
        settings = Settings.from_environment()
        logs.configure(settings.log_level)
        asyncio.run(_run(settings))
    except* LeaseLost as lost:
        log.error("the lease was lost: this process ends, and is started again", reason=str(lost.exceptions[0]))
        code = 1
    except* CkpError as failed:
        error = failed.exceptions[0]
        print(error.render() if isinstance(error, CkpError) else error, file=sys.stderr)
        code = error.exit_code if isinstance(error, CkpError) else 1
    return code


if __name__ == "__main__":
    sys.exit(main())
