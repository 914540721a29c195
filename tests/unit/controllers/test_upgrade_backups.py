"""An upgrade makes a backup before it changes anything, once, and waits for it with a limit; one that can't be made is a finding."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from ckp.api.kinds import BYO_MACHINE, MANAGED_CONTROL_PLANE
from ckp.api.names import BACKUP_ANNOTATION
from ckp.clients.kube import Obj
from tests.support.kills import at_call, pass_under
from tests.worlds.upgrades import NEW, OLD, TENANT, UpgradeWorld


async def made(*ages: float) -> UpgradeWorld:
    """A cluster with a place for backups, and backups of these ages in hours."""
    world = UpgradeWorld()
    await world.made()
    await world.backs_up(*(world.clock.now() - timedelta(hours=age) for age in ages))
    return world


def plane(world: UpgradeWorld) -> Obj:
    return world.kube.stored(MANAGED_CONTROL_PLANE, "demo", TENANT)


def backups(world: UpgradeWorld) -> list[str]:
    return [entry["id"] for entry in plane(world)["status"]["backup"]["kept"]]


def unchanged(world: UpgradeWorld) -> bool:
    asked = [item["spec"] for item in world.kube.all_stored(BYO_MACHINE) if item["spec"].get("prepareVersion") or item["spec"].get("kubernetesVersion")]
    return plane(world)["spec"]["version"] == OLD and not asked


@pytest.mark.parametrize("ages", [(), (30.0,), (50.0, 1.5)])
async def test_one_is_made_before_anything_is_changed_where_the_newest_is_not_new(ages: tuple[float, ...]) -> None:
    world = await made(*ages)
    await world.ask(NEW)
    await world.pass_once()
    assert world.status()["phase"] == "Checking" and "a backup is made before anything is changed" in world.status()["message"]
    while len(backups(world)) == len(ages):
        assert unchanged(world)
        await world.pass_once()
        await world.step()
    await world.until("Done")
    assert len(backups(world)) == len(ages) + 1, "it is made once"


async def test_none_is_made_where_there_is_a_new_one_or_no_place_or_it_is_accepted_to_have_none() -> None:
    for world, accepted in ((await made(0.5), []), (await made(30), ["BackupNotFresh"])):
        await world.ask(NEW, accept=accepted)
        await world.until("Done")
        assert len(backups(world)) == 1 and BACKUP_ANNOTATION not in (plane(world)["metadata"].get("annotations") or {})
    world = UpgradeWorld()
    await world.made()
    await world.ask(NEW)
    await world.until("Done")
    assert BACKUP_ANNOTATION not in (plane(world)["metadata"].get("annotations") or {})


async def test_one_that_fails_is_a_finding_that_a_person_may_accept_and_it_is_not_tried_again_by_itself() -> None:
    world = await made(30)
    world.backups = "failed"
    await world.ask(NEW)
    status = await world.until("Blocked")
    assert [(finding["name"], finding["acceptable"]) for finding in status["findings"]] == [("BackupNotFresh", True)]
    assert "the backup that this upgrade asked for failed: full" in status["findings"][0]["message"] and unchanged(world)
    asked = plane(world)["metadata"]["annotations"][BACKUP_ANNOTATION]
    for _ in range(4):
        await world.step()
        await world.pass_once()
    assert world.status()["phase"] == "Blocked" and plane(world)["metadata"]["annotations"][BACKUP_ANNOTATION] == asked
    await world.change(accept=["BackupNotFresh"])
    await world.until("Done")


async def test_one_that_failed_and_was_made_by_a_person_since_lets_it_go_on() -> None:
    world = await made(30)
    world.backups = "failed"
    await world.ask(NEW)
    await world.until("Blocked")
    await world.backs_up(world.clock.now())
    await world.until("Done")


async def test_one_that_has_no_end_is_waited_for_for_an_hour() -> None:
    world = await made(30)
    world.backups = "slow"
    await world.ask(NEW)
    await world.pass_once()
    assert "waited for until 2026-05-01T13:00:00Z" in world.status()["message"]
    for _ in range(3):
        await world.step()
        await world.pass_once()
    world.clock.advance(3500)
    await world.pass_once()
    assert world.status()["phase"] == "Checking"
    world.clock.advance(200)
    await world.pass_once()
    assert world.status()["phase"] == "Blocked" and "was not made within 1h00m" in world.status()["findings"][0]["message"] and unchanged(world)


async def test_a_plan_says_that_one_will_be_made_and_makes_none() -> None:
    world = await made(30)
    await world.ask(NEW, dryRun=True)
    await world.pass_once()
    assert world.status()["message"] == "nothing holds it up; a backup is made first" and not world.status()["findings"]
    assert BACKUP_ANNOTATION not in (plane(world)["metadata"].get("annotations") or {})


async def test_what_else_holds_it_up_comes_first_and_a_plan_makes_none() -> None:
    world = await made(30)
    await world.connected("n1", False)
    await world.ask(NEW)
    await world.pass_once()
    assert [finding["name"] for finding in world.status()["findings"]] == ["HostOffline"] and not world.status().get("backupRequestedAt")
    await world.ask(NEW, "z-plan", dryRun=True)
    await world.pass_once("z-plan")
    assert [finding["name"] for finding in world.status("z-plan")["findings"]] == ["OtherUpgrade", "HostOffline"]
    assert BACKUP_ANNOTATION not in (plane(world)["metadata"].get("annotations") or {})


@pytest.mark.parametrize("at", range(1, 26, 2))
async def test_whenever_the_controllers_are_killed_one_backup_is_made_and_the_upgrade_goes_on(at: int) -> None:
    world: Any = await made(30)
    await world.ask(NEW)
    kill = at_call(at)
    for _ in range(60):
        await pass_under(world, kill)
        await world.step()
        if world.status().get("phase") in ("Done", "Failed"):
            break
    assert world.status()["phase"] == "Done" and len(backups(world)) == 2
