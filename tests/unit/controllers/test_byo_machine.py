"""ByoMachine: claims when what the controller knows is older than what is, against a simulated API server (see docs/how-to/chaos.md)."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import yaml

from ckp.api import kinds, names
from ckp.api.kinds import Kind
from ckp.api.objects.byo_machine import ByoMachine
from ckp.api.platform import Releases
from ckp.clients.kube import KubeError, Obj
from ckp.controllers.providers.byo.desired import DesiredStore
from ckp.controllers.providers.byo.host import ByoHostReconciler
from ckp.controllers.providers.byo.machine import ByoMachineReconciler
from ckp.controllers.workload import WorkloadClients
from ckp.kits.clock import parse_rfc3339, rfc3339
from ckp.kits.errors import CkpError
from ckp.rules.conditions import get_condition
from ckp.runtime.informer import Informer
from tests.chaos.parts import RELEASES, VERSION
from tests.chaos.world import CLOUD_CONFIG
from tests.simulators.clock import ManualClock
from tests.simulators.kube import KubeSimulator

TENANT = "ckp-default-default"
CLOCK = ManualClock(datetime(2026, 4, 1, tzinfo=UTC))


class Bench:
    """A cluster, its machines, and a reconciler whose copy of the hosts is as old as the test wants it."""

    def __init__(self) -> None:
        self.kube = KubeSimulator(manager="ckp-controllers", namespaces=(TENANT, names.HOSTS_NAMESPACE))
        self.hosts = Informer(self.kube, kinds.BYO_HOST, TENANT)
        self.cluster = KubeSimulator(manager="ckp-controllers", namespaces=("default",))
        self.machines = ByoMachineReconciler(self.kube, CLOCK, self.hosts, RELEASES, WorkloadClients(lambda _kubeconfig: self.cluster))
        self.host_reconciler = ByoHostReconciler(self.kube, CLOCK, Releases(releases={}))
        self.store = DesiredStore(self.kube)

    async def see(self) -> None:
        """The controller's copy becomes what is now."""
        await self.hosts._list()

    async def create(self, kind: Kind, name: str, spec: dict[str, Any], status: dict[str, Any] | None = None, **metadata: Any) -> Obj:
        body = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": {"name": name, "namespace": TENANT, **metadata}, "spec": spec}
        made = await self.kube.create(body)
        return await self.kube.merge(kind, name, TENANT, {"status": status}, subresource="status") if status else made

    async def host(self, name: str) -> None:
        facts = {"os_id": "debian", "os_version": "12", "default_address": "10.0.0.9"}
        await self.create(kinds.BYO_HOST, name, {}, {"agent": {"connected": True}, "observed": {"phase": "Free", "generation": 0}, "facts": facts})

    async def machine(self, name: str) -> None:
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": f"{name}-data", "namespace": TENANT}}
        await self.kube.create({**secret, "data": {"value": base64.b64encode(CLOUD_CONFIG.encode()).decode()}})
        labels = {names.CLUSTER_NAME_LABEL: "demo"}
        spec = {"clusterName": "demo", "version": VERSION, "bootstrap": {"dataSecretName": f"{name}-data"}}
        machine = await self.create(kinds.MACHINE, name, spec, labels=labels)
        owners = [{"apiVersion": machine["apiVersion"], "kind": "Machine", "name": name, "uid": machine["metadata"]["uid"]}]
        await self.create(kinds.BYO_MACHINE, name, {}, labels=labels, ownerReferences=owners)

    async def report(self, host: str, **observed: Any) -> None:
        await self.kube.merge(kinds.BYO_HOST, host, TENANT, {"status": {"observed": observed}}, subresource="status")

    async def holder(self, host: str) -> str:
        found = await self.kube.get(kinds.BYO_HOST, host, TENANT)
        assert found is not None
        return str(((found.get("spec") or {}).get("machineRef") or {}).get("name", ""))

    async def get(self, name: str) -> Obj | None:
        return await self.kube.get(kinds.BYO_MACHINE, name, TENANT)


@pytest.fixture
async def bench() -> Bench:
    made = Bench()
    await made.create(kinds.CLUSTER, "demo", {}, {"infrastructureReady": True})
    return made


