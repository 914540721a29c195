"""Leader election by a Lease (coordination.k8s.io/v1), as client-go does it: of several replicas one works."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog

from ckp.api.kinds import LEASE
from ckp.clients.kube import Kube, KubeError, Obj
from ckp.kits.clock import parse_rfc3339, rfc3339_micro

log = structlog.get_logger()


class LeaseLost(Exception):
    """We could not renew in time: another replica may be working now, so this process must stop at once."""


@dataclass
class LeaderLease:
    """A lease called `name` that `identity` wants to hold.

    Args:
        duration: seconds for which a holder that says nothing counts as alive.
        renew: seconds between two renewals.
    """

    kube: Kube
    namespace: str
    name: str
    identity: str
    duration: float = 15.0
    renew: float = 4.0

    async def acquire(self) -> None:
        """Wait until we hold it."""
        while True:
            try:
                if await self._try():
                    log.info("leading", lease=self.name, identity=self.identity)
                    return
            except KubeError as error:
                log.warning("lease", error=error.brief)
            await asyncio.sleep(self.renew / 2)

    async def keep(self) -> None:
        """Renew until cancelled.

        Raises:
            LeaseLost: somebody else holds it, or no renewal worked within the lease's duration.
        """
        loop = asyncio.get_running_loop()
        renewed = loop.time()
        while True:
            await asyncio.sleep(self.renew)
            try:
                async with asyncio.timeout(self.renew):
                    held = await self._try()
                if not held:
                    raise LeaseLost(f"{self.name} is held by another")
                renewed = loop.time()
            except (KubeError, TimeoutError) as error:
                if loop.time() - renewed > self.duration - self.renew:
                    raise LeaseLost(f"{self.name} could not be renewed") from error

    async def release(self) -> None:
        """Let the next one have it at once, at a clean end."""
        lease = await self.kube.get(LEASE, self.name, self.namespace)
        if lease and lease["spec"].get("holderIdentity") == self.identity:
            lease["spec"]["holderIdentity"] = ""
            await self.kube.replace(lease)

    async def _try(self) -> bool:
        now = datetime.now(UTC)
        lease = await self.kube.get(LEASE, self.name, self.namespace)
        if lease is None:
            lease = {"apiVersion": LEASE.api_version, "kind": LEASE.kind, "metadata": {"name": self.name, "namespace": self.namespace}, "spec": {}}
            lease["spec"] = self._spec(now, now, 0)
            await self.kube.create(lease)
            return True
        spec: Obj = lease["spec"]
        holder = spec.get("holderIdentity") or ""
        if holder not in ("", self.identity) and now < _parse(spec.get("renewTime")) + timedelta(seconds=spec.get("leaseDurationSeconds", 15)):
            return False
        taken = _parse(spec.get("acquireTime")) if holder == self.identity else now
        transitions = int(spec.get("leaseTransitions") or 0) + (holder != self.identity)
        lease["spec"] = self._spec(taken, now, transitions)
        try:
            await self.kube.replace(lease)
        except KubeError as error:
            if error.reason == "Conflict":
                return False
            raise
        return True

    def _spec(self, taken: datetime, renewed: datetime, transitions: int) -> Obj:
        return {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": int(self.duration),
            "acquireTime": rfc3339_micro(taken),
            "renewTime": rfc3339_micro(renewed),
            "leaseTransitions": transitions,
        }


def _parse(text: str | None) -> datetime:
    return parse_rfc3339(text) if text else datetime.fromtimestamp(0, UTC)
