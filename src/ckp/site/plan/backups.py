"""What applying does about the backups that management hosts make by themselves. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ckp.site.backup.timer import Pending, Schedule
from ckp.site.plan.model import Action, Change


def changes(schedule: Schedule | None, seen: Mapping[str, Pending]) -> Iterator[Change]:
    """A change for each host that makes backups, or made them; nothing of others.

    Args:
        seen: what is to be done, by the hosts' names.
    """
    for name, found in seen.items():
        part = f"{name}: backup timer" if len(seen) > 1 else "backup timer"
        if not found.able or schedule is None:
            if found.there:
                yield Change(part, Action.CHANGE, f"{name} makes no backups by itself any longer")
        elif found.nothing:
            yield Change(part, Action.NONE, f"{name} makes a backup when one is due")
        else:
            what = [file.target for file in found.changed] + [f"{path} goes" for path in found.stale]
            yield Change(part, Action.CHANGE if found.there else Action.CREATE, "; ".join(what) or "it is started")
