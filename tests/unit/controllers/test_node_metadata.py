"""Labels and taints of a host are its node's too, and what others put on the node stays."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckp.api import kinds, names
from ckp.api.platform import Releases
from ckp.clients.kube import KubeError, Obj
from ckp.controllers.providers.byo.host import ByoHostReconciler
from ckp.controllers.workload import WorkloadClients
from ckp.rules.conditions import get_condition
from ckp.rules.labels_and_taints import LabelsAndTaints, node_patch, parse_taint
from tests.simulators.clock import ManualClock
from tests.simulators.kube import KubeSimulator

TENANT = "ckp-default-default"
KEYS = st.sampled_from(["rack", "zone", "example.com/disk"])
LABELS = st.dictionaries(KEYS, st.sampled_from(["a", "b", ""]))
TAINTS = st.lists(st.builds("{}{}:{}".format, KEYS, st.sampled_from(["", "=a", "=b"]), st.sampled_from(["NoSchedule", "NoExecute"])), max_size=3).map(tuple)
OTHERS = {"kubernetes.io/hostname": "one", "theirs": "x"}
NOT_READY = {"key": "node.kubernetes.io/not-ready", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"}


def applied(node: Obj, patch: dict[str, Any]) -> Obj:
    """RFC 7386, as far as these patches go."""
    labels = {**node["metadata"]["labels"], **(patch.get("metadata", {}).get("labels") or {})}
    taints = patch["spec"]["taints"] or [] if "spec" in patch else node["spec"].get("taints", [])
    return {"metadata": {**node["metadata"], "labels": {key: value for key, value in labels.items() if value is not None}}, "spec": {"taints": taints}}


def distinct(taints: tuple[str, ...]) -> tuple[str, ...]:
    """At most one taint of a key and effect, as a Node can have."""
    return tuple({(item["key"], item["effect"]): text for text, item in ((text, parse_taint(text)) for text in taints)}.values())


@given(LABELS, TAINTS, LABELS, TAINTS)
def test_a_node_gets_what_is_wanted_loses_what_was_ours_and_keeps_what_is_others(
    labels: dict[str, str], taints: tuple[str, ...], new_labels: dict[str, str], new_taints: tuple[str, ...]
) -> None:
    before = LabelsAndTaints("m", labels, distinct(taints))
    wanted = LabelsAndTaints("m", new_labels, distinct(new_taints), settled=True)
    node = {"metadata": {"resourceVersion": "7", "labels": {**OTHERS, **labels}}, "spec": {"taints": [NOT_READY, *map(parse_taint, before.taints)]}}
    patch = node_patch(node, before, wanted)
    after = applied(node, patch)
    assert after["metadata"]["labels"] == {**OTHERS, **new_labels}
    assert after["spec"]["taints"][0] == NOT_READY
    assert sorted(map(str, after["spec"]["taints"][1:])) == sorted(map(str, map(parse_taint, wanted.taints)))
    assert node_patch(after, wanted, wanted) == {}, "and then there is nothing to do"
    assert not patch or patch["metadata"]["resourceVersion"] == "7"


class Bench:
    """A host that is a node, and the cluster that the node is of."""

    def __init__(self) -> None:
        self.kube = KubeSimulator(manager="ckp-controllers", namespaces=(TENANT, names.HOSTS_NAMESPACE))
        self.cluster = KubeSimulator(manager="ckp-controllers", namespaces=("default",))
        self.reconciler = ByoHostReconciler(
            self.kube, ManualClock(datetime(2026, 4, 1, tzinfo=UTC)), Releases(releases={}), WorkloadClients(lambda _: self.cluster)
        )

    async def start(self) -> None:
        labels = {names.CLUSTER_NAME_LABEL: "demo"}
        meta = {"name": "m1", "namespace": TENANT, "labels": labels}
        machine = await self.kube.create({"apiVersion": kinds.BYO_MACHINE.api_version, "kind": "ByoMachine", "metadata": meta, "spec": {}})
        self.uid = machine["metadata"]["uid"]
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "demo-kubeconfig", "namespace": TENANT}}
        await self.kube.create({**secret, "data": {"value": base64.b64encode(b"the kubeconfig").decode()}})
        meta = {"name": "one", "namespace": TENANT, "labels": {"rack": "r1"}}
        reference = {"apiVersion": kinds.BYO_MACHINE.api_version, "kind": "ByoMachine", "name": "m1", "namespace": TENANT, "uid": self.uid}
        await self.kube.create({"apiVersion": kinds.BYO_HOST.api_version, "kind": "ByoHost", "metadata": meta, "spec": {"machineRef": reference}})

    async def join(self, **labels: str) -> None:
        identity = names.provider_id(TENANT, "one", self.uid)
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "one", "labels": {**OTHERS, **labels}}}
        await self.cluster.create({**node, "spec": {"providerID": identity, "taints": [NOT_READY]}})
        await self.kube.merge(kinds.BYO_HOST, "one", TENANT, {"status": {"observed": {"phase": "Joined"}}}, subresource="status")

    async def change(self, *, taints: list[str] | None = None, **labels: str | None) -> None:
        await self.kube.merge(kinds.BYO_HOST, "one", TENANT, {"metadata": {"labels": labels}, "spec": {"taints": taints}})

    async def pass_once(self) -> Any:
        return await self.reconciler.reconcile(TENANT, "one")

    async def node(self) -> tuple[dict[str, str], list[str]]:
        found = await self.cluster.get(kinds.NODE, "one")
        assert found is not None
        taints = found["spec"].get("taints") or []
        return {key: value for key, value in found["metadata"]["labels"].items() if key not in OTHERS}, [
            item["key"] for item in taints if item["key"] != NOT_READY["key"]
        ]

    async def marked(self) -> Any:
        host = await self.kube.get(kinds.BYO_HOST, "one", TENANT)
        assert host is not None
        return get_condition(host, "NodeMarked")


@pytest.fixture
async def bench() -> Bench:
    made = Bench()
    await made.start()
    return made


async def test_labels_and_taints_that_change_after_the_join_come_to_the_node_and_go_again(bench: Bench) -> None:
    await bench.pass_once()
    assert bench.cluster.calls == [], "no cluster is asked before there is a node"
    await bench.join(rack="r1")
    await bench.pass_once()
    assert (await bench.marked())["status"] == "True"
    await bench.change(rack="r2", disk="ssd", taints=["dedicated=db:NoSchedule"])
    await bench.pass_once()
    assert await bench.node() == ({"rack": "r2", "disk": "ssd"}, ["dedicated"])
    asked = len(bench.cluster.calls)
    await bench.pass_once()
    assert len(bench.cluster.calls) == asked, "what is as wanted costs nothing"
    await bench.change(rack=None, disk=None)
    await bench.pass_once()
    assert await bench.node() == ({}, []) and await bench.marked() is not None
    await bench.pass_once()
    host = await bench.kube.get(kinds.BYO_HOST, "one", TENANT)
    assert host is not None and "nodeMarks" not in host["status"] and await bench.marked() is None


async def test_a_label_that_went_while_the_host_joined_does_not_stay_on_the_node(bench: Bench) -> None:
    """The kubelet was told the label before it was taken away, and registers with it."""
    await bench.pass_once()
    await bench.change(rack=None)
    await bench.pass_once()
    await bench.join(rack="r1")
    await bench.pass_once()
    assert await bench.node() == ({}, [])


async def test_a_cluster_that_cannot_be_reached_is_said_and_asked_again(bench: Bench) -> None:
    await bench.join(rack="r1")
    await bench.pass_once()
    await bench.change(rack="r2")
    await bench.pass_once()
    bench.cluster.on_fault(lambda verb, kind, name: KubeError("get Node one: timed out", code=0))
    await bench.change(rack=None, zone="z")
    result = await bench.pass_once()
    found = await bench.marked()
    assert (found["status"], found["reason"], found["message"]) == ("False", "NodeNotReached", "get Node one: timed out")
    assert result.after is not None and result.after <= 15
    bench.cluster.on_fault(None)
    await bench.pass_once()
    assert await bench.node() == ({"zone": "z"}, []), "also what was to go while it was away"


async def test_another_machines_node_of_the_same_name_is_left_alone(bench: Bench) -> None:
    await bench.join(rack="r1")
    await bench.cluster.merge(kinds.NODE, "one", None, {"spec": {"providerID": "byoh://x/one/00000000"}})
    await bench.change(rack="r2")
    await bench.pass_once()
    assert (await bench.node())[0] == {"rack": "r1"} and (await bench.marked())["message"] == "cluster demo does not have the node yet"
