"""What changes in a project's namespace, told to its viewers. One set of watches a project, however many viewers there are, and none while there is none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import structlog

from ckp.api import kinds
from ckp.api.kinds import Kind
from ckp.clients.kube import Kube, Obj
from ckp.compass.access.projects import Namespaces
from ckp.compass.identity import ProjectRef
from ckp.compass.store.database import Database
from ckp.kits.errors import CkpError
from ckp.runtime.informer import Informer

T = TypeVar("T")

log = structlog.get_logger("compass.changes")

WATCHED: tuple[Kind, ...] = (
    kinds.CLUSTER,
    kinds.MANAGED_CONTROL_PLANE,
    kinds.CLUSTER_UPGRADE,
    kinds.MACHINE_DEPLOYMENT,
    kinds.MACHINE,
    kinds.BYO_CLUSTER,
    kinds.BYO_HOST,
)
"""What clusters and hosts are shown from."""
POLL_SECONDS = 0.5
"""How often the database is asked for changes of a project's host requests: another replica may have made them."""
END_SECONDS = 5.0
"""How long the end of what is no longer needed is waited for."""
ABSENT_SECONDS = 2.0
"""How often it is looked whether a project has a namespace by now."""


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is not broken off when the caller is cancelled: that takes effect once it is done, or after END_SECONDS.

    A query that is broken off costs its connection, and closing that may take longer than the query.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task], timeout=END_SECONDS)
        task.cancel()
        raise


@dataclass(eq=False)
class Follower:
    """Somebody who looks at a project."""

    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def notify(self) -> None:
        """Something has changed."""
        self._changed.set()

    async def wait(self, seconds: float) -> bool:
        """Whether something has changed since the last call that said so; waits for it this long at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        changed = self._changed.is_set()
        self._changed.clear()
        return changed


@dataclass(eq=False)
class _Watched:
    followers: set[Follower] = field(default_factory=set)
    task: asyncio.Task[None] | None = None

    def notify(self, _obj: Obj | None = None) -> None:
        for follower in self.followers:
            follower.notify()


class Changes:
    """Follows projects. Of an object it keeps nothing but its name and version."""

    def __init__(self, database: Database, kube: Kube, namespaces: Namespaces) -> None:
        self._database = database
        self._kube = kube
        self._namespaces = namespaces
        self._projects: dict[ProjectRef, _Watched] = {}

    @asynccontextmanager
    async def follow(self, project: ProjectRef) -> AsyncIterator[Follower]:
        """Be told of changes for as long as the block lasts."""
        watched = self._projects.setdefault(project, _Watched())
        follower = Follower()
        watched.followers.add(follower)
        if watched.task is None:
            watched.task = asyncio.create_task(self._watch(project, watched))
        try:
            yield follower
        finally:
            watched.followers.discard(follower)
            if not watched.followers:
                self._projects.pop(project, None)
                watched.task.cancel()
                await asyncio.wait([watched.task], timeout=2 * END_SECONDS)

    @property
    def projects(self) -> int:
        """How many are being watched."""
        return len(self._projects)

    async def _watch(self, project: ProjectRef, watched: _Watched) -> None:
        while True:
            try:
                await self._watch_all(project, watched)
            except Exception:  # whoever looks is still served, only later: see web.live
                log.exception("a project is not watched", namespace=project.namespace)
            await asyncio.sleep(ABSENT_SECONDS)

    async def _watch_all(self, project: ProjectRef, watched: _Watched) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._poll(project, watched))
            while not await self._present(project):
                await asyncio.sleep(ABSENT_SECONDS)
            watched.notify()
            for kind in WATCHED:
                informer = Informer(self._kube, kind, project.namespace, transform=_name_and_version)
                informer.handlers.append(watched.notify)
                group.create_task(informer.run())

    async def _present(self, project: ProjectRef) -> bool:
        try:
            return await self._namespaces.exists(project)
        except CkpError as error:
            log.warning("a project's namespace can't be read", namespace=project.namespace, error=error.brief)
            return False

    async def _requests_state(self, project: ProjectRef) -> tuple[Any, ...]:
        async with self._database.reading() as unit:
            return await unit.requests_state(project)

    async def _poll(self, project: ProjectRef, watched: _Watched) -> None:
        seen: tuple[Any, ...] | None = None
        while True:
            try:
                now = await to_its_end(self._requests_state(project))
                if seen is not None and now != seen:
                    watched.notify()
                seen = now
            except CkpError as error:
                log.warning("a project's host requests can't be read", namespace=project.namespace, error=error.brief)
            await asyncio.sleep(POLL_SECONDS)


def _name_and_version(obj: Obj) -> Obj:
    meta = obj["metadata"]
    return {"kind": obj.get("kind"), "metadata": {key: meta[key] for key in ("name", "namespace", "resourceVersion") if key in meta}}
