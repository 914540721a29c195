"""ByoHost: what its controller keeps beside it, against a simulated API server."""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ckp.api import kinds, names
from ckp.api.host_protocol import AgentTarget, RegistryLogin
from ckp.api.platform import InstalledRelease, Releases
from ckp.controllers.__main__ import login_of
from ckp.controllers.providers.byo.desired import DesiredStore
from ckp.controllers.providers.byo.host import ByoHostReconciler
from ckp.kits.clock import rfc3339
from ckp.kits.errors import InvalidInput
from ckp.rules.conditions import get_condition
from tests.simulators.clock import ManualClock
from tests.simulators.kube import KubeSimulator

TENANT = "ckp-default-default"
OLD, NEW = "0.1.0+1-ckp", "0.2.0+2-ckp"
AGENTS = {OLD: "r/ckp/ckp-agent@sha256:" + "1" * 64, NEW: "r/ckp/ckp-agent@sha256:" + "2" * 64}
RELEASES = Releases(releases={}, agents=AGENTS, registry_ca="CA")


@pytest.fixture
async def kube() -> KubeSimulator:
    made = KubeSimulator(manager="ckp-controllers", namespaces=(TENANT, names.HOSTS_NAMESPACE))
    await made.create({"apiVersion": kinds.BYO_HOST.api_version, "kind": "ByoHost", "metadata": {"name": "one", "namespace": TENANT}, "spec": {}})
    return made


async def announced(kube: KubeSimulator) -> str:
    secret = await kube.get(kinds.SECRET, f"{TENANT}.one", names.HOSTS_NAMESPACE)
    assert secret is not None
    return str(secret["metadata"]["annotations"][names.CERTIFICATES_ANNOTATION])


async def test_it_says_beside_the_desired_state_which_certificates_hold(kube: KubeSimulator) -> None:
    reconciler = ByoHostReconciler(kube, ManualClock(datetime(2026, 4, 1, tzinfo=UTC)), RELEASES)
    await kube.merge(kinds.BYO_HOST, "one", TENANT, {"status": {"agent": {"certificateSerial": "a1"}}}, subresource="status")
    await reconciler.reconcile(TENANT, "one")
    assert await announced(kube) == "current=a1 next= revoked="
    await kube.merge(kinds.BYO_HOST, "one", TENANT, {"spec": {"revokedSerial": "a1"}})
    await reconciler.reconcile(TENANT, "one")
    assert await announced(kube) == "current=a1 next= revoked=a1"


async def test_a_host_of_which_nothing_was_said_is_told_to_be_free_and_a_membership_is_never_overwritten(kube: KubeSimulator) -> None:
    store = DesiredStore(kube)
    reconciler = ByoHostReconciler(kube, ManualClock(datetime(2026, 4, 1, tzinfo=UTC)), RELEASES)
    await reconciler.reconcile(TENANT, "one")
    assert (await store.read(TENANT, "one")).membership is None
    before = (await store.read(TENANT, "one")).generation
    await store.write(TENANT, "one", None)
    assert (await store.read(TENANT, "one")).generation == before, "nothing new was said"
    assert await announced(kube) == "current= next= revoked=", "and the announcement outlives the next desired state"


async def test_unchanged_certificates_cost_nothing(kube: KubeSimulator) -> None:
    reconciler = ByoHostReconciler(kube, ManualClock(datetime(2026, 4, 1, tzinfo=UTC)), RELEASES)
    await reconciler.reconcile(TENANT, "one")
    await reconciler.reconcile(TENANT, "one")
    calls = len(kube.calls)
    await reconciler.reconcile(TENANT, "one")
    assert [call[1] for call in kube.calls[calls:]] == ["ByoHost"], "the host itself is read, no Secret"


async def test_with_the_host_its_desired_state_goes(kube: KubeSimulator) -> None:
    reconciler = ByoHostReconciler(kube, ManualClock(datetime(2026, 4, 1, tzinfo=UTC)), RELEASES)
    await reconciler.reconcile(TENANT, "one")
    await kube.delete(kinds.BYO_HOST, "one", TENANT)
    await reconciler.reconcile(TENANT, "one")
    assert await kube.get(kinds.SECRET, f"{TENANT}.one", names.HOSTS_NAMESPACE) is None
    assert await kube.get(kinds.BYO_HOST, "one", TENANT) is None


