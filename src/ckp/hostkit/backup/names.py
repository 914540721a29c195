"""Names of backups where a site keeps them, and which of them are kept."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import Optional, Sequence

STAMP = "%Y%m%dT%H%M%SZ"


def name_of(site: str, made: datetime) -> str:
    """Of a backup that is begun now: `berlin-20260131T040500Z.backup`. Names sort by time."""
    return f"{site}-{made.astimezone(timezone.utc).strftime(STAMP)}.backup"


def made_at(site: str, name: str) -> Optional[datetime]:
    """When a backup of this site was begun, by its name; None if it is none of this site's."""
    match = re.fullmatch(rf"{re.escape(site)}-(\d{{8}}T\d{{6}}Z)\.backup", name)
    if match is None:
        return None
    try:
        return datetime.strptime(match.group(1), STAMP).replace(tzinfo=timezone.utc)
    except ValueError:
        return None


def superseded(site: str, names: Sequence[str], keep: int) -> list[str]:
    """Those of the site's backups that are older than the newest `keep` (at least 1), oldest first. What has another name is nobody's to delete."""
    ours = sorted(name for name in names if made_at(site, name) is not None)
    return ours[: max(0, len(ours) - keep)]
