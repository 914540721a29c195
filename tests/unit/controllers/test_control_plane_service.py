"""The endpoints of `default/kubernetes` in a workload cluster, as these controllers write them."""

from __future__ import annotations

from ckp.api.kinds import ENDPOINT_SLICE, ENDPOINTS
from ckp.controllers.controlplane import apiserver
from ckp.controllers.controlplane.service_endpoints import SERVICE_LABEL, addresses_of, endpoint_slice, publish
from tests.simulators.kube import KubeSimulator
from tests.unit.controllers.test_control_plane_manifests import flags, plan

HOST = ["10.88.0.150"]


def slices(kube: KubeSimulator) -> dict[str, list[str]]:
    return {item["metadata"]["name"]: [address for point in item["endpoints"] for address in point["addresses"]] for item in kube.all_stored(ENDPOINT_SLICE)}


async def test_pods_reach_the_load_balancer_and_nothing_else() -> None:
    kube = KubeSimulator()
    assert await publish(kube, HOST, 6443)
    assert slices(kube) == {"kubernetes": HOST}
    assert kube.stored(ENDPOINTS, "kubernetes", "default")["subsets"] == [
        {"addresses": [{"ip": "10.88.0.150"}], "ports": [{"name": "https", "port": 6443, "protocol": "TCP"}]}
    ]
    version = kube.version
    assert not await publish(kube, HOST, 6443), "what is right is left alone"
    assert kube.version == version


async def test_what_a_stopping_api_server_of_before_has_emptied_is_filled_again() -> None:
    kube = KubeSimulator()
    other = kube.as_manager("kube-apiserver")
    await other.create({**endpoint_slice(HOST, 6443), "endpoints": []})
    await other.create({**(await kube.get(ENDPOINT_SLICE, "kubernetes", "default") or {}), "apiVersion": "v1", "kind": "Endpoints", "subsets": []})
    assert await publish(kube, HOST, 6443)
    assert slices(kube) == {"kubernetes": HOST}
    assert kube.stored(ENDPOINTS, "kubernetes", "default")["subsets"][0]["addresses"] == [{"ip": "10.88.0.150"}]


async def test_stale_slices_go_after_the_right_one_is_there() -> None:
    """One of the other family can't be changed, only replaced; one of another name would send pods to an address of before."""
    kube = KubeSimulator()
    await kube.create(endpoint_slice(["fd00::1"], 6443))
    stale = endpoint_slice(["10.88.0.7"], 6443)
    await kube.create({**stale, "metadata": {"name": "kubernetes-x", "namespace": "default", "labels": {SERVICE_LABEL: "kubernetes"}}})
    assert await publish(kube, HOST, 6443)
    assert slices(kube) == {"kubernetes": HOST}
    written = [call for call in kube.calls if call[0] in ("apply", "delete") and call[1] == "EndpointSlice"]
    assert written.index(("apply", "EndpointSlice", "kubernetes")) < written.index(("delete", "EndpointSlice", "kubernetes-x"))


async def test_an_endpoint_by_name_is_resolved_and_an_address_is_taken_as_it_is() -> None:
    assert await addresses_of("fd00:0::1") == ["fd00::1"]
    assert await addresses_of("localhost") in (["127.0.0.1"], ["::1"])


def test_api_servers_leave_the_endpoints_alone_and_end_without_a_failed_request() -> None:
    made = apiserver.api_server(plan())
    given, pod = flags(made), made["spec"]["template"]["spec"]
    assert given["endpoint-reconciler-type"] == "none"
    delay = int(given["shutdown-delay-duration"].removesuffix("s"))
    assert delay >= 5 and given["shutdown-send-retry-after"] == "true"
    assert pod["terminationGracePeriodSeconds"] > delay + 60, "the longest request that is no watch takes a minute"
    assert made["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    # The tunnel to the nodes is there before the API server, and until it is gone.
    assert [(item["name"], item["restartPolicy"]) for item in pod["initContainers"]] == [("konnectivity-server", "Always")]


def test_api_servers_of_0_2_0_are_known_by_what_they_do_when_they_stop() -> None:
    new = {"spec": apiserver.api_server(plan())["spec"]["template"]["spec"]}
    old = {"spec": {"containers": [{"name": "kube-apiserver", "command": ["kube-apiserver", "--advertise-address=10.88.0.150"]}]}}
    assert not apiserver.clears_endpoints([new])
    assert apiserver.clears_endpoints([new, old])


async def test_a_slice_is_known_again_in_a_list_whose_items_do_not_name_their_kind() -> None:
    """As an API server's do not."""
    kube = KubeSimulator()
    await publish(kube, HOST, 6443)
    for field in ("apiVersion", "kind"):
        del kube.stored(ENDPOINT_SLICE, "kubernetes", "default")[field]
    assert not await publish(kube, HOST, 6443)
