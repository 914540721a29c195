"""A control plane's step soaks before it is committed: new programs with the old behaviour. Until then it goes back, and no kill changes any of that."""

from __future__ import annotations

from typing import Any

import pytest

from ckp.api.kinds import JOB, MANAGED_CONTROL_PLANE, STATEFUL_SET
from ckp.controllers.controlplane.etcd import BACKUP_COMPONENT
from tests.support.kills import at_call, pass_under, stride
from tests.unit.controllers.test_control_plane_upgrades import NEW, NEXT, OLD, UpgradeWorld
from tests.worlds.control_plane import TENANT, release
from tests.worlds.rollouts import binary

PARTS = ("apiserver", "controller-manager", "scheduler")


class SoakWorld(UpgradeWorld):
    """The same control plane, of which steps soak."""

    async def want(self, version: str = "", **upgrade: Any) -> None:
        spec = {"version": version} if version else {}
        await self.kube.merge(MANAGED_CONTROL_PLANE, "demo", TENANT, {"spec": {**spec, **({"upgrade": upgrade} if upgrade else {})}})

    def runs(self) -> set[str]:
        return {of for part in PARTS for of, _ in self.rollouts.pods[part]}

    def etcd(self) -> set[str]:  # type: ignore[override]
        return {of for of, _ in self.rollouts.members.values()}

    async def go(self, *reasons: str, passes: int = 60) -> dict[str, Any]:
        """Until Upgraded is True, or False with one of these reasons."""
        for _ in range(passes):
            await self.pass_once()
            self.rollouts.judge()
            seen = self.condition("Upgraded")
            if seen.get("reason") in reasons or (not reasons and seen["status"] == "True"):
                return dict(seen)
            await self.rollouts.step()
            self.rollouts.judge()
            assert self.rollouts.quorum
        raise AssertionError(f"not {reasons or 'upgraded'}: {self.condition('Upgraded')}")

    async def soaking(self) -> None:
        await self.made()
        self.rollouts.history.clear()
        await self.want(NEW, soak=True)
        await self.go("Soaking")


async def test_the_new_programs_run_as_the_old_minor_and_etcd_and_kubeadms_phases_wait_for_the_commit() -> None:
    world = SoakWorld()
    await world.made()
    world.rollouts.history.clear()
    jobs = [item["metadata"]["name"] for item in world.kube.all_stored(JOB)]
    await world.want(NEW, soak=True)
    seen = await world.go("Soaking")
    assert world.runs() == {f"{NEW}-ckp@1.33"} and world.etcd() == {f"{OLD}-ckp"}
    assert world.rollouts.history == [f"{part} {NEW}-ckp@1.33" for part in PARTS]
    assert [item["metadata"]["name"] for item in world.kube.all_stored(JOB)] == jobs, "kubeadm's phases are those of before"
    assert seen["status"] == "False" and f"run as v1.33 since {world.status['upgrade']['soakingSince']}" in seen["message"]
    assert f"spec.version: {OLD} rolls it back" in seen["message"] and "soak: false commits it" in seen["message"]
    assert world.condition("Ready")["status"] == "True" and world.status["ready"] is True and world.status["version"] == OLD


async def test_a_commit_brings_etcd_then_the_new_behaviour_then_kubeadms_phases_and_is_for_good() -> None:
    world = SoakWorld()
    await world.soaking()
    world.rollouts.history.clear()
    await world.want(soak=False)
    await world.pass_once()
    assert world.status["upgrade"]["committedAt"] and not world.status["upgrade"].get("emulated")
    await world.want(OLD)
    refused = await world.go("UpgradingEtcd")
    assert "is committed" in refused["message"] and "ckp cluster restore" in refused["message"]
    await world.want(NEW)
    await world.go()
    assert world.rollouts.history == [f"{part} {NEW}-ckp" for part in ("etcd", *PARTS, "kubeadm")]
    record = world.status["upgrade"]
    assert world.status["version"] == NEW and record["startedAt"] <= record["soakingSince"] <= record["committedAt"] < record["finishedAt"]
    await world.want(OLD)
    assert "does not go back" in (await world.go("UpgradeRefused"))["message"] and world.runs() == {f"{NEW}-ckp"}