async def test_a_machine_that_does_not_see_its_own_claim_yet_takes_no_second_host(bench: Bench) -> None:
    await bench.host("b")
    await bench.machine("m1")
    await bench.see()
    await bench.machines.reconcile(TENANT, "m1")
    claimed = await bench.kube.get(kinds.BYO_HOST, "b", TENANT)
    await bench.host("a")
    await bench.see()
    assert claimed is not None
    bench.hosts._cache[(TENANT, "b")] = {**claimed, "spec": {}}  # news of `a` came, that of the claim has not
    await bench.machines.reconcile(TENANT, "m1")
    assert (await bench.holder("a"), await bench.holder("b")) == ("", "m1")


async def test_a_machine_that_does_not_see_its_own_claim_yet_waits_for_its_host_when_it_goes(bench: Bench) -> None:
    await bench.host("a")
    await bench.machine("m1")
    await bench.see()
    await bench.machines.reconcile(TENANT, "m1")
    await bench.report("a", generation=1, phase="Joining", cluster=f"{TENANT}/demo", machine="m1")
    await bench.kube.delete(kinds.BYO_MACHINE, "m1", TENANT)
    await bench.machines.reconcile(TENANT, "m1")
    assert await bench.get("m1") is not None, "its host is not clean"
    assert (await bench.store.read(TENANT, "a")).membership is None
    await bench.report("a", generation=2, phase="Free")
    await bench.machines.reconcile(TENANT, "m1")
    assert await bench.get("m1") is None and await bench.holder("a") == ""


@pytest.mark.parametrize("forced", [False, True])
async def test_a_machine_that_goes_leaves_alone_the_host_that_another_one_has_claimed_since(bench: Bench, forced: bool) -> None:
    await bench.host("a")
    await bench.machine("m1")
    await bench.see()
    await bench.machines.reconcile(TENANT, "m1")
    await bench.see()  # the copy from here on: m1 holds it
    host = await bench.kube.get(kinds.BYO_HOST, "a", TENANT)
    assert host is not None
    await bench.kube.replace({**host, "spec": {}})  # m1 gave it up, and what it wanted to write after that failed
    await bench.machine("m2")
    stale = dict(bench.hosts._cache)
    await bench.see()
    await bench.machines.reconcile(TENANT, "m2")
    bench.hosts._cache = stale
    if forced:
        await bench.kube.merge(kinds.BYO_MACHINE, "m1", TENANT, {"metadata": {"annotations": {names.FORCE_RELEASE_ANNOTATION: "true"}}})
    await bench.kube.delete(kinds.BYO_MACHINE, "m1", TENANT)
    await bench.machines.reconcile(TENANT, "m1")
    assert await bench.holder("a") == "m2"
    membership = (await bench.store.read(TENANT, "a")).membership
    assert membership is not None and membership.machine == "m2"
    assert await bench.get("m1") is None


async def test_a_host_that_is_no_longer_free_is_not_claimed_whatever_was_seen_before(bench: Bench) -> None:
    await bench.host("a")
    await bench.machine("m1")
    await bench.see()
    await bench.report("a", generation=0, phase="Resetting")
    await bench.machines.reconcile(TENANT, "m1")
    assert await bench.holder("a") == ""


async def test_a_host_that_is_still_another_machines_node_does_not_make_this_one_ready(bench: Bench) -> None:
    """After a forced release the host comes back, is told to be the next machine, and says so before it has begun: of the same cluster, Joined."""
    await bench.host("a")
    await bench.machine("m1")
    await bench.see()
    await bench.machines.reconcile(TENANT, "m1")
    for machine, ready in (("m0", False), ("m1", True)):
        await bench.report("a", generation=1, phase="Joined", cluster=f"{TENANT}/demo", machine=machine)
        await bench.machines.reconcile(TENANT, "m1")
        found = await bench.get("m1")
        assert found is not None and found["status"]["ready"] is ready


async def joined(bench: Bench) -> None:
    """Machine m1 is the node of host a."""
    await bench.host("a")
    await bench.machine("m1")
    await bench.see()
    await bench.machines.reconcile(TENANT, "m1")
    await bench.report("a", generation=1, phase="Joined", cluster=f"{TENANT}/demo", machine="m1")
    await bench.see()
    await bench.machines.reconcile(TENANT, "m1")


