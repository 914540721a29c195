"""The canary: a pod of the workload cluster that shows, by being ready, what a user's pod needs.

It is scheduled and started as any pod; its probe resolves the API server's name by the cluster's DNS, reaches it through the service network, and
verifies its certificate, as itself and without any rights: /readyz is readable by everyone who is authenticated (system:public-info-viewer).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from ckp.api.names import CKP
from ckp.clients.kube import Obj
from ckp.controllers.pods import config_volume, hardened, mount, pod_security

NAME = "ckp-canary"
NAMESPACE = "kube-system"
LABELS = {"app.kubernetes.io/name": NAME}
DIGEST_ANNOTATION = f"{CKP}/content"
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
A_DAY_OF_TRIES = 43_200
"""While it has never succeeded the container is not restarted: restarts would be delayed more and more, and say nothing."""


@dataclass(frozen=True)
class Canary:
    """What the manifests are made from.

    Args:
        image: with kubectl in it, from the registry that the nodes use.
        domain: of the cluster's DNS.
    """

    image: str
    domain: str

    @property
    def server(self) -> str:
        """The URL that it asks."""
        return f"https://kubernetes.default.svc.{self.domain}"

    @property
    def digest(self) -> str:
        """Of the manifests' content."""
        return hashlib.sha256(json.dumps(self._content(), sort_keys=True).encode()).hexdigest()[:16]

    def manifests(self) -> list[Obj]:
        """What is applied in the workload cluster; the Deployment, last, carries the digest."""
        *others, deployment = self._content()
        return [*others, {**deployment, "metadata": {**deployment["metadata"], "annotations": {DIGEST_ANNOTATION: self.digest}}}]

    def _content(self) -> list[Obj]:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "own", "cluster": {"server": self.server, "certificate-authority": f"{ACCOUNT}/ca.crt"}}],
            "users": [{"name": "own", "user": {"tokenFile": f"{ACCOUNT}/token"}}],
            "contexts": [{"name": "own", "context": {"cluster": "own", "user": "own"}}],
            "current-context": "own",
        }
        meta = {"name": NAME, "namespace": NAMESPACE, "labels": LABELS}
        return [
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta, "automountServiceAccountToken": False},
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"kubeconfig.json": json.dumps(config)}},
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": meta,
                "spec": {
                    "replicas": 1,
                    "revisionHistoryLimit": 1,
                    "selector": {"matchLabels": LABELS},
                    # A new version is ready before the old one goes: the evidence has no gap.
                    "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
                    "template": {"metadata": {"labels": LABELS}, "spec": self._pod()},
                },
            },
        ]

    def _pod(self) -> Obj:
        # --request-timeout ends the request, not the look-up of the name before it; the probe's own timeout ends both.
        ask = ["kubectl", "--kubeconfig=/etc/canary/kubeconfig.json", "--request-timeout=5s", "get", "--raw=/readyz"]
        probe = {"exec": {"command": ask}, "timeoutSeconds": 10}
        container = {
            "name": "canary",
            "image": self.image,
            # The image has no program that only waits. This one listens on the pod's own loopback address, and forwards nothing.
            "command": ["kubectl", "--kubeconfig=/etc/canary/kubeconfig.json", "proxy", "--port=0", "--reject-methods=.*"],
            "startupProbe": {**probe, "periodSeconds": 2, "failureThreshold": A_DAY_OF_TRIES},
            "readinessProbe": {**probe, "periodSeconds": 10, "failureThreshold": 3},
            "resources": {"requests": {"cpu": "5m", "memory": "24Mi"}, "limits": {"memory": "192Mi"}},
            "securityContext": hardened(),
            "volumeMounts": [mount("config", "/etc/canary")],
        }
        return {
            "serviceAccountName": NAME,
            "automountServiceAccountToken": True,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 1,
            "priorityClassName": "system-cluster-critical",  # a cluster that is full is still a cluster that works
            "securityContext": pod_security(),
            "dnsConfig": {"options": [{"name": name, "value": value} for name, value in (("ndots", "1"), ("timeout", "2"), ("attempts", "2"))]},
            # As CoreDNS: what keeps both away keeps every pod away. From a node that is lost it goes on within seconds.
            "tolerations": [
                {"key": "CriticalAddonsOnly", "operator": "Exists"},
                {"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"},
                {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 10},
                {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 10},
            ],
            "containers": [container],
            "volumes": [config_volume("config", NAME)],  # no emptyDir: for one, `kubectl drain` asks for a flag more
        }
