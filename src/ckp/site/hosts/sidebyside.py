"""Work on several hosts at the same time: a site of three is looked at as fast as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from ckp.kits.stopping import pool

T = TypeVar("T")
R = TypeVar("R")
THREADS = 8
"""At a time; a connection to a host takes as many commands (ckp.site.ssh.connection)."""


def each(items: Sequence[T], work: Callable[[T], R]) -> list[R]:
    """What `work` gives for each, in their order. The first error in that order is raised, once all that was begun has ended."""
    if len(items) < 2:
        return [work(item) for item in items]
    with pool(min(THREADS, len(items)), "hosts") as threads:
        return [begun.result() for begun in [threads.submit(work, item) for item in items]]
