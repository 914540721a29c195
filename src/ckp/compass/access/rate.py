"""Counting failures per source, so that a key cannot be guessed."""

from __future__ import annotations

from collections import OrderedDict, deque

from ckp.compass.errors import TooManyTries
from ckp.kits.clock import Clock


class FailureLimit:
    """At most `tries` failures in `seconds` for one source; memory is bounded by `sources`.

    Kept in memory: a restart forgives, which gives a guesser a handful of tries more against 256 bits.
    """

    def __init__(self, clock: Clock, *, tries: int = 5, seconds: float = 60.0, sources: int = 10_000) -> None:
        self._clock = clock
        self._tries = tries
        self._seconds = seconds
        self._sources = sources
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()

    def check(self, source: str) -> None:
        """Raise TooManyTries if the source must wait."""
        times = self._recent(source)
        if len(times) >= self._tries:
            wait = self._seconds - (self._clock.monotonic() - times[0])
            raise TooManyTries(
                f"{source} showed a wrong key {len(times)} times within {self._seconds:.0f} s",
                resolution=f"wait {max(1, round(wait))} s; take the project's key from `ckp host psk`",
            )

    def failed(self, source: str) -> None:
        """Count a failure."""
        times = self._recent(source)
        times.append(self._clock.monotonic())
        self._failures[source] = times
        self._failures.move_to_end(source)
        while len(self._failures) > self._sources:
            self._failures.popitem(last=False)

    def _recent(self, source: str) -> deque[float]:
        times = self._failures.get(source, deque())
        while times and self._clock.monotonic() - times[0] >= self._seconds:
            times.popleft()
        if not times:
            self._failures.pop(source, None)
        return times
