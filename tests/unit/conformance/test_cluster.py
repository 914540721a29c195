"""What a run sees of its cluster, and what it takes away of tests that were killed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from ckp.catalog.load import Catalog
from ckp.conformance.cluster import Cluster
from ckp.conformance.prepare import Request, begin
from ckp.conformance.suite import Test
from ckp.kits.errors import CkpError
from tests.support.checkout import REPO

STARTED = "2026-11-29T07:28:00Z"
BEFORE = "2026-11-29T07:00:00Z"
AFTER = "2026-11-29T07:40:00Z"


def namespace(name: str, created: str, *, of_a_test: bool = True) -> dict[str, Any]:
    return {"metadata": {"name": name, "creationTimestamp": created, "labels": {"e2e-framework": "pods"} if of_a_test else {}}}


def node(name: str, *, ready: str = "True", taints: list[dict[str, str]] | None = None, image: str = "Ubuntu 24.04.1 LTS") -> dict[str, Any]:
    status = {"conditions": [{"type": "Ready", "status": ready}], "nodeInfo": {"osImage": image}}
    return {"metadata": {"name": name}, "spec": {"taints": taints} if taints else {}, "status": status}


def hook(name: str, of: str) -> dict[str, Any]:
    return {"metadata": {"name": name}, "webhooks": [{"clientConfig": {"service": {"namespace": of}}}, {"clientConfig": {"url": "https://a.example"}}]}


class World:
    def __init__(self, folder: Path) -> None:
        self.file = folder / "state.json"
        self.said: list[str] = []
        program = folder / "kubectl"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {REPO}/tests/simulators/kubectl.py {self.file} "$@"\n')
        program.chmod(0o755)
        self.cluster = Cluster(program, Path("/kubeconfig"))

    def has(self, **state: Any) -> None:
        kinds = ("namespaces", "nodes", "validatingwebhookconfigurations", "mutatingwebhookconfigurations", "apiservices")
        self.file.write_text(json.dumps({"version": "v1.35.1-ckp", "now": STARTED, **{kind: [] for kind in kinds}, **state}))

    def names(self, kind: str) -> list[str]:
        return [item["metadata"]["name"] for item in json.loads(self.file.read_text())[kind]]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_cluster_is_known_by_its_kube_system_and_its_version(world: World) -> None:
    world.has(nodes=[node("worker-1"), node("worker-2")])
    assert (world.cluster.uid(), world.cluster.version()) == ("uid-1", "v1.35.1-ckp")
    looked = world.cluster.look()
    assert (looked.nodes, looked.node_os) == (("worker-1", "worker-2"), "ubuntu")


@pytest.mark.parametrize(("image", "node_os"), [("Debian GNU/Linux 12 (bookworm)", "debian"), ("Red Hat Enterprise Linux 9.4", "custom")])
def test_the_nodes_distribution_is_named_as_the_tests_know_it(world: World, image: str, node_os: str) -> None:
    world.has(nodes=[node("worker-1", image=image)])
    assert world.cluster.look().node_os == node_os


def test_a_cluster_with_a_node_that_is_not_ready_is_refused(world: World) -> None:
    world.has(nodes=[node("worker-1"), node("worker-2", ready="Unknown")])
    with pytest.raises(CkpError, match="not all nodes are ready: worker-2"):
        world.cluster.look()


def test_a_cluster_whose_nodes_take_no_pods_is_refused(world: World) -> None:
    world.has(nodes=[node("worker-1", taints=[{"key": "a", "effect": "NoSchedule"}])])
    with pytest.raises(CkpError, match="no node takes pods"):
        world.cluster.look()


def test_what_killed_tests_left_is_removed_and_nothing_else(world: World) -> None:
    taints = [{"key": "kubernetes.io/e2e-evict-taint-key", "effect": "NoExecute"}, {"key": "owner", "effect": "NoSchedule"}]
    world.has(
        namespaces=[namespace("pods-1", AFTER), namespace("pods-old", BEFORE), namespace("mine", AFTER, of_a_test=False)],
        nodes=[node("worker-1", taints=taints)],
        mutatingwebhookconfigurations=[hook("left", "pods-1"), hook("of-another", "mine")],
        apiservices=[
            {"metadata": {"name": "v1.sample"}, "spec": {"service": {"namespace": "pods-1"}}},
            {"metadata": {"name": "v1."}, "spec": {"service": None}},
        ],
    )
    world.cluster.clean(STARTED, world.said.append)
    assert world.names("namespaces") == ["pods-old", "mine"]
    assert world.names("mutatingwebhookconfigurations") == ["of-another"]
    assert world.names("apiservices") == ["v1."]
    (left,) = json.loads(world.file.read_text())["nodes"]
    assert [item["key"] for item in left["spec"]["taints"]] == ["owner"]
    assert any("mutatingwebhookconfigurations/left" in line for line in world.said)


def test_a_run_is_told_from_others_by_the_clusters_clock_and_not_by_this_machines(world: World, tmp_path: Path) -> None:
    """The cluster's time is STARTED, far from this machine's; a namespace of after it is a killed run's own."""
    world.has(nodes=[node("worker-1")], namespaces=[namespace("pods-old", BEFORE)])
    tests = [Test("[sig-node] one [Conformance]"), Test("[sig-node] two [Conformance]")]
    request = Request(Catalog().release("v1.35.1"), tests, tests, 2, submission=False)
    record, _looked = begin(world.cluster, request, tmp_path / "runs", world.said.append)
    assert record.plan.started == STARTED
    world.has(nodes=[node("worker-1")], namespaces=[namespace("pods-1", AFTER), namespace("pods-old", BEFORE)])
    again, _looked = begin(world.cluster, request, tmp_path / "runs", world.said.append)
    assert (again, world.names("namespaces")) == (record, ["pods-old"])


def test_namespaces_that_do_not_go_are_said_and_no_error(world: World) -> None:
    world.has(namespaces=[namespace("pods-1", AFTER), namespace("pods-old", BEFORE)])
    world.cluster.settle(STARTED, world.said.append, timeout=0.1)
    assert world.said == ["WARNING: namespaces of the tests are not gone after 0.1s: pods-1; see why with kubectl describe namespace"]
    world.said.clear()
    world.has(namespaces=[namespace("pods-old", BEFORE)])
    world.cluster.settle(STARTED, world.said.append, timeout=0.1)
    assert world.said == []


def test_a_clean_cluster_is_left_alone(world: World) -> None:
    world.has(namespaces=[namespace("mine", AFTER, of_a_test=False)], nodes=[node("worker-1")])
    before = world.file.read_text()
    world.cluster.clean(STARTED, world.said.append)
    assert (json.loads(world.file.read_text()), world.said) == (json.loads(before), [])


def test_a_cluster_that_does_not_answer_is_an_error_with_what_to_do(world: World) -> None:
    world.cluster.kubectl.write_text("#!/bin/sh\necho 'connection refused' >&2\nexit 1\n")
    with pytest.raises(CkpError) as failed:
        world.cluster.uid()
    assert "connection refused" in failed.value.details
    assert "is the cluster up" in failed.value.resolution
