"""Conditions as Cluster API v1beta1 has them: type, status, severity, reason, message, lastTransitionTime."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Literal

from ckp.api.states import ConditionType, Reason
from ckp.kits.clock import rfc3339

Condition = dict[str, Any]
Severity = Literal["Error", "Warning", "Info", ""]


def get_condition(obj: Mapping[str, Any], kind: str) -> Condition | None:
    """A copy of the condition of this type in the status of an object of any kind."""
    for condition in (obj.get("status") or {}).get("conditions") or []:
        if condition.get("type") == kind:
            return dict(condition)
    return None


def is_true(obj: Mapping[str, Any], kind: str) -> bool:
    """Whether the condition is there and True."""
    return (get_condition(obj, kind) or {}).get("status") == "True"


def make_condition(kind: str, ok: bool | None, now: datetime, *, reason: str = "", message: str = "", severity: Severity = "Info") -> Condition:
    """A condition; `ok` None is Unknown. Severity is only for what is False (Cluster API: it must be empty for True)."""
    condition: Condition = {"type": str(kind), "status": {True: "True", False: "False", None: "Unknown"}[ok], "lastTransitionTime": rfc3339(now)}
    if ok is not True:
        condition |= {"severity": severity, "reason": str(reason or Reason.WAITING), "message": message}
    return condition


def merge_conditions(old: Iterable[Condition], new: Iterable[Condition]) -> list[Condition]:
    """`old` with those of `new` in their place, sorted by type with Ready first; a time changes only where status, severity, reason or message did."""
    merged = {condition["type"]: dict(condition) for condition in old}
    for condition in new:
        before = merged.get(condition["type"])
        if before and _meaning(before) == _meaning(condition):
            continue
        merged[condition["type"]] = dict(condition)
    return sorted(merged.values(), key=lambda condition: (condition["type"] != ConditionType.READY, condition["type"]))


def _meaning(condition: Condition) -> tuple[Any, ...]:
    return tuple(condition.get(key) or "" for key in ("status", "severity", "reason", "message"))


def summarize(conditions: Iterable[Condition], now: datetime) -> Condition:
    """`Ready` from the others: True if all are, else the first that is not, worst severity first."""
    order = {"Error": 0, "Warning": 1, "Info": 2, "": 3}
    waiting = [condition for condition in conditions if condition["type"] != ConditionType.READY and condition["status"] != "True"]
    if not waiting:
        return make_condition(ConditionType.READY, True, now)
    worst = min(waiting, key=lambda condition: (order[condition.get("severity", "")], condition["type"]))
    return make_condition(ConditionType.READY, False, now, reason=worst["reason"], message=worst.get("message", ""), severity=worst.get("severity", "Info"))
