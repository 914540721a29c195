"""A work queue of keys: each key at most once, never worked on twice at a time, with delays and growing retries."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from ckp.kits.retry import backoff
from ckp.runtime.informer import Key


@dataclass
class WorkQueue:
    """client-go's workqueue in asyncio: an add while a key is being worked on makes it run once more afterwards."""

    _ready: asyncio.Queue[Key] = field(default_factory=asyncio.Queue)
    _waiting: set[Key] = field(default_factory=set)
    _active: set[Key] = field(default_factory=set)
    _again: set[Key] = field(default_factory=set)
    _failures: dict[Key, int] = field(default_factory=dict)
    _timers: dict[Key, asyncio.TimerHandle] = field(default_factory=dict)

    def __len__(self) -> int:
        return self._ready.qsize()

    def add(self, key: Key) -> None:
        """Work on it as soon as possible."""
        self._cancel_timer(key)
        if key in self._active:
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting.add(key)
            self._ready.put_nowait(key)

    def add_after(self, key: Key, seconds: float) -> None:
        """Work on it in `seconds`, unless an earlier reason comes up."""
        loop = asyncio.get_running_loop()
        if (timer := self._timers.get(key)) and timer.when() <= loop.time() + seconds:
            return
        self._cancel_timer(key)
        self._timers[key] = loop.call_later(seconds, self._due, key)

    def retry(self, key: Key) -> float:
        """Work on it again after a delay that grows with each failure in a row; returns the seconds."""
        seconds = backoff(self._failures.get(key, 0), first=0.2, limit=60)
        self._failures[key] = self._failures.get(key, 0) + 1
        self.add_after(key, seconds)
        return seconds

    def forget(self, key: Key) -> None:
        """It went well: the next failure starts with a short delay again."""
        self._failures.pop(key, None)

    async def get(self) -> Key:
        """The next key; call `done` when it is worked off."""
        key = await self._ready.get()
        self._waiting.discard(key)
        self._active.add(key)
        return key

    def done(self, key: Key) -> None:
        """It is worked off."""
        self._active.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def _due(self, key: Key) -> None:
        self._timers.pop(key, None)
        self.add(key)

    def _cancel_timer(self, key: Key) -> None:
        if timer := self._timers.pop(key, None):
            timer.cancel()
