"""Every route and every page, from their registries, asked by people who may not: another tenant's get nothing, and an auditor changes nothing."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from fastapi import FastAPI

from ckp.api.compass.features import FEATURES, PROJECT
from ckp.compass.rest.public import PREFIX, all_routers
from ckp.compass.web.app import FrontDoor, WebApp, routes_of
from ckp.rules.roles import CHANGING
from tests.unit.compass.console.test_tenants import MARK, other_tenant, with_kubeconfig_of_theirs
from tests.worlds.compass import World
from tests.worlds.console import Browser, ConsoleWorld
from tests.worlds.people import PASSWORD, make_user, person

LISTS = ("/me", "/releases", "/agents", "/domains", "/projects")
OWN = {("POST", "/me/password"), ("POST", "/sessions"), ("DELETE", "/sessions/current"), ("GET", "/releases/{name}"), *(("GET", path) for path in LISTS)}
"""What has no object of anybody in its address: one's own things, and lists of what one may see."""
REFUSED = {403, 404}


def rest_routes() -> list[tuple[str, str, dict[str, Any] | None]]:
    """Method, path, and a body that would be taken."""
    app = FastAPI()
    for router in all_routers():
        app.include_router(router, prefix=PREFIX)
    schema = app.openapi()
    found = []
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            found.append((method.upper(), path.removeprefix(PREFIX), body_for(operation, schema)))
    return found


def body_for(operation: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any] | None:
    """The smallest body that has the right shape, so that nothing is refused for its shape alone."""
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    return value_of(content, schema) if content else None


def value_of(shape: dict[str, Any], schema: dict[str, Any]) -> Any:
    if "$ref" in shape:
        return value_of(schema["components"]["schemas"][shape["$ref"].rpartition("/")[2]], schema)
    if "anyOf" in shape:
        return value_of(shape["anyOf"][0], schema)
    if "examples" in shape:
        return shape["examples"][0]
    if "enum" in shape:
        return shape["enum"][0]
    if shape.get("type") == "object" or "properties" in shape:
        return {name: value_of(part, schema) for name, part in shape.get("properties", {}).items() if name in shape.get("required", [])}
    if shape.get("type") == "array":
        return [value_of(shape["items"], schema)]
    return {"integer": 1, "boolean": True}.get(str(shape.get("type")), "somename")


def feature_of(method: str, path: str) -> Any:
    short = (PREFIX + path).replace(PROJECT, "…").removeprefix(PREFIX)
    return next(one for one in FEATURES if one.rest == f"{method} {short}")


def filled(path: str, domain: str, project: str, names: dict[str, str]) -> Iterator[str]:
    """The path with the names and ids of a project's objects, each in each place."""
    given = path.replace("{domain}", domain).replace("{project}", project)
    places = re.findall(r"{(\w+)}", given)
    if not places:
        yield given
        return
    for value in dict.fromkeys(names.values()) if places != ["binding"] else [names["role"]]:
        yield re.sub(r"{\w+}", value, given)


@pytest.fixture
async def full(world: World) -> AsyncIterator[tuple[World, dict[str, str]]]:
    """acme/secret with one of everything and people, and people of another tenant with every role that they can have there."""
    names = await other_tenant(world)
    await world.call("POST", "/api/v1/domains/acme/projects/secret/service-accounts", json={"name": f"{MARK}-account"}, expect=201)
    token = await world.call("POST", f"/api/v1/domains/acme/projects/secret/service-accounts/{MARK}-account/tokens", expect=201)
    await make_user(world, f"{MARK}-user@acme", ("auditor", "acme/secret"), ("auditor", "acme"))
    roles = (await world.call("GET", "/api/v1/role-bindings", expect=200))["items"]
    await world.project("other", "web")
    await make_user(world, "olga@other", ("domain-administrator", "other"), ("project-administrator", "other/web"), ("user", "other/web"), ("auditor", "other"))
    await make_user(world, "nobody")
    yield world, {**names, "account": f"{MARK}-account", "user": f"{MARK}-user", "token": token["id"], "role": str(roles[0]["id"])}