@pytest.mark.parametrize("how", ["removed", "taken away"])
async def test_a_node_whose_host_is_lost_fails_and_takes_no_second_one(bench: Bench, how: str) -> None:
    """Contract (InfraMachine): failureReason and failureMessage are terminal; providerID is the node's, and does not change."""
    await joined(bench)
    await bench.host("b")
    host = await bench.kube.get(kinds.BYO_HOST, "a", TENANT)
    assert host is not None
    if how == "removed":
        await bench.kube.delete(kinds.BYO_HOST, "a", TENANT)
    else:
        await bench.kube.replace({**host, "spec": {}})
    before = await bench.get("m1")
    await bench.see()
    await bench.machines.reconcile(TENANT, "m1")
    after = await bench.get("m1")
    assert before is not None and after is not None
    assert await bench.holder("b") == "" and after["spec"]["providerID"] == before["spec"]["providerID"]
    assert after["status"]["ready"] is False and after["status"]["failureReason"] == "UpdateError"
    assert after["status"]["failureMessage"] == "host a, whose node it was, was removed or taken from it"
    await bench.kube.delete(kinds.BYO_MACHINE, "m1", TENANT)
    await bench.machines.reconcile(TENANT, "m1")
    assert await bench.get("m1") is None, "nothing holds it up"


async def test_a_node_keeps_its_host_while_the_controllers_copy_does_not_have_it(bench: Bench) -> None:
    """After a restart the copy may lag behind: a node fails for what the API server says, never for what the copy lacks."""
    await joined(bench)
    bench.hosts._cache.clear()
    await bench.machines.reconcile(TENANT, "m1")
    found = await bench.get("m1")
    assert found is not None and found["status"]["ready"] is True and "failureReason" not in found["status"]


async def test_a_machine_whose_host_goes_before_it_joined_takes_another_one(bench: Bench) -> None:
    await bench.host("a")
    await bench.machine("m1")
    await bench.see()
    await bench.machines.reconcile(TENANT, "m1")
    await bench.kube.delete(kinds.BYO_HOST, "a", TENANT)
    await bench.host("b")
    await bench.see()
    await bench.machines.reconcile(TENANT, "m1")
    found = await bench.get("m1")
    assert await bench.holder("b") == "m1" and found is not None and "failureReason" not in found["status"]


async def kubeconfig_there(bench: Bench) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "demo-kubeconfig", "namespace": TENANT}}
    await bench.kube.create({**secret, "data": {"value": base64.b64encode(b"the kubeconfig").decode()}})


@pytest.mark.parametrize(
    ("identity", "stays"),
    [
        (f"byoh://{TENANT}/a/0ld0ld00", False),
        (f"byoh://{TENANT}/b/0ld0ld00", True),  # of another host: not ours to remove
        ("aws:///eu/i-1", True),
        ("", True),
    ],
)
async def test_a_node_that_an_earlier_machine_left_goes_before_the_host_joins(bench: Bench, identity: str, stays: bool) -> None:
    """Chaos on real hosts, seed 6: the API server was away for the ten seconds in which Cluster API deletes a Node; the next kubelet took it over."""
    await kubeconfig_there(bench)
    await bench.cluster.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"}, "spec": {"providerID": identity}})
    await bench.host("a")
    await bench.machine("m1")
    await bench.see()
    await bench.machines.reconcile(TENANT, "m1")
    assert (await bench.cluster.get(kinds.NODE, "a") is not None) is stays
    membership = (await bench.store.read(TENANT, "a")).membership
    assert membership is not None and membership.files


async def test_a_node_of_this_machine_stays(bench: Bench) -> None:
    await kubeconfig_there(bench)
    await bench.host("a")
    await bench.machine("m1")
    found = await bench.get("m1")
    assert found is not None
    identity = names.provider_id(TENANT, "a", found["metadata"]["uid"])
    await bench.cluster.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"}, "spec": {"providerID": identity}})
    await bench.see()
    for _ in range(2):
        await bench.machines.reconcile(TENANT, "m1")
    assert await bench.cluster.get(kinds.NODE, "a") is not None


async def test_no_host_joins_a_cluster_whose_nodes_cannot_be_seen(bench: Bench) -> None:
    await kubeconfig_there(bench)
    bench.cluster.on_fault(lambda _verb, _kind, _name: KubeError("get Node a: timed out", code=0))
    await bench.host("a")
    await bench.machine("m1")
    await bench.see()
    result = await bench.machines.reconcile(TENANT, "m1")
    found = await bench.get("m1")
    assert result.after is not None and found is not None
    assert found["status"]["conditions"][0]["reason"] == "ClusterNotReached" and (await bench.store.read(TENANT, "a")).membership is None
    bench.cluster.on_fault(None)
    await bench.machines.reconcile(TENANT, "m1")
    assert (await bench.store.read(TENANT, "a")).membership is not None


