"""`ckp host|hostgroup|cluster` through click's runner against a whole Compass in memory."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import stat
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
import yaml
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from ckp.api import kinds, names
from ckp.cli import cluster as cluster_module
from ckp.cli.cluster import cluster
from ckp.cli.hosts.groups import hostgroup
from ckp.cli.hosts.host import host
from ckp.cli.view.output import Column, Duration, age, short_duration, table
from ckp.clients.compass import Config, Session, Unauthorized, Unreachable, read_config, write_config
from ckp.kits.errors import CkpError, Conflict, InvalidInput, NotFound, TimedOut
from tests.worlds.compass import ADMIN, AGENTS, MACHINE_B, NAMESPACE, World, facts, make_world


@click.group()
def root() -> None:
    """As the real root: only a parent."""


for command in (host, hostgroup, cluster):
    root.add_command(command)


class Bridge(httpx.BaseTransport):
    """A synchronous transport to an ASGI application that lives in another thread's event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, app: Any) -> None:
        self._loop = loop
        self._inner = httpx.ASGITransport(app, raise_app_exceptions=False)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        async def call() -> httpx.Response:
            response = await self._inner.handle_async_request(httpx.Request(request.method, request.url, headers=request.headers, content=request.read()))
            return httpx.Response(response.status_code, headers=response.headers, content=await response.aread())

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(20)


