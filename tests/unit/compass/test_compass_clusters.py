"""Compass: which clusters may be, which objects they become, and how they look."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ckp.api import kinds, names
from ckp.api.compass.clusters import ClusterRequest
from ckp.clients.kube import KubeError
from ckp.compass.clusters.addresses import check_free
from ckp.compass.clusters.manifests import cluster_objects, request_digest
from ckp.compass.clusters.networks import check_networks, parse_cidr
from ckp.compass.clusters.views import _machine, timeouts_of
from ckp.compass.settings import Settings, parse_reserved, read_admin_token
from ckp.compass.store.places import Place
from ckp.kits.errors import CkpError, InvalidInput
from tests.worlds.compass import NAMESPACE, World, cluster_body, make_world

CLUSTER_KINDS = (
    kinds.CLUSTER,
    kinds.MANAGED_CONTROL_PLANE,
    kinds.BYO_CLUSTER,
    kinds.BYO_MACHINE_TEMPLATE,
    kinds.KUBEADM_CONFIG_TEMPLATE,
    kinds.MACHINE_DEPLOYMENT,
)


@pytest.fixture
async def world(tmp_path: Path, place: Place) -> AsyncIterator[World]:
    async with make_world(tmp_path, place=place) as made:
        yield made


async def objects_of(world: World) -> list[str]:
    return [f"{obj['kind']}/{obj['metadata']['name']}" for kind in CLUSTER_KINDS for obj in await world.kube.list(kind, NAMESPACE)]


# What it becomes.


async def test_a_cluster_becomes_its_cluster_api_objects(world: World) -> None:
    await world.group_with_hosts()
    answer = await world.call("POST", "/clusters", json=cluster_body(), expect=201)
    assert await objects_of(world) == [
        "Cluster/demo",
        "ManagedControlPlane/demo",
        "ByoCluster/demo",
        "ByoMachineTemplate/demo-workers",
        "KubeadmConfigTemplate/demo-workers",
        "MachineDeployment/demo-workers",
    ]
    for kind in CLUSTER_KINDS:
        for obj in await world.kube.list(kind, NAMESPACE):
            assert obj["metadata"]["labels"][names.CLUSTER_NAME_LABEL] == "demo"
    cluster = await world.kube.get(kinds.CLUSTER, "demo", NAMESPACE)
    assert cluster is not None
    assert cluster["spec"]["clusterNetwork"] == {
        "pods": {"cidrBlocks": ["10.42.0.0/16"]},
        "services": {"cidrBlocks": ["10.43.0.0/16"]},
        "serviceDomain": "cluster.local",
    }
    assert cluster["metadata"]["annotations"][names.REQUESTED_AT_ANNOTATION] == "2026-04-01T12:00:00Z"
    plane = await world.kube.get(kinds.MANAGED_CONTROL_PLANE, "demo", NAMESPACE)
    assert plane is not None
    assert plane["spec"]["addons"] == {"cni": "cilium", "cniVersion": "v1.19.5"}
    deployment = await world.kube.get(kinds.MACHINE_DEPLOYMENT, "demo-workers", NAMESPACE)
    assert deployment is not None
    machine = deployment["spec"]["template"]["spec"]
    assert (machine["version"], machine["nodeDrainTimeout"], deployment["spec"]["replicas"]) == ("v1.35.1", "10m", 2)
    assert machine["nodeVolumeDetachTimeout"] == "5m", "without one a volume that never detaches holds up the deletion for ever"
    # The webhook of Cluster API refuses a selector that its own template does not match.
    assert deployment["spec"]["selector"]["matchLabels"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    assert (answer["phase"], answer["ready"], answer["workers"], answer["hostGroup"]) == ("Pending", False, 2, "workers")
    assert answer["podCIDR"] == "10.42.0.0/16"


def test_every_reference_points_to_an_object_that_is_made() -> None:
    request = ClusterRequest(name="c", version="v1.35.1", host_group="g", workers=1, pod_cidr="10.42.0.0/16", service_cidr="10.43.0.0/16")
    made = cluster_objects(request, "v1.19.5", namespace="ns", labels={}, requested_at="")
    there = {(obj["apiVersion"], obj["kind"], obj["metadata"]["namespace"], obj["metadata"]["name"]) for obj in made}

    def references(value: Any) -> list[tuple[str, ...]]:
        if isinstance(value, dict):
            found = [reference for inner in value.values() for reference in references(inner)]
            if set(value) == {"apiVersion", "kind", "name", "namespace"}:
                found.append((value["apiVersion"], value["kind"], value["namespace"], value["name"]))
            return found
        return []

    found = [reference for obj in made for reference in references(obj["spec"])]
    assert len(found) == 5
    assert set(found) <= there


def test_the_digest_of_a_request_is_the_one_that_0_2_0_wrote() -> None:
    """A creation that an older Compass began is completed by the same request after an upgrade."""
    request = ClusterRequest(name="demo", version="v1.35.1", host_group="workers", workers=2, pod_cidr="10.42.0.0/16", service_cidr="10.43.0.0/16")
    assert request_digest(request, "v1.19.5") == "8f2a7c54bb5a1a1ca09d1d1c06530206"
    assert request_digest(request, "v1.19.6") != request_digest(request, "v1.19.5")


def test_timeouts_count_for_a_request_only_where_they_differ_from_the_defaults() -> None:
    """The same request before there were timeouts, and with the defaults written out, is one request."""
    base = {"name": "demo", "version": "v1.35.1", "host_group": "workers", "workers": 2, "pod_cidr": "10.42.0.0/16", "service_cidr": "10.43.0.0/16"}
    plain = request_digest(ClusterRequest.of(**base), "")
    assert request_digest(ClusterRequest.of(**base, timeouts={"drain": "600s", "node_startup": "30m"}), "") == plain
    assert request_digest(ClusterRequest.of(**base, timeouts={"drain": "11m"}), "") != plain


async def test_timeouts_are_written_where_they_act_and_shown_with_their_units(world: World) -> None:
    await world.group_with_hosts()
    timeouts = {"drain": "1h30m", "nodeStartup": "45m", "nodeUnhealthy": 90, "imageFetch": "20m"}
    shown = await world.call("POST", "/clusters", json=cluster_body(timeouts=timeouts), expect=201)
    expected = {"drain": "1h30m", "volumeDetach": "5m", "nodeDeletion": "2m", "imageFetch": "20m", "nodeStartup": "45m", "nodeUnhealthy": "1m30s"}
    assert shown["timeouts"] == expected == (await world.call("GET", "/clusters/demo"))["timeouts"]
    deployment, check = await acting(world)
    assert deployment["nodeDrainTimeout"] == "1h30m" and check["nodeStartupTimeout"] == "45m"
    assert {entry["timeout"] for entry in check["unhealthyConditions"]} == {"1m30s"}
    infrastructure = await world.kube.get(kinds.BYO_CLUSTER, "demo", NAMESPACE)
    assert infrastructure is not None and infrastructure["spec"]["imageFetchTimeout"] == "20m"


async def acting(world: World) -> tuple[dict[str, Any], dict[str, Any]]:
    """The specs of a cluster's machine template and of its health check."""
    deployment = await world.kube.get(kinds.MACHINE_DEPLOYMENT, "demo-workers", NAMESPACE)
    check = await world.kube.get(kinds.MACHINE_HEALTH_CHECK, "demo-workers", NAMESPACE)
    assert deployment is not None and check is not None
    return deployment["spec"]["template"]["spec"], check["spec"]


