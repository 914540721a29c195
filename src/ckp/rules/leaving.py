"""Whether a cluster is being deleted; what the deletion of a Machine waits for, and for how long. Pure.

Cluster API v1.7.7 (machine_controller.go, reconcileDelete) drains the node, waits for its volumes, deletes the ByoMachine (which resets the host) and
then the Node. The conditions tell which of these is under way; the timeouts count from the transition to False.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from ckp.api.names import DELETE_REQUESTED_ANNOTATION, LOOK_ANNOTATION, NO_DRAIN_ANNOTATION, NO_VOLUME_DETACH_ANNOTATION
from ckp.api.objects.byo_host import ByoHost
from ckp.api.states import ConditionType
from ckp.kits.clock import exact_duration, parse_duration, parse_rfc3339, rfc3339
from ckp.rules.conditions import get_condition, is_true

LATE = timedelta(seconds=5)
LOOK_AGAIN = timedelta(seconds=30)
_STAGES = (
    # What is reached later comes first.
    (ConditionType.VOLUME_DETACH_SUCCEEDED, "nodeVolumeDetachTimeout", NO_VOLUME_DETACH_ANNOTATION, "the volumes of its node are being detached"),
    (ConditionType.DRAINING_SUCCEEDED, "nodeDrainTimeout", NO_DRAIN_ANNOTATION, "its node is being drained"),
)


def is_going(cluster: Mapping[str, Any]) -> bool:
    """Whether a Cluster's deletion was asked for, of CKP or of Kubernetes."""
    meta = cluster["metadata"]
    return "deletionTimestamp" in meta or DELETE_REQUESTED_ANNOTATION in (meta.get("annotations") or {})


def seconds_of(machine: Mapping[str, Any], field: str) -> int:
    """A timeout of a Machine; 0: it waits without end."""
    try:
        return parse_duration(str((machine.get("spec") or {}).get(field) or "0"))
    except ValueError:
        return 0


def overdue(machine: Mapping[str, Any], now: datetime) -> bool:
    """Whether a timeout of a Machine that is being deleted has run out and Cluster API should look: it waits without a timer (volumes), or with a
    growing delay (a drain that fails), and would see it up to ten minutes late.
    """
    meta = machine["metadata"]
    looked = str((meta.get("annotations") or {}).get(LOOK_ANNOTATION) or "")
    if not meta.get("deletionTimestamp") or is_true(machine, ConditionType.PRE_TERMINATE_HOOK_SUCCEEDED) or (looked and _before(now, looked, LOOK_AGAIN)):
        return False
    for kind, field, _, _ in _STAGES:
        condition, seconds = get_condition(machine, kind), seconds_of(machine, field)
        if condition is not None:
            return bool(condition["status"] == "False" and seconds and not _before(now, condition["lastTransitionTime"], timedelta(seconds=seconds) + LATE))
    return False


def _before(now: datetime, since: str, span: timedelta) -> bool:
    """Whether `span` has not passed since then; also where that time is unreadable, so that nothing is hurried by an odd value."""
    try:
        return now < parse_rfc3339(since) + span
    except ValueError:
        return True


def waits_for(machine: Mapping[str, Any], host: ByoHost) -> str:
    """What a Machine that is being deleted waits for, for people, with what ends the wait.

    Args:
        host: the one that it holds; an empty one if it holds none.
    """
    if not is_true(machine, ConditionType.PRE_TERMINATE_HOOK_SUCCEEDED):
        for kind, field, excluded, what in _STAGES:
            condition = get_condition(machine, kind)
            if condition is None or condition["status"] != "False" or excluded in (machine["metadata"].get("annotations") or {}):
                continue
            seconds, since = seconds_of(machine, field), str(condition.get("lastTransitionTime") or "")
            limit = f"for at most {exact_duration(seconds)}" if seconds else "without a limit (`ckp cluster set` gives it one)"
            why = str(condition.get("message") or "") if condition.get("severity") == "Warning" else ""
            force = f"; not to wait: ckp host remove {host.name} --force" if host.name else ""
            return f"{what}, {limit}, since {since}{f': {why}' if why else ''}{force}"
        return "its deletion begins"
    if not host.name:
        return "its Node is being deleted"
    connection = host.condition(ConditionType.AGENT_CONNECTED)
    if connection.is_true:
        observed = host.status.observed
        return f"host {host.name} is being reset ({observed.message or observed.phase or 'no report yet'})"
    since = f" since {connection.last_transition_time}" if connection.last_transition_time else ""
    return f"host {host.name} does not answer{since}: it must come back and reset itself; not to wait for it: ckp host remove {host.name} --force"


def looked(now: datetime) -> dict[str, Any]:
    """The change of a Machine that wakes Cluster API for it."""
    return {"metadata": {"annotations": {LOOK_ANNOTATION: rfc3339(now)}}}
