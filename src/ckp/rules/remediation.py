"""Which unhealthy workers are replaced, when, and which are left for a person. Pure.

A MachineHealthCheck only reports them; this decides. It never replaces in a loop: what fails again and again is not cured by another machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from ckp.api.objects.base import time_of
from ckp.api.objects.byo_cluster import Replacement
from ckp.api.states import Reason
from ckp.kits.clock import human_duration, rfc3339

WINDOW = timedelta(hours=24)
"""How long a replacement counts."""
LIMIT = 2
"""So many of one cause in the window are made; the next worker that fails by the same cause is held for a person."""
BACKOFF = timedelta(minutes=10)
"""Between two of one cause; doubled for each one more."""
SETTLED = timedelta(hours=1)
"""A node that was Ready for so long before it failed is no failed attempt: its replacement waits for nothing, and does not count."""
KEPT = 50
"""Replacements that are remembered."""


class Cause(StrEnum):
    """The kinds of failures: they are counted apart. Wire names: they stand in `ByoCluster.status`."""

    STARTUP = "Startup"
    """It did not become a node, or its node never became Ready."""
    UNHEALTHY = "Unhealthy"
    """Its node was Ready, and is not any more."""
    LOST = "Lost"
    """It failed for good (its host was removed), or a person asked for another one (Cluster API: remediate-machine)."""


class Action(StrEnum):
    """What becomes of an unhealthy worker. Wire names."""

    REPLACE = "Replacing"
    WAIT = "Waiting"
    HOLD = "Held"


@dataclass(frozen=True)
class Sick:
    """A Machine that the health check reports; never one that is being deleted."""

    machine: str
    uid: str
    host: str
    cause: Cause
    why: str
    since: datetime
    """When it was reported: its node was not Ready for the health check's timeout by then."""
    ready_at: datetime | None = None
    """When its node was first Ready; None: never."""
    held_at: datetime | None = None
    """Since when it is held for a person."""
    node_joined: bool = True
    upgrading_until: datetime | None = None
    """While its node is upgraded in place: until when that excuses that it is not Ready."""


@dataclass(frozen=True)
class Policy:
    """What the decision depends on besides the workers."""

    cluster: str
    workers: int
    """Machines that are not being deleted."""
    startup: timedelta = timedelta(minutes=30)
    unhealthy: timedelta = timedelta(minutes=5)
    network: bool = True
    """Whether CKP installs the network: else a node is not Ready until its owner has installed one."""
    not_reported: Sequence[str] = ()
    """Machines that are nodes, are not Ready now, and were not reported yet: what fails together is reported one after the other, seconds apart."""
    api_unreachable: str = ""
    """Why the nodes could not be seen just now; "" if they were."""
    resumed: datetime | None = None
    """When a person last said that it may go on: what was before does not count."""


@dataclass(frozen=True)
class Verdict:
    """What becomes of one worker, and why."""

    sick: Sick
    action: Action
    reason: Reason | None = None
    message: str = ""
    until: datetime | None = None
    """When to decide again, if nothing happens before."""
    cause: Cause = Cause.UNHEALTHY
    number: int = 1
    """Of a replacement: its place among those of this cause in the window."""
    settled: bool = False


