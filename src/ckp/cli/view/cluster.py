"""The steps of a cluster, as Compass has them, inside the steps of a command."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from ckp.kits.clock import parse_rfc3339
from ckp.kits.steps import State, Steps
from ckp.rules.lifecycle import STEPS

STATES = {"Done": State.DONE, "Skipped": State.SKIPPED, "Failed": State.FAILED, "Running": State.RUNNING}
"""Compass' words; all others mean that a step has not begun, or that it can't be seen now (Unknown)."""
COMMAND = "cluster"
"""What durations are kept under: the same for `ckp up` and `ckp cluster create`."""


def seconds_of(step: Mapping[str, Any], *, now: datetime | None = None) -> float | None:
    """How long a step took; with `now`, for how long it has been running. None if the times that this needs are missing or unreadable."""
    try:
        end = now if now is not None else parse_rfc3339(step["finishedAt"])
        return max(0.0, (end - parse_rfc3339(step["startedAt"])).total_seconds())
    except (KeyError, ValueError, TypeError, AttributeError):
        return None


class ClusterProgress:
    """Carries what Compass answers into a group of steps. Until Compass names its steps, those that this version knows stand there."""

    def __init__(self, steps: Steps) -> None:
        self._group = steps.group([(step.phase, step.title) for step in STEPS], command=COMMAND)

    def update(self, row: Mapping[str, Any]) -> None:
        """Take the present state of the cluster."""
        steps = row.get("steps") or []
        if not steps:
            return
        self._group.replan([(str(step.get("phase", "")), str(step.get("title", ""))) for step in steps])
        for number, step in enumerate(steps, 1):
            state = STATES.get(str(step.get("state")), State.WAITING)
            running = seconds_of(step, now=datetime.now(UTC)) if state is State.RUNNING else None
            message = str(step.get("message") or "") if state is not State.DONE else ""
            self._group.set(number, state, seconds=seconds_of(step), running_for=running or 0.0, note=message)

    def heartbeat(self, text: str) -> None:
        """Print what is waited for, if nothing was printed for a while."""
        self._group.beat(text)
