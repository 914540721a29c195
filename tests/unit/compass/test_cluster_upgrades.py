"""Compass: upgrades of a cluster through REST and the command line; what can't be is refused by name, and nothing is led by Compass itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ckp.api import kinds
from ckp.clients.kube import Obj
from ckp.compass.store.places import Place
from tests.worlds.compass import NAMESPACE, World, cluster_body, make_world


@pytest.fixture
async def world(tmp_path: Path, place: Place) -> AsyncIterator[World]:
    async with make_world(tmp_path, place=place) as made:
        await made.group_with_hosts()
        await made.call("POST", "/clusters", json=cluster_body(), expect=201)
        yield made


async def up(world: World, version: str = "v1.33.7") -> None:
    await world.kube.merge(kinds.MANAGED_CONTROL_PLANE, "demo", NAMESPACE, {"status": {"version": version}}, subresource="status")


async def start(world: World, *, expect: int = 202, **body: Any) -> Any:
    return await world.call("POST", "/clusters/demo/upgrade", json={"version": "v1.35.1", **body}, expect=expect)


def stored(world: World) -> list[Obj]:
    return world.kube.all_stored(kinds.CLUSTER_UPGRADE)


async def test_an_upgrade_is_asked_for_as_an_object_and_shown_as_its_status_says(world: World) -> None:
    await up(world)
    made = await start(world, accept=["Webhook"], pools=["demo-workers"], atOnce=2, afterFirst=1, hostTimeout="90m")
    [found] = stored(world)
    spec = {"clusterName": "demo", "version": "v1.35.1", "accept": ["Webhook"], "pools": ["demo-workers"], "atOnce": 2, "afterFirst": 1, "hostTimeout": "1h30m"}
    assert found["spec"] == spec and found["metadata"]["name"] == made["id"] and (made["phase"], made["over"]) == ("Checking", False)
    node = {"name": "h1", "pool": "demo-workers", "from": "v1.33.7", "to": "v1.35.1", "state": "Done", "startedAt": "2026-05-01T12:00:00Z"}
    node |= {"waitingSince": "2026-05-01T12:05:00Z", "waitingUntil": "2026-05-01T13:05:00Z"}
    finding = {"name": "Webhook", "where": "x", "message": "m", "remedy": "r", "acceptable": True, "accepted": True}
    status = {"phase": "Nodes", "message": "h1", "from": "v1.33.7", "path": ["v1.34.3", "v1.35.1"], "nodes": [node], "findings": [finding]}
    await world.kube.merge(kinds.CLUSTER_UPGRADE, made["id"], NAMESPACE, {"status": status}, subresource="status")
    shown = await world.call("GET", "/clusters/demo/upgrade")
    assert (shown["phase"], shown["from"], shown["path"]) == ("Nodes", "v1.33.7", ["v1.34.3", "v1.35.1"])
    assert (
        shown["nodes"][0]["version"] == "v1.35.1"
        and shown["nodes"][0]["from"] == "v1.33.7"
        and shown["nodes"][0]["waitingUntil"] == "2026-05-01T13:05:00Z"
        and shown["findings"] == [finding]
    )


async def test_a_second_one_is_refused_while_one_goes_on_and_a_plan_is_not(world: World) -> None:
    await up(world)
    made = await start(world)
    assert "is being upgraded to v1.35.1 already" in str(await start(world, expect=409))
    plan = await start(world, dryRun=True)
    assert (await world.call("GET", "/clusters/demo/upgrade"))["id"] == made["id"], "a plan is no upgrade"
    assert (await world.call("GET", f"/clusters/demo/upgrade?id={plan['id']}"))["dryRun"] is True
    await world.kube.merge(kinds.CLUSTER_UPGRADE, made["id"], NAMESPACE, {"status": {"phase": "Failed"}}, subresource="status")
    assert (await start(world))["id"] != made["id"]


async def test_it_is_paused_resumed_and_aborted_and_not_once_it_is_over(world: World) -> None:
    await up(world)
    made = await start(world, afterFirst=1)
    await world.call("POST", "/clusters/demo/upgrade/pause", expect=202)
    assert stored(world)[0]["spec"]["pause"] is True
    await world.call("POST", "/clusters/demo/upgrade/resume", expect=202)
    assert (stored(world)[0]["spec"]["pause"], stored(world)[0]["spec"]["afterFirst"]) == (False, 0)
    await world.call("POST", "/clusters/demo/upgrade/abort", expect=202)
    assert stored(world)[0]["spec"]["abort"] is True
    await world.kube.merge(kinds.CLUSTER_UPGRADE, made["id"], NAMESPACE, {"status": {"phase": "Aborted"}}, subresource="status")
    assert "is over (Aborted)" in str(await world.call("POST", "/clusters/demo/upgrade/resume", expect=409))


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ({"version": "v1.32.0"}, 422, "is older than v1.33.7"),
        ({"version": "latest"}, 422, "version"),
        ({"atOnce": 0}, 422, "atOnce"),
        ({"hostTimeout": "1s"}, 422, "hostTimeout"),
        ({"force": True}, 422, "is not a known field"),
    ],
)
async def test_requests_that_can_not_be_are_refused_and_make_nothing(world: World, body: dict[str, Any], code: int, said: str) -> None:
    await up(world)
    assert said in str(await start(world, expect=code, **body))
    assert stored(world) == []


async def test_a_cluster_that_was_never_up_or_is_not_there_is_named(world: World) -> None:
    assert "was never up" in str(await start(world, expect=409))
    assert "has not been upgraded" in str(await world.call("GET", "/clusters/demo/upgrade", expect=404))
    assert "there is no cluster none" in str(await world.call("GET", "/clusters/none/upgrade", expect=404))


async def soaks(world: World, **more: Any) -> None:
    record = {"from": "v1.34.3", "version": "v1.35.1", "startedAt": "2026-05-01T12:00:00Z", "emulated": "v1.34", **more}
    kept = [{"id": "20260430T120000Z"}, {"id": "20260501T110000Z"}, {"id": "20260501T130000Z"}]
    status = {"version": "v1.34.3", "upgrade": record, "backup": {"kept": kept}}
    await world.kube.merge(kinds.MANAGED_CONTROL_PLANE, "demo", NAMESPACE, {"status": status}, subresource="status")


async def test_a_soak_is_asked_for_committed_and_rolled_back_by_the_upgrade_that_leads_it(world: World) -> None:
    await up(world, "v1.34.3")
    made = await start(world, soak=True, commitAfter="24h")
    assert stored(world)[0]["spec"]["soak"] is True and stored(world)[0]["spec"]["commitAfter"] == "24h" and made["soak"] is True
    assert "no step goes on" in str(await world.call("POST", "/clusters/demo/upgrade/commit", expect=409))
    await soaks(world)
    shown = await world.call("GET", "/clusters/demo/upgrade")
    assert shown["wayBack"] == "ckp cluster upgrade demo --rollback: to v1.34.3, etcd is not touched and nothing that was written is lost"
    committed = await world.call("POST", "/clusters/demo/upgrade/commit", expect=202)
    assert stored(world)[0]["spec"]["commit"] == "v1.35.1"
    assert committed["wayBack"].startswith("ckp cluster restore demo 20260501T110000Z: ") and "what was written since is lost" in committed["wayBack"]
    await world.call("POST", "/clusters/demo/upgrade/rollback", expect=202)
    assert stored(world)[0]["spec"]["rollback"] is True
    await soaks(world, emulated=None)
    refused = str(await world.call("POST", "/clusters/demo/upgrade/rollback", expect=409))
    assert "is committed" in refused and "ckp cluster restore demo 20260501T110000Z" in refused


async def test_a_step_that_no_upgrade_leads_is_committed_or_rolled_back_at_the_control_plane(world: World) -> None:
    await up(world, "v1.34.3")
    spec = {"version": "v1.35.1", "upgrade": {"soak": True}}
    await world.kube.merge(kinds.MANAGED_CONTROL_PLANE, "demo", NAMESPACE, {"spec": spec})
    await soaks(world)
    await world.call("POST", "/clusters/demo/upgrade/commit", expect=202)
    assert world.kube.stored(kinds.MANAGED_CONTROL_PLANE, "demo", NAMESPACE)["spec"]["upgrade"]["soak"] is False
    await world.call("POST", "/clusters/demo/upgrade/rollback", expect=202)
    assert world.kube.stored(kinds.MANAGED_CONTROL_PLANE, "demo", NAMESPACE)["spec"]["version"] == "v1.34.3" and stored(world) == []


async def test_a_time_without_a_soak_is_refused(world: World) -> None:
    await up(world)
    assert "ask for soak as well" in str(await start(world, expect=422, commitAfter="1h"))
