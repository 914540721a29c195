"""Flapping hosts: each loss of the connection within the hour holds a host back for longer before a machine may claim it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from ckp.api.objects.base import time_of
from ckp.api.objects.byo_host import ByoHostStatus
from ckp.kits.clock import rfc3339

FORGOTTEN_AFTER = timedelta(hours=1)
FIRST, LONGEST = timedelta(seconds=30), timedelta(minutes=30)


@dataclass(frozen=True)
class Flaps:
    """How often a host was lost lately."""

    count: int = 0
    last: datetime | None = None

    @classmethod
    def of(cls, status: ByoHostStatus) -> Flaps:
        """From a ByoHost's status."""
        return cls(status.flaps.count, time_of(status.flaps.last))

    def lost(self, at: datetime) -> Flaps:
        """The connection was lost at that moment; the same moment counts once."""
        if self.last is not None and at <= self.last:
            return self
        return Flaps(self.count + 1 if self.last is not None and at - self.last < FORGOTTEN_AFTER else 1, at)

    @property
    def held_until(self) -> datetime | None:
        """Before this time no machine claims it. A first loss is not flapping."""
        if self.last is None or self.count < 2:
            return None
        delay: timedelta = min(LONGEST, FIRST * 2 ** min(self.count - 2, 16))
        return self.last + delay

    def to_json(self) -> dict[str, Any]:
        """For the status."""
        return {"count": self.count, "last": rfc3339(self.last)} if self.last else {"count": 0}
