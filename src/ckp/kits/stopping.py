"""Threads that an interrupt reaches. No signal does, so what they wait for is broken off, and what is not begun is dropped."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


class Interrupted(KeyboardInterrupt):
    """The command is to end: raised in the threads of its pools."""


class _Stop:
    """Whether the threads of a pool are to end, and how to end their present waits."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.lock = threading.Lock()
        self.breakers: set[Callable[[], None]] = set()

    def ask(self) -> None:
        with self.lock:
            self.asked.set()
            for breaker in self.breakers:
                breaker()


_here = threading.local()


def _stop() -> _Stop | None:
    """That of the pool which this thread belongs to."""
    found: _Stop | None = getattr(_here, "stop", None)
    return found


def _enter(stop: _Stop) -> None:
    _here.stop = stop


@contextmanager
def pool(threads: int, name: str = "") -> Iterator[ThreadPoolExecutor]:
    """Threads for the block's work, all at their end when it ends.

    If the block fails, what is not begun is dropped and what is under way ends; if it is interrupted, that is broken off as well.
    """
    stop = _Stop()
    executor = ThreadPoolExecutor(threads, thread_name_prefix=name, initializer=_enter, initargs=(stop,))
    try:
        yield executor
        executor.shutdown()
    except BaseException as error:
        executor.shutdown(wait=False, cancel_futures=True)
        if not isinstance(error, Exception):
            stop.ask()
        executor.shutdown()
        raise


def go_on() -> None:
    """Raise Interrupted in a thread whose pool was interrupted."""
    stop = _stop()
    if stop is not None and stop.asked.is_set():
        raise Interrupted


def pause(seconds: float) -> None:
    """Sleep; in a thread whose pool is interrupted meanwhile, raise Interrupted."""
    stop = _stop()
    if stop is None:
        time.sleep(seconds)
    elif stop.asked.wait(seconds):
        raise Interrupted


@contextmanager
def breakable(breaker: Callable[[], None]) -> Iterator[None]:
    """A block that waits for something else: if this thread's pool is interrupted, `breaker` is called, from another thread, and ends the wait."""
    stop = _stop()
    if stop is None:
        yield
        return
    with stop.lock:
        stop.breakers.add(breaker)
        if stop.asked.is_set():
            breaker()
    try:
        yield
    finally:
        with stop.lock:
            stop.breakers.discard(breaker)
