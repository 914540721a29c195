"""Clusters go from v1.33.7 over v1.34.3 to v1.35.1 in place, under clients that count what fails; and one soaks, goes back, and is committed.

`three` has three API servers and three members of etcd, `one` and `soaks` have one of each. All three releases are built for it.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ckp.clients.compass import Session, read_config
from ckp.site import lab
from tests.e2e.conftest import PLAIN, World, ckp
from tests.e2e.hosted import Hosted, create, hosted, more_hosts
from tests.support.busy_clients import Api, Busy, Written, asked, connections, reads

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.usefixtures("well")]

OLD, BETWEEN, NEW = "v1.33.7", "v1.34.3", "v1.35.1"
HOSTS = 3
WEB = (
    "import http.server as h\nclass H(h.BaseHTTPRequestHandler):\n def do_GET(s):\n  s.send_response(200); s.end_headers(); s.wfile.write(b'here')\n"
    " def log_message(s, *a): pass\nh.ThreadingHTTPServer(('', 8080), H).serve_forever()"
)
ASK = """
import time, urllib.request
asked = failed = 0
while True:
    asked += 1
    try: assert urllib.request.urlopen("http://web:8080/", timeout=5).read() == b"here"
    except Exception as error:
        failed += 1
        print(f"failed {asked}: {error}", flush=True)
    if asked % 50 == 0: print(f"asked {asked} failed {failed}", flush=True)
    time.sleep(0.05)
"""


@dataclass(frozen=True)
class Rolling:
    """A cluster that is upgraded, with what must not change."""

    cluster: Hosted

    @property
    def world(self) -> World:
        return self.cluster.world

    @property
    def name(self) -> str:
        return self.cluster.name

    def machines(self) -> dict[str, tuple[str, str]]:
        """Name -> uid and provider ID of each Machine."""
        found = self.cluster.managed("machines", "-l", f"cluster.x-k8s.io/cluster-name={self.name}")["items"]
        return {item["metadata"]["name"]: (item["metadata"]["uid"], item["spec"]["providerID"]) for item in found}

    def sets(self) -> set[str]:
        """The uids of MachineSets."""
        found = self.cluster.managed("machinesets", "-l", f"cluster.x-k8s.io/cluster-name={self.name}")["items"]
        return {item["metadata"]["uid"] for item in found}

    def nodes(self) -> dict[str, tuple[str, str]]:
        """Name -> uid and provider ID of each Node."""
        return {item["metadata"]["name"]: (item["metadata"]["uid"], item["spec"]["providerID"]) for item in self.world.get("nodes")["items"]}

    def kubelets(self) -> set[str]:
        return {item["status"]["nodeInfo"]["kubeletVersion"] for item in self.world.get("nodes")["items"]}

    def upgrade(self) -> Any:
        return json.loads(ckp("cluster", "upgrade", self.name, "-o", "json").stdout)


def template(world: World, name: str, program: str, **more: object) -> dict[str, Any]:
    container = {"name": "main", "image": world.image, "command": ["python3", "-c", program], "securityContext": PLAIN}
    return {"metadata": {"labels": {"app": name}}, "spec": {"containers": [container | more], "terminationGracePeriodSeconds": 15}}


def workload(world: World) -> list[dict[str, Any]]:
    """A service of two pods that are never both away, as its owner would write it, and a pod on each node that asks for it."""
    probe = {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1}
    web = template(world, "web", WEB, readinessProbe=probe, lifecycle={"preStop": {"exec": {"command": ["python3", "-c", "import time; time.sleep(5)"]}}})
    apart = {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}}}
    web["spec"]["topologySpreadConstraints"] = [apart | {"nodeTaintsPolicy": "Honor"}]
    asks = template(world, "asks", ASK)
    asks["spec"]["terminationGracePeriodSeconds"] = 0

    def made(kind: str, name: str, of: str, spec: dict[str, Any], version: str) -> dict[str, Any]:
        return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "labels": {"app": of}}, "spec": spec}

    def of(name: str) -> dict[str, Any]:
        return {"selector": {"matchLabels": {"app": name}}}

    return [
        made("Deployment", "web", "web", {**of("web"), "replicas": 2, "template": web}, "apps/v1"),
        made("PodDisruptionBudget", "web", "web", {**of("web"), "minAvailable": 1}, "policy/v1"),
        made("Service", "web", "web", {"selector": {"app": "web"}, "ports": [{"port": 8080}]}, "v1"),
        made("DaemonSet", "asks", "asks", {**of("asks"), "template": asks}, "apps/v1"),
    ]


@pytest.fixture(scope="module")
def releases(world: World) -> None:
    """The lab's site offers all three."""
    file = str(lab.state() / lab.FILE)
    for version in (OLD, BETWEEN):
        print(ckp("site", "release", "add", version, "-f", file, "--profile", "lab", timeout=3600).stdout)


