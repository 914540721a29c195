"""Which Events an object's conditions make: one for each transition to true, to false, or to false for another reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ckp.api.states import ConditionType


@dataclass(frozen=True)
class Transition:
    """A condition or phase as it is now. It is a transition where `state` differs from the last one seen; `since` is empty where no time was recorded."""

    about: str
    state: str
    reason: str
    message: str
    warning: bool
    since: str = ""


def transitions(obj: Mapping[str, Any]) -> Iterator[Transition]:
    """The current state of an object of any kind: its conditions but for Ready, which sums them up, a host's phase, and a cluster's replaced workers."""
    status = obj.get("status") or {}
    for condition in status.get("conditions") or []:
        kind, value, why = str(condition["type"]), str(condition["status"]), str(condition.get("reason") or "")
        if kind == ConditionType.READY or value == "Unknown":
            continue
        good = value == "True"
        reason = kind if good or not why else why
        message = str(condition.get("message") or "") or f"{kind} is {value}"
        warning = not good and condition.get("severity", "Info") in ("Warning", "Error")
        yield Transition(kind, f"{value} {why}", reason, message, warning, str(condition.get("lastTransitionTime") or ""))
    for made in status.get("replacements") or []:
        worker, number = str(made.get("host") or made.get("machine") or ""), int(made.get("number") or 1)
        message = f"worker {worker} is replaced: {made.get('reason') or made.get('cause')} (number {number} by this cause within 24 hours)"
        yield Transition(f"replacement {made.get('uid')}", "made", "WorkerReplaced", message, True, str(made.get("at") or ""))
    observed = status.get("observed") or {}
    if phase := str(observed.get("phase") or ""):
        why = str(observed.get("reason") or "")
        cluster = str(observed.get("cluster") or "").rpartition("/")[2]
        place = f" for cluster {cluster}" if cluster else ""
        yield Transition("phase", f"{phase} {why} {cluster}", why or phase, str(observed.get("message") or "") or f"the host is {phase}{place}", bool(why))
