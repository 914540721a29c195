"""etcd's data and space: whether data was lost, how large a database may grow in its volume, and the next step to free some. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum

MIB = 1 << 20
WAL_ROOM = 448 * MIB
"""Write-ahead log: five finished segments of 64 MB, the current one, and the next, which etcd makes beforehand."""
LARGEST_QUOTA = 8 << 30
"""What upstream advises at most."""
FULL = 0.9
"""Of the quota: beyond it the alarm is near, and ending one would not last."""
WORN = 0.7
"""Of the quota: from here on a database of which half is unused is defragmented."""

WORTHWHILE = 0.9
"""Of its database: a member that uses less of it gains by a defragmentation."""

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50}
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)(?:[eE]([0-9]+)|([kMGTP]|[KMGTP]i)?)")


def bytes_of(quantity: str) -> int:
    """A quantity of Kubernetes, in bytes.

    Raises:
        ValueError: it is none, or not one of bytes.
    """
    if (match := _QUANTITY.fullmatch(quantity.strip())) is None:
        raise ValueError(f"{quantity!r} is no number of bytes such as 2Gi")
    number, exponent, unit = match.groups()
    return int(float(number) * 10 ** int(exponent or 0) * _UNITS[unit or ""])


def quota_for(volume: int) -> int:
    """Bytes that the database may take in a volume of so many: beside the log there is always room for its defragmented copy."""
    return min(LARGEST_QUOTA, max((volume - WAL_ROOM) // 2, volume // 4))


def quota_now(volume: int, before: int, database: int) -> int:
    """The quota to set. A larger one of before (0.2.0 gave 2 GiB in any volume) is only taken back once the database is seen to fit.

    Args:
        before: the quota in force; 0 if there is none.
        database: the largest member's bytes; 0 if not known.
    """
    wanted = quota_for(volume)
    return before if before > wanted and (not database or database > wanted * WORN) else wanted


@dataclass(frozen=True)
class Member:
    """One member as it was seen just now."""

    name: str
    id: str
    leader: bool
    size: int
    in_use: int


class Action(StrEnum):
    """What frees space."""

    COMPACT = "compact"
    COMPACT_AND_DEFRAGMENT = "compact-and-defragment"
    DEFRAGMENT = "defragment"
    DISARM = "disarm"


@dataclass(frozen=True)
class Step:
    """The next thing to do; `member` is the name of the one that it is done to, "" for all."""

    action: Action
    member: str = ""


def next_step(members: Iterable[Member], alarm: bool, quota: int, recently: Collection[str]) -> Step | None:
    """The next step, for one member at a time and the leader last; None if there is nothing to do, or nothing that would help.

    Args:
        members: all that answer. With an alarm every one must have room again before it is ended.
        alarm: whether NOSPACE stands.
        quota: bytes.
        recently: names of those that were defragmented a short while ago: once more frees only what was deleted since. That is seen after a
            compaction, and while the alarm stands nobody else makes one (an API server's own begins with a write).
    """
    order = sorted(members, key=lambda member: (member.leader, member.name))
    full = [member for member in order if member.size >= FULL * quota]
    if alarm:
        if not full:
            return Step(Action.DISARM)
        waiting = [member for member in full if member.name not in recently or member.in_use < WORTHWHILE * member.size]
        return Step(Action.COMPACT_AND_DEFRAGMENT, waiting[0].name) if waiting else Step(Action.COMPACT)
    worn = [member for member in order if member.size >= WORN * quota and member.in_use <= member.size // 2 and member.name not in recently]
    return Step(Action.DEFRAGMENT, worn[0].name) if worn else None


WITHOUT_DATA = ("could not retrieve cluster information from the given URLs", "tocommit(")
"""What a member writes last that has no data, or less than the others know it to have had: it was told to start into a cluster that exists."""


def is_without_data(last_words: str) -> bool:
    """Whether a member ended for want of its data."""
    return any(words in last_words for words in WITHOUT_DATA)


def went_back(recorded: tuple[str, int], seen: Iterable[tuple[str, int]]) -> str:
    """What is wrong with the members' data, against what was recorded before; "" if nothing is.

    Args:
        recorded: etcd's cluster id and the highest revision seen; ("", 0) if nothing was.
        seen: the same of each member that answers.
    """
    members = [*seen]
    cluster, revision = recorded
    if not cluster or not members:
        return ""
    if strange := next((other for other, _ in members if other != cluster), ""):
        return f"it is another etcd cluster ({strange}) than before ({cluster})"
    highest = max(number for _, number in members)
    return f"its newest revision is {highest}, and {revision} was seen before" if highest < revision else ""


def nearly_full(members: Iterable[Member], quota: int) -> bool:
    """Whether what is in use comes near the quota, so that no defragmentation would help."""
    return any(member.in_use >= FULL * quota for member in members)
