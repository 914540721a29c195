"""How the konnectivity agents of a cluster come to have a tunnel to each of its API servers, and have it before a new one is asked for anything.

An API server reaches nodes through its own konnectivity server only, and agents dial all of them at one address, so which one answers is chance. Three things
together leave no API server without a tunnel during a rollout (konnectivity v0.34.0: pkg/agent/clientset.go, pkg/server/leases):
- each server has a lease in the workload cluster, and agents count them: a server more, beside those that were there, is looked for at once and only then;
- of several API servers, one that starts can be dialled by agents before it is ready: these controllers write the EndpointSlice of the agents' port, in
  place of Kubernetes, which knows but one readiness of a pod;
- and it is ready only some seconds after it could be (apiserver.py), without waiting for anybody.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from ckp.api.kinds import ENDPOINT_SLICE
from ckp.clients.kube import Kube, Obj
from ckp.controllers.apply import Applier
from ckp.controllers.controlplane.plan import API_PORT, KONNECTIVITY_PORT, Plan
from ckp.controllers.controlplane.service_endpoints import MANAGER, MANAGER_LABEL, SERVICE_LABEL

SERVER = "konnectivity-server"
"""The name of the server's container."""
SERVER_USER = "system:konnectivity-server"
AGENT = "konnectivity-agent"
LEASE_NAMESPACE = "kube-public"
"""Every agent watches all leases of the namespace; in kube-system and kube-node-lease there are many that change all the time."""
LEASE_LABEL = f"k8s-app={SERVER}"
RBAC = "rbac.authorization.k8s.io"
ROUTED = "agents"
"""The target of the Service's port for agents where these controllers say what that is: no container has a port of this name, so Kubernetes leaves it out."""

SERVER_FLAGS = ("--enable-lease-controller=true", f"--lease-namespace={LEASE_NAMESPACE}", f"--lease-label={LEASE_LABEL}")
AGENT_FLAGS = (
    # A server that is missing is looked for twice a second; where all are there, nothing is dialled.
    "--sync-interval=500ms",
    "--sync-interval-cap=5s",
    "--count-server-leases=true",
    f"--lease-namespace={LEASE_NAMESPACE}",
    f"--lease-label={LEASE_LABEL}",
    # Servers of before have no lease, but tell how many they are.
    "--server-count-source=max",
)


def agent_environment(plan: Plan) -> list[Obj]:
    """Where an agent finds the API server: by the Service it could not before there is a network, and it must work then."""
    return [{"name": "KUBERNETES_SERVICE_HOST", "value": plan.host}, {"name": "KUBERNETES_SERVICE_PORT", "value": str(API_PORT)}]


def lease_rules() -> list[Obj]:
    """Servers keep their leases and remove those of servers that are gone; agents read them."""
    servers = {"kind": "User", "name": SERVER_USER, "apiGroup": RBAC}
    agents = {"kind": "ServiceAccount", "name": AGENT, "namespace": "kube-system"}
    return [*_role(SERVER, ["get", "list", "create", "update", "delete"], servers), *_role(AGENT, ["get", "list", "watch"], agents)]


def _role(name: str, verbs: list[str], subject: Obj) -> list[Obj]:
    meta = {"name": name, "namespace": LEASE_NAMESPACE}
    rules = [{"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": verbs}]
    reference = {"apiGroup": RBAC, "kind": "Role", "name": name}
    return [
        {"apiVersion": f"{RBAC}/v1", "kind": "Role", "metadata": meta, "rules": rules},
        {"apiVersion": f"{RBAC}/v1", "kind": "RoleBinding", "metadata": meta, "roleRef": reference, "subjects": [subject]},
    ]


def is_routed(service: Obj | None) -> bool:
    """Whether the API server's Service leaves its agents' port to these controllers already."""
    ports = ((service or {}).get("spec") or {}).get("ports") or []
    return any(port.get("targetPort") == ROUTED for port in ports)


def servers(plan: Plan, pods: Sequence[Obj]) -> list[Obj]:
    """Where agents reach the konnectivity servers, those of starting API servers among them.

    Args:
        pods: of the API server.

    Returns:
        One EndpointSlice; none while no pod has an address, since it is not known of which family they will be.
    """
    points = {_address(pod): _conditions(pod) for pod in pods if _address(pod) and _server_runs(pod)}
    if not points:
        return []
    made = {
        "apiVersion": ENDPOINT_SLICE.api_version,
        "kind": ENDPOINT_SLICE.kind,
        "metadata": plan.meta(plan.name("apiserver-agents"), labels={SERVICE_LABEL: plan.name("apiserver"), MANAGER_LABEL: MANAGER}),
        "addressType": f"IPv{ipaddress.ip_address(min(points)).version}",
        "endpoints": [{"addresses": [address], "conditions": conditions} for address, conditions in sorted(points.items())],
        "ports": [{"name": "konnectivity", "port": KONNECTIVITY_PORT, "protocol": "TCP"}],
    }
    return [made]


async def route(kube: Kube, applier: Applier, plan: Plan, pods: Sequence[Obj]) -> bool:
    """Bring the agents' way to the pods as they are; whether it is to be looked at again soon.

    It is never in two slices: what they say of one address may differ, and which counts is up to who reads them (Cilium drops an address that one of them
    drops). So Kubernetes' own, as they were when there was a single API server, must have gone before.
    """
    named = await kube.list(ENDPOINT_SLICE, plan.namespace, labels={SERVICE_LABEL: plan.name("apiserver")})
    own = [item for item in named if (item["metadata"].get("labels") or {}).get(MANAGER_LABEL) != MANAGER]
    if any(port.get("port") == KONNECTIVITY_PORT for item in own for port in item.get("ports") or []):
        return True
    await applier.apply(*servers(plan, pods))
    return any(pod["metadata"].get("deletionTimestamp") or not _is(pod, "Ready") for pod in pods)


def _conditions(pod: Obj) -> dict[str, bool]:
    """As Kubernetes gives them, but that a pod which starts counts as ready. One that was ready and is not any more, though its containers are, is on a
    node that is not heard from.
    """
    if pod["metadata"].get("deletionTimestamp"):
        return {"ready": False, "serving": True, "terminating": True}
    reached = _is(pod, "Ready") or not _is(pod, "ContainersReady")
    return {"ready": reached, "serving": reached, "terminating": False}


def _address(pod: Obj) -> str:
    return str((pod.get("status") or {}).get("podIP") or "")


def _is(pod: Obj, kind: str) -> bool:
    return any(item.get("type") == kind and item.get("status") == "True" for item in (pod.get("status") or {}).get("conditions") or [])


def _server_runs(pod: Obj) -> bool:
    statuses = (pod.get("status") or {}).get("initContainerStatuses") or []
    return any(item.get("name") == SERVER and "running" in (item.get("state") or {}) for item in statuses)
