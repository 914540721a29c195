"""Addons of a cluster, against a simulated API server; a Job's controller is played by hand."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from ckp.api import kinds, names
from ckp.api.platform import InstalledRelease, Releases
from ckp.clients.kube import KubeError, Obj
from ckp.controllers.addons.addon import Addon, HelmAddon, merged
from ckp.controllers.addons.reconciler import AddonsReconciler
from ckp.controllers.addons.registry import ADDONS
from ckp.controllers.workload import WorkloadClients
from tests.simulators.clock import ManualClock
from tests.simulators.kube import KubeSimulator

TENANT = "ckp-default-default"
IMAGES = {"cilium": "v1.19.5", "cilium-operator-generic": "v1.19.5"}
RELEASE = InstalledRelease(name="v1.35.1", stamp="v1.35.1-ckp", registry="r:5000/ckp", images=IMAGES, bundles={}, cni={"cilium": "v1.19.5"})
SITE: dict[str, dict[str, object]] = {"cilium": {"operator": {"replicas": 2}, "securityContext": {"privileged": True}}}


class Bench:
    """A control plane whose API server answers."""

    def __init__(self, addons: dict[str, Addon] | None = None, **release: Any) -> None:
        self.kube = KubeSimulator(manager="ckp-controllers", namespaces=(TENANT,))
        self.release = RELEASE.model_copy(update=release)
        releases = Releases(releases={"v1.35.1": self.release}, addon_values=SITE)
        self.clock = ManualClock(datetime(2026, 4, 1, tzinfo=UTC))
        self.workload = KubeSimulator(manager="ckp-controllers", namespaces=("kube-system", "calico-system"))
        self.reconciler = AddonsReconciler(
            self.kube, self.clock, releases, "r:5000/ckp/addons:v1", addons or ADDONS, clients=WorkloadClients(lambda _: self.workload)
        )

    def offer(self, release: InstalledRelease) -> None:
        self.reconciler.releases = self.reconciler.releases.with_releases([release])

    async def start(self, cni: str = "cilium", *, ready: bool = True) -> None:
        meta = {"name": "demo", "namespace": TENANT, "labels": {names.CLUSTER_NAME_LABEL: "demo"}}
        await self.kube.create({"apiVersion": kinds.CLUSTER.api_version, "kind": "Cluster", "metadata": meta, "spec": {}})
        spec = {"version": "v1.35.1", "addons": {"cni": cni}, "controlPlaneEndpoint": {"host": "10.0.0.1", "port": 6443}}
        await self.kube.create({"apiVersion": kinds.MANAGED_CONTROL_PLANE.api_version, "kind": "ManagedControlPlane", "metadata": meta, "spec": spec})
        await self.kube.merge(kinds.MANAGED_CONTROL_PLANE, "demo", TENANT, {"status": {"ready": ready}}, subresource="status")
        kubeconfig = {"name": "demo-kubeconfig", "namespace": TENANT}
        await self.kube.create({"apiVersion": "v1", "kind": "Secret", "metadata": kubeconfig, "data": {"value": base64.b64encode(b"{}").decode()}})

    async def pass_once(self) -> tuple[list[dict[str, str]], float | None]:
        result = await self.reconciler.reconcile(TENANT, "demo")
        plane = await self.kube.get(kinds.MANAGED_CONTROL_PLANE, "demo", TENANT)
        assert plane is not None
        return plane["status"].get("addons", []), result.after

    async def job(self) -> Obj:
        [found] = await self.kube.list(kinds.JOB, TENANT)
        return found

    async def record(self, release: str, revision: int, status: str, namespace: str = "kube-system") -> None:
        """A revision as helm's driver for Secrets stores it."""
        labels = {"owner": "helm", "name": release, "status": status, "version": str(revision)}
        meta = {"name": f"sh.helm.release.v1.{release}.v{revision}", "namespace": namespace, "labels": labels}
        await self.workload.create({"apiVersion": "v1", "kind": "Secret", "type": "helm.sh/release.v1", "metadata": meta, "data": {"release": ""}})

    async def records(self) -> list[str]:
        return [f"{obj['metadata']['name']} {obj['metadata']['labels']['status']}" for obj in self.workload.all_stored(kinds.SECRET)]

    async def pod(self, name: str, job: str, status: dict[str, Any], **meta: Any) -> None:
        labels = {names.CLUSTER_NAME_LABEL: "demo", "app.kubernetes.io/component": "addon-cilium"}
        metadata = {"name": name, "namespace": TENANT, "labels": labels, "ownerReferences": [{"kind": "Job", "name": job, "uid": "u"}], **meta}
        await self.kube.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {}})
        await self.kube.merge(kinds.POD, name, TENANT, {"status": status}, subresource="status")

    async def become(self, **status: Any) -> None:
        await self.kube.merge(kinds.JOB, (await self.job())["metadata"]["name"], TENANT, {"status": status}, subresource="status")