async def test_a_host_that_comes_and_goes_is_not_stable_until_its_time_is_over(kube: KubeSimulator) -> None:
    clock = ManualClock(datetime(2026, 4, 1, tzinfo=UTC))
    reconciler = ByoHostReconciler(kube, clock, RELEASES)

    async def condition() -> dict[str, str]:
        host = await kube.get(kinds.BYO_HOST, "one", TENANT)
        assert host is not None
        return dict(get_condition(host, "Stable") or {})

    for _ in range(2):
        clock.advance(60)
        lost = [{"type": "AgentConnected", "status": "False", "reason": "Silent", "message": "", "lastTransitionTime": rfc3339(clock.now())}]
        hub = kube.as_manager("ckp-hub")
        body = {"apiVersion": kinds.BYO_HOST.api_version, "kind": "ByoHost", "metadata": {"name": "one", "namespace": TENANT}, "status": {"conditions": lost}}
        await hub.apply(body, subresource="status")
        result = await reconciler.reconcile(TENANT, "one")
    said = [
        {
            "type": "AgentConnected",
            "status": "False",
            "reason": "Disconnected",
            "message": "",
            "lastTransitionTime": rfc3339(clock.now() + timedelta(seconds=1)),
        }
    ]
    await hub.apply(body | {"status": {"conditions": said}}, subresource="status")
    result = await reconciler.reconcile(TENANT, "one")
    assert (await condition())["reason"] == "Flapping"
    assert "2 times" in (await condition())["message"], "a goodbye is no loss"
    assert result.after is not None and 30 <= result.after <= 32, "it is looked at again when its time is over"
    clock.advance(result.after)
    await reconciler.reconcile(TENANT, "one")
    assert (await condition())["status"] == "True"


async def test_the_login_to_the_registry_is_handed_to_the_host_and_follows_its_file(kube: KubeSimulator, tmp_path: Path) -> None:
    file = tmp_path / "login.json"
    reconciler = ByoHostReconciler(kube, ManualClock(datetime(2026, 4, 1, tzinfo=UTC)), RELEASES, registry_login=lambda: login_of(file))

    async def said() -> RegistryLogin | None:
        await reconciler.reconcile(TENANT, "one")
        secret = await kube.get(kinds.SECRET, f"{TENANT}.one", names.HOSTS_NAMESPACE)
        assert secret is not None
        raw = secret["data"].get(names.REGISTRY_KEY)
        return RegistryLogin.model_validate_json(base64.b64decode(raw)) if raw else None

    assert await said() is None
    for basic in ("bm9kZTpvbmU=", "bm9kZTp0d28="):
        login = RegistryLogin(registry="images.example.test:5443", basic=basic)
        file.write_text(login.model_dump_json())
        assert await said() == login and basic not in repr(login)
    await DesiredStore(kube).write(TENANT, "one", None)
    assert await said() is not None, "a new membership does not overwrite it"
    file.unlink()
    assert await said() is None
    file.write_text('{"basic": "secret"}')
    with pytest.raises(InvalidInput, match="can't be read") as caught:
        await said()
    assert "secret" not in caught.value.render()


async def test_a_wanted_version_of_the_agent_is_said_with_its_way_back_until_it_runs(kube: KubeSimulator) -> None:
    reconciler = ByoHostReconciler(kube, ManualClock(datetime(2026, 4, 1, tzinfo=UTC)), RELEASES)

    async def said() -> AgentTarget | None:
        await reconciler.reconcile(TENANT, "one")
        secret = await kube.get(kinds.SECRET, f"{TENANT}.one", names.HOSTS_NAMESPACE)
        assert secret is not None
        raw = secret["data"].get("agent.json")
        return AgentTarget.model_validate_json(base64.b64decode(raw)) if raw else None

    assert await said() is None
    await kube.merge(kinds.BYO_HOST, "one", TENANT, {"status": {"agent": {"version": OLD}}}, subresource="status")
    await kube.merge(kinds.BYO_HOST, "one", TENANT, {"spec": {"agentVersion": NEW}})
    assert await said() == AgentTarget(version=NEW, image=AGENTS[NEW], fallback_image=AGENTS[OLD], registry_ca="CA")
    await DesiredStore(kube).write(TENANT, "one", None)
    assert await said() is not None, "a new membership does not overwrite it"
    await kube.merge(kinds.BYO_HOST, "one", TENANT, {"status": {"agent": {"version": NEW}}}, subresource="status")
    assert await said() is None
    await kube.merge(kinds.BYO_HOST, "one", TENANT, {"spec": {"agentVersion": "9.9.9-ckp"}})
    assert await said() is None, "what no registry holds is not asked for"


async def claimed(kube: KubeSimulator) -> None:
    """The host in a cluster, with its machines."""
    labels = {"cluster.x-k8s.io/cluster-name": "demo"}
    machine = {"apiVersion": kinds.MACHINE.api_version, "kind": "Machine", "metadata": {"name": "demo-1", "namespace": TENANT}, "spec": {"version": "v1.35.1"}}
    core = await kube.create(machine)
    reference = {"apiVersion": core["apiVersion"], "kind": "Machine", "name": "demo-1", "uid": core["metadata"]["uid"]}
    meta = {"name": "byo-1", "namespace": TENANT, "labels": labels, "ownerReferences": [reference]}
    byo = await kube.create({"apiVersion": kinds.BYO_MACHINE.api_version, "kind": "ByoMachine", "metadata": meta, "spec": {}})
    await kube.merge(kinds.BYO_HOST, "one", TENANT, {"spec": {"machineRef": {"name": "byo-1", "uid": byo["metadata"]["uid"]}}})


