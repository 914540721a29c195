"""Hosts that have fallen silent: connected once, to us or to another replica, and not heard of for too long."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING

import structlog

from ckp.api import kinds
from ckp.clients.kube import KubeError, Obj
from ckp.hub import status as shape
from ckp.hub.identity import HostId
from ckp.hub.replicas import Sign
from ckp.kits.clock import parse_rfc3339, rfc3339
from ckp.rules import certificates

if TYPE_CHECKING:
    from ckp.hub.sessions.server import Channel

log = structlog.get_logger("hub.channel")

SWEEP_SECONDS = 15.0
PAGE = 100
"""Hosts that are read at once: five hundred with their journals are some megabytes, and no host is served while they are parsed."""


class Sweep:
    """Looks at all hosts again and again: marks those that are silent as offline, and sets right what is not so of those that are connected here.

    Of a host whose replica lives, that replica alone judges: it knows when it last heard of it. Of all others each does, by the host's lastSeen or by
    when its replica last said that it lives, whichever is later.
    """

    def __init__(self, channel: Channel, every: float = SWEEP_SECONDS) -> None:
        self._channel = channel
        self._every = every

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(self._every)
            self._channel.forget_departed()
            try:
                await self._all_of_them()
            except KubeError as error:
                log.warning("silent hosts cannot be looked for", error=error.brief)

    async def _all_of_them(self) -> None:
        channel = self._channel
        # One time for all, from before the signs: while hosts are written one after the other, replicas that live do not grow silent.
        at = channel.clock.now()
        signs = await channel.replicas.signs_of_life()
        for host in await channel.kube.list(kinds.BYO_HOST, page=PAGE):
            identity = HostId(host["metadata"]["namespace"], host["metadata"]["name"])
            try:
                if not channel.is_absent(identity):
                    channel.set_right(identity, host)
                # After a start, ours or the API server's, all hosts and replicas get the time to come back, however long nobody was there to hear them.
                elif channel.replicas.steady() >= channel.offline:
                    await self._judge(identity, host, signs, at)
            except (KubeError, ValueError) as error:  # one host that can't be judged keeps no other from it
                if isinstance(error, KubeError) and error.code == 0:
                    raise
                log.warning("a silent host cannot be marked", host=str(identity), error=str(error))

    async def _judge(self, identity: HostId, host: Obj, signs: Mapping[str, Sign], at: datetime) -> None:
        agent = certificates.agent_of(host)
        if shape.condition_of(host).get("status") != "True" or not agent.get("lastSeen"):
            return
        heard = seen = parse_rfc3339(agent["lastSeen"])
        if shape.hub_of(host) == self._channel.replicas.identity:
            heard = seen = max(seen, self._channel.departed(identity) or seen)
        elif sign := signs.get(shape.hub_of(host)):
            heard, seen = max(heard, sign.heard), max(seen, sign.renewed)
        if (at - heard).total_seconds() >= self._channel.offline:
            await self._mark(identity, host, seen)

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
