"""Upstream's conformance tests on the main job's cluster: the quick sample in `make test`, a break in `make test-all`, all of them by `make conformance`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import World, ckp
from tests.support.checkout import REPO

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("well")]

QUICK_TIMEOUT = 1500.0
SUBSET = ("--sig", "instrumentation", "--sig", "auth")
"""Short tests, fifteen of them."""


def results(folder: Path) -> list[dict[str, Any]]:
    """What each complete run came to, the oldest first."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*/results.json"))]


def left_by_tests(world: World) -> list[str]:
    """What must be gone after a run: namespaces, webhooks and taints of tests."""
    found = [f"namespace {item['metadata']['name']}" for item in world.get("namespaces", "-l", "e2e-framework")["items"]]
    for kind in ("validatingwebhookconfigurations", "mutatingwebhookconfigurations"):
        found += [f"{kind} {item['metadata']['name']}" for item in world.get(kind)["items"] if item["metadata"]["name"].startswith("e2e-")]
    for node in world.get("nodes")["items"]:
        found += [f"taint {item['key']}" for item in node["spec"].get("taints") or []]
    return found


def test_the_quick_sample_passes_and_leaves_nothing(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    output = ckp("conformance", "run", "--cluster", world.cluster, "--quick", "--output", str(tmp_path), timeout=QUICK_TIMEOUT).stdout
    with capfd.disabled():
        print(output[-6000:])
    (only,) = results(tmp_path)
    assert (only["failed"], only["passed"], only["selected"]) == (0, only["selected"], only["selected"])
    assert f"{only['passed']} of {only['selected']} passed, with test images rebuilt from source (441 in all)" in output
    assert not left_by_tests(world)


@pytest.mark.long
def test_a_run_that_is_killed_goes_on_and_what_it_left_is_removed(world: World, tmp_path: Path) -> None:
    command = [str(REPO / "ckp"), "conformance", "run", "--cluster", world.cluster, "--output", str(tmp_path), *SUBSET]
    log = (tmp_path / "first.log").open("wb")
    first = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + QUICK_TIMEOUT
    while b"passed" not in (tmp_path / "first.log").read_bytes():
        assert first.poll() is None, (tmp_path / "first.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    output = ckp(*command[1:], timeout=QUICK_TIMEOUT).stdout
    assert "going on with the run of" in output
    (only,) = results(tmp_path)
    assert (only["failed"], only["passed"]) == (0, only["selected"])
    assert len(only["logs"]) > 1
    assert not left_by_tests(world)
