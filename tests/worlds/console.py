"""A browser without scripts at a whole Compass in memory: it keeps cookies, follows links by hand, and sends forms as their pages have them."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

import httpx

from ckp.api import kinds, names
from ckp.compass.store.places import Place
from ckp.compass.web.app import FrontDoor, WebApp
from ckp.rules.lifecycle import STEPS
from tests.simulators.clock import ManualClock
from tests.worlds.compass import ADMIN, NAMESPACE, World, cluster_body, make_world

ROOT = "/domains/default/projects/default"
ORIGIN = "https://compass"


@dataclass
class Browser:
    """One browser: its cookies, and what it sends by itself."""

    http: httpx.AsyncClient

    async def get(self, path: str, *, expect: int | None = 200, **headers: str) -> httpx.Response:
        answer = await self.http.get(path, headers={"sec-fetch-site": "same-origin", **headers})
        assert expect is None or answer.status_code == expect, f"{path}: {answer.status_code} {text_of(answer)[:500]}"
        return answer

    async def post(self, path: str, data: dict[str, Any] | None = None, *, csrf: str | None = None, expect: int | None = 303, **headers: str) -> httpx.Response:
        """Send a form. Without `csrf`, the one of the start page."""
        given = await self.csrf() if csrf is None else csrf
        sent = {"origin": ORIGIN, "sec-fetch-site": "same-origin", **headers}
        answer = await self.http.post(path, data={"csrf": given, **(data or {})}, headers=sent)
        assert expect is None or answer.status_code == expect, f"{path}: {answer.status_code} {text_of(answer)[:1000]}"
        return answer

    async def csrf(self) -> str:
        return csrf_of(await self.get("/releases"))

    async def sign_in(self, token: str = ADMIN, *, target: str = "/", expect: int = 303) -> httpx.Response:
        answer = await self.http.post("/sign-in", data={"token": token, "next": target}, headers={"origin": ORIGIN, "sec-fetch-site": "same-origin"})
        assert answer.status_code == expect, answer.text
        return answer


@dataclass
class ConsoleWorld:
    world: World
    web: WebApp
    door: FrontDoor

    @asynccontextmanager
    async def browser(self, *, signed_in: bool = True, address: str = "203.0.113.9") -> AsyncIterator[Browser]:
        transport = httpx.ASGITransport(self.door, client=(address, 40000))
        async with httpx.AsyncClient(transport=transport, base_url=ORIGIN) as http:
            made = Browser(http)
            if signed_in:
                await made.sign_in()
            yield made


@asynccontextmanager
async def console_world(directory: Path, *, place: Place | None = None, clock: ManualClock | None = None, **more: Any) -> AsyncIterator[ConsoleWorld]:
    async with make_world(directory, place=place, clock=clock, **more) as world:
        web = WebApp(world.cases)
        try:
            yield ConsoleWorld(world, web, FrontDoor(world.public_app, web))
        finally:
            web.close()


def csrf_of(answer: httpx.Response) -> str:
    found = re.search(r'name="csrf" value="([^"]+)"', answer.text)
    assert found, answer.text
    return found[1]


def text_of(answer: httpx.Response) -> str:
    """What people read on a page."""
    bare = re.sub(r"<[^>]+>", " ", re.sub(r"<head>.*</head>", "", answer.text, flags=re.S))
    return re.sub(r"\s+", " ", unescape(bare)).strip()


async def with_cluster(world: World, name: str = "demo", *, done: int = 7, workers: int = 2, message: str = "etcd starts", **changes: Any) -> None:
    """A cluster with so many of its fourteen steps done, as the controllers leave it."""
    await world.call("POST", "/clusters", json=cluster_body(name=name, workers=workers, **changes), expect=201)
    await set_steps(world, name, done, message)


async def set_steps(world: World, name: str, done: int, message: str = "etcd starts") -> None:
    """How far a cluster is."""
    steps = []
    for number, step in enumerate(STEPS, 1):
        state = "Done" if number <= done else "Running" if number == done + 1 else "Pending"
        record: dict[str, Any] = {"number": number, "phase": step.phase, "name": step.name, "title": step.title, "state": state}
        if state != "Pending":
            record["startedAt"] = "2026-04-01T12:00:00Z"
        if state == "Done":
            record["finishedAt"] = f"2026-04-01T12:00:{number:02}Z"
        if state == "Running":
            record["message"] = message
        steps.append(record)
    patch = {"status": {"steps": steps, "conditions": [{"type": "Ready", "status": "False", "reason": "Starting", "message": message}]}}
    await world.kube.merge(kinds.MANAGED_CONTROL_PLANE, name, NAMESPACE, patch, subresource="status")


async def with_kubeconfig(world: World, name: str = "demo", value: str = "YXBpVmVyc2lvbjogdjEK") -> None:
    await world.kube.create(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": f"{name}-kubeconfig", "namespace": NAMESPACE, "labels": {names.CLUSTER_NAME_LABEL: name}},
            "data": {"value": value},
        }
    )
