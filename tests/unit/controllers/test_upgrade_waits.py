"""A host that is offline is waited for, for so long as hostTimeout says: seen in the status, ended by a failure that leaves its node whole."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckp.api.kinds import BYO_MACHINE, MANAGED_CONTROL_PLANE
from ckp.kits.clock import rfc3339
from tests.worlds.upgrades import NEW, NEXT, OLD, TENANT, UpgradeWorld

HOUR = 3600.0


async def asked(**spec: Any) -> UpgradeWorld:
    world = UpgradeWorld()
    await world.made()
    await world.ask(NEW, **spec)
    return world


async def later(world: UpgradeWorld, seconds: float) -> None:
    world.clock.advance(seconds)
    await world.pass_once()


def asked_to_install(world: UpgradeWorld) -> set[str]:
    return {item["metadata"]["name"] for item in world.kube.all_stored(BYO_MACHINE) if item["spec"].get("kubernetesVersion")}


def node(world: UpgradeWorld, name: str) -> dict[str, str]:
    return next(item for item in world.status()["nodes"] if item["name"] == name)


async def test_blocked_by_an_offline_host_it_says_until_when_and_fails_then() -> None:
    world = await asked()
    await world.connected("n2", False)
    begun = world.clock.now()
    await world.pass_once()
    until = rfc3339(begun.replace(hour=begun.hour + 1))
    assert world.status()["phase"] == "Blocked" and f"looked at again until {until}" in world.status()["message"]
    assert (node(world, "n2")["waitingSince"], node(world, "n2")["waitingUntil"]) == (rfc3339(begun), until)
    assert "waitingSince" not in node(world, "n1")
    await later(world, HOUR - 1)
    assert world.status()["phase"] == "Blocked"
    world.restarted()
    await later(world, 1)
    message = world.status()["message"]
    assert world.status()["phase"] == "Failed" and all(part in message for part in ("host n2", "hostTimeout (1h)", "was not changed", "leave it out"))
    assert world.spec_of(MANAGED_CONTROL_PLANE, "demo")["version"] == OLD


async def test_a_host_that_is_back_in_time_is_upgraded_and_its_time_begins_again() -> None:
    world = await asked()
    await world.connected("n2", False)
    await world.pass_once()
    await later(world, HOUR - 1)
    await world.connected("n2", True)
    await world.until("Nodes")
    assert "waitingSince" not in node(world, "n2")
    await world.connected("n2", False)
    for _ in range(30):
        await world.step()
        await world.pass_once()
    assert world.status()["phase"] == "Nodes" and "n2: its host is offline" in world.status()["message"]
    assert world.kubelets()["n1"] == NEW and not world.spec_of(BYO_MACHINE, "n2").get("kubernetesVersion"), "its node is not drained"
    await world.connected("n2", True)
    await world.until("Done")
    assert set(world.kubelets().values()) == {NEW}


async def test_offline_while_hosts_prepare_it_ends_with_the_control_plane_as_it_was() -> None:
    world = await asked(hostTimeout="10m")
    await world.pass_once()
    assert world.status()["phase"] == "Preparing"
    await world.connected("n3", False)
    for _ in range(3):
        await world.step()
        await world.pass_once()
    assert world.status()["phase"] == "Preparing" and node(world, "n3")["waitingUntil"] in world.status()["message"]
    await later(world, 600)
    status = world.status()
    assert status["phase"] == "Failed" and "hostTimeout (10m)" in status["message"] and "n3" in status["message"]
    assert not world.spec_of(BYO_MACHINE, "n3").get("prepareVersion"), "nothing is asked of it any longer"
    assert world.spec_of(MANAGED_CONTROL_PLANE, "demo")["version"] == OLD and set(world.kubelets().values()) == {OLD}


async def test_a_host_that_goes_while_it_installs_ends_the_upgrade_and_finishes_its_node_by_itself() -> None:
    world = await asked()
    while (world.kube.stored(BYO_MACHINE, "n1", TENANT).get("status") or {}).get("upgrade", {}).get("state") != "Installing":
        await world.pass_once()
        await world.step()
    await world.connected("n1", False)
    await world.pass_once()
    await later(world, HOUR)
    status = world.status()
    assert status["phase"] == "Failed" and "finished, or put back to its old packages, by the host itself" in status["message"]
    assert world.spec_of(BYO_MACHINE, "n1")["kubernetesVersion"] == NEW, "it is not left between two releases"
    assert world.kubelets() == {"n1": OLD, "n2": OLD, "n3": OLD} and node(world, "n1")["state"] == "Failed"
    await world.connected("n1", True)
    await world.step()
    assert world.kubelets()["n1"] == NEW
    await world.ask(NEW, "again")
    await world.until("Done", name="again")
    assert set(world.kubelets().values()) == {NEW}


async def test_a_node_that_runs_is_finished_before_a_host_that_was_given_up_ends_the_upgrade() -> None:
    world = await asked(atOnce=2, hostTimeout="5m")
    await world.until("Nodes")
    await world.connected("n2", False)
    await world.pass_once()
    world.clock.advance(300)
    status = await world.until("Failed")
    assert world.kubelets() == {"n1": NEW, "n2": OLD, "n3": OLD} and "host n2" in status["message"]
    assert world.spec_of(BYO_MACHINE, "n2").get("kubernetesVersion", "") == ""
    assert {item["name"]: item["state"] for item in status["nodes"]} == {"n1": "Done", "n2": "Failed", "n3": "Pending"}


@pytest.mark.parametrize("reason", ["AgentTooOld", "NoBundle"])
async def test_a_host_that_can_not_prepare_for_another_cause_is_not_waited_for_without_an_end(reason: str) -> None:
    world = await asked()
    await world.pass_once()
    status = {"version": NEW, "state": "Preparing", "reason": reason, "message": f"host n1: {reason}"}
    await world.kube.merge(BYO_MACHINE, "n1", TENANT, {"status": {"upgrade": status}}, subresource="status")
    await world.pass_once()
    await later(world, HOUR)
    assert world.status()["phase"] == "Failed" and reason in world.status()["message"]


async def test_what_else_holds_it_up_is_looked_at_for_a_day() -> None:
    world = await asked(nodes=["n1", "n9"])
    await world.pass_once()
    assert "looked at again until 2026-05-02T12:00:00Z" in world.status()["message"]
    await later(world, 24 * HOUR - 1)
    assert world.status()["phase"] == "Blocked"
    await later(world, 1)
    assert world.status()["phase"] == "Failed" and "UnknownNames, n9" in world.status()["message"]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(("n1", "n2", "n3")), st.booleans(), st.sampled_from((0, 60, 900, 3600))), max_size=12))
async def test_however_hosts_come_and_go_it_ends_and_no_node_is_drained_while_its_host_is_offline(story: list[tuple[str, bool, int]]) -> None:
    world = await asked()
    for name, connected, seconds in story:
        await world.connected(name, connected)
        world.clock.advance(seconds)
        before = asked_to_install(world)
        await world.pass_once()
        assert not (asked_to_install(world) - before) & world.offline, "a node is drained while nothing can be installed on it"
        await world.step()
    for _ in range(60):
        world.clock.advance(300)
        await world.pass_once()
        await world.step()
    assert world.status()["phase"] in ("Done", "Failed"), world.status()
    assert NEXT not in world.kubelets().values()
