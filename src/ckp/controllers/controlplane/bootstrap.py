"""What a fresh cluster must hold before a node can join: written by the release's own kubeadm, in a Job, once per version.

kubeadm's phases (upload-config, bootstrap-token, addon/coredns) are not implemented again here. Beside them the Job applies what a full
`kubeadm init` would: the binding of kubeadm:cluster-admins; and the konnectivity agents.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass

from ckp.api.names import CLUSTER_SECRET_TYPE
from ckp.clients.kube import Obj
from ckp.controllers.controlplane.plan import KONNECTIVITY_PORT, Plan
from ckp.controllers.controlplane.tunnels import AGENT, AGENT_FLAGS, RBAC, SERVER_USER, agent_environment, lease_rules
from ckp.controllers.jobs import job
from ckp.controllers.pods import NONROOT, config_volume, empty_volume, hardened, mount, secret_volume

SERVICES_HEALTH_PORT = 8136
"""Of the second konnectivity agent, on the host's loopback."""


@dataclass(frozen=True)
class ClientFiles:
    """A client certificate with its key, and the CA of the server, as PEM."""

    ca: bytes
    certificate: bytes
    key: bytes


def kubeconfig(plan: Plan, server: str, role: str, files: ClientFiles) -> str:
    """A kubeconfig that holds everything itself. Its names are of this cluster alone, so that those of many clusters can be merged.

    Args:
        server: the API server's URL.
        role: of its user, such as `admin`. Whom the API server sees is the certificate's subject, the same in all clusters.
    """
    encoded = {name: base64.b64encode(getattr(files, name)).decode() for name in ("ca", "certificate", "key")}
    cluster = f"{plan.cluster}.{plan.namespace}"
    user = f"{role}@{cluster}"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": cluster, "cluster": {"server": server, "certificate-authority-data": encoded["ca"]}}],
        "users": [{"name": user, "user": {"client-certificate-data": encoded["certificate"], "client-key-data": encoded["key"]}}],
        "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": user}}],
        "current-context": cluster,
    }
    return json.dumps(config, indent=1)  # JSON is YAML, which a kubeconfig is


def kubeconfig_secret(plan: Plan, name: str, text: str) -> Obj:
    """Contract: `<c>-kubeconfig` with the key `value`, type and label of the cluster."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": plan.meta(name),
        "type": CLUSTER_SECRET_TYPE,
        "data": {"value": base64.b64encode(text.encode()).decode()},
    }


def bootstrap_objects(plan: Plan, authority: str = "") -> list[Obj]:
    """The Job's configuration and the Job; its name covers the content, so changed content runs again.

    Args:
        authority: tells the CA's certificate, which kubeadm takes over into `cluster-info`, from the one before it.
    """
    data = {"kubeadm.json": _kubeadm_config(plan), "manifests.json": json.dumps({"apiVersion": "v1", "kind": "List", "items": _manifests(plan)})}
    digest = hashlib.sha256(json.dumps([data, plan.release.stamp, authority], sort_keys=True).encode()).hexdigest()[:8]
    name = plan.name(f"bootstrap-{digest}")
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": plan.meta(name), "data": data}
    return [config, _job(plan, name)]


def _kubeadm_config(plan: Plan) -> str:
    """Several documents in one stream. certificatesDir stays at its default: it leaks into the kubelets' clientCAFile."""
    documents: list[Obj] = [
        {
            "apiVersion": "kubeadm.k8s.io/v1beta4",
            "kind": "InitConfiguration",
            # Neither is used by these phases; given, they keep kubeadm from inspecting the machine that it runs on.
            "localAPIEndpoint": {"advertiseAddress": plan.address, "bindPort": 6443},
            "nodeRegistration": {"name": plan.cluster, "criSocket": "unix:///run/containerd/containerd.sock"},
        },
        {
            "apiVersion": "kubeadm.k8s.io/v1beta4",
            "kind": "ClusterConfiguration",
            "clusterName": plan.cluster,
            "kubernetesVersion": plan.release.stamp,
            "controlPlaneEndpoint": plan.endpoint,
            "imageRepository": plan.release.registry,
            "dns": {"imageRepository": plan.release.registry, "imageTag": plan.release.images["coredns"]},
            "networking": {"podSubnet": plan.pod_cidr, "serviceSubnet": plan.service_cidr, "dnsDomain": plan.domain},
            "featureGates": {"NodeLocalCRISocket": True},
            "caCertificateValidityPeriod": "87600h0m0s",
            "certificateValidityPeriod": "87600h0m0s",
        },
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "clusterDNS": [plan.dns_ip],
            "clusterDomain": plan.domain,
            "rotateCertificates": True,
            # The cluster's CA signs what kubelets serve; controllers/providers/byo/serving_certificates.py approves it.
            "serverTLSBootstrap": True,
            "serializeImagePulls": False,
        },
    ]
    return "\n---\n".join(json.dumps(document) for document in documents)


def _manifests(plan: Plan) -> list[Obj]:
    return [
        _binding("kubeadm:cluster-admins", "cluster-admin", {"kind": "Group", "name": "kubeadm:cluster-admins", "apiGroup": RBAC}),
        _binding(SERVER_USER, "system:auth-delegator", {"kind": "User", "name": SERVER_USER, "apiGroup": RBAC}),
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": AGENT, "namespace": "kube-system"}},
        *lease_rules(),
        _konnectivity_agents(plan),
    ]


