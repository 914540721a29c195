"""Compass: what can be set of a cluster beside its size, and changed while it lives."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ckp.api import kinds
from ckp.clients.kube import Obj
from ckp.compass.clusters.views import timeouts_of
from tests.worlds.compass import NAMESPACE, World, cluster_body, make_world


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with make_world(tmp_path) as made:
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
