"""A whole upgrade: checked first, control plane minor by minor, nodes in place in their order, pools at last, and from every kill it goes on."""

from __future__ import annotations

from typing import Any

import pytest

from ckp.api.kinds import BYO_MACHINE, CLUSTER_UPGRADE, MACHINE, MACHINE_DEPLOYMENT, MACHINE_SET, MANAGED_CONTROL_PLANE, PDB, VALIDATING_WEBHOOK, Kind
from ckp.api.names import CLUSTER_UPGRADE_FINALIZER, PAUSED_ANNOTATION, UPGRADE_ANNOTATION
from ckp.clients.kube import Obj
from tests.support.kills import Killed, at_call, pass_under, stride
from tests.worlds.upgrades import NEW, NEXT, OLD, TENANT, UpgradeWorld, condition


def annotations_of(world: UpgradeWorld, pool: str) -> Obj:
    return dict(world.kube.stored(MACHINE_DEPLOYMENT, pool, TENANT)["metadata"].get("annotations") or {})


def judge_done(world: UpgradeWorld, version: str = NEXT, machines: int = 3) -> None:
    assert set(world.kubelets().values()) == {version}
    assert {item["spec"]["version"] for item in world.kube.all_stored(MACHINE)} == {version}
    assert world.spec_of(MANAGED_CONTROL_PLANE, "demo")["version"] == version
    for pool in ("demo-a", "demo-b"):
        assert PAUSED_ANNOTATION not in annotations_of(world, pool) and UPGRADE_ANNOTATION not in annotations_of(world, pool)
    assert len(world.kube.all_stored(MACHINE_SET)) == 2 and len(world.kube.all_stored(MACHINE)) == machines


async def test_two_minors_take_one_drain_of_each_node_one_at_a_time_and_replace_nothing() -> None:
    world = UpgradeWorld()
    await world.made()
    before = {item["metadata"]["uid"] for kind in (MACHINE, MACHINE_SET, BYO_MACHINE) for item in world.kube.all_stored(kind)}
    await world.ask()
    status = await world.until("Done", "Failed", "Blocked")
    assert (status["phase"], status["from"], status["path"]) == ("Done", OLD, [NEW, NEXT])
    judge_done(world)
    assert world.busy_at_most == 1
    assert [(node["name"], node["from"], node["to"], node["state"]) for node in status["nodes"]] == [
        (name, f"{OLD}-ckp", NEXT, "Done") for name in ("n1", "n2", "n3")
    ]
    assert all(node["startedAt"] < node["finishedAt"] for node in status["nodes"])
    assert [node["finishedAt"] for node in status["nodes"]] == sorted(node["finishedAt"] for node in status["nodes"])
    assert before == {item["metadata"]["uid"] for kind in (MACHINE, MACHINE_SET, BYO_MACHINE) for item in world.kube.all_stored(kind)}
    assert all(not item["spec"].get("kubernetesVersion") for item in world.kube.all_stored(BYO_MACHINE)), "Machines say it now"
    await world.pass_once()
    assert not world.kube.stored(CLUSTER_UPGRADE, "up", TENANT)["metadata"].get("finalizers")


async def test_what_holds_it_up_changes_nothing_and_it_goes_on_once_that_is_over_or_accepted() -> None:
    world = UpgradeWorld()
    await world.made()
    budget = {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "web", "namespace": "default"}, "spec": {}}
    await world.workload.create(budget)
    counts = {"expectedPods": 2, "currentHealthy": 2, "desiredHealthy": 2, "disruptionsAllowed": 0}
    await world.workload.merge(PDB, "web", "default", {"status": counts}, subresource="status")
    hook = {"name": "w", "clientConfig": {"service": {"namespace": "default", "name": "gone"}}}
    await world.workload.create(
        {"apiVersion": VALIDATING_WEBHOOK.api_version, "kind": VALIDATING_WEBHOOK.kind, "metadata": {"name": "policy"}, "webhooks": [hook]}
    )
    world.workload.on_text(
        "/metrics", 'apiserver_requested_deprecated_apis{group="g",removed_release="1.35",resource="r",subresource="",version="v1beta1"} 1\n'
    )
    events = len(world.kube.events())
    await world.ask()
    status = await world.until("Blocked")
    assert [finding["name"] for finding in status["findings"]] == ["DisruptionBudget", "Webhook", "RemovedAPI"]
    assert status["findings"][0]["where"] == "default/web" and "nothing was changed" in status["message"]
    assert {change.kind.kind for change in world.kube.events(events)} == {"ClusterUpgrade"} and set(world.kubelets().values()) == {OLD}
    await world.change(accept=["DisruptionBudget", "Webhook", "RemovedAPI"])
    assert (await world.until("Done", "Failed"))["phase"] == "Done"
    assert all(finding["accepted"] for finding in world.status()["findings"])


