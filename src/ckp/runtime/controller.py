"""A controller: informers feed a queue of keys, workers reconcile them one by one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import structlog
from prometheus_client import Counter, Histogram

from ckp.clients.kube import KubeError, Obj
from ckp.kits.errors import CkpError
from ckp.runtime.informer import Informer, Key, key_of
from ckp.runtime.queue import WorkQueue

log = structlog.get_logger()
RECONCILES = Counter("ckp_reconciles_total", "Reconciles by controller and outcome", ["controller", "outcome"])
SECONDS = Histogram("ckp_reconcile_seconds", "Duration of reconciles", ["controller"])
RECONCILE_TIMEOUT = 60.0


@dataclass(frozen=True)
class Result:
    """What a reconcile wants next: nothing (a change will wake it), or a look again after some seconds."""

    after: float | None = None


class Reconciler(Protocol):
    """Looks at what is, does the next step towards what should be, writes status, returns."""

    async def reconcile(self, namespace: str, name: str) -> Result:
        """One pass over one object. An exception is logged and retried with a growing delay."""
        ...


@dataclass
class Controller:
    """One reconciler with its sources.

    Args:
        resync: seconds after which every object is looked at again even if nothing changed: what happens outside
            Kubernetes (a clock, a lost event) is noticed within this time.
    """

    name: str
    reconciler: Reconciler
    primary: Informer
    workers: int = 4
    resync: float = 300.0
    queue: WorkQueue = field(default_factory=WorkQueue)

    def __post_init__(self) -> None:
        self.primary.handlers.append(lambda obj: self.queue.add(key_of(obj)))

    def watches(self, informer: Informer, to_keys: Callable[[Obj], Iterable[Key]]) -> Controller:
        """Also look at the objects that `to_keys` names when something of `informer` changed."""

        def handler(obj: Obj) -> None:
            for key in to_keys(obj):
                self.queue.add(key)

        informer.handlers.append(handler)
        return self

    async def run(self) -> None:
        """Work until cancelled. The informers must be synced."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self.workers):
                group.create_task(self._work())
            group.create_task(self._resync())

    async def _resync(self) -> None:
        while True:
            for obj in self.primary.all():
                self.queue.add(key_of(obj))
            await asyncio.sleep(self.resync)

    async def _work(self) -> None:
        while True:
            key = await self.queue.get()
            started = time.monotonic()
            try:
                async with asyncio.timeout(RECONCILE_TIMEOUT):  # not wait_for: in Python 3.11 it may swallow a cancellation
                    result = await self.reconciler.reconcile(*key)
            except KubeError as error:
                # A conflict means that another writer was first: our copy is old, and the next pass sees the new one.
                outcome = "conflict" if error.reason == "Conflict" else "error"
                delay = self.queue.retry(key)
                log.warning("reconcile", controller=self.name, object="/".join(key), outcome=outcome, error=error.brief, retry_seconds=delay)
            except CkpError as error:
                outcome, delay = "error", self.queue.retry(key)
                log.warning("reconcile", controller=self.name, object="/".join(key), error=error.brief, details=error.details, retry_seconds=delay)
            except Exception as error:
                outcome, delay = "panic", self.queue.retry(key)
                log.exception("reconcile", controller=self.name, object="/".join(key), error=repr(error), retry_seconds=delay)
            else:
                outcome = "done"
                self.queue.forget(key)
                if result.after is not None:
                    self.queue.add_after(key, result.after)
            finally:
                self.queue.done(key)
            RECONCILES.labels(self.name, outcome).inc()
            SECONDS.labels(self.name).observe(time.monotonic() - started)
