"""Leases (coordination.k8s.io/v1): leader election as client-go does it, and who else is alive, both judged by one's own clock."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime

import structlog

from ckp.api.kinds import LEASE
from ckp.clients.kube import Kube, KubeError, Obj
from ckp.kits.clock import Clock, SystemClock, parse_rfc3339, rfc3339_micro

log = structlog.get_logger()


class LeaseLost(Exception):
    """Another replica holds the lease, or may have held it: it may be working now, so this process must stop at once."""


class LeaseNotRenewed(LeaseLost):
    """We could not renew in time, so that another replica may take the lease from now on. Whether one does is not known: see LeaderLease.recover."""


class LeaseObserver:
    """For how long each Lease has not changed, since we first saw it as it is, by our own monotonic clock.

    Clocks of machines differ, so another machine's renewTime does not tell how long ago it renewed. client-go judges in the same way
    (tools/leaderelection/leaderelection.go: observedRawRecord, observedTime). A Lease that is seen for the first time counts as renewed just now.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: dict[str, tuple[Obj, float]] = {}

    def age(self, lease: Obj) -> float:
        """Seconds since we first saw the lease as it is now; the leases are of one namespace, and known by their names."""
        name, spec, now = str(lease["metadata"]["name"]), lease.get("spec") or {}, self._clock.monotonic()
        before = self._seen.get(name)
        if before is None or before[0] != spec:
            before = self._seen[name] = (spec, now)
        return now - before[1]

    def forget_all_but(self, names: Iterable[str]) -> None:
        """Drop what was seen of leases that no longer exist."""
        kept = set(names)
        self._seen = {name: seen for name, seen in self._seen.items() if name in kept}


