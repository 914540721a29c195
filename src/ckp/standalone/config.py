"""Configuration for kubeadm, Helm and kubectl: pure functions of options, verified bundle and host decisions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ckp.agent.system import prepare
from ckp.agent.system.prepare import CONTAINERD_SOCKET, PATCHES_DIR, HostDecisions
from ckp.standalone.options import FIRST, WORKER, Options
from ckp.standalone.token import JoinToken
from ckp.verify.bundle import BundleManifest

L2_TIMING = {"leaseDuration": "8s", "leaseRenewDeadline": "5s", "leaseRetryPeriod": "2s"}
"""How soon another node announces a load balancer's address: within leaseDuration and leaseRetryPeriod after its node was lost. Cilium's default
duration of 15 s is the only one of the three that differs: the other two decide how often each address asks the API server."""
TEN_YEARS = "87600h0m0s"
LONGEST_RESTART_PAUSE = "30s"
STORAGE_CLASS = "ckp-hostpath"
STORAGE_NAMESPACE = "ckp-storage"
CONTROL_PLANE_IMAGES = ("pause", "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
NEEDED_IMAGES = ("cilium", "cilium-operator-generic", "coredns", "local-path-provisioner")
CNI_IMAGES = ("cilium",)
LATER_IMAGES = (*NEEDED_IMAGES, "kube-proxy")
"""The helper pods of the storage provisioner run kube-proxy's image."""


@dataclass(frozen=True)
class Plan:
    """Everything that is decided about the cluster, after preflight and verification."""

    options: Options
    manifest: BundleManifest
    decisions: HostDecisions
    registry: str
    address: str
    node_name: str

    def image(self, name: str) -> str:
        """The reference, with tag and digest, of one of the bundle's images; `name` is its repository below the registry. KeyError if it has none."""
        return f"{self.registry}/{name}:{self.manifest.images[name]}"

    @property
    def endpoint(self) -> str:
        """The host of the API server, as all nodes reach it."""
        return self.options.virtual_address or self.address

    def images(self) -> list[str]:
        """All images that this node will run, with those that it needs to join first."""
        later = LATER_IMAGES if self.options.role == FIRST else CNI_IMAGES
        return [self.image(name) for name in (*needed_first(self.options.role), *later) if name in self.manifest.images]


def needed_first(role: str) -> tuple[str, ...]:
    """The images that a node of this role needs before it joins."""
    return ("pause",) if role == WORKER else CONTROL_PLANE_IMAGES


def kubelet_arguments(plan: Plan, resolv_conf: str = "") -> str:
    """The kubelet's extra arguments. Its name is kubeadm's (nodeRegistration.name), whatever the OS is called then or later.

    Args:
        resolv_conf: the file with name servers for pods, if it is not the kubelet's own choice.
    """
    return prepare.kubelet_arguments("", plan.address, node_name=plan.node_name, resolv_conf=resolv_conf)


def kubernetes_version(manifest: BundleManifest) -> str:
    """v1.35.1-ckp: the tag of the control plane's images, which kubeadm accepts as a version."""
    return "v" + manifest.version


def kubeadm_config(plan: Plan) -> str:
    """kubeadm's configuration (v1beta4), as JSON documents, which are valid YAML."""
    images = plan.manifest.images
    init: dict[str, Any] = {
        "apiVersion": "kubeadm.k8s.io/v1beta4",
        "kind": "InitConfiguration",
        "localAPIEndpoint": {"advertiseAddress": plan.address, "bindPort": 6443},
        "nodeRegistration": {
            "name": plan.node_name,
            "criSocket": CONTAINERD_SOCKET,
            "taints": [],  # the only node must run pods
            # images are pulled before, in parallel, with the release's pause image: kubeadm would pull the one that it was built with
            "imagePullPolicy": "Never",
        },
        "patches": {"directory": PATCHES_DIR},
        "timeouts": {"controlPlaneComponentHealthCheck": "6m0s", "kubeletHealthCheck": "4m0s"},
    }
    cluster: dict[str, Any] = {
        "apiVersion": "kubeadm.k8s.io/v1beta4",
        "kind": "ClusterConfiguration",
        "clusterName": "ckp-standalone",
        "kubernetesVersion": kubernetes_version(plan.manifest),
        "imageRepository": plan.registry,
        "controlPlaneEndpoint": f"[{plan.endpoint}]:6443" if ":" in plan.endpoint else f"{plan.endpoint}:6443",
        "certificateValidityPeriod": TEN_YEARS,
        "caCertificateValidityPeriod": TEN_YEARS,
        "networking": {"podSubnet": plan.options.pod_cidr, "serviceSubnet": plan.options.service_cidr, "dnsDomain": "cluster.local"},
        "dns": {"imageRepository": plan.registry, "imageTag": images["coredns"]},
        "etcd": {"local": {"imageRepository": plan.registry, "imageTag": images["etcd"], "dataDir": "/var/lib/etcd"}},
        "proxy": {"disabled": True},  # Cilium replaces it
        "apiServer": {"certSANs": sorted({plan.address, plan.endpoint, plan.node_name, "127.0.0.1", "localhost", *plan.options.cert_sans})},
    }
    kubelet: dict[str, Any] = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "serverTLSBootstrap": False,
        "rotateCertificates": True,
        **restart_pauses(plan.manifest),
        **plan.decisions.kubelet(),
    }
    return "\n---\n".join(json.dumps(document, indent=1) for document in (init, cluster, kubelet)) + "\n"


