"""One control plane, computed once from its objects: names, addresses, networks, images. All manifests are made from it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace

from ckp.api.kinds import PDB
from ckp.api.names import CLUSTER_NAME_LABEL
from ckp.api.objects.control_plane import EtcdSpec, ManagedControlPlane
from ckp.api.platform import InstalledRelease, Releases
from ckp.clients.kube import Obj
from ckp.controllers.pods import pki_volume
from ckp.controllers.scope import owner_reference
from ckp.rules import endpoints
from ckp.rules.upgrades import Version

API_PORT = endpoints.API_PORT
KONNECTIVITY_PORT = 8132
DEFAULT_PODS = "10.244.0.0/16"
DEFAULT_SERVICES = "10.96.0.0/12"
PRIORITY = "ckp-control-plane"
"""Below the management layer's class (deploy/00-foundation.yaml): a tenant's control plane must not evict what manages it."""


def disruption_budget(plan: Plan, part: str) -> Obj:
    """A drain takes one pod of a component at a time, and waits until it is ready elsewhere.

    A single replica may be taken as well: to refuse that would block every drain for ever, and it is back within seconds. A pod that is not ready is no loss.
    """
    return {
        "apiVersion": PDB.api_version,
        "kind": PDB.kind,
        "metadata": plan.meta(plan.name(part)),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": plan.selector(part)}, "unhealthyPodEvictionPolicy": "AlwaysAllow"},
    }


@dataclass(frozen=True)
class Plan:
    """One hosted control plane."""

    cluster: str
    namespace: str
    owner: Obj
    release: InstalledRelease
    pod_cidr: str
    service_cidr: str
    domain: str
    replicas: int
    etcd_replicas: int
    etcd_size: str
    storage_class: str
    wanted_address: str
    load_balancer_class: str
    host: str = ""
    """The address or name by which workers and users reach the API server; empty until the load balancer has given an address."""
    address: str = ""
    """The address that the API server advertises to pods: the host, or the load balancer's if that is a name."""
    routed: bool = False
    """Whether these controllers say where agents reach konnectivity servers (tunnels.py)."""
    cert_sans: tuple[str, ...] = ()
    """Further names and addresses in the API server's certificate."""
    emulated: str = ""
    """The minor as which API servers, controller-manager and scheduler behave, as they take it (`1.34`); empty: their own."""

    @classmethod
    def of(cls, control_plane: Obj, cluster: Obj, releases: Releases, host: str = "", address: str = "", *, version: str = "") -> Plan:
        """From a ManagedControlPlane and its Cluster; NotFound if the version is not installed.

        Args:
            version: of another release than the one that its parts are of, or are being brought to.
        """
        plane = ManagedControlPlane.of(control_plane)
        spec, etcd = plane.spec, plane.spec.etcd
        network = cluster["spec"].get("clusterNetwork") or {}
        return cls(
            cluster=cluster["metadata"]["name"],
            namespace=plane.namespace,
            owner=control_plane,
            release=releases.get(version or plane.running_version),
            pod_cidr=((network.get("pods") or {}).get("cidrBlocks") or [DEFAULT_PODS])[0],
            service_cidr=((network.get("services") or {}).get("cidrBlocks") or [DEFAULT_SERVICES])[0],
            domain=network.get("serviceDomain") or "cluster.local",
            replicas=spec.replicas,
            etcd_replicas=etcd.replicas,
            etcd_size=etcd.size or EtcdSpec().size,
            storage_class=etcd.storage_class or releases.etcd_storage_class,
            wanted_address=spec.load_balancer.address,
            load_balancer_class=releases.load_balancer_class,
            host=host,
            address=address or host,
            cert_sans=spec.cert_sans,
        )

    def of_release(self, release: InstalledRelease) -> Plan:
        """The same of another release."""
        return replace(self, release=release)

    def emulating(self, line: str) -> Plan:
        """The same with programs that behave as those of another minor (`v1.34`): the release's own takes no flag, so that its commit restarts nothing."""
        return replace(self, emulated="" if line == Version.parse(self.release.name).line else line.removeprefix("v"))

    def name(self, part: str) -> str:
        """The name of one of its objects."""
        return f"{self.cluster}-{part}"

    def meta(self, name: str, **more: object) -> Obj:
        """Metadata with the cluster's label and the control plane as owner, so that nothing outlives it."""
        labels = {CLUSTER_NAME_LABEL: self.cluster, **more.pop("labels", {})}  # type: ignore[dict-item]
        return {"name": name, "namespace": self.namespace, "labels": labels, "ownerReferences": [owner_reference(self.owner)], **more}

    def selector(self, component: str) -> dict[str, str]:
        """Labels that choose the pods of one component."""
        return {CLUSTER_NAME_LABEL: self.cluster, "app.kubernetes.io/component": component}

    @property
    def endpoint(self) -> str:
        """`host:port` for users and workers."""
        return f"{self.host}:{API_PORT}"

    @property
    def internal_endpoint(self) -> str:
        """`host:port` for pods of the management cluster."""
        return f"{self.name('apiserver')}.{self.namespace}.svc:{API_PORT}"

    @property
    def dns_ip(self) -> str:
        """CoreDNS' address: the tenth of the range, as kubeadm has it."""
        return str(ipaddress.ip_network(self.service_cidr)[10])

    def pki_volume(self, name: str, *files: tuple[str, str, str]) -> Obj:
        """A volume of the cluster's certificates; `files` as for pods.pki_volume, with the parts of their Secrets' names."""
        return pki_volume(name, *((self.name(part), key, file) for part, key, file in files))
