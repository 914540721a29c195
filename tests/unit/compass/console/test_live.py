"""Parts of pages that are pushed: at once, once for all, within bounds, and for as long as the session."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from ckp.clients.kube import KubeError
from ckp.compass.access import changes
from ckp.compass.errors import Unavailable
from ckp.compass.identity import ProjectRef
from ckp.compass.web.live import streams
from ckp.compass.web.live.streams import END, HEARTBEAT, Streams
from ckp.compass.web.state import COOKIE
from ckp.kits.retry import wait_until_async
from tests.worlds.console import ROOT, Browser, ConsoleWorld, set_steps, with_cluster

PROJECT = ProjectRef.of("default", "default")


@dataclass
class Listening:
    """An EventSource at an open stream."""

    status: int = 0
    headers: dict[bytes, bytes] = field(default_factory=dict)
    raw: list[bytes] = field(default_factory=list)
    ended: bool = False

    @property
    def parts(self) -> list[dict[str, str]]:
        text = b"".join(self.raw).decode()
        return [json.loads(event.partition("data: ")[2]) for event in text.split("\n\n") if event.startswith("event: part")]

    def newest(self, part: str) -> str:
        return next((event["html"] for event in reversed(self.parts) if event["id"] == part), "")

    async def shows(self, part: str, words: str, seconds: float) -> float:
        """Seconds until it was so."""
        begun = time.monotonic()

        async def there() -> bool:
            return words in self.newest(part)

        await wait_until_async(there, what=f"{words!r} in {part}", timeout=seconds, every=0.01)
        return time.monotonic() - begun


@asynccontextmanager
async def listening(console: ConsoleWorld, browser: Browser, path: str) -> AsyncIterator[Listening]:
    """As the server runs it: httpx gives an answer only once it is whole."""
    heard = Listening()
    gone = asyncio.Event()

    async def receive() -> Any:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            heard.status, heard.headers = message["status"], dict(message["headers"])
        else:
            heard.raw.append(message.get("body", b""))
            heard.ended = not message.get("more_body", False)

    name, _, query = path.partition("?")
    cookie = f"{COOKIE}={browser.http.cookies[COOKIE]}".encode()
    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "GET", "scheme": "https", "path": name,
        "raw_path": name.encode(), "query_string": query.encode(), "root_path": "", "server": ("compass", 443), "client": ("203.0.113.9", 1),
        "headers": [(b"host", b"compass"), (b"cookie", cookie), (b"accept", b"text/event-stream")],
    }  # fmt: skip
    answering = asyncio.create_task(console.door(scope, receive, send))
    try:

        async def begun() -> bool:
            return heard.status != 0

        await wait_until_async(begun, what="the answer", timeout=60, every=0.01)
        yield heard
    finally:
        gone.set()
        await asyncio.wait_for(answering, 5)


async def test_a_step_is_on_the_screen_within_a_second(console: ConsoleWorld, browser: Browser) -> None:
    await console.world.group_with_hosts()
    await with_cluster(console.world, done=3)
    async with listening(console, browser, f"{ROOT}/clusters/demo/stream") as heard:
        assert heard.status == 200 and heard.headers[b"content-type"].startswith(b"text/event-stream") and heard.headers[b"cache-control"] == b"no-store"
        await heard.shows("announce", "3 of 14 steps done", 20)
        took = []
        for done in (4, 5, 6):
            await set_steps(console.world, "demo", done, f"message {done}")
            took.append(await heard.shows("cluster-timeline", f"message {done}", 10))
        assert sorted(took)[1] < 1  # the median: a busy machine may stop any one of them
        assert heard.newest("announce").startswith("Pending: 6 of 14 steps done")
    assert console.web.console.streams.open == 0


async def test_lists_follow_hosts_requests_and_clusters(console: ConsoleWorld, browser: Browser) -> None:
    world = console.world
    async with (
        listening(console, browser, f"{ROOT}/hosts/-/stream?q=workers") as hosts,
        listening(console, browser, f"{ROOT}/requests/-/stream") as requests,
        listening(console, browser, f"{ROOT}/clusters/-/stream") as clusters,
    ):
        await world.group_with_hosts("workers", 2)
        await hosts.shows("host-list", "workers-host-2", 20)  # the project has had no namespace: it is looked for every two seconds
        await world.enrol(await world.psk(), hostname="rack7")
        await requests.shows("request-list", "rack7", 10)
        await with_cluster(world)
        await clusters.shows("cluster-list", "demo", 10)
        assert "csrf" not in b"".join([*hosts.raw, *requests.raw, *clusters.raw]).decode(), "what many get holds nothing of one session"


async def test_a_stream_ends_with_its_session_and_says_so(console: ConsoleWorld, browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    assert streams.SESSION_SECONDS < 10
    monkeypatch.setattr(streams, "SESSION_SECONDS", 0.1)
    async with console.browser() as other:
        async with listening(console, browser, f"{ROOT}/hosts/-/stream") as mine, listening(console, other, f"{ROOT}/hosts/-/stream") as theirs:
            await mine.shows("host-list", "No host yet", 20)
            await browser.post("/sign-out")

            async def ended() -> bool:
                return mine.ended

            await wait_until_async(ended, what="the stream's end", timeout=60, every=0.02)
            assert b"".join(mine.raw).endswith(END) and not theirs.ended
            console.world.cases.admin.replace("another-token-of-at-least-twenty")

            async def all_ended() -> bool:
                return theirs.ended

            await wait_until_async(all_ended, what="the other stream's end", timeout=60, every=0.02)


async def test_a_stream_ends_when_what_it_shows_is_gone(console: ConsoleWorld, browser: Browser) -> None:
    await console.world.group_with_hosts()
    async with listening(console, browser, f"{ROOT}/hosts/workers-host-1/stream") as heard:
        await heard.shows("host-parts", "10.88.0.21", 20)
        await console.world.call("DELETE", "/hosts/workers-host-1", expect=204)

        async def ended() -> bool:
            return heard.ended

        await wait_until_async(ended, what="the stream's end", timeout=60, every=0.02)
        assert b"".join(heard.raw).endswith(END)


async def test_a_stream_of_what_is_not_there_is_not_opened(console: ConsoleWorld, browser: Browser) -> None:
    async with listening(console, browser, f"{ROOT}/clusters/none/stream") as heard:
        assert heard.status == 404
    assert console.web.console.streams.open == 0 and console.world.cases.changes.projects == 0


async def test_a_failure_behind_it_leaves_what_is_shown_and_passes(console: ConsoleWorld, browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "REFRESH_SECONDS", 0.3)
    await console.world.group_with_hosts()
    async with listening(console, browser, f"{ROOT}/hosts/-/stream") as heard:
        await heard.shows("host-list", "workers-host-1", 20)
        console.world.kube.on_fault(lambda verb, kind, name: KubeError("away", code=503))
        await console.world.database.ping()
        await asyncio.sleep(0.7)
        console.world.kube.on_fault(None)
        await console.world.add_host("later", group="workers")
        await heard.shows("host-list", "later", 20)


async def test_what_2000_look_at_is_rendered_once_and_watched_once(console: ConsoleWorld) -> None:
    await console.world.group_with_hosts()
    many, rendered = 2000, 0
    live = Streams(console.world.cases.changes, console.world.cases.sessions)

    async def render() -> dict[str, str]:
        nonlocal rendered
        rendered += 1
        return {"list": f"{rendered} " + "x" * 20_000}

    async with AsyncExitStack() as stack:
        events = [await stack.enter_async_context(live.subscribe(PROJECT, "hosts?", "s", render)) for _ in range(many)]
        await asyncio.wait_for(asyncio.gather(*(anext(one) for one in events)), 60)
        assert live.open == many and rendered <= 2
        watches = [call for call in console.world.kube.calls if call[0] == "watch"]
        assert len(watches) <= len(changes.WATCHED)
        for number in range(20):  # nobody reads now: what is not sent yet is replaced
            await console.world.add_host(f"more-{number}")
            await asyncio.sleep(0.02)
        await asyncio.sleep(1)
        assert 2 <= rendered < 25
        last = await asyncio.wait_for(asyncio.gather(*(anext(one) for one in events)), 60)
        assert len(set(map(id, last))) == 1, "one form of a part in memory, for all"
        assert last[0].count(b"event: part") == 1 and f'"{rendered} ' in last[0].decode()
    assert live.open == 0

    async def unwatched() -> bool:
        return console.world.cases.changes.projects == 0

    await wait_until_async(unwatched, what="the end of the watches", timeout=60, every=0.02)


async def test_an_idle_stream_sends_a_sign_of_life(console: ConsoleWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "HEARTBEAT_SECONDS", 0.05)
    live = Streams(console.world.cases.changes, console.world.cases.sessions)

    async def render() -> dict[str, str]:
        return {}

    async with live.subscribe(PROJECT, "x", "s", render) as events:
        assert await asyncio.wait_for(anext(events), 3) == HEARTBEAT


async def test_there_is_an_end_to_how_many_streams_there_are(console: ConsoleWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MOST_STREAMS", 1)
    live = Streams(console.world.cases.changes, console.world.cases.sessions)

    async def render() -> dict[str, str]:
        return {}

    async with live.subscribe(PROJECT, "x", "s", render):
        with pytest.raises(Unavailable):
            async with live.subscribe(PROJECT, "x", "s", render):
                pass
    async with live.subscribe(PROJECT, "x", "s", render) as events:
        live.close()
        assert [event async for event in events] in ([], [HEARTBEAT])
        with pytest.raises(Unavailable):
            async with live.subscribe(PROJECT, "x", "s", render):
                pass