def join_config(plan: Plan, token: JoinToken) -> str:
    """kubeadm's configuration (v1beta4) of a join, as JSON. It has the token: for a file with mode 0600."""
    registration: dict[str, Any] = {"name": plan.node_name, "criSocket": CONTAINERD_SOCKET, "taints": [], "imagePullPolicy": "Never"}
    found: dict[str, Any] = {
        "apiVersion": "kubeadm.k8s.io/v1beta4",
        "kind": "JoinConfiguration",
        "discovery": {"bootstrapToken": {"token": token.token, "apiServerEndpoint": token.endpoint, "caCertHashes": [token.ca_hash]}},
        "nodeRegistration": registration,
        "patches": {"directory": PATCHES_DIR},
        "timeouts": {"controlPlaneComponentHealthCheck": "6m0s", "kubeletHealthCheck": "4m0s", "discovery": "2m0s", "tlsBootstrap": "4m0s"},
    }
    if plan.options.role != WORKER:
        found["controlPlane"] = {"localAPIEndpoint": {"advertiseAddress": plan.address, "bindPort": 6443}, "certificateKey": token.certificate_key}
    return json.dumps(found, indent=1) + "\n"


def restart_pauses(manifest: BundleManifest) -> dict[str, Any]:
    """The kubelet's longest delay before it restarts a container (field crashLoopBackOff, since v1.35; KEP-5593).

    Its default of five minutes would be an outage: this host's only etcd and API server are such containers, as are those of hosted control planes.
    """
    major, minor = manifest.release.lstrip("v").split(".")[:2]
    return {"crashLoopBackOff": {"maxContainerRestartPeriod": LONGEST_RESTART_PAUSE}} if (int(major), int(minor)) >= (1, 35) else {}


def static_pod_patches(plan: Plan) -> dict[str, str]:
    """kubeadm's patches (file name: text) that set the control plane's images by digest; its configuration has only tags for these three."""
    return {
        f"{name}+strategic.json": json.dumps({"spec": {"containers": [{"name": name, "image": plan.image(name)}]}}) + "\n"
        for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
    }


def cilium_values(plan: Plan) -> dict[str, Any]:
    """Helm values of Cilium. Privileged only if the host can't grant the capabilities that the chart lists."""

    def image(name: str) -> dict[str, Any]:
        return {"override": plan.image(name), "useDigest": False, "pullPolicy": "IfNotPresent"}

    values: dict[str, Any] = {
        "kubeProxyReplacement": True,
        "k8sServiceHost": plan.endpoint,
        "k8sServicePort": 6443,
        "ipam": {"mode": "kubernetes"},
        "routingMode": "tunnel",
        "tunnelProtocol": "vxlan",
        "envoy": {"enabled": False},
        "hubble": {"enabled": False},
        "l7Proxy": False,
        "operator": {"replicas": 2 if plan.options.virtual_address else 1, "image": image("cilium-operator-generic")},
        "image": image("cilium"),
        "l2announcements": {"enabled": True, **(L2_TIMING if plan.options.virtual_address else {})},
        "externalIPs": {"enabled": True},
        "k8sClientRateLimit": {"qps": 30, "burst": 60},
    }
    if plan.decisions.restrict_oom_score_adj:
        values["securityContext"] = {"privileged": True}
    return values
