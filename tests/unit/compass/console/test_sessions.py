"""Sessions of the console, and attacks on them."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text

from ckp.compass.access.sessions import IDLE, LONGEST
from ckp.compass.app import follow_admin_token
from ckp.compass.web.app import routes_of
from ckp.compass.web.gate import OPEN_PATHS, local_path
from ckp.compass.web.state import COOKIE
from ckp.kits.retry import wait_until_async
from tests.worlds.compass import ADMIN
from tests.worlds.console import ORIGIN, ROOT, Browser, ConsoleWorld, csrf_of, text_of

OTHER_TOKEN = "another-token-of-at-least-twenty"


async def is_out(browser: Browser) -> bool:
    answer = await browser.get("/releases", expect=None)
    return answer.status_code == 303 and answer.headers["location"] == "/sign-in?next=%2Freleases"


async def test_without_a_session_every_page_leads_to_the_sign_in(console: ConsoleWorld) -> None:
    async with console.browser(signed_in=False) as browser:
        for route in routes_of(console.web.console):
            if route.path in OPEN_PATHS or "{name:path}" in route.path or "GET" not in (route.methods or ()):
                continue
            path = route.path.format(domain="default", project="default", name="demo")
            answer = await browser.get(path, expect=303)
            assert answer.headers["location"].startswith("/sign-in"), path
            assert (await browser.get(path, expect=401, accept="text/event-stream")).text == "the session has ended"
        answer = await browser.post("/sign-out", csrf="", expect=401)
        assert "your session has ended, and nothing was changed" in text_of(answer)


async def test_signing_in_leads_to_the_page_that_was_asked_for(console: ConsoleWorld) -> None:
    async with console.browser(signed_in=False) as browser:
        asked = await browser.get(f"{ROOT}/clusters?q=a", expect=303)
        form = await browser.get(asked.headers["location"])
        assert 'name="next" value="/domains/default/projects/default/clusters?q=a"' in form.text
        assert (await browser.sign_in(target=f"{ROOT}/clusters?q=a")).headers["location"] == f"{ROOT}/clusters?q=a"
        await browser.get(f"{ROOT}/clusters?q=a")


async def test_the_cookie_is_for_this_host_alone_and_the_database_has_only_its_hash(console: ConsoleWorld) -> None:
    async with console.browser(signed_in=False) as browser:
        cookie = (await browser.sign_in()).headers["set-cookie"]
        raw = browser.http.cookies[COOKIE]
    attributes = {part.strip().lower() for part in cookie.split(";")[1:]}
    assert cookie.startswith("__Host-ckp=") and attributes == {"httponly", "path=/", "samesite=lax", "secure"}
    assert len(raw) >= 43  # 256 bits
    async with console.world.database.reading() as unit:
        [row] = (await unit.session.execute(text("select * from sessions"))).mappings().all()
    assert row["digest"] == hashlib.sha256(raw.encode()).hexdigest()
    assert not any(raw in str(value) or ADMIN in str(value) for value in row.values())


async def test_a_session_that_was_there_before_the_sign_in_is_not_taken_up(console: ConsoleWorld) -> None:
    """Session fixation: an attacker plants an id, or their own open session, and waits for the victim to sign in."""
    async with console.browser() as attacker, console.browser(signed_in=False) as victim:
        planted = attacker.http.cookies[COOKIE]
        headers = {"cookie": f"{COOKIE}={planted}", "origin": ORIGIN}
        answer = await victim.http.post("/sign-in", data={"token": ADMIN}, headers=headers)
        assert answer.status_code == 303
        given = answer.headers["set-cookie"].partition("=")[2].partition(";")[0]
        assert given != planted
        assert await is_out(attacker), "the session from before is ended by the sign-in"


async def test_an_id_that_somebody_made_up_opens_nothing(console: ConsoleWorld) -> None:
    async with console.browser(signed_in=False) as browser:
        for made_up in ("x" * 43, "", "x" * 5000, hashlib.sha256(b"x").hexdigest()):
            answer = await browser.get("/releases", expect=303, cookie=f"{COOKIE}={made_up}")
            assert answer.headers["location"].startswith("/sign-in")


async def test_the_hash_in_the_database_opens_nothing(console: ConsoleWorld, browser: Browser) -> None:
    digest = hashlib.sha256(browser.http.cookies[COOKIE].encode()).hexdigest()
    async with console.browser(signed_in=False) as thief:
        await thief.get("/releases", expect=303, cookie=f"{COOKIE}={digest}")


async def test_after_the_sign_out_the_cookie_is_worth_nothing(console: ConsoleWorld, browser: Browser) -> None:
    stolen = browser.http.cookies[COOKIE]
    await browser.post("/sign-out")
    async with console.browser(signed_in=False) as thief:
        await thief.get("/releases", expect=303, cookie=f"{COOKIE}={stolen}")


async def test_a_session_ends_when_nobody_uses_it_and_when_it_is_old(console: ConsoleWorld, browser: Browser) -> None:
    clock = console.world.clock
    clock.advance(IDLE.total_seconds() - 60)
    await browser.get("/releases")
    clock.advance(IDLE.total_seconds() - 60)
    await browser.get("/releases")
    clock.advance(IDLE.total_seconds() + 1)
    assert await is_out(browser)
    await browser.sign_in()
    for _ in range(int(LONGEST / (IDLE / 2))):
        assert not await is_out(browser)
        clock.advance(IDLE.total_seconds() / 2)
    assert await is_out(browser)


async def test_sessions_end_with_the_token_that_opened_them(console: ConsoleWorld, browser: Browser) -> None:
    console.world.cases.admin.replace(OTHER_TOKEN)
    assert await is_out(browser)
    await browser.sign_in(expect=401)
    await browser.sign_in(OTHER_TOKEN)
    await browser.get("/releases")


async def test_another_token_in_the_file_is_taken_up_without_a_restart(console: ConsoleWorld, browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(ADMIN)
    follower = asyncio.create_task(follow_admin_token(console.world.cases, file, every=0.02))
    try:
        await asyncio.sleep(0.1)
        await browser.get("/releases")
        file.write_text("short")  # half written, or wrong: the one before stays
        await asyncio.sleep(0.1)
        await browser.get("/releases")
        file.write_text(OTHER_TOKEN)

        async def out() -> bool:
            return await is_out(browser)

        await wait_until_async(out, what="the session's end", timeout=60, every=0.05)
    finally:
        follower.cancel()


async def test_tokens_can_not_be_guessed_without_end(console: ConsoleWorld) -> None:
    async with console.browser(signed_in=False, address="198.51.100.7") as guesser, console.browser(signed_in=False) as other:
        for _ in range(10):
            assert "the token is not valid" in text_of(await guesser.sign_in("wrong", expect=401))
        assert "wrong token 10 times" in text_of(await guesser.sign_in(ADMIN, expect=429))
        assert COOKIE not in guesser.http.cookies
        await other.sign_in()
        console.world.clock.advance(61)
        await guesser.sign_in()


ATTACKS = {
    "no token of the form": ({"csrf": ""}, {}),
    "a token of nobody": ({"csrf": "0" * 64}, {}),
    "another site's page": ({}, {"sec-fetch-site": "cross-site"}),
    "another host of the same site": ({}, {"sec-fetch-site": "same-site"}),
    "another origin": ({}, {"origin": "https://attacker.example", "sec-fetch-site": "same-origin"}),
    "an origin that is hidden": ({}, {"origin": "null"}),
}


@pytest.mark.parametrize("attack", ATTACKS)
async def test_a_change_that_no_page_of_ours_has_sent_is_refused(console: ConsoleWorld, browser: Browser, attack: str) -> None:
    fields, headers = ATTACKS[attack]
    csrf = fields.get("csrf")
    answer = await browser.post(f"{ROOT}/host-groups", {"name": "stolen"}, csrf=csrf, expect=403, **headers)
    assert "nothing was changed" in text_of(answer)
    assert (await console.world.call("GET", "/host-groups", expect=200))["items"] == []
    await browser.post(f"{ROOT}/host-groups", {"name": "ours"})


async def test_the_form_of_one_session_is_no_good_in_another(console: ConsoleWorld, browser: Browser) -> None:
    async with console.browser() as other:
        theirs = await other.csrf()
    assert theirs != await browser.csrf()
    await browser.post(f"{ROOT}/host-groups", {"name": "stolen"}, csrf=theirs, expect=403)


async def test_a_change_without_origin_or_as_json_is_refused(browser: Browser) -> None:
    csrf = await browser.csrf()
    bare = await browser.http.post(f"{ROOT}/host-groups", data={"csrf": csrf, "name": "stolen"})
    assert bare.status_code == 403
    as_json = await browser.http.post(f"{ROOT}/host-groups", json={"csrf": csrf, "name": "stolen"}, headers={"origin": ORIGIN})
    assert as_json.status_code == 403


async def test_a_sign_in_that_another_site_sends_is_refused(console: ConsoleWorld) -> None:
    async with console.browser(signed_in=False) as browser:
        answer = await browser.http.post("/sign-in", data={"token": ADMIN}, headers={"origin": "https://attacker.example"})
        assert answer.status_code == 403 and COOKIE not in browser.http.cookies


@pytest.mark.parametrize(
    "target",
    [
        "https://attacker.example",
        "//attacker.example",
        "/\\attacker.example",
        "\\/attacker.example",
        "/%0d%0aSet-Cookie:x",
        "javascript:alert(1)",
        "///x",
        "/\n/x",
        " //x",
    ],
)
async def test_nobody_is_sent_to_another_site(console: ConsoleWorld, target: str) -> None:
    async with console.browser(signed_in=False) as browser:
        location = (await browser.sign_in(target=target)).headers["location"]
        assert httpx.URL(ORIGIN).join(location).host == "compass" and "\n" not in location
        again = await browser.http.get("/sign-in", params={"next": target})
        assert again.status_code == 303 and httpx.URL(ORIGIN).join(again.headers["location"]).host == "compass"


def test_paths_of_this_site_are_kept() -> None:
    for path in ("/", "/releases", "/domains/a/projects/b/clusters?q=x&page=2", "/domains/a/projects/b/hosts/c.d"):
        assert local_path(path) == path


async def test_a_form_that_is_too_large_or_not_text_is_refused(browser: Browser) -> None:
    csrf = await browser.csrf()
    await browser.post(f"{ROOT}/host-groups", {"name": "a", "description": "x" * 300_000}, csrf=csrf, expect=422)
    kind = {"content-type": "application/x-www-form-urlencoded", "origin": ORIGIN}
    assert (await browser.http.post(f"{ROOT}/host-groups", content=b"name=%ff", headers=kind)).status_code == 422
    assert (await browser.http.post(f"{ROOT}/host-groups", content=b"a=b&" * 4000, headers=kind)).status_code == 422


async def test_the_page_with_the_form_carries_the_session_s_own_token(browser: Browser) -> None:
    page = await browser.get(f"{ROOT}/host-groups")
    assert csrf_of(page) == await browser.csrf() and browser.http.cookies[COOKIE] not in page.text
