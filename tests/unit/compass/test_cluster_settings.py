"""Compass: what can be set of a cluster beside its size, and changed while it lives."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ckp.api import kinds
from ckp.api.compass.clusters import ClusterRequest
from ckp.clients.kube import Obj
from ckp.compass.clusters.manifests import request_digest
from ckp.compass.clusters.views import timeouts_of
from ckp.compass.store.places import Place
from ckp.controllers.controlplane import certificates
from ckp.rules.endpoints import server_addresses, server_names
from tests.unit.controllers.test_control_plane_manifests import plan
from tests.worlds.compass import NAMESPACE, World, cluster_body, make_world


@pytest.fixture
async def world(tmp_path: Path, place: Place) -> AsyncIterator[World]:
    async with make_world(tmp_path, place=place) as made:
        await made.group_with_hosts()
        await made.call("POST", "/clusters", json=cluster_body(), expect=201)
        yield made


async def change(world: World, body: dict[str, Any], expect: int = 200) -> Any:
    return await world.call("PATCH", "/clusters/demo", json=body, expect=expect)


async def spec_of(world: World, kind: kinds.Kind) -> Obj:
    found = await world.kube.get(kind, "demo", NAMESPACE)
    assert found is not None
    return dict(found["spec"])


async def test_how_long_images_may_be_fetched_is_changed_at_the_cluster_without_touching_a_worker(world: World) -> None:
    assert (await world.call("GET", "/clusters/demo"))["timeouts"]["imageFetch"] == "15m"
    before = await world.kube.get(kinds.MACHINE_DEPLOYMENT, "demo-workers", NAMESPACE)
    assert (await change(world, {"timeouts": {"imageFetch": "1h"}}))["timeouts"]["imageFetch"] == "1h"
    assert (await spec_of(world, kinds.BYO_CLUSTER))["imageFetchTimeout"] == "1h"
    assert await world.kube.get(kinds.MACHINE_DEPLOYMENT, "demo-workers", NAMESPACE) == before, "nothing of its Machines changes: no rollout"


async def test_how_long_images_may_be_fetched_can_not_be_set_where_nothing_is_fetched_any_more(world: World) -> None:
    await world.kube.merge(kinds.CLUSTER, "demo", NAMESPACE, {"metadata": {"finalizers": ["cluster.cluster.x-k8s.io"]}})
    await world.kube.delete(kinds.CLUSTER, "demo", NAMESPACE)
    refused = await change(world, {"timeouts": {"imageFetch": "1h"}}, expect=409)
    assert "cluster demo is being deleted" in str(refused)
    await world.kube.delete(kinds.BYO_CLUSTER, "demo", NAMESPACE)


async def test_a_cluster_without_a_byocluster_says_so(world: World) -> None:
    await world.kube.delete(kinds.BYO_CLUSTER, "demo", NAMESPACE)
    assert "cluster demo has no ByoCluster demo" in str(await change(world, {"timeouts": {"imageFetch": "1h"}}, expect=409))


@pytest.mark.parametrize(("stored", "shown"), [(None, "15m"), ("", "15m"), ("0s", "15m"), ("90m", "1h30m"), ("two hours", "two hours")])
def test_a_cluster_that_does_not_say_how_long_images_may_be_fetched_has_the_default(stored: str | None, shown: str) -> None:
    """A cluster of 0.2.0 has no such field; what its hosts do is what is shown."""
    infrastructure = {"apiVersion": "v1", "kind": "ByoCluster", "metadata": {"name": "demo"}, "spec": {} if stored is None else {"imageFetchTimeout": stored}}
    assert timeouts_of(None, None, infrastructure).image_fetch == shown


async def test_names_of_the_api_servers_certificate_are_set_as_a_whole_and_shown(world: World) -> None:
    assert (await world.call("GET", "/clusters/demo"))["certSANs"] == []
    assert (await change(world, {"certSANs": ["api.demo.example", "203.0.113.7"]}))["certSANs"] == ["api.demo.example", "203.0.113.7"]
    assert (await spec_of(world, kinds.MANAGED_CONTROL_PLANE))["certSANs"] == ["api.demo.example", "203.0.113.7"]
    assert (await change(world, {"certSANs": ["*.demo.example"]}))["certSANs"] == ["*.demo.example"], "in place of those before"
    assert (await change(world, {"timeouts": {"drain": "1h"}}))["certSANs"] == ["*.demo.example"], "what is left out stays"
    assert (await change(world, {"certSANs": []}))["certSANs"] == []
    assert "the body changes nothing" in str(await change(world, {}, expect=422))


WRONG_NAMES = [
    (["x_y.example"], "certSANs: 'x_y.example' is neither a DNS name nor an IPv4 address", "write it like api.demo.example"),
    (["API.example"], "certSANs: 'API.example' is neither", "write api.example"),
    (["https://api.example:6443/"], "certSANs: 'https://api.example:6443/' is neither", "write api.example"),
    (["10.0.0.9:6443"], "certSANs: '10.0.0.9:6443' is neither", "write 10.0.0.9"),
    (["api.example."], "certSANs: 'api.example.' is neither", "write api.example"),
    (["2001:db8::1"], "certSANs: '2001:db8::1' is neither", "IPv6 is not supported yet"),
    (["10.0.0.256"], "certSANs: '10.0.0.256' is neither", "write it like"),
    ([""], "certSANs: '' is neither", "write it like"),
    (["a.example", "b.example", "a.example"], "certSANs: a.example is given twice", ""),
    (["10.43.0.1"], "certSANs: the certificate has 10.43.0.1 anyway", "leave it out"),
    (["kubernetes.default.svc.cluster.local"], "certSANs: the certificate has kubernetes.default.svc.cluster.local anyway", "leave it out"),
    (["demo-apiserver.ckp-default-default.svc"], "certSANs: the certificate has demo-apiserver.ckp-default-default.svc anyway", ""),
    ([f"n{number}.example" for number in range(101)], "certSANs: 101 names are too many", "use a wildcard"),
]


@pytest.mark.parametrize(("given", "sentence", "hint"), WRONG_NAMES)
async def test_names_that_no_certificate_needs_or_can_have_are_refused_and_change_nothing(world: World, given: list[str], sentence: str, hint: str) -> None:
    await change(world, {"certSANs": ["demo.example"]})
    refused = str(await change(world, {"certSANs": given, "timeouts": {"drain": "1h"}}, expect=422))
    assert sentence in refused and hint in refused
    shown = await world.call("GET", "/clusters/demo")
    assert (shown["certSANs"], shown["timeouts"]["drain"]) == (["demo.example"], "10m")
    body = cluster_body(name="other", certSANs=[name.replace("demo-", "other-") for name in given])
    refused = str(await world.call("POST", "/clusters", json=body, expect=422))
    assert sentence.replace("demo-", "other-") in refused
    assert await world.kube.get(kinds.CLUSTER, "other", NAMESPACE) is None


async def test_the_address_of_the_api_server_is_in_its_certificate_anyway(world: World) -> None:
    endpoint = {"controlPlaneEndpoint": {"host": "api.demo.example", "port": 6443}, "loadBalancer": {"address": "10.88.0.150"}}
    await world.kube.merge(kinds.MANAGED_CONTROL_PLANE, "demo", NAMESPACE, {"spec": endpoint})
    for own in ("api.demo.example", "10.88.0.150"):
        assert f"the certificate has {own} anyway" in str(await change(world, {"certSANs": [own]}, expect=422))


async def test_names_are_not_set_of_a_cluster_that_goes_or_is_not_whole(world: World) -> None:
    await world.kube.delete(kinds.MANAGED_CONTROL_PLANE, "demo", NAMESPACE)
    assert "cluster demo has no ManagedControlPlane demo" in str(await change(world, {"certSANs": ["x.example"]}, expect=409))
    await world.kube.merge(kinds.CLUSTER, "demo", NAMESPACE, {"metadata": {"finalizers": ["cluster.cluster.x-k8s.io"]}})
    await world.kube.delete(kinds.CLUSTER, "demo", NAMESPACE)
    assert "cluster demo is being deleted" in str(await change(world, {"certSANs": ["x.example"]}, expect=409))


def test_a_request_without_names_is_the_same_one_as_before_there_were_any() -> None:
    """An interrupted creation is completed by the same request, also after an upgrade of Compass in between."""
    plain = {key: value for key, value in cluster_body().items() if key != "certSANs"}
    digest = request_digest(ClusterRequest.model_validate(plain), "")
    assert digest == request_digest(ClusterRequest.model_validate({**plain, "certSANs": []}), "")
    assert digest != request_digest(ClusterRequest.model_validate({**plain, "certSANs": ["x.example"]}), "")


def test_what_compass_takes_for_present_is_what_the_controllers_put_into_each_certificate() -> None:
    made = plan()
    leaf = next(leaf for leaf in certificates.leaves(made) if leaf.name == "apiserver")
    own = {*server_names("demo", made.namespace, "cluster.local"), *server_addresses(made.service_cidr), made.host}
    assert own == {*leaf.dns, *leaf.addresses}