async def state_of(world: World) -> str:
    """All that acme has, and what is in the management cluster."""
    base = "/api/v1/domains/acme/projects/secret"
    paths = ("clusters", "hosts", "host-groups", "host-requests", "host-approval-rules", "service-accounts", "role-bindings")
    found = [await world.call("GET", f"{base}/{path}", expect=200) for path in paths]
    for path in ("/api/v1/domains/acme", "/api/v1/domains/acme/users", "/api/v1/domains/acme/role-bindings", "/api/v1/users", "/api/v1/role-bindings"):
        found.append(await world.call("GET", path, expect=200))
    return json.dumps(found)


@pytest.mark.parametrize("who", ["olga@other", "nobody"])
async def test_no_route_gives_another_tenant_anything(full: tuple[World, dict[str, str]], who: str) -> None:
    world, names = full
    before, tried = await state_of(world), 0
    async with person(world, who) as stranger:
        for method, path, body in rest_routes():
            for domain, project in (("acme", "secret"), ("other", "web")):
                if domain == "other" and (who == "nobody" or not ("{project}" in path and path.count("{") > 2)):
                    continue  # their own things, by others' names, where there is a place for a name
                for address in filled(path, domain, project, names):
                    if (method, path) in OWN:
                        continue
                    answer = await stranger.http.request(method, f"/api/v1{address}", json=body)
                    tried += 1
                    # A path that holds the name twice may mean something of theirs: then it is 404 for want of it, or the shape is refused.
                    assert answer.status_code in (REFUSED if domain == "acme" else {*REFUSED, 409, 422}), (method, address, answer.status_code, answer.text)
                    said = answer.text
                    for value in sorted(names.values(), key=len, reverse=True):  # what was asked for is said again
                        said = said.replace(value, "") if value in address else said
                    assert MARK not in said, (method, address, said)
    assert tried > 150 and await state_of(world) == before


async def test_lists_that_are_for_everybody_have_nothing_of_another_tenant(full: tuple[World, dict[str, str]]) -> None:
    world, names = full
    async with person(world, "olga@other") as olga:
        for path in LISTS:
            said = json.dumps(await olga.call("GET", path, expect=200))
            assert "acme" not in said and MARK not in said and names["namespace"] not in said, path


@pytest.mark.parametrize("where", ["acme/secret", "acme", ""])
async def test_an_auditor_reads_and_every_change_is_refused(full: tuple[World, dict[str, str]], where: str) -> None:
    world, names = full
    await make_user(world, "aud", ("auditor", where))
    before, refused, read = await state_of(world), 0, 0
    async with person(world, "aud") as auditor:
        for method, path, body in rest_routes():
            if (method, path) in OWN:
                continue
            feature = feature_of(method, path)
            for address in filled(path, "acme", "secret", names):
                status = await auditor.status(method, f"/api/v1{address}", json=body)
                if feature.least in CHANGING:
                    refused += 1
                    assert status == 403, (method, address, status)
                else:
                    assert method == "GET"
                    read += status == 200
    assert refused > 60 and read > 10 and await state_of(world) == before


def test_a_change_is_every_route_that_is_not_a_get() -> None:
    """So that the test above can't miss one; `GET` may hand out secrets, and then it is one, too."""
    for method, path, _ in rest_routes():
        if (method, path) not in OWN and method != "GET":
            assert feature_of(method, path).least in CHANGING, path


async def test_an_object_named_by_dots_is_not_the_one_that_holds_it(world: World) -> None:
    """RFC 3986, 5.2.4: clients resolve `..`, so DELETE …/web/hosts/.. arrives as DELETE …/web/; and many follow a redirect with the same method."""
    await world.project("acme", "web")
    for path in ("/api/v1/domains/acme/projects/web/", "/api/v1/domains/acme/projects/", "/api/v1/domains/acme/"):
        assert (await world.rest.delete(path)).status_code == 404, path
    await world.call("GET", "/api/v1/domains/acme/projects/web", expect=200)


