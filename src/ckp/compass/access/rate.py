"""Counting failures per source, so that a key cannot be guessed."""

from __future__ import annotations

from datetime import timedelta

from ckp.compass.errors import TooManyTries
from ckp.compass.store.unit import Unit
from ckp.kits.clock import Clock


class FailureLimit:
    """At most `tries` failures in `seconds` for one source, counted in the database: for all replicas together, and over restarts.

    There are few rows: those that no longer count are deleted with each new one, and a source that must wait adds none.
    """

    def __init__(
        self, clock: Clock, *, tries: int = 5, seconds: float = 60.0, what: str = "key", hint: str = "; take the project's key from `ckp host psk`"
    ) -> None:
        """`what` was wrong, and how to come by the right one, for the error."""
        self._clock = clock
        self._tries = tries
        self._seconds = seconds
        self._what = what
        self._hint = hint

    async def check(self, unit: Unit, source: str) -> None:
        """Raise TooManyTries if the source must wait."""
        now = self._clock.now()
        times = await unit.wrong_keys(source, now - timedelta(seconds=self._seconds))
        if len(times) >= self._tries:
            wait = self._seconds - (now - times[0]).total_seconds()
            raise TooManyTries(
                f"{source} showed a wrong {self._what} {len(times)} times within {self._seconds:.0f} s",
                resolution=f"wait {max(1, round(wait))} s{self._hint}",
            )

    async def failed(self, unit: Unit, source: str) -> None:
        """Count a failure. The transaction has to end well for that."""
        now = self._clock.now()
        await unit.add_wrong_key(source, now, forget_before=now - timedelta(seconds=self._seconds))
