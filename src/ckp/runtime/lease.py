"""Leases (coordination.k8s.io/v1): leader election as client-go does it, and who else is alive, both judged by one's own clock."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

import structlog

from ckp.api.kinds import LEASE
from ckp.clients.kube import Kube, KubeError, Obj
from ckp.kits.clock import Clock, SystemClock, parse_rfc3339, rfc3339_micro

log = structlog.get_logger()


class LeaseLost(Exception):
    """We could not renew in time, or another replica holds the lease: it may be working now, so this process must stop at once."""


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

    Args:
        duration: seconds without a renewal after which others may take the lease; whole ones, at least 1.
        renew: seconds between two renewals. A holder that could not renew for `duration - renew` stops, before others may take over.
    """

    kube: Kube
    namespace: str
    name: str
    identity: str
    duration: float = 15.0
    renew: float = 4.0
    clock: Clock = field(default_factory=SystemClock)

    def __post_init__(self) -> None:
        self._observer = LeaseObserver(self.clock)
        self._renewed = 0.0  # by the loop's clock, when the last request that succeeded was begun: not later than the API server's write

    async def acquire(self) -> None:
        """Wait until we hold it."""
        loop = asyncio.get_running_loop()
        while True:
            begun = loop.time()
            try:
                async with asyncio.timeout(self.renew):
                    if await self._take():
                        self._renewed = begun
                        log.info("leading", lease=self.name, identity=self.identity)
                        return
            except (KubeError, TimeoutError) as error:
                if not _another_was_first(error):
                    log.warning("the lease cannot be read or taken", lease=self.name, error=str(error) or type(error).__name__)
            await asyncio.sleep(self.renew / 2)

    async def keep(self) -> None:
        """Renew until cancelled.

        Raises:
            LeaseLost: another holds it, or no renewal succeeded within `duration - renew` seconds.
        """
        loop = asyncio.get_running_loop()
        pause = self.renew
        while True:
            deadline = self._renewed + self.duration - self.renew
            await asyncio.sleep(max(0.0, min(pause, deadline - loop.time())))
            begun = loop.time()
            try:
                async with asyncio.timeout_at(min(begun + self.renew, deadline)):
                    await self._renew()
                self._renewed, pause = begun, self.renew
            except (KubeError, TimeoutError) as error:
                log.warning("the lease cannot be renewed", lease=self.name, error=str(error) or type(error).__name__)
                if loop.time() >= deadline:
                    raise LeaseLost(f"lease {self.name} could not be renewed for {loop.time() - self._renewed:.0f} s") from error
                pause = self.renew / 2

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
            await self.kube.create(self._new(now))
            return True
        spec: Obj = lease["spec"]
        age, holder = self._observer.age(lease), spec.get("holderIdentity") or ""
        if holder not in ("", self.identity) and age < (spec.get("leaseDurationSeconds") or self.duration):
            return False
        acquired = _parse(spec.get("acquireTime"), now) if holder == self.identity else now
        transitions = int(spec.get("leaseTransitions") or 0) + (holder != self.identity)
        await self.kube.replace(lease | {"spec": self._spec(acquired, now, transitions)})
        return True

    async def _renew(self) -> None:
        """Renew the lease that we hold. LeaseLost if another holds it; KubeError if it can't be written."""
        now = self.clock.now()
        lease = await self.kube.get(LEASE, self.name, self.namespace)
        if lease is None:
            await self.kube.create(self._new(now))
            return
        spec: Obj = lease["spec"]
        holder = spec.get("holderIdentity") or ""
        if holder != self.identity:
            raise LeaseLost(f"lease {self.name} is held by {holder or 'no replica'}")
        await self.kube.replace(lease | {"spec": self._spec(_parse(spec.get("acquireTime"), now), now, int(spec.get("leaseTransitions") or 0))})

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