@pytest.mark.parametrize(
    ("name", "break_it"),
    [
        (
            "NodeNotReady",
            lambda world: world.kube.merge(MACHINE, "n2", TENANT, {"status": {"conditions": [condition("NodeHealthy", "False")]}}, subresource="status"),
        ),
        (
            "EtcdNotHealthy",
            lambda world: world.kube.merge(
                MANAGED_CONTROL_PLANE,
                "demo",
                TENANT,
                {"status": {"conditions": [condition("Ready"), condition("EtcdReady", "False", message="1 of 3")]}},
                subresource="status",
            ),
        ),
    ],
)
async def test_what_may_not_be_accepted_holds_it_up_all_the_same(name: str, break_it: Any) -> None:
    world = UpgradeWorld()
    await world.made()
    await break_it(world)
    await world.ask(accept=[name])
    status = await world.until("Blocked")
    assert [(finding["name"], finding["acceptable"], finding["accepted"]) for finding in status["findings"]] == [(name, False, False)]
    assert world.spec_of(MANAGED_CONTROL_PLANE, "demo")["version"] == OLD


async def test_a_cluster_that_can_not_be_asked_is_not_upgraded() -> None:
    world = UpgradeWorld()
    await world.made()
    world.cut_off()
    await world.ask()
    assert [finding["name"] for finding in (await world.until("Blocked"))["findings"]] == ["ClusterNotReached"]


async def test_a_second_upgrade_waits_for_the_first() -> None:
    world = UpgradeWorld()
    await world.made()
    await world.ask(NEW, "a")
    await world.ask(NEXT, "b")
    assert [finding["name"] for finding in (await world.until("Blocked", name="b"))["findings"]] == ["OtherUpgrade"]
    await world.until("Done", name="a")
    await world.until("Done", name="b")
    judge_done(world)


async def test_it_stops_at_the_first_failure_and_the_same_request_goes_on_with_what_is_left() -> None:
    world = UpgradeWorld()
    await world.made()
    world.failing = {"n2"}
    await world.ask()
    status = await world.until("Failed", "Done")
    assert "no space left on device" in status["message"] and "n2" in status["message"] and "ask for the same upgrade again" in status["message"]
    assert world.kubelets() == {"n1": NEXT, "n2": OLD, "n3": OLD}, "n3 was not begun"
    assert not annotations_of(world, "demo-a")
    for _ in range(4):
        await world.pass_once()
        await world.step()
    assert world.status() == status or world.status()["phase"] == "Failed", "nothing is tried again by itself"
    world.failing = set()
    await world.ask(name="again")
    assert (await world.until("Done", "Failed", name="again"))["phase"] == "Done"
    judge_done(world)


async def test_a_host_that_can_not_prepare_ends_it_before_anything_is_changed_and_is_tried_again_by_the_next() -> None:
    world = UpgradeWorld()
    await world.made()
    world.unreachable = {"n2"}
    await world.ask()
    status = await world.until("Failed", "Done")
    assert "host n2 could not prepare v1.35.1: the registry is away; nothing of it was changed" in status["message"]
    assert world.spec_of(MANAGED_CONTROL_PLANE, "demo")["version"] == OLD and set(world.kubelets().values()) == {OLD}
    world.unreachable = set()
    world.clock.advance(60)
    await world.ask(name="again")
    await world.until("Done", name="again")
    judge_done(world)


async def test_paused_it_finishes_what_has_begun_and_resumed_it_goes_on() -> None:
    world = UpgradeWorld()
    await world.made()
    await world.ask()
    await world.until("Nodes")
    await world.pass_once()
    await world.change(pause=True)
    status = await world.until("Paused")
    assert sorted(world.kubelets().values()).count(NEXT) == 1
    for _ in range(5):
        await world.step()
        await world.pass_once()
    assert world.status()["nodes"] == status["nodes"]
    await world.change(pause=False)
    await world.until("Done")
    judge_done(world)


async def test_the_first_nodes_are_a_canary_until_a_person_goes_on() -> None:
    world = UpgradeWorld()
    await world.made()
    await world.ask(afterFirst=1, pools=["demo-b", "demo-a"])
    status = await world.until("Paused")
    assert world.kubelets() == {"n1": OLD, "n2": OLD, "n3": NEXT} and "first 1" in status["message"]
    await world.change(afterFirst=0)
    await world.until("Done")
    judge_done(world)


async def test_two_at_once_are_two_and_a_pool_that_is_left_out_stays() -> None:
    world = UpgradeWorld()
    await world.made()
    await world.ask(NEW, atOnce=2, pools=["demo-a"])
    await world.until("Done")
    assert world.busy_at_most == 2 and world.kubelets() == {"n1": NEW, "n2": NEW, "n3": OLD}
    assert world.spec_of(MACHINE_DEPLOYMENT, "demo-b")["template"]["spec"]["version"] == OLD


async def test_one_node_alone_leaves_what_its_pool_asks_for() -> None:
    world = UpgradeWorld()
    await world.made()
    await world.ask(NEW, nodes=["n2"])
    await world.until("Done")
    assert world.kubelets() == {"n1": OLD, "n2": NEW, "n3": OLD}
    assert world.spec_of(MACHINE_DEPLOYMENT, "demo-a")["template"]["spec"]["version"] == OLD
    assert world.spec_of(BYO_MACHINE, "n2")["kubernetesVersion"] == NEW, "its Machine still says the old one"


