"""People of several tenants at a Compass in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from tests.worlds.compass import World

PASSWORD = "several words of one person"
API = "/api/v1"


@dataclass
class Person:
    """Somebody who is signed in at REST."""

    name: str
    token: str
    http: httpx.AsyncClient

    async def call(self, method: str, path: str, *, expect: int | None = None, **arguments: Any) -> Any:
        answer = await self.http.request(method, path if path.startswith("/api") else API + path, **arguments)
        if expect is not None:
            assert answer.status_code == expect, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content and "json" in answer.headers["content-type"] else answer.text

    async def status(self, method: str, path: str, **arguments: Any) -> int:
        return (await self.http.request(method, path if path.startswith("/api") else API + path, **arguments)).status_code


async def make_user(world: World, name: str, *roles: tuple[str, str]) -> None:
    """A local user, `ann` or `ann@acme`, with roles: (role, `domain/project`, `domain` or empty)."""
    local, _, domain = name.partition("@")
    users = f"{API}/domains/{domain}/users" if domain else f"{API}/users"
    await world.call("POST", users, json={"name": local, "password": PASSWORD}, expect=201)
    for role, where in roles:
        await world.call("POST", bindings(where), json={"role": role, "user": name}, expect=201)


def bindings(where: str) -> str:
    """Where the roles of a part of the platform are."""
    domain, _, project = where.partition("/")
    return API + (f"/domains/{domain}/projects/{project}" if project else f"/domains/{domain}" if domain else "") + "/role-bindings"


@asynccontextmanager
async def person(world: World, name: str, token: str = "", *, address: str = "203.0.113.7", agent: str = "tests") -> AsyncIterator[Person]:
    """Somebody who signs in, or who has a token."""
    transport = httpx.ASGITransport(world.public_app, client=(address, 40000))
    async with httpx.AsyncClient(transport=transport, base_url="https://compass", headers={"User-Agent": agent}) as http:
        if not token:
            answer = await http.post(f"{API}/sessions", json={"name": name, "password": PASSWORD})
            assert answer.status_code == 201, answer.text
            token = answer.json()["token"]
        http.headers["Authorization"] = f"Bearer {token}"
        yield Person(name, token, http)
