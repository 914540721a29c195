"""Nothing of one project shows on another project's pages or streams, whatever names and ids they are asked by, and nothing of it can be changed there."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from ckp.api import kinds, names
from ckp.compass.identity import ProjectRef
from ckp.compass.web.app import routes_of
from ckp.compass.web.live.streams import Streams
from tests.worlds.compass import NAMESPACE, World, cluster_body, facts, make_csr
from tests.worlds.console import ROOT, Browser, ConsoleWorld

THEIRS = "/api/v1/domains/acme/projects/secret"
MARK = "theirs"
"""In every name of the other project."""


async def other_tenant(world: World) -> dict[str, str]:
    """A project with one of everything: the names and ids by which it is asked for."""
    await world.project("acme", "secret")
    await world.call("POST", f"{THEIRS}/host-groups", json={"name": f"{MARK}-group"}, expect=201)
    psk = (await world.call("POST", f"{THEIRS}/host-psk/reset", expect=200))["key"]
    ids = []
    for number, name in enumerate((f"{MARK}-host", f"{MARK}-pending")):
        request = {"psk": psk, "domain": "acme", "project": "secret", "facts": facts(name, str(number) * 32).model_dump(mode="json"), "csr": make_csr()}
        answer = await world.internal.post("/internal/v1/enrolments", json={"request": request, "source": "192.0.2.5"})
        assert answer.status_code == 202, answer.text
        ids.append(answer.json()["request_id"])
    await world.call("POST", f"{THEIRS}/host-requests/{ids[0]}/approve", json={"groups": [f"{MARK}-group"]}, expect=200)
    namespace = names.tenant_namespace("acme", "secret")
    status = {
        "conditions": [{"type": "AgentConnected", "status": "True", "reason": "Test"}],
        "observed": {"phase": "Free", "generation": 0},
        "agent": {"connected": True},
    }
    await world.kube.merge(kinds.BYO_HOST, f"{MARK}-host", namespace, {"status": status}, subresource="status")
    await world.call("POST", f"{THEIRS}/clusters", json=cluster_body(name=f"{MARK}-cluster", hostGroup=f"{MARK}-group", workers=1), expect=201)
    return {"cluster": f"{MARK}-cluster", "host": f"{MARK}-host", "group": f"{MARK}-group", "approved": ids[0], "pending": ids[1], "namespace": namespace}


def attempts(found: dict[str, str]) -> list[str]:
    """Names and ids of the other project, bare and as parts of paths."""
    tricks = [f"../{found['namespace']}/{found['cluster']}", f"%2e%2e%2f{found['namespace']}", f"{found['namespace']}/{found['cluster']}"]
    return [found[key] for key in ("cluster", "host", "group", "approved", "pending")] + tricks


async def test_the_other_project_s_own_pages_do_show_it(console: ConsoleWorld, browser: Browser) -> None:
    """Else the tests below could not fail."""
    found = await other_tenant(console.world)
    root = "/domains/acme/projects/secret"
    for path in ("", "/clusters", f"/clusters/{found['cluster']}", "/hosts", f"/hosts/{found['host']}", "/requests", "/host-groups", "/audit"):
        assert MARK in (await browser.get(root + path)).text, path


async def test_no_page_of_a_project_has_anything_of_another_one(console: ConsoleWorld, browser: Browser) -> None:
    found = await other_tenant(console.world)
    checked = 0
    for route in routes_of(console.web.console):
        if not route.path.startswith("/domains/") or "GET" not in (route.methods or ()) or route.path.endswith("/stream"):
            continue
        for name in attempts(found) if "{name}" in route.path else [""]:
            path = route.path.format(domain="default", project="default", name=name)
            answer = await browser.get(path, expect=None)
            shown = answer.text
            for part in filter(None, re.split(r"/|%2f|%2e|\.\.", name)):  # the name that was asked for is said again
                shown = shown.replace(part, "")
            assert MARK not in shown and found["namespace"] not in shown, path
            if name:
                assert answer.status_code in (404, 422, 303) or "{name}" not in route.path, path
            checked += 1
    assert checked > 30
    for query in (f"q={MARK}", f"group={found['group']}", f"state=all&q={MARK}"):
        for page in ("clusters", "hosts", "requests", "audit"):
            answer = await browser.get(f"{ROOT}/{page}?{query}", expect=None)
            assert f"{MARK}-host" not in answer.text and f"{MARK}-cluster" not in answer.text and f"{MARK}-pending" not in answer.text


async def test_no_stream_of_a_project_has_anything_of_another_one(console: ConsoleWorld, browser: Browser) -> None:
    found = await other_tenant(console.world)
    for path in (f"clusters/{found['cluster']}/stream", f"hosts/{found['host']}/stream"):
        await browser.get(f"{ROOT}/{path}", expect=404, accept="text/event-stream")
    for subject in ("clusters", "hosts", "requests"):
        console.web.console.streams = Streams(console.world.cases.changes, console.world.cases.sessions)
        reading = asyncio.create_task(browser.get(f"{ROOT}/{subject}/-/stream?q={MARK}", accept="text/event-stream"))
        await asyncio.sleep(0.3)
        console.web.close()
        assert MARK not in (await asyncio.wait_for(reading, 5)).text.replace(f"q={MARK}", "")


async def test_nothing_of_another_project_is_changed(console: ConsoleWorld, browser: Browser) -> None:
    world = console.world
    found = await other_tenant(world)
    await world.call("POST", "/host-groups", json={"name": "ours"}, expect=201)
    await with_kubeconfig_of_theirs(world, found)
    before = await state_of_theirs(world)
    cluster = f"{ROOT}/clusters/{found['cluster']}"
    tried: list[tuple[str, dict[str, Any]]] = [
        (f"{cluster}/kubeconfig", {}),
        (f"{cluster}/scale", {"workers": "1"}),
        (f"{cluster}/delete", {"confirm": found["cluster"]}),
        (f"{ROOT}/host-groups/ours/members", {"action": "add", "host": found["host"]}),
        (f"{ROOT}/host-groups/{found['group']}/members", {"action": "remove", "host": found["host"]}),
        (f"{ROOT}/requests/decide", {"action": "approve", "id": found["pending"]}),
        (f"{ROOT}/requests/decide", {"action": "reject", "id": found["pending"], "reason": "x"}),
    ]
    for path, data in tried:
        answer = await browser.post(path, data, expect=None)
        assert answer.status_code in (404, 409), (path, answer.status_code)
        assert "YXBp" not in answer.text and "apiVersion" not in answer.text
    assert await state_of_theirs(world) == before


async def with_kubeconfig_of_theirs(world: World, found: dict[str, str]) -> None:
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": f"{found['cluster']}-kubeconfig", "namespace": found["namespace"]},
        "data": {"value": "YXBp"},
    }
    await world.kube.create(secret)


async def state_of_theirs(world: World) -> list[Any]:
    paths = ("clusters", "hosts", "host-groups", "host-requests", "audit")
    return [await world.call("GET", f"{THEIRS}/{path}", expect=200) for path in paths]


@pytest.mark.parametrize("domain,project", [("a-b", "c"), ("..", "x"), ("default", "UPPER"), ("default", "x" * 40)])
async def test_a_project_that_can_not_be_is_refused_before_anything_is_read(console: ConsoleWorld, browser: Browser, domain: str, project: str) -> None:
    before = len(console.world.kube.calls)
    answer = await browser.get(f"/domains/{domain}/projects/{project}/clusters", expect=None)
    assert answer.status_code in (404, 422) and len(console.world.kube.calls) == before


def test_projects_have_namespaces_of_their_own() -> None:
    assert ProjectRef.of("acme", "secret").namespace != NAMESPACE