@dataclass
class Desk:
    world: World
    bridge: httpx.BaseTransport
    run_async: Callable[[Coroutine[Any, Any, Any]], Any]

    def ckp(self, *arguments: str) -> Result:
        return CliRunner().invoke(root, list(arguments), obj=self.bridge)

    def good(self, *arguments: str) -> str:
        result = self.ckp(*arguments)
        assert result.exit_code == 0, (result.output, result.exception)
        return result.stdout

    def bad(self, *arguments: str, kind: type[CkpError] = CkpError) -> CkpError:
        result = self.ckp(*arguments)
        assert isinstance(result.exception, kind), (result.output, result.exception)
        return result.exception

    def enrol(self, *machines: str) -> list[str]:
        """Requests of machines with these ids; the ids of the requests."""
        psk = self.good("host", "psk", "--reset").strip()
        return [self.run_async(self.world.enrol(psk, machine_id=machine)).json()["request_id"] for machine in machines]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setenv("CKP_CONFIG", str(tmp_path / "config.json"))
    monkeypatch.setenv("CKP_CACHE", str(tmp_path / "cache"))
    write_config(Config(server="https://compass", token=ADMIN))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def run_async(work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(30)

    stack = AsyncExitStack()
    world = run_async(stack.enter_async_context(make_world(tmp_path)))
    try:
        yield Desk(world, Bridge(loop, world.public_app), run_async)
    finally:
        run_async(stack.aclose())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


CREATE = ("cluster", "create", "demo", "--version", "v1.35.1", "--host-group", "workers", "--workers", "2")


# Hosts.


def test_the_key_and_nothing_else_goes_to_standard_output_once(desk: Desk) -> None:
    first = desk.ckp("host", "psk")
    assert first.stdout.strip().startswith("ckphk_")
    assert len(first.stdout.splitlines()) == 1
    assert "shown only now" in first.stderr
    again = desk.bad("host", "psk")
    assert "--reset" in again.resolution
    assert desk.good("host", "psk", "--reset") != first.stdout
    assert json.loads(desk.good("host", "psk", "-o", "json"))["key"] is None


def test_requests_are_listed_and_approved_by_the_beginning_of_their_id(desk: Desk) -> None:
    (request_id,) = desk.enrol("c" * 32)
    head, row = desk.good("host", "requests").splitlines()
    assert head.split() == ["ID", "HOSTNAME", "STATE", "OS", "CPUS", "MEMORY", "ADDRESS", "LIKE", "AGE"]
    assert row.split()[:3] == [request_id[:12], "worker-1", "Pending"]
    assert row.index("worker-1") == head.index("HOSTNAME")
    assert desk.good("host", "approve", request_id[:6]) == f"hostrequest/{request_id[:12]} approved: host worker-1\n"
    assert desk.good("host", "requests", "--state", "pending") == ""
    assert "c" * 32 in desk.good("host", "requests", "-o", "wide")


def test_approve_all_takes_every_pending_request_and_must_be_asked_for(desk: Desk) -> None:
    desk.enrol("c" * 32, "d" * 32)
    assert desk.ckp("host", "approve").exit_code == 2
    assert desk.ckp("host", "approve", "x", "--all").exit_code == 2
    assert len(desk.good("host", "approve", "--all").splitlines()) == 2
    assert desk.ckp("host", "approve", "--all").stderr.startswith("No pending")


def test_a_failed_decision_is_reported_and_the_others_stand(desk: Desk) -> None:
    first, second = desk.enrol("c" * 32, "c" * 32)
    result = desk.ckp("host", "approve", first, second)
    assert f"{first[:12]} approved" in result.stdout
    assert isinstance(result.exception, CkpError)
    assert second[:12] in result.exception.details


def test_rejecting_needs_a_reason(desk: Desk) -> None:
    (request_id,) = desk.enrol("c" * 32)
    assert desk.ckp("host", "reject", request_id).exit_code == 2
    desk.good("host", "reject", request_id, "--reason", "not ours")
    assert "not ours" in desk.good("host", "requests", "-o", "wide")
    desk.bad("host", "reject", "fff", "--reason", "x", kind=NotFound)


def test_hosts_are_listed_described_and_deleted(desk: Desk) -> None:
    desk.run_async(desk.world.add_host("one", group="workers"))
    desk.run_async(desk.world.add_host("two", claimed="demo-workers-x"))
    lines = desk.good("host", "list").splitlines()
    assert lines[0].split() == ["NAME", "STATUS", "GROUPS", "CLUSTER", "VERSION", "ADDRESS", "AGE"]
    assert lines[1].split()[:3] == ["one", "Free", "workers"]
    assert lines[2].split()[:4] == ["two", "Claimed", "<none>", "demo-workers-x"]
    assert len(desk.good("host", "list", "--group", "workers").splitlines()) == 2
    shown = desk.good("host", "describe", "one")
    assert "AgentConnected" in shown
    assert "10.88.0.21" in shown
    host = desk.run_async(desk.world.kube.get(kinds.BYO_HOST, "one", NAMESPACE))
    meta = {"name": "one.1", "namespace": NAMESPACE, "labels": {names.EVENT_LABEL: host["metadata"]["uid"]}}
    event = {"type": "Warning", "reason": "Silent", "message": "no word for 60 s", "lastTimestamp": "2026-04-01T00:00:00Z"}
    desk.run_async(desk.world.kube.create({"apiVersion": "v1", "kind": "Event", "metadata": meta, **event}))
    assert "no word for 60 s" in desk.good("host", "describe", "one")
    assert yaml.safe_load(desk.good("host", "list", "-o", "yaml"))["items"][0]["name"] == "one"
    refused = desk.bad("host", "delete", "two", kind=Conflict)
    assert "force" in refused.resolution
    assert desk.good("host", "delete", "two", "--force") == "host/two deleted\n"
    desk.bad("host", "describe", "two", kind=NotFound)


def test_a_key_with_limits_is_made_only_by_a_reset(desk: Desk) -> None:
    assert desk.good("host", "psk", "--reset", "--expires", "12h", "--uses", "3").startswith("ckphk_")
    assert "expires at" in desk.bad("host", "psk").details
    assert desk.ckp("host", "psk", "--uses", "3").exit_code == 2


def test_hosts_are_labelled_cordoned_and_taken_out_of_their_cluster(desk: Desk) -> None:
    desk.run_async(desk.world.add_host("one"))
    assert desk.good("host", "label", "one", "rack=r7", "old-") == "host/one labeled\n"
    assert "rack=r7" in desk.good("host", "describe", "one")
    assert desk.ckp("host", "label", "one", "nonsense").exit_code == 2
    desk.good("host", "cordon", "one")
    assert "Cordoned" in desk.good("host", "list")
    desk.good("host", "uncordon", "one")
    assert "in no cluster" in desk.bad("host", "remove", "one", kind=Conflict).brief
    assert "no certificate" in desk.bad("host", "revoke", "one", kind=Conflict).brief


def test_a_host_that_leaves_is_waited_for_until_it_is_clean(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    world, tried = desk.world, list[str]()
    desk.run_async(world.add_host("one", claimed="byo-1", phase="Joined"))
    for kind, name, spec in ((kinds.BYO_MACHINE, "byo-1", {}), (kinds.MACHINE, "demo-1", {"infrastructureRef": {"kind": "ByoMachine", "name": "byo-1"}})):
        meta = {"name": name, "namespace": NAMESPACE}
        desk.run_async(world.kube.create({"apiVersion": kind.api_version, "kind": kind.kind, "metadata": meta, "spec": spec}))
    refused = desk.bad("host", "remove", "one", "--wait", "--timeout", "0s", kind=TimedOut)
    assert "machine byo-1 still holds it" in refused.details

    def controllers(_: float) -> None:
        """Instead of sleeping: first the agent is reset, then the machine lets the host go."""
        tried.append("")
        phase, holder = ("Resetting", {"name": "byo-1"}) if len(tried) == 1 else ("Resetting", None) if len(tried) == 2 else ("Free", None)
        desk.run_async(world.kube.merge(kinds.BYO_HOST, "one", NAMESPACE, {"spec": {"machineRef": holder}}))
        desk.run_async(world.kube.merge(kinds.BYO_HOST, "one", NAMESPACE, {"status": {"observed": {"phase": phase}}}, subresource="status"))
        if len(tried) == 1:  # and once more asked for, as after an interruption
            meta = {"name": "demo-1", "namespace": NAMESPACE}
            spec = {"infrastructureRef": {"kind": "ByoMachine", "name": "byo-1"}}
            desk.run_async(world.kube.create({"apiVersion": kinds.MACHINE.api_version, "kind": "Machine", "metadata": meta, "spec": spec}))

    controllers(0)
    monkeypatch.setattr("ckp.kits.retry.time.sleep", controllers)
    assert desk.good("host", "remove", "one", "--wait").splitlines() == ["host/one leaves its cluster", "host/one has left its cluster"]
    assert len(tried) == 3, "released is not enough: it is also clean"


def test_a_drain_may_be_begun_without_waiting_for_it(desk: Desk) -> None:
    desk.run_async(desk.world.add_host("one", claimed="byo-1", phase="Joined"))
    assert desk.good("host", "drain", "one", "--no-wait") == "host/one is being drained\n"
    assert "nothing was done yet" in desk.bad("host", "drain", "one", "--timeout", "0s", kind=TimedOut).details
    condition = {"type": "Drained", "status": "True", "reason": "Drained"}
    desk.run_async(desk.world.kube.merge(kinds.BYO_HOST, "one", NAMESPACE, {"status": {"conditions": [condition]}}, subresource="status"))
    assert desk.good("host", "drain", "one") == "host/one drained\n"


def test_a_rollout_in_stages_cannot_go_on_without_waiting(desk: Desk) -> None:
    old, new = AGENTS
    for name in ("one", "two"):
        desk.run_async(desk.world.add_host(name))
        agent_of(desk, name, old)
    assert desk.ckp("host", "upgrade-agent", "--all", "--no-wait").exit_code == 2
    assert (wanted_of(desk, "one"), wanted_of(desk, "two")) == ("", "")
    assert desk.good("host", "upgrade-agent", "--all", "--no-wait", "--at-once", "2").splitlines() == [
        f"host/{name} is being upgraded to ckp-agent {new}" for name in ("one", "two")
    ]
    assert (wanted_of(desk, "one"), wanted_of(desk, "two")) == (new, new)


def test_what_stands_against_a_host_is_shown_with_its_remediation(desk: Desk) -> None:
    desk.run_async(desk.world.add_host("one"))
    seen = json.loads(facts().model_dump_json()) | {"findings": [{"problem": "swap is on", "mend": "swapoff -a"}]}
    desk.run_async(desk.world.kube.merge(kinds.BYO_HOST, "one", NAMESPACE, {"status": {"facts": seen}}, subresource="status"))
    shown = desk.good("host", "describe", "one")
    assert "swap is on" in shown and "swapoff -a" in shown and "50.0Gi" in shown


def test_leaving_a_cluster_and_being_deleted_are_told_apart_by_their_help(desk: Desk) -> None:
    leave, forget = (" ".join(desk.good("host", command, "--help").split()) for command in ("remove", "delete"))
    assert "out of their cluster, and keep them in CKP" in leave and "use `ckp host delete`" in leave
    assert "Remove hosts from CKP altogether" in forget and "`ckp host remove`" in forget


def agent_of(desk: Desk, name: str, version: str, reason: str = "") -> None:
    """As the hub writes it when the host reports."""
    status = {"agent": {"version": version}, "observed": {"phase": "Free", "generation": 0, "reason": reason, "message": "it did not report"}}
    desk.run_async(desk.world.kube.merge(kinds.BYO_HOST, name, NAMESPACE, {"status": status}, subresource="status"))


def wanted_of(desk: Desk, name: str) -> str:
    host = desk.run_async(desk.world.kube.get(kinds.BYO_HOST, name, NAMESPACE))
    return str(host["spec"].get("agentVersion", ""))


def test_agents_are_upgraded_in_stages_which_stop_at_the_first_that_goes_back(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = AGENTS
    for name in ("one", "two", "three"):
        desk.run_async(desk.world.add_host(name))
        agent_of(desk, name, old)
    agent_of(desk, "one", new)
    asked: list[set[str]] = []

    def wait(probe: Callable[[], bool], **_: Any) -> None:
        """The host that is asked upgrades itself, but the one called two goes back."""
        asked.append({name for name in ("one", "two", "three") if wanted_of(desk, name) == new})
        for name in asked[-1]:
            agent_of(desk, name, old if name == "two" else new, "AgentUpgradeReturned" if name == "two" else "")
        assert probe()

    monkeypatch.setattr("ckp.cli.view.waits.wait_until", wait)
    error = desk.bad("host", "upgrade-agent", "--all")
    assert "host two stays with 0.1.0+1-ckp" in error.brief
    assert asked == [{"three"}, {"three", "two"}], "one at a time, and the newest version by itself"
    assert wanted_of(desk, "two") == "", "nobody goes on asking it"
    assert "no agent '9.9'" in desk.bad("host", "upgrade-agent", "two", "--version", "9.9", kind=InvalidInput).brief
    assert desk.ckp("host", "upgrade-agent").exit_code == 2


def test_rules_are_made_shown_and_deleted(desk: Desk) -> None:
    desk.good("hostgroup", "create", "workers")
    desk.good("host", "rule", "create", "lab", "--network", "10.88.0.0/24", "--system", "debian-12", "--min-memory-gib", "2", "--group", "workers")
    shown = desk.good("host", "rule", "list")
    assert "from 10.88.0.0/24, system debian-12" in shown and "workers" in shown
    assert "asks for nothing" in desk.bad("host", "rule", "create", "all", kind=InvalidInput).brief
    desk.good("host", "rule", "delete", "lab")
    assert "No approval rules" in desk.ckp("host", "rule", "list").stderr


def test_a_machine_that_looks_like_a_host_is_decided_by_name(desk: Desk) -> None:
    world = desk.world
    psk = desk.run_async(world.psk())
    first = desk.run_async(world.enrol(psk)).json()["request_id"]
    desk.good("host", "approve", first)
    second = desk.run_async(world.enrol(psk)).json()["request_id"]
    assert "worker-1 (machine-id)" in desk.good("host", "requests")
    assert "--replace" not in desk.bad("host", "approve", second).brief
    assert desk.ckp("host", "approve", "--all", "--replace").exit_code == 2
    assert "host worker-1" in desk.good("host", "approve", second, "--replace")


def test_an_empty_list_is_a_message_on_standard_error(desk: Desk) -> None:
    result = desk.ckp("host", "list")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "No hosts found in default/default.\n")
    assert json.loads(desk.good("host", "list", "-o", "json")) == {"items": []}


def test_another_project_is_asked_when_it_is_named(desk: Desk) -> None:
    desk.run_async(desk.world.add_host("one"))
    desk.run_async(desk.world.project("default", "other"))
    assert "No hosts found in default/other" in desk.ckp("host", "list", "--project", "other").stderr


# Groups.


def test_groups_from_making_to_deleting(desk: Desk) -> None:
    for name in ("one", "two"):
        desk.run_async(desk.world.add_host(name))
    assert desk.good("hostgroup", "create", "workers", "one") == "hostgroup/workers created\nhost/one added to workers\n"
    desk.good("hostgroup", "add", "workers", "two")
    assert desk.good("hostgroup", "list").splitlines()[1].split()[:4] == ["workers", "2", "2", "<none>"]
    desk.good("hostgroup", "remove", "workers", "one")
    assert json.loads(desk.good("hostgroup", "get", "workers", "-o", "json"))["hosts"] == ["two"]
    desk.good("hostgroup", "delete", "workers")
    desk.bad("hostgroup", "delete", "workers", kind=NotFound)


# Clusters.


def test_a_cluster_is_asked_for_with_the_defaults_shown(desk: Desk) -> None:
    desk.run_async(desk.world.group_with_hosts())
    assert desk.good(*CREATE) == "cluster/demo created\n"
    lines = desk.good("cluster", "list").splitlines()
    assert lines[0].split() == ["NAME", "STATUS", "VERSION", "CONTROL-PLANE", "WORKERS", "AGE"]
    assert lines[1].split()[:5] == ["demo", "Pending", "v1.35.1", "NotReady", "0/2"]
    assert json.loads(desk.good("cluster", "describe", "demo", "-o", "json"))["podCIDR"] == "10.42.0.0/16"
    assert "10.42.0.0/16" in desk.good("cluster", "describe", "demo")
    assert re.search(r"^Requested: +\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ \(", desk.good("cluster", "describe", "demo"), re.M)


def test_timeouts_are_given_at_creation_changed_later_and_shown(desk: Desk) -> None:
    desk.run_async(desk.world.group_with_hosts())
    desk.good(*CREATE, "--drain-timeout", "30m", "--node-startup-timeout", "1h30m")
    shown = desk.good("cluster", "describe", "demo")
    assert re.search(r"Drain: +30m$", shown, re.M) and re.search(r"Node startup: +1h30m$", shown, re.M) and re.search(r"Volume detach: +5m$", shown, re.M)
    assert re.search(r"Image fetch: +15m$", shown, re.M)
    assert desk.good("cluster", "set", "demo", "--image-fetch-timeout", "1h") == "cluster/demo image-fetch-timeout set to 1h\n"
    assert re.search(r"Image fetch: +1h$", desk.good("cluster", "describe", "demo"), re.M)
    assert desk.good("cluster", "set", "demo", "--drain-timeout", "90") == "cluster/demo drain-timeout set to 1m30s\n"
    shown = desk.good("cluster", "describe", "demo")
    assert re.search(r"Drain: +1m30s$", shown, re.M) and re.search(r"Node startup: +1h30m$", shown, re.M)
    assert "greater than or equal to 30" in desk.bad("cluster", "set", "demo", "--node-unhealthy-timeout", "5s", kind=InvalidInput).brief
    assert "default: 10m" in desk.good("cluster", "create", "--help")


def test_names_in_the_api_servers_certificate_are_given_at_creation_replaced_later_and_shown(desk: Desk) -> None:
    desk.run_async(desk.world.group_with_hosts())
    desk.good(*CREATE, "--cert-san", "api.demo.example", "--cert-san", "203.0.113.7")
    assert re.search(r"^Cert SANs: +api\.demo\.example, 203\.0\.113\.7$", desk.good("cluster", "describe", "demo"), re.M)
    assert json.loads(desk.good("cluster", "describe", "demo", "-o", "json"))["certSANs"] == ["api.demo.example", "203.0.113.7"]
    told = desk.good("cluster", "set", "demo", "--cert-san", "*.demo.example", "--drain-timeout", "1h")
    assert told == "cluster/demo cert-sans set to *.demo.example\ncluster/demo drain-timeout set to 1h\n"
    assert re.search(r"^Cert SANs: +\*\.demo\.example$", desk.good("cluster", "describe", "demo"), re.M)
    assert "'https://x' is neither a DNS name" in desk.bad("cluster", "set", "demo", "--cert-san", "https://x", kind=InvalidInput).brief
    assert "exclude each other" in desk.ckp("cluster", "set", "demo", "--cert-san", "x.example", "--no-cert-sans").output
    assert "name what to change" in desk.ckp("cluster", "set", "demo").output
    assert desk.good("cluster", "set", "demo", "--no-cert-sans") == "cluster/demo cert-sans set to none\n"
    assert json.loads(desk.good("cluster", "describe", "demo", "-o", "json"))["certSANs"] == []


def test_scaling_waits_until_new_workers_are_ready_and_old_ones_are_gone(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    world = desk.world
    desk.run_async(world.group_with_hosts(count=3))
    desk.good(*CREATE)

    def machine(name: str) -> None:
        meta = {"name": name, "namespace": NAMESPACE, "labels": {names.CLUSTER_NAME_LABEL: "demo"}}
        desk.run_async(world.kube.create({"apiVersion": kinds.MACHINE.api_version, "kind": "Machine", "metadata": meta, "spec": {"version": "v1.35.1"}}))

    def ready(count: int) -> None:
        up = {"status": {"readyReplicas": count}}
        desk.run_async(world.kube.merge(kinds.MACHINE_DEPLOYMENT, "demo-workers", NAMESPACE, up, subresource="status"))

    up = {"status": {"phase": "Provisioned", "controlPlaneReady": True, "infrastructureReady": True}}
    desk.run_async(world.kube.merge(kinds.CLUSTER, "demo", NAMESPACE, up, subresource="status"))
    for name in ("demo-1", "demo-2"):
        machine(name)
    ready(2)
    machine("demo-3")
    late = desk.bad("cluster", "scale", "demo", "--workers", "3", "--wait", "--timeout", "0s", kind=TimedOut)
    assert "2 of 3 workers are ready" in late.details and "machine demo-3 (no host yet)" in late.details
    assert late.exit_code == 4
    ready(3)
    assert "has 3 ready workers" in desk.good("cluster", "scale", "demo", "--workers", "3", "--wait")
    monkeypatch.setattr("ckp.kits.retry.time.sleep", lambda _: desk.run_async(world.kube.delete(kinds.MACHINE, "demo-3", NAMESPACE)))
    assert "has 2 ready workers" in desk.good("cluster", "scale", "demo", "--workers", "2", "--wait")
    assert desk.run_async(world.kube.get(kinds.MACHINE, "demo-3", NAMESPACE)) is None, "it was waited for until the third was gone"


def test_workers_that_nobody_can_ask_for_are_shown_as_unknown(desk: Desk) -> None:
    world = desk.world
    desk.run_async(world.group_with_hosts())
    desk.good(*CREATE)
    meta = {"name": "demo-1", "namespace": NAMESPACE, "labels": {names.CLUSTER_NAME_LABEL: "demo"}}
    desk.run_async(world.kube.create({"apiVersion": kinds.MACHINE.api_version, "kind": "Machine", "metadata": meta, "spec": {"version": "v1.35.1"}}))
    node = {"nodeRef": {"name": "one"}, "conditions": [{"type": "NodeHealthy", "status": "True"}]}
    for kind, name, status in (
        (kinds.MACHINE, "demo-1", node),
        (kinds.MACHINE_DEPLOYMENT, "demo-workers", {"readyReplicas": 1}),
        (kinds.MANAGED_CONTROL_PLANE, "demo", {"initialized": True, "ready": False}),
    ):
        desk.run_async(world.kube.merge(kind, name, NAMESPACE, {"status": status}, subresource="status"))
    assert desk.good("cluster", "list").splitlines()[1].split()[:5] == ["demo", "Pending", "v1.35.1", "NotReady", "?/2"]
    shown = desk.good("cluster", "describe", "demo")
    assert re.search(r"^Workers: +2 requested, 1 can't be seen now, from workers$", shown, re.M)
    assert re.search(r"^  demo-1 .* Unknown +the cluster's API server does not serve$", shown, re.M)


def test_a_scaling_that_cannot_come_true_is_not_waited_for(desk: Desk) -> None:
    desk.run_async(desk.world.group_with_hosts(count=3))
    desk.good(*CREATE)
    failure = {"status": {"failureMessage": "beyond repair"}}
    desk.run_async(desk.world.kube.merge(kinds.CLUSTER, "demo", NAMESPACE, failure, subresource="status"))
    assert "beyond repair" in desk.bad("cluster", "scale", "demo", "--workers", "1", "--wait").brief


def test_more_than_one_api_server_is_refused_with_what_can_be_done(desk: Desk) -> None:
    desk.run_async(desk.world.group_with_hosts())
    refused = desk.bad(*CREATE, "--control-plane-replicas", "3", kind=InvalidInput)
    assert refused.brief == "controlPlane.replicas: 3 is not supported, only 1" and "use 1" in refused.resolution


def test_a_refusal_keeps_its_sentence_its_findings_and_its_advice(desk: Desk) -> None:
    desk.run_async(desk.world.group_with_hosts(count=1))
    told = desk.bad(*CREATE, kind=InvalidInput)
    assert told.brief == "workers: host group workers has 1 free host, and 2 are needed"
    assert "ckp hostgroup add" in told.resolution
    assert told.exit_code == 2


def steps(*states: str, begun: str = "2026-04-01T12:00:00Z", over: str = "2026-04-01T12:00:05Z") -> list[dict[str, Any]]:
    phases = ("Provisioning", "Bootstrap", "Cluster Ready", "Addons")
    return [
        {"number": number, "phase": phases[min(3, (number - 1) // 4)], "name": f"s{number}", "title": f"Step {number}", "state": state, "message": "words"}
        | ({"startedAt": begun, "finishedAt": over} if state == "Done" else {})
        for number, state in enumerate(states, 1)
    ]


def test_waiting_shows_each_step_once_with_its_phase_and_duration(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.run_async(desk.world.group_with_hosts())
    done = 0

    def build(_: float) -> None:
        """Instead of sleeping, the cluster comes up a little."""
        nonlocal done
        done = min(14, done + 3)
        status = {"steps": steps(*["Done"] * done, *["Running"] * (done < 14), *["Pending"] * (13 - done))}
        desk.run_async(desk.world.kube.merge(kinds.MANAGED_CONTROL_PLANE, "demo", NAMESPACE, {"status": status}, subresource="status"))
        if done == 14:
            ready = {"status": {"phase": "Provisioned", "controlPlaneReady": True, "infrastructureReady": True}}
            desk.run_async(desk.world.kube.merge(kinds.CLUSTER, "demo", NAMESPACE, ready, subresource="status"))
            workers = {"status": {"readyReplicas": 2}}
            desk.run_async(desk.world.kube.merge(kinds.MACHINE_DEPLOYMENT, "demo-workers", NAMESPACE, workers, subresource="status"))

    monkeypatch.setattr(time, "sleep", build)
    monkeypatch.setattr(cluster_module.wait_until_ready, "__kwdefaults__", {"sleep": build})
    result = desk.ckp(*CREATE, "--wait", "--timeout", "60s")
    assert result.exit_code == 0, (result.output, result.exception)
    lines = result.stderr.splitlines()
    assert [line for line in lines if not line.startswith(" ")][:4] == ["Provisioning", "Bootstrap", "Cluster Ready", "Addons"]
    assert [line for line in lines if line.startswith("  [")] == [f"  [{number:>2}/14] Step {number}: done, 5.0s" for number in range(1, 15)]
    assert lines[-1].startswith("cluster/demo is ready")


def test_a_wait_that_runs_out_ends_with_the_reason_and_its_own_exit_code(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.run_async(desk.world.group_with_hosts())
    desk.good(*CREATE)
    status = {"status": {"steps": steps("Done", "Failed", "Pending")}}
    desk.run_async(desk.world.kube.merge(kinds.MANAGED_CONTROL_PLANE, "demo", NAMESPACE, status, subresource="status"))
    session = Session(read_config(), transport=desk.bridge)
    with pytest.raises(TimedOut) as told:
        cluster_module.wait_until_ready(session, "demo", 0.05, sleep=lambda _: None)
    assert told.value.brief.endswith("step 2 (Step 2): words")
    assert told.value.exit_code == 4
    assert "step 2 Step 2: Failed, words" in told.value.details


def test_waiting_outlives_a_compass_that_is_away_for_a_moment(desk: Desk) -> None:
    desk.run_async(desk.world.group_with_hosts())
    desk.good(*CREATE)
    away = 3

    class Flaky(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            nonlocal away
            if away:
                away -= 1
                raise httpx.ConnectError("refused")
            return desk.bridge.handle_request(request)

    for kind, name, status in (
        (kinds.CLUSTER, "demo", {"controlPlaneReady": True, "infrastructureReady": True}),
        (kinds.MACHINE_DEPLOYMENT, "demo-workers", {"readyReplicas": 2}),
    ):
        desk.run_async(desk.world.kube.merge(kind, name, NAMESPACE, {"status": status}, subresource="status"))
    assert cluster_module.wait_until_ready(Session(read_config(), transport=Flaky()), "demo", 30, sleep=lambda _: None)["ready"]
    assert away == 0


def test_a_cluster_that_failed_for_good_is_not_waited_for(desk: Desk) -> None:
    desk.run_async(desk.world.group_with_hosts())
    desk.good(*CREATE)
    failure = {"status": {"failureMessage": "beyond repair"}}
    desk.run_async(desk.world.kube.merge(kinds.CLUSTER, "demo", NAMESPACE, failure, subresource="status"))
    with pytest.raises(CkpError, match="beyond repair"):
        cluster_module.wait_until_ready(Session(read_config(), transport=desk.bridge), "demo", 30, sleep=lambda _: None)


def test_deleting_waits_until_it_is_gone_or_says_what_is_left(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.run_async(desk.world.group_with_hosts())
    desk.good(*CREATE)
    told = desk.bad("cluster", "delete", "demo", "--wait", "--timeout", "0s", kind=TimedOut)
    assert "not gone" in told.brief
    assert desk.good("cluster", "list").splitlines()[1].split()[:2] == ["demo", "Deleting"]

    def controllers(_: float) -> None:
        """Instead of sleeping, the workers are drained and the Cluster goes."""
        desk.run_async(desk.world.kube.delete(kinds.CLUSTER, "demo", NAMESPACE))

    monkeypatch.setattr(time, "sleep", controllers)
    assert "cluster/demo deleted" in desk.good("cluster", "delete", "demo", "--wait")
    desk.bad("cluster", "delete", "demo", kind=NotFound)


def test_replaced_workers_are_shown_and_replacing_goes_on_by_a_command(desk: Desk) -> None:
    desk.run_async(desk.world.group_with_hosts())
    desk.good(*CREATE)
    assert "Replaced workers" not in desk.good("cluster", "describe", "demo")
    made = {"machine": "demo-1", "host": "one", "cause": "Startup", "reason": "it did not start", "at": "2026-04-01T11:00:00Z", "number": 2}
    desk.run_async(desk.world.kube.merge(kinds.BYO_CLUSTER, "demo", NAMESPACE, {"status": {"replacements": [made]}}, subresource="status"))
    row = next(line for line in desk.good("cluster", "describe", "demo").splitlines() if "demo-1" in line)
    assert row.split() == ["2026-04-01T11:00:00Z", "one", "demo-1", "Startup", "2", "it", "did", "not", "start"]
    assert "goes on" in desk.good("cluster", "resume-replacement", "demo")
    found = desk.world.kube.stored(kinds.BYO_CLUSTER, "demo", NAMESPACE)
    assert names.RESUMED_ANNOTATION in found["metadata"]["annotations"]


def test_a_forced_deletion_lists_what_it_left_behind(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    world = desk.world
    desk.run_async(world.group_with_hosts())
    desk.good(*CREATE)
    meta = {"name": "demo-1", "namespace": NAMESPACE, "labels": {names.CLUSTER_NAME_LABEL: "demo"}, "finalizers": ["machine.cluster.x-k8s.io"]}
    desk.run_async(world.kube.create({"apiVersion": kinds.MACHINE.api_version, "kind": "Machine", "metadata": meta, "spec": {"version": "v1.35.1"}}))
    silent = {"conditions": [{"type": "AgentConnected", "status": "False"}], "observed": {"phase": "Joined"}}
    desk.run_async(world.kube.merge(kinds.BYO_HOST, "workers-host-1", NAMESPACE, {"spec": {"machineRef": {"name": "demo-1", "uid": "1"}}}))
    desk.run_async(world.kube.merge(kinds.BYO_HOST, "workers-host-1", NAMESPACE, {"status": silent}, subresource="status"))
    desk.run_async(world.kube.delete(kinds.MACHINE, "demo-1", NAMESPACE))
    reset = {"conditions": [{"type": "PreTerminateDeleteHookSucceeded", "status": "True"}]}
    desk.run_async(world.kube.merge(kinds.MACHINE, "demo-1", NAMESPACE, {"status": reset}, subresource="status"))
    told = desk.bad("cluster", "delete", "demo", "--wait", "--timeout", "0s", kind=TimedOut)
    assert "machine demo-1: host workers-host-1 does not answer" in told.brief and "ckp cluster delete demo --force" in told.resolution
    noted = {names.LEFT_BEHIND_ANNOTATION: json.dumps(["volume pvc-1 (ceph.example 1), of claim shop/data"])}
    desk.run_async(world.kube.merge(kinds.CLUSTER, "demo", NAMESPACE, {"metadata": {"annotations": noted}}))

    def controllers(_: float) -> None:
        """Instead of sleeping: the host is released as it is, and the Cluster goes."""
        found = world.kube.stored(kinds.CLUSTER, "demo", NAMESPACE)
        assert names.FORCE_DELETE_ANNOTATION in found["metadata"]["annotations"]
        desk.run_async(world.kube.merge(kinds.BYO_HOST, "workers-host-1", NAMESPACE, {"spec": {"machineRef": None}}))
        desk.run_async(world.kube.delete(kinds.CLUSTER, "demo", NAMESPACE))

    monkeypatch.setattr(time, "sleep", controllers)
    lines = desk.good("cluster", "delete", "demo", "--force", "--wait").splitlines()
    assert lines[-2:] == [
        "left behind: volume pvc-1 (ceph.example 1), of claim shop/data",
        "left behind: host workers-host-1 was not cleaned: its agent is not connected; it resets itself when it comes back",
    ]


def test_a_kubeconfig_is_written_for_its_owner_only(desk: Desk, tmp_path: Path) -> None:
    desk.run_async(desk.world.group_with_hosts())
    desk.good(*CREATE)
    desk.bad("cluster", "kubeconfig", "demo", kind=NotFound)
    data = {"value": base64.b64encode(b"kind: Config\n").decode()}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "demo-kubeconfig", "namespace": NAMESPACE}, "data": data}
    desk.run_async(desk.world.kube.create(secret))
    assert desk.good("cluster", "kubeconfig", "demo") == "kind: Config\n"
    target = tmp_path / "kube" / "config"
    desk.good("cluster", "kubeconfig", "demo", "-o", str(target))
    assert target.read_text() == "kind: Config\n"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


# Configuration and connection.


def test_without_a_configuration_it_says_how_to_get_one(desk: Desk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CKP_CONFIG", str(tmp_path / "none.json"))
    assert "make up" in desk.bad("host", "list", kind=NotFound).resolution


@pytest.mark.parametrize(
    ("text", "says"),
    [("{", "cannot be read"), ("[]", "not a JSON object"), ('{"token": "t"}', "server is missing"), ('{"server": "http://x", "token": "t"}', "https")],
)
def test_a_bad_configuration_names_the_field(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(InvalidInput, match=says):
        read_config(file)


def test_the_configuration_is_written_for_its_owner_only_and_others_are_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_config(Config(server="https://c", token="secret"), tmp_path / "sub" / "config.json")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert read_config(file) == Config(server="https://c", token="secret")
    assert capsys.readouterr().err == ""
    file.chmod(0o644)
    read_config(file)
    assert "chmod 600" in capsys.readouterr().err


def test_an_unreachable_compass_is_an_error_with_advice(desk: Desk) -> None:
    write_config(Config(server="https://127.0.0.1:1", token=ADMIN))
    result = CliRunner().invoke(root, ["host", "list"])
    assert isinstance(result.exception, Unreachable)
    assert "https://127.0.0.1:1" in result.exception.brief
    assert "config" in result.exception.resolution


def test_a_refused_token_is_an_error_with_the_files_name(desk: Desk, tmp_path: Path) -> None:
    write_config(Config(server="https://compass", token="another"))
    told = desk.bad("host", "list", kind=Unauthorized)
    assert str(tmp_path / "config.json") in told.resolution


def test_an_answer_that_is_not_compass_is_an_error(desk: Desk) -> None:
    other = httpx.MockTransport(lambda _: httpx.Response(418, text="<html>teapot</html>"))
    with pytest.raises(CkpError, match="not as Compass does"):
        Session(read_config(), transport=other).get("/hosts")


def test_data_is_printed_as_it_was_sent_also_what_this_ckp_does_not_know(desk: Desk) -> None:
    sent = {"items": [{"name": "workers", "colour": "red", "hosts": []}]}
    newer = httpx.MockTransport(lambda _: httpx.Response(200, json=sent))
    result = CliRunner().invoke(root, ["hostgroup", "list", "-o", "json"], obj=newer)
    assert json.loads(result.stdout) == sent
    result = CliRunner().invoke(root, ["hostgroup", "list"], obj=newer)
    assert isinstance(result.exception, CkpError)
    assert "description: is missing" in result.exception.details
    assert "-o json" in result.exception.resolution


def test_input_that_compass_would_refuse_is_refused_with_the_same_sentence(desk: Desk) -> None:
    refused = desk.bad("hostgroup", "create", "workers", "--description", "x" * 1001, kind=InvalidInput)
    sent = {"name": "workers", "description": "x" * 1001}
    answer = desk.run_async(desk.world.call("POST", "/host-groups", json=sent, expect=422))
    assert refused.brief == answer["error"]["message"]


def test_a_second_machine_is_shown_beside_the_first(desk: Desk) -> None:
    desk.enrol("c" * 32, MACHINE_B)
    assert len(desk.good("host", "requests").splitlines()) == 3


# Tables and durations.


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (432, "7m12s"),
        (3180, "53m"),
        (10799, "179m"),
        (14820, "4h7m"),
        (68400, "19h"),
        (277200, "3d5h"),
        (1036800, "12d"),
    ],
)
def test_ages_are_written_as_kubectl_writes_them(seconds: int, text: str) -> None:
    assert short_duration(seconds) == text


def test_an_age_counts_from_its_moment() -> None:
    assert age((datetime.now(UTC) - timedelta(seconds=30)).isoformat()) in ("30s", "31s")
    assert age(None) == "<unknown>"


@given(st.lists(st.tuples(st.text(max_size=12), st.text(max_size=12)), min_size=1, max_size=6))
def test_columns_are_aligned_whatever_is_in_them(rows: list[tuple[str, str]]) -> None:
    text = table((Column("FIRST", lambda row: row[0]), Column("SECOND", lambda row: row[1])), rows)
    lines = text.split("\n")
    assert len(lines) == len(rows) + 1
    where = lines[0].index("SECOND")
    assert all(line[where - 3 : where].strip() == "" for line in lines)


@pytest.mark.parametrize(("text", "seconds"), [("90", 90.0), ("90s", 90.0), ("15m", 900.0), ("1h", 3600.0)])
def test_durations_are_read(text: str, seconds: float) -> None:
    assert Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-5s", "1d", "1.5h"])
def test_an_invalid_duration_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Duration().convert(text, None, None)


@pytest.mark.parametrize("name", ["../clusters/demo", "demo#old", "worker-1?force=true", "..", "a b", "", "%2e%2e"])
def test_a_name_that_would_make_another_path_is_refused_before_anything_is_sent(name: str) -> None:
    sent: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(200, json={})

    session = Session(Config(server="https://compass.test", token="t"), transport=httpx.MockTransport(answer))
    with pytest.raises(InvalidInput, match="nothing in Compass can have"):
        session.call("DELETE", f"/hosts/{name}")
    assert sent == []


@pytest.mark.parametrize(("field", "value"), [("server", "https://[::1"), ("token", "t\u00f6ken"), ("token", "two words")])
def test_a_value_in_the_configuration_that_cannot_be_is_named(tmp_path: Path, field: str, value: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"server": "https://compass.test", "token": "t", field: value}))
    path.chmod(0o600)
    with pytest.raises(InvalidInput, match=field):
        read_config(path)