async def test_timeouts_can_be_changed_also_for_a_worker_that_is_leaving(world: World) -> None:
    await world.group_with_hosts()
    await world.call("POST", "/clusters", json=cluster_body(), expect=201)
    for name, finalizers in (("demo-stays", []), ("demo-leaves", ["machine.cluster.x-k8s.io"])):
        meta = {"name": name, "namespace": NAMESPACE, "labels": {names.CLUSTER_NAME_LABEL: "demo"}, "finalizers": finalizers}
        await world.kube.create({"apiVersion": kinds.MACHINE.api_version, "kind": "Machine", "metadata": meta, "spec": {"nodeDrainTimeout": "10m"}})
    await world.kube.delete(kinds.MACHINE, "demo-leaves", NAMESPACE)
    shown = await world.call("PATCH", "/clusters/demo", json={"timeouts": {"drain": "20s", "nodeUnhealthy": "10m"}}, expect=200)
    assert (shown["timeouts"]["drain"], shown["timeouts"]["nodeUnhealthy"], shown["timeouts"]["nodeStartup"]) == ("20s", "10m", "30m")
    deployment, check = await acting(world)
    assert (deployment["nodeDrainTimeout"], deployment["nodeVolumeDetachTimeout"], deployment["version"]) == ("20s", "5m", "v1.35.1")
    assert [entry["status"] for entry in check["unhealthyConditions"]] == ["Unknown", "False"]
    machines = {found["metadata"]["name"]: found["spec"]["nodeDrainTimeout"] for found in await world.kube.list(kinds.MACHINE, NAMESPACE)}
    # Cluster API brings it to the one that stays (v1.7.7: MachineSet, syncMachines), and not to one that is being deleted.
    assert machines == {"demo-stays": "10m", "demo-leaves": "20s"}


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"timeouts": {"drain": "soon"}}, "timeouts.drain: value error, 'soon' is not a duration: write 90s, 15m or 1h30m"),
        ({"timeouts": {"drain": "0s"}}, "timeouts.drain: input should be greater than or equal to 1"),
        ({"timeouts": {"nodeStartup": "10s"}}, "timeouts.nodeStartup: input should be greater than or equal to 30"),
        ({"timeouts": {"volumeDetach": "25h"}}, "timeouts.volumeDetach: input should be less than or equal to 86400"),
        ({"timeouts": {"imageFetch": "2d"}}, "timeouts.imageFetch: value error, '2d' is not a duration"),
        ({"timeouts": {"imageFetch": "0s"}}, "timeouts.imageFetch: input should be greater than or equal to 1"),
        ({"timeouts": {"detach": "1m"}}, "timeouts.detach: is not a known field"),
        ({}, "the body changes nothing"),
    ],
)
async def test_a_timeout_that_makes_no_sense_changes_nothing(world: World, body: dict[str, Any], sentence: str) -> None:
    await world.group_with_hosts()
    await world.call("POST", "/clusters", json=cluster_body(), expect=201)
    before = await acting(world)
    assert sentence in str(await world.call("PATCH", "/clusters/demo", json=body, expect=422))
    assert await acting(world) == before


@pytest.mark.parametrize(("stored", "shown"), [(None, "none"), ("0s", "none"), ("10m0s", "10m"), ("300s", "5m"), ("1h0m5s", "1h5s"), ("300ms", "300ms")])
def test_a_timeout_is_shown_as_people_write_it_whoever_wrote_it(stored: str | None, shown: str) -> None:
    """Cluster API rewrites durations as Go does, and waits without end where there is none."""
    deployment = {"spec": {"template": {"spec": {"nodeDrainTimeout": stored} if stored else {}}}}
    assert timeouts_of(deployment, None, None).drain == shown


