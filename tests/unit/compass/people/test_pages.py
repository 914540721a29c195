"""People and rights in the console, by a browser without scripts."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from ckp.compass.web.app import FrontDoor, WebApp
from tests.worlds.compass import World
from tests.worlds.console import Browser, ConsoleWorld, text_of
from tests.worlds.people import PASSWORD, person

OTHER = "other words of the same person"


@asynccontextmanager
async def browser_of(world: World, name: str, password: str = PASSWORD) -> AsyncIterator[Browser]:
    """A browser of somebody who has signed in, or of the holder of the bootstrap token."""
    web = WebApp(world.cases)
    console = ConsoleWorld(world, web, FrontDoor(world.public_app, web))
    try:
        async with console.browser(signed_in=name == "bootstrap") as browser:
            if name != "bootstrap":
                data = {"name": name, "password": password, "next": "/"}
                answer = await browser.http.post("/sign-in", data=data, headers={"origin": "https://compass", "sec-fetch-site": "same-origin"})
                assert answer.status_code == 303, text_of(answer)
            yield browser
    finally:
        web.close()


async def test_the_first_administrator_is_made_on_a_page_and_signs_in(world: World) -> None:
    async with browser_of(world, "bootstrap") as browser:
        assert "Make the first administrator" in text_of(await browser.get("/account"))
        form = {"name": "root", "password": PASSWORD, "again": PASSWORD}
        await browser.post("/first-administrator", form | {"again": OTHER}, expect=422)
        await browser.post("/first-administrator", form)
        await browser.get("/account", expect=303)
    async with browser_of(world, "root") as browser:
        page = text_of(await browser.get("/account"))
        assert "platform-administrator · the platform" in page and "Make the first administrator" not in page


async def test_wrong_words_sign_nobody_in(tenants: World) -> None:
    with pytest.raises(AssertionError, match="not the name and the password"):
        async with browser_of(tenants, "uma@acme", OTHER):
            pass


async def test_one_s_own_password_is_changed_and_all_sessions_end(tenants: World) -> None:
    async with browser_of(tenants, "uma@acme") as here, browser_of(tenants, "uma@acme") as there:
        await here.post("/account/password", {"current": PASSWORD, "password": OTHER, "again": OTHER})
        for browser in (here, there):
            await browser.get("/account", expect=303)
    async with browser_of(tenants, "uma@acme", OTHER) as again:
        await again.get("/account")


async def test_a_domain_with_a_project_and_people_is_made_on_pages(world: World) -> None:
    async with browser_of(world, "bootstrap") as browser:
        assert (await browser.post("/domains", {"name": "acme", "displayName": "Acme Ltd"})).headers["location"] == "/domains/acme"
        await browser.post("/domains/acme/projects", {"name": "web", "displayName": "Shop"})
        await browser.post("/domains/acme/users", {"name": "pat", "password": PASSWORD, "displayName": "Pat"})
        await browser.post("/domains/acme/roles", {"who": "pat@acme", "role": "domain-administrator"})
        page = text_of(await browser.get("/domains/acme"))
        assert "Domain Acme Ltd" in page and "Shop" in page and "pat@acme domain-administrator acme" in page
        await browser.post("/domains/acme/rename", {"displayName": "Acme Inc"})
        await browser.post("/domains/acme/delete", expect=409)
        assert "pat@acme" in text_of(await browser.get("/people"))
    async with browser_of(world, "pat@acme") as pat:
        start = (await pat.get("/")).text
        assert 'href="/domains/acme/projects/web"' in start and "default" not in text_of(await pat.get("/"))
        assert "New domain" not in start and 'href="/people"' not in start
        await pat.post("/domains/acme/projects/web/rename", {"displayName": "Shops"})
        await pat.post("/domains/acme/projects/web/delete")
        assert "Shops" not in text_of(await pat.get("/domains/acme"))


async def test_a_token_is_shown_once_on_the_project_s_page(tenants: World) -> None:
    access = "/domains/acme/projects/web/access"
    async with browser_of(tenants, "pat@acme") as pat:
        await pat.post(f"{access}/service-accounts", {"name": "ci", "description": "builds"})
        await pat.post(f"{access}/roles", {"who": "acme/web/ci", "role": "user"})
        page = await pat.post(f"{access}/service-accounts/ci/tokens", {"days": "30"}, expect=200)
        [raw] = re.findall(r"ckpsa_\w+", page.text)
        assert raw not in (await pat.get(access)).text
        async with person(tenants, "ci", raw) as ci:
            await ci.call("GET", "/domains/acme/projects/web/clusters", expect=200)
            [token_id] = re.findall(r"tokens/(\w+)/delete", (await pat.get(access)).text)
            await pat.post(f"{access}/service-accounts/ci/tokens/{token_id}/delete")
            await ci.call("GET", "/me", expect=401)
        await pat.post(f"{access}/service-accounts/ci/tokens", {"days": "400"}, expect=422)
        await pat.post(f"{access}/service-accounts/ci/delete")


async def test_pages_offer_what_one_may_do(tenants: World) -> None:
    root = "/domains/acme/projects/web"
    for name, audit, gives, renames in (("aud@acme", True, False, False), ("uma@acme", False, False, False), ("pat@acme", True, True, True)):
        async with browser_of(tenants, name) as browser:
            page = (await browser.get(f"{root}/access")).text
            assert (f'href="{root}/audit"' in page, "Give the role" in page, "Rename" in page) == (audit, gives, renames), name
            await browser.get(f"{root}/audit", expect=200 if audit else 403)


async def test_roles_of_above_are_shown_and_not_taken_below(tenants: World) -> None:
    async with browser_of(tenants, "ann@acme") as ann:
        page = (await ann.get("/domains/acme")).text
        takes = re.findall(r'action="(/domains/acme/roles/\d+/delete)"', page)
        assert len(takes) == 1, "of four roles in the domain and below, one is the domain's own"
        assert "pat@acme" in page


async def test_no_two_things_on_a_page_have_the_same_id(tenants: World) -> None:
    async with browser_of(tenants, "bootstrap") as browser:
        for page in ("/", "/people", "/domains/acme", "/domains/acme/projects/web/access", "/account", "/audit"):
            ids = re.findall(r' id="([^"]+)"', (await browser.get(page)).text)
            assert len(ids) == len(set(ids)), (page, sorted(ids))
