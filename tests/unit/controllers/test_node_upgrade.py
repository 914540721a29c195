"""A ByoMachine's node is upgraded in place: prepared, drained, installed, verified; and nothing of it is replaced."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from ckp.api import kinds, names
from ckp.api.host_protocol import UPGRADE_NODE, NodeUpgrade
from ckp.api.objects.byo_machine import ByoMachine, NodeUpgradeStatus
from ckp.api.platform import Releases
from ckp.clients.kube import KubeError, Obj
from ckp.controllers.providers.byo.drain import drain_seconds
from ckp.controllers.providers.byo.node_upgrade import EXEMPT, VERIFY, exempt_until
from ckp.kits.clock import parse_rfc3339, rfc3339
from ckp.rules.conditions import get_condition
from ckp.rules.drains import blockers, is_evicted, summary
from tests.chaos.parts import RELEASES, VERSION
from tests.unit.controllers.test_byo_machine import CLOCK, TENANT, Bench

NEW, OLDER = "v1.36.0", "v1.0.0"


def with_releases() -> Releases:
    """VERSION, a newer one and an older one, each with its own bundle."""
    now = RELEASES.releases[VERSION]
    now = now.model_copy(update={"images": {**now.images, "kubeadm": f"{VERSION}@sha256:{'0' * 64}"}})
    more = {VERSION: now}
    for name, digit in ((NEW, "e"), (OLDER, "f")):
        image = f"r:5000/ckp/b@sha256:{digit * 64}"
        bundles = {key: bundle.model_copy(update={"image": image, "release": name}) for key, bundle in now.bundles.items()}
        more[name] = now.model_copy(update={"name": name, "stamp": f"{name}-ckp", "bundles": bundles})
    return RELEASES.model_copy(update={"releases": {**RELEASES.releases, **more}})


class Node(Bench):
    """Machine m1 is the node of host a, which is of VERSION."""

    def __init__(self) -> None:
        super().__init__()
        self.machines.releases = self.machines.upgrades.releases = with_releases()

    async def start(self, *, features: tuple[str, ...] = (UPGRADE_NODE,)) -> None:
        await self.create(kinds.CLUSTER, "demo", {}, {"infrastructureReady": True})
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "demo-kubeconfig", "namespace": TENANT}}
        await self.kube.create({**secret, "data": {"value": base64.b64encode(b"the kubeconfig").decode()}})
        await self.host("a")
        await self.host_status({"facts": {"features": list(features)}, "agent": {"version": "0.3.0-ckp"}})
        await self.machine("m1")
        await self.see()
        await self.turn()
        await self.joins()
        found = await self.byo()
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"}, "spec": {"providerID": found.spec.provider_id}}
        await self.cluster.create(node)
        await self.node_is(VERSION)

    async def host_status(self, status: Obj) -> None:
        await self.kube.merge(kinds.BYO_HOST, "a", TENANT, {"status": status}, subresource="status")

    async def joins(self, release: str = VERSION, upgrade: Obj | None = None) -> None:
        desired = await self.store.read(TENANT, "a")
        await self.report("a", generation=desired.generation, phase="Joined", cluster=f"{TENANT}/demo", machine="m1", release=release, upgrade=upgrade)
        await self.see()
        await self.turn()

    async def turn(self) -> None:
        await self.machines.reconcile(TENANT, "m1")

    async def asks(self, **spec: str | None) -> None:
        await self.kube.merge(kinds.BYO_MACHINE, "m1", TENANT, {"spec": spec})
        await self.turn()

    async def says(self, state: str, *, release: str = VERSION, **more: Any) -> None:
        """The host reports of the request that it was given."""
        asked = await self.asked()
        assert asked is not None
        await self.joins(release, {"request": asked.request, "release": asked.release, "state": state, "reason": "", "message": "", "restored": False, **more})

    async def byo(self) -> ByoMachine:
        found = await self.get("m1")
        assert found is not None
        return ByoMachine.of(found)

    async def upgrade(self) -> NodeUpgradeStatus:
        return (await self.byo()).status.upgrade

    async def state(self) -> str:
        return (await self.upgrade()).state

    async def asked(self) -> NodeUpgrade | None:
        membership = (await self.store.read(TENANT, "a")).membership
        assert membership is not None
        return membership.upgrade

    async def release(self) -> str:
        membership = (await self.store.read(TENANT, "a")).membership
        assert membership is not None and membership.bundle.release == membership.release
        return membership.release

    async def node(self) -> Obj:
        found = await self.cluster.get(kinds.NODE, "a")
        assert found is not None
        return found

    async def node_is(self, release: str, ready: str = "True") -> None:
        status = {"nodeInfo": {"kubeletVersion": with_releases().get(release).stamp}, "conditions": [{"type": "Ready", "status": ready}]}
        await self.cluster.merge(kinds.NODE, "a", None, {"status": status}, subresource="status")

    async def cordoned(self) -> bool:
        return bool((await self.node())["spec"].get("unschedulable"))

    async def jobs(self) -> list[Obj]:
        return await self.kube.list(kinds.JOB, TENANT)

    async def job_ends(self, status: Obj) -> None:
        (job,) = await self.jobs()
        await self.kube.merge(kinds.JOB, job["metadata"]["name"], TENANT, {"status": status}, subresource="status")
        await self.turn()

    async def condition(self, kind: str = "NodeUpgraded") -> tuple[str, str]:
        found = get_condition((await self.get("m1")) or {}, kind) or {}
        return str(found.get("status", "")), str(found.get("reason", ""))

    async def until_installing(self) -> None:
        await self.asks(kubernetesVersion=NEW)
        await self.says("Prepared")
        await self.turn()
        await self.job_ends({"succeeded": 1})
        assert await self.state() == "Installing"


@pytest.fixture
async def node() -> Node:
    made = Node()
    await made.start()
    return made


@pytest.fixture(autouse=True)
def later() -> Iterator[None]:
    """Each test begins at the same time."""
    before = CLOCK.now()
    yield
    CLOCK.advance((before - CLOCK.now()).total_seconds())


async def test_a_release_is_prepared_and_nothing_else_changes(node: Node) -> None:
    before = await node.node()
    await node.asks(prepareVersion=NEW)
    asked = await node.asked()
    assert asked is not None and (asked.release, asked.phase, asked.bundle.image[-64:]) == (NEW, "prepare", "e" * 64)
    assert (await node.state(), await node.release()) == ("Preparing", VERSION)
    await node.says("Prepared", message="6 packages")
    seen = await node.upgrade()
    assert (seen.state, seen.prepared_version, seen.message) == ("Prepared", NEW, "6 packages")
    assert await node.node() == before and await node.jobs() == [] and await node.condition() == ("", "")
    await node.asks(prepareVersion=None)
    assert await node.asked() is None and await node.state() == ""


async def test_an_upgrade_prepares_drains_installs_verifies_and_lets_pods_in_again(node: Node) -> None:
    before = await node.byo()
    await node.asks(kubernetesVersion=NEW)
    assert await node.state() == "Preparing" and not await node.cordoned(), "nothing is drained before the bundle is there"
    await node.says("Prepared")
    assert await node.state() == "Draining"
    await node.turn()
    (job,) = await node.jobs()
    assert job["spec"]["template"]["spec"]["containers"][0]["command"][1:3] == ["drain", "a"]
    assert await node.cordoned() and (await node.asked()) is not None
    asked = await node.asked()
    assert asked is not None and asked.phase == "prepare", "the host installs nothing before its node is drained"
    assert await node.condition() == ("False", "Draining")
    await node.job_ends({"succeeded": 1})
    asked = await node.asked()
    assert asked is not None and (asked.phase, await node.state()) == ("install", "Installing")
    await node.says("Installing")
    await node.says("Done", release=NEW, message="kept: /etc/default/kubelet")
    assert (await node.state(), await node.release()) == ("Verifying", NEW)
    await node.turn()
    assert await node.cordoned() and (await node.upgrade()).reason == "NodeNotReady"
    assert await node.condition() == ("False", "NodeNotReady")
    await node.node_is(NEW)
    await node.turn()
    seen = await node.upgrade()
    assert (seen.state, seen.message, seen.version) == ("Done", "kept: /etc/default/kubelet", NEW)
    assert not await node.cordoned() and names.UPGRADE_CORDON_ANNOTATION not in (await node.node())["metadata"].get("annotations", {})
    await node.joins(NEW)
    assert await node.asked() is None, "the host may drop the old bundle"
    await node.joins(NEW)
    after = await node.byo()
    assert after.spec.provider_id == before.spec.provider_id and after.status.ready and await node.holder("a") == "m1"
    assert await node.condition() == ("True", "") and await node.condition("BYOHostReady") == ("True", "")
    assert parse_rfc3339(after.status.upgrade.started_at) <= parse_rfc3339(after.status.upgrade.finished_at)


async def test_a_node_that_was_cordoned_before_stays_so(node: Node) -> None:
    await node.cluster.merge(kinds.NODE, "a", None, {"spec": {"unschedulable": True}})
    await node.until_installing()
    await node.says("Done", release=NEW)
    await node.node_is(NEW)
    await node.turn()
    assert await node.state() == "Done" and await node.cordoned()


async def test_a_drain_that_a_person_asked_for_meanwhile_is_not_taken_back(node: Node) -> None:
    await node.until_installing()
    await node.kube.merge(kinds.BYO_HOST, "a", TENANT, {"spec": {"drain": "2026-04-01T00:00:00Z"}})
    await node.says("Done", release=NEW)
    await node.node_is(NEW)
    await node.turn()
    assert await node.state() == "Done" and await node.cordoned()


async def test_an_agent_that_is_too_old_is_named_with_the_remedy() -> None:
    node = Node()
    await node.start(features=())
    await node.asks(kubernetesVersion=NEW)
    seen = await node.upgrade()
    assert (seen.state, seen.reason) == ("Preparing", "AgentTooOld") and await node.asked() is None
    assert seen.message == "the agent 0.3.0-ckp of host a is too old to upgrade a node: ckp host upgrade-agent a"
    await node.host_status({"facts": {"features": [UPGRADE_NODE]}})
    await node.turn()
    assert (await node.asked()) is not None and await node.state() == "Preparing"


@pytest.mark.parametrize(("version", "reason", "words"), [("v9.9.9", "NoBundle", "not among the installed releases"), (OLDER, "OlderVersion", "is older")])
async def test_what_cannot_be_installed_is_not_asked_of_the_host(node: Node, version: str, reason: str, words: str) -> None:
    await node.asks(kubernetesVersion=version)
    seen = await node.upgrade()
    assert seen.reason == reason and words in seen.message and await node.asked() is None and not await node.cordoned()


async def test_the_version_of_the_machine_alone_upgrades_nothing_and_is_said(node: Node) -> None:
    """A MachineSet gives its version to all its Machines at once: all nodes would be drained together."""
    await node.kube.merge(kinds.MACHINE, "m1", TENANT, {"spec": {"version": NEW}})
    await node.turn()
    await node.joins()
    assert (await node.release(), await node.asked()) == (VERSION, None)
    assert await node.condition("BYOHostReady") == ("False", "UpgradeNotRequested")
    await node.asks(kubernetesVersion=VERSION)
    await node.joins()
    assert await node.condition("BYOHostReady") == ("True", "")


async def test_a_new_machine_joins_at_the_version_that_its_spec_names() -> None:
    node = Node()
    await node.create(kinds.CLUSTER, "demo", {}, {"infrastructureReady": True})
    await node.host("a")
    await node.machine("m1")
    await node.see()
    await node.asks(kubernetesVersion=NEW)
    assert (await node.release(), await node.asked()) == (NEW, None)


# -- the drain -------------------------------------------------------------------------------------------------------------


def pod(name: str, **labels: str) -> Obj:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default", "labels": labels}, "spec": {"nodeName": "a"}}


def budget(name: str, allowed: int, **labels: str) -> Obj:
    meta = {"name": name, "namespace": "default"}
    status = {"disruptionsAllowed": allowed, "currentHealthy": 2, "desiredHealthy": 2}
    return {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": meta, "spec": {"selector": {"matchLabels": labels}}, "status": status}


async def test_a_drain_that_is_stuck_names_the_pod_and_the_budget_and_ends_at_its_limit(node: Node) -> None:
    await node.cluster.create(pod("db-0", app="db"))
    made = budget("db", 0, app="db")
    await node.cluster.create(made)
    await node.cluster.merge(kinds.PDB, "db", "default", {"status": made["status"]}, subresource="status")
    await node.asks(kubernetesVersion=NEW)
    await node.says("Prepared")
    await node.turn()
    await node.turn()
    seen = await node.upgrade()
    held = "pod default/db-0 is held by the disruption budget default/db: 2 pods are healthy, 2 must be"
    assert (seen.state, seen.reason) == ("Draining", "Draining") and held in seen.message
    await node.job_ends({"conditions": [{"type": "Failed", "status": "True"}]})
    seen = await node.upgrade()
    assert (seen.state, seen.reason) == ("Failed", "DrainFailed") and held in seen.message
    assert not await node.cordoned(), "the node takes pods again"
    assert await node.condition() == ("False", "DrainFailed")
    asked = await node.asked()
    assert asked is not None and asked.phase == "prepare", "what was not drained is not installed"
    await node.turn()
    assert await node.jobs() == [] and await node.state() == "Failed", "nothing loops"
    assert drain_seconds(None) > 0


def test_what_a_drain_leaves_alone_blocks_nothing() -> None:
    daemon, static, ended = pod("d", app="x"), pod("s", app="x"), pod("e", app="x")
    daemon["metadata"]["ownerReferences"] = [{"kind": "DaemonSet", "controller": True}]
    static["metadata"]["annotations"] = {"kubernetes.io/config.mirror": "1"}
    ended["status"] = {"phase": "Succeeded"}
    assert not any(map(is_evicted, (daemon, static, ended))) and is_evicted(pod("p"))
    none = budget("none", 0, app="x")
    assert blockers([daemon, static, ended], [none]) == []
    assert blockers([pod("p", app="y")], [none]) == [] and blockers([pod("p", app="x")], [budget("b", 1, app="x")]) == []
    assert blockers([pod("p", app="x")], [{**none, "spec": {}}]) == [], "policy/v1: without a selector a budget holds no pod"
    assert "default/p is held" in blockers([pod("p", app="x")], [{**none, "spec": {"selector": {}}}])[0]
    assert "more than one disruption budget" in blockers([pod("p", app="x")], [budget("b", 1, app="x"), budget("c", 1, app="x")])[0]
    going = pod("p", app="x")
    going["metadata"]["deletionTimestamp"] = "2026-04-01T00:01:00Z"
    assert blockers([going], [none]) == ["pod default/p has until 2026-04-01T00:01:00Z to end"]
    assert summary(list("abcde")) == "a; b; c; and 2 more" and summary([]) == ""


async def test_an_upgrade_that_is_taken_back_while_its_node_is_drained_leaves_it_as_it_was(node: Node) -> None:
    await node.asks(kubernetesVersion=NEW)
    await node.says("Prepared")
    await node.turn()
    assert await node.cordoned()
    await node.asks(kubernetesVersion=None)
    assert not await node.cordoned() and await node.asked() is None and await node.state() == ""
    assert await node.condition() in (("True", ""), ("False", "Draining"))
    await node.joins()
    assert await node.condition() == ("True", "")


# -- what fails ------------------------------------------------------------------------------------------------------------


async def test_a_host_that_went_back_takes_pods_again_and_is_asked_again_only_by_a_new_request(node: Node) -> None:
    await node.until_installing()
    await node.says("RollingBack", reason="KubeletUnhealthy", message="it does not start")
    assert await node.state() == "Installing" and "goes back to its old packages: it does not start" in (await node.upgrade()).message
    await node.says("Failed", reason="KubeletUnhealthy", message="it does not start", restored=True)
    seen = await node.upgrade()
    assert (seen.state, seen.reason, seen.message) == ("Failed", "KubeletUnhealthy", "it does not start")
    assert not await node.cordoned() and (await node.release(), await node.condition()) == (VERSION, ("False", "KubeletUnhealthy"))
    first = await node.asked()
    await node.joins(upgrade={"request": seen.request, "release": NEW, "state": "Failed", "restored": True})
    await node.turn()
    assert await node.asked() == first and await node.state() == "Failed"
    CLOCK.advance(60)
    await node.kube.merge(kinds.BYO_MACHINE, "m1", TENANT, {"metadata": {"annotations": {names.RETRY_UPGRADE_ANNOTATION: "again"}}})
    await node.turn()
    second = await node.asked()
    assert first is not None and second is not None and second.request != first.request and await node.state() == "Preparing"


async def test_a_version_that_failed_is_tried_again_when_it_was_taken_back_and_is_asked_for_again(node: Node) -> None:
    await node.asks(kubernetesVersion=NEW)
    await node.says("Failed", reason="VerificationFailed", message="a digest is another", restored=True)
    first = await node.upgrade()
    assert (first.state, first.reason) == ("Failed", "VerificationFailed") and not await node.cordoned()
    await node.asks(kubernetesVersion=None)
    assert await node.asked() is None and (await node.upgrade()).message == "a digest is another", "it stays to be read"
    CLOCK.advance(60)
    await node.asks(kubernetesVersion=NEW)
    second = await node.asked()
    assert second is not None and second.request != first.request and await node.state() == "Preparing"


async def test_a_node_whose_old_packages_could_not_be_put_back_stays_cordoned(node: Node) -> None:
    await node.until_installing()
    await node.says("Failed", reason="KubeletUnhealthy", message="not put back", restored=False)
    assert await node.state() == "Failed" and await node.cordoned()


async def test_a_node_that_is_not_ready_in_time_fails_and_takes_pods_once_it_is(node: Node) -> None:
    await node.until_installing()
    await node.says("Done", release=NEW)
    await node.node_is(NEW, ready="False")
    await node.turn()
    assert await node.state() == "Verifying"
    CLOCK.advance(VERIFY.total_seconds() + 1)
    await node.turn()
    seen = await node.upgrade()
    assert (seen.state, seen.reason) == ("Failed", "NodeNotReady") and "node a is not Ready 15m after" in seen.message and await node.cordoned()
    await node.joins(NEW)
    await node.joins(NEW)
    assert await node.condition() == ("False", "NodeNotReady"), "it is of the version, and not good"
    await node.node_is(NEW)
    await node.turn()
    assert await node.state() == "Done" and not await node.cordoned()


@pytest.mark.parametrize("state", ["Draining", "Verifying"])
async def test_a_node_that_is_gone_ends_the_upgrade(node: Node, state: str) -> None:
    if state == "Draining":
        await node.asks(kubernetesVersion=NEW)
        await node.says("Prepared")
    else:
        await node.until_installing()
        await node.says("Done", release=NEW)
    await node.cluster.delete(kinds.NODE, "a")
    await node.turn()
    seen = await node.upgrade()
    assert (seen.state, seen.reason) == ("Failed", "NodeGone")


async def test_a_cluster_that_does_not_answer_is_waited_for(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    await node.until_installing()
    await node.says("Done", release=NEW)

    async def away(*_: object, **__: object) -> None:
        raise KubeError("get Node a: the API server does not answer", code=0)

    with monkeypatch.context() as patch:
        patch.setattr(node.cluster, "get", away)
        await node.turn()
    seen = await node.upgrade()
    assert (seen.state, seen.reason) == ("Verifying", "ClusterNotReached")
    await node.node_is(NEW)
    await node.turn()
    assert await node.state() == "Done"


async def test_a_node_is_not_drained_while_its_host_is_offline_and_is_once_it_is_back(node: Node) -> None:
    await node.asks(prepareVersion=NEW)
    await node.says("Prepared")
    await node.host_status({"conditions": [{"type": "AgentConnected", "status": "False", "lastTransitionTime": "2026-04-01T00:00:00Z"}]})
    await node.asks(kubernetesVersion=NEW)
    await node.turn()
    found = await node.upgrade()
    assert (found.state, found.reason, found.message) == ("Prepared", "HostOffline", "host a is offline since 2026-04-01T00:00:00Z")
    assert not await node.cordoned() and not await node.jobs()
    await node.host_status({"conditions": [{"type": "AgentConnected", "status": "True", "lastTransitionTime": "2026-04-01T00:01:00Z"}]})
    await node.turn()
    await node.turn()
    assert await node.state() == "Draining" and await node.cordoned()


async def test_a_host_that_is_offline_is_named(node: Node) -> None:
    await node.until_installing()
    connection = {"type": "AgentConnected", "status": "False", "lastTransitionTime": "2026-04-01T00:00:00Z"}
    await node.host_status({"conditions": [connection]})
    await node.turn()
    assert "host a is offline since 2026-04-01T00:00:00Z" in (await node.upgrade()).message and await node.state() == "Installing"


# -- with everything else --------------------------------------------------------------------------------------------------


async def test_a_pause_holds_the_upgrade_where_it_is(node: Node) -> None:
    await node.asks(kubernetesVersion=NEW)
    await node.kube.merge(kinds.CLUSTER, "demo", TENANT, {"spec": {"paused": True}})
    await node.says("Prepared")
    await node.turn()
    assert await node.state() == "Preparing" and not await node.cordoned()
    await node.kube.merge(kinds.CLUSTER, "demo", TENANT, {"spec": {"paused": False}})
    await node.turn()
    assert await node.state() == "Draining"


async def test_a_machine_that_is_deleted_during_its_upgrade_is_deleted(node: Node) -> None:
    await node.until_installing()
    asked = await node.asked()
    machine = await node.kube.get(kinds.MACHINE, "m1", TENANT)
    assert machine is not None
    await node.kube.merge(kinds.MACHINE, "m1", TENANT, {"metadata": {"finalizers": ["machine.cluster.x-k8s.io"]}})
    await node.kube.delete(kinds.MACHINE, "m1", TENANT)
    await node.turn()
    assert await node.asked() == asked, "what is in progress ends by itself, or with the reset"
    await node.kube.delete(kinds.BYO_MACHINE, "m1", TENANT)
    await node.turn()
    desired = await node.store.read(TENANT, "a")
    assert desired.membership is None
    await node.report("a", generation=desired.generation, phase="Free")
    await node.turn()
    assert await node.get("m1") is None and await node.holder("a") == ""


async def test_a_pass_that_was_lost_before_its_status_was_written_changes_nothing(node: Node) -> None:
    await node.asks(kubernetesVersion=NEW)
    await node.says("Prepared")
    await node.turn()
    before = await node.upgrade()
    await node.job_ends({"succeeded": 1})
    await node.kube.merge(kinds.BYO_MACHINE, "m1", TENANT, {"status": {"upgrade": before.model_dump(by_alias=True)}}, subresource="status")
    await node.turn()
    asked = await node.asked()
    assert asked is not None and (asked.request, asked.phase, await node.state()) == (before.request, "install", "Installing")


def test_a_node_is_excused_for_a_bounded_time_and_only_while_it_is_upgraded() -> None:
    since = CLOCK.now()
    for state, excused in (("Preparing", False), ("Draining", True), ("Installing", True), ("Verifying", True), ("Done", False), ("Failed", False)):
        until = exempt_until(NodeUpgradeStatus.model_validate({"state": state, "stateSince": rfc3339(since)}))
        assert (until is not None) is excused and (until is None or until - since == EXEMPT <= timedelta(hours=1))
    assert exempt_until(NodeUpgradeStatus.model_validate({"state": "Draining", "stateSince": "nonsense"})) is None