async def test_templates_belong_to_the_cluster_from_the_start(world: World) -> None:
    """A cluster deleted before Cluster API reconciled its MachineDeployment leaves no template behind (contract: never a second controller ref)."""
    await world.group_with_hosts()
    await world.call("POST", "/clusters", json=cluster_body(), expect=201)
    cluster = await world.kube.get(kinds.CLUSTER, "demo", NAMESPACE)
    assert cluster is not None
    for kind in (kinds.BYO_MACHINE_TEMPLATE, kinds.KUBEADM_CONFIG_TEMPLATE):
        template = await world.kube.get(kind, "demo-workers", NAMESPACE)
        assert template is not None
        assert template["metadata"]["ownerReferences"] == [
            {"apiVersion": kinds.CLUSTER.api_version, "kind": "Cluster", "name": "demo", "uid": cluster["metadata"]["uid"]}
        ]
    for kind in (kinds.MANAGED_CONTROL_PLANE, kinds.BYO_CLUSTER):
        owned = await world.kube.get(kind, "demo", NAMESPACE)
        assert owned is not None
        assert "ownerReferences" not in owned["metadata"]


# What is refused, changing nothing.


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": "Demo"}, "name"),
        ({"name": "a" * 41}, "name"),
        ({"name": "1demo"}, "name"),
        ({"name": ""}, "name"),
        ({"version": "v1.99.0"}, "version"),
        ({"version": "1.35.1"}, "version"),
        ({"cni": "flannel"}, "cni"),
        ({"workers": 0}, "workers"),
        ({"workers": 3}, "workers"),
        ({"workers": "two"}, "workers"),
        ({"hostGroup": "nobody"}, "hostGroup"),
        ({"controlPlane": {"replicas": 2}}, "controlPlane"),
        ({"podCIDR": "10.42.0.0"}, "podCIDR"),
        ({"podCIDR": "10.42.0.1/16"}, "podCIDR"),
        ({"podCIDR": "10.42.0.0/33"}, "podCIDR"),
        ({"podCIDR": "10.420.0.0/16"}, "podCIDR"),
        ({"podCIDR": "fd00::/64"}, "podCIDR"),
        ({"podCIDR": "127.0.0.0/16"}, "podCIDR"),
        ({"podCIDR": "10.42.0.0/24"}, "podCIDR"),
        ({"podCIDR": "10.43.128.0/17"}, "podCIDR"),
        ({"podCIDR": "10.88.0.0/16"}, "podCIDR"),
        ({"podCIDR": "10.0.0.0/8", "serviceCIDR": "172.30.0.0/16"}, "podCIDR"),
        ({"podCIDR": "0.0.0.0/0"}, "podCIDR"),
        ({"serviceCIDR": "10.96.0.0/16"}, "serviceCIDR"),
        ({"serviceCIDR": "10.43.0.0/29"}, "serviceCIDR"),
        ({"serviceCIDR": "172.16.0.0/11"}, "serviceCIDR"),
        ({"address": "10.42.0.7"}, "address"),
        ({"address": "10.88.0.21"}, "address"),
        ({"address": "host"}, "address"),
        ({"colour": "red"}, "colour"),
    ],
)
async def test_an_invalid_request_names_its_field_and_changes_nothing(world: World, changes: dict[str, Any], field: str) -> None:
    await world.group_with_hosts()
    before = world.kube.version
    answer = await world.call("POST", "/clusters", json=cluster_body(**changes), expect=422)
    assert field in answer["error"]["message"], answer
    assert world.kube.version == before
    assert await objects_of(world) == []


@pytest.mark.parametrize("replicas", [0, 3, 5])
async def test_more_api_servers_than_etcd_has_members_are_refused_with_the_reason(world: World, replicas: int) -> None:
    await world.group_with_hosts()
    answer = await world.call("POST", "/clusters", json=cluster_body(controlPlane={"replicas": replicas}), expect=422)
    assert answer["error"]["message"] == f"controlPlane.replicas: {replicas} is not supported, only 1"
    assert "etcd runs as one member" in answer["error"]["details"]
    assert await objects_of(world) == []


async def test_an_unknown_version_lists_the_known_ones(world: World) -> None:
    answer = await world.call("POST", "/clusters", json=cluster_body(version="v1.2.3"), expect=422)
    assert "v1.33.7, v1.35.1" in answer["error"]["resolution"]


async def test_a_network_that_holds_a_hosts_address_is_refused(world: World) -> None:
    await world.group_with_hosts(count=1)
    await world.add_host("far", group="workers", address="10.42.7.7")
    answer = await world.call("POST", "/clusters", json=cluster_body(), expect=422)
    assert "10.42.7.7" in answer["error"]["message"]
    assert "far" in answer["error"]["message"]


async def service(world: World, namespace: str, name: str, *, asked: str = "", given: str = "", **spec: Any) -> None:
    meta = {"name": name, "namespace": namespace, "annotations": {"lbipam.cilium.io/ips": asked} if asked else {}}
    await world.kube.create({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec})
    if given:
        await world.kube.merge(kinds.SERVICE, name, namespace, {"status": {"loadBalancer": {"ingress": [{"ip": given}]}}}, subresource="status")


async def pool(world: World, *blocks: dict[str, str], **spec: Any) -> None:
    meta = {"name": f"pool-{len(world.kube.all_stored(kinds.LB_POOL))}"}
    await world.kube.create({"apiVersion": kinds.LB_POOL.api_version, "kind": kinds.LB_POOL.kind, "metadata": meta, "spec": {"blocks": list(blocks), **spec}})


