"""The lab as CKP 0.2.0 makes it, with a workload cluster, is upgraded by today's CKP while clients ask all the time.

0.2.0 is built from its commit, in a worktree of this checkout, with the caches and keys of this machine. Its lab is the machine's only one: the main job's
goes down first, and comes up again for the files after this one (conftest's `well`).
"""

from __future__ import annotations

import json
import ssl
import subprocess
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from ckp import __version__
from ckp.cli.up import kubeconfig_path
from ckp.kits import paths
from ckp.kits.processes import run
from ckp.kits.retry import wait_until
from ckp.lab.lab import Lab
from tests.e2e.conftest import UP_TIMEOUT, ckp, stream
from tests.support.checkout import REPO

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.root("boots whole hosts")]

COMMIT = "eecc5450"
"""`ckp: give what there is the number 0.2.0`."""
BUILD_SECONDS = 3 * 3600.0
UPGRADE_SECONDS = 3600.0
WORKLOAD_GAP, PLATFORM_GAP, AGENT_GAP = 90.0, 120.0, 90.0
"""Seconds that each may be away at a time. 0.3.0 restarts etcd and the API server of each cluster once; Compass has one replica."""
POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "goes-on"},
    "spec": {"containers": [{"name": "main", "image": "", "command": ["python3", "-c", "import time\nwhile True: time.sleep(1)"]}]},
}


@dataclass
class Asking:
    """Asks all the time; keeps when it got no answer, in seconds from the beginning."""

    name: str
    probe: Callable[[], bool]
    gaps: list[tuple[float, float]] = field(default_factory=list)
    asked: int = 0

    def loop(self, stop: threading.Event) -> None:
        began, away = time.monotonic(), 0.0
        while not stop.is_set():
            try:
                answered = self.probe()
            except (httpx.HTTPError, OSError, ValueError):
                answered = False
            now = time.monotonic() - began
            self.asked += 1
            if not answered and not away:
                away = now
            if answered and away:
                self.gaps.append((away, now - away))
                away = 0.0
            stop.wait(0.5)
        if away:
            self.gaps.append((away, time.monotonic() - began - away))

    @property
    def longest(self) -> float:
        return max((seconds for _, seconds in self.gaps), default=0.0)

    def __str__(self) -> str:
        return f"{self.name}: asked {self.asked} times; away {[f'at {at:.0f} s for {seconds:.1f} s' for at, seconds in self.gaps] or 'never'}"


