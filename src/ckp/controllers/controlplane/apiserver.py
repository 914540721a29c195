"""API server with its konnectivity server, controller-manager and scheduler, as Deployments behind a load balancer.

The flags are kubeadm's (cmd/kubeadm/app/phases/controlplane/manifests.go at v1.35.1), with the files where our Secrets are mounted, and
with konnectivity for everything in the cluster: pods, nodes and services are only reached through the agents there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from ckp.api.names import ADDRESSES_ANNOTATION, load_balancer
from ckp.clients.kube import Obj
from ckp.controllers.controlplane.etcd import CLIENT_PORT, member_host, member_names
from ckp.controllers.controlplane.plan import API_PORT, KONNECTIVITY_PORT, PRIORITY, Plan
from ckp.controllers.controlplane.tunnels import ROUTED, SERVER, SERVER_FLAGS
from ckp.controllers.pods import config_volume, empty_volume, hardened, mount, pod_spec, spread

PKI = "/etc/kubernetes/pki"
SOCKETS = "/run/konnectivity"
CONFIG = "/etc/kubernetes/config"
AUTHORITY_ANNOTATION = "ckp.coredge.io/authority"
SHUTDOWN_DELAY = 5
"""Seconds in which an API server that is to stop still serves."""
REQUEST_SECONDS = 60
"""The API server's own limit for a request that is no watch."""
READY_AFTER = 5
"""Of several API servers, one that starts is ready once it has said so as many times in a row (every other second): agents connect to it meanwhile."""
NO_RECONCILER = "--endpoint-reconciler-type=none"
EMULATED = "emulated-version"
"""The flag of KEP-4330, which the three programs have alike (docs/adr/0040)."""


def service(plan: Plan) -> Obj:
    """Where workers and users reach the API server and their agents the konnectivity server."""
    agents = {"name": "konnectivity", "port": KONNECTIVITY_PORT, "targetPort": ROUTED if plan.routed else KONNECTIVITY_PORT}
    ports = [{"name": "https", "port": API_PORT, "targetPort": API_PORT}, agents]
    annotations = {ADDRESSES_ANNOTATION: plan.wanted_address} if plan.wanted_address else {}
    spec: Obj = {"type": "LoadBalancer", "allocateLoadBalancerNodePorts": False, "selector": plan.selector("apiserver"), "ports": ports}
    spec |= load_balancer(plan.load_balancer_class, plan.wanted_address)
    return {"apiVersion": "v1", "kind": "Service", "metadata": plan.meta(plan.name("apiserver"), annotations=annotations), "spec": spec}


def config_map(plan: Plan) -> Obj:
    """The egress selector, and kubeconfigs that name files instead of holding keys, so a renewed certificate is picked up."""
    egress = {
        "apiVersion": "apiserver.k8s.io/v1beta1",
        "kind": "EgressSelectorConfiguration",
        "egressSelections": [
            {"name": "cluster", "connection": {"proxyProtocol": "GRPC", "transport": {"uds": {"udsName": f"{SOCKETS}/konnectivity.sock"}}}},
            {"name": "controlplane", "connection": {"proxyProtocol": "Direct"}},
            {"name": "etcd", "connection": {"proxyProtocol": "Direct"}},
        ],
    }
    data = {
        "egress.json": json.dumps(egress),
        "kubeconfig.json": json.dumps(_kubeconfig(f"https://{plan.internal_endpoint}")),
        "local.json": json.dumps(_kubeconfig(f"https://localhost:{API_PORT}")),
    }
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": plan.meta(plan.name("control-plane")), "data": data}


def _kubeconfig(server: str) -> Obj:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "cluster", "cluster": {"server": server, "certificate-authority": f"{PKI}/ca.crt"}}],
        "users": [{"name": "user", "user": {"client-certificate": f"{PKI}/client.crt", "client-key": f"{PKI}/client.key"}}],
        "contexts": [{"name": "context", "context": {"cluster": "cluster", "user": "user"}}],
        "current-context": "context",
    }


