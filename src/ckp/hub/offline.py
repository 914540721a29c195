"""Hosts that are offline: connected once, to us or to another replica, and not heard of for too long."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime

import structlog

from ckp.api import kinds
from ckp.clients.kube import KubeError, Obj
from ckp.hub import status as shape
from ckp.hub.identity import HostId
from ckp.hub.replicas import ReplicaLease
from ckp.hub.sessions.server import AgentServer
from ckp.kits.clock import parse_rfc3339, rfc3339
from ckp.rules import certificates

log = structlog.get_logger("hub.channel")

SWEEP_SECONDS = 15.0
PAGE = 100
"""Hosts that are read at once: five hundred with their journals are some megabytes, and no host is served while they are parsed."""


class OfflineDetector:
    """Looks at all hosts every `every` seconds: marks stale ones as offline, and corrects the status of those that are connected here.

    A host whose replica is alive is judged by that replica alone: it knows when it last received a message. All others are judged by every
    replica, by the host's lastSeen or the last renewal of its replica's Lease, whichever is later.
    """

    def __init__(self, server: AgentServer, every: float = SWEEP_SECONDS) -> None:
        self._server = server
        self._every = every

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(self._every)
            self._server.forget_departed()
            try:
                await self._sweep()
            except KubeError as error:
                log.warning("hosts cannot be checked for being offline", error=error.brief)

    async def _sweep(self) -> None:
        server = self._server
        # One time for all, from before the Leases are read: while hosts are written one after the other, live replicas do not become stale.
        at = server.clock.now()
        leases = await server.replicas.replica_leases()
        for host in await server.kube.list(kinds.BYO_HOST, page=PAGE):
            identity = HostId(host["metadata"]["namespace"], host["metadata"]["name"])
            try:
                if not server.is_absent(identity):
                    server.correct_status(identity, host)
                # After a start of ours or an outage of the API server, all hosts and replicas get the time to come back, however old their times are.
                elif server.replicas.steady() >= server.offline:
                    await self._check(identity, host, leases, at)
            except (KubeError, ValueError) as error:  # one host that can't be checked does not stop the sweep
                if isinstance(error, KubeError) and error.code == 0:
                    raise
                log.warning("a host cannot be marked offline", host=str(identity), error=str(error))

    async def _check(self, identity: HostId, host: Obj, leases: Mapping[str, ReplicaLease], at: datetime) -> None:
        agent = certificates.agent_of(host)
        if shape.condition_of(host).get("status") != "True" or not agent.get("lastSeen"):
            return
        heard = seen = parse_rfc3339(agent["lastSeen"])
        if shape.hub_of(host) == self._server.replicas.identity:
            heard = seen = max(seen, self._server.departed(identity) or seen)
        elif lease := leases.get(shape.hub_of(host)):
            heard, seen = max(heard, lease.heard), max(seen, lease.renewed)
        if (at - heard).total_seconds() >= self._server.offline:
            await self._mark_offline(identity, host, seen)

    async def _mark_offline(self, identity: HostId, host: Obj, seen: datetime) -> None:
        server, now = self._server, self._server.clock.now()
        async with server.writing(identity):
            if not server.is_absent(identity):
                return
            message = f"nothing was heard of the agent since {rfc3339(seen)}"
            status = shape.with_connection(shape.carried_over(host), hub="", condition=False, reason="Silent", message=message, seen=seen, at=now)
            try:
                # Only on top of what was read: it may have come back meanwhile, to another replica.
                body = shape.apply_body(identity, status, version=host["metadata"]["resourceVersion"])
                await server.kube.apply(body, subresource="status")
                log.info("host is offline", host=str(identity), last_seen=rfc3339(seen))
            except KubeError as error:
                if error.code not in (404, 409):
                    raise
