"""A process of controllers: health and metrics, informers, the lease, then the work."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from dataclasses import dataclass, field

import structlog

from ckp.api.kinds import Kind
from ckp.clients.kube import Kube
from ckp.runtime.controller import Controller
from ckp.runtime.health import Health
from ckp.runtime.informer import Informer
from ckp.runtime.lease import LeaderLease

log = structlog.get_logger()


@dataclass
class Manager:
    """Holds the shared informers and runs controllers under one lease."""

    kube: Kube
    lease: LeaderLease
    health: Health
    controllers: list[Controller] = field(default_factory=list)
    _informers: dict[tuple[Kind, str | None], Informer] = field(default_factory=dict)

    def informer(self, kind: Kind, namespace: str | None = None) -> Informer:
        """The one informer of this kind and namespace."""
        key = (kind, namespace)
        if key not in self._informers:
            self._informers[key] = Informer(self.kube, kind, namespace)
        return self._informers[key]

    async def run(self) -> None:
        """Run until SIGTERM, or until the lease is lost."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.health.serve())]
            tasks += [group.create_task(informer.run()) for informer in self._informers.values()]
            work = group.create_task(self._lead())
            tasks.append(work)
            await stop.wait()
            for task in tasks:
                task.cancel()
        await self.lease.release()

    async def _lead(self) -> None:
        for informer in self._informers.values():
            await informer.synced.wait()
        self.health.ready = True
        await self.lease.acquire()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.lease.keep())
            for controller in self.controllers:
                group.create_task(controller.run())


def identity() -> str:
    """Who we are for a lease: the pod's name, unique per process."""
    return f"{os.environ.get('POD_NAME') or socket.gethostname()}_{os.getpid()}"