async def system(world: World) -> None:
    await world.kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ckp-system"}})


@pytest.mark.parametrize(
    "has",
    [{"given": "10.88.0.100"}, {"asked": "10.88.0.99, 10.88.0.100"}, {"loadBalancerIP": "10.88.0.100"}, {"externalIPs": ["10.88.0.100"]}],
)
async def test_an_address_that_a_service_has_is_refused_naming_it(world: World, has: dict[str, Any]) -> None:
    await world.group_with_hosts()
    await system(world)
    await service(world, "ckp-system", "ckp-compass", **has)
    answer = await world.call("POST", "/clusters", json=cluster_body(address="10.88.0.100"), expect=422)
    assert answer["error"]["message"] == "address: 10.88.0.100 is taken by Service ckp-system/ckp-compass of the management cluster"
    assert await objects_of(world) == []
    await world.call("POST", "/clusters", json=cluster_body(address="10.88.0.101"), expect=201)


async def test_an_address_that_another_cluster_asks_for_is_refused_naming_it(world: World) -> None:
    """At once, before that cluster's Service exists."""
    await world.group_with_hosts(count=4)
    bodies = [cluster_body(name=name, address="10.88.0.101") for name in ("one", "two")]
    answers = await asyncio.gather(*(world.rest.post("/api/v1/domains/default/projects/default/clusters", json=body) for body in bodies))
    assert sorted(answer.status_code for answer in answers) == [201, 422]
    made, refused = sorted((answer.json() for answer in answers), key=lambda body: "error" in body)
    assert refused["error"]["message"] == f"address: 10.88.0.101 is taken by cluster {made['name']}"


async def test_an_address_of_another_projects_cluster_is_refused_without_its_name(world: World) -> None:
    await world.group_with_hosts()
    await world.kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ckp-other-secret"}})
    meta = {"name": "hidden", "namespace": "ckp-other-secret"}
    endpoint = {"controlPlaneEndpoint": {"host": "10.88.0.101", "port": 6443}}
    await world.kube.create({"apiVersion": kinds.MANAGED_CONTROL_PLANE.api_version, "kind": "ManagedControlPlane", "metadata": meta, "spec": endpoint})
    answer = await world.call("POST", "/clusters", json=cluster_body(address="10.88.0.101"), expect=422)
    assert answer["error"]["message"] == "address: 10.88.0.101 is taken by a cluster of another project"


async def test_a_creation_that_broke_off_is_not_refused_for_its_own_address(world: World) -> None:
    await world.group_with_hosts()
    world.kube.on_fault(lambda verb, kind, _: KubeError("away", code=0) if (verb, kind.kind) == ("apply", "MachineDeployment") else None)
    await world.call("POST", "/clusters", json=cluster_body(address="10.88.0.101"), expect=503)
    world.kube.on_fault(None)
    await service(world, NAMESPACE, "demo-apiserver", asked="10.88.0.101", given="10.88.0.101")
    await world.call("POST", "/clusters", json=cluster_body(address="10.88.0.101"), expect=201)


async def test_an_address_outside_of_all_pools_is_refused_and_the_pools_are_named(world: World) -> None:
    await world.group_with_hosts()
    await pool(world, {"start": "10.88.0.100", "stop": "10.88.0.199"}, {"cidr": "10.99.0.0/28"}, {"start": "10.99.1.1"})
    await pool(world, {"cidr": "10.77.0.0/24"}, disabled=True)
    for address in ("10.88.0.99", "10.88.0.200", "10.99.0.16", "10.99.1.2", "10.77.0.1"):
        answer = await world.call("POST", "/clusters", json=cluster_body(address=address), expect=422)
        assert answer["error"]["message"] == f"address: {address} is in no pool of the management cluster's load balancer"
        assert answer["error"]["details"] == "its pools have: 10.88.0.100-10.88.0.199, 10.99.0.0/28, 10.99.1.1"
    await world.call("POST", "/clusters", json=cluster_body(address="10.99.0.3"), expect=201)


async def test_where_another_load_balancer_gives_addresses_its_pools_are_not_known(world: World) -> None:
    await world.group_with_hosts()
    missing = KubeError("list CiliumLoadBalancerIPPool: the server could not find the requested resource", code=404)
    world.kube.on_fault(lambda verb, kind, _: missing if kind == kinds.LB_POOL else None)
    await world.call("POST", "/clusters", json=cluster_body(address="203.0.113.7"), expect=201)


async def test_where_the_hosts_addresses_are_given_only_one_of_these_may_be_asked_for(world: World) -> None:
    await world.group_with_hosts()
    for address in ("192.0.2.61", "192.0.2.99"):
        if address == "192.0.2.99":
            with pytest.raises(InvalidInput, match=r"192\.0\.2\.99 is not one that this site gives to clusters") as caught:
                await check_free(world.kube, address, namespace=NAMESPACE, cluster="demo", among=("192.0.2.61", "192.0.2.62"))
            assert "192.0.2.61, 192.0.2.62" in caught.value.details
        else:
            await check_free(world.kube, address, namespace=NAMESPACE, cluster="demo", among=("192.0.2.61", "192.0.2.62"))


async def test_a_host_that_came_later_with_an_address_of_the_clusters_networks_is_unfit(world: World) -> None:
    await world.group_with_hosts()
    await world.call("POST", "/clusters", json=cluster_body(), expect=201)
    await world.add_host("late", group="workers", address="10.42.7.7")
    answer = await world.call("PATCH", "/clusters/demo", json={"workers": 3}, expect=422)
    assert "late: is not fit: its address 10.42.7.7 lies in the cluster's pod network 10.42.0.0/16" in answer["error"]["details"]
    await world.add_host("good", group="workers", address="10.44.0.1")
    await world.call("PATCH", "/clusters/demo", json={"workers": 3}, expect=200)


