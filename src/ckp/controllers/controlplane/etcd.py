"""The cluster's own etcd: a StatefulSet with a volume, mutual TLS to clients and among peers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ckp.api.names import SYSTEM_NAMESPACE
from ckp.clients.kube import Obj
from ckp.controllers.controlplane.plan import PRIORITY, Plan, disruption_budget
from ckp.controllers.pods import hardened, mount, pod_security, pod_spec, replicas_of, spread
from ckp.rules.etcd import bytes_of, quota_now

CLIENT_PORT = 2379
PEER_PORT = 2380
METRICS_PORT = 2381
PKI = "/etc/etcd/pki"
NEW, EXISTING = "new", "existing"
STATE_KEY = "initial-cluster-state"
"""Of the ConfigMap. A member with data does not ask for it; one without makes a new cluster (`new`), or refuses to start by itself (`existing`)."""
BACKUP_COMPONENT = "backup"
"""The component of pods that make backups of etcd, and give its members their data."""
QUOTA_FLAG = "--quota-backend-bytes="


@dataclass(frozen=True)
class Sizing:
    """How large a cluster's etcd is.

    Attributes:
        claim: what each member's volume is asked for; as it was made, since a StatefulSet's can't be changed.
        quota: bytes that the database may take.
        partition: members with this number and higher ones are brought to the manifest, the others stay as they are.
    """

    claim: Mapping[str, Any]
    quota: int
    partition: int = 0


def sizing(plan: Plan, stateful_set: Obj | None, claims: Sequence[Obj], database: int) -> Sizing:
    """From the volumes as they are, or, before there are any, as they will be asked for: an enlarged volume makes the quota grow.

    Args:
        stateful_set: as it is; None before there is one.
        claims: the members' PersistentVolumeClaims.
        database: the largest member's bytes; 0 if not known.

    Raises:
        ValueError: the size in the spec is no quantity of bytes.
    """
    claim: Obj = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": plan.etcd_size}}}
    if plan.storage_class:
        claim["storageClassName"] = plan.storage_class
    if stateful_set is not None:
        made = stateful_set["spec"]["volumeClaimTemplates"][0]["spec"]
        claim = {key: made[key] for key in ("accessModes", "resources", "storageClassName") if key in made}
    sizes = [(item.get("status") or {}).get("capacity", {}).get("storage") for item in claims]
    volume = min(bytes_of(str(size)) for size in [*filter(None, sizes)] or [claim["resources"]["requests"]["storage"]])
    return Sizing(claim, quota_now(volume, quota_of(stateful_set), database), partition_now(plan.etcd_replicas, stateful_set))


def partition_now(members: int, stateful_set: Obj | None) -> int:
    """Up to which member a changed manifest is rolled out: one more each time that all of them are ready.

    Kubernetes stops the highest member that is not of the manifest yet, whether or not the lower ones run (podManagementPolicy Parallel: pkg/controller/
    statefulset/stateful_set_control.go), so with one of three away it would take the quorum. It may roll out from `partition` on.

    Args:
        members: how many there should be.
        stateful_set: as it is; None before there is one.
    """
    if members == 1:
        return 0
    if stateful_set is None:
        return members
    status = stateful_set.get("status") or {}
    ready = replicas_of(stateful_set, "readyReplicas")
    now = int(((stateful_set["spec"].get("updateStrategy") or {}).get("rollingUpdate") or {}).get("partition") or 0)
    if ready < members // 2 + 1:
        return 0  # there is no quorum to keep, and what is wrong may be in the old manifest
    if int(status.get("observedGeneration") or 0) < int(stateful_set["metadata"].get("generation") or 0):
        return now
    if status.get("currentRevision") == status.get("updateRevision"):
        return members
    return max(0, members - replicas_of(stateful_set, "updatedReplicas") - 1) if ready == members else now


def quota_of(stateful_set: Obj | None) -> int:
    """The quota that a StatefulSet gives its members; 0 if there is none."""
    containers = stateful_set["spec"]["template"]["spec"]["containers"] if stateful_set else []
    return next((int(item.removeprefix(QUOTA_FLAG)) for container in containers for item in container["command"] if item.startswith(QUOTA_FLAG)), 0)


def member_names(plan: Plan) -> list[str]:
    """The members, which are called as their pods."""
    return [f"{plan.name('etcd')}-{index}" for index in range(plan.etcd_replicas)]


def member_host(plan: Plan, member: str) -> str:
    """A member's name in the management cluster's DNS, also while it is not ready."""
    return f"{member}.{plan.name('etcd-peer')}.{plan.namespace}.svc"


def config_map(plan: Plan, state: str) -> Obj:
    """What members read as they start."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": plan.meta(plan.name("etcd")), "data": {STATE_KEY: state}}


