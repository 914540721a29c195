"""Delays between attempts."""

from __future__ import annotations

import random


class Backoff:
    """Delays that grow and are never the same on two hosts, so that many hosts don't come back at one moment."""

    def __init__(self, first: float, most: float, factor: float = 2.0) -> None:
        self.first, self.most, self.factor = first, most, factor
        self._next = first

    def reset(self) -> None:
        """Begin again with the shortest delay."""
        self._next = self.first

    def delay(self) -> float:
        """Seconds to wait now: between half and all of the present step."""
        step, self._next = self._next, min(self.most, self._next * self.factor)
        return step * random.uniform(0.5, 1.0)