async def test_too_few_free_hosts_are_listed_with_their_reasons(world: World) -> None:
    await world.call("POST", "/host-groups", json={"name": "workers"})
    await world.add_host("good", group="workers")
    await world.add_host("away", group="workers", connected=False)
    await world.add_host("taken", group="workers", claimed="other-workers-x")
    await world.add_host("resting", group="workers", cordoned=True)
    await world.add_host("dirty", group="workers", phase="Resetting")
    await world.add_host("elsewhere")
    answer = await world.call("POST", "/clusters", json=cluster_body(), expect=422)
    assert answer["error"]["message"] == "workers: host group workers has 1 free host, and 2 are needed"
    assert answer["error"]["details"].splitlines() == [
        "away: its agent is not connected",
        "dirty: is not clean yet",
        "resting: is cordoned",
        "taken: is claimed by machine other-workers-x",
    ]
    assert await objects_of(world) == []


async def test_hosts_promised_to_one_cluster_are_not_promised_again(world: World) -> None:
    await world.group_with_hosts(count=3)
    bodies = [cluster_body(), cluster_body(name="other", podCIDR="10.52.0.0/16", serviceCIDR="10.53.0.0/16")]
    answers = await asyncio.gather(*(world.rest.post("/api/v1/domains/default/projects/default/clusters", json=body) for body in bodies))
    assert sorted(answer.status_code for answer in answers) == [201, 422]
    refused = next(answer for answer in answers if answer.status_code == 422).json()
    assert "promised to cluster" in refused["error"]["details"]


async def test_a_taken_name_is_refused(world: World) -> None:
    await world.group_with_hosts(count=4)
    await world.call("POST", "/clusters", json=cluster_body(), expect=201)
    for changes in ({}, {"workers": 1}):
        assert (await world.call("POST", "/clusters", json=cluster_body(**changes), expect=409))["error"]["code"] == "Conflict"
    deployment = await world.kube.get(kinds.MACHINE_DEPLOYMENT, "demo-workers", NAMESPACE)
    assert deployment is not None
    assert deployment["spec"]["replicas"] == 2


@pytest.mark.parametrize("broken", [kind.kind for kind in CLUSTER_KINDS])
async def test_a_creation_that_broke_off_is_completed_by_the_same_request_only(world: World, broken: str) -> None:
    await world.group_with_hosts(count=4)
    world.kube.on_fault(lambda verb, kind, _: KubeError("away", code=0) if (verb, kind.kind) == ("apply", broken) else None)
    await world.call("POST", "/clusters", json=cluster_body(), expect=503)
    world.kube.on_fault(None)
    if broken != "Cluster":
        await world.call("POST", "/clusters", json=cluster_body(workers=1), expect=409)
        world.clock.advance(30)
    await world.call("POST", "/clusters", json=cluster_body(), expect=201)
    assert len(await objects_of(world)) == 6
    cluster = await world.kube.get(kinds.CLUSTER, "demo", NAMESPACE)
    assert cluster is not None
    assert cluster["metadata"]["annotations"][names.REQUESTED_AT_ANNOTATION] == "2026-04-01T12:00:00Z", "it was asked for when it was first asked for"


async def test_a_name_is_free_again_only_when_the_cluster_is_gone(world: World) -> None:
    await world.group_with_hosts()
    await world.call("POST", "/clusters", json=cluster_body(), expect=201)
    await world.kube.merge(kinds.CLUSTER, "demo", NAMESPACE, {"metadata": {"finalizers": ["cluster.cluster.x-k8s.io"]}})
    await world.call("DELETE", "/clusters/demo", expect=202)
    assert (await world.call("GET", "/clusters/demo"))["phase"] == "Deleting"
    answer = await world.call("POST", "/clusters", json=cluster_body(), expect=409)
    assert "still being deleted" in answer["error"]["message"]


# Looking, scaling, kubeconfig.


async def test_a_cluster_shows_its_steps_machines_and_why_it_is_not_ready(world: World) -> None:
    await world.group_with_hosts()
    await world.call("POST", "/clusters", json=cluster_body(), expect=201)
    steps = [
        {"number": 2, "phase": "Provisioning", "name": "provider", "title": "Provider resolved", "state": "Running", "message": "waiting for hosts"},
        {"number": 1, "phase": "Provisioning", "name": "request", "title": "Request", "state": "Done"},
    ]
    await world.kube.merge(kinds.MANAGED_CONTROL_PLANE, "demo", NAMESPACE, {"status": {"steps": steps}}, subresource="status")
    labels = {names.CLUSTER_NAME_LABEL: "demo"}
    await world.kube.create(
        {
            "apiVersion": kinds.MACHINE.api_version,
            "kind": "Machine",
            "metadata": {"name": "demo-workers-abc", "namespace": NAMESPACE, "labels": labels},
            "spec": {"clusterName": "demo", "version": "v1.35.1", "infrastructureRef": {"name": "demo-workers-abc"}},
        }
    )
    await world.kube.merge(kinds.BYO_HOST, "workers-host-1", NAMESPACE, {"spec": {"machineRef": {"name": "demo-workers-abc", "uid": "u"}}})
    shown = await world.call("GET", "/clusters/demo", expect=200)
    assert [step["number"] for step in shown["steps"]] == [1, 2]
    assert shown["message"] == "step 2 (Provider resolved): waiting for hosts"
    assert [(machine["name"], machine["host"], machine["ready"]) for machine in shown["machines"]] == [("demo-workers-abc", "workers-host-1", False)]