def _binding(name: str, role: str, subject: Obj) -> Obj:
    return {
        "apiVersion": f"{RBAC}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": role},
        "subjects": [subject],
    }


def _konnectivity_agents(plan: Plan) -> Obj:
    """Two agents a node, in the host's network: they work before a CNI does, and reach kubelets, pods and services from there."""
    token = {"serviceAccountToken": {"path": "token", "audience": "system:konnectivity-server", "expirationSeconds": 3600}}
    command = [
        "/proxy-agent",
        "--ca-cert=/var/run/secrets/kubernetes.io/serviceaccount/ca.crt",
        f"--proxy-server-host={plan.host}",
        f"--proxy-server-port={KONNECTIVITY_PORT}",
        "--service-account-token-path=/var/run/secrets/tokens/token",
        "--admin-bind-address=127.0.0.1",
        "--admin-server-port=8133",
        "--health-server-port=8134",
        "--agent-identifiers=ipv4=$(HOST_IP)",
        *AGENT_FLAGS,
        "--probe-interval=5s",
        "--keepalive-time=30s",
    ]
    container = {
        "name": "konnectivity-agent",
        "image": plan.release.image("konnectivity-agent"),
        "command": command,
        "env": [{"name": "HOST_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}}, *agent_environment(plan)],
        "livenessProbe": {"httpGet": {"path": "/healthz", "port": 8134}, "periodSeconds": 10, "timeoutSeconds": 15, "failureThreshold": 6},
        "resources": {"requests": {"cpu": "10m", "memory": "24Mi"}, "limits": {"memory": "256Mi"}},
        "securityContext": hardened(),
        "volumeMounts": [mount("token", "/var/run/secrets/tokens")],
    }
    pod = {
        "hostNetwork": True,
        "dnsPolicy": "Default",
        "serviceAccountName": "konnectivity-agent",
        "priorityClassName": "system-node-critical",
        "tolerations": [{"operator": "Exists"}],
        "securityContext": {"fsGroup": NONROOT},
        "containers": [container, _agent_of_services(container)],
        "volumes": [{"name": "token", "projected": {"sources": [token], "defaultMode": 0o440}}],
    }
    labels = {"k8s-app": "konnectivity-agent"}
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "konnectivity-agent", "namespace": "kube-system", "labels": labels},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}},
    }


def _agent_of_services(agent: Obj) -> Obj:
    """The second agent, beside the node's own: for webhooks, aggregated APIs, pods and services.

    All connections of an agent share one stream, and one that is read slowly holds up the others for as long
    (https://github.com/kubernetes-sigs/apiserver-network-proxy/issues/180). What people read slowly (exec, cp, port-forward) goes through the node's own.
    """
    ours = {
        "--agent-identifiers": "default-route=true",
        "--admin-server-port": "8135",
        "--health-server-host": "127.0.0.1",
        "--health-server-port": str(SERVICES_HEALTH_PORT),
    }
    command = [item for item in agent["command"] if item.partition("=")[0] not in ours] + [f"{flag}={value}" for flag, value in ours.items()]
    probe = {**agent["livenessProbe"], "httpGet": {"path": "/healthz", "host": "127.0.0.1", "port": SERVICES_HEALTH_PORT}}
    return {**agent, "name": "konnectivity-agent-services", "command": command, "livenessProbe": probe}


def _job(plan: Plan, name: str) -> Obj:
    """Each kubeadm phase is a container of its own, side by side: none needs another's result, and each is retried alone.

    The image has no shell, and needs none.
    """
    phases = [
        ("admins", ["kubectl", "apply", "--server-side", "--force-conflicts", "-f", "/config/manifests.json"]),
        ("upload-config", ["kubeadm", "init", "phase", "upload-config", "all", "--config=/config/kubeadm.json", "--kubeconfig=/kube/value"]),
        ("bootstrap-token", ["kubeadm", "init", "phase", "bootstrap-token", "--config=/config/kubeadm.json", "--kubeconfig=/kube/value", "--skip-token-print"]),
        ("coredns", ["kubeadm", "init", "phase", "addon", "coredns", "--config=/config/kubeadm.json", "--kubeconfig=/kube/value"]),
    ]
    containers = [_container(plan, phase, command) for phase, command in phases]
    volumes = [config_volume("config", name), secret_volume("kube", plan.name("super-admin-kubeconfig")), empty_volume("tmp")]
    return job(plan.meta(name), plan.selector("bootstrap"), containers, volumes, retries=20, deadline=900)


def _container(plan: Plan, name: str, command: list[str]) -> Obj:
    return {
        "name": name,
        "image": plan.release.image("kubeadm"),
        "command": command,
        "env": [{"name": "KUBECONFIG", "value": "/kube/value"}, {"name": "HOME", "value": "/tmp"}],
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "256Mi"}},
        "securityContext": hardened(),
        "volumeMounts": [mount("config", "/config"), mount("kube", "/kube"), mount("tmp", "/tmp", writable=True)],
    }
