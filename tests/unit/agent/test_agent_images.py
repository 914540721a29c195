"""Images are fetched for as long as the cluster says, and no longer once the host is to do something else. `crictl` is a script of the test."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ckp.agent.config import Config
from ckp.agent.fetch.images import ImagePulls
from ckp.agent.journal import Journal
from ckp.agent.messages import BundleRef, Membership
from ckp.agent.node.actions import HostActions
from ckp.hostkit import processes
from ckp.hostkit.errors import Cancelled
from ckp.hostkit.processes import PATH

CRICTL = """#!/bin/sh
case "$*" in
*inspecti*) exit 1 ;;
*slow*) echo "$$" >>{folder}/pulls; exec sleep 60 ;;
*) echo "$2" >>{folder}/given ;;
esac
"""
MEMBER = Membership("default/demo", "m1", "n1", "byoh://h/m1", "v1.35.1", BundleRef("r/b@sha256:0", "t", "v1.35.1"), "r/pause", "r", images=("r/slow",))
Fetch = Callable[[Membership, Callable[[], bool]], str]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "crictl").write_text(CRICTL.format(folder=tmp_path))
    (tmp_path / "crictl").chmod(0o755)
    monkeypatch.setattr(processes, "PATH", f"{tmp_path}:{PATH}")
    return tmp_path


@pytest.fixture
def fetch(host: Path) -> Fetch:
    """The step `fetch` of a host."""
    config = Config("https://hub.example:8443", "wss://hub.example:8444", "/ca", state_dir=str(host))
    actions = HostActions(config, Journal(f"{host}/journal.json", f"{host}/saved"))
    return lambda membership, cancelled: actions.step("fetch", membership, cancelled)


def pulls(host: Path) -> list[int]:
    """The processes of the pulls that were started so far."""
    return [int(line) for line in (host / "pulls").read_text().split()] if (host / "pulls").exists() else []


def soon(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_a_fetch_ends_after_the_time_that_the_cluster_gives_it_and_the_join_goes_on(host: Path, fetch: Fetch) -> None:
    begun = time.monotonic()
    note = fetch(replace(MEMBER, image_fetch_seconds=0.3), lambda: False)
    assert 0.3 <= time.monotonic() - begun < 60
    assert note.startswith("not all images could be pulled yet: ")
    assert len(pulls(host)) == 1 and soon(lambda: not any(map(alive, pulls(host))))


@pytest.mark.parametrize(("seconds", "given"), [(0.0, "--timeout=900s"), (7200.0, "--timeout=7200s")])
def test_without_a_time_of_its_own_a_cluster_has_fifteen_minutes(host: Path, fetch: Fetch, seconds: float, given: str) -> None:
    """0: from a hub of 0.2.0, or of a cluster that was made by it."""
    assert fetch(replace(MEMBER, images=("r/cilium",), image_fetch_seconds=seconds), lambda: False) == "1 images"
    assert (host / "given").read_text() == f"{given}\n"


def test_a_cancelled_fetch_ends_its_pulls_and_begins_no_more(host: Path) -> None:
    images = ImagePulls(["r/slow-1", "r/slow-2", "r/slow-3"], parallel=2)
    assert soon(lambda: len(pulls(host)) == 2)
    with pytest.raises(Cancelled):
        images.wait(["r/slow-1"], lambda: True)
    assert soon(lambda: not any(map(alive, pulls(host))))
    assert len(pulls(host)) == 2


def test_a_host_that_is_to_leave_does_not_wait_for_its_images(host: Path, fetch: Fetch) -> None:
    begun = time.monotonic()
    with pytest.raises(Cancelled):
        fetch(MEMBER, lambda: bool(pulls(host)))
    assert time.monotonic() - begun < 60
    assert soon(lambda: not any(map(alive, pulls(host))))


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