async def test_what_is_written_to_a_host_that_is_removed_meanwhile_is_taken_back(bench: Bench) -> None:
    await bench.host("a")
    await bench.machine("m1")
    await bench.see()
    removed = False
    write = bench.kube.create

    async def late(obj: Obj) -> Obj:
        nonlocal removed
        if obj["kind"] == "Secret" and not removed:
            removed = True
            await bench.kube.delete(kinds.BYO_HOST, "a", TENANT)
            await bench.host_reconciler.reconcile(TENANT, "a")
        return await write(obj)

    bench.kube.create = late  # type: ignore[method-assign]
    await bench.machines.reconcile(TENANT, "m1")
    assert removed
    assert await bench.kube.get(kinds.SECRET, f"{TENANT}.a", names.HOSTS_NAMESPACE) is None


async def test_a_host_that_nobody_holds_is_not_told_to_be_what_was_left_behind(bench: Bench) -> None:
    """A removed host is enrolled again under its name, and the desired state of before is still there."""
    await bench.host("a")
    await bench.machine("m1")
    await bench.see()
    await bench.machines.reconcile(TENANT, "m1")
    before = await bench.store.read(TENANT, "a")
    assert before.membership is not None
    await bench.host_reconciler.reconcile(TENANT, "a")
    assert await bench.store.read(TENANT, "a") == before, "what is held is left alone"
    await bench.kube.delete(kinds.BYO_HOST, "a", TENANT)
    await bench.kube.merge(kinds.BYO_HOST, "a", TENANT, {"metadata": {"finalizers": []}})
    await bench.host("a")
    await ByoHostReconciler(bench.kube, CLOCK, Releases(releases={})).reconcile(TENANT, "a")
    after = await bench.store.read(TENANT, "a")
    assert (after.membership, after.generation) == (None, before.generation + 1)


async def test_a_host_that_nobody_holds_and_that_works_for_a_machine_all_the_same_is_told_to_be_free(bench: Bench) -> None:
    """A controller that was killed had its last write still under way: it arrives when the machine has gone."""
    await bench.host("a")
    await bench.machine("m1")
    await bench.see()
    await bench.host_reconciler.reconcile(TENANT, "a")
    await bench.machines.reconcile(TENANT, "m1")
    host = await bench.kube.get(kinds.BYO_HOST, "a", TENANT)
    assert host is not None and (await bench.store.read(TENANT, "a")).membership is not None
    await bench.kube.replace({**host, "spec": {}})
    await bench.report("a", generation=2, phase="Installing", cluster=f"{TENANT}/demo", machine="m1")
    await bench.host_reconciler.reconcile(TENANT, "a")
    assert (await bench.store.read(TENANT, "a")).membership is None


async def test_of_two_that_tell_a_host_something_the_later_one_does_not_overwrite_what_it_has_not_read(bench: Bench) -> None:
    await bench.store.write(TENANT, "a", None)
    await bench.host("a")
    await bench.machine("m1")
    await bench.see()
    put = bench.store._put
    old, version = await bench.store._read(TENANT, "a")
    await bench.machines.reconcile(TENANT, "m1")
    with pytest.raises(KubeError) as refused:
        await put(TENANT, "a", old.model_copy(update={"generation": old.generation + 1}), version)
    assert refused.value.reason == "Conflict"
    assert (await bench.store.read(TENANT, "a")).membership is not None


async def condition(bench: Bench, name: str) -> tuple[str, str]:
    machine = await bench.get(name)
    assert machine is not None
    found = get_condition(machine, "BYOHostReady") or {}
    return str(found.get("reason")), str(found.get("message"))


async def test_a_host_of_a_system_without_a_bundle_is_passed_over_and_said(bench: Bench) -> None:
    await bench.host("a")
    await bench.kube.merge(kinds.BYO_HOST, "a", TENANT, {"status": {"facts": {"os_id": "ubuntu", "os_version": "24.04"}}}, subresource="status")
    await bench.machine("m1")
    await bench.see()
    await bench.machines.reconcile(TENANT, "m1")
    reason, message = await condition(bench, "m1")
    assert reason == "NoFreeHost" and f"there is no bundle of {VERSION} for ubuntu-24.04" in message
    assert await bench.holder("a") == ""
    await bench.host("b")
    await bench.see()
    await bench.machines.reconcile(TENANT, "m1")
    assert await bench.holder("b") == "m1"


