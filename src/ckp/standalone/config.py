"""What is handed to kubeadm, Helm and kubectl: pure texts from options, the verified bundle and the host's decisions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ckp.agent.system.prepare import CONTAINERD_SOCKET, PATCHES_DIR, HostDecisions
from ckp.standalone.options import Options
from ckp.verify.bundle import BundleManifest

TEN_YEARS = "87600h0m0s"
LONGEST_RESTART_PAUSE = "30s"
STORAGE_CLASS = "ckp-hostpath"
STORAGE_NAMESPACE = "ckp-storage"
CONTROL_PLANE_IMAGES = ("pause", "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
NEEDED_IMAGES = ("cilium", "cilium-operator-generic", "coredns", "local-path-provisioner")
LATER_IMAGES = (*NEEDED_IMAGES, "kube-proxy")
"""kube-proxy's image is also what the storage provisioner's helper pods run."""


@dataclass(frozen=True)
class Plan:
    """Everything about the cluster-to-be, after the host was looked at and the bundle verified."""

    options: Options
    manifest: BundleManifest
    decisions: HostDecisions
    registry: str
    address: str
    node_name: str

    def image(self, name: str) -> str:
        """An image of the release by its name in the bundle's table (its repository below the registry), with tag and digest."""
        return f"{self.registry}/{name}:{self.manifest.images[name]}"

    def images(self) -> list[str]:
        """All images that this node will run, those that the control plane waits for first."""
        return [self.image(name) for name in CONTROL_PLANE_IMAGES + LATER_IMAGES if name in self.manifest.images]


def kubernetes_version(manifest: BundleManifest) -> str:
    """v1.35.1-ckp: the tag of the control plane's images, which kubeadm takes as a version."""
    return "v" + manifest.version


def kubeadm_config(plan: Plan) -> str:
    """kubeadm's configuration (v1beta4) as JSON documents, which YAML readers take."""
    images = plan.manifest.images
    init: dict[str, Any] = {
        "apiVersion": "kubeadm.k8s.io/v1beta4",
        "kind": "InitConfiguration",
        "localAPIEndpoint": {"advertiseAddress": plan.address, "bindPort": 6443},
        "nodeRegistration": {
            "name": plan.node_name,
            "criSocket": CONTAINERD_SOCKET,
            "taints": [],  # the only node must take pods
            # we pull beforehand, in parallel, and the release's own pause: kubeadm would insist on the one that it was built with
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
        "controlPlaneEndpoint": f"[{plan.address}]:6443" if ":" in plan.address else f"{plan.address}:6443",
        "certificateValidityPeriod": TEN_YEARS,
        "caCertificateValidityPeriod": TEN_YEARS,
        "networking": {"podSubnet": plan.options.pod_cidr, "serviceSubnet": plan.options.service_cidr, "dnsDomain": "cluster.local"},
        "dns": {"imageRepository": plan.registry, "imageTag": images["coredns"]},
        "etcd": {"local": {"imageRepository": plan.registry, "imageTag": images["etcd"], "dataDir": "/var/lib/etcd"}},
        "proxy": {"disabled": True},  # Cilium does its work
        "apiServer": {"certSANs": sorted({plan.address, plan.node_name, "127.0.0.1", "localhost"})},
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


def restart_pauses(manifest: BundleManifest) -> dict[str, Any]:
    """How long a kubelet of this host may wait before it starts a container again that ended (field crashLoopBackOff, from v1.35 on; KEP-5593).

    The kubelet's own five minutes would be an outage: this host's only etcd and API server are such containers, and so are those of managed clusters.
    """
    major, minor = manifest.release.lstrip("v").split(".")[:2]
    return {"crashLoopBackOff": {"maxContainerRestartPeriod": LONGEST_RESTART_PAUSE}} if (int(major), int(minor)) >= (1, 35) else {}


def static_pod_patches(plan: Plan) -> dict[str, str]:
    """kubeadm's patches (file name: text) that name the control plane's images by digest; its own configuration takes tags only for these three."""
    return {
        f"{name}+strategic.json": json.dumps({"spec": {"containers": [{"name": name, "image": plan.image(name)}]}}) + "\n"
        for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
    }


def cilium_values(plan: Plan) -> dict[str, Any]:
    """Helm values of the network. Privileged only where the host can't grant what the chart's capability list asks for."""

    def image(name: str) -> dict[str, Any]:
        return {"override": plan.image(name), "useDigest": False, "pullPolicy": "IfNotPresent"}

    values: dict[str, Any] = {
        "kubeProxyReplacement": True,
        "k8sServiceHost": plan.address,
        "k8sServicePort": 6443,
        "ipam": {"mode": "kubernetes"},
        "routingMode": "tunnel",
        "tunnelProtocol": "vxlan",
        "envoy": {"enabled": False},
        "hubble": {"enabled": False},
        "l7Proxy": False,
        "operator": {"replicas": 1, "image": image("cilium-operator-generic")},
        "image": image("cilium"),
        "l2announcements": {"enabled": True},
        "externalIPs": {"enabled": True},
        "k8sClientRateLimit": {"qps": 30, "burst": 60},
    }
    if plan.decisions.restrict_oom_score_adj:
        values["securityContext"] = {"privileged": True}
    return values