def etcd_objects(plan: Plan, sized: Sizing | None = None) -> list[Obj]:
    """Two Services (clients; peers by name before they are ready), the StatefulSet, and the policy of who may connect to it.

    Args:
        sized: None: as for a cluster that is not there yet.
    """
    sized = sized or sizing(plan, None, [], 0)
    selector = plan.selector("etcd")
    ports = [{"name": "client", "port": CLIENT_PORT}, {"name": "peer", "port": PEER_PORT}]
    client = {"selector": selector, "ports": ports[:1]}
    peer = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": selector, "ports": ports}
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": plan.meta(plan.name("etcd")), "spec": client},
        {"apiVersion": "v1", "kind": "Service", "metadata": plan.meta(plan.name("etcd-peer")), "spec": peer},
        _policy(plan, selector),
        disruption_budget(plan, "etcd"),
        _stateful_set(plan, selector, sized),
    ]


def _policy(plan: Plan, selector: dict[str, str]) -> Obj:
    """Who may connect: the cluster's API server, etcd's own members, the controllers, which free space in it, and pods that make backups.

    The kubelet's probes come from the node and pass.
    """
    controllers = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": SYSTEM_NAMESPACE}},
        "podSelector": {"matchLabels": {"app": "ckp-controllers"}},
    }
    allow = [
        {"from": [{"podSelector": {"matchLabels": plan.selector("apiserver")}}], "ports": [{"port": CLIENT_PORT}]},
        {"from": [{"podSelector": {"matchLabels": selector}}], "ports": [{"port": CLIENT_PORT}, {"port": PEER_PORT}]},
        {"from": [controllers], "ports": [{"port": CLIENT_PORT}]},
        {"from": [{"podSelector": {"matchLabels": plan.selector(BACKUP_COMPONENT)}}], "ports": [{"port": CLIENT_PORT}]},
    ]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": plan.meta(plan.name("etcd")),
        "spec": {"podSelector": {"matchLabels": selector}, "policyTypes": ["Ingress"], "ingress": allow},
    }


def _stateful_set(plan: Plan, selector: dict[str, str], sized: Sizing) -> Obj:
    name, peers = plan.name("etcd"), f"{plan.name('etcd-peer')}.{plan.namespace}.svc"
    members = ",".join(f"{member}=https://{member_host(plan, member)}:{PEER_PORT}" for member in member_names(plan))
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
        f"{QUOTA_FLAG}{sized.quota}",
    ]
    # Neither fails at the quota (etcd 3.5.11 and later): a full etcd can still be read, and emptied. Only readiness asks the other members.
    alive = {"httpGet": {"path": "/livez", "port": METRICS_PORT}, "periodSeconds": 10, "timeoutSeconds": 15, "failureThreshold": 8}
    ready = {"httpGet": {"path": "/readyz", "port": METRICS_PORT}, "periodSeconds": 2, "timeoutSeconds": 5, "failureThreshold": 3}
    container = {
        "name": "etcd",
        "image": plan.release.image("etcd"),
        "command": command,
        "env": [
            {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            # Not a flag: it changes once in a cluster's life, and no member has to be restarted for it.
            {"name": "ETCD_INITIAL_CLUSTER_STATE", "valueFrom": {"configMapKeyRef": {"name": name, "key": STATE_KEY}}},
        ],
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "ports": [{"name": "client", "containerPort": CLIENT_PORT}, {"name": "peer", "containerPort": PEER_PORT}],
        "startupProbe": {**alive, "periodSeconds": 1, "timeoutSeconds": 5, "failureThreshold": 120},
        "readinessProbe": ready,
        "livenessProbe": alive,
        "resources": {"requests": {"cpu": "25m", "memory": "64Mi"}, "limits": {"memory": "2Gi"}},
        "securityContext": hardened(),
        "volumeMounts": [mount("data", "/var/lib/etcd", writable=True), mount("pki", PKI)],
    }
    claim: Obj = {"metadata": {"name": "data", "labels": plan.selector("etcd")}, "spec": dict(sized.claim)}
    pki = plan.pki_volume("pki", ("etcd-server", "tls.crt", "tls.crt"), ("etcd-server", "tls.key", "tls.key"), ("etcd", "tls.crt", "ca.crt"))
    security = {**pod_security(), "fsGroupChangePolicy": "OnRootMismatch"}
    spec = pod_spec([container], [pki], priorityClassName=PRIORITY, securityContext=security, **spread(selector, plan.etcd_replicas))
    template = {"metadata": {"labels": selector}, "spec": spec}
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": plan.meta(name),
        "spec": {
            "serviceName": plan.name("etcd-peer"),
            "replicas": plan.etcd_replicas,
            "podManagementPolicy": "Parallel",
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": sized.partition}},
            "selector": {"matchLabels": selector},
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Retain"},
            "template": template,
            "volumeClaimTemplates": [claim],
        },
    }
