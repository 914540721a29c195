"""A whole upgrade whose control plane soaks at each minor: it waits for the commit, and until then it goes back; nodes are touched after the last commit."""

from __future__ import annotations

import pytest

from ckp.api.kinds import MANAGED_CONTROL_PLANE
from tests.support.kills import at_call, pass_under, stride
from tests.worlds.upgrades import NEW, NEXT, OLD, TENANT, UpgradeWorld


async def test_each_minor_soaks_until_it_is_committed_and_nodes_wait_for_the_last() -> None:
    world = UpgradeWorld()
    await world.made()
    await world.ask(soak=True)
    status = await world.until("Soaking")
    assert status["message"] == f"control plane to {NEW}: it soaks" and status["controlPlane"]["state"] == "Running"
    for _ in range(6):
        await world.step()
        await world.pass_once()
    assert world.committed == [] and world.status()["phase"] == "Soaking" and set(world.kubelets().values()) == {OLD}
    await world.change(commit=NEW)
    await world.until("ControlPlane")
    await world.until("Soaking")
    assert world.committed == [NEW] and world.spec_of(MANAGED_CONTROL_PLANE, "demo")["version"] == NEXT and set(world.kubelets().values()) == {OLD}
    await world.change(commit=NEXT)
    assert (await world.until("Done", "Failed"))["phase"] == "Done"
    assert world.committed == [NEW, NEXT] and set(world.kubelets().values()) == {NEXT}


async def test_a_commit_that_is_given_beforehand_or_a_time_is_passed_on() -> None:
    world = UpgradeWorld()
    await world.made()
    await world.ask(soak=True, commit=NEW, commitAfter="1h")
    await world.until("Soaking")
    asked = world.spec_of(MANAGED_CONTROL_PLANE, "demo")
    assert (asked["version"], asked["upgrade"]) == (NEXT, {"soak": True, "commitAfter": "1h"}), "the first minor did not soak"
    plain = UpgradeWorld()
    await plain.made()
    await plain.ask(NEW)
    await plain.until("Done")
    assert plain.spec_of(MANAGED_CONTROL_PLANE, "demo")["upgrade"]["soak"] is False


async def test_a_rollback_brings_the_control_plane_back_and_ends_it_and_the_same_can_be_asked_again() -> None:
    world = UpgradeWorld()
    await world.made()
    await world.ask(soak=True)
    await world.until("Soaking")
    await world.change(rollback=True)
    status = await world.until("RolledBack", "Aborted", "Failed")
    assert status["phase"] == "RolledBack" and f"is of {OLD} again" in status["message"] and status["finishedAt"]
    assert world.spec_of(MANAGED_CONTROL_PLANE, "demo")["version"] == OLD and set(world.kubelets().values()) == {OLD}
    for _ in range(4):
        await world.step()
        await world.pass_once()
    assert world.status()["phase"] == "RolledBack" and world.spec_of(MANAGED_CONTROL_PLANE, "demo")["version"] == OLD
    await world.ask(name="again")
    assert (await world.until("Done", "Failed", name="again"))["phase"] == "Done"


async def test_what_is_committed_is_not_rolled_back_and_what_was_not_begun_is_only_ended() -> None:
    world = UpgradeWorld()
    await world.made()
    await world.ask(NEW)
    await world.until("ControlPlane")
    await world.step()
    assert world.kube.stored(MANAGED_CONTROL_PLANE, "demo", TENANT)["status"]["upgrade"]["version"] == NEW
    await world.change(rollback=True)
    status = await world.until("RolledBack", "Aborted", "Failed")
    assert status["phase"] == "Aborted" and "is committed, so the control plane does not go back" in status["message"]
    assert "ckp cluster restore" in status["message"] and world.spec_of(MANAGED_CONTROL_PLANE, "demo")["version"] == NEW
    early = UpgradeWorld()
    await early.made()
    await early.ask(rollback=True)
    assert "no step was uncommitted" in (await early.until("Aborted"))["message"]
    assert early.spec_of(MANAGED_CONTROL_PLANE, "demo")["version"] == OLD


@pytest.mark.parametrize("ends", ["commit", "rollback"])
@pytest.mark.parametrize("at", range(1, 1200, max(11, stride(110))))
async def test_controllers_that_are_killed_at_any_call_commit_or_roll_back_as_they_were_told(at: int, ends: str) -> None:
    world = UpgradeWorld()
    await world.made()
    await world.ask(NEW, soak=True)
    fault, told = at_call(at), False
    for _ in range(90):
        if await pass_under(world, fault):
            await world.pass_once()
        if world.status().get("phase") in ("Done", "RolledBack", "Failed", "Aborted"):
            break
        if world.status().get("phase") == "Soaking" and not told:
            told = True
            await world.change(**({"commit": NEW} if ends == "commit" else {"rollback": True}))
        await world.step()
        assert told or not world.committed
    assert told and world.status()["phase"] == ("Done" if ends == "commit" else "RolledBack")
    assert set(world.kubelets().values()) == {NEW if ends == "commit" else OLD}
