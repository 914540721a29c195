"""Who holds the virtual address: the rules of a leader election by a Lease of Kubernetes. No I/O and no clock of its own.

The rule is client-go's (k8s.io/client-go/tools/leaderelection): a holder renews, and stops before anybody else may begin. All times are of a host's own
monotonic clock, so hosts need not agree on the time of day:

- a holder may hold for `renew_deadline` after the moment at which it *sent* its last successful renewal;
- another host takes the lease only if it has *seen* the same record for `duration`.

The API server applied the renewal after it was sent and before anybody could see it. So the earliest end of the wait is `duration` - `renew_deadline` after
the latest end of the hold, and that difference is what clocks may drift, and what the removal of an address may take.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

RENEW, TAKE, WAIT = "renew", "take", "wait"
NEVER = float("-inf")


@dataclass(frozen=True)
class Timing:
    """Seconds. `renew_deadline` is less than `duration`, see the module's docstring."""

    duration: float = 5.0
    renew_deadline: float = 4.0
    period: float = 1.0


@dataclass(frozen=True)
class Record:
    """A Lease as the API server has it.

    Args:
        holder: the node that holds it; "" if it was given up, by a holder that had removed the address before.
        version: its resourceVersion, which every change of it changes.
        duration: seconds for which its holder has asked.
        transitions: how often the holder has changed.
    """

    holder: str
    version: str
    duration: float
    transitions: int = 0


class Election:
    """The view of one host. Its methods take the time as an argument, and that never goes back.

    Args:
        me: this host's node name.
    """

    def __init__(self, me: str, timing: Timing = Timing()) -> None:
        self.me = me
        self.timing = timing
        self.record: Optional[Record] = None
        self._seen = False
        self._seen_at = NEVER
        self.held_until = NEVER

    def observe(self, record: Optional[Record], now: float) -> None:
        """The API server's answer, received at `now`: the record, or None if there is none. If it is another's, the address is lost at once."""
        if not self._seen or record != self.record:
            self._seen, self.record, self._seen_at = True, record, now
        if record is None or record.holder != self.me:
            self.held_until = NEVER

    def wish(self, now: float) -> str:
        """What to ask of the API server: RENEW, TAKE, or WAIT (nothing, but to look again)."""
        if not self._seen:
            return WAIT
        if self.record is not None and self.record.holder == self.me:
            return RENEW
        if self.record is not None and not self.record.holder:
            return TAKE
        return TAKE if now >= self._expires() else WAIT

    def _expires(self) -> float:
        asked = self.record.duration if self.record is not None else 0.0
        return self._seen_at + max(asked, self.timing.duration)

    def won(self, record: Record, sent: float) -> None:
        """The API server has accepted our record, by a request that was sent at `sent`."""
        self._seen, self.record, self._seen_at = True, record, sent
        self.held_until = sent + self.timing.renew_deadline

    def holds(self, now: float) -> bool:
        """Whether this host may have the address."""
        return now < self.held_until

    def lifetime(self, now: float) -> int:
        """Whole seconds after which the kernel removes the address by itself, if this process does not renew it; 0: too little is left to set it.

        The kernel removes it up to a second late (net/ipv4/devinet.c, check_lifetime), so it is gone before `duration` is over.
        """
        return max(0, int(self.held_until - now)) if self.holds(now) else 0

    def pause(self, now: float, begun: float) -> float:
        """Seconds until the next look: a period after this one has `begun`, or before if the lease can be taken, or must be given up, by then."""
        pause = self.timing.period - (now - begun)
        if self.wish(now) == WAIT and self._seen:
            pause = min(pause, self._expires() - now)
        if self.holds(now):
            pause = min(pause, self.held_until - now)
        return max(0.05, pause)

    def patience(self, now: float) -> float:
        """Seconds that a request may take: a holder must be able to give up in time, and to try twice before."""
        left = self.held_until - now if self.holds(now) else self.timing.renew_deadline
        return max(0.1, min(self.timing.renew_deadline / 2, left))
