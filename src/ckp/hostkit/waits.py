"""Waiting with a timeout."""

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
    """Call `probe` until it returns "" (done). Otherwise it returns what is still missing.

    Args:
        timeout: seconds until it gives up.
        every: seconds between two calls.
        what: the condition that is waited for, for errors: "containerd answers".

    Raises:
        AgentError: after `timeout` seconds, with the last answer in the details.
        Cancelled: `cancelled` returned True.
    """
    deadline = time.monotonic() + timeout
    while True:
        missing = probe()
        if not missing:
            return
        if cancelled is not None and cancelled():
            raise Cancelled(f"waiting until {what} was cancelled: the desired state has changed, or the agent stops")
        if time.monotonic() >= deadline:
            raise AgentError(f"timed out after {timeout:.0f} s waiting until {what}", details=missing, resolution=resolution, reason=reason)
        time.sleep(every)
