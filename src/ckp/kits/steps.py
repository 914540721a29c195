"""Numbered steps with times: the one way in which long work shows where it is."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TextIO

from ckp.kits.clock import human_duration

HEARTBEAT = 15.0
"""Seconds after which a step that says nothing shows that it is still at work."""


@dataclass
class Step:
    """One step of a plan, while it runs and afterwards."""

    number: int
    title: str
    seconds: float = 0.0
    outcome: str = "running"
    note: str = ""


@dataclass
class Steps:
    """A plan of `total` steps, printed as it goes on: `[ 3/12] Installing containerd ... done, 4.2s`.

    The output is line-based on purpose: it reads the same on a terminal, in a file and in a CI log.
    """

    total: int
    out: TextIO = field(default_factory=lambda: sys.stdout)
    done: list[Step] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _current: Step | None = None

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Run the block as the next step; an exception marks it failed and goes on up."""
        current = Step(len(self.done) + 1, title)
        self._current = current
        self._print(f"{self._prefix(current)} {title}")
        started = time.monotonic()
        ended = threading.Event()
        beat = threading.Thread(target=self._beat, args=(current, started, ended), daemon=True)
        beat.start()
        try:
            yield current
            current.outcome = "done"
        except KeyboardInterrupt:
            current.outcome = "interrupted"
            raise
        except BaseException:
            current.outcome = "FAILED"
            raise
        finally:
            ended.set()
            beat.join()
            current.seconds = time.monotonic() - started
            self.done.append(current)
            self._current = None
            note = f" ({current.note})" if current.note else ""
            self._print(f"{self._prefix(current)} {title}: {current.outcome}, {human_duration(current.seconds)}{note}")

    def say(self, text: str) -> None:
        """A line of progress inside the current step."""
        self._print(f"{' ' * (2 * len(str(self.total)) + 3)} · {text}")

    def _beat(self, current: Step, started: float, ended: threading.Event) -> None:
        while not ended.wait(HEARTBEAT):
            self.say(f"{current.title}: still at it, {human_duration(time.monotonic() - started)}" + (f" ({current.note})" if current.note else ""))

    def _prefix(self, step: Step) -> str:
        width = len(str(self.total))
        return f"[{step.number:>{width}}/{self.total}]"

    def _print(self, line: str) -> None:
        with self._lock:
            print(line, file=self.out, flush=True)
