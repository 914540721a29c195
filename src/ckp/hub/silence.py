"""Hosts that have fallen silent: connected once, to us or to another replica, and not heard of for too long."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import structlog

from ckp.clients import kinds
from ckp.clients.kube import KubeError, Obj
from ckp.hub import status as shape
from ckp.hub.identity import HostId
from ckp.kits.clock import parse_rfc3339, rfc3339

if TYPE_CHECKING:
    from ckp.hub.channel import Channel

log = structlog.get_logger("hub.channel")

SWEEP_SECONDS = 15.0
PAGE = 100
"""Hosts that are read at once: five hundred with their journals are some megabytes, and no host is served while they are parsed."""


class Sweep:
    """Looks at all hosts again and again, and marks those that are silent as offline.

    Of a host whose replica lives, that replica alone judges: it knows when it last heard of it. Of all others each does, by the host's lastSeen or by
    when its replica last said that it lives, whichever is later.
    """

    def __init__(self, channel: Channel, every: float = SWEEP_SECONDS) -> None:
        self._channel = channel
        self._every = every

    async def run(self) -> None:
        """Until cancelled."""
        channel = self._channel
        while True:
            await asyncio.sleep(self._every)
            channel.forget_departed()
            # After a start, ours or the API server's, all hosts and replicas get the time to come back, however long nobody was there to hear them.
            if channel.replicas.steady() < channel.offline:
                continue
            try:
                signs = await channel.replicas.signs_of_life()
                for host in await channel.kube.list(kinds.BYO_HOST, page=PAGE):
                    await self._look_at(host, signs)
            except KubeError as error:
                log.warning("silent hosts cannot be looked for", error=error.brief)

    async def _look_at(self, host: Obj, signs: Mapping[str, datetime]) -> None:
        channel = self._channel
        identity = HostId(host["metadata"]["namespace"], host["metadata"]["name"])
        agent = (host.get("status") or {}).get("agent") or {}
        ours = agent.get("hub", channel.replicas.identity) == channel.replicas.identity
        offline = shape.condition_of(host).get("status") != "True"
        if not channel.is_absent(identity):
            if ours and offline:
                channel.say_again(identity)
            return
        if offline or not agent.get("lastSeen"):
            return
        seen = max(parse_rfc3339(agent["lastSeen"]), self._heard(identity, agent, signs))
        if (channel.clock.now() - seen).total_seconds() >= channel.offline:
            await self._mark(identity, host, seen)

    def _heard(self, identity: HostId, agent: Mapping[str, Any], signs: Mapping[str, datetime]) -> datetime:
        last_seen = parse_rfc3339(agent["lastSeen"])
        if agent.get("hub") == self._channel.replicas.identity:
            return self._channel.departed(identity) or last_seen
        return signs.get(str(agent.get("hub")), last_seen)

    async def _mark(self, identity: HostId, host: Obj, seen: datetime) -> None:
        channel, now = self._channel, self._channel.clock.now()
        async with channel.writing(identity):
            if not channel.is_absent(identity):
                return
            message = f"nothing was heard of the agent since {rfc3339(seen)}"
            status = shape.with_connection(shape.carried_over(host), hub="", condition=False, reason="Silent", message=message, seen=seen, at=now)
            try:
                # Only on top of what was looked at: it may have come back meanwhile, to another replica.
                body = shape.apply_body(identity, status, version=host["metadata"]["resourceVersion"])
                await channel.kube.apply(body, subresource="status")
                log.info("host is offline", host=str(identity), last_seen=rfc3339(seen))
            except KubeError as error:
                if error.code not in (404, 409):
                    raise
