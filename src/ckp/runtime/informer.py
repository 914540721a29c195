"""A local copy of one kind's objects, kept up to date by list and watch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, cast

import structlog

from ckp.api.kinds import Kind
from ckp.clients.kube import Kube, KubeError, Obj
from ckp.kits.retry import backoff

log = structlog.get_logger()
Key = tuple[str, str]
"""Namespace ("" for cluster-wide kinds) and name."""
Handler = Callable[[Obj], None]
RELIST_SECONDS = 300.0
"""A watch is replaced by a new list after this time: one whose connection died without an error is noticed by then."""


def key_of(obj: Obj) -> Key:
    """The key of an object."""
    return obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


def _whole(obj: Obj) -> Obj:
    return obj


@dataclass
class Informer:
    """Lists, then watches; on any break it lists again, so a missed event costs time, never truth.

    Handlers are called with an object whenever it was added, changed or deleted (then `get` gives None); they must only enqueue.

    Args:
        labels: which objects; a label whose value is None must just exist.
        transform: what is kept of an object, to save memory; it must keep `metadata.name`, `.namespace` and `.resourceVersion`.
    """

    kube: Kube
    kind: Kind
    namespace: str | None = None
    labels: Mapping[str, str | None] | None = None
    transform: Callable[[Obj], Obj] = _whole
    handlers: list[Handler] = field(default_factory=list)
    synced: asyncio.Event = field(default_factory=asyncio.Event)
    healthy: bool = False
    """Whether the API server answered when it was last asked."""
    _cache: dict[Key, Obj] = field(default_factory=dict)

    def get(self, namespace: str, name: str) -> Obj | None:
        """The object as last seen; never change it in place."""
        return self._cache.get((namespace, name))

    def all(self, namespace: str | None = None) -> list[Obj]:
        """All objects as last seen, of one namespace or of all, in the order of their keys."""
        return [obj for key, obj in sorted(self._cache.items()) if namespace in (None, key[0])]

    async def run(self) -> None:
        """Follow the API server until cancelled."""
        failures = 0
        while True:
            try:
                version = await self._list()
                failures = 0
                await self._watch(version)
            except KubeError as error:
                # 410 Gone is how an API server says "list again"; anything else may be an outage: slow down.
                delay = 0.0 if error.code == 410 else backoff(failures, first=0.25, limit=15)
                failures += 1
                if error.code != 410:
                    self.healthy = False
                    log.warning("watch broke", kind=self.kind.kind, error=error.brief, retry_seconds=delay)
                await asyncio.sleep(delay)

    async def _list(self) -> str:
        items, version = await self.kube.list_with_version(self.kind, self.namespace, labels=self.labels)
        fresh = {key_of(item): self.transform(item) for item in items}
        gone = [obj for key, obj in self._cache.items() if key not in fresh]
        changed = [obj for key, obj in fresh.items() if _version(self._cache.get(key)) != _version(obj)]
        self._cache = fresh
        for obj in (*gone, *changed):
            self._notify(obj)
        self.healthy = True
        self.synced.set()
        return version

    async def _watch(self, version: str) -> None:
        try:
            async with (
                asyncio.timeout(RELIST_SECONDS),
                aclosing(cast(Any, self.kube.watch(self.kind, self.namespace, version, labels=self.labels))) as changes,
            ):
                async for event, changed in changes:
                    if event == "BOOKMARK":
                        continue
                    obj = self.transform(changed)
                    if event == "DELETED":
                        self._cache.pop(key_of(obj), None)
                    else:
                        self._cache[key_of(obj)] = obj
                    self._notify(obj)
        except TimeoutError:
            return

    def _notify(self, obj: Obj) -> None:
        for handler in self.handlers:
            handler(obj)


def _version(obj: Obj | None) -> str | None:
    return obj["metadata"].get("resourceVersion") if obj else None
