"""Konnectivity with several API servers: agents know how many there are, and have a tunnel to a new one before it is ready."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from ckp.api.kinds import DEPLOYMENT, ENDPOINT_SLICE, MANAGED_CONTROL_PLANE, POD, SERVICE
from ckp.clients.kube import Obj
from ckp.controllers.controlplane import apiserver, bootstrap, tunnels
from ckp.controllers.controlplane.plan import KONNECTIVITY_PORT
from tests.unit.controllers.test_control_plane_manifests import plan
from tests.worlds.control_plane import TENANT, ControlPlaneWorld


def manifests(**spec: Any) -> dict[tuple[str, str], Obj]:
    """What the bootstrap Job applies to the workload cluster."""
    items = json.loads(bootstrap.bootstrap_objects(plan(**spec))[0]["data"]["manifests.json"])["items"]
    return {(item["kind"], item["metadata"]["name"]): item for item in items}


def agent(**spec: Any) -> Obj:
    container: Obj = manifests(**spec)["DaemonSet", "konnectivity-agent"]["spec"]["template"]["spec"]["containers"][0]
    return container


def options(command: list[str]) -> dict[str, str]:
    return dict(item[2:].split("=", 1) for item in command if item.startswith("--"))


def api_pod(
    name: str, *, ready: bool = True, containers: bool | None = None, server: str = "running", address: str = "10.244.0.7", ending: bool = False
) -> Obj:
    """A pod of the API server's; its containers are ready as it is, if nothing else is said."""
    conditions = {"Ready": ready, "ContainersReady": ready if containers is None else containers}
    status = {
        "podIP": address,
        "conditions": [{"type": kind, "status": str(value)} for kind, value in conditions.items()],
        "initContainerStatuses": [{"name": "konnectivity-server", "state": {server: {}}}],
    }
    meta = {"name": name, "namespace": TENANT, "labels": plan().selector("apiserver"), **({"deletionTimestamp": "2026-05-01T12:00:00Z"} if ending else {})}
    spec = {"containers": apiserver.api_server(plan())["spec"]["template"]["spec"]["containers"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec, "status": status}


async def set_pod(world: ControlPlaneWorld, pod: Obj) -> None:
    name = pod["metadata"]["name"]
    if await world.kube.get(POD, name, TENANT) is None:
        await world.kube.create(pod)
    await world.kube.merge(POD, name, TENANT, {"status": pod["status"]}, subresource="status")


def addresses(endpoint_slices: list[Obj]) -> dict[str, bool]:
    """What the slices lead to, and whether it is ready."""
    return {address: point["conditions"]["ready"] for item in endpoint_slices for point in item["endpoints"] for address in point["addresses"]}


def test_agents_count_the_leases_that_servers_keep_and_both_may() -> None:
    made = manifests(replicas=3)
    server = options(apiserver.api_server(plan(replicas=3))["spec"]["template"]["spec"]["initContainers"][0]["command"])
    counted = options(agent(replicas=3)["command"])
    assert server["enable-lease-controller"] == counted["count-server-leases"] == "true"
    assert {key: server[key] for key in ("lease-namespace", "lease-label")} == {key: counted[key] for key in ("lease-namespace", "lease-label")}
    assert counted["server-count-source"] == "max", "servers of before have no lease"
    verbs = {}
    for name in ("konnectivity-server", "konnectivity-agent"):
        role, binding = made["Role", name], made["RoleBinding", name]
        assert role["metadata"]["namespace"] == binding["metadata"]["namespace"] == server["lease-namespace"]
        assert binding["roleRef"]["name"] == name
        [rule] = role["rules"]
        assert (rule["apiGroups"], rule["resources"]) == (["coordination.k8s.io"], ["leases"])
        verbs[binding["subjects"][0]["name"]] = set(rule["verbs"])
    assert verbs == {"system:konnectivity-server": {"get", "list", "create", "update", "delete"}, "konnectivity-agent": {"get", "list", "watch"}}


def test_agents_find_the_api_server_without_the_network_that_its_service_needs() -> None:
    env = {item["name"]: item.get("value") for item in agent()["env"]}
    assert (env["KUBERNETES_SERVICE_HOST"], env["KUBERNETES_SERVICE_PORT"]) == ("10.88.0.150", "6443")


@pytest.mark.parametrize(("replicas", "times", "config"), [(1, 1, "local.json"), (3, apiserver.READY_AFTER, "kubeconfig.json")])
def test_one_of_several_api_servers_waits_for_agents_and_a_single_one_for_nothing(replicas: int, times: int, config: str) -> None:
    """Also for no other: a single server asks itself who an agent is, since nobody else would answer."""
    pod = apiserver.api_server(plan(replicas=replicas))["spec"]["template"]["spec"]
    assert pod["containers"][0]["readinessProbe"]["successThreshold"] == times
    assert options(pod["initContainers"][0]["command"])["kubeconfig"].endswith(f"/{config}")
    assert all(pod["containers"][0][probe].get("successThreshold", 1) == 1 for probe in ("startupProbe", "livenessProbe"))


def test_agents_reach_a_server_whose_pod_starts_and_clients_do_not() -> None:
    pods = [
        api_pod("serves", address="10.244.0.1"),
        api_pod("starts", ready=False, address="10.244.0.2"),
        api_pod("is-pulled", ready=False, server="waiting", address="10.244.0.3"),
        api_pod("is-scheduled", ready=False, address=""),
        api_pod("ends", address="10.244.0.5", ending=True),
        api_pod("is-lost-with-its-node", ready=False, containers=True, address="10.244.0.6"),
    ]
    [made] = tunnels.servers(plan(), pods)
    assert addresses([made]) == {"10.244.0.1": True, "10.244.0.2": True, "10.244.0.5": False, "10.244.0.6": False}
    ending = next(point["conditions"] for point in made["endpoints"] if point["addresses"] == ["10.244.0.5"])
    assert ending == {"ready": False, "serving": True, "terminating": True}, "its tunnels are kept until it is gone"
    assert [(port["name"], port["port"]) for port in made["ports"]] == [("konnectivity", KONNECTIVITY_PORT)], "not the port of the API"
    service = apiserver.service(plan())
    assert made["metadata"]["labels"]["kubernetes.io/service-name"] == service["metadata"]["name"]
    assert "konnectivity" in [port["name"] for port in service["spec"]["ports"]], "slices belong to a Service's port by its name"
    assert made["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"] != "endpointslice-controller.k8s.io", "or Kubernetes would remove it"


def test_a_slice_is_made_for_the_family_of_the_pods_addresses() -> None:
    """It can't be changed later."""
    assert tunnels.servers(plan(), [api_pod("is-scheduled", ready=False, address="")]) == []
    [made] = tunnels.servers(plan(), [api_pod("serves", address="fd00::1")])
    assert made["addressType"] == "IPv6"


@pytest.mark.parametrize("replicas", [1, 3])
def test_kubernetes_names_no_servers_for_agents_where_the_controllers_do(replicas: int) -> None:
    """It leaves a port out that no container of a pod has (endpointslice: FindPort)."""
    made = replace(plan(replicas=replicas), routed=replicas > 1)
    targets = {port["name"]: port["targetPort"] for port in apiserver.service(made)["spec"]["ports"]}
    pod = apiserver.api_server(made)["spec"]["template"]["spec"]
    named = {port["name"] for container in [*pod["containers"], *pod["initContainers"]] for port in container.get("ports", [])}
    if replicas == 1:
        assert targets == {"https": 6443, "konnectivity": KONNECTIVITY_PORT}
    else:
        assert targets["https"] == 6443 and isinstance(targets["konnectivity"], str) and targets["konnectivity"] not in named


async def test_a_starting_api_server_is_watched_until_it_is_ready_and_an_ending_one_until_it_is_gone() -> None:
    world = ControlPlaneWorld()
    await world.ready(replicas=3)
    await set_pod(world, api_pod("new", ready=False))
    after = (await world.pass_once()).after
    assert after is not None and after <= 2, "its Deployment tells of nothing in between"
    assert addresses(world.kube.all_stored(ENDPOINT_SLICE)) == {"10.244.0.7": True}
    await set_pod(world, api_pod("new"))
    after = (await world.pass_once()).after
    assert after is not None and after > 2
    assert addresses(world.kube.all_stored(ENDPOINT_SLICE)) == {"10.244.0.7": True}
    world.kube.stored(POD, "new", TENANT)["metadata"]["deletionTimestamp"] = "2026-05-01T12:00:00Z"
    after = (await world.pass_once()).after
    assert after is not None and after <= 2
    assert addresses(world.kube.all_stored(ENDPOINT_SLICE)) == {"10.244.0.7": False}


async def test_the_first_api_servers_are_watched_as_well() -> None:
    world = ControlPlaneWorld()
    await world.start(replicas=3)
    await world.pass_once()
    assert world.kube.stored(DEPLOYMENT, "demo-apiserver", TENANT)["spec"]["replicas"] == 3
    await set_pod(world, api_pod("first", ready=False))
    after = (await world.pass_once()).after
    assert after is not None and after <= 2
    assert world.condition("ControlPlaneComponentsReady")["message"] == "the API server is starting"
    assert addresses(world.kube.all_stored(ENDPOINT_SLICE)) == {"10.244.0.7": True}


async def test_an_address_is_never_in_two_slices_when_one_api_server_becomes_several() -> None:
    world = ControlPlaneWorld()
    await world.ready()
    await set_pod(world, api_pod("first"))
    await world.pass_once()
    assert world.kube.all_stored(ENDPOINT_SLICE) == [] and not tunnels.is_routed(world.kube.stored(SERVICE, "demo-apiserver", TENANT))
    kubernetes = {"kubernetes.io/service-name": "demo-apiserver", "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"}
    ports = [{"name": "https", "port": 6443}, {"name": "konnectivity", "port": KONNECTIVITY_PORT}]
    native = {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "x", "namespace": TENANT, "labels": kubernetes}}
    await world.kube.create({**native, "endpoints": [], "ports": ports})
    await world.kube.merge(MANAGED_CONTROL_PLANE, "demo", TENANT, {"spec": {"replicas": 3}})
    after = (await world.pass_once()).after
    assert tunnels.is_routed(world.kube.stored(SERVICE, "demo-apiserver", TENANT))
    assert len(world.kube.all_stored(ENDPOINT_SLICE)) == 1 and after is not None and after <= 2
    await world.kube.merge(ENDPOINT_SLICE, "x", TENANT, {"ports": ports[:1]})  # Kubernetes follows the Service
    await world.pass_once()
    made = world.kube.stored(ENDPOINT_SLICE, "demo-apiserver-agents", TENANT)
    assert addresses([made]) == {"10.244.0.7": True}
    await world.kube.merge(MANAGED_CONTROL_PLANE, "demo", TENANT, {"spec": {"replicas": 1}})
    await world.pass_once()
    assert tunnels.is_routed(world.kube.stored(SERVICE, "demo-apiserver", TENANT)), "and it stays so"
