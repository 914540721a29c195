"""A hosted control plane goes to another version: in which order, what it says meanwhile, what it refuses, and that no kill leaves it half-way."""

from __future__ import annotations

import pytest

from ckp.api.kinds import JOB, MANAGED_CONTROL_PLANE, STATEFUL_SET, Kind
from ckp.api.names import RESTORE_ANNOTATION
from ckp.api.platform import Releases
from ckp.controllers.apply import Applier
from ckp.controllers.controlplane.etcd import partition_now
from ckp.controllers.controlplane.reconciler import ManagedControlPlaneReconciler
from ckp.controllers.workload import WorkloadClients
from tests.simulators.etcd import EtcdSimulator
from tests.support.kills import at_call, pass_under, stride
from tests.worlds.control_plane import TENANT, ControlPlaneWorld, release
from tests.worlds.rollouts import Rollouts

OLD, NEW, NEXT = "v1.33.7", "v1.34.3", "v1.35.1"
MEMBERS = ("demo-etcd-0", "demo-etcd-1", "demo-etcd-2")


class UpgradeWorld(ControlPlaneWorld):
    """A control plane of three etcd members and two API servers, whose rollouts are played."""

    def __init__(self, *, same_etcd: bool = False) -> None:
        super().__init__(EtcdSimulator(MEMBERS))
        found = {name: release(name) for name in (OLD, NEW, NEXT)}
        if same_etcd:
            found = {name: item.model_copy(update={"images": {**item.images, "etcd": "3.5.15-0"}}) for name, item in found.items()}
        self.releases = Releases(releases=found)
        self.rollouts = Rollouts(self)
        self.restarted()

    def restarted(self) -> None:
        """The controllers' process is another one, which remembers nothing."""
        self.reconciler = ManagedControlPlaneReconciler(
            self.kube,
            self.clock,
            self.releases,
            Applier(self.kube, self.clock),
            clients=WorkloadClients(lambda kubeconfig: self.workload),
            connect_to_etcd=self.simulated_etcd.connect,
        )

    async def made(self) -> None:
        await self.start(version=OLD, replicas=2, etcd={"replicas": 3})
        for _ in range(20):
            await self.pass_once()
            if self.status.get("version") and self.condition("Bootstrapped").get("status") == "True" and len(self.rollouts.pods["scheduler"]) == 2:
                break
            await self.rollouts.step()
        for _ in range(2):
            await self.rollouts.step()
            await self.pass_once()
        assert self.status["version"] == OLD and self.condition("Upgraded")["status"] == "True"

    async def ask(self, version: str) -> None:
        await self.kube.merge(MANAGED_CONTROL_PLANE, "demo", TENANT, {"spec": {"version": version}})

    async def until(self, version: str, passes: int = 60) -> None:
        for _ in range(passes):
            await self.pass_once()
            self.rollouts.judge()
            if self.status["version"] == version and self.condition("Upgraded")["status"] == "True":
                return
            await self.rollouts.step()
            self.rollouts.judge()
            assert self.rollouts.quorum
        raise AssertionError(f"{version} is not reached: {self.condition('Upgraded')}")


async def test_etcd_goes_first_then_the_api_servers_then_the_others_then_kubeadms_phases() -> None:
    world = UpgradeWorld()
    await world.made()
    world.rollouts.history.clear()
    await world.ask(NEW)
    await world.until(NEW)
    assert world.rollouts.history == [f"{part} {NEW}-ckp" for part in ("etcd", "apiserver", "controller-manager", "scheduler", "kubeadm")]
    record = world.status["upgrade"]
    assert (record["from"], record["version"]) == (OLD, NEW) and record["startedAt"] < record["finishedAt"]
    assert world.condition("Ready")["status"] == "True"


