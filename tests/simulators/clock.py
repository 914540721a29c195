"""Time that a test moves by hand."""

from __future__ import annotations

from datetime import datetime, timedelta


class ManualClock:
    """A clock that a test moves by hand."""

    def __init__(self, start: datetime) -> None:
        self._now = start
        self._elapsed = 0.0

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return self._elapsed

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass."""
        self._now += timedelta(seconds=seconds)
        self._elapsed += seconds

    def step(self, seconds: float) -> None:
        """Set the time of day, as time synchronization does; nothing has passed."""
        self._now += timedelta(seconds=seconds)
