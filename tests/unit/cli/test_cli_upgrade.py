"""`ckp cluster upgrade`, against a whole Compass in memory and somebody who does what the controller does."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ckp.api import kinds
from ckp.kits.errors import CkpError, Conflict, InvalidInput, NotFound, TimedOut
from tests.unit.cli.test_cli_session import CREATE, Desk, desk
from tests.worlds.compass import NAMESPACE

__all__ = ["desk"]

FINDING = {"name": "DisruptionBudget", "where": "shop/web", "message": "allows no disruption now", "remedy": "Add a replica", "acceptable": True}
NODE = {"name": "rack1-node1", "pool": "demo-workers", "from": "v1.33.7-ckp", "to": "v1.35.1", "state": "Done"}


def upgrades(desk: Desk) -> list[dict[str, Any]]:
    return list(desk.run_async(desk.world.kube.list(kinds.CLUSTER_UPGRADE, NAMESPACE)))


@pytest.fixture
def running(desk: Desk) -> Desk:
    """A cluster of v1.33.7 that is up."""
    desk.run_async(desk.world.group_with_hosts())
    desk.good(*CREATE[:4], "v1.33.7", *CREATE[5:])
    desk.run_async(desk.world.kube.merge(kinds.MANAGED_CONTROL_PLANE, "demo", NAMESPACE, {"status": {"version": "v1.33.7"}}, subresource="status"))
    return desk


@contextmanager
def led(desk: Desk, status: Callable[[dict[str, Any]], dict[str, Any]]) -> Iterator[None]:
    """Each upgrade gets this status soon after it was asked for."""
    over = threading.Event()

    def lead() -> None:
        while not over.wait(0.05):
            for made in upgrades(desk):
                if not made.get("status"):
                    name = made["metadata"]["name"]
                    desk.run_async(desk.world.kube.merge(kinds.CLUSTER_UPGRADE, name, NAMESPACE, {"status": status(made)}, subresource="status"))

    thread = threading.Thread(target=lead)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(10)


def test_a_plan_shows_the_way_and_ends_with_an_error_while_a_finding_holds_it_up(running: Desk) -> None:
    told = {"phase": "Planned", "message": "nothing was changed", "from": "v1.33.7", "path": ["v1.34.3", "v1.35.1"], "nodes": [NODE], "findings": [FINDING]}
    with led(running, lambda _made: told):
        result = running.ckp("cluster", "upgrade", "demo", "--to", "v1.35.1", "--plan")
    assert isinstance(result.exception, CkpError) and "--accept" in result.exception.resolution
    assert "Way:" in result.stdout and "v1.34.3, v1.35.1" in result.stdout and "rack1-node1" in result.stdout
    assert "DisruptionBudget" in result.stdout and "possible" in result.stdout
    with led(running, lambda _made: told | {"findings": [FINDING | {"accepted": True}]}):
        data = json.loads(running.good("cluster", "upgrade", "demo", "--to", "v1.35.1", "--plan", "--accept", "DisruptionBudget", "-o", "json"))
    assert data["findings"][0]["accepted"] and data["dryRun"]
    assert [made["spec"].get("accept") for made in upgrades(running)] == [None, ["DisruptionBudget"]]
    with led(running, lambda _made: told | {"findings": [FINDING | {"acceptable": False}]}):
        assert "never" in running.ckp("cluster", "upgrade", "demo", "--to", "v1.35.1", "--plan").stdout


def test_it_is_followed_to_its_end(running: Desk) -> None:
    with led(running, lambda _made: {"phase": "Done", "message": "all are of v1.35.1", "nodes": [NODE]}):
        said = running.good("cluster", "upgrade", "demo", "--to", "v1.35.1", "--node", "rack1-node1", "--at-once", "2", "--after-first", "1")
    assert "cluster/demo upgrade to v1.35.1 requested" in said and "Done" in said
    [made] = upgrades(running)
    assert made["spec"] == {"clusterName": "demo", "version": "v1.35.1", "nodes": ["rack1-node1"], "atOnce": 2, "afterFirst": 1}
    assert json.loads(running.good("cluster", "upgrade", "demo", "-o", "json"))["phase"] == "Done"


def test_a_soak_is_shown_committed_and_rolled_back(running: Desk) -> None:
    options = ("--soak", "--commit-after", "1h", "--host-timeout", "15m", "--no-wait")
    running.good("cluster", "upgrade", "demo", "--to", "v1.35.1", *options)
    [made] = upgrades(running)
    asked = {"clusterName": "demo", "version": "v1.35.1", "soak": True, "commitAfter": "1h", "hostTimeout": "15m"}
    assert made["spec"] == asked
    record = {"from": "v1.33.7", "version": "v1.34.3", "startedAt": "2026-05-01T12:00:00Z", "emulated": "v1.33"}
    status = {"upgrade": record, "backup": {"kept": [{"id": "20260501T110000Z"}]}}
    running.run_async(running.world.kube.merge(kinds.MANAGED_CONTROL_PLANE, "demo", NAMESPACE, {"status": status}, subresource="status"))
    told = {"status": {"phase": "Soaking", "path": ["v1.34.3", "v1.35.1"]}}
    running.run_async(running.world.kube.merge(kinds.CLUSTER_UPGRADE, made["metadata"]["name"], NAMESPACE, told, subresource="status"))
    shown = running.good("cluster", "upgrade", "demo")
    assert "each soaks for 1h00m, or until --commit" in shown and "--rollback: to v1.33.7, etcd is not touched" in shown
    assert "Of the data: ckp cluster restore demo 20260501T110000Z" in running.good("cluster", "upgrade", "demo", "--commit")
    running.good("cluster", "upgrade", "demo", "--rollback")
    [made] = upgrades(running)
    assert made["spec"] == asked | {"commit": "v1.34.3", "rollback": True}


def test_a_failure_is_an_error_with_the_reason(running: Desk) -> None:
    with led(running, lambda _made: {"phase": "Failed", "message": "node rack1-node1: no space left"}):
        told = running.bad("cluster", "upgrade", "demo", "--to", "v1.35.1")
    assert "no space left" in told.brief and "ckp cluster upgrade demo" in told.resolution


def test_following_ends_with_its_time_and_the_upgrade_goes_on(running: Desk) -> None:
    told = running.bad("cluster", "upgrade", "demo", "--to", "v1.35.1", "--timeout", "1s", kind=TimedOut)
    assert "it goes on" in told.resolution
    assert "is being upgraded to v1.35.1 already" in running.bad("cluster", "upgrade", "demo", "--to", "v1.35.1", kind=Conflict).brief


@pytest.mark.parametrize(("verb", "spec"), [("pause", {"pause": True}), ("resume", {"pause": False, "afterFirst": 0}), ("abort", {"abort": True})])
def test_it_is_paused_resumed_and_aborted(running: Desk, verb: str, spec: dict[str, Any]) -> None:
    running.good("cluster", "upgrade", "demo", "--to", "v1.35.1", "--no-wait")
    assert f"{verb} requested" in running.good("cluster", "upgrade", "demo", f"--{verb}")
    [made] = upgrades(running)
    assert spec.items() <= made["spec"].items()


def test_what_makes_no_sense_is_refused_and_changes_nothing(running: Desk) -> None:
    assert "has not been upgraded" in running.bad("cluster", "upgrade", "demo", kind=NotFound).brief
    assert "exclude each other" in running.bad("cluster", "upgrade", "demo", "--to", "v1.35.1", "--pause", kind=InvalidInput).brief
    assert "needs --to" in running.bad("cluster", "upgrade", "demo", "--plan", kind=InvalidInput).brief
    running.bad("cluster", "upgrade", "demo", "--to", "1.35", kind=InvalidInput)
    assert upgrades(running) == []