async def test_the_network_is_installed_by_a_job_with_the_releases_and_the_sites_values() -> None:
    bench = Bench()
    await bench.start()
    addons, after = await bench.pass_once()
    assert addons == [{"name": "cilium", "version": "v1.19.5", "state": "Installing", "message": "helm is installing the chart"}] and after
    job = await bench.job()
    config = await bench.kube.get(kinds.CONFIG_MAP, job["metadata"]["name"], TENANT)
    assert config is not None
    values = json.loads(config["data"]["values.json"])
    assert values["k8sServiceHost"] == "10.0.0.1" and values["image"]["override"] == "r:5000/ckp/cilium:v1.19.5"
    assert values["operator"]["replicas"] == 2 and values["operator"]["image"] and values["securityContext"] == {"privileged": True}
    await bench.become(succeeded=1)
    addons, after = await bench.pass_once()
    assert addons == [{"name": "cilium", "version": "v1.19.5", "state": "Installed"}] and after is None


async def test_a_job_that_failed_is_started_again() -> None:
    bench = Bench()
    await bench.start()
    await bench.pass_once()
    await bench.become(conditions=[{"type": "Failed", "status": "True"}])
    [addon], after = await bench.pass_once()
    assert addon["state"] == "Installing" and "failed and is started again" in addon["message"] and after
    bench.clock.advance(5)
    await bench.pass_once()
    assert await bench.job()


@pytest.mark.parametrize("state", ["pending-install", "pending-upgrade", "pending-rollback"])
async def test_a_release_that_a_killed_helm_left_pending_is_cleared_before_the_next_try(state: str) -> None:
    """helm refuses to go on from it: another operation (install/upgrade/rollback) is in progress."""
    bench = Bench()
    await bench.start()
    await bench.pass_once()
    await bench.record("cilium", 1, "deployed")
    await bench.record("cilium", 2, state)
    await bench.record("other", 7, state)  # whose helm may be at work right now
    await bench.pass_once()
    assert len(await bench.records()) == 3, "while the Job runs, it is that helm's own"
    await bench.become(conditions=[{"type": "Failed", "status": "True"}])
    await bench.pass_once()
    bench.clock.advance(5)
    await bench.pass_once()
    assert await bench.records() == ["sh.helm.release.v1.cilium.v1 deployed", f"sh.helm.release.v1.other.v7 {state}"]
    assert (await bench.job())["spec"]["backoffLimit"] == 0, "each further try begins with a look at what the last one left"


async def test_any_addon_goes_on_after_a_killed_helm() -> None:
    bench = Bench({"calico": HelmAddon("calico", lambda plan: {}, namespace="calico-system")}, cni={"calico": "v3.30.5"})
    await bench.start("calico")
    await bench.record("calico", 1, "pending-install", "calico-system")
    await bench.pass_once()
    assert await bench.records() == [] and await bench.job()


async def test_no_second_helm_is_started_beside_one_that_runs() -> None:
    bench = Bench()
    await bench.start()
    await bench.pass_once()
    first = (await bench.job())["metadata"]["name"]
    await bench.pod("p", first, {"phase": "Running"})
    await bench.record("cilium", 1, "pending-install")
    newer = Bench(cni={"cilium": "v1.19.6"})  # the same cluster, seen by controllers that were upgraded meanwhile
    reconciler = AddonsReconciler(bench.kube, bench.clock, newer.reconciler.releases, "i", clients=WorkloadClients(lambda _: bench.workload))
    await reconciler.reconcile(TENANT, "demo")
    plane = await bench.kube.get(kinds.MANAGED_CONTROL_PLANE, "demo", TENANT)
    assert plane is not None and plane["status"]["addons"][0]["message"] == "an earlier installation of cilium is being ended (pod p)"
    assert await bench.kube.list(kinds.JOB, TENANT) == [] and len(await bench.records()) == 1
    await bench.kube.delete(kinds.POD, "p", TENANT)
    await reconciler.reconcile(TENANT, "demo")
    assert (await bench.job())["metadata"]["name"] != first and await bench.records() == []


async def test_a_pod_on_a_node_that_is_gone_does_not_hold_an_addon_up_for_ever() -> None:
    bench = Bench()
    await bench.start()
    await bench.pod("p", "demo-cilium-old", {"phase": "Running"}, finalizers=["x/y"])
    bench.kube.stored(kinds.POD, "p", TENANT)["metadata"]["deletionTimestamp"] = "2026-04-01T00:00:00Z"
    assert "being ended" in (await bench.pass_once())[0][0]["message"]
    bench.clock.advance(301)
    assert (await bench.pass_once())[0][0]["message"] == "helm is installing the chart"


