"""The simulated API server with an API server's bad days: away, slow, answers that get lost, watches that lag; and clients that die."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from ckp.api.kinds import Kind
from ckp.clients.kube import EventType, KubeError, Obj
from tests.simulators.kube import KubeSimulator

T = TypeVar("T")


@dataclass
class Weather:
    """How the API server is now; shared by its clients.

    away: no call is answered. slow: each waits up to so many seconds. lossy: of the writes that are done, so many are told as failed.
    lag: watches hand out what happened so many seconds later.
    """

    choose: random.Random
    away: bool = False
    slow: float = 0.0
    lossy: float = 0.0
    lag: float = 0.0
    observers: list[Callable[[EventType, Kind, Obj], None]] = field(default_factory=list)  # told of every change, at the moment of it

    def clear(self) -> None:
        """A good day."""
        self.away, self.slow, self.lossy, self.lag = False, 0.0, 0.0, 0.0


class ChaosKube(KubeSimulator):
    """A client of the simulated cluster: one process of the system. `die` ends it as SIGKILL would."""

    def __init__(self, manager: str, weather: Weather, *, namespaces: tuple[str, ...] = (), like: ChaosKube | None = None) -> None:
        self.weather = weather
        self.dead = False
        self._under_way: set[asyncio.Task[Any]] = set()
        super().__init__(manager=manager, namespaces=namespaces)
        if like is not None:
            self._store = like._store

    def client(self, manager: str) -> ChaosKube:
        """Another process' client."""
        return ChaosKube(manager, self.weather, like=self)

    def calm(self, manager: str) -> KubeSimulator:
        """A client that no weather reaches: the harness' own."""
        return self.as_manager(manager)

    def die(self) -> None:
        """Nothing that this process still wanted to say reaches the API server."""
        self.dead = True

    async def _enter(self, verb: str, kind: Kind, name: str) -> None:
        await super()._enter(verb, kind, name)
        begun = not self.dead
        if self.weather.slow:
            await asyncio.sleep(self.weather.slow * self.weather.choose.random())
        if self.dead and not (begun and self.weather.choose.random() < 0.5):
            raise asyncio.CancelledError  # also where a task, being cancelled, wanted to write a last word
        if self.weather.away:
            await asyncio.sleep(0.02)
            raise KubeError(f"{verb} {kind.kind} {name}: no connection", code=0)

    def _record(self, event: EventType, kind: Kind, obj: Obj) -> Obj:
        done = super()._record(event, kind, obj)
        for observer in self.weather.observers:
            observer(event, kind, done)
        return done

    async def _sent(self, call: Coroutine[Any, Any, T], verb: str, kind: str, name: str) -> T:
        """What is under way to a slow API server is done there even if who asked dies meanwhile: half of the time, as nobody can know."""
        if self.weather.slow:
            task = asyncio.ensure_future(call)
            self._under_way.add(task)
            task.add_done_callback(self._arrived)
            done = await asyncio.shield(task)
        else:
            done = await call
        if self.weather.lossy and self.weather.choose.random() < self.weather.lossy:
            raise KubeError(f"{verb} {kind} {name}: the connection broke before the answer", code=0)
        return done

    def _arrived(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # if nobody waits for it any more, nobody needs to know

    async def create(self, obj: Obj) -> Obj:
        return await self._sent(super().create(obj), "create", obj["kind"], obj["metadata"].get("name", ""))

    async def apply(self, obj: Obj, *, subresource: Literal["", "status"] = "") -> Obj:
        return await self._sent(super().apply(obj, subresource=subresource), "apply", obj["kind"], obj["metadata"]["name"])

    async def merge(self, kind: Kind, name: str, namespace: str | None, patch: Mapping[str, Any], *, subresource: Literal["", "status"] = "") -> Obj:
        return await self._sent(super().merge(kind, name, namespace, patch, subresource=subresource), "merge", kind.kind, name)

    async def replace(self, obj: Obj) -> Obj:
        return await self._sent(super().replace(obj), "replace", obj["kind"], obj["metadata"]["name"])

    async def delete(self, kind: Kind, name: str, namespace: str | None = None, *, foreground: bool = False) -> bool:
        return await self._sent(super().delete(kind, name, namespace, foreground=foreground), "delete", kind.kind, name)

    async def watch(
        self, kind: Kind, namespace: str | None, version: str, *, labels: Mapping[str, str | None] | None = None, seconds: int = 240
    ) -> AsyncIterator[tuple[EventType, Obj]]:
        async for event in super().watch(kind, namespace, version, labels=labels, seconds=seconds):
            if self.weather.lag:
                await asyncio.sleep(self.weather.lag * self.weather.choose.random())
            yield event
