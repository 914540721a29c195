"""How long an upgrade waits for a host that can do nothing now: since when, until when, and what is taken back when it is given up.

The time runs from when this upgrade first saw the host so, is kept in `status.nodes`, and starts again once the host was seen to be well. So it lives through
a restart of the controllers, and a host that comes back within it goes on as if it had never been away.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from ckp.api.objects.base import time_of
from ckp.api.objects.cluster_upgrade import ClusterUpgrade
from ckp.api.states import NodeUpgradeState, Reason
from ckp.controllers.upgrades.facts import Member
from ckp.kits.clock import exact_duration, rfc3339

BLOCKED_AT_MOST = timedelta(hours=24)
"""How long an upgrade is looked at again while something holds it up. One that began by itself days later would surprise those who use the cluster."""
OWN_END = (NodeUpgradeState.INSTALLING, NodeUpgradeState.VERIFYING)
"""From here on the host ends the upgrade of its node by itself, whatever is asked for by then."""


@dataclass(frozen=True)
class HostWait:
    """What one host is waited for."""

    host: str
    why: str
    """What keeps it from going on, such as `its host is offline`."""
    since: datetime
    until: datetime
    limit: str

    def ended(self, now: datetime) -> bool:
        """Whether it is given up."""
        return now >= self.until

    def __str__(self) -> str:
        return f"{self.host}: {self.why}; it is waited for since {rfc3339(self.since)}, and until {rfc3339(self.until)} at most (hostTimeout {self.limit})"


def hindrance(member: Member) -> str:
    """Why a host can do nothing for its node's upgrade now; "" if it can.

    A drain is not the host's: it has its own limit. A node that is not Ready while it is verified has one, too (node_upgrade.VERIFY).
    """
    status = member.byo.status.upgrade
    if status.state in (NodeUpgradeState.DRAINING, NodeUpgradeState.VERIFYING):
        return ""
    if not member.facts.online:
        return "its host is offline"
    if status.state in ("", NodeUpgradeState.PREPARING) and status.reason in (Reason.AGENT_TOO_OLD, Reason.NO_BUNDLE):
        return status.message or status.reason
    return ""


def wait_of(upgrade: ClusterUpgrade, member: Member, now: datetime) -> HostWait | None:
    """What a host is waited for; None if nothing keeps it from going on."""
    why = hindrance(member)
    if not why:
        return None
    before = next((node for node in upgrade.status.nodes if node.name == member.name), None)
    since = (time_of(before.waiting_since) if before else None) or now
    seconds = upgrade.spec.host_timeout_seconds
    return HostWait(member.name, why, since, since + timedelta(seconds=seconds), exact_duration(seconds))


def given_up(wait: HostWait, member: Member) -> str:
    """Why the upgrade ends, in what state that leaves the node, and what to do."""
    what = f"host {wait.host} was waited for since {rfc3339(wait.since)}, and hostTimeout ({wait.limit}) is over: {wait.why}."
    if member.byo.status.upgrade.state in OWN_END:
        return f"{what} Its node stays cordoned, and is finished, or put back to its old packages, by the host itself when that is back."
    return f"{what} Its node was not changed."


def blocked_until(upgrade: ClusterUpgrade, now: datetime) -> datetime:
    """When an upgrade ends that something holds up."""
    return (time_of(upgrade.status.started_at) or now) + BLOCKED_AT_MOST
