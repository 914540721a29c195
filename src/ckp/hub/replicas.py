"""Which replicas of the hub live, by a Lease each (coordination.k8s.io/v1), as a kubelet has one for its node.

A host's status names the replica that holds its connection, so that one small write of each replica says for all of its hosts that they are heard
of, where each host would cost a write of its own whole status: two thousand hosts were a hundred writes a second with nothing going on.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from ckp.api import kinds, names
from ckp.clients.kube import Kube, KubeError, Obj
from ckp.kits.clock import Clock, parse_rfc3339, rfc3339_micro

log = structlog.get_logger("hub.replicas")

LABEL = {f"{names.CKP}/lease-of": "hub"}
RENEW_SECONDS = 10.0
KEPT = timedelta(hours=1)
"""The Lease of a replica that is gone is deleted after this time: until when its hosts were heard of, nobody asks any more."""


@dataclass(frozen=True)
class Sign:
    """Of a replica's life: when it says that it renewed, and when we, by our own clock, first saw that it had. Clocks of machines differ."""

    renewed: datetime
    heard: datetime


class Replicas:
    """Our own Lease, and a look at those of the others.

    Args:
        identity: our name, unique among all replicas that live: the pod's.
        renew: seconds between two renewals.
    """

    def __init__(self, kube: Kube, identity: str, clock: Clock, *, renew: float, namespace: str = names.HOSTS_NAMESPACE) -> None:
        self.identity = identity
        self._kube = kube
        self._clock = clock
        self._renew = renew
        self._namespace = namespace
        self._steady_since = 0.0
        self._renewed = float("-inf")
        self._signs: dict[str, Sign] = {}

    @property
    def healthy(self) -> bool:
        """Whether our Lease holds: if not, the others take our hosts for silent."""
        return self._clock.monotonic() - self._renewed < 3 * self._renew

    def steady(self) -> float:
        """For how many seconds we have renewed without a gap; 0 when the last renewal is too long ago.

        After an outage of the API server all Leases are old, and none of it says that a replica is dead. Whoever has renewed for a while knows that
        the others could as well.
        """
        return self._clock.monotonic() - self._steady_since if self.healthy else 0.0

    async def keep(self) -> None:
        """Renew until cancelled."""
        while True:
            try:
                await self._kube.apply(self._lease())
                now = self._clock.monotonic()
                if not self.healthy:
                    self._steady_since = now
                self._renewed = now
            except KubeError as error:
                log.warning("the lease of this replica cannot be renewed", identity=self.identity, error=error.brief)
            await asyncio.sleep(self._renew)

    async def replica_leases(self) -> dict[str, Sign]:
        """The last sign of each replica, by its identity. KubeError if the API server does not answer."""
        leases = await self._kube.list(kinds.LEASE, self._namespace, labels=LABEL)
        found, now = {}, self._clock.now()
        for lease in leases:
            spec = lease.get("spec") or {}
            if not spec.get("holderIdentity") or not spec.get("renewTime"):
                continue
            identity, renewed = str(spec["holderIdentity"]), parse_rfc3339(spec["renewTime"])
            if now - renewed > KEPT:
                await self._kube.delete(kinds.LEASE, lease["metadata"]["name"], self._namespace)
                continue
            before = self._signs.get(identity)
            found[identity] = before if before and before.renewed == renewed else Sign(renewed, now)
        self._signs = found
        return found

    def _lease(self) -> Obj:
        return {
            "apiVersion": kinds.LEASE.api_version,
            "kind": kinds.LEASE.kind,
            "metadata": {"name": self.identity, "namespace": self._namespace, "labels": LABEL},
            "spec": {
                "holderIdentity": self.identity,
                "leaseDurationSeconds": int(3 * self._renew) or 1,
                "renewTime": rfc3339_micro(self._clock.now()),
            },
        }