async def test_a_worker_that_is_made_meanwhile_is_upgraded_as_well_before_its_pool_is_said_to_be() -> None:
    world = UpgradeWorld()
    await world.made()
    await world.ask(NEW)
    await world.until("Nodes")
    await world.add_worker("n4", "demo-b")
    for _ in range(40):
        await world.pass_once()
        await world.step()
    assert world.status()["phase"] == "Nodes" and "n4: not a node yet" in world.status()["message"]
    assert world.spec_of(MACHINE_DEPLOYMENT, "demo-b")["template"]["spec"]["version"] == OLD
    await world.joined("n4", OLD)
    await world.until("Done")
    judge_done(world, NEW, machines=4)


async def test_aborted_it_begins_nothing_more() -> None:
    world = UpgradeWorld()
    await world.made()
    await world.ask()
    await world.until("ControlPlane")
    await world.change(abort=True)
    status = await world.until("Aborted")
    assert "Not of v1.35.1: n1, n2, n3" in status["message"] and status["finishedAt"]
    for _ in range(5):
        await world.step()
        await world.pass_once()
    assert set(world.kubelets().values()) == {OLD} and world.spec_of(MANAGED_CONTROL_PLANE, "demo")["version"] == NEW, "the step is finished"


async def test_a_pool_that_a_person_has_paused_is_left_alone_and_told() -> None:
    world = UpgradeWorld()
    await world.made()
    await world.kube.merge(MACHINE_DEPLOYMENT, "demo-b", TENANT, {"metadata": {"annotations": {PAUSED_ANNOTATION: "true"}}})
    await world.ask(NEW)
    for _ in range(40):
        await world.pass_once()
        await world.step()
    assert "paused by somebody else" in world.status()["message"] and world.spec_of(MACHINE_DEPLOYMENT, "demo-b")["template"]["spec"]["version"] == OLD
    await world.kube.merge(MACHINE_DEPLOYMENT, "demo-b", TENANT, {"metadata": {"annotations": {PAUSED_ANNOTATION: None}}})
    await world.until("Done")
    judge_done(world, NEW)


async def test_a_dry_run_tells_way_nodes_and_findings_changes_nothing_and_goes_after_an_hour() -> None:
    world = UpgradeWorld()
    await world.made()
    await world.kube.merge(MACHINE, "n2", TENANT, {"status": {"conditions": [condition("NodeHealthy", "False")]}}, subresource="status")
    events = len(world.kube.events())
    await world.ask(dryRun=True)
    await world.pass_once()
    status = world.status()
    assert (status["phase"], status["path"]) == ("Planned", [NEW, NEXT]) and [item["where"] for item in status["findings"]] == ["n2"]
    assert [(node["name"], node["to"], node["state"]) for node in status["nodes"]] == [(name, NEXT, "Pending") for name in ("n1", "n2", "n3")]
    assert {change.kind.kind for change in world.kube.events(events)} == {"ClusterUpgrade"}
    await world.pass_once()
    world.clock.advance(3601)
    await world.pass_once()
    assert await world.kube.get(CLUSTER_UPGRADE, "up", TENANT) is None


@pytest.mark.parametrize("at", range(1, 210, stride(15)))
async def test_whenever_the_controllers_are_killed_it_is_finished_and_nothing_stays_paused(at: int) -> None:
    world = UpgradeWorld()
    await world.made()
    await world.ask()
    kill = at_call(at)

    def fault(verb: str, kind: Kind, name: str) -> None:
        world.judge_pools()
        kill()

    for _ in range(80):
        await pass_under(world, fault)
        await world.step()
        if world.status().get("phase") in ("Done", "Failed"):
            break
    assert world.status()["phase"] == "Done"
    judge_done(world)


@pytest.mark.parametrize("at", range(1, 12))
async def test_one_that_is_deleted_or_aborted_half_way_through_its_pools_leaves_none_paused(at: int) -> None:
    world = UpgradeWorld()
    await world.made()
    await world.ask(NEW)
    while not world.kube.stored(MACHINE_DEPLOYMENT, "demo-a", TENANT)["metadata"].get("annotations"):
        writes = 0

        def fault(verb: str, kind: Kind, name: str) -> None:
            nonlocal writes
            writes += kind in (MACHINE_DEPLOYMENT, MACHINE_SET) and verb == "merge"
            if writes > at:
                raise Killed

        await pass_under(world, fault)
        if world.status().get("phase") == "Done":
            return
        await world.step()
    await world.kube.delete(CLUSTER_UPGRADE, "up", TENANT)
    assert CLUSTER_UPGRADE_FINALIZER in world.kube.stored(CLUSTER_UPGRADE, "up", TENANT)["metadata"]["finalizers"]
    await world.pass_once()
    await world.step()
    assert not any(annotations_of(world, pool) for pool in ("demo-a", "demo-b")) and await world.kube.get(CLUSTER_UPGRADE, "up", TENANT) is None