async def test_a_cluster_is_ready_only_with_its_workers_and_all_its_steps(world: World) -> None:
    await world.group_with_hosts()
    await world.call("POST", "/clusters", json=cluster_body(), expect=201)

    async def set_status(kind: Any, name: str, status: dict[str, Any]) -> bool:
        await world.kube.merge(kind, name, NAMESPACE, {"status": status}, subresource="status")
        return bool((await world.call("GET", "/clusters/demo"))["ready"])

    assert not await set_status(kinds.CLUSTER, "demo", {"phase": "Provisioned", "controlPlaneReady": True, "infrastructureReady": True})
    assert not await set_status(kinds.MACHINE_DEPLOYMENT, "demo-workers", {"readyReplicas": 1})
    assert not await set_status(kinds.MANAGED_CONTROL_PLANE, "demo", {"steps": [{"number": 1, "state": "Running"}]})
    assert not await set_status(kinds.MACHINE_DEPLOYMENT, "demo-workers", {"readyReplicas": 2})
    unreadable = {"number": 2, "state": "Running", "startedAt": "soon"}
    assert not await set_status(kinds.MANAGED_CONTROL_PLANE, "demo", {"steps": [{"number": 1, "state": "Done"}, unreadable]}), "though it cannot be shown"
    assert await set_status(kinds.MANAGED_CONTROL_PLANE, "demo", {"steps": [{"number": 1, "state": "Done"}, {"number": 2, "state": "Skipped"}]})
    assert (await world.call("GET", "/clusters"))["items"][0]["phase"] == "Ready"
    assert not await set_status(kinds.CLUSTER, "demo", {"failureMessage": "broken for good"})
    shown = await world.call("GET", "/clusters/demo")
    assert (shown["phase"], shown["failed"], shown["message"]) == ("Failed", True, "broken for good")


async def test_scaling_asks_for_free_hosts_beside_those_it_has(world: World) -> None:
    await world.group_with_hosts(count=3)
    await world.call("POST", "/clusters", json=cluster_body(), expect=201)
    for number in (1, 2):
        name = f"demo-workers-{number}"
        await world.kube.create(
            {
                "apiVersion": kinds.BYO_MACHINE.api_version,
                "kind": "ByoMachine",
                "metadata": {"name": name, "namespace": NAMESPACE, "labels": {names.CLUSTER_NAME_LABEL: "demo"}},
                "spec": {},
            }
        )
        await world.kube.merge(kinds.BYO_HOST, f"workers-host-{number}", NAMESPACE, {"spec": {"machineRef": {"name": name, "uid": name}}})
    assert (await world.call("PATCH", "/clusters/demo", json={"workers": 3}, expect=200))["workers"] == 3
    await world.call("PATCH", "/clusters/demo", json={"workers": 4}, expect=422)
    await world.call("PATCH", "/clusters/demo", json={"workers": 0}, expect=422)
    assert (await world.call("PATCH", "/clusters/demo", json={"workers": 1}, expect=200))["workers"] == 1


async def test_the_health_check_only_reports(world: World) -> None:
    """Cluster API replaces by itself without a remediationTemplate; with one it makes a request of it (v1.7.7: patchUnhealthyTargets)."""
    await world.group_with_hosts()
    await world.call("POST", "/clusters", json=cluster_body(), expect=201)
    check = await world.kube.get(kinds.MACHINE_HEALTH_CHECK, "demo-workers", NAMESPACE)
    assert check is not None and check["spec"]["maxUnhealthy"] == "100%", "how many are replaced is not its decision"
    reference = check["spec"]["remediationTemplate"]
    template = await world.kube.get(kinds.BYO_REMEDIATION_TEMPLATE, reference["name"], reference["namespace"])
    assert template is not None and template["spec"]["template"] == {"spec": {}}, "without spec.template Cluster API makes none (external.GenerateTemplate)"
    assert (reference["kind"], template["kind"]) == ("ByoRemediationTemplate",) * 2 and template["metadata"]["ownerReferences"], "it goes with its cluster"


async def test_what_was_replaced_and_what_is_held_is_shown_and_a_person_lets_it_go_on(world: World) -> None:
    await world.group_with_hosts()
    await world.call("POST", "/clusters", json=cluster_body(), expect=201)
    meta = {"name": "demo-3", "namespace": NAMESPACE, "labels": {names.CLUSTER_NAME_LABEL: "demo"}}
    await world.kube.create({"apiVersion": kinds.MACHINE.api_version, "kind": "Machine", "metadata": meta, "spec": {"version": "v1.35.1"}})
    held = {"type": "RemediationAllowed", "status": "False", "reason": "Held", "message": "number 3", "lastTransitionTime": "2026-04-01T12:00:00Z"}
    made = {"machine": "demo-1", "host": "one", "cause": "Startup", "reason": "it did not start", "at": "2026-04-01T11:00:00Z", "number": 1}
    status = {
        "conditions": [held],
        "replacements": [made, {"at": "soon"}],
        "unhealthy": [{"machine": "demo-3", "action": "Held", "message": "number 3 that failed alike"}],
    }
    await world.kube.merge(kinds.BYO_CLUSTER, "demo", NAMESPACE, {"status": status}, subresource="status")
    shown = await world.call("GET", "/clusters/demo")
    assert [(made["host"], made["number"]) for made in shown["replacements"]] == [("one", 1)]
    assert shown["machines"][0]["message"] == "number 3 that failed alike"
    assert ("ByoCluster", "RemediationAllowed", "Held") in [(entry["object"], entry["type"], entry["reason"]) for entry in shown["conditions"]]
    await world.call("POST", "/clusters/demo/resume-replacement", expect=200)
    found = await world.kube.get(kinds.BYO_CLUSTER, "demo", NAMESPACE)
    assert found is not None and found["metadata"]["annotations"][names.RESUMED_ANNOTATION] == "2026-04-01T12:00:00Z"
    await world.call("POST", "/clusters/none/resume-replacement", expect=404)