@pytest.fixture(scope="module")
def session() -> Session:
    return Session(read_config())


@pytest.fixture(scope="module")
def hosts(world: World, session: Session) -> Iterator[None]:
    """Three hosts more than the main job's."""
    with more_hosts(world, session, HOSTS):
        yield


@pytest.fixture
def rolling(world: World, session: Session, releases: None, hosts: None, request: pytest.FixtureRequest) -> Iterator[Rolling]:
    """A cluster of this name, so many members and this release, on three workers, with a service that is used."""
    name, members, version = request.param
    try:
        create(world, name, 52, members, version=version, workers=HOSTS, size="1Gi")
        cluster = hosted(world, session, name, timeout=600)
        made = Rolling(cluster)
        for kind, items in (("deployment/web", workload(world)[:-1]), ("daemonset/asks", workload(world)[-1:])):  # nobody asks before somebody answers
            made.world.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
            made.world.kubectl("rollout", "status", kind, "--timeout=120s", timeout=150)
        yield made
    finally:
        ckp("cluster", "delete", name, "--force", "--wait", "--timeout", "5m", timeout=400, check=False)


def through_tunnels(api: Api) -> Callable[[], object]:
    """The log of a pod that stands on a node where nothing goes on, as its reader would choose it."""
    client = api.client()

    def once() -> None:
        listed = asked(lambda: client.get("/api/v1/nodes")).json()["items"]
        nodes = {item["metadata"]["name"] for item in listed if not item["spec"].get("unschedulable")}
        pods = asked(lambda: client.get("/api/v1/namespaces/default/pods", params={"labelSelector": "app=asks"})).json()["items"]
        free = [item["metadata"]["name"] for item in pods if item["spec"]["nodeName"] in nodes]
        chosen = random.choice(free)
        asked(lambda: client.get(f"/api/v1/namespaces/default/pods/{chosen}/log", params={"tailLines": 1}))

    return once


@pytest.mark.parametrize("rolling", [("three", 3, OLD), ("one", 1, OLD)], indirect=True, ids=["three", "one"])
def test_two_minors_in_place(rolling: Rolling, tmp_path: Path) -> None:
    world, name = rolling.world, rolling.name
    before = rolling.machines(), rolling.sets(), rolling.nodes()
    assert rolling.kubelets() == {f"{OLD}-ckp"}
    plan = ckp("cluster", "upgrade", name, "--to", NEW, "--plan").stdout
    print(plan)
    assert f"{BETWEEN}, {NEW}" in plan and rolling.cluster.status["version"] == OLD

    api = Api(rolling.cluster.server, rolling.cluster.context)
    written = Written(api)
    clients = [*(Busy(f"reads {number}", reads(api)) for number in (1, 2)), Busy("new connections", connections(api), 0.02)]
    clients += [Busy("writes", written.once, 0.02), Busy("logs", through_tunnels(api), 0.2)]
    with ExitStack() as ended:
        for client in clients:
            ended.callback(client.end)
            client.start()
        time.sleep(5)
        began = time.monotonic()
        print(ckp("cluster", "upgrade", name, "--to", NEW, timeout=2400).stdout)
        took = time.monotonic() - began
        time.sleep(5)
    lost = written.lost()
    row = rolling.upgrade()
    print(f"{name}: {took:.0f} s for two minors and {HOSTS} nodes")
    for client in clients:
        print(f"  {client.name}: {client.count.line()}", *client.count.said[:5], sep="\n    ")
    print(f"  watch: {len(written.seen)} of {len(written.acknowledged)} writes told by {written.watches} watches; broken: {written.broken[:5]}")
    from_pods, failed = 0, []
    for pod in world.get("pods", "-l", "app=asks")["items"]:
        said = world.kubectl("logs", pod["metadata"]["name"]).stdout.splitlines()
        print(f"  from {pod['spec']['nodeName']}: {said[-1]}", *[line for line in said if line.startswith("failed")][:5], sep="\n    ")
        from_pods += int(next(line for line in reversed(said) if line.startswith("asked")).split()[1])
        failed += [f"{pod['spec']['nodeName']}: {line}" for line in said if line.startswith("failed")]

    assert row["phase"] == "Done" and [node["state"] for node in row["nodes"]] == ["Done"] * HOSTS
    assert rolling.cluster.status["version"] == NEW and rolling.kubelets() == {f"{NEW}-ckp"}
    assert (rolling.machines(), rolling.sets(), rolling.nodes()) == before, "nothing was replaced"
    assert not any(item["spec"].get("unschedulable") or item["spec"].get("taints") for item in world.get("nodes")["items"])
    assert lost == []
    print(f"  {from_pods + sum(client.count.done for client in clients)} requests in all")
    assert failed == [], "the service was there for its pods all the time"
    if name == "three":
        assert {client.name: client.count.said for client in clients if client.count.failed} == {}