async def browser_of(console: ConsoleWorld, stack: Any, name: str) -> Browser:
    browser: Browser = await stack.enter_async_context(console.browser(signed_in=False))
    data = {"name": name, "password": PASSWORD, "next": "/"}
    answer = await browser.http.post("/sign-in", data=data, headers={"origin": "https://compass", "sec-fetch-site": "same-origin"})
    assert answer.status_code == 303, answer.text
    return browser


@pytest.mark.parametrize("who", ["olga@other", "nobody", "auditor"])
async def test_no_page_and_no_stream_gives_another_tenant_anything_and_none_lets_an_auditor_change_something(
    full: tuple[World, dict[str, str]], who: str
) -> None:
    world, names = full
    await with_kubeconfig_of_theirs(world, names)
    web = WebApp(world.cases)
    console = ConsoleWorld(world, web, FrontDoor(world.public_app, web))
    if who == "auditor":
        await make_user(world, "auditor", ("auditor", ""))
    before, tried = await state_of(world), 0
    async with AsyncExitStack() as stack:
        stack.callback(web.close)
        browser = await browser_of(console, stack, who)
        csrf = await browser.csrf()
        for route in routes_of(web.console):
            if "{domain}" not in route.path and "{project}" not in route.path:
                continue
            for method in (route.methods or set()) - {"HEAD"}:
                if who == "auditor" and method == "GET":
                    continue
                for address in filled(route.path.replace(":path", ""), "acme", "secret", names):
                    if method == "GET":
                        answer = await asyncio.wait_for(browser.get(address, expect=None), 10)
                    else:
                        answer = await browser.post(address, form_for(address, names), csrf=csrf, expect=None)
                    tried += 1
                    allowed = {403} if who == "auditor" else {403, 404}
                    if who == "auditor" and answer.status_code == 404 and "clusters" in address and f"{MARK}-cluster" not in address:
                        continue  # there is nothing of that name to change
                    assert answer.status_code in allowed, (method, address, answer.status_code)
                    said = answer.text
                    for value in sorted(names.values(), key=len, reverse=True):
                        said = said.replace(value, "") if value in address else said
                    assert MARK not in said and "apiVersion" not in said, (method, address)
    assert tried > 5 and await state_of(world) == before


@pytest.mark.parametrize("who", ["olga@other", "nobody"])
async def test_the_platform_s_pages_are_for_those_who_have_a_role_in_all_of_it(full: tuple[World, dict[str, str]], who: str) -> None:
    world, _ = full
    web = WebApp(world.cases)
    console = ConsoleWorld(world, web, FrontDoor(world.public_app, web))
    async with AsyncExitStack() as stack:
        stack.callback(web.close)
        browser = await browser_of(console, stack, who)
        for page in ("/people", "/audit"):
            answer = await browser.get(page, expect=403)
            assert "acme" not in answer.text and MARK not in answer.text
        for page in ("/", "/account", "/releases"):
            answer = await browser.get(page)
            assert "acme" not in answer.text and MARK not in answer.text
        for page in ("/domains", "/people/users", "/people/roles"):
            await browser.post(page, form_for(page, {"cluster": "c", "host": "h", "pending": "p"}), expect=403)


def form_for(address: str, names: dict[str, str]) -> dict[str, Any]:
    """What each form of the console may need, all at once."""
    cluster = "name: new\nversion: v1.35.1\nhostGroup: g\nworkers: 1\npodCIDR: 10.42.0.0/16\nserviceCIDR: 10.43.0.0/16\n"
    return {
        "workers": "1",
        "version": "v1.35.1",
        "confirm": names["cluster"],
        "name": "new",
        "action": "add" if "members" in address else "approve",
        "host": names["host"],
        "id": names["pending"],
        "role": "auditor",
        "who": "nobody",
        "do": "create",
        "view": "yaml",
        "text": cluster,
    }