async def test_a_machine_that_failed_for_good_is_not_ready_whatever_its_node_says(world: World) -> None:
    """Its node goes on until it is removed; the machine is about to be replaced (contract: failureMessage)."""
    await world.group_with_hosts()
    await world.call("POST", "/clusters", json=cluster_body(), expect=201)
    meta = {"name": "demo-workers-abc", "namespace": NAMESPACE, "labels": {names.CLUSTER_NAME_LABEL: "demo"}}
    machine = {"apiVersion": kinds.MACHINE.api_version, "kind": "Machine", "metadata": meta, "spec": {"version": "v1.35.1"}}
    await world.kube.create(machine)
    status = {"conditions": [{"type": "NodeHealthy", "status": "True"}], "nodeRef": {"name": "one"}}
    await world.kube.merge(kinds.MACHINE, "demo-workers-abc", NAMESPACE, {"status": status}, subresource="status")
    assert (await world.call("GET", "/clusters/demo"))["machines"][0]["ready"] is True
    await world.kube.merge(kinds.MACHINE, "demo-workers-abc", NAMESPACE, {"status": {"failureMessage": "host one was removed"}}, subresource="status")
    [shown] = (await world.call("GET", "/clusters/demo"))["machines"]
    assert (shown["ready"], shown["message"]) == (False, "host one was removed")


async def test_the_kubeconfig_comes_as_yaml_once_the_control_plane_has_one(world: World) -> None:
    await world.group_with_hosts()
    await world.call("POST", "/clusters", json=cluster_body(), expect=201)
    early = await world.call("GET", "/clusters/demo/kubeconfig", expect=404)
    assert "no kubeconfig yet" in early["error"]["message"]
    # Contract, secrets: `<c>-kubeconfig`, key `value`.
    value = base64.b64encode(b"apiVersion: v1\nkind: Config\n").decode()
    await world.kube.create({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "demo-kubeconfig", "namespace": NAMESPACE}, "data": {"value": value}})
    response = await world.rest.get("/api/v1/domains/default/projects/default/clusters/demo/kubeconfig")
    assert response.headers["content-type"].startswith("application/yaml")
    assert response.headers["cache-control"] == "no-store"
    assert response.text == "apiVersion: v1\nkind: Config\n"


async def test_another_projects_cluster_is_not_there(world: World) -> None:
    await world.group_with_hosts()
    await world.call("POST", "/clusters", json=cluster_body(), expect=201)
    other = await world.project("default", "other") + "/clusters"
    assert (await world.call("GET", other, expect=200))["items"] == []
    for method, path in (("GET", "/demo"), ("DELETE", "/demo"), ("GET", "/demo/kubeconfig")):
        await world.call(method, other + path, expect=404)
    await world.call("PATCH", f"{other}/demo", json={"workers": 1}, expect=404)


async def test_releases_are_listed(world: World) -> None:
    answer = await world.call("GET", "/api/v1/releases", expect=200)
    assert [release["name"] for release in answer["items"]] == ["v1.33.7", "v1.35.1"]
    assert (await world.call("GET", "/api/v1/releases/v9", expect=404))["error"]["code"] == "NotFound"


# The rules of networks.

cidrs = st.builds(lambda address, prefix: IPv4Network((address, prefix), strict=False), st.integers(0, 2**32 - 1), st.integers(0, 32))


@given(cidrs, cidrs, st.integers(1, 300))
def test_networks_that_pass_never_overlap_and_have_room(pods: IPv4Network, services: IPv4Network, workers: int) -> None:
    reserved = parse_reserved("hosts=10.88.0.0/24")
    try:
        check_networks(str(pods), str(services), workers=workers, reserved=reserved, host_addresses=[("h", "192.168.7.7")])
    except InvalidInput as error:
        assert "CIDR" in error.brief
        return
    assert not pods.overlaps(services)
    assert pods.num_addresses >= 256 * (workers + 1)
    assert services.num_addresses >= 16
    for network in (pods, services):
        assert not network.overlaps(reserved[0].network)
        assert not network.overlaps(IPv4Network("192.168.7.7/32"))
        assert not network.is_multicast
        assert not network.is_loopback


@given(st.integers(0, 255), st.integers(9, 23), st.integers(0, 255))
def test_a_private_network_with_room_passes(second: int, prefix: int, other: int) -> None:
    pods = IPv4Network((f"10.{second}.0.0", prefix), strict=False)
    services = IPv4Network((f"172.{16 + other % 16}.0.0", 16))
    workers = 2 ** (24 - prefix) - 1  # and one that replaces another
    check_networks(str(pods), str(services), workers=workers, reserved=(), host_addresses=())
    with pytest.raises(InvalidInput, match="room for"):
        check_networks(str(pods), str(services), workers=workers + 1, reserved=(), host_addresses=())


