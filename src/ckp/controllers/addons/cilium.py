"""Cilium in a managed cluster: helm installs the release's chart, in a Job, with the values below."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from ckp.api.platform import Releases
from ckp.clients.kube import Obj
from ckp.controllers.controlplane.plan import API_PORT, Plan
from ckp.controllers.jobs import job
from ckp.controllers.pods import config_volume, empty_volume, hardened, mount, secret_volume


def values(plan: Plan, site: dict[str, object]) -> dict[str, Any]:
    """Cilium in place of kube-proxy, VXLAN between hosts, addresses from Kubernetes.

    Args:
        site: values of this installation, over ours (a lab in a sandbox needs privileged agents, for instance).
    """
    ours: dict[str, Any] = {
        "kubeProxyReplacement": True,
        "k8sServiceHost": plan.host,
        "k8sServicePort": API_PORT,
        "ipam": {"mode": "kubernetes"},
        "routingMode": "tunnel",
        "tunnelProtocol": "vxlan",
        "envoy": {"enabled": False},
        "hubble": {"enabled": False},
        "l7Proxy": False,
        "image": {"override": plan.release.image("cilium"), "useDigest": False, "pullPolicy": "IfNotPresent"},
        "operator": {
            "replicas": 1,
            "image": {"override": plan.release.image("cilium-operator-generic"), "useDigest": False, "pullPolicy": "IfNotPresent"},
        },
    }
    return _merge(ours, site)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        merged[key] = _merge(merged[key], value) if isinstance(value, dict) and isinstance(merged.get(key), dict) else value
    return merged


def install_objects(plan: Plan, releases: Releases, image: str) -> list[Obj]:
    """A ConfigMap with the values and the Job; other values or another version make another Job, and helm upgrades."""
    body = json.dumps(values(plan, dict(releases.addon_values.get("cilium", {}))), sort_keys=True)
    digest = hashlib.sha256((body + plan.release.cni["cilium"]).encode()).hexdigest()[:8]
    name = plan.name(f"cilium-{digest}")
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": plan.meta(name), "data": {"values.json": body}}
    command = ["/usr/local/bin/helm", "upgrade", "--install", "cilium", "/charts/cilium", "--namespace=kube-system", "--values=/values/values.json"]
    container = {
        "name": "helm",
        "image": image,
        "command": [*command, "--kubeconfig=/kube/value", "--timeout=5m"],
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}},
        "securityContext": hardened(),
        "volumeMounts": [mount("values", "/values"), mount("kube", "/kube"), mount("tmp", "/tmp", writable=True)],
    }
    volumes = [config_volume("values", name), secret_volume("kube", plan.name("kubeconfig")), empty_volume("tmp")]
    return [config, job(plan.meta(name), plan.selector("addon-cilium"), [container], volumes, retries=10, deadline=900)]
