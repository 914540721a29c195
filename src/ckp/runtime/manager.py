"""A process of controllers: probes and metrics, informers, the lease, then the work."""

from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import dataclass, field

import structlog
from prometheus_client import REGISTRY

from ckp.api.kinds import Kind
from ckp.clients.kube import Kube, KubeError
from ckp.runtime.controller import Controller
from ckp.runtime.informer import Informer
from ckp.runtime.lease import LeaderLease, LeaseNotRenewed
from ckp.runtime.serving import Probes, Server, make_server, run_all

log = structlog.get_logger()

PROBE_PORT = 9090


@dataclass
class Manager:
    """Holds the shared informers and runs controllers under one lease."""

    kube: Kube
    lease: LeaderLease
    controllers: list[Controller] = field(default_factory=list)
    _informers: dict[tuple[Kind, str | None], Informer] = field(default_factory=dict)

    def informer(self, kind: Kind, namespace: str | None = None) -> Informer:
        """The one informer of this kind and namespace."""
        key = (kind, namespace)
        if key not in self._informers:
            self._informers[key] = Informer(self.kube, kind, namespace)
        return self._informers[key]

    def probes(self, host: str = "0.0.0.0", port: int = PROBE_PORT) -> Server:
        """The server of /healthz, /readyz and /metrics (all of the process's default registry)."""
        return make_server(Probes(self._ready, REGISTRY), host=host, port=port)

    async def run(self, probes: Server, stop: asyncio.Event) -> None:
        """Run until `stop` is set or SIGTERM or SIGINT comes; the lease is released then.

        Raises:
            LeaseLost: alone or in an exception group; another process may be working now.
        """
        await run_all([probes], stop, *(informer.run() for informer in self._informers.values()), self._lead())
        try:
            await self.lease.release()
        except KubeError as error:
            log.warning("the lease cannot be released; the next leader waits until it expires", lease=self.lease.name, error=error.brief)

    async def _ready(self) -> str:
        waiting = sorted({informer.kind.kind for informer in self._informers.values() if not informer.synced.is_set()})
        return f"not listed yet: {', '.join(waiting)}" if waiting else ""

    async def _lead(self) -> None:
        for informer in self._informers.values():
            await informer.synced.wait()
        await self.lease.acquire()
        while True:
            try:
                await self._work()
            except* LeaseNotRenewed as lost:
                log.warning("the work stands still until the lease is ours again", reason=str(lost.exceptions[0]))
            await self.lease.recover()

    async def _work(self) -> None:
        """Until a part of it fails; then none of its tasks runs any longer."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.lease.keep())
            for controller in self.controllers:
                group.create_task(controller.run())


def identity() -> str:
    """Who we are for a lease: the pod's name, unique per process."""
    return f"{os.environ.get('POD_NAME') or socket.gethostname()}_{os.getpid()}"
