"""How long steps took last time, so that a wait can say what to expect."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

from ckp.kits.errors import CkpError
from ckp.kits.files import atomic_write

LIMIT = 1000
"""Steps that are remembered; beyond that those that were not seen for longest are forgotten."""


class Durations:
    """A JSON file: `{"steps": {command: {title: [seconds, when]}}}`, `when` in seconds since 1970.

    Args:
        limit: how many steps are remembered.

    It is a convenience: a file that is missing, unreadable or damaged counts as empty, and one that can't be written stays as it is.
    Two commands that end in the same moment may lose one of the two entries.
    """

    def __init__(self, path: Path, *, limit: int = LIMIT) -> None:
        self.path = path
        self.limit = limit

    def last(self, command: str) -> dict[str, float]:
        """Seconds by the title of the step, for one command."""
        return {title: seconds for title, (seconds, _) in self._read().get(command, {}).items()}

    def learn(self, command: str, seconds: Mapping[str, float]) -> None:
        """Remember how long steps took that succeeded."""
        if not seconds:
            return
        known = self._read()
        now = time.time()
        known.setdefault(command, {}).update({title: (round(took, 3), now) for title, took in seconds.items()})
        newest = sorted(((when, name, title) for name, steps in known.items() for title, (_, when) in steps.items()), reverse=True)[: self.limit]
        kept: dict[str, dict[str, list[float]]] = {}
        for when, name, title in newest:
            kept.setdefault(name, {})[title] = [known[name][title][0], when]
        try:
            atomic_write(self.path, json.dumps({"version": 1, "steps": kept}, indent=1, sort_keys=True) + "\n")
        except (OSError, CkpError):
            pass  # work that succeeded does not fail because its duration can't be kept

    def _read(self) -> dict[str, dict[str, tuple[float, float]]]:
        try:
            data = json.loads(self.path.read_bytes())["steps"]
            return {
                str(command): {str(title): (max(0.0, float(seconds)), float(when)) for title, (seconds, when) in steps.items()}
                for command, steps in data.items()
            }
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return {}