@dataclass
class LeaderLease:
    """A lease called `name` that `identity` wants to hold.

    The times are those of client-go, kube-controller-manager and Cluster API's managers (15 s, 10 s, 2 s: LeaseDuration, RenewDeadline, RetryPeriod in
    component-base/config/v1alpha1/defaults.go, v0.34), and a renewal is one request, as there: it writes on top of what was written last, and reads only
    if that is refused. On a slow or busy management host that is what counts: a request of five seconds still renews the lease.

    Unlike there, a holder that could not renew in time does not end its process. Go's managers must, for they can't stop what their goroutines do. Here
    every pass is a task: all of them are cancelled and awaited, and then nothing of this process writes any longer, as after its end. If nobody has held
    the lease until the API server answers again, what the process knows is as good as it was, and it goes on (`recover`). A restart would list and apply
    everything again just when the API server is slow, and several of them make the kubelet wait up to five minutes before the next.

    Args:
        duration: seconds without a renewal after which others may take the lease; whole ones, at least 1.
        renew: seconds between two renewals. A holder that could not renew for `duration - 2 * renew` stops, before others may take over.
        connect: makes the client of the thread that renews; None: it is renewed in the event loop of whoever keeps it, with `kube`.
    """

    kube: Kube
    namespace: str
    name: str
    identity: str
    duration: float = 15.0
    renew: float = 2.0
    clock: Clock = field(default_factory=SystemClock)
    connect: Callable[[], Kube] | None = None

    def __post_init__(self) -> None:
        self._observer = LeaseObserver(self.clock)
        self._renewed = 0.0  # by the loop's clock, when the last request that succeeded was begun: not later than the API server's write
        self._patience = self.duration - 2 * self.renew
        self._attempt = self._patience / 2  # as client-go's clients, that have half of RenewDeadline for a request
        self._held: Obj = {}  # as we wrote it last

    async def acquire(self) -> None:
        """Wait until we hold it."""
        loop = asyncio.get_running_loop()
        while True:
            begun = loop.time()
            try:
                async with asyncio.timeout(self._attempt):
                    if await self._take():
                        self._renewed = begun
                        log.info("leading", lease=self.name, identity=self.identity)
                        return
            except (KubeError, TimeoutError) as error:
                if not _another_was_first(error):
                    log.warning("the lease cannot be read or taken", lease=self.name, error=str(error) or type(error).__name__)
            await asyncio.sleep(self.renew)

    async def keep(self) -> None:
        """Renew until cancelled; in a thread of its own if there is a `connect`.

        One request takes five rounds of an event loop, or fifteen with a new connection, and a round is as long as all that is ready in it: where forty tasks
        work for 20 ms each, a renewal among them took 12 s, and 0.1 s in another thread (as measured). A loop that does not run at all does nothing that
        the lease forbids; that it does not run is for the liveness probe to notice.

        Raises:
            LeaseNotRenewed: no renewal succeeded within `duration - 2 * renew` seconds.
            LeaseLost: another holds it.
        """
        if self.connect is None:
            await self._keep(self.kube)
            return
        connect, started = self.connect, threading.Event()
        renewing: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]] = []

        async def keep() -> None:
            task = asyncio.current_task()
            assert task is not None
            renewing.append((asyncio.get_running_loop(), task))
            started.set()
            client = connect()
            try:
                await self._keep(client)
            finally:
                await client.close()

        def run() -> None:
            try:
                asyncio.run(keep())
            except asyncio.CancelledError:
                pass  # as it was asked to
            finally:
                started.set()

        with ThreadPoolExecutor(1, "lease") as threads:
            ended = asyncio.get_running_loop().run_in_executor(threads, run)
            try:
                await asyncio.shield(ended)
            except asyncio.CancelledError:
                started.wait()
                for loop, task in renewing:
                    with contextlib.suppress(RuntimeError):  # its loop has just ended
                        loop.call_soon_threadsafe(task.cancel)
                await asyncio.wait([ended])
                raise

    async def _keep(self, kube: Kube) -> None:
        loop = asyncio.get_running_loop()
        pause = self.renew
        while True:
            deadline = self._renewed + self._patience
            await asyncio.sleep(max(0.0, min(pause, deadline - loop.time())))
            begun = loop.time()
            try:
                async with asyncio.timeout_at(min(begun + self._attempt, deadline)):
                    await self._renew(kube)
                self._renewed, pause = begun, self.renew
            except (KubeError, TimeoutError) as error:
                log.warning("the lease cannot be renewed", lease=self.name, error=str(error) or type(error).__name__)
                if loop.time() >= deadline:
                    raise LeaseNotRenewed(f"lease {self.name} could not be renewed for {loop.time() - self._renewed:.0f} s") from error
                pause = self.renew / 2

    async def recover(self) -> None:
        """After LeaseNotRenewed, when nothing of ours is at work any longer: wait until we hold it again, if nobody has held it since.

        A takeover changes the holder, and each one after it counts leaseTransitions up; what we write is on top of exactly what was read.

        Raises:
            LeaseLost: another holds it or has held it, or it was removed, and so may have been held.
        """
        loop = asyncio.get_running_loop()
        while True:
            begun = loop.time()
            try:
                async with asyncio.timeout(self._attempt):
                    lease = await self.kube.get(LEASE, self.name, self.namespace)
                    if lease is None or int(lease["spec"].get("leaseTransitions") or 0) != int(self._held["spec"]["leaseTransitions"]):
                        raise LeaseLost(f"lease {self.name} {'was held by another replica' if lease else 'was removed'} while it could not be renewed")
                    await self._renew_on(self.kube, lease)
                self._renewed = begun
                log.info("leading again", lease=self.name, identity=self.identity)
                return
            except (KubeError, TimeoutError) as error:
                log.warning("the lease cannot be renewed", lease=self.name, error=str(error) or type(error).__name__)
            await asyncio.sleep(self.renew)

    async def release(self) -> None:
        """Let the next one have it at once, at a clean end."""
        lease = await self.kube.get(LEASE, self.name, self.namespace)
        if lease and lease["spec"].get("holderIdentity") == self.identity:
            lease["spec"]["holderIdentity"] = ""
            await self.kube.replace(lease)

    async def _take(self) -> bool:
        """Take the lease if it is free: it has no holder, or has not changed for its duration. KubeError if the API server refuses or another was first."""
        now = self.clock.now()
        lease = await self.kube.get(LEASE, self.name, self.namespace)
        if lease is None:
            self._held = await self.kube.create(self._new(now))
            return True
        spec: Obj = lease["spec"]
        age, holder = self._observer.age(lease), spec.get("holderIdentity") or ""
        if holder not in ("", self.identity) and age < (spec.get("leaseDurationSeconds") or self.duration):
            return False
        acquired = _parse(spec.get("acquireTime"), now) if holder == self.identity else now
        transitions = int(spec.get("leaseTransitions") or 0) + (holder != self.identity)
        self._held = await self.kube.replace(lease | {"spec": self._spec(acquired, now, transitions)})
        return True

    async def _renew(self, kube: Kube) -> None:
        """Renew the lease that we hold. LeaseLost if another holds it; KubeError if it can't be written."""
        try:
            await self._renew_on(kube, self._held)
            return
        except KubeError as error:
            if error.code not in (404, 409):
                raise
        lease = await kube.get(LEASE, self.name, self.namespace)  # somebody has changed it, or an earlier request of ours that timed out
        if lease is None:
            self._held = await kube.create(self._new(self.clock.now()))
        else:
            await self._renew_on(kube, lease)

    async def _renew_on(self, kube: Kube, lease: Obj) -> None:
        """Renew it on top of what was read or written. LeaseLost if another holds it; KubeError (Conflict, 404) if it is not as it was."""
        spec, now = lease["spec"], self.clock.now()
        holder = spec.get("holderIdentity") or ""
        if holder != self.identity:
            raise LeaseLost(f"lease {self.name} is held by {holder or 'no replica'}")
        renewed = self._spec(_parse(spec.get("acquireTime"), now), now, int(spec.get("leaseTransitions") or 0))
        self._held = await kube.replace(lease | {"spec": renewed})

    def _new(self, now: datetime) -> Obj:
        metadata = {"name": self.name, "namespace": self.namespace}
        return {"apiVersion": LEASE.api_version, "kind": LEASE.kind, "metadata": metadata, "spec": self._spec(now, now, 0)}

    def _spec(self, acquired: datetime, renewed: datetime, transitions: int) -> Obj:
        return {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": int(self.duration),
            "acquireTime": rfc3339_micro(acquired),
            "renewTime": rfc3339_micro(renewed),
            "leaseTransitions": transitions,
        }


def _another_was_first(error: Exception) -> bool:
    return isinstance(error, KubeError) and error.reason in ("Conflict", "AlreadyExists")


def _parse(text: str | None, default: datetime) -> datetime:
    return parse_rfc3339(text) if text else default
