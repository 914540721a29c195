"""What the phases of a control plane share: how one says that it is not finished."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from ckp.api.states import ConditionType, Reason
from ckp.clients.kube import Obj
from ckp.rules.conditions import Condition, Severity, get_condition, make_condition

POLL = 10.0
SOON = 0.5
ENDING = 2.0
"""Seconds between two looks at pods that are ending: nothing tells of their end."""
STARTING = 2.0
"""Seconds between two looks at pods that are starting: their Deployment tells only when they are ready."""


SIDE_BY_SIDE = (ConditionType.ETCD_READY, ConditionType.ETCD_SPACE_AVAILABLE, ConditionType.KUBERNETES_SERVICE_READY)
"""Phases that the later ones do not wait for."""
BEFORE_API_SERVERS = (ConditionType.CERTIFICATES_AVAILABLE, ConditionType.ETCD_READY, ConditionType.ETCD_SPACE_AVAILABLE)
"""Phases of what API servers stand on: of a new release before these are."""
RUNNING = (ConditionType.ETCD_READY, ConditionType.ETCD_SPACE_AVAILABLE, ConditionType.COMPONENTS_READY, ConditionType.KUBERNETES_SERVICE_READY)
"""Conditions of what runs, which is not seen in a pass that ends before; the others are of what is stored."""


class NotYet(Exception):
    """A phase is not finished; a change of what it waits for wakes the reconciler, and so does `after` (seconds).

    Args:
        seen: whether it is known to be unfinished; if not, its condition is Unknown.
        needed: whether the control plane is not ready without it.
        hold: whether the API server must not run until a person has decided.
    """

    def __init__(
        self,
        condition: ConditionType,
        message: str,
        *,
        after: float = POLL,
        reason: Reason = Reason.WAITING,
        severity: Severity = "Info",
        seen: bool = True,
        needed: bool = True,
        hold: bool = False,
    ) -> None:
        super().__init__(message)
        self.condition, self.message, self.after = condition, message, after
        self.reason, self.severity, self.seen, self.needed, self.hold = reason, severity, seen, needed, hold

    def as_condition(self, kind: ConditionType, now: datetime) -> Condition:
        """The condition of this type, as it stands."""
        return make_condition(kind, False if self.seen else None, now, reason=self.reason, message=self.message, severity=self.severity)


def unseen(obj: Obj, done: Iterable[Condition], wait: NotYet, now: datetime) -> list[Condition]:
    """The conditions that stand in an object and were not looked at in a pass that ended: without them they would go on saying what was so before.

    Args:
        done: those that were.
        wait: what the pass ended with.
    """
    seen = {condition["type"] for condition in done}
    found: list[Condition] = []
    for kind in (*RUNNING, *((ConditionType.BOOTSTRAPPED,) if wait.hold else ())):
        if kind in seen or get_condition(obj, kind) is None:
            continue
        if wait.hold and kind is ConditionType.COMPONENTS_READY:  # that is seen: it was done just now
            found.append(make_condition(kind, False, now, reason=wait.reason, message="the API server is held back"))
        else:
            reason = Reason.API_SERVER_NOT_REACHED if kind is ConditionType.KUBERNETES_SERVICE_READY else wait.reason
            found.append(make_condition(kind, None, now, reason=reason, message=wait.message))
    return found