@pytest.mark.parametrize(
    ("pods", "workers", "needed"), [("10.42.0.0/24", 1, "/23"), ("10.42.0.0/23", 2, "/22"), ("10.42.0.0/25", 1, "/23"), ("10.0.0.0/9", 32768, "/8")]
)
def test_a_pod_network_has_room_for_a_node_that_replaces_another(pods: str, workers: int, needed: str) -> None:
    """The replacement comes before the node that it replaces has given its network back; without one it is NotReady for ever."""
    with pytest.raises(InvalidInput, match="room for") as refused:
        check_networks(pods, "172.16.0.0/16", workers=workers, reserved=(), host_addresses=())
    assert f"{workers} for the workers, and 1 for a node that replaces" in refused.value.details
    assert refused.value.resolution == f"use a {needed} or larger"
    check_networks(pods.rpartition("/")[0] + needed, "172.16.0.0/16", workers=workers, reserved=(), host_addresses=())


@pytest.mark.parametrize(
    ("pods", "services", "workers"), [("10.0.0.0/8", "172.16.0.0/28", 5000), ("10.42.0.0/23", "10.43.0.0/28", 1), ("10.42.0.0/16", "172.16.0.0/12", 1)]
)
def test_the_smallest_and_the_largest_networks_pass(pods: str, services: str, workers: int) -> None:
    check_networks(pods, services, workers=workers, reserved=(), host_addresses=())


async def test_a_cluster_that_has_no_room_for_more_says_how_many_it_can_have(world: World) -> None:
    """Its pod network can't be changed. Fewer workers are always possible."""
    await world.group_with_hosts(count=8)
    await world.call("POST", "/clusters", json=cluster_body(podCIDR="10.42.0.0/22"), expect=201)
    answer = await world.call("PATCH", "/clusters/demo", json={"workers": 4}, expect=422)
    assert "room for 4 nodes (a /24 each), and 5 are needed" in answer["error"]["message"]
    assert answer["error"]["resolution"] == "this cluster can have 3 workers: make another with a larger pod network"
    await world.call("PATCH", "/clusters/demo", json={"workers": 3}, expect=200)
    answer = await world.call("PATCH", "/clusters/demo", json={"workers": 4}, expect=422)
    assert answer["error"]["resolution"] == "this cluster has as many workers as it can have: make another with a larger pod network"
    # As 0.2.0 made it: without room for a replacement.
    cluster = world.kube.stored(kinds.CLUSTER, "demo", NAMESPACE)
    cluster["spec"]["clusterNetwork"]["pods"]["cidrBlocks"] = ["10.42.0.0/23"]
    await world.call("PATCH", "/clusters/demo", json={"workers": 2}, expect=200)


@given(st.text(max_size=24))
def test_any_text_is_a_network_or_a_sentence(text: str) -> None:
    try:
        assert str(parse_cidr("podCIDR", text)) == text
    except InvalidInput as error:
        assert error.brief.startswith("podCIDR:")


@given(cidrs, st.integers(1, 2**31))
def test_host_bits_are_refused_with_the_right_spelling(network: IPv4Network, extra: int) -> None:
    assume(network.prefixlen < 32)
    bits = extra % network.num_addresses
    assume(bits)
    text = f"{network.network_address + bits}/{network.prefixlen}"
    with pytest.raises(InvalidInput) as told:
        parse_cidr("podCIDR", text)
    assert str(network) in told.value.resolution


# Settings.


def test_settings_come_from_the_environment_and_a_wrong_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(variables: dict[str, str]) -> Settings:
        with monkeypatch.context() as patched:
            for name, value in variables.items():
                patched.setenv(name, value)
            return Settings.from_environment()

    settings = read({"COMPASS_PORT": "18080", "COMPASS_RESERVED_CIDRS": "hosts=10.88.0.0/24"})
    assert (settings.port, settings.reserved[0].name) == (18080, "hosts")
    for variables in ({"COMPASS_PORT": "high"}, {"COMPASS_RESERVED_CIDRS": "10.88.0.0/24"}, {"COMPASS_RESERVED_CIDRS": "a=10.88.0.1/24"}):
        with pytest.raises(InvalidInput, match=f"^{next(iter(variables))}: '{next(iter(variables.values()))}' is not "):
            read(variables)
    certificates = {"COMPASS_TLS_CERT": "/cert", "COMPASS_TLS_KEY": "/key"}
    settings = read(certificates | {"COMPASS_INTERNAL_TLS_KEY": ""})
    assert (settings.internal_tls_cert, settings.internal_tls_key) == (Path("/cert"), Path("/key")), "the internal port's, if it has none of its own"
    settings = read(certificates | {"COMPASS_INTERNAL_TLS_CERT": "/inner", "COMPASS_INTERNAL_TLS_KEY": "/inner-key"})
    assert (settings.tls_cert, settings.internal_tls_cert, settings.internal_tls_key) == (Path("/cert"), Path("/inner"), Path("/inner-key"))


def test_a_guessable_or_missing_admin_token_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("password\n")
    with pytest.raises(CkpError, match="characters"):
        read_admin_token(tmp_path / "token")
    with pytest.raises(CkpError, match="could not be read"):
        read_admin_token(tmp_path / "none")


def test_a_machine_that_waits_says_what_for_and_not_how_many_conditions_are_missing() -> None:
    conditions = [
        {"type": "Ready", "status": "False", "message": "1 of 2 completed"},
        {"type": "InfrastructureReady", "status": "False", "message": "none of 2 matching hosts is free: 1 in use, 1 cordoned"},
    ]
    machine = {"metadata": {"name": "m"}, "spec": {}, "status": {"conditions": conditions}}
    assert _machine(machine, [], {}).message == "none of 2 matching hosts is free: 1 in use, 1 cordoned"
