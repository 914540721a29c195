"""The main job, run once for all end-to-end tests: `ckp up` on this machine, and `ckp down` in the end, whatever happened."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ckp.catalog.load import Catalog
from ckp.cli.up import kubeconfig_path
from ckp.clients.compass import Session, read_config
from ckp.distribution.release import Distribution
from ckp.kits.errors import CkpError, TimedOut
from ckp.kits.processes import Finished, run
from ckp.kits.retry import wait_until
from ckp.lab.lab import Lab
from ckp.site import lab
from ckp.site.install import Site
from tests.support.checkout import REPO

RELEASE = "v1.35.1"
STAMP = "v1.35.1-ckp"
WORKERS = 2
UP_TIMEOUT = 4500.0
REPAIR_TIMEOUT = 900.0

PLAIN = {
    "allowPrivilegeEscalation": False,
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
"""What a pod may do that may do nothing special."""


def ckp(*arguments: str, timeout: float = 300, check: bool = True) -> Finished:
    """The command itself, as a person runs it."""
    return run([REPO / "ckp", *arguments], timeout=timeout, check=check, what=f"ckp {' '.join(arguments)}")


@dataclass
class World:
    """The running main job."""

    hosts: lab.LabHosts
    site: Site
    dist: Distribution
    output: str
    cluster: str
    pushed: dict[str, str]
    """Repository -> digest of what the main job has pushed, as its registry gave them while the lab was there."""

    def kubectl(self, *arguments: str, timeout: float = 90, check: bool = True, stdin: str | None = None) -> Finished:
        """Against the workload cluster, by the kubeconfig that `ckp` gave."""
        return self.site.workload_kubectl(kubeconfig_path(self.cluster), *arguments, timeout=timeout, check=check, stdin=stdin)

    def get(self, *arguments: str) -> Any:
        """`kubectl get … -o json` of the workload cluster."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json").stdout)

    def management(self, *arguments: str, check: bool = True) -> Finished:
        """Against the management cluster."""
        return self.site.kubectl(*arguments, check=check)

    @property
    def pulls(self) -> str:
        """`address:port` that everybody may pull from."""
        return f"{self.hosts.management.address}:{self.site.inventory.registry.port}"

    @property
    def image(self) -> str:
        """An image with Python, from our registry, for test pods."""
        return f"{self.site.registry.address}/ckp/ckp-platform:{self.dist.tags['ckp-platform']}"

    def wait(self, probe: Any, what: str, *, timeout: float = 180) -> Any:
        """Wait for something of the world."""
        return wait_until(probe, what=what, timeout=timeout, every=1)


def stream(command: list[str], timeout: float) -> str:
    """Run it, showing what it says as it comes (CI must see where it is), and return all of it."""
    started = time.monotonic()
    said: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=REPO) as child:
        assert child.stdout is not None
        for line in child.stdout:
            print(f"  {time.monotonic() - started:6.1f}s {line}", end="", flush=True)
            said.append(line)
            if time.monotonic() - started > timeout:
                child.kill()
                raise AssertionError(f"{command} took longer than {timeout} s")
    assert child.returncode == 0, f"{command} ended with {child.returncode}:\n{''.join(said[-40:])}"
    return "".join(said)


@pytest.fixture(scope="session")
def world(pytestconfig: pytest.Config) -> Iterator[World]:
    """The main job. Its output goes past pytest's capture: it takes minutes, and silence would look like a hang."""
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    try:
        with capture.global_and_fixture_disabled():
            print("\nthe main job: ckp up")
            output = stream([str(REPO / "ckp"), "up", "--release", RELEASE, "--workers", str(WORKERS)], UP_TIMEOUT)
        catalog = Catalog()
        dist = Distribution(catalog, catalog.release(RELEASE), "lab", lambda _line: None)
        dist.build()
        dist.pack([lab.OS.format])
        dist.make_images()
        dist.make_bundles(lab.REGISTRY_ADDRESS, [lab.OS])
        hosts = lab.LabHosts(WORKERS)
        site = Site(dist, lab.inventory(hosts), lambda _line: None)
        tags = {**dist.tags, **{target.repository: STAMP for target in dist.targets}}
        with contextlib.closing(site.registry.client()) as client:
            pushed = {repository: client.digest(f"ckp/{repository}", tag) or "" for repository, tag in tags.items()}
        yield World(hosts, site, dist, output, "demo", pushed)
    finally:
        collect()
        if not os.environ.get("CKP_KEEP_LAB"):  # for working on the tests themselves
            ckp("down", timeout=300)


def ailments(world: World) -> list[str]:
    """What of the main job's cluster is not as `ckp up` leaves it; nothing if all is well."""
    try:
        session = Session(read_config())
        row = session.get("/clusters/demo")
        hosts = session.get("/hosts")["items"]
    except CkpError as error:
        return [f"Compass answers: {error.brief}"]
    found = [] if row["ready"] else [f"cluster demo is not ready: {row['message']}"]
    members = [host for host in hosts if host["cluster"] == "demo"]
    found += [f"{len(members)} of {WORKERS} hosts are in cluster demo"] if len(members) != WORKERS else []
    found += [f"host {host['name']} is not connected" for host in members if not host["connected"]]
    found += [f"host {host['name']} is cordoned" for host in members if host["cordoned"]]
    nodes = json.loads(world.kubectl("get", "nodes", "-o", "json", check=False).stdout or '{"items": []}')["items"]
    ready = sum(any(item["type"] == "Ready" and item["status"] == "True" for item in node["status"]["conditions"]) for node in nodes)
    return [*found, f"{ready} of {WORKERS} nodes are Ready"] if ready != WORKERS else found


@pytest.fixture(scope="module")
def well(world: World, pytestconfig: pytest.Config) -> World:
    """What each file of tests begins with: the main job's cluster as `ckp up` leaves it.

    Where a failure in an earlier file has left it otherwise, it gets a minute, and then `ckp up` once more; so one failure does not take all later files along.
    """
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    with contextlib.suppress(TimedOut):
        wait_until(lambda: not ailments(world), what="the cluster of the earlier tests is well", timeout=60, every=2)
        return world
    with capture.global_and_fixture_disabled():
        print("\nearlier tests have left the main job unwell:", *ailments(world), "ckp up", sep="\n  ")
        stream([str(REPO / "ckp"), "up", "--release", RELEASE, "--workers", str(WORKERS)], REPAIR_TIMEOUT)
    with contextlib.suppress(TimedOut):
        wait_until(lambda: not ailments(world), what="the cluster is well", timeout=180, every=2)
    if left := ailments(world):
        pytest.fail(f"these tests cannot begin, see the first failure of an earlier file: {'; '.join(left)}", pytrace=False)
    return world


def collect() -> None:
    """Keep what a failure is understood by, before the lab goes: pods and agents' journals, in build/e2e."""
    target = Path(REPO / "build" / "e2e")
    target.mkdir(parents=True, exist_ok=True)
    for host in Lab().hosts():
        if host.running:
            done = host.run(["journalctl", "-n", "400", "--no-pager"], timeout=30, check=False)
            (target / f"{host.name}.log").write_text(done.stdout)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Show a failure when it happens: these suites run for long, and what follows it often fails only because of it."""
    if report.failed:
        print(f"\n{report.nodeid} failed in {report.when}:\n{report.longreprtext[-4000:]}", flush=True)
