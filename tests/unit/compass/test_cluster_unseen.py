"""Compass: what Cluster API saw last of a workload cluster is not shown as so while the cluster's API server can't be asked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ckp.api import kinds, names
from tests.worlds.compass import NAMESPACE, World, cluster_body, make_world

WORKS = {"type": "WorkloadReady", "status": "True", "lastTransitionTime": "2026-04-01T12:00:00Z"}
CUT_OFF = {**WORKS, "status": "Unknown", "reason": "ClusterNotReached", "message": "the cluster's API server can't be asked: timed out"}
HELD = {"type": "Ready", "status": "False", "reason": "DataLost", "message": "no member of etcd has data", "lastTransitionTime": "2026-04-01T12:00:00Z"}
DONE = [{"number": 10, "title": "Workers joined", "state": "Done"}]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A cluster `demo` with two ready workers, and a third machine that is no node yet."""
    async with make_world(tmp_path) as made:
        await made.group_with_hosts()
        await made.call("POST", "/clusters", json=cluster_body(), expect=201)
        for name in ("one", "two", "three"):
            meta = {"name": name, "namespace": NAMESPACE, "labels": {names.CLUSTER_NAME_LABEL: "demo"}}
            await made.kube.create({"apiVersion": kinds.MACHINE.api_version, "kind": "Machine", "metadata": meta, "spec": {"version": "v1.35.1"}})
            node = {"nodeRef": {"name": name}, "conditions": [{"type": "NodeHealthy", "status": "True"}]} if name != "three" else {}
            await status(made, kinds.MACHINE, name, {"phase": "Running", **node})
        available = {"type": "Available", "status": "True", "lastTransitionTime": "2026-04-01T12:00:00Z"}
        await status(made, kinds.MACHINE_DEPLOYMENT, "demo-workers", {"readyReplicas": 2, "conditions": [available]})
        await status(made, kinds.CLUSTER, "demo", {"phase": "Provisioned", "controlPlaneReady": True, "infrastructureReady": True})
        await status(made, kinds.MANAGED_CONTROL_PLANE, "demo", {"initialized": True, "ready": True, "steps": DONE, "conditions": [WORKS]})
        yield made


async def status(world: World, kind: kinds.Kind, name: str, values: dict[str, Any]) -> None:
    await world.kube.merge(kind, name, NAMESPACE, {"status": values}, subresource="status")


def machines(shown: dict[str, Any]) -> dict[str, tuple[bool, str]]:
    return {machine["name"]: (machine["ready"], machine["readyStatus"]) for machine in shown["machines"]}


def available(shown: dict[str, Any]) -> dict[str, Any]:
    return next(entry for entry in shown["conditions"] if entry["object"] == "MachineDeployment")


async def test_workers_are_ready_while_they_are_seen_to_be(world: World) -> None:
    shown = await world.call("GET", "/clusters/demo")
    assert machines(shown) == {"one": (True, "True"), "two": (True, "True"), "three": (False, "False")}
    assert (shown["ready"], shown["workersReady"], shown["workersUnknown"], shown["controlPlaneReady"]) == (True, 2, 0, True)
    assert available(shown)["status"] == "True"


LOST = "the cluster's API server does not serve: no member of etcd has data"


@pytest.mark.parametrize(
    ("plane", "why", "up"),
    [
        ({"ready": False, "conditions": [HELD, WORKS]}, LOST, False),
        ({"conditions": [CUT_OFF]}, "the cluster's API server can't be asked: timed out", True),
    ],
)
async def test_nodes_that_nobody_can_ask_for_are_unknown_wherever_they_are_shown(world: World, plane: dict[str, Any], why: str, up: bool) -> None:
    steps = [{"number": 10, "title": "Workers joined", "state": "Unknown", "message": why}]
    await status(world, kinds.MANAGED_CONTROL_PLANE, "demo", {**plane, "steps": steps})
    shown = await world.call("GET", "/clusters/demo")
    assert machines(shown) == {"one": (False, "Unknown"), "two": (False, "Unknown"), "three": (False, "False")}
    assert {machine["message"] for machine in shown["machines"] if machine["readyStatus"] == "Unknown"} == {why}
    assert (shown["ready"], shown["workersReady"], shown["workersUnknown"], shown["controlPlaneReady"]) == (False, 0, 2, up)
    assert shown["message"] == f"step 10 (Workers joined): {why}"
    condition = available(shown)
    assert (condition["status"], condition["reason"]) == ("Unknown", "ClusterNotReached")
    assert condition["message"] == f"{why}; it was True when Cluster API saw it last" and "lastTransitionTime" not in condition
    listed = (await world.call("GET", "/clusters"))["items"][0]
    assert (listed["workersReady"], listed["workersUnknown"], listed["ready"]) == (0, 2, False)


async def test_a_machine_of_which_the_management_cluster_itself_knows_better_is_not_unknown(world: World) -> None:
    await status(world, kinds.MANAGED_CONTROL_PLANE, "demo", {"conditions": [CUT_OFF]})
    await status(world, kinds.MACHINE, "one", {"failureMessage": "host one was removed"})
    await world.kube.merge(kinds.MACHINE, "two", NAMESPACE, {"metadata": {"finalizers": ["machine.cluster.x-k8s.io"]}})
    await world.kube.delete(kinds.MACHINE, "two", NAMESPACE)
    shown = await world.call("GET", "/clusters/demo")
    assert machines(shown) == dict.fromkeys(("one", "two", "three"), (False, "False"))
    assert shown["machines"][0]["message"] == "host one was removed"


async def test_a_cluster_that_is_deleted_goes_on_saying_what_its_machines_wait_for(world: World) -> None:
    """Its API server ends before its objects do."""
    await world.kube.merge(kinds.CLUSTER, "demo", NAMESPACE, {"metadata": {"finalizers": ["cluster.cluster.x-k8s.io"]}})
    await world.kube.delete(kinds.CLUSTER, "demo", NAMESPACE)
    await status(world, kinds.MANAGED_CONTROL_PLANE, "demo", {"ready": False})
    shown = await world.call("GET", "/clusters/demo")
    assert (shown["phase"], shown["workersUnknown"]) == ("Deleting", 2)
    assert shown["message"] == "machine one: its deletion begins (and 2 more machines)"
    await world.kube.merge(kinds.MACHINE, "two", NAMESPACE, {"metadata": {"finalizers": ["machine.cluster.x-k8s.io"]}})
    await world.kube.delete(kinds.MACHINE, "two", NAMESPACE)
    assert (await world.call("GET", "/clusters/demo"))["message"].startswith("machine two: ")