async def test_a_rollback_takes_controllers_first_and_api_servers_last_and_touches_no_etcd() -> None:
    world = SoakWorld()
    await world.made()
    before = world.kube.stored(STATEFUL_SET, "demo-etcd", TENANT)["spec"]
    await world.want(NEW, soak=True)
    await world.go("Soaking")
    world.rollouts.history.clear()
    await world.want(OLD)
    seen = await world.go("RollingBack")
    assert seen["message"].startswith(f"back to {OLD}: ") and world.condition("Ready")["status"] == "False"
    await world.go()
    assert set(world.rollouts.history) == {f"{part} {OLD}-ckp" for part in PARTS}, "judge has looked at their order"
    assert world.kube.stored(STATEFUL_SET, "demo-etcd", TENANT)["spec"] == before
    record = world.status["upgrade"]
    assert (record["from"], record["version"], record["rolledBack"]) == (OLD, OLD, NEW) and record["finishedAt"] and world.status["version"] == OLD
    assert world.runs() == {f"{OLD}-ckp"} and world.condition("Ready")["status"] == "True"
    await world.want(NEW, soak=False)
    await world.go()
    assert world.status["version"] == NEW and not world.status["upgrade"].get("rolledBack"), "and it can be tried again"


async def test_a_release_that_does_not_start_is_rolled_back_while_the_old_api_servers_serve() -> None:
    world = SoakWorld()
    await world.made()
    world.rollouts.broken = lambda part, version: part == "apiserver" and version.startswith(NEW)
    await world.want(NEW, soak=True)
    for _ in range(20):
        await world.pass_once()
        await world.rollouts.step()
        world.rollouts.judge()
    assert world.condition("Upgraded")["reason"] == "UpgradingAPIServers" and f"1 of 2 are of {NEW} as v1.33" in world.condition("Upgraded")["message"]
    await world.want(OLD)
    await world.go()
    assert world.runs() == {f"{OLD}-ckp"} and world.status["version"] == OLD


async def test_what_breaks_while_it_soaks_is_no_soak_and_no_time_commits_it() -> None:
    world = SoakWorld()
    await world.made()
    await world.want(NEW, soak=True, commitAfter="10m")
    await world.go("Soaking")
    world.rollouts.broken = lambda part, version: part == "scheduler" and version.startswith(NEW)
    await world.rollouts.step()
    world.clock.advance(3600)
    seen = await world.go("UpgradingManagers")
    assert "scheduler" in seen["message"] and world.status["upgrade"]["emulated"] == "v1.33"
    world.rollouts.broken = lambda part, version: False
    await world.go()
    assert world.status["version"] == NEW, "well again, its time is over"


async def test_a_time_commits_and_not_before_it_is_over() -> None:
    world = SoakWorld()
    await world.made()
    await world.want(NEW, soak=True, commitAfter="1h")
    await world.go("Soaking")
    world.clock.advance(3400)
    await world.pass_once()
    assert world.status["upgrade"]["emulated"] == "v1.33"
    world.clock.advance(300)
    await world.go()
    assert world.status["version"] == NEW and world.status["upgrade"]["committedAt"]


async def test_within_a_minor_nothing_is_emulated_and_the_commit_restarts_no_program() -> None:
    world = SoakWorld()
    world.releases = world.releases.with_releases([release("v1.33.8")])
    await world.made()
    world.restarted()
    await world.want("v1.33.8", soak=True)
    await world.go("Soaking")
    assert world.runs() == {"v1.33.8-ckp"} and world.etcd() == {f"{OLD}-ckp"}
    world.rollouts.history.clear()
    await world.want(soak=False)
    await world.go()
    assert world.rollouts.history == ["etcd v1.33.8-ckp", "kubeadm v1.33.8-ckp"]


