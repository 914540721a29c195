"""Waiting until something is so, with a timeout and a reason."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ckp.kits.errors import TimedOut

T = TypeVar("T")


def wait_until(
    probe: Callable[[], T | None],
    *,
    what: str,
    timeout: float,
    every: float = 0.5,
    reason: Callable[[], str] = lambda: "",
    resolution: str = "",
) -> T:
    """Call `probe` until it returns something truthy, and return that.

    Args:
        timeout: seconds until it gives up.
        every: seconds between two calls.
        reason: called at the timeout; returns what was seen last.

    Raises:
        TimedOut: after `timeout` seconds, with `what` and the reason.
    """
    deadline = time.monotonic() + timeout
    while True:
        if result := probe():
            return result
        if time.monotonic() >= deadline:
            raise TimedOut(f"{what}: not within {timeout:.0f} s", details=reason(), resolution=resolution)
        time.sleep(every)


async def wait_until_async(
    probe: Callable[[], Awaitable[T | None]],
    *,
    what: str,
    timeout: float,
    every: float = 0.5,
    reason: Callable[[], str] = lambda: "",
    resolution: str = "",
) -> T:
    """As `wait_until`, for coroutines."""
    deadline = time.monotonic() + timeout
    while True:
        if result := await probe():
            return result
        if time.monotonic() >= deadline:
            raise TimedOut(f"{what}: not within {timeout:.0f} s", details=reason(), resolution=resolution)
        await asyncio.sleep(every)


def backoff(attempt: int, *, first: float = 0.5, limit: float = 30.0) -> float:
    """Seconds to wait before attempt number `attempt` (from 0): doubles from `first` up to `limit`."""
    return float(min(limit, first * 2 ** min(attempt, 16)))