KEPT = "configmaps,secrets,serviceaccounts,services,deployments.apps,daemonsets.apps,poddisruptionbudgets.policy,roles.rbac,rolebindings.rbac,crds"


def objects(world: World) -> dict[str, Any]:
    """What people and programs have written, by kind, namespace and name; but for tokens of hosts that join, which come and go, and what is signed by them."""
    found = json.loads(world.kubectl("get", KEPT, "--all-namespaces", "-o", "json").stdout)["items"]
    return {
        f"{item['kind']} {item['metadata'].get('namespace', '')}/{item['metadata']['name']}": [
            item["metadata"]["uid"],
            *(item.get(part) for part in ("spec", "data", "rules", "subjects")),
        ]
        for item in found
        if item.get("type") != "bootstrap.kubernetes.io/token" and item["metadata"]["name"] != "cluster-info"
    }


def behaves_as(rolling: Rolling) -> tuple[str, str]:
    """The API server's version, and the minor as which it behaves."""
    answer = rolling.cluster.api.get("/version").raise_for_status().json()
    return answer["gitVersion"], f"{answer.get('emulationMajor', answer['major'])}.{answer.get('emulationMinor', answer['minor'])}"


@pytest.mark.parametrize("rolling", [("soaks", 1, BETWEEN)], indirect=True, ids=["one"])
def test_a_control_plane_soaks_goes_back_and_is_committed(rolling: Rolling) -> None:
    world, name = rolling.world, rolling.name
    machines, nodes, before, was = rolling.machines(), rolling.nodes(), objects(world), behaves_as(rolling)
    assert was[0] == f"{BETWEEN}-ckp"
    line = was[1]

    def phase(wanted: str) -> bool:
        row = rolling.upgrade()
        assert row["phase"] == wanted or not row["over"], row
        return bool(row["phase"] == wanted)

    ckp("cluster", "upgrade", name, "--to", NEW, "--soak", "--no-wait")
    world.wait(lambda: phase("Soaking"), "the new programs soak", timeout=600)
    assert behaves_as(rolling) == (f"{NEW}-ckp", line)
    assert rolling.cluster.status["version"] == BETWEEN and rolling.cluster.stands("Ready", "True") and rolling.kubelets() == {f"{BETWEEN}-ckp"}
    world.kubectl("create", "configmap", "written-while-it-soaks", "--from-literal=a=b")

    api = Api(rolling.cluster.server, rolling.cluster.context)
    asks = Busy("new connections", connections(api), 0.02)
    asks.start()
    began = time.monotonic()
    print(ckp("cluster", "upgrade", name, "--rollback").stdout)
    world.wait(lambda: behaves_as(rolling) == was and rolling.upgrade()["phase"] == "RolledBack", "the old programs are back", timeout=300)
    print(f"rolled back in {time.monotonic() - began:.1f} s; meanwhile {asks.end().line()}")
    after = objects(world)
    assert after.pop("ConfigMap default/written-while-it-soaks")[2] == {"a": "b"}
    assert {key: value for key, value in after.items() if key in before} == before, "nothing that was there is lost or changed"
    assert (rolling.machines(), rolling.nodes()) == (machines, nodes) and rolling.kubelets() == {f"{BETWEEN}-ckp"}

    ckp("cluster", "upgrade", name, "--to", NEW, "--soak", "--node", next(iter(nodes)), "--no-wait")
    world.wait(lambda: phase("Soaking"), "the new programs soak once more", timeout=600)
    began = time.monotonic()
    print(ckp("cluster", "upgrade", name, "--commit").stdout)
    world.wait(lambda: phase("Done"), "it is committed, and the node is upgraded", timeout=900)
    print(f"committed, and one node upgraded, in {time.monotonic() - began:.1f} s")
    assert behaves_as(rolling)[0] == f"{NEW}-ckp" and behaves_as(rolling)[1] != line
    assert rolling.cluster.status["version"] == NEW and rolling.kubelets() == {f"{BETWEEN}-ckp", f"{NEW}-ckp"}
    assert ckp("cluster", "upgrade", name, "--rollback", check=False).code != 0