async def test_what_no_waiting_mends_stands_in_the_machines_condition(bench: Bench) -> None:
    await bench.host("a")
    await bench.machine("m1")
    await bench.kube.merge(kinds.MACHINE, "m1", TENANT, {"spec": {"version": "v9.9.9"}})
    await bench.see()
    with pytest.raises(CkpError):
        await bench.machines.reconcile(TENANT, "m1")
    reason, message = await condition(bench, "m1")
    assert reason == "CannotProvision" and "v9.9.9 is not among the installed releases" in message
    assert await bench.holder("a") == ""


async def test_a_node_is_given_the_platforms_new_registry_without_being_asked_to_join_again(bench: Bench) -> None:
    await bench.host("a")
    await bench.machine("m1")
    await bench.see()
    await bench.machines.reconcile(TENANT, "m1")
    before = (await bench.store.read(TENANT, "a")).membership
    await bench.report("a", generation=1, phase="Joined", cluster=f"{TENANT}/demo", machine="m1")
    bench.machines.releases = RELEASES.model_copy(update={"registry_ca": "NEW CA"})
    await bench.machines.reconcile(TENANT, "m1")
    after = (await bench.store.read(TENANT, "a")).membership
    assert before is not None and after is not None
    assert after == before.model_copy(update={"registry_ca": "NEW CA", "bundle": after.bundle})
    assert (after.provider_id, after.machine, after.cluster) == (before.provider_id, before.machine, before.cluster), (
        "what the agent tells memberships apart by"
    )


async def test_a_hosts_name_is_its_nodes_in_the_join_configuration(bench: Bench) -> None:
    await bench.host("worker-1-2")
    await bench.machine("m1")
    await bench.see()
    await bench.machines.reconcile(TENANT, "m1")
    membership = (await bench.store.read(TENANT, "worker-1-2")).membership
    assert membership is not None
    config = next(file.content for file in membership.files if file.path == membership.join_config)
    assert yaml.safe_load(config)["nodeRegistration"]["name"] == membership.node_name == "worker-1-2"


TOKEN = "abcdef.0123456789abcdef"
JOIN_WITH_TOKEN = yaml.safe_dump({"kind": "JoinConfiguration", "discovery": {"bootstrapToken": {"token": TOKEN, "apiServerEndpoint": "10.0.0.1:6443"}}})


async def waiting_to_join(bench: Bench) -> str:
    """A machine that was given its host and join data; returns the providerID of the node that it is to become."""
    await kubeconfig_there(bench)
    await bench.cluster.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-system"}})
    await bench.host("a")
    await bench.machine("m1")
    data = {"write_files": [{"path": "/run/kubeadm/kubeadm-join-config.yaml", "content": JOIN_WITH_TOKEN}], "runcmd": ["kubeadm join"]}
    encoded = base64.b64encode(yaml.safe_dump(data).encode()).decode()
    await bench.kube.merge(kinds.SECRET, "m1-data", TENANT, {"data": {"value": encoded}})
    await bench.see()
    await bench.machines.reconcile(TENANT, "m1")
    membership = (await bench.store.read(TENANT, "a")).membership
    assert membership is not None
    return membership.provider_id


async def later(bench: Bench, seconds: float = 31) -> dict[str, Any]:
    """A pass some time later; the machine's condition after it."""
    CLOCK.advance(seconds)
    await bench.machines.reconcile(TENANT, "m1")
    machine = await bench.get("m1")
    assert machine is not None
    return get_condition(machine, "BYOHostReady") or {}


async def test_a_join_token_that_expired_while_its_host_was_away_is_made_again(bench: Bench) -> None:
    """Cluster API's bootstrap provider prolongs it from then on, but makes none that is missing."""
    await waiting_to_join(bench)
    assert (await later(bench, 5))["reason"] == "WaitingForHost"
    assert bench.cluster.all_stored(kinds.SECRET) == [], "the bootstrap provider has just made it, and is given time"
    condition = await later(bench)
    assert condition["reason"] == "JoinTokenRenewed" and condition["status"] == "False"
    assert condition["message"] == "the join token of host a had expired, and was made again: the host goes on with its next try"
    secret = bench.cluster.stored(kinds.SECRET, "bootstrap-token-abcdef", "kube-system")
    data = {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}
    assert secret["type"] == "bootstrap.kubernetes.io/token" and f"{data['token-id']}.{data['token-secret']}" == TOKEN
    assert (data["usage-bootstrap-signing"], data["usage-bootstrap-authentication"]) == ("true", "true")
    assert data["auth-extra-groups"] == "system:bootstrappers:kubeadm:default-node-token"
    assert parse_rfc3339(data["expiration"]) - CLOCK.now() == timedelta(minutes=15)
    assert (await later(bench))["reason"] == "WaitingForHost", "it is there: what the host does is the message again"


