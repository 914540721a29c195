"""Thread pools that can be interrupted. A signal reaches only the main thread, so waits of the others are cancelled and work not yet begun is dropped."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


class Interrupted(KeyboardInterrupt):
    """The command is to end. Raised in the threads of its pools."""


class _Cancellation:
    """Whether the threads of a pool are to end, and the callbacks that end their present waits."""

    def __init__(self) -> None:
        self.requested = threading.Event()
        self.lock = threading.Lock()
        self.callbacks: set[Callable[[], None]] = set()

    def request(self) -> None:
        with self.lock:
            self.requested.set()
            for cancel in self.callbacks:
                cancel()


_thread = threading.local()


def _current() -> _Cancellation | None:
    """The cancellation of the pool that this thread belongs to; None outside of a pool."""
    found: _Cancellation | None = getattr(_thread, "cancellation", None)
    return found


def _enter(cancellation: _Cancellation) -> None:
    _thread.cancellation = cancellation


@contextmanager
def pool(threads: int, name: str = "") -> Iterator[ThreadPoolExecutor]:
    """A thread pool for the block's work; all its threads have ended when the block ends.

    If the block fails, work not yet begun is dropped and running work is completed. If it is interrupted, running work is cancelled too.
    """
    cancellation = _Cancellation()
    executor = ThreadPoolExecutor(threads, thread_name_prefix=name, initializer=_enter, initargs=(cancellation,))
    try:
        yield executor
        executor.shutdown()
    except BaseException as error:
        executor.shutdown(wait=False, cancel_futures=True)
        if not isinstance(error, Exception):
            cancellation.request()
        executor.shutdown()
        raise


def raise_if_cancelled() -> None:
    """Raise Interrupted in a thread whose pool was interrupted."""
    cancellation = _current()
    if cancellation is not None and cancellation.requested.is_set():
        raise Interrupted


def pause(seconds: float) -> None:
    """Sleep. Raises Interrupted in a thread whose pool is interrupted in the meantime."""
    cancellation = _current()
    if cancellation is None:
        time.sleep(seconds)
    elif cancellation.requested.wait(seconds):
        raise Interrupted


@contextmanager
def cancellable(cancel: Callable[[], None]) -> Iterator[None]:
    """A block that waits. If this thread's pool is interrupted, `cancel` is called from another thread, and must end the wait."""
    cancellation = _current()
    if cancellation is None:
        yield
        return
    with cancellation.lock:
        cancellation.callbacks.add(cancel)
        if cancellation.requested.is_set():
            cancel()
    try:
        yield
    finally:
        with cancellation.lock:
            cancellation.callbacks.discard(cancel)
