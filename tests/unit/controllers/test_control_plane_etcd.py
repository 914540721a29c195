"""A cluster's etcd under the controllers' eyes: space that is short, freed, or not to be freed."""

from __future__ import annotations

import httpx

from ckp.api.kinds import EVENT, STATEFUL_SET
from ckp.controllers.controlplane.etcd import quota_of
from tests.simulators.etcd import MIB, EtcdSimulator
from tests.worlds.control_plane import TENANT, ControlPlaneWorld


async def full_world(*, in_use: int) -> tuple[ControlPlaneWorld, EtcdSimulator]:
    """A ready control plane whose etcd is then written to until it refuses, and emptied down to `in_use` MiB."""
    world = ControlPlaneWorld()
    await world.ready()
    etcd = world.simulated_etcd
    etcd.quota = quota_of(world.kube.stored(STATEFUL_SET, "demo-etcd", TENANT))
    while etcd.write(10 * MIB):
        pass
    etcd.delete(etcd.live - in_use * MIB)
    world.clock.advance(10)
    return world, etcd


async def events(world: ControlPlaneWorld) -> list[str]:
    return [item["message"] for item in await world.kube.list(EVENT, TENANT)]


async def test_etcd_with_space_is_said_to_have_it_and_what_was_seen_is_recorded() -> None:
    world = ControlPlaneWorld()
    await world.ready()
    assert world.condition("EtcdSpaceAvailable")["status"] == "True"
    assert world.status["etcd"]["clusterId"] == "c0ffee" and world.status["etcd"]["revision"] == 500
    assert world.status["etcd"]["databaseBytes"] == MIB


async def test_little_changes_are_not_recorded_so_that_watchers_are_not_woken_without_end() -> None:
    world = ControlPlaneWorld()
    await world.ready()
    before = world.kube.version
    for _ in range(5):
        world.simulated_etcd.write(1000)
        world.clock.advance(6)
        await world.pass_once()
    assert world.kube.version == before
    world.simulated_etcd.revision += 1000
    world.clock.advance(6)
    await world.pass_once()
    assert world.status["etcd"]["revision"] > 1500


async def test_etcd_at_its_quota_is_said_so_and_frees_space_by_itself() -> None:
    world, etcd = await full_world(in_use=20)
    after = (await world.pass_once()).after
    seen = world.condition("EtcdSpaceAvailable")
    assert (seen["status"], seen["reason"], seen["severity"]) == ("False", "NoSpace", "Error")
    assert world.condition("EtcdReady")["status"] == "True", "it can be read"
    assert world.status["ready"] is True, "and so can the cluster"
    assert world.condition("Ready")["reason"] == "NoSpace"
    assert after is not None and after <= 5
    await world.pass_once()
    assert not etcd.alarms and etcd.write(MIB)
    world.clock.advance(6)
    await world.pass_once()
    assert world.condition("EtcdSpaceAvailable")["status"] == "True"
    assert world.condition("Ready")["status"] == "True"
    said = await events(world)
    assert any("was defragmented" in message for message in said) and any("takes writes" in message for message in said)


async def test_an_etcd_full_of_what_is_in_use_names_the_remedy_and_is_not_stopped_again_and_again() -> None:
    world, etcd = await full_world(in_use=795)
    for _ in range(5):
        await world.pass_once()
        world.clock.advance(20)
    assert etcd.alarms
    seen = world.condition("EtcdSpaceAvailable")
    assert seen["reason"] == "NoSpace" and "delete what is not needed" in seen["message"] and "data-demo-etcd-0" in seen["message"]
    assert [path for _, path in etcd.asked].count("/v3/maintenance/defragment") == 1
    etcd.delete(500 * MIB)  # a person follows the remedy
    for _ in range(4):
        world.clock.advance(300)
        await world.pass_once()
    assert not etcd.alarms


async def test_members_are_defragmented_one_a_pass_the_leader_last() -> None:
    etcd = EtcdSimulator(names=("demo-etcd-0", "demo-etcd-1", "demo-etcd-2"))
    world = ControlPlaneWorld(etcd)
    await world.ready(etcd={"replicas": 3})
    etcd.quota = quota_of(world.kube.stored(STATEFUL_SET, "demo-etcd", TENANT))
    while etcd.write(10 * MIB):
        pass
    etcd.delete(etcd.live - MIB)
    done: list[list[str]] = []
    for _ in range(4):
        world.clock.advance(6)
        before = len(etcd.asked)
        await world.pass_once()
        done.append([name for name, path in etcd.asked[before:] if path == "/v3/maintenance/defragment"])
    assert done == [["demo-etcd-1"], ["demo-etcd-2"], ["demo-etcd-0"], []]
    assert not etcd.alarms


async def test_what_can_not_be_seen_is_unknown_and_does_not_stop_the_cluster() -> None:
    world = ControlPlaneWorld()
    world.simulated_etcd.members["demo-etcd-0"].up = False
    await world.ready()
    seen = world.condition("EtcdSpaceAvailable")
    assert (seen["status"], seen["reason"]) == ("Unknown", "EtcdNotReached")
    assert "no route to host" in seen["message"]
    assert world.status["ready"] is True


async def test_a_member_that_refuses_to_free_space_breaks_no_pass() -> None:
    world, etcd = await full_world(in_use=20)
    etcd.answer = lambda name, path: httpx.Response(500, json={"error": "etcdserver: request timed out"}) if path.endswith("defragment") else None
    await world.pass_once()
    assert world.condition("EtcdSpaceAvailable")["reason"] == "NoSpace"
    assert world.condition("Bootstrapped")["status"] == "True"


async def test_a_size_that_is_no_quantity_is_said() -> None:
    world = ControlPlaneWorld()
    await world.start(etcd={"replicas": 1, "size": "2 gigabytes"})
    await world.pass_once()
    assert "spec.etcd.size: '2 gigabytes' is no number of bytes" in world.condition("EtcdReady")["message"]
