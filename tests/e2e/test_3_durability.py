"""State survives the death of any pod and a power cut of the management host; everything comes back by itself."""

from __future__ import annotations

import json

import pytest

from ckp.clients.compass import Session, read_config
from ckp.kits.errors import CkpError
from tests.e2e.conftest import PLAIN, WORKERS, World

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("well")]


ASK = """
import json, ssl, time, urllib.request
context = ssl.create_default_context(cafile="/var/run/secrets/kubernetes.io/serviceaccount/ca.crt")
end, asked, failed = time.monotonic() + SECONDS, 0, []
while time.monotonic() < end:
    asked += 1
    try: urllib.request.urlopen("https://kubernetes.default.svc.cluster.local/livez", context=context, timeout=10).read()
    except Exception as error: failed.append(f"{time.monotonic() - end + SECONDS:.1f} s: {error}")
    time.sleep(0.1)
print(json.dumps([asked, failed]))
"""


def mark(world: World, name: str) -> None:
    """Something that only the cluster's etcd knows."""
    world.kubectl("create", "configmap", name, "-n", "default", "--from-literal=kept=yes")


def kept(world: World, name: str) -> bool:
    done = world.kubectl("get", "configmap", name, "-n", "default", "-o", "json", check=False)
    return done.code == 0 and json.loads(done.stdout)["data"] == {"kept": "yes"}


def test_every_pod_of_the_control_plane_may_die(world: World) -> None:
    mark(world, "before-pods-die")
    before = {pod["metadata"]["uid"] for pod in json.loads(world.management("get", "pods", "-n", "ckp-default-default", "-o", "json").stdout)["items"]}
    world.management("delete", "pods", "-n", "ckp-default-default", "-l", "app.kubernetes.io/component in (etcd,apiserver,controller-manager,scheduler)")
    world.wait(lambda: kept(world, "before-pods-die"), "the API server answers with what it knew", timeout=180)
    after = json.loads(world.management("get", "pods", "-n", "ckp-default-default", "-o", "json").stdout)["items"]
    fresh = [pod for pod in after if pod["metadata"]["uid"] not in before]
    assert len(fresh) >= 4


@pytest.mark.long
def test_pods_reach_the_api_server_while_it_is_replaced(world: World) -> None:
    """With one replica, too: each request is a new connection through the Service `kubernetes`."""
    container = {"name": "ask", "image": world.image, "command": ["python3", "-c", ASK.replace("SECONDS", "90")], "securityContext": PLAIN}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "asks-on"}, "spec": {"restartPolicy": "Never", "containers": [container]}}
    world.kubectl("apply", "-f", "-", stdin=json.dumps(pod))
    try:
        world.wait(lambda: world.get("pod", "asks-on")["status"]["phase"] == "Running", "the pod asks", timeout=120)
        world.management("rollout", "restart", "deployment/demo-apiserver", "-n", "ckp-default-default")

        def replaced() -> bool:
            found = json.loads(world.management("get", "deployment", "demo-apiserver", "-n", "ckp-default-default", "-o", "json").stdout)
            status = found["status"]
            return bool(status.get("observedGeneration") == found["metadata"]["generation"] and status.get("updatedReplicas") == status.get("replicas") == 1)

        world.wait(replaced, "the API server is another one", timeout=120)
        world.wait(lambda: world.get("pod", "asks-on")["status"]["phase"] == "Succeeded", "the pod has asked for long enough", timeout=180)
        asked, failed = json.loads(world.kubectl("logs", "asks-on").stdout)
    finally:
        world.kubectl("delete", "pod", "asks-on", "--ignore-not-found", "--wait=false", check=False)
    assert asked > 100 and failed == []


def test_the_pods_of_the_management_layer_may_die(world: World) -> None:
    session = Session(read_config())
    groups = session.get("/host-groups")
    world.management("delete", "pods", "-n", "ckp-system", "--all")

    def back() -> bool:
        try:
            return bool(session.get("/host-groups") == groups and sum(item["connected"] for item in session.get("/hosts")["items"]) >= WORKERS)
        except CkpError:
            return False

    world.wait(back, "Compass knows its groups and the agents are connected again", timeout=180)


def test_a_cluster_whose_dns_does_not_answer_is_not_ready_and_says_so(world: World) -> None:
    session = Session(read_config())
    before = int(world.get("deployment", "coredns", "-n", "kube-system")["spec"]["replicas"])
    world.kubectl("scale", "deployment/coredns", "-n", "kube-system", "--replicas=0")
    try:
        # Three probes that fail, the time for which True stays, and a poll.
        seen = world.wait(lambda: (found := session.get("/clusters/demo")) and not found["ready"] and found, "the cluster is not ready", timeout=240)
        assert "CoreDNS" in seen["message"]
        [condition] = [item for item in seen["conditions"] if item["type"] == "WorkloadReady"]
        assert (condition["status"], condition["reason"]) == ("False", "DNSNotReady")
    finally:
        world.kubectl("scale", "deployment/coredns", "-n", "kube-system", f"--replicas={before}")
    world.wait(lambda: session.get("/clusters/demo")["ready"], "the cluster is ready again", timeout=240)


def test_a_power_cut_of_the_management_host(world: World) -> None:
    mark(world, "before-the-cut")
    session = Session(read_config())
    requests = {item["id"] for item in session.get("/host-requests")["items"]}
    host = world.hosts.management
    host.power_cut()
    assert not host.running
    host.start()

    def back() -> bool:
        try:
            connected = sum(item["connected"] for item in session.get("/hosts")["items"])
            ready = session.get("/clusters/demo")["ready"]
        except CkpError:
            return False
        return bool(kept(world, "before-the-cut") and connected >= WORKERS and ready)

    world.wait(back, "cluster, Compass and agents are back", timeout=420)
    assert {item["id"] for item in session.get("/host-requests")["items"]} == requests

    def nodes_ready() -> bool:
        nodes = json.loads(world.kubectl("get", "nodes", "-o", "json", check=False).stdout or '{"items": []}')["items"]
        states = [{item["type"]: item["status"] for item in node["status"]["conditions"]}["Ready"] for node in nodes]
        return states == ["True"] * WORKERS

    world.wait(nodes_ready, "the nodes are Ready", timeout=180)
    world.wait(lambda: world.kubectl("logs", "-n", "kube-system", "ds/konnectivity-agent", "--tail=1", check=False).code == 0, "logs work again", timeout=120)