@contextmanager
def asking(*clients: Asking) -> Iterator[None]:
    stop = threading.Event()
    threads = [threading.Thread(target=client.loop, args=(stop,), daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
        for client in clients:
            print(client)


def client_of(kubeconfig: Path, folder: Path) -> tuple[str, httpx.Client]:
    """The API's address, and a client with the certificate of a kubeconfig."""
    config = yaml.safe_load(kubeconfig.read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    for name, text in (("ca", cluster["certificate-authority-data"]), ("crt", user["client-certificate-data"]), ("key", user["client-key-data"])):
        (folder / name).write_bytes(b64decode(text))
        (folder / name).chmod(0o600)
    trust = ssl.create_default_context(cafile=str(folder / "ca"))
    trust.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # 0.2.0's clusters have an intermediate CA, as Go takes it
    trust.load_cert_chain(folder / "crt", folder / "key")
    return str(cluster["server"]), httpx.Client(verify=trust, timeout=5, trust_env=False)


@dataclass
class Old:
    """The lab of 0.2.0 on this machine."""

    folder: Path

    def management(self, *arguments: str) -> str:
        """Against the management cluster, by kubectl of its host."""
        host = Lab().host("management")
        return host.run(["kubectl", "--kubeconfig=/etc/kubernetes/admin.conf", *arguments], timeout=120).stdout

    def workload(self, *arguments: str, stdin: str | None = None) -> str:
        """Against the workload cluster."""
        host = Lab().host("management")
        host.push(kubeconfig_path("demo").read_bytes(), "/run/demo.kubeconfig", mode=0o600)
        return host.run(["kubectl", "--kubeconfig=/run/demo.kubeconfig", *arguments], timeout=120, stdin=stdin).stdout

    def nodes(self) -> dict[str, str]:
        """Names of the nodes that are Ready, and their UIDs."""
        items = json.loads(self.workload("get", "nodes", "-o", "json"))["items"]
        ready = [item for item in items if any(each["type"] == "Ready" and each["status"] == "True" for each in item["status"]["conditions"])]
        return {item["metadata"]["name"]: item["metadata"]["uid"] for item in ready}

    def restarts(self) -> list[int]:
        """Of the pod that goes on."""
        return [int(each["restartCount"]) for each in json.loads(self.workload("get", "pod", "goes-on", "-o", "json"))["status"]["containerStatuses"]]

    def agents(self) -> dict[str, tuple[str, bool]]:
        """Host -> version of its agent, and whether it is connected."""
        items = json.loads(self.management("get", "byohosts", "--all-namespaces", "-o", "json"))["items"]
        return {item["metadata"]["name"]: (item["status"]["agent"]["version"], item["status"]["agent"]["connected"]) for item in items}


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Old]:
    """The lab of 0.2.0 with its workload cluster, and a pod in it."""
    folder = tmp_path_factory.mktemp("upgrade")
    checkout = folder / "0.2.0"
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    ckp("down", timeout=600)
    run(["git", "worktree", "add", "--detach", "--force", checkout, COMMIT], cwd=REPO, timeout=120)
    try:
        with capture.global_and_fixture_disabled():
            stream(["bash", str(checkout / "packaging" / "setup" / "setup.sh")], 1800)
            stream([str(checkout / "ckp"), "up", "--release", "v1.35.1", "--workers", "2"], BUILD_SECONDS + UP_TIMEOUT)
        made = Old(folder)
        image = made.management("get", "deployment", "ckp-hub", "--namespace=ckp-system", "-o", "jsonpath={.spec.template.spec.containers[0].image}")
        pod: dict[str, Any] = json.loads(json.dumps(POD))
        pod["spec"]["containers"][0]["image"] = image
        made.workload("create", "-f", "-", stdin=json.dumps(pod))
        made.workload("wait", "--for=condition=Ready", "pod/goes-on", "--timeout=100s")
        yield made
    finally:
        ckp("down", timeout=600)
        run(["git", "worktree", "remove", "--force", checkout], cwd=REPO, timeout=120, check=False)


def upgrade(*arguments: str, timeout: float = UPGRADE_SECONDS) -> dict[str, Any]:
    done = ckp("site", "upgrade", "--lab", "--without-backup", "--profile", "lab", "-o", "json", *arguments, timeout=timeout)
    print(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def kill_after(seconds: float) -> bool:
    """Whether an upgrade was under way still when it was killed."""
    command = [str(REPO / "ckp"), "site", "upgrade", "--lab", "--without-backup", "--profile", "lab"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            return True
    assert child.returncode == 0
    return False


def test_the_plan_names_what_is_interrupted_and_changes_nothing(old: Old) -> None:
    before = old.management("get", "deployments,configmaps", "--namespace=ckp-system", "-o", "yaml")
    done = ckp("site", "upgrade", "--lab", "--plan", "-o", "json", check=False)
    rows = {item["part"]: item for item in json.loads(done.stdout)["items"]}
    assert done.code == 1 and rows["version"]["detail"] == f"CKP 0.2.0 becomes {__version__}"
    assert not [row for row in rows.values() if row["action"] == "refused"]
    assert "restarted once" in rows["workload clusters"]["interrupts"] and rows["Compass' database"]["detail"].startswith("schema 0002 becomes")
    assert old.management("get", "deployments,configmaps", "--namespace=ckp-system", "-o", "yaml") == before


def test_a_lab_of_0_2_0_is_upgraded_under_clients_though_the_command_is_killed(old: Old) -> None:
    nodes, restarts = old.nodes(), old.restarts()
    assert len(nodes) == 2
    ckp("dist", "build", "v1.35.1", "--profile", "lab", timeout=BUILD_SECONDS)
    address, client = client_of(kubeconfig_path("demo"), old.folder)
    root = ssl.create_default_context(cafile=str(paths.state() / "root-ca.pem"))
    compass = httpx.Client(verify=root, timeout=5, trust_env=False)
    clients = (
        Asking("the workload cluster's API", lambda: client.get(f"{address}/api/v1/namespaces/default/pods").status_code == 200),
        Asking("Compass", lambda: compass.get("https://10.88.0.100/healthz").status_code == 200),
        Asking("connections of agents", lambda: all(connected for _, connected in old.agents().values())),
    )
    with asking(*clients):
        for seconds in (45, 90, 150):
            if not kill_after(seconds):
                break
            wait_until(lambda: len(old.nodes()) == 2, what="the workload cluster's nodes are Ready", timeout=300, every=5)
        began = time.monotonic()
        found = upgrade()
        print(f"the last run took {time.monotonic() - began:.0f} s")
    assert found["version"] == __version__
    workload, platform, agents = (client.longest for client in clients)
    assert workload <= WORKLOAD_GAP and platform <= PLATFORM_GAP and agents <= AGENT_GAP
    wait_until(lambda: old.nodes() == nodes, what="the nodes are the same, and Ready", timeout=300, every=5)
    assert old.restarts() == restarts, "its pods went on"
    versions = {version for version, _ in old.agents().values()}
    assert len(versions) == 1 and versions.pop().startswith(f"{__version__}+")
    assert upgrade() == {"version": __version__, "upgraded": False}
    ckp("cluster", "describe", "demo")