async def test_each_part_is_named_while_it_is_waited_for_and_nothing_is_said_to_be_upgraded_before() -> None:
    world = UpgradeWorld()
    await world.made()
    await world.ask(NEW)
    seen: list[str] = []
    for _ in range(60):
        await world.pass_once()
        found = world.condition("Upgraded")
        if found["status"] == "True":
            break
        assert world.status["version"] == OLD and world.condition("Ready")["status"] == "False" and world.status["ready"] is True
        assert f"{OLD} to {NEW}" in found["message"]
        seen += [found["reason"]] if found["reason"] not in seen else []
        await world.rollouts.step()
    assert seen == ["UpgradingEtcd", "UpgradingAPIServers", "UpgradingManagers", "RunningKubeadmPhases"]


async def test_an_etcd_of_the_same_image_is_not_restarted() -> None:
    world = UpgradeWorld(same_etcd=True)
    await world.made()
    before = world.kube.stored(STATEFUL_SET, "demo-etcd", TENANT)
    world.rollouts.history.clear()
    await world.ask(NEW)
    for _ in range(60):
        await world.pass_once()
        await world.rollouts.step()
    assert world.status["version"] == NEW
    assert world.kube.stored(STATEFUL_SET, "demo-etcd", TENANT)["spec"]["template"] == before["spec"]["template"]
    assert not [entry for entry in world.rollouts.history if entry.startswith("etcd")]


@pytest.mark.parametrize(
    ("version", "says"),
    [(NEXT, "one at a time"), ("v1.32.9", "does not go back"), ("v1.33.6", "does not go back"), ("v1.34.9", "not among the installed releases")],
)
async def test_a_version_that_can_not_be_reached_changes_nothing_and_is_told(version: str, says: str) -> None:
    world = UpgradeWorld()
    await world.made()
    kinds: tuple[Kind, ...] = (STATEFUL_SET, JOB)
    before = [item for kind in kinds for item in world.kube.all_stored(kind)]
    await world.ask(version)
    for _ in range(4):
        await world.pass_once()
        await world.rollouts.step()
    seen = world.condition("Upgraded")
    assert (seen["status"], seen["reason"], seen["severity"]) == ("False", "UpgradeRefused", "Warning") and says in seen["message"]
    assert world.condition("Ready")["status"] == "True" and world.status["version"] == OLD, "what runs is all right"
    assert [item for kind in kinds for item in world.kube.all_stored(kind)] == before and "upgrade" not in world.status
    await world.ask(OLD)
    await world.pass_once()
    assert world.condition("Upgraded")["status"] == "True"


async def test_what_is_asked_for_meanwhile_waits_until_the_step_is_finished() -> None:
    world = UpgradeWorld()
    await world.made()
    await world.ask(NEW)
    for _ in range(9):
        await world.pass_once()
        await world.rollouts.step()
    assert world.condition("Upgraded")["reason"] == "UpgradingAPIServers"
    await world.ask(NEXT)
    await world.pass_once()
    assert "is finished first" in world.condition("Upgraded")["message"]
    await world.until(NEXT, 120)
    entries = [entry for entry in world.rollouts.history if entry.startswith("apiserver")]
    assert entries == [f"apiserver {version}-ckp" for version in (OLD, NEW, NEXT)]


async def test_a_release_that_does_not_start_stops_nobody_and_is_replaced_by_the_next_patch() -> None:
    world = UpgradeWorld()
    await world.made()
    world.rollouts.broken = lambda part, version: part == "apiserver" and version.startswith(NEW)
    await world.ask(NEW)
    for _ in range(30):
        await world.pass_once()
        await world.rollouts.step()
        world.rollouts.judge()
    assert world.condition("Upgraded")["reason"] == "UpgradingAPIServers" and "1 of 2 are of v1.34.3" in world.condition("Upgraded")["message"]
    assert world.status["ready"] is True and world.status["version"] == OLD
    world.releases = world.releases.with_releases([release("v1.34.4")])
    world.restarted()
    await world.ask("v1.34.4")
    await world.until("v1.34.4")


