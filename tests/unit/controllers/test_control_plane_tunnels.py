"""Konnectivity with several API servers: agents know how many there are, and have a tunnel to a new one before it is ready."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ckp.api.kinds import DEPLOYMENT, ENDPOINT_SLICE, POD
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


def api_pod(name: str, *, ready: bool, server: str = "running", address: str = "10.244.0.7", ending: bool = False) -> Obj:
    status = {
        "podIP": address,
        "conditions": [{"type": "Ready", "status": str(ready)}],
        "initContainerStatuses": [{"name": "konnectivity-server", "state": {server: {}}}],
    }
    meta = {"name": name, "namespace": TENANT, "labels": plan().selector("apiserver"), **({"deletionTimestamp": "2026-05-01T12:00:00Z"} if ending else {})}
    containers = apiserver.api_server(plan())["spec"]["template"]["spec"]["containers"]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"containers": containers}, "status": status}


def addresses(endpoint_slices: list[Obj]) -> list[str]:
    return [address for item in endpoint_slices for point in item["endpoints"] for address in point["addresses"]]


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
        api_pod("serves", ready=True, address="10.244.0.1"),
        api_pod("starts", ready=False, address="10.244.0.2"),
        api_pod("is-pulled", ready=False, server="waiting", address="10.244.0.3"),
        api_pod("is-scheduled", ready=False, address=""),
        api_pod("ends", ready=False, address="10.244.0.5", ending=True),
    ]
    [made] = tunnels.starting_servers(plan(), pods)
    assert addresses([made]) == ["10.244.0.2"]
    assert [(port["name"], port["port"]) for port in made["ports"]] == [("konnectivity", KONNECTIVITY_PORT)], "not the port of the API"
    service = apiserver.service(plan())
    assert made["metadata"]["labels"]["kubernetes.io/service-name"] == service["metadata"]["name"]
    assert "konnectivity" in [port["name"] for port in service["spec"]["ports"]], "slices belong to a Service's port by its name"
    assert made["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"] != "endpointslice-controller.k8s.io", "or Kubernetes would remove it"


def test_a_slice_is_made_for_the_family_of_the_pods_addresses() -> None:
    """It can't be changed later."""
    assert tunnels.starting_servers(plan(), [api_pod("is-scheduled", ready=False, address="")]) == []
    [made] = tunnels.starting_servers(plan(), [api_pod("serves", ready=True, address="fd00::1")])
    assert (made["addressType"], made["endpoints"]) == ("IPv6", [])


async def test_a_starting_api_server_is_watched_until_it_is_ready() -> None:
    world = ControlPlaneWorld()
    await world.ready(replicas=3)
    pod = await world.kube.create(api_pod("demo-apiserver-new", ready=False))
    await world.kube.merge(POD, "demo-apiserver-new", TENANT, {"status": api_pod("", ready=False)["status"]}, subresource="status")
    after = (await world.pass_once()).after
    assert after is not None and after <= 2, "its Deployment tells of nothing in between"
    assert addresses(world.kube.all_stored(ENDPOINT_SLICE)) == ["10.244.0.7"]
    await world.kube.merge(POD, pod["metadata"]["name"], TENANT, {"status": api_pod("", ready=True)["status"]}, subresource="status")
    after = (await world.pass_once()).after
    assert after is not None and after > 2
    assert addresses(world.kube.all_stored(ENDPOINT_SLICE)) == []


async def test_the_first_api_servers_are_watched_as_well() -> None:
    world = ControlPlaneWorld()
    await world.start(replicas=3)
    await world.pass_once()
    assert world.kube.stored(DEPLOYMENT, "demo-apiserver", TENANT)["spec"]["replicas"] == 3
    await world.kube.create(api_pod("demo-apiserver-0", ready=False))
    await world.kube.merge(POD, "demo-apiserver-0", TENANT, {"status": api_pod("", ready=False)["status"]}, subresource="status")
    after = (await world.pass_once()).after
    assert after is not None and after <= 2
    assert world.condition("ControlPlaneComponentsReady")["message"] == "the API server is starting"
    assert addresses(world.kube.all_stored(ENDPOINT_SLICE)) == ["10.244.0.7"]
