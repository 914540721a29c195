"""A hosted control plane's reconciler: what it makes when, and what it says of what it sees."""

from __future__ import annotations

from dataclasses import replace

from ckp.api.kinds import CONFIG_MAP, DEPLOYMENT, ENDPOINT_SLICE, JOB, MANAGED_CONTROL_PLANE, POD, SECRET, SERVICE, STATEFUL_SET
from ckp.clients.kube import Obj
from ckp.controllers.apply import Applier
from ckp.controllers.controlplane import apiserver
from tests.worlds.control_plane import HOST, TENANT, UP, ControlPlaneWorld, release


async def names(world: ControlPlaneWorld) -> set[str]:
    return {item["metadata"]["name"] for item in await world.kube.list(DEPLOYMENT, TENANT)}


def api_pod(world: ControlPlaneWorld, name: str, *, image: str = "", **labels: str) -> Obj:
    template = world.kube.stored(DEPLOYMENT, "demo-apiserver", TENANT)["spec"]["template"]
    containers = [{**item, "image": image or item["image"]} for item in template["spec"]["containers"]]
    meta = {"name": name, "namespace": TENANT, "labels": {**template["metadata"]["labels"], **labels}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"containers": containers}}


async def test_a_control_plane_comes_up_and_its_service_leads_to_the_load_balancer() -> None:
    world = ControlPlaneWorld()
    await world.ready()
    assert (world.status["initialized"], world.status["ready"]) == (True, True)
    assert world.condition("Ready")["status"] == "True"
    assert world.workload.stored(ENDPOINT_SLICE, "kubernetes", "default")["endpoints"][0]["addresses"] == [HOST]


async def test_the_service_leads_to_the_load_balancer_before_the_first_addon_or_coredns_can_ask() -> None:
    world = ControlPlaneWorld()
    await world.start()
    await world.pass_once()
    await world.etcd(1)
    await world.api_server(**UP)
    await world.pass_once()
    assert world.condition("Bootstrapped")["status"] == "False"
    assert world.workload.stored(ENDPOINT_SLICE, "kubernetes", "default")


async def test_the_service_is_unknown_while_the_api_server_is_not_reached() -> None:
    world = ControlPlaneWorld()
    await world.ready()
    world.cut_off()
    await world.pass_once()
    seen = world.condition("KubernetesServiceReady")
    assert (seen["status"], seen["reason"]) == ("Unknown", "APIServerNotReached")
    assert f"{HOST}:6443" in seen["message"]
    assert world.status["initialized"] is True


async def test_what_a_pass_does_not_come_to_is_not_said_to_run() -> None:
    """A certificate is issued again, and etcd and the API server are not looked at meanwhile."""
    world = ControlPlaneWorld()
    await world.ready()
    await world.kube.delete(SECRET, "demo-front-proxy-client", TENANT)
    await world.pass_once()
    running = ("EtcdReady", "EtcdSpaceAvailable", "ControlPlaneComponentsReady", "KubernetesServiceReady")
    assert [world.condition(kind)["status"] for kind in running] == ["Unknown"] * 4
    assert "demo-front-proxy-client" in world.condition("EtcdReady")["message"]
    assert world.condition("KubeconfigAvailable")["status"] == "True", "it is stored"
    assert world.status["ready"] is True, "which is looked at by itself"


async def test_while_an_api_server_of_before_can_empty_the_endpoints_they_are_looked_at_again_at_once() -> None:
    world = ControlPlaneWorld()
    await world.ready()
    old = api_pod(world, "old")
    old["spec"]["containers"][0]["command"] = ["kube-apiserver", f"--advertise-address={HOST}"]
    await world.kube.create(old)
    after = (await world.pass_once()).after
    assert after is not None and after <= 1
    await world.workload.merge(ENDPOINT_SLICE, "kubernetes", "default", {"endpoints": []})
    await world.pass_once()
    assert world.workload.stored(ENDPOINT_SLICE, "kubernetes", "default")["endpoints"]


async def test_a_new_controller_manager_waits_until_every_old_api_server_is_gone() -> None:
    world = ControlPlaneWorld()
    await world.start()
    await world.pass_once()
    await world.etcd(1)
    await world.api_server(**UP)
    old = api_pod(world, "old", image="r.example:5000/ckp/kube-apiserver:v1.34.3-ckp")
    await world.kube.create({**old, "metadata": {**old["metadata"], "finalizers": ["test/ending"]}})
    await world.kube.delete(POD, "old", TENANT)
    after = (await world.pass_once()).after
    assert await names(world) == {"demo-apiserver"} and after == 2.0
    assert "version before" in world.condition("ControlPlaneComponentsReady")["message"]
    await world.kube.merge(POD, "old", TENANT, {"metadata": {"finalizers": []}})
    await world.pass_once()
    assert await names(world) == {"demo-apiserver", "demo-controller-manager", "demo-scheduler"}
    assert apiserver.NO_RECONCILER in str(world.kube.stored(DEPLOYMENT, "demo-apiserver", TENANT))


async def test_the_first_objects_are_written_though_the_service_is_not_yet_reached_but_nothing_is_ready_before() -> None:
    world = ControlPlaneWorld()
    world.cut_off()
    await world.start()
    await world.pass_once()
    await world.etcd(1)
    await world.api_server(**UP)
    await world.pass_once()
    assert len(await world.kube.list(JOB, TENANT)) == 1
    await world.bootstrapped()
    await world.managers(**UP)
    await world.pass_once()
    assert (world.status["initialized"], world.status["ready"]) == (False, False)
    world.workload.on_fault(None)
    await world.pass_once()
    assert (world.status["initialized"], world.status["ready"]) == (True, True)


async def test_a_release_that_is_added_or_removed_does_not_change_the_clusters_of_another_one() -> None:
    world = ControlPlaneWorld()
    await world.ready(version="v1.34.3")
    await world.pass_once()
    kinds = (MANAGED_CONTROL_PLANE, STATEFUL_SET, DEPLOYMENT, JOB, CONFIG_MAP, SECRET, SERVICE)

    def objects() -> list[Obj]:
        return [world.kube.stored(kind, item["metadata"]["name"], TENANT) for kind in kinds for item in world.kube.all_stored(kind)]

    before = objects()
    assert "v1.34.3-ckp" in str(before) and "v1.35.1-ckp" not in str(before)
    for table in (world.releases.with_releases([release("v1.36.0")]), world.releases.without(["v1.35.1"])):
        # The controllers start again with the new table.
        world.reconciler = replace(world.reconciler, releases=table, applier=Applier(world.kube, world.clock))
        await world.pass_once()
        await world.pass_once()
        assert objects() == before
