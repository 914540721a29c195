"""How a command shows its steps: drawn in place for a person at a terminal, line by line for all others."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from ckp.kits import paths
from ckp.kits.durations import Durations
from ckp.kits.steps import State, Steps, View

LOGS = 20
"""Logs that are kept, of all commands together."""


def folder() -> Path:
    """Where durations, logs and final states are kept; it may be deleted at any time."""
    return paths.cache() / "progress"


def planned(command: str, titles: Sequence[str] = (), out: TextIO | None = None) -> Steps:
    """The steps of a command, to be used as a context manager. They are drawn in place if `out` (default: stdout) is a terminal that can do so.

    Args:
        command: such as `dist build`: durations, the log and the final state are kept under this name.
        titles: of the steps, in order.
    """
    stream = out or sys.stdout
    place, name = folder(), command.replace(" ", "-")
    log = None
    if drawable(stream, os.environ):
        log = place / f"{name}-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}.log"
        _drop_old_logs(place)
    return Steps(
        out=stream,
        plan=tuple(titles),
        command=command,
        view=_live(stream) if log else None,
        durations=Durations(place / "durations.json"),
        log=log,
        kept=place / f"{name}.json",
    )


@contextmanager
def waiting(command: str, title: str) -> Iterator[Callable[[str], None]]:
    """A wait for one thing, shown on stderr: drawn with how long it lasts and lasted last time, or as a line now and then.

    Yields a function to call after each check, with what is still missing.
    """
    with planned(command, out=sys.stderr) as steps:
        group = steps.group([("", title)], command=command, announced=False)

        def missing(text: str) -> None:
            group.set(1, State.RUNNING, note=text)
            group.beat(text)

        missing("")
        yield missing
        group.set(1, State.DONE)


def drawable(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Whether to draw in place: on a terminal that can move its cursor, and not in CI. `CKP_PROGRESS=plain` says no."""
    automated = environment.get("CI", "").lower() not in ("", "0", "false")
    plain = environment.get("CKP_PROGRESS", "") == "plain" or environment.get("TERM", "dumb") in ("", "dumb", "unknown")
    return stream.isatty() and not automated and not plain


def _live(stream: TextIO) -> View:
    from ckp.cli.view.live import LiveView

    return LiveView(stream)


def _drop_old_logs(place: Path) -> None:
    try:
        for old in sorted(place.glob("*.log"), key=lambda path: path.stat().st_mtime)[: -LOGS + 1]:
            old.unlink(missing_ok=True)
    except OSError:
        pass