async def test_what_helm_said_last_is_shown_and_the_pauses_grow() -> None:
    bench = Bench()
    await bench.start()
    said = {"exitCode": 1, "message": "level=INFO\nError: UPGRADE FAILED: timed out waiting\n"}
    for pause in (5, 10, 20):
        await bench.pass_once()
        name = (await bench.job())["metadata"]["name"]
        await bench.pod(f"p{pause}", name, {"phase": "Failed", "containerStatuses": [{"state": {"terminated": said}}]})
        await bench.become(conditions=[{"type": "Failed", "status": "True"}])
        [addon], _ = await bench.pass_once()
        assert addon["message"] == f"the Job {name} failed and is started again: Error: UPGRADE FAILED: timed out waiting"
        bench.clock.advance(pause - 1)
        await bench.pass_once()
        assert await bench.kube.list(kinds.JOB, TENANT) == []
        bench.clock.advance(1)


async def test_a_cluster_that_does_not_answer_is_named_and_no_job_is_started() -> None:
    bench = Bench()
    await bench.start()
    bench.workload.on_fault(lambda verb, kind, name: KubeError("list Secret: connection refused", code=0))
    [addon], after = await bench.pass_once()
    assert addon["message"] == "the cluster's API server can't be reached: list Secret: connection refused" and after
    assert await bench.kube.list(kinds.JOB, TENANT) == []


async def test_another_version_is_another_job() -> None:
    first, second = Bench(), Bench(cni={"cilium": "v1.19.6"})
    for bench in (first, second):
        await bench.start()
        await bench.pass_once()
    assert (await first.job())["metadata"]["name"] != (await second.job())["metadata"]["name"]


@pytest.mark.parametrize(("cni", "ready"), [("none", True), ("cilium", False)])
async def test_nothing_is_installed_that_was_not_requested_or_before_the_api_server_answers(cni: str, ready: bool) -> None:
    bench = Bench()
    await bench.start(cni, ready=ready)
    assert await bench.pass_once() == ([], None)
    assert await bench.kube.list(kinds.JOB, TENANT) == []


async def test_what_the_release_does_not_have_is_unavailable_and_named() -> None:
    bench = Bench(cni={})
    await bench.start()
    assert await bench.pass_once() == ([{"name": "cilium", "state": "Unavailable", "message": "release v1.35.1 has no chart cilium"}], None)


async def test_what_this_version_of_ckp_cannot_install_is_unavailable_and_named() -> None:
    bench = Bench()
    await bench.start("antrea")
    [addon], _ = await bench.pass_once()
    assert addon["state"] == "Unavailable" and addon["message"] == "this version of CKP cannot install antrea, only: cilium"


async def test_a_new_addon_is_an_entry_of_the_registry() -> None:
    other = HelmAddon("calico", lambda plan: {"host": plan.host}, namespace="calico-system")
    bench = Bench({"calico": other}, cni={"calico": "v3.30.5"})
    await bench.start("calico")
    [addon], _ = await bench.pass_once()
    assert (addon["name"], addon["version"]) == ("calico", "v3.30.5")
    command: Sequence[str] = (await bench.job())["spec"]["template"]["spec"]["containers"][0]["command"]
    assert command[:6] == ["/usr/local/bin/helm", "upgrade", "--install", "calico", "/charts/calico", "--namespace=calico-system"]


def test_values_go_over_values_table_by_table() -> None:
    assert merged({"a": {"b": 1, "c": 2}, "d": 1}, {"a": {"b": 3}, "d": {"e": 1}}) == {"a": {"b": 3, "c": 2}, "d": {"e": 1}}
    assert merged({"a": {"b": 1}}, {"a": 2}) == {"a": 2}


def test_registered_names_are_those_of_the_addons() -> None:
    assert {name: addon.name for name, addon in ADDONS.items()} == {name: name for name in ADDONS}


async def test_each_release_installs_the_charts_of_its_own() -> None:
    """The management layer's charts are those of one release; another one's may have other versions."""
    bench = Bench(cni={"cilium": "v1.18.2"})
    bench.offer(bench.release.model_copy(update={"addons": "r:5000/ckp/ckp-addons:v1@sha256:older"}))
    await bench.start()
    await bench.pass_once()
    assert (await bench.job())["spec"]["template"]["spec"]["containers"][0]["image"] == "r:5000/ckp/ckp-addons:v1@sha256:older"
    earlier = Bench()
    await earlier.start()
    await earlier.pass_once()
    of_layer = (await earlier.job())["spec"]["template"]["spec"]["containers"][0]["image"]
    assert of_layer == "r:5000/ckp/addons:v1", "a table of an earlier version names none"


async def test_a_cluster_does_not_change_when_another_release_is_added() -> None:
    bench = Bench()
    bench.offer(bench.release.model_copy(update={"addons": "r:5000/ckp/ckp-addons:v1@sha256:a"}))
    await bench.start()
    await bench.pass_once()
    await bench.become(succeeded=1)
    before = (await bench.pass_once(), await bench.job())
    bench.offer(RELEASE.model_copy(update={"name": "v1.36.0", "cni": {"cilium": "v1.20.0"}, "addons": "r:5000/ckp/ckp-addons:v1@sha256:b"}))
    assert (await bench.pass_once(), await bench.job()) == before
