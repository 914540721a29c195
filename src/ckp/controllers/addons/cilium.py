"""Cilium: the network of a workload cluster, in place of kube-proxy."""

from __future__ import annotations

from typing import Any

from ckp.controllers.addons.addon import HelmAddon
from ckp.controllers.controlplane.plan import API_PORT, Plan


def _values(plan: Plan) -> dict[str, Any]:
    """VXLAN between hosts, addresses from Kubernetes. A lab in a sandbox, for instance, puts privileged agents over these."""

    def image(name: str) -> dict[str, Any]:
        return {"override": plan.release.image(name), "useDigest": False, "pullPolicy": "IfNotPresent"}

    return {
        "kubeProxyReplacement": True,
        "k8sServiceHost": plan.host,
        "k8sServicePort": API_PORT,
        "ipam": {"mode": "kubernetes"},
        "routingMode": "tunnel",
        "tunnelProtocol": "vxlan",
        "envoy": {"enabled": False},
        "hubble": {"enabled": False},
        "l7Proxy": False,
        "image": image("cilium"),
        "operator": {"replicas": 1, "image": image("cilium-operator-generic")},
    }


CILIUM = HelmAddon("cilium", _values)
