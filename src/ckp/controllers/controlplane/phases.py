"""What the phases of a control plane share: how one says that it is not finished."""

from __future__ import annotations

from datetime import datetime

from ckp.api.states import ConditionType, Reason
from ckp.rules.conditions import Condition, Severity, make_condition

POLL = 10.0
SOON = 0.5
ENDING = 2.0
"""Seconds between two looks at pods that are ending: nothing tells of their end."""
STARTING = 2.0
"""Seconds between two looks at pods that are starting: their Deployment tells only when they are ready."""


SIDE_BY_SIDE = (ConditionType.ETCD_READY, ConditionType.ETCD_SPACE_AVAILABLE, ConditionType.KUBERNETES_SERVICE_READY)
"""Phases that the later ones do not wait for."""


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
