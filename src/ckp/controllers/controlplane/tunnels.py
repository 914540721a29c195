"""How the konnectivity agents of a cluster come to have a tunnel to each of its API servers, and have it before a new one is asked for anything.

An API server reaches nodes through its own konnectivity server only, and agents dial all of them at one address, so which one answers is chance. Three things
together leave no API server without a tunnel during a rollout (konnectivity v0.34.0: pkg/agent/clientset.go, pkg/server/leases):
- each server has a lease in the workload cluster, and agents count them: a server more, beside those that were there, is looked for at once and only then;
- a server that starts can be dialled before its API server is ready: an EndpointSlice more of the load balancer's Service leads there, for agents only;
- of several API servers, one that starts is ready only some seconds after it could be (apiserver.py).
Nothing here is needed for an API server to become ready: without these controllers the agents find a new one later, that is all.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from ckp.api.kinds import ENDPOINT_SLICE
from ckp.clients.kube import Obj
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


def unready(pods: Sequence[Obj]) -> list[Obj]:
    """Those of the API server's pods that are neither ready nor ending."""
    return [pod for pod in pods if not pod["metadata"].get("deletionTimestamp") and not _is_ready(pod)]


def starting_servers(plan: Plan, pods: Sequence[Obj]) -> list[Obj]:
    """Where agents reach the konnectivity servers whose pods are not ready, beside the ready ones, which Kubernetes' own slices name.

    Args:
        pods: of the API server.

    Returns:
        One EndpointSlice, which may name nobody; none while no pod has an address, since it is not known of which family they will be.
    """
    if not (known := [_address(pod) for pod in pods if _address(pod)]):
        return []
    addresses = sorted(_address(pod) for pod in unready(pods) if _address(pod) and _server_runs(pod))
    made = {
        "apiVersion": ENDPOINT_SLICE.api_version,
        "kind": ENDPOINT_SLICE.kind,
        "metadata": plan.meta(plan.name("apiserver-starting"), labels={SERVICE_LABEL: plan.name("apiserver"), MANAGER_LABEL: MANAGER}),
        "addressType": f"IPv{ipaddress.ip_address(known[0]).version}",
        "endpoints": [{"addresses": [address], "conditions": {"ready": True}} for address in addresses],
        "ports": [{"name": "konnectivity", "port": KONNECTIVITY_PORT, "protocol": "TCP"}],
    }
    return [made]


def _address(pod: Obj) -> str:
    return str((pod.get("status") or {}).get("podIP") or "")


def _is_ready(pod: Obj) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(item.get("type") == "Ready" and item.get("status") == "True" for item in conditions)


def _server_runs(pod: Obj) -> bool:
    statuses = (pod.get("status") or {}).get("initContainerStatuses") or []
    return any(item.get("name") == SERVER and "running" in (item.get("state") or {}) for item in statuses)
