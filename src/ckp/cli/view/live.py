"""Draws a plan in place on a terminal, until it has ended; the final state stays on the screen."""

from __future__ import annotations

import io
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import TextIO

from rich.console import Console
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType
from rich.text import Text

from ckp.cli.view.frame import frame, writable
from ckp.kits.steps import Steps
from ckp.kits.text import printable

REDRAW_SECONDS = 0.125


class _Above(io.TextIOBase):
    """Stands in for stdout or stderr while a plan is drawn: whole lines go above the drawing.

    rich's own stand-in has a `buffer`, which click takes to write past it, into the middle of the drawing.
    """

    def __init__(self, original: TextIO, take: Callable[[str], None]) -> None:
        self._original = original
        self._take = take
        self._begun = ""

    encoding = property(lambda self: self._original.encoding)
    errors = property(lambda self: self._original.errors)

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._original.fileno()

    def write(self, text: str, /) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._take(line)
        return len(text)

    def finish(self) -> None:
        """Hand on a line that has no end."""
        if self._begun:
            self._take(self._begun)


class LiveView:
    """A View (ckp.kits.steps) over rich's Live.

    It draws from a thread of its own, which alone takes the lock of the plan and that of the console, never one inside the other.
    What other code prints meanwhile to stdout and stderr, where they are the terminal, appears above the drawing.
    """

    def __init__(self, out: TextIO, console: Console | None = None) -> None:
        self.console = console or Console(file=out, highlight=False)
        self._lines: deque[str] = deque()
        self._ended = threading.Event()
        self._drawn: list[Text] = []
        self._width = self.console.width
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._live = Live(console=self.console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False, vertical_overflow="crop")
        self._redirected: dict[str, tuple[TextIO, _Above]] = {}

    def begin(self, steps: Steps) -> None:
        """See View."""
        self._steps = steps
        self._live.start()
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is not None and stream.isatty():
                self._redirected[name] = (stream, _Above(stream, self.above))
                setattr(sys, name, self._redirected[name][1])
        self._thread.start()

    def above(self, line: str) -> None:
        """See View."""
        self._lines.append(line)

    def end(self) -> None:
        """See View."""
        self._ended.set()
        for name, (stream, stand_in) in self._redirected.items():
            setattr(sys, name, stream)
            stand_in.finish()
        self._thread.join()
        try:
            self._draw(final=True)
            self._live.stop()
            if self._steps.log:
                self.console.print(Text(f"  log: {printable(str(self._steps.log))}", "dim"), soft_wrap=True)
        except (OSError, ValueError):
            pass  # the terminal is gone; the work is not

    def _run(self) -> None:
        try:
            self._draw()
            while not self._ended.wait(REDRAW_SECONDS):
                self._draw()
        except (OSError, ValueError):
            pass

    def _draw(self, *, final: bool = False) -> None:
        width, height = self.console.size
        rows = frame(self._steps, width, None if final else max(2, height - 1), self.console.encoding)
        self._climb(width)
        lines = [Text(writable(printable(self._lines.popleft()), self.console.encoding)) for _ in range(len(self._lines))]
        if lines:
            self.console.print(Text("\n").join(lines), soft_wrap=True)
        self._live.update(Text("\n").join(rows), refresh=not final)  # at the end Live.stop draws
        self._drawn, self._width = rows, width

    def _climb(self, width: int) -> None:
        """A terminal that became narrower has wrapped what was drawn: go up over the rows that this made."""
        if width < self._width:
            more = sum(max(0, -(-row.cell_len // width) - 1) for row in self._drawn)
            self.console.control(Control(ControlType.CARRIAGE_RETURN, *(((ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1)) * more)))
