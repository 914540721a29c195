"""Waits that end."""

from __future__ import annotations

import time
from typing import Callable

from ckp.hostkit.errors import AgentError, Cancelled


def wait_for(
    probe: Callable[[], str],
    *,
    timeout: float,
    every: float,
    what: str,
    resolution: str = "",
    reason: str = "TimedOut",
    cancelled: Callable[[], bool] | None = None,
) -> None:
    """Ask `probe` until it returns "" (done); its last answer says what is still missing.

    Raises:
        AgentError: after `timeout` seconds, with the last answer.
        Cancelled: `cancelled` said so.
    """
    deadline = time.monotonic() + timeout
    while True:
        missing = probe()
        if not missing:
            return
        if cancelled is not None and cancelled():
            raise Cancelled(f"the wait for {what} was given up, because something newer is wanted")
        if time.monotonic() >= deadline:
            raise AgentError(f"{what} did not happen within {timeout:.0f} s", details=missing, resolution=resolution, reason=reason)
        time.sleep(every)
