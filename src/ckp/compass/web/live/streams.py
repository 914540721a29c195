"""Server-sent events. What many look at is rendered once when it changes, and the same bytes go to all of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import structlog

from ckp.compass.access.changes import END_SECONDS, Changes, to_its_end
from ckp.compass.access.sessions import Sessions
from ckp.compass.errors import Unavailable
from ckp.compass.identity import ProjectRef
from ckp.kits.errors import CkpError, NotFound

log = structlog.get_logger("compass.live")

Parts = Mapping[str, str]
"""HTML by the id of the element that it is put into."""
Render = Callable[[], Coroutine[Any, Any, Parts]]

SETTLE_SECONDS = 0.15
"""How long it is waited for further changes before a part is rendered: one thing that happens changes several objects."""
REFRESH_SECONDS = 10.0
"""After which parts are rendered again even if nothing is known to have changed."""
HEARTBEAT_SECONDS = 15.0
"""After which an idle stream sends a comment, so that what lies between does not cut it, and a client that is gone is noticed."""
SESSION_SECONDS = 4.0
"""How often it is looked whether the sessions of open streams are still open."""
MOST_STREAMS = 4000
HEARTBEAT = b": still here\n\n"
END = b"event: end\ndata: load the page again\n\n"


@dataclass(eq=False)
class Subscriber:
    """One open stream. It holds the newest form of each part that it has not sent yet, and nothing older: a slow client costs no memory."""

    session: str
    pending: dict[str, bytes] = field(default_factory=dict)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    ended: bool = False

    def offer(self, part: str, event: bytes) -> None:
        """A part has changed."""
        self.pending[part] = event
        self.wake.set()

    def end(self) -> None:
        """The session is over, or what is shown is gone."""
        self.ended = True
        self.wake.set()

    async def events(self) -> AsyncIterator[bytes]:
        """What is sent, until its end."""
        while not self.ended:
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    await self.wake.wait()
            self.wake.clear()
            if self.ended:
                break
            events, self.pending = b"".join(self.pending.values()), {}
            yield events or HEARTBEAT
        yield END


@dataclass(eq=False)
class _Topic:
    """What the same parts are shown to."""

    render: Render
    subscribers: set[Subscriber] = field(default_factory=set)
    shown: dict[str, bytes] = field(default_factory=dict)
    task: asyncio.Task[None] | None = None


class Streams:
    """All open streams of this replica."""

    def __init__(self, changes: Changes, sessions: Sessions) -> None:
        self._changes = changes
        self._sessions = sessions
        self._topics: dict[tuple[ProjectRef, str], _Topic] = {}
        self._guard: asyncio.Task[None] | None = None
        self._open = 0
        self._closed = False

    @property
    def open(self) -> int:
        """How many there are."""
        return self._open

    def close(self) -> None:
        """End all streams without a word: browsers connect again, to another replica. New ones are refused."""
        self._closed = True
        for topic in self._topics.values():
            for subscriber in topic.subscribers:
                subscriber.end()

    @asynccontextmanager
    async def subscribe(self, project: ProjectRef, name: str, session: str, render: Render) -> AsyncIterator[AsyncIterator[bytes]]:
        """The events of one stream, for as long as the block lasts.

        Args:
            name: of what is shown, with its filters: whoever gives the same one is shown the same.
            session: hash of the session's id.
            render: gives the parts as they are now. CkpError: they stay as they were.

        Raises:
            Unavailable: there are too many streams, or this replica ends.
        """
        if self._closed or self._open >= MOST_STREAMS:
            raise Unavailable("this replica takes no further streams", resolution="reload the page to see what is new")
        key = (project, name)
        topic = self._topics.setdefault(key, _Topic(render))
        subscriber = Subscriber(session)
        for part, event in topic.shown.items():  # what has changed since the page was made
            subscriber.offer(part, event)
        topic.subscribers.add(subscriber)
        self._open += 1
        if topic.task is None:
            topic.task = asyncio.create_task(self._run(project, topic))
        if self._guard is None:
            self._guard = asyncio.create_task(self._end_with_sessions())
        try:
            yield self._until_closed(subscriber)
        finally:
            self._open -= 1
            topic.subscribers.discard(subscriber)
            if not topic.subscribers:
                self._topics.pop(key, None)
                topic.task.cancel()
                ending = {topic.task}
                if not self._topics and self._guard is not None:
                    self._guard.cancel()
                    ending.add(self._guard)
                    self._guard = None
                await asyncio.wait(ending, timeout=3 * END_SECONDS)

    async def _until_closed(self, subscriber: Subscriber) -> AsyncIterator[bytes]:
        async for event in subscriber.events():
            if event is END and self._closed:
                return
            yield event

    async def _run(self, project: ProjectRef, topic: _Topic) -> None:
        async with self._changes.follow(project) as follower:
            while True:
                await self._show(topic)
                if await follower.wait(REFRESH_SECONDS):
                    await asyncio.sleep(SETTLE_SECONDS)

    async def _show(self, topic: _Topic) -> None:
        try:
            parts = await to_its_end(topic.render())
        except NotFound:  # it was removed: the page, asked for again, says so
            for subscriber in topic.subscribers:
                subscriber.end()
            return
        except CkpError as error:
            log.warning("a part can't be shown", error=error.brief)
            return
        except Exception:
            log.exception("a part can't be rendered")
            return
        for part, html in parts.items():
            event = f"event: part\ndata: {json.dumps({'id': part, 'html': html})}\n\n".encode()
            if topic.shown.get(part) != event:
                topic.shown[part] = event
                for subscriber in topic.subscribers:
                    subscriber.offer(part, event)

    async def _end_with_sessions(self) -> None:
        while True:
            await asyncio.sleep(SESSION_SECONDS)
            subscribers = [one for topic in self._topics.values() for one in topic.subscribers]
            try:
                alive = await to_its_end(self._sessions.still_open({one.session for one in subscribers}))
            except CkpError as error:
                log.warning("the sessions of open streams can't be read", error=error.brief)
                continue
            for subscriber in subscribers:
                if subscriber.session not in alive:
                    subscriber.end()
