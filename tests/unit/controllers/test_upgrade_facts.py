"""What is read of a cluster before its upgrade: the kubelets' configuration, the control plane's options, space, backups."""

from __future__ import annotations

from typing import Any

import pytest

from ckp.api.kinds import BYO_HOST, BYO_MACHINE, DEPLOYMENT, MACHINE, MANAGED_CONTROL_PLANE
from ckp.api.names import UPGRADE_CORDON_ANNOTATION
from ckp.api.platform import Options
from ckp.clients.kube import Obj
from tests.worlds.upgrades import NEW, NEXT, OLD, TENANT, UpgradeWorld, condition, release


async def blocked(world: UpgradeWorld, version: str = NEXT, **spec: Any) -> list[tuple[str, str]]:
    await world.ask(version, **spec)
    await world.pass_once()
    return [(finding["name"], finding["where"]) for finding in world.status()["findings"]]


async def deploy(world: UpgradeWorld, part: str, *command: str) -> None:
    spec: Obj = {"template": {"spec": {"containers": [{"name": command[0], "command": list(command)}, {"name": "other"}]}}}
    await world.kube.create({"apiVersion": "apps/v1", "kind": DEPLOYMENT.kind, "metadata": {"name": f"demo-{part}", "namespace": TENANT}, "spec": spec})


async def test_a_gate_that_a_kubelet_is_started_with_and_the_release_does_not_know_is_named_with_its_node() -> None:
    world = UpgradeWorld()
    await world.made()
    world.kubelet_has("n2", StatefulSetAutoDeletePVC=True)  # gone in 1.35
    world.kubelet_has("n3", AnyVolumeDataSource=True)  # locked, and what it is
    assert await blocked(world, accept=["FeatureGate"]) == [("FeatureGate", "n2")]
    [finding] = world.status()["findings"]
    assert "StatefulSetAutoDeletePVC=true, which v1.35 does not know" in finding["message"] and finding["acceptable"] is False
    assert world.spec_of(MANAGED_CONTROL_PLANE, "demo")["version"] == OLD
    world.kubelet_has("n2")
    await world.until("Done")


async def test_a_kubelet_that_does_not_answer_may_be_accepted_and_one_that_is_not_ready_has_its_own_finding() -> None:
    world = UpgradeWorld()
    await world.made()
    world.workload.on_text("/api/v1/nodes/n1/proxy/configz", "<html>")
    await world.kube.merge(MACHINE, "n3", TENANT, {"status": {"conditions": [condition("NodeHealthy", "False")]}}, subresource="status")
    assert await blocked(world) == [("NodeNotReady", "n3"), ("OptionsNotKnown", "n1")]


async def test_what_the_control_plane_is_started_with_is_judged_at_every_step_of_its_way() -> None:
    world = UpgradeWorld()
    await world.made()
    await deploy(world, "apiserver", "kube-apiserver", "--feature-gates=DevicePluginCDIDevices=true", "--profiling=false")  # gone in 1.34
    await deploy(world, "scheduler", "kube-scheduler", "--profiling=false")
    assert await blocked(world, NEW) == [("FeatureGate", "control plane")]
    assert "v1.34 does not know" in world.status()["findings"][0]["message"]


async def test_flags_of_the_owner_come_from_the_agent() -> None:
    world = UpgradeWorld()
    await world.made()
    facts = {"os_id": "debian", "os_version": "12", "kubelet_flags": ["node-ip", "pod-infra-container-image"]}
    await world.kube.merge(BYO_HOST, "n1", TENANT, {"status": {"facts": facts}}, subresource="status")
    assert await blocked(world) == [("RemovedFlag", "n1")]
    assert "KUBELET_EXTRA_ARGS" in world.status()["findings"][0]["remedy"]


@pytest.mark.parametrize(("gates", "names"), [({}, []), ({"SystemdWatchdog": True}, [("OptionsNotKnown", NEXT)])])
async def test_a_release_that_was_published_without_its_gates_matters_only_where_some_are_set(gates: dict[str, bool], names: list[tuple[str, str]]) -> None:
    world = UpgradeWorld()
    world.releases = world.releases.with_releases([release(NEXT).model_copy(update={"options": Options()})])
    world.restarted()
    await world.made()
    world.kubelet_has("n1", **gates)
    await world.ask(NEXT)
    await world.pass_once()
    assert [(finding["name"], finding["where"]) for finding in world.status()["findings"]] == names


async def test_a_node_that_was_cordoned_or_tainted_is_named_and_one_that_an_upgrade_cordoned_is_not() -> None:
    world = UpgradeWorld()
    await world.made()
    for name, spec, marks in (
        ("n1", {"unschedulable": True}, {}),
        ("n2", {"unschedulable": True}, {UPGRADE_CORDON_ANNOTATION: "an earlier one"}),
        ("n3", {"taints": [{"key": "node.kubernetes.io/disk-pressure", "effect": "NoSchedule"}, {"key": "mine", "effect": "NoSchedule"}]}, {}),
    ):
        await world.workload.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "annotations": marks}, "spec": spec})
    assert await blocked(world) == [("NodeCordoned", "n1"), ("NodeTainted", "n3")]
    await world.change(accept=["NodeCordoned", "NodeTainted"])
    await world.until("Done")


async def test_a_host_that_is_short_of_space_is_named_with_the_numbers_and_needs_less_once_it_has_prepared() -> None:
    world = UpgradeWorld()
    await world.made()
    for name, free in (("n1", 1 << 30), ("n2", 8 << 30), ("n3", 0)):
        size = 0 if name == "n3" else 16 << 30  # n3 could not measure
        facts = {"os_id": "debian", "os_version": "12", "disk_bytes": size, "disk_free_bytes": free}
        await world.kube.merge(BYO_HOST, name, TENANT, {"status": {"facts": facts}}, subresource="status")
    assert await blocked(world, NEW) == [("HostSpace", "n1")]
    assert "1024 MiB are free" in world.status()["findings"][0]["message"]
    await world.kube.merge(BYO_MACHINE, "n1", TENANT, {"status": {"upgrade": {"preparedVersion": NEXT}}}, subresource="status")
    await world.pass_once()
    assert world.status()["phase"] == "Blocked", "that is another bundle"
    await world.kube.merge(BYO_MACHINE, "n1", TENANT, {"status": {"upgrade": {"preparedVersion": NEW}}}, subresource="status")
    await world.pass_once()
    assert world.status()["phase"] == "Preparing"


async def test_etcd_that_is_short_of_space_is_a_finding_of_its_own_with_the_numbers() -> None:
    world = UpgradeWorld()
    await world.made()
    full = condition("EtcdSpaceAvailable", "False", reason="NoSpace", message="etcd takes no writes but deletions: its database has 800 MiB")
    conditions = [condition("Ready"), condition("EtcdReady"), full]
    await world.kube.merge(MANAGED_CONTROL_PLANE, "demo", TENANT, {"status": {"conditions": conditions}}, subresource="status")
    assert await blocked(world, accept=["EtcdSpace"]) == [("EtcdSpace", "etcd")]
    assert "800 MiB" in world.status()["findings"][0]["message"]


async def test_an_addon_that_a_release_on_the_way_does_not_have_is_named_with_it() -> None:
    world = UpgradeWorld()
    world.releases = world.releases.with_releases([release(NEW).model_copy(update={"cni": {"calico": "v3.30.5"}})])
    world.restarted()
    await world.made()
    assert await blocked(world) == [("AddonNotInRelease", "cilium")]
    assert NEW in world.status()["findings"][0]["message"]