async def test_a_host_is_drained_by_kubectl_and_uncordoned_when_that_is_taken_back(kube: KubeSimulator) -> None:
    release = InstalledRelease(name="v1.35.1", stamp="v1.35.1-ckp", registry="r:5000/ckp", images={"kubeadm": "v1.35.1-ckp@sha256:0"}, bundles={})
    reconciler = ByoHostReconciler(kube, ManualClock(datetime(2026, 4, 1, tzinfo=UTC)), Releases(releases={"v1.35.1": release}))

    async def step() -> tuple[str, str]:
        """The Drained condition after a pass, and the command of the newest Job."""
        await reconciler.reconcile(TENANT, "one")
        host = await kube.get(kinds.BYO_HOST, "one", TENANT)
        assert host is not None
        jobs = sorted(await kube.list(kinds.JOB, TENANT), key=lambda job: int(job["metadata"]["resourceVersion"]))
        command = jobs[-1]["spec"]["template"]["spec"]["containers"][0]["command"] if jobs else []
        found = get_condition(host, "Drained") or {}
        return f"{found.get('status', '')} {found.get('reason', '')}".strip(), " ".join(command[:3])

    async def finish(**status: object) -> None:
        jobs = sorted(await kube.list(kinds.JOB, TENANT), key=lambda job: int(job["metadata"]["resourceVersion"]))
        await kube.merge(kinds.JOB, jobs[-1]["metadata"]["name"], TENANT, {"status": status}, subresource="status")

    await claimed(kube)
    assert await step() == ("", ""), "nobody asked"
    await kube.merge(kinds.BYO_HOST, "one", TENANT, {"spec": {"drain": "2026-04-01T00:00:00Z"}})
    assert await step() == ("False Draining", "/usr/local/bin/kubectl drain one")
    await finish(conditions=[{"type": "Failed", "status": "True"}])
    assert (await step())[0] == "False DrainFailed"
    assert (await step())[0] == "False Draining", "it is tried again"
    await finish(succeeded=1)
    assert (await step())[0] == "True"
    await kube.merge(kinds.BYO_HOST, "one", TENANT, {"spec": {"drain": None}})
    assert await step() == ("False Uncordoning", "/usr/local/bin/kubectl uncordon one")
    await finish(succeeded=1)
    assert (await step())[0] == ""
    host = await kube.get(kinds.BYO_HOST, "one", TENANT)
    assert host is not None and "drainedFor" not in host["status"]


@pytest.mark.parametrize(("setting", "seconds"), [({"nodeDrainTimeout": "25m0s"}, 1500), ({}, 600), ({"nodeDrainTimeout": "0s"}, 600)])
async def test_a_drain_for_maintenance_has_as_long_as_one_for_deletion(kube: KubeSimulator, setting: dict[str, str], seconds: int) -> None:
    """One setting, the Machine's nodeDrainTimeout; without an end to it (0 in Cluster API), the default."""
    release = InstalledRelease(name="v1.35.1", stamp="v1.35.1-ckp", registry="r:5000/ckp", images={"kubeadm": "v1.35.1-ckp@sha256:0"}, bundles={})
    reconciler = ByoHostReconciler(kube, ManualClock(datetime(2026, 4, 1, tzinfo=UTC)), Releases(releases={"v1.35.1": release}))
    await claimed(kube)
    await kube.merge(kinds.MACHINE, "demo-1", TENANT, {"spec": setting})
    await kube.merge(kinds.BYO_HOST, "one", TENANT, {"spec": {"drain": "2026-04-01T00:00:00Z"}})
    await reconciler.reconcile(TENANT, "one")
    [job] = await kube.list(kinds.JOB, TENANT)
    command = job["spec"]["template"]["spec"]["containers"][0]["command"]
    assert f"--timeout={seconds}s" in command and job["spec"]["activeDeadlineSeconds"] > seconds
    assert not any(option.startswith(("--grace-period", "--disable-eviction")) for option in command), "pods keep their grace periods and budgets"
    await reconciler.reconcile(TENANT, "one")
    host = await kube.get(kinds.BYO_HOST, "one", TENANT)
    assert host is not None and f"at most {seconds // 60}m" in (get_condition(host, "Drained") or {})["message"]


async def test_a_long_name_makes_no_job_that_the_api_server_refuses(kube: KubeSimulator) -> None:
    """A Job's name becomes a label of its pods, of at most 63 characters (Kubernetes: Job names)."""
    release = InstalledRelease(name="v1.35.1", stamp="v1.35.1-ckp", registry="r:5000/ckp", images={"kubeadm": "v1.35.1-ckp@sha256:0"}, bundles={})
    reconciler = ByoHostReconciler(kube, ManualClock(datetime(2026, 4, 1, tzinfo=UTC)), Releases(releases={"v1.35.1": release}))
    await claimed(kube)
    found = await kube.get(kinds.BYO_HOST, "one", TENANT)
    assert found is not None
    name = "h" * 39 + "-" + "x" * 13
    await kube.create({**found, "metadata": {"name": name, "namespace": TENANT}, "spec": found["spec"] | {"drain": "2026-04-01T12:00:00Z"}})
    await reconciler.reconcile(TENANT, name)
    (job,) = await kube.list(kinds.JOB, TENANT)
    assert len(job["metadata"]["name"]) <= 63 and re.fullmatch(r"drain-h{39}-[0-9a-f]{8}", job["metadata"]["name"])
