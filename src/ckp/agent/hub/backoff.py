"""Delays between attempts."""

from __future__ import annotations

import random


class Backoff:
    """Exponential delays with jitter, so that many hosts don't retry at the same moment."""

    def __init__(self, first: float, limit: float, factor: float = 2.0) -> None:
        self.first, self.limit, self.factor = first, limit, factor
        self._next = first

    def reset(self) -> None:
        """Start again with the shortest delay."""
        self._next = self.first

    def delay(self) -> float:
        """Seconds to wait now: between half and all of the present step."""
        step, self._next = self._next, min(self.limit, self._next * self.factor)
        return step * random.uniform(0.5, 1.0)