def most_unhealthy(workers: int) -> int:
    """How many workers may be unhealthy at once for them to be replaced. If more than half are, it is the network or the control plane, and another
    host would not help. Of one worker it is that one.
    """
    return max(1, workers // 2)


def decide(sick: Sequence[Sick], history: Sequence[Replacement], policy: Policy, now: datetime) -> list[Verdict]:
    """The verdicts, oldest report first. What is to be replaced counts as replaced for those after it."""
    verdicts: list[Verdict] = []
    made = list(history)
    ordered = sorted(sick, key=lambda item: (item.since, item.machine))
    for item in ordered:
        verdict = _decide(item, ordered, made, policy, now)
        if verdict.action is Action.REPLACE:
            made.append(replacement(verdict, now))
        verdicts.append(verdict)
    return verdicts


def replacement(verdict: Verdict, now: datetime) -> Replacement:
    """The entry of the history."""
    sick = verdict.sick
    return Replacement(
        machine=sick.machine,
        uid=sick.uid,
        host=sick.host,
        cause=verdict.cause,
        reason=sick.why,
        at=rfc3339(now),
        number=verdict.number,
        settled=verdict.settled,
    )


def _decide(item: Sick, all_sick: Sequence[Sick], made: Sequence[Replacement], policy: Policy, now: datetime) -> Verdict:
    if item.cause is Cause.LOST:
        return Verdict(item, Action.REPLACE, cause=Cause.LOST, number=_count(made, Cause.LOST, policy, now) + 1, settled=True)
    if item.upgrading_until is not None and now < item.upgrading_until:
        message = f"its node is being upgraded in place: it is not replaced before {rfc3339(item.upgrading_until)}"
        return Verdict(item, Action.WAIT, Reason.NODE_UPGRADING, message, item.upgrading_until)
    if policy.api_unreachable:
        return Verdict(item, Action.WAIT, Reason.CLUSTER_NOT_REACHED, f"its node cannot be looked at, so it is not replaced: {policy.api_unreachable}")
    cause = Cause.UNHEALTHY if item.ready_at is not None else Cause.STARTUP
    if cause is Cause.STARTUP and item.node_joined:
        if not policy.network:
            message = "its node was never Ready: the cluster was made without a network (cni none), so it is not replaced before it has one"
            return Verdict(item, Action.WAIT, Reason.WAITING_FOR_NETWORK, message, cause=cause)
        deadline = item.since - policy.unhealthy + policy.startup
        if now < deadline:
            message = f"its node was never Ready: it may take until {rfc3339(deadline)} to start (ckp cluster set --node-startup-timeout)"
            return Verdict(item, Action.WAIT, Reason.WAITING_FOR_STARTUP, message, deadline, cause)
    # Before the share: what is held for a person stays held when others fail as well.
    if item.held_at is not None and (policy.resumed is None or policy.resumed <= item.held_at):
        return _hold(item, cause, _count(made, cause, policy, now) + 1, policy)
    if len(all_sick) + len(policy.not_reported) > most_unhealthy(policy.workers):
        hosts = ", ".join([*(sick.host or sick.machine for sick in all_sick), *policy.not_reported])
        message = (
            f"{len(all_sick) + len(policy.not_reported)} of {policy.workers} workers are not healthy at once ({hosts}): "
            "it is the network or the control plane rather than the hosts, so none is replaced. "
            "Look at these; a host that is gone for good: ckp host remove HOST --force"
        )
        return Verdict(item, Action.WAIT, Reason.TOO_MANY_UNHEALTHY, message, cause=cause)
    if item.ready_at is not None and item.since - policy.unhealthy - item.ready_at >= SETTLED:
        return Verdict(item, Action.REPLACE, cause=cause, number=_count(made, cause, policy, now, all_=True) + 1, settled=True)
    count = _count(made, cause, policy, now)
    if count >= LIMIT:
        return _hold(item, cause, count + 1, policy)
    if count:
        last = max(_at(entry) for entry in _counted(made, cause, policy, now))
        until: datetime = last + BACKOFF * 2 ** (count - 1)
        if now < until:
            before = "one worker that failed alike was" if count == 1 else f"{count} workers that failed alike were"
            message = f"{item.why}. It is replaced after {rfc3339(until)}: {before} replaced before"
            return Verdict(item, Action.WAIT, Reason.BACKING_OFF, message, until, cause)
    return Verdict(item, Action.REPLACE, cause=cause, number=count + 1)


def _hold(item: Sick, cause: Cause, number: int, policy: Policy) -> Verdict:
    host = item.host or "HOST"
    message = (
        f"{item.why}. It is number {number} that failed alike within {human_duration(WINDOW.total_seconds())}, so it is not replaced by itself, "
        f"and its host stays as it is. See: ckp host describe {host}. Replace this one: ckp host remove {host}; "
        f"let CKP go on: ckp cluster resume-replacement {policy.cluster}"
    )
    return Verdict(item, Action.HOLD, Reason.HELD, message, cause=cause, number=number)


def _counted(made: Sequence[Replacement], cause: Cause, policy: Policy, now: datetime, *, all_: bool = False) -> list[Replacement]:
    after = max(now - WINDOW, policy.resumed or now - WINDOW)
    return [entry for entry in made if entry.cause == cause and _at(entry) > after and (all_ or not entry.settled)]


def _count(made: Sequence[Replacement], cause: Cause, policy: Policy, now: datetime, *, all_: bool = False) -> int:
    return len(_counted(made, cause, policy, now, all_=all_))


def _at(entry: Replacement) -> datetime:
    """When it was made. An entry whose time is unreadable counts as made long ago."""
    try:
        return time_of(entry.at) or _LONG_AGO
    except ValueError:
        return _LONG_AGO


_LONG_AGO = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
