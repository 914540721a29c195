"""A cluster's etcd under the controllers' eyes: space that is short, freed, or not to be freed."""

from __future__ import annotations

import re

import httpx
import pytest

from ckp.api.kinds import CONFIG_MAP, DEPLOYMENT, EVENT, JOB, MANAGED_CONTROL_PLANE, POD, STATEFUL_SET
from ckp.controllers.controlplane.etcd import quota_of
from tests.simulators.etcd import MIB, EtcdSimulator
from tests.worlds.control_plane import TENANT, UP, ControlPlaneWorld


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
    await world.pass_once()
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
    assert len(await events(world)) == 1, "a compaction that frees nothing is no event"


async def test_what_a_person_deletes_from_a_full_etcd_is_freed_within_a_minute() -> None:
    """Though its members were defragmented a moment ago, when that freed nothing."""
    world, etcd = await full_world(in_use=795)
    for _ in range(3):
        await world.pass_once()
        world.clock.advance(20)
    etcd.delete(500 * MIB)
    for _ in range(3):
        await world.pass_once()
        world.clock.advance(10)
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


LOST = (
    '{"level":"fatal","msg":"discovery failed","error":"cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs"}'
)


async def etcd_pod(world: ControlPlaneWorld, name: str, last_words: str, *, ready: bool = False) -> None:
    labels = {"cluster.x-k8s.io/cluster-name": "demo", "app.kubernetes.io/component": "etcd"}
    ended = {"name": "etcd", "ready": ready, "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": {"message": last_words}}}
    if await world.kube.get(POD, name, TENANT) is None:
        await world.kube.create({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": TENANT, "labels": labels}, "spec": {}})
    await world.kube.merge(POD, name, TENANT, {"status": {"containerStatuses": [ended]}}, subresource="status")


def state(world: ControlPlaneWorld) -> str:
    return str(world.kube.stored(CONFIG_MAP, "demo-etcd", TENANT)["data"]["initial-cluster-state"])


async def accept(world: ControlPlaneWorld) -> None:
    """As the condition's message says."""
    said = re.search(r"annotate --overwrite managedcontrolplane demo (\S+)=(\S+)\. ", world.condition("EtcdReady")["message"])
    assert said
    key, value = said.groups()
    await world.kube.merge(MANAGED_CONTROL_PLANE, "demo", TENANT, {"metadata": {"annotations": {key: value}}})


async def test_a_member_may_make_a_new_cluster_until_the_control_plane_was_initialized() -> None:
    world = ControlPlaneWorld()
    await world.start()
    await world.pass_once()
    assert state(world) == "new"
    env = world.kube.stored(STATEFUL_SET, "demo-etcd", TENANT)["spec"]["template"]["spec"]["containers"][0]["env"]
    assert {"configMapKeyRef": {"name": "demo-etcd", "key": "initial-cluster-state"}} in [item["valueFrom"] for item in env]
    made = world.kube.stored(STATEFUL_SET, "demo-etcd", TENANT)["spec"]["template"]
    await world.etcd(1)
    await world.api_server(**UP)
    await world.pass_once()
    await world.bootstrapped()
    await world.pass_once()
    await world.pass_once()
    assert state(world) == "existing"
    assert world.kube.stored(STATEFUL_SET, "demo-etcd", TENANT)["spec"]["template"] == made, "no member is restarted for it"


async def test_a_cluster_that_has_begun_stays_so_when_its_status_is_lost() -> None:
    """Contract: status is lost on move, and rebuilt."""
    world = ControlPlaneWorld()
    await world.ready()
    await world.pass_once()
    world.kube.stored(MANAGED_CONTROL_PLANE, "demo", TENANT)["status"] = {}
    await world.pass_once()
    assert state(world) == "existing"


async def test_a_lost_volume_is_said_and_the_api_server_held_back_until_somebody_decides() -> None:
    world = ControlPlaneWorld()
    await world.ready()
    await world.pass_once()
    await etcd_pod(world, "demo-etcd-0", LOST)
    await world.etcd(0)
    await world.api_server()
    world.clock.advance(10)
    await world.pass_once()
    seen = world.condition("EtcdReady")
    assert (seen["status"], seen["reason"], seen["severity"]) == ("False", "DataLost", "Error")
    assert (world.status["ready"], world.status["initialized"]) == (False, True)
    assert world.condition("Ready")["reason"] == "DataLost"
    assert {item["type"]: item["status"] for item in world.status["conditions"]} == {
        "Ready": "False",
        "EndpointAvailable": "True",
        "CertificatesAvailable": "True",
        "EtcdReady": "False",
        "EtcdSpaceAvailable": "Unknown",
        "ControlPlaneComponentsReady": "False",
        "KubeconfigAvailable": "True",
        "KubernetesServiceReady": "Unknown",
        "Bootstrapped": "Unknown",
        "Upgraded": "Unknown",
    }, "nothing is True of what is held back, or was in the data"
    assert world.kube.stored(DEPLOYMENT, "demo-apiserver", TENANT)["spec"]["replicas"] == 0
    assert state(world) == "existing"
    # A person gives the data up: etcd starts empty, and what the Jobs had written is written again.
    await accept(world)
    await world.pass_once()
    assert state(world) == "new"
    assert world.kube.stored(DEPLOYMENT, "demo-apiserver", TENANT)["spec"]["replicas"] == 1
    world.simulated_etcd.revision = 1
    await etcd_pod(world, "demo-etcd-0", "", ready=True)
    await world.etcd(1)
    await world.api_server(**UP)
    jobs = {item["metadata"]["uid"] for item in world.kube.all_stored(JOB)}
    await world.pass_once()
    await world.bootstrapped()
    await world.pass_once()
    assert not jobs & {item["metadata"]["uid"] for item in world.kube.all_stored(JOB)}
    assert world.status["ready"] is True and world.status["etcd"]["revision"] == 1
    assert state(world) == "existing"
    assert "ckp.coredge.io/accept-etcd-data" not in world.kube.stored(MANAGED_CONTROL_PLANE, "demo", TENANT)["metadata"]["annotations"]
    # What was accepted once is not accepted for ever.
    await etcd_pod(world, "demo-etcd-0", LOST)
    await world.etcd(0)
    await world.pass_once()
    assert world.condition("EtcdReady")["reason"] == "DataLost"


async def test_older_data_than_was_seen_before_is_not_served() -> None:
    world = ControlPlaneWorld()
    await world.ready()
    world.simulated_etcd.revision = 90_000
    world.clock.advance(10)
    await world.pass_once()
    world.simulated_etcd.revision = 700
    world.clock.advance(10)
    await world.pass_once()
    seen = world.condition("EtcdReady")
    assert seen["reason"] == "RevisionWentBack" and "700" in seen["message"] and "90000" in seen["message"]
    assert world.status["ready"] is False
    assert world.kube.stored(DEPLOYMENT, "demo-apiserver", TENANT)["spec"]["replicas"] == 0
    world.simulated_etcd.revision = 90_100  # the right volume is back
    world.clock.advance(10)
    await world.pass_once()
    assert world.kube.stored(DEPLOYMENT, "demo-apiserver", TENANT)["spec"]["replicas"] == 1
    assert world.condition("EtcdReady")["status"] == "True"


@pytest.mark.parametrize("blind", ["etcd is not reached", "no member is ready", "its pod is made again"])
async def test_an_api_server_that_is_held_back_stays_so_while_nothing_is_seen(blind: str) -> None:
    world = ControlPlaneWorld()
    await world.ready()
    world.simulated_etcd.revision = 20
    world.clock.advance(10)
    await world.pass_once()
    held = world.condition("EtcdReady")
    assert held["reason"] == "RevisionWentBack"
    if blind == "etcd is not reached":
        world.simulated_etcd.members["demo-etcd-0"].up = False
    else:
        await world.etcd(0)
        if blind == "its pod is made again":
            await etcd_pod(world, "demo-etcd-0", "")
    world.clock.advance(10)
    await world.pass_once()
    assert world.condition("EtcdReady") == held
    assert world.kube.stored(DEPLOYMENT, "demo-apiserver", TENANT)["spec"]["replicas"] == 0


async def test_another_etcd_cluster_is_not_served() -> None:
    world = ControlPlaneWorld()
    await world.ready()
    world.simulated_etcd.cluster_id = 0xBAD
    world.simulated_etcd.revision = 10**6
    world.clock.advance(10)
    await world.pass_once()
    assert "another etcd cluster (bad)" in world.condition("EtcdReady")["message"]


async def test_one_lost_volume_of_three_is_named_and_the_cluster_goes_on() -> None:
    etcd = EtcdSimulator(names=("demo-etcd-0", "demo-etcd-1", "demo-etcd-2"))
    world = ControlPlaneWorld(etcd)
    await world.ready(etcd={"replicas": 3})
    await etcd_pod(world, "demo-etcd-2", "panic: tocommit(812) is out of range [lastIndex(0)]. Was the raft log corrupted, truncated, or lost?")
    await world.etcd(2)
    etcd.members["demo-etcd-2"].up = False
    world.clock.advance(10)
    await world.pass_once()
    assert world.status["ready"] is True
    seen = world.condition("EtcdReady")
    assert (seen["status"], seen["reason"], seen["severity"]) == (
        "False",
        "MemberWithoutData",
        "Warning",
    ) and "2 of 3 members of etcd are ready; without their data: demo-etcd-2" in seen["message"]


async def test_ready_follows_etcd_and_the_api_server_also_after_the_start() -> None:
    world = ControlPlaneWorld()
    await world.ready()
    for away, back in (((0, UP), (1, UP)), ((1, {"availableReplicas": 0, "readyReplicas": 0}), (1, UP))):
        for (members, api), expected in ((away, False), (back, True)):
            await world.etcd(members)
            await world.api_server(**api)
            world.clock.advance(10)
            await world.pass_once()
            assert (world.status["ready"], world.status["initialized"]) == (expected, True)


async def test_components_are_ready_only_with_controller_manager_and_scheduler() -> None:
    world = ControlPlaneWorld()
    await world.ready()
    await world.managers(availableReplicas=0)
    await world.pass_once()
    assert world.condition("ControlPlaneComponentsReady")["message"] == "not available: controller-manager and scheduler"
    assert world.status["ready"] is True, "the API server answers"