def api_server(plan: Plan) -> Obj:
    """The API server and, beside it in the same pod, the konnectivity server that it dials through a socket."""
    flags = {
        "allow-privileged": "true",
        "authorization-mode": "Node,RBAC",
        "client-ca-file": f"{PKI}/ca.crt",
        "egress-selector-config-file": f"{CONFIG}/egress.json",
        "enable-admission-plugins": "NodeRestriction",
        "enable-bootstrap-token-auth": "true",
        # The controllers write what stands behind the Service `kubernetes`: a stopping API server would take it away from all.
        "endpoint-reconciler-type": "none",
        "etcd-cafile": f"{PKI}/etcd-ca.crt",
        "etcd-certfile": f"{PKI}/apiserver-etcd-client.crt",
        "etcd-keyfile": f"{PKI}/apiserver-etcd-client.key",
        "etcd-servers": _etcd_servers(plan),
        # What it says of itself, such as where its public keys are (OpenID Connect discovery). Otherwise that is its pod's address, which no workload reaches.
        "external-hostname": plan.address,
        "kubelet-client-certificate": f"{PKI}/apiserver-kubelet-client.crt",
        "kubelet-client-key": f"{PKI}/apiserver-kubelet-client.key",
        "kubelet-preferred-address-types": "InternalIP,ExternalIP,Hostname",
        "profiling": "false",
        "proxy-client-cert-file": f"{PKI}/front-proxy-client.crt",
        "proxy-client-key-file": f"{PKI}/front-proxy-client.key",
        "requestheader-allowed-names": "front-proxy-client",
        "requestheader-client-ca-file": f"{PKI}/front-proxy-ca.crt",
        "requestheader-extra-headers-prefix": "X-Remote-Extra-",
        "requestheader-group-headers": "X-Remote-Group",
        "requestheader-username-headers": "X-Remote-User",
        "secure-port": str(API_PORT),
        # A pod that is to end first says that it is not ready, and serves on until load balancers have noticed; what has begun then is finished.
        "shutdown-delay-duration": f"{SHUTDOWN_DELAY}s",
        "shutdown-send-retry-after": "true",
        "service-account-issuer": f"https://kubernetes.default.svc.{plan.domain}",
        "service-account-key-file": f"{PKI}/sa.pub",
        "service-account-signing-key-file": f"{PKI}/sa.key",
        "service-cluster-ip-range": plan.service_cidr,
        "tls-cert-file": f"{PKI}/apiserver.crt",
        "tls-private-key-file": f"{PKI}/apiserver.key",
    }
    leaves = ("apiserver", "apiserver-kubelet-client", "apiserver-etcd-client", "front-proxy-client")
    files = [(leaf, key, f"{leaf}.{key[-3:]}") for leaf in leaves for key in ("tls.crt", "tls.key")]
    files += [("ca", "tls.crt", "ca.crt"), ("etcd", "tls.crt", "etcd-ca.crt"), ("proxy", "tls.crt", "front-proxy-ca.crt")]
    files += [("sa", "tls.key", "sa.key"), ("sa", "tls.crt", "sa.pub")]
    container = {
        "name": "kube-apiserver",
        "image": plan.release.image("kube-apiserver"),
        "command": ["kube-apiserver", *(f"--{flag}={value}" for flag, value in (flags | _emulation(plan)).items())],
        "ports": [{"name": "https", "containerPort": API_PORT}],
        "startupProbe": _probe("/readyz", API_PORT, period=1, failures=180),
        "readinessProbe": {**_probe("/readyz", API_PORT, period=2, failures=3), "successThreshold": READY_AFTER if plan.replicas > 1 else 1},
        "livenessProbe": _probe("/livez", API_PORT, period=10, failures=8),
        "resources": {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"memory": "4Gi"}},
        "securityContext": hardened(),
        "volumeMounts": [mount("pki", PKI), mount("config", CONFIG), mount("sockets", SOCKETS, writable=True), mount("tmp", "/tmp", writable=True)],
    }
    volumes = [
        plan.pki_volume("pki", *files),
        plan.pki_volume("konnectivity-pki", *_client_files("konnectivity"), ("apiserver", "tls.crt", "tls.crt"), ("apiserver", "tls.key", "tls.key")),
        config_volume("config", plan.name("control-plane")),
        {"name": "sockets", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        empty_volume("tmp"),
    ]
    surge = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    pod = {"initContainers": [_konnectivity(plan)], "terminationGracePeriodSeconds": SHUTDOWN_DELAY + REQUEST_SECONDS + 10}
    return _deployment(plan, "apiserver", [container], volumes, surge, **pod)


def _etcd_servers(plan: Plan) -> str:
    """Each of several members by its name, so that the API server itself leaves one that hangs; a single one by its Service."""
    if plan.etcd_replicas == 1:
        return f"https://{plan.name('etcd')}.{plan.namespace}.svc:{CLIENT_PORT}"
    return ",".join(f"https://{member_host(plan, member)}:{CLIENT_PORT}" for member in member_names(plan))


def held(api_server: Obj) -> Obj:
    """The same Deployment without a pod."""
    return {**api_server, "spec": {**api_server["spec"], "replicas": 0}}


def _konnectivity(plan: Plan) -> Obj:
    command = [
        "/proxy-server",
        "--mode=grpc",
        f"--uds-name={SOCKETS}/konnectivity.sock",
        "--delete-existing-uds-file=true",
        "--server-port=0",
        f"--agent-port={KONNECTIVITY_PORT}",
        "--admin-port=8133",
        "--admin-bind-address=127.0.0.1",
        "--health-port=8134",
        f"--cluster-cert={PKI}/tls.crt",
        f"--cluster-key={PKI}/tls.key",
        "--agent-namespace=kube-system",
        "--agent-service-account=konnectivity-agent",
        "--authentication-audience=system:konnectivity-server",
        # Where there are others they answer for one whose own API server has only begun to start.
        f"--kubeconfig={CONFIG}/{'kubeconfig' if plan.replicas > 1 else 'local'}.json",
        f"--server-count={plan.replicas}",
        *SERVER_FLAGS,
        # A node is reached through its own agent, so that another node's dead one does not matter to it.
        "--proxy-strategies=destHost,defaultRoute,default",  # all else by agents of its own (bootstrap.py), where a cluster has them
        # An agent whose host lost power is given up after this and gRPC's own 20 s, for which the server has no flag.
        "--keepalive-time=5s",
        "--frontend-keepalive-time=30s",
    ]
    return {
        "name": SERVER,
        # Started before the API server and stopped after it: a webhook that is called while the pod ends still needs the tunnel.
        "restartPolicy": "Always",
        "image": plan.release.image("konnectivity-server"),
        "command": command,
        "ports": [{"name": "konnectivity", "containerPort": KONNECTIVITY_PORT}],
        "livenessProbe": {**_probe("/healthz", 8134, period=10, failures=8, scheme="HTTP")},
        "resources": {"requests": {"cpu": "5m", "memory": "24Mi"}, "limits": {"memory": "512Mi"}},
        "securityContext": hardened(),
        "volumeMounts": [mount("konnectivity-pki", PKI), mount("config", CONFIG), mount("sockets", SOCKETS, writable=True)],
    }


def controller_manager(plan: Plan, authority: str = "") -> Obj:
    """kube-controller-manager; it signs kubelets' certificates, so it alone beside the API server sees the CA's key.

    Args:
        authority: tells the CA's certificate from the one before it: the program reads what it puts into `kube-root-ca.crt` only when it starts.
    """
    flags = {
        "allocate-node-cidrs": "true",
        "authentication-kubeconfig": f"{CONFIG}/kubeconfig.json",
        "authorization-kubeconfig": f"{CONFIG}/kubeconfig.json",
        "bind-address": "0.0.0.0",
        "client-ca-file": f"{PKI}/ca.crt",
        "cluster-cidr": plan.pod_cidr,
        "cluster-name": plan.cluster,
        "cluster-signing-cert-file": f"{PKI}/ca.crt",
        "cluster-signing-key-file": f"{PKI}/ca.key",
        "cluster-signing-duration": "87600h",
        "controllers": "*,bootstrapsigner,tokencleaner",
        "kubeconfig": f"{CONFIG}/kubeconfig.json",
        "leader-elect": "true",
        "profiling": "false",
        "requestheader-client-ca-file": f"{PKI}/front-proxy-ca.crt",
        "root-ca-file": f"{PKI}/ca.crt",
        "service-account-private-key-file": f"{PKI}/sa.key",
        "service-cluster-ip-range": plan.service_cidr,
        "use-service-account-credentials": "true",
    }
    files = [("ca", "tls.crt", "ca.crt"), ("ca", "tls.key", "ca.key"), ("proxy", "tls.crt", "front-proxy-ca.crt"), ("sa", "tls.key", "sa.key")]
    made = _component(plan, "controller-manager", "kube-controller-manager", flags, 10257, files, memory="96Mi")
    made["spec"]["template"]["metadata"]["annotations"] = {AUTHORITY_ANNOTATION: authority}
    return made


def scheduler(plan: Plan) -> Obj:
    """kube-scheduler."""
    flags = {
        "authentication-kubeconfig": f"{CONFIG}/kubeconfig.json",
        "authorization-kubeconfig": f"{CONFIG}/kubeconfig.json",
        "bind-address": "0.0.0.0",
        "kubeconfig": f"{CONFIG}/kubeconfig.json",
        "leader-elect": "true",
        "profiling": "false",
    }
    return _component(plan, "scheduler", "kube-scheduler", flags, 10259, [("ca", "tls.crt", "ca.crt")], memory="48Mi")


def _component(plan: Plan, part: str, program: str, flags: dict[str, str], port: int, files: list[tuple[str, str, str]], *, memory: str) -> Obj:
    container = {
        "name": program,
        "image": plan.release.image(program),
        "command": [program, *(f"--{flag}={value}" for flag, value in (flags | _emulation(plan)).items())],
        "startupProbe": _probe("/healthz", port, period=2, failures=90),
        "livenessProbe": _probe("/healthz", port, period=10, failures=8),
        "resources": {"requests": {"cpu": "10m", "memory": memory}, "limits": {"memory": "1Gi"}},
        "securityContext": hardened(),
        "volumeMounts": [mount("pki", PKI), mount("config", CONFIG), mount("tmp", "/tmp", writable=True)],
    }
    volumes = [
        plan.pki_volume("pki", *dict.fromkeys([*files, *_client_files(part)])),
        config_volume("config", plan.name("control-plane")),
        empty_volume("tmp"),
    ]
    return _deployment(plan, part, [container], volumes, _one_after_the_other(plan.replicas))


def _one_after_the_other(replicas: int) -> Obj:
    """The strategy of a component of which one replica works at a time.

    The lease sees to that; and with a single replica the old pod is gone before the new one starts. `rollingUpdate` is named, as null, since what an
    older version applied there is refused beside Recreate.
    """
    if replicas == 1:
        return {"type": "Recreate", "rollingUpdate": None}
    return {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}


def _emulation(plan: Plan) -> dict[str, str]:
    return {EMULATED: plan.emulated} if plan.emulated else {}


def emulation_of(spec: Obj | None, program: str) -> str:
    """The minor that a program is told to behave as, by the spec of its pod; "" if it is told none."""
    commands = [item.get("command") or [] for item in (spec or {}).get("containers") or [] if item["name"] == program]
    return next((str(item).partition("=")[2] for command in commands for item in command if str(item).startswith(f"--{EMULATED}=")), "")


def serves_only(plan: Plan, pods: Sequence[Obj]) -> bool:
    """Whether no API server of another version is left, be it in a pod that is ending: what speaks to the API server must never be newer than it."""
    return runs_only(plan, "kube-apiserver", pods)


def runs_only(plan: Plan, program: str, pods: Sequence[Obj]) -> bool:
    """Whether all these pods that are not over have a program of the plan's release and behave as its plan says."""
    image = plan.release.image(program)
    alive = [pod["spec"] for pod in pods if (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")]
    images = [container["image"] for spec in alive for container in spec["containers"] if container["name"] == program]
    return all(found == image for found in images) and all(emulation_of(spec, program) == plan.emulated for spec in alive)


def clears_endpoints(pods: Sequence[Obj]) -> bool:
    """Whether an API server is left that takes the endpoints of `kubernetes` away when it stops, as CKP 0.2.0 made them."""
    commands = [container["command"] for pod in pods for container in pod["spec"]["containers"] if container["name"] == "kube-apiserver"]
    return any(NO_RECONCILER not in command for command in commands)


def _client_files(leaf: str) -> list[tuple[str, str, str]]:
    """What `kubeconfig.json` names."""
    return [("ca", "tls.crt", "ca.crt"), (leaf, "tls.crt", "client.crt"), (leaf, "tls.key", "client.key")]


def _deployment(plan: Plan, part: str, containers: list[Obj], volumes: list[Obj], strategy: Obj, **pod: object) -> Obj:
    selector = plan.selector(part)
    apart = spread(selector, plan.replicas, each_version="pod-template-hash")
    spec = {
        "replicas": plan.replicas,
        "revisionHistoryLimit": 2,
        "selector": {"matchLabels": selector},
        "strategy": strategy,
        "template": {"metadata": {"labels": selector}, "spec": pod_spec(containers, volumes, priorityClassName=PRIORITY, **apart, **pod)},
    }
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": plan.meta(plan.name(part)), "spec": spec}


def _probe(path: str, port: int, *, period: int, failures: int, scheme: str = "HTTPS") -> Obj:
    return {"httpGet": {"path": path, "port": port, "scheme": scheme}, "periodSeconds": period, "timeoutSeconds": 15, "failureThreshold": failures}