async def test_no_member_is_stopped_while_another_one_is_away_and_the_api_servers_wait() -> None:
    world = UpgradeWorld()
    await world.made()
    world.rollouts.down = {"demo-etcd-0"}
    await world.rollouts.step()
    await world.ask(NEW)
    for _ in range(20):
        await world.pass_once()
        await world.rollouts.step()
        assert world.rollouts.quorum
    assert {of for of, _ in world.rollouts.members.values()} == {f"{OLD}-ckp"} == {of for of, _ in world.rollouts.pods["apiserver"]}
    assert "2 are ready" in world.condition("Upgraded")["message"]
    world.rollouts.down = set()
    await world.until(NEW)


async def test_no_step_begins_while_a_backup_is_being_restored() -> None:
    world = UpgradeWorld()
    await world.made()
    await world.kube.merge(MANAGED_CONTROL_PLANE, "demo", TENANT, {"status": {"restore": {"id": "x", "phase": "Checking"}}}, subresource="status")
    await world.kube.merge(MANAGED_CONTROL_PLANE, "demo", TENANT, {"metadata": {"annotations": {RESTORE_ANNOTATION: "x"}}})
    await world.ask(NEW)
    await world.pass_once()
    assert "is being restored" in world.condition("Upgraded")["message"] and "upgrade" not in world.status


async def test_a_control_plane_whose_status_is_lost_does_not_jump() -> None:
    world = UpgradeWorld()
    await world.made()
    await world.kube.merge(MANAGED_CONTROL_PLANE, "demo", TENANT, {"status": {"version": None, "upgrade": None}}, subresource="status")
    await world.ask(NEXT)
    for _ in range(3):
        await world.pass_once()
        world.rollouts.judge()
        await world.rollouts.step()
    assert world.status["version"] == OLD and world.condition("Upgraded")["reason"] == "UpgradeRefused"


@pytest.mark.parametrize("at", range(1, 1200, max(7, stride(110))))
async def test_controllers_that_are_killed_at_any_call_finish_the_step(at: int) -> None:
    world = UpgradeWorld()
    await world.made()
    await world.ask(NEW)
    fault = at_call(at)

    for _ in range(60):
        if await pass_under(world, fault):
            await world.pass_once()
        world.rollouts.judge()
        await world.rollouts.step()
        world.rollouts.judge()
        assert world.rollouts.quorum
        if world.status["version"] == NEW:
            break
    assert world.status["version"] == NEW


@pytest.mark.parametrize(
    ("members", "ready", "updated", "revisions", "observed", "now", "expected"),
    [
        (1, 1, 1, ("a", "a"), 5, 0, 0),
        (3, 3, 3, ("a", "a"), 5, 0, 3),
        (3, 2, 3, ("a", "a"), 5, 0, 3),
        (3, 3, 0, ("a", "b"), 5, 3, 2),
        (3, 3, 0, ("a", "b"), 4, 3, 3),
        (3, 2, 1, ("a", "b"), 5, 2, 2),
        (3, 3, 1, ("a", "b"), 5, 2, 1),
        (3, 3, 2, ("a", "b"), 5, 1, 0),
        (3, 1, 1, ("a", "b"), 5, 2, 0),
        (5, 4, 0, ("a", "b"), 5, 5, 5),
    ],
)
def test_members_are_brought_to_a_manifest_one_at_a_time_while_all_are_ready(
    members: int, ready: int, updated: int, revisions: tuple[str, str], observed: int, now: int, expected: int
) -> None:
    status = {
        "readyReplicas": ready,
        "updatedReplicas": updated,
        "observedGeneration": observed,
        "currentRevision": revisions[0],
        "updateRevision": revisions[1],
    }
    spec = {"updateStrategy": {"rollingUpdate": {"partition": now}}}
    assert partition_now(members, {"metadata": {"generation": 5}, "spec": spec, "status": status}) == expected
    assert partition_now(3, None) == 3
