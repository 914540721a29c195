"""Which replicas of the hub are alive, by a Lease each (coordination.k8s.io/v1), as a kubelet has one for its node.

A host's status names the replica that holds its connection, so that one small write of each replica is the heartbeat of all of its hosts. Else each
host would cost a write of its own whole status: a hundred writes a second for two thousand hosts with nothing going on.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from ckp.api import kinds, names
from ckp.clients.kube import Kube, KubeError, Obj
from ckp.kits.clock import Clock, parse_rfc3339, rfc3339_micro
from ckp.runtime.lease import LeaseObserver

log = structlog.get_logger("hub.replicas")

LABEL = {f"{names.CKP}/lease-of": "hub"}
RENEW_SECONDS = 10.0
KEPT = timedelta(hours=1)
"""A Lease that did not change for this time is deleted: its replica is gone, and its hosts have long been marked offline."""


@dataclass(frozen=True)
class ReplicaLease:
    """The last renewal of a replica: by its own clock (`renewed`), and when we first saw it by our clock (`heard`). Clocks of machines differ."""

    renewed: datetime
    heard: datetime


class Replicas:
    """Our own Lease, and what those of the other replicas show.

    Args:
        identity: our name, unique among all live replicas: the pod's.
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
        self._observer = LeaseObserver(clock)

    @property
    def healthy(self) -> bool:
        """Whether our Lease is current: if not, the others mark our hosts as offline."""
        return self._clock.monotonic() - self._renewed < 3 * self._renew

    def steady(self) -> float:
        """For how many seconds we have renewed without a gap; 0 when the last renewal is too long ago.

        After an outage of the API server all Leases are old, though no replica is dead. A replica that has renewed for a while knows that the others
        could as well.
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

    async def replica_leases(self) -> dict[str, ReplicaLease]:
        """The last renewal of each replica, by its identity. KubeError if the API server does not answer."""
        leases = await self._kube.list(kinds.LEASE, self._namespace, labels=LABEL)
        found, now = {}, self._clock.now()
        for lease in leases:
            spec = lease.get("spec") or {}
            if not spec.get("holderIdentity") or not spec.get("renewTime"):
                continue
            unchanged = timedelta(seconds=self._observer.age(lease))
            if unchanged > KEPT:
                await self._kube.delete(kinds.LEASE, lease["metadata"]["name"], self._namespace)
                continue
            found[str(spec["holderIdentity"])] = ReplicaLease(parse_rfc3339(spec["renewTime"]), now - unchanged)
        self._observer.forget_all_but(lease["metadata"]["name"] for lease in leases)
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