@pytest.mark.parametrize("evidence", ["report", "node", "machine", "deletion"])
async def test_the_token_of_a_machine_that_has_joined_or_goes_is_not_made_again(bench: Bench, evidence: str) -> None:
    identity = await waiting_to_join(bench)
    if evidence == "report":
        await bench.report("a", generation=1, phase="Joined", cluster=f"{TENANT}/demo", machine="m1")
    elif evidence == "node":  # its host's report has not come
        await bench.cluster.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"}, "spec": {"providerID": identity}})
    elif evidence == "machine":
        await bench.kube.merge(kinds.MACHINE, "m1", TENANT, {"status": {"nodeRef": {"name": "a"}}}, subresource="status")
    else:
        await bench.kube.delete(kinds.BYO_MACHINE, "m1", TENANT)
    await bench.see()
    for _ in range(3):
        await later(bench)
    assert bench.cluster.all_stored(kinds.SECRET) == []


async def test_a_token_that_is_there_is_left_to_the_bootstrap_provider(bench: Bench) -> None:
    await waiting_to_join(bench)
    meta = {"name": "bootstrap-token-abcdef", "namespace": "kube-system"}
    made = await bench.cluster.create({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": {"expiration": "eA=="}})
    for _ in range(2):
        assert (await later(bench))["reason"] == "WaitingForHost"
    assert bench.cluster.stored(kinds.SECRET, "bootstrap-token-abcdef", "kube-system") == made


async def test_a_cluster_that_does_not_answer_does_not_hide_what_the_host_reports(bench: Bench) -> None:
    await waiting_to_join(bench)
    bench.cluster.on_fault(lambda _verb, _kind, _name: KubeError("get Secret: timed out", code=0))
    await bench.report("a", generation=1, phase="Joining", cluster=f"{TENANT}/demo", machine="m1", message="kubeadm join: timed out", reason="JoinFailed")
    assert (await later(bench))["message"] == "kubeadm join: timed out"
    bench.cluster.on_fault(None)
    assert (await later(bench))["reason"] == "JoinTokenRenewed"


@pytest.mark.parametrize("joined", [False, True])
async def test_other_images_to_fetch_are_news_only_for_a_host_that_has_not_joined(bench: Bench, joined: bool) -> None:
    """A node of 0.2.0 is not told anything new by controllers that want one image more on new ones."""
    await bench.host("a")
    await bench.machine("m1")
    await bench.see()
    await bench.machines.reconcile(TENANT, "m1")
    membership = (await bench.store.read(TENANT, "a")).membership
    assert membership is not None
    more = membership.model_copy(update={"images": (*membership.images, "r:5000/ckp/another:v1")})
    assert (await bench.store.write(TENANT, "a", more, joined=joined)).generation == (1 if joined else 2)
    other = more.model_copy(update={"node_labels": ("a=b",)})
    assert (await bench.store.write(TENANT, "a", other, joined=joined)).generation == (2 if joined else 3)


async def test_a_machine_of_an_older_version_that_waits_for_volumes_gets_a_limit_and_is_looked_at_when_it_is_over(bench: Bench) -> None:
    """Of 0.2.0: no nodeVolumeDetachTimeout, so that a deletion with the API server gone never ended. Cluster API waits for volumes without a timer."""
    await bench.host("a")
    await bench.machine("m1")
    await bench.see()
    await bench.machines.reconcile(TENANT, "m1")
    found = await bench.kube.get(kinds.MACHINE, "m1", TENANT)
    assert found is not None and "nodeVolumeDetachTimeout" not in found["spec"], "it does not leave"
    await bench.kube.merge(kinds.MACHINE, "m1", TENANT, {"metadata": {"finalizers": ["machine.cluster.x-k8s.io"]}})
    await bench.kube.delete(kinds.MACHINE, "m1", TENANT)
    since = rfc3339(CLOCK.now() - timedelta(minutes=6))
    waiting = {"conditions": [{"type": "VolumeDetachSucceeded", "status": "False", "lastTransitionTime": since}]}
    await bench.kube.merge(kinds.MACHINE, "m1", TENANT, {"status": waiting}, subresource="status")
    await bench.machines.reconcile(TENANT, "m1")
    found = await bench.kube.get(kinds.MACHINE, "m1", TENANT)
    assert found is not None and found["spec"]["nodeVolumeDetachTimeout"] == "5m"
    await bench.machines.reconcile(TENANT, "m1")
    found = await bench.kube.get(kinds.MACHINE, "m1", TENANT)
    assert found is not None and found["metadata"]["annotations"][names.LOOK_ANNOTATION] == rfc3339(CLOCK.now())


async def test_when_its_node_was_first_ready_is_kept(bench: Bench) -> None:
    """A node that never was Ready is left to its start-up timeout, and one that was is not."""
    await bench.host("a")
    await bench.machine("m1")
    await bench.see()

    async def ready_at(node: str) -> str | None:
        healthy = {"conditions": [{"type": "NodeHealthy", "status": node}]}
        await bench.kube.merge(kinds.MACHINE, "m1", TENANT, {"status": healthy}, subresource="status")
        await bench.machines.reconcile(TENANT, "m1")
        found = await bench.get("m1")
        assert found is not None
        return ByoMachine.of(found).status.node_ready_at or None

    assert await ready_at("False") is None
    first = await ready_at("True")
    assert first == rfc3339(CLOCK.now())
    CLOCK.advance(60)
    assert await ready_at("Unknown") == first and await ready_at("True") == first


async def test_a_changed_time_for_fetching_images_reaches_a_host_at_the_next_pass_and_is_no_news_for_a_node(bench: Bench) -> None:
    await bench.kube.merge(kinds.CLUSTER, "demo", TENANT, {"spec": {"infrastructureRef": {"kind": "ByoCluster", "name": "demo"}}})
    await bench.create(kinds.BYO_CLUSTER, "demo", {})
    await bench.host("a")
    await bench.machine("m1")
    await bench.see()

    async def wanted(timeout: str) -> tuple[int, float]:
        await bench.kube.merge(kinds.BYO_CLUSTER, "demo", TENANT, {"spec": {"imageFetchTimeout": timeout}})
        await bench.machines.reconcile(TENANT, "m1")
        desired = await bench.store.read(TENANT, "a")
        assert desired.membership is not None
        return desired.generation, desired.membership.image_fetch_seconds

    assert await wanted("") == (1, 0.0), "as 0.2.0 made its clusters"
    assert await wanted("1h30m") == (2, 5400.0)
    assert await wanted("1h30m") == (2, 5400.0)
    await bench.report("a", generation=2, phase="Joined", cluster=f"{TENANT}/demo", machine="m1")
    await bench.machines.reconcile(TENANT, "m1")
    assert await wanted("2h") == (2, 5400.0), "its images were fetched long ago"


async def test_a_machine_gets_the_bundle_of_its_own_release_and_keeps_it_when_another_one_is_added(bench: Bench) -> None:
    def newer(text: str) -> str:
        return text.replace(VERSION, "v1.99.0").replace("@sha256:", "@sha256:f")

    offered = RELEASES.get(VERSION)
    added = type(offered).model_validate_json(newer(offered.model_dump_json()))
    assert added.bundles != offered.bundles and added.name == "v1.99.0"
    await bench.host("a")
    await bench.machine("m1")
    await bench.see()
    await bench.machines.reconcile(TENANT, "m1")
    before = await bench.store.read(TENANT, "a")
    assert before.membership is not None and before.membership.bundle.image == offered.bundles["debian-12"].image
    bench.machines.releases = RELEASES.with_releases([added])
    await bench.machines.reconcile(TENANT, "m1")
    assert await bench.store.read(TENANT, "a") == before
    await bench.host("b")
    await bench.machine("m2")
    await bench.kube.merge(kinds.MACHINE, "m2", TENANT, {"spec": {"version": "v1.99.0"}})
    await bench.see()
    await bench.machines.reconcile(TENANT, "m2")
    other = (await bench.store.read(TENANT, "b")).membership
    assert other is not None and (other.release, other.bundle.image) == ("v1.99.0", added.bundles["debian-12"].image)