async def test_a_patch_of_what_soaks_soaks_in_its_place_and_another_minor_waits() -> None:
    world = SoakWorld()
    world.releases = world.releases.with_releases([release("v1.34.4")])
    world.restarted()
    await world.soaking()
    await world.want(NEXT)
    await world.pass_once()
    assert world.condition("Upgraded")["reason"] == "Soaking" and "finished first" in world.condition("Upgraded")["message"]
    await world.want("v1.34.4")
    await world.pass_once()
    assert world.status["upgrade"]["version"] == "v1.34.4" and not world.status["upgrade"].get("soakingSince")
    await world.go("Soaking")
    assert world.runs() == {"v1.34.4-ckp@1.33"}
    await world.want(OLD)
    await world.go()
    assert world.status["upgrade"]["rolledBack"] == "v1.34.4"


async def test_a_soak_that_is_asked_for_too_late_does_not_uncommit_and_one_that_can_not_be_is_refused() -> None:
    world = SoakWorld()
    await world.made()
    await world.want(NEW)
    await world.pass_once()
    await world.want(soak=True)
    await world.go()
    assert world.status["version"] == NEW and not world.status["upgrade"].get("emulated")
    ancient = SoakWorld()
    ancient.releases = ancient.releases.with_releases([release("v1.30.1"), release("v1.31.1")])
    await ancient.made()
    await ancient.kube.merge(MANAGED_CONTROL_PLANE, "demo", TENANT, {"status": {"version": "v1.30.1"}}, subresource="status")
    await ancient.want("v1.31.1", soak=True)
    ancient.restarted()
    await ancient.pass_once()
    seen = ancient.condition("Upgraded")
    assert seen["reason"] == "UpgradeRefused" and "can't behave as v1.30" in seen["message"] and "upgrade" not in ancient.status


async def test_a_backup_of_what_soaks_is_one_of_the_version_before() -> None:
    world = SoakWorld()
    await world.soaking()
    world.reconciler.backups.image = "r.example/ckp-backup:1"
    await world.kube.merge(MANAGED_CONTROL_PLANE, "demo", TENANT, {"spec": {"backup": {"claim": "backups", "every": "1h"}}})
    for _ in range(3):
        await world.pass_once()
    [job] = [item for item in world.kube.all_stored(JOB) if item["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"] == BACKUP_COMPONENT]
    [asked] = [entry["value"] for item in job["spec"]["template"]["spec"]["containers"] for entry in item["env"] if "version" in str(entry.get("value"))]
    assert f'"version":"{OLD}"' in asked.replace(": ", ":") and NEW not in asked, "else a rolled back cluster could not restore it"


@pytest.mark.parametrize("at", range(1, 1500, max(13, stride(290))))
@pytest.mark.parametrize("ends", ["commit", "rollback", "rollback before it soaks"])
async def test_controllers_that_are_killed_at_any_call_soak_and_then_end_as_they_were_told(ends: str, at: int) -> None:
    """`judge` holds at each moment that nothing behaves as the new minor, and etcd is not touched, before the commit or after a rollback."""
    world = SoakWorld()
    await world.made()
    await world.want(NEW, soak=True)
    fault, told = at_call(at), False
    final = NEW if ends == "commit" else OLD
    for turn in range(90):
        if await pass_under(world, fault):
            await world.pass_once()
        world.rollouts.judge()
        await world.rollouts.step()
        world.rollouts.judge()
        assert world.rollouts.quorum
        record = world.status.get("upgrade") or {}
        if not told and (record.get("soakingSince") or (ends == "rollback before it soaks" and turn == 4)):
            told = True
            await (world.want(soak=False) if ends == "commit" else world.want(OLD))
        elif told and record.get("finishedAt"):
            break
    assert told and world.status["version"] == final and world.etcd() == {f"{final}-ckp"}
    assert world.runs() == {f"{final}-ckp"} and {str(binary(of)) for of in world.runs()} == {final}
