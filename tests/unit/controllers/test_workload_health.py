"""WorkloadReady: the canary is deployed, read, and its verdict written beside other conditions. Both clusters are simulated, and the kubelet is played."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from ckp.api import kinds, names
from ckp.api.platform import InstalledRelease, Releases
from ckp.clients.kube import KubeError, Obj
from ckp.controllers.workload import WorkloadClients
from ckp.controllers.workload_health.canary import Canary
from ckp.controllers.workload_health.reconciler import WorkloadHealthReconciler
from ckp.kits.clock import rfc3339
from ckp.rules.conditions import get_condition
from tests.simulators.clock import ManualClock
from tests.simulators.kube import KubeSimulator
from tests.unit.rules.test_admission import configuration
from tests.unit.rules.test_workload_health import node, pod

TENANT = "ckp-default-default"
LABELS = {"app.kubernetes.io/name": "ckp-canary"}


def releases(image: str = "v1.35.1-ckp@sha256:0") -> Releases:
    return Releases(releases={"v1.35.1": InstalledRelease(name="v1.35.1", stamp="v1.35.1-ckp", registry="r:5000/ckp", images={"kubeadm": image}, bundles={})})


class Bench:
    """A control plane that answers, and the cluster behind it."""

    def __init__(self) -> None:
        self.kube = KubeSimulator(manager="ckp-controllers", namespaces=(TENANT,))
        self.workload = KubeSimulator(manager="ckp-controllers", namespaces=("kube-system",))
        self.clock = ManualClock(datetime(2026, 4, 1, tzinfo=UTC))
        self.restart()

    def restart(self, image: str = "v1.35.1-ckp@sha256:0") -> None:
        self.reconciler = WorkloadHealthReconciler(self.kube, self.clock, releases(image), WorkloadClients(lambda _: self.workload))

    async def start(self, *, initialized: bool = True, cni: str = "cilium", pods: str = "10.42.0.0/16", **status: Any) -> None:
        meta = {"name": "demo", "namespace": TENANT, "labels": {names.CLUSTER_NAME_LABEL: "demo"}}
        network = {"pods": {"cidrBlocks": [pods]}}
        await self.kube.create({"apiVersion": kinds.CLUSTER.api_version, "kind": "Cluster", "metadata": meta, "spec": {"clusterNetwork": network}})
        spec = {"version": "v1.35.1", "addons": {"cni": cni}}
        await self.kube.create({"apiVersion": kinds.MANAGED_CONTROL_PLANE.api_version, "kind": "ManagedControlPlane", "metadata": meta, "spec": spec})
        ready = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-04-01T00:00:00Z"}
        full = {"initialized": initialized, "conditions": [ready], **status}
        await self.kube.merge(kinds.MANAGED_CONTROL_PLANE, "demo", TENANT, {"status": full}, subresource="status")
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "demo-kubeconfig", "namespace": TENANT}}
        await self.kube.create({**secret, "data": {"value": base64.b64encode(b"{}").decode()}})
        await self.inside(kinds.DEPLOYMENT, {"metadata": {"name": "coredns"}, "spec": {}, "status": {"availableReplicas": 2}})

    async def inside(self, kind: kinds.Kind, obj: Obj) -> None:
        """Make or replace an object of the workload cluster, with its status."""
        namespace = "kube-system" if kind.namespaced else None
        name = obj["metadata"]["name"]
        if await self.workload.get(kind, name, namespace) is not None:
            await self.workload.delete(kind, name, namespace)
        meta = {**obj["metadata"], **({"namespace": namespace} if namespace else {})}
        await self.workload.create({"apiVersion": kind.api_version, "kind": kind.kind, "spec": {}, **obj, "metadata": meta})
        if "status" in obj:
            await self.workload.merge(kind, name, namespace, {"status": obj["status"]}, subresource="status")

    async def canary(self, **state: Any) -> None:
        await self.inside(kinds.NODE, node("w1"))
        await self.inside(kinds.POD, pod(**state, labels=LABELS))

    async def look(self, after: float = 0) -> tuple[str, str, str, float | None]:
        """Status, reason and message of the condition after a pass, and the seconds until the next."""
        self.clock.advance(after)
        result = await self.reconciler.reconcile(TENANT, "demo")
        plane = await self.kube.get(kinds.MANAGED_CONTROL_PLANE, "demo", TENANT)
        assert plane is not None
        assert (get_condition(plane, "Ready") or {})["status"] == "True", "the control plane's own conditions are its controller's"
        found = get_condition(plane, "WorkloadReady") or {}
        return found.get("status", ""), found.get("reason", ""), found.get("message", ""), result.after


@pytest.fixture
async def bench() -> Bench:
    made = Bench()
    await made.start()
    return made


async def test_from_the_first_node_to_a_pod_that_works(bench: Bench) -> None:
    assert await bench.look() == ("False", "NoNode", "the cluster has no node yet", 2.0)
    deployment = bench.workload.stored(kinds.DEPLOYMENT, "ckp-canary", "kube-system")
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == "r:5000/ckp/kubeadm:v1.35.1-ckp@sha256:0"
    await bench.canary(ready="False", state={"waiting": {"reason": "ContainerCreating"}})
    assert (await bench.look(2))[:2] == ("False", "PodNotStarted")
    await bench.canary()
    assert await bench.look(2) == ("True", "", "", 30.0)


async def test_nothing_is_said_before_the_api_server_has_answered_once() -> None:
    bench = Bench()
    await bench.start(initialized=False)
    assert await bench.look() == ("", "", "", None)
    assert ("apply", "Deployment", "ckp-canary") not in bench.workload.calls


async def test_what_breaks_later_is_told_within_a_minute_and_what_only_moves_is_not(bench: Bench) -> None:
    await bench.canary()
    assert (await bench.look())[0] == "True"
    await bench.canary(ready="False")
    assert await bench.look(29) == ("True", "", "", 2.0), "it may be moving to another node"
    assert (await bench.look(2))[:2] == ("False", "APINotReached")
    await bench.canary()
    assert (await bench.look(2))[0] == "True"


async def test_what_the_probe_printed_is_in_the_message(bench: Bench) -> None:
    await bench.canary(ready="False")
    bench.workload.stored(kinds.POD, "p", "kube-system")["status"]["phase"] = "Running"
    for number, text in enumerate(("Startup probe failed: old", "Readiness probe failed: dial tcp: lookup kubernetes.default.svc: i/o timeout")):
        await bench.inside(
            kinds.EVENT,
            {
                "metadata": {"name": f"e{number}"},
                "reason": "Unhealthy",
                "involvedObject": {"kind": "Pod", "name": "p"},
                "lastTimestamp": f"2026-04-01T00:0{number}:00Z",
                "message": text,
            },
        )
    status, reason, message, _ = await bench.look()
    assert (status, reason) == ("False", "NameNotResolved") and message.endswith("dial tcp: lookup kubernetes.default.svc: i/o timeout")


async def test_events_are_asked_for_when_there_is_something_to_explain_and_not_at_each_look(bench: Bench) -> None:
    def asked() -> int:
        return [(verb, kind) for verb, kind, _ in bench.workload.calls].count(("list", "Event"))

    await bench.canary()
    await bench.look()
    assert asked() == 0, "a canary that is ready"
    await bench.canary(ready="False")
    await bench.look(31)
    assert asked() == 0, "its pod does not run yet, so that no probe has printed anything"
    bench.workload.stored(kinds.POD, "p", "kube-system")["status"]["phase"] = "Running"
    for _ in range(5):
        await bench.look(2)
    assert asked() == 1
    failed = {"metadata": {"name": "e"}, "reason": "Unhealthy", "involvedObject": {"kind": "Pod", "name": "p"}, "message": "probe failed: lookup x"}
    await bench.inside(kinds.EVENT, failed)
    await bench.inside(kinds.EVENT, {**failed, "metadata": {"name": "o"}, "involvedObject": {"kind": "Pod", "name": "other"}, "lastTimestamp": "2027"})
    assert (await bench.look(2))[1] == "NameNotResolved" and asked() == 2


async def test_what_can_not_be_seen_is_unknown(bench: Bench) -> None:
    await bench.canary()
    await bench.look()
    bench.workload.on_fault(lambda verb, kind, name: KubeError("get Deployment: timed out", code=0))
    assert (await bench.look(10))[0] == "True", "one request that failed is no news"
    assert await bench.look(25) == ("Unknown", "ClusterNotReached", "the cluster's API server can't be asked: get Deployment: timed out", 15.0)


async def test_after_a_restart_of_the_controllers_what_is_seen_is_written_at_once(bench: Bench) -> None:
    await bench.canary()
    await bench.look()
    bench.restart()
    await bench.canary(ready="False")
    assert (await bench.look())[0] == "False"


async def test_a_canary_that_was_removed_or_is_of_another_version_is_applied_again(bench: Bench) -> None:
    await bench.look()
    await bench.workload.delete(kinds.DEPLOYMENT, "ckp-canary", "kube-system")
    await bench.look()
    assert bench.workload.stored(kinds.DEPLOYMENT, "ckp-canary", "kube-system")
    writes = bench.workload.version
    await bench.look()
    assert bench.workload.version == writes, "what is as it should be is not written"
    bench.restart("v1.35.2-ckp@sha256:1")
    await bench.look()
    container = bench.workload.stored(kinds.DEPLOYMENT, "ckp-canary", "kube-system")["spec"]["template"]["spec"]["containers"][0]
    assert container["image"].endswith("v1.35.2-ckp@sha256:1")


async def test_a_cluster_without_a_network_plugin_says_so() -> None:
    bench = Bench()
    await bench.start(cni="none")
    await bench.inside(kinds.NODE, node("w1", "False", "cni plugin not initialized"))
    status, reason, message, _ = await bench.look()
    assert (status, reason) == ("False", "NoNetwork") and "made with cni none" in message


async def test_a_cluster_of_0_2_0_stays_ready_until_its_canary_has_started() -> None:
    bench = Bench()
    step = {"number": 1, "phase": "p", "name": "ClusterReady", "title": "t", "state": "Done"}
    await bench.start(steps=[step])
    await bench.canary(ready="False", state={"waiting": {"reason": "ContainerCreating"}})
    assert await bench.look() == ("", "", "", 2.0)
    assert (await bench.look(301))[:2] == ("False", "PodNotStarted"), "not for ever"
    await bench.canary()
    assert (await bench.look(2))[0] == "True"


def daemon_set(name: str, *, wanted: int, there: int, ready: int) -> Obj:
    status = {"desiredNumberScheduled": wanted, "currentNumberScheduled": there, "numberReady": ready}
    return {"metadata": {"name": name}, "spec": {"template": {"metadata": {"labels": {"k8s-app": name}}}}, "status": status}


@pytest.mark.parametrize(
    ("agents", "endpoint", "blocked"),
    [
        (daemon_set("konnectivity-agent", wanted=1, there=0, ready=0), True, True),  # nobody reaches the backend, and no agent can be created
        (daemon_set("konnectivity-agent", wanted=2, there=1, ready=1), False, True),  # its only pod went with a node
        (daemon_set("konnectivity-agent", wanted=2, there=1, ready=1), True, False),
        (daemon_set("konnectivity-agent", wanted=1, there=1, ready=0), False, False),  # no pod is missing: it only starts
    ],
)
async def test_a_webhook_that_keeps_the_systems_pods_away_is_named(bench: Bench, agents: Obj, endpoint: bool, blocked: bool) -> None:
    await bench.canary(ready="False")
    await bench.inside(kinds.DAEMON_SET, agents)
    await bench.inside(kinds.VALIDATING_WEBHOOK, configuration())
    await bench.workload.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "policy"}})
    subsets = [{"addresses": [{"ip": "10.42.0.9"}]}] if endpoint else []
    await bench.workload.create({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "engine", "namespace": "policy"}, "subsets": subsets})
    status, reason, message, _ = await bench.look()
    assert (status, reason == "WebhookBlocks") == ("False", blocked)
    assert ("the webhook pods.policy.example of the ValidatingWebhookConfiguration policy refuses every pod" in message) is blocked


async def test_a_node_without_room_in_the_pod_network_is_named_though_another_works() -> None:
    bench = Bench()
    await bench.start(pods="10.42.0.0/24")
    await bench.canary()
    await bench.inside(kinds.NODE, node("w2", "False", cidr=""))
    await bench.inside(kinds.DAEMON_SET, daemon_set("cilium", wanted=2, there=2, ready=1))
    status, reason, message, _ = await bench.look()
    assert (status, reason) == ("False", "PodNetworkFull") and "10.42.0.0/24 has room for 1 node" in message


async def test_a_ready_node_whose_network_plugin_fails_is_named_after_some_minutes() -> None:
    bench = Bench()
    await bench.start()
    await bench.canary()
    await bench.inside(kinds.NODE, node("w2"))
    labels = {"k8s-app": "cilium"}
    cilium = daemon_set("cilium", wanted=2, there=2, ready=1)
    await bench.inside(kinds.DAEMON_SET, {**cilium, "spec": {**cilium["spec"], "selector": {"matchLabels": labels}}})
    ready = {"type": "Ready", "status": "False", "lastTransitionTime": rfc3339(bench.clock.now())}
    waits = {"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": {"message": "no device"}}}
    status = {"conditions": [ready], "containerStatuses": [waits]}
    await bench.inside(kinds.POD, {"metadata": {"name": "cilium-x", "labels": labels}, "spec": {"nodeName": "w2"}, "status": status})
    assert (await bench.look())[0] == "True", "it may start"
    status_, reason, message, _ = await bench.look(181)
    assert (status_, reason) == ("False", "NodeNetworkNotReady") and message.endswith("cilium-x does not run: CrashLoopBackOff no device")


@pytest.mark.parametrize("what", ["paused", "deletion", "gone"])
async def test_a_cluster_that_is_paused_or_goes_is_left_alone(bench: Bench, what: str) -> None:
    if what == "paused":
        await bench.kube.merge(kinds.CLUSTER, "demo", TENANT, {"spec": {"paused": True}})
    elif what == "deletion":
        await bench.kube.merge(kinds.CLUSTER, "demo", TENANT, {"metadata": {"annotations": {names.DELETE_REQUESTED_ANNOTATION: "now"}}})
    else:
        await bench.kube.delete(kinds.CLUSTER, "demo", TENANT)
    assert await bench.look() == ("", "", "", None)
    assert ("apply", "Deployment", "ckp-canary") not in bench.workload.calls


async def test_a_version_that_is_no_longer_installed_is_said(bench: Bench) -> None:
    bench.reconciler.releases = Releases(releases={})
    assert (await bench.look())[:2] == ("Unknown", "UnknownVersion")


def test_the_canary_asks_by_name_as_itself_and_needs_no_rights() -> None:
    made = {obj["kind"]: obj for obj in Canary("i", "k8s.example").manifests()}
    assert set(made) == {"ServiceAccount", "ConfigMap", "Deployment"}, "no role, no binding"
    config = json.loads(made["ConfigMap"]["data"]["kubeconfig.json"])
    assert config["clusters"][0]["cluster"] == {
        "server": "https://kubernetes.default.svc.k8s.example",
        "certificate-authority": "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt",
    }
    assert config["users"][0]["user"] == {"tokenFile": "/var/run/secrets/kubernetes.io/serviceaccount/token"}
    spec = made["Deployment"]["spec"]["template"]["spec"]
    assert spec["serviceAccountName"] == "ckp-canary" and not any("emptyDir" in volume for volume in spec["volumes"])
    assert not [toleration for toleration in spec["tolerations"] if "key" not in toleration], "it would go back to a node that is being drained"
    container = spec["containers"][0]
    assert container["startupProbe"]["exec"] == container["readinessProbe"]["exec"]
