"""The cluster's own etcd: a StatefulSet with a volume, mutual TLS to clients and among peers."""

from __future__ import annotations

from ckp.clients.kube import Obj
from ckp.controllers.controlplane.plan import PRIORITY, Plan
from ckp.controllers.pods import hardened, mount, pod_security, pod_spec

CLIENT_PORT = 2379
PEER_PORT = 2380
METRICS_PORT = 2381
PKI = "/etc/etcd/pki"


def etcd_objects(plan: Plan) -> list[Obj]:
    """Two Services (clients; peers by name before they are ready), the StatefulSet, and the policy of who may connect to it."""
    selector = plan.selector("etcd")
    ports = [{"name": "client", "port": CLIENT_PORT}, {"name": "peer", "port": PEER_PORT}]
    client = {"selector": selector, "ports": ports[:1]}
    peer = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": selector, "ports": ports}
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": plan.meta(plan.name("etcd")), "spec": client},
        {"apiVersion": "v1", "kind": "Service", "metadata": plan.meta(plan.name("etcd-peer")), "spec": peer},
        _policy(plan, selector),
        _stateful_set(plan, selector),
    ]


def _policy(plan: Plan, selector: dict[str, str]) -> Obj:
    """Only the cluster's API server and etcd's own members; the kubelet's probes come from the node and pass."""
    allow = [
        {"from": [{"podSelector": {"matchLabels": plan.selector("apiserver")}}], "ports": [{"port": CLIENT_PORT}]},
        {"from": [{"podSelector": {"matchLabels": selector}}], "ports": [{"port": CLIENT_PORT}, {"port": PEER_PORT}]},
    ]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": plan.meta(plan.name("etcd")),
        "spec": {"podSelector": {"matchLabels": selector}, "policyTypes": ["Ingress"], "ingress": allow},
    }


def _stateful_set(plan: Plan, selector: dict[str, str]) -> Obj:
    name, peers = plan.name("etcd"), f"{plan.name('etcd-peer')}.{plan.namespace}.svc"
    members = ",".join(f"{name}-{index}=https://{name}-{index}.{peers}:{PEER_PORT}" for index in range(plan.etcd_replicas))
    tls = {"cert-file": "tls.crt", "key-file": "tls.key", "trusted-ca-file": "ca.crt"}
    command = [
        "etcd",
        "--name=$(POD_NAME)",
        "--data-dir=/var/lib/etcd/data",
        f"--listen-client-urls=https://0.0.0.0:{CLIENT_PORT}",
        f"--advertise-client-urls=https://$(POD_NAME).{peers}:{CLIENT_PORT}",
        f"--listen-peer-urls=https://0.0.0.0:{PEER_PORT}",
        f"--initial-advertise-peer-urls=https://$(POD_NAME).{peers}:{PEER_PORT}",
        f"--listen-metrics-urls=http://0.0.0.0:{METRICS_PORT}",
        f"--initial-cluster={members}",
        "--initial-cluster-state=new",
        f"--initial-cluster-token={plan.namespace}.{plan.cluster}",
        *(f"--{flag}={PKI}/{file}" for flag, file in tls.items()),
        *(f"--peer-{flag}={PKI}/{file}" for flag, file in tls.items()),
        "--client-cert-auth=true",
        "--peer-client-cert-auth=true",
        "--snapshot-count=10000",
        "--experimental-initial-corrupt-check=true",
        "--experimental-watch-progress-notify-interval=5s",
        "--auto-compaction-mode=periodic",
        "--auto-compaction-retention=30m",
        "--quota-backend-bytes=2147483648",
    ]
    probe = {"httpGet": {"path": "/health?serializable=true", "port": METRICS_PORT}, "periodSeconds": 10, "timeoutSeconds": 15, "failureThreshold": 8}
    ready = {"httpGet": {"path": "/health", "port": METRICS_PORT}, "periodSeconds": 2, "timeoutSeconds": 5, "failureThreshold": 3}
    container = {
        "name": "etcd",
        "image": plan.release.image("etcd"),
        "command": command,
        "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        "ports": [{"name": "client", "containerPort": CLIENT_PORT}, {"name": "peer", "containerPort": PEER_PORT}],
        "startupProbe": {**ready, "periodSeconds": 1, "failureThreshold": 120},
        "readinessProbe": ready,
        "livenessProbe": probe,
        "resources": {"requests": {"cpu": "25m", "memory": "64Mi"}, "limits": {"memory": "2Gi"}},
        "securityContext": hardened(),
        "volumeMounts": [mount("data", "/var/lib/etcd", writable=True), mount("pki", PKI)],
    }
    claim: Obj = {
        "metadata": {"name": "data", "labels": plan.selector("etcd")},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": plan.etcd_size}}},
    }
    if plan.storage_class:
        claim["spec"]["storageClassName"] = plan.storage_class
    pki = plan.pki_volume("pki", ("etcd-server", "tls.crt", "tls.crt"), ("etcd-server", "tls.key", "tls.key"), ("etcd", "tls.crt", "ca.crt"))
    security = {**pod_security(), "fsGroupChangePolicy": "OnRootMismatch"}
    template = {"metadata": {"labels": selector}, "spec": pod_spec([container], [pki], priorityClassName=PRIORITY, securityContext=security)}
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": plan.meta(name),
        "spec": {
            "serviceName": plan.name("etcd-peer"),
            "replicas": plan.etcd_replicas,
            "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": selector},
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Retain"},
            "template": template,
            "volumeClaimTemplates": [claim],
        },
    }
