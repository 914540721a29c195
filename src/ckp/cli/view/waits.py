"""Waits for one object of Compass to become what a command asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from pydantic import BaseModel

from ckp.cli.view.progress import waiting
from ckp.clients.compass import Session, Unreachable
from ckp.kits.retry import wait_until

M = TypeVar("M", bound=BaseModel)

POLL_SECONDS = 1.0


def wait_for(
    session: Session,
    view: type[M],
    path: str,
    *,
    timeout: float,
    command: str,
    title: str,
    what: str,
    there: Callable[[M], bool],
    seen: Callable[[M], str],
    resolution: str,
    params: Mapping[str, str] | None = None,
) -> None:
    """Return once `there` is true of an object. An outage of Compass is waited out: it may be restarting, and the object goes on without it.

    Args:
        command: the command that waits: how long it took is kept under its name.
        title: the state that is waited for, as it is shown.
        what: the same as a sentence, for the error.
        params: of the request, such as which of several is meant.
        seen: from the object to why it is not there yet; the first line is shown. What it raises ends the wait.

    Raises:
        TimedOut: it was not true within `timeout` seconds; with what `seen` gave last, or why Compass could not be reached.
    """
    reason = ""

    def probe(missing: Callable[[str], None]) -> bool:
        nonlocal reason
        try:
            row = session.fetch(view, path, **(params or {}))
        except Unreachable as error:
            reason = error.brief
            missing(reason)
            return False
        reason = seen(row)
        missing(reason.partition("\n")[0])
        return there(row)

    with waiting(command, title) as missing:
        wait_until(lambda: probe(missing), what=what, timeout=timeout, every=POLL_SECONDS, reason=lambda: reason, resolution=resolution)
