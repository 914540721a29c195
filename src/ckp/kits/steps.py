"""Numbered steps with times: the one way in which long work shows where it is.

A plan is known in advance as far as possible. What happens to it is kept here and printed line by line; where a person watches a terminal,
a View (ckp.cli.view.live) draws the same plan in place, and the lines go to a log.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from ckp.kits.clock import human_duration
from ckp.kits.durations import Durations
from ckp.kits.errors import CkpError
from ckp.kits.files import atomic_write
from ckp.kits.text import printable, printable_lines

HEARTBEAT = 15.0
"""Seconds of silence after which a step shows that it is still running."""
KEPT_LINES = 12
"""Lines of progress that a step keeps for the view."""
PROMINENT = ("STAND-IN", "WARNING")
"""Lines that begin so stay on the screen, whatever is drawn over later."""


class State(StrEnum):
    """What became of a step so far; the value is the word that is printed."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    SKIPPED = "skipped"
    FAILED = "FAILED"
    INTERRUPTED = "interrupted"
    UNFINISHED = "not finished"


ENDED = (State.DONE, State.SKIPPED, State.FAILED)


@dataclass
class Step:
    """One step of a plan: before, while and after it runs.

    Args:
        seconds: how long it took, once it has ended.
        timed: whether that is known.
        note: what it waits for, or what came out; one line.
        typical: seconds that it took last time.
        began: when it began, on the monotonic clock of its plan.
        lines: the latest lines of progress.
    """

    number: int
    title: str
    phase: str = ""
    state: State = State.WAITING
    seconds: float = 0.0
    timed: bool = True
    note: str = ""
    typical: float | None = None
    began: float | None = None
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT_LINES))
    group: Group | None = None

    def elapsed(self, now: float) -> float:
        """Seconds so far, or in all."""
        return self.seconds if self.began is None or self.state is not State.RUNNING else max(0.0, now - self.began)

    def record(self) -> dict[str, Any]:
        """As data, with the steps inside."""
        data: dict[str, Any] = {"number": self.number, "title": self.title, "state": str(self.state), "seconds": round(self.seconds, 3)}
        data |= {"phase": self.phase} if self.phase else {}
        data |= {"note": self.note} if self.note else {}
        return data | ({"steps": [step.record() for step in self.group.items]} if self.group else {})


class View(Protocol):
    """Draws a plan in place."""

    def begin(self, steps: Steps) -> None:
        """Start to draw; `steps` is read under its `lock`."""
        ...

    def above(self, line: str) -> None:
        """Print a line that stays, above the drawing. Called under the lock of `steps`: it must not wait for what draws."""
        ...

    def end(self) -> None:
        """Leave the final state on the screen."""
        ...


class Group:
    """Steps inside a step whose states come from elsewhere: from Compass, or from builds that run side by side.

    Args:
        command: what durations are kept under; empty: they are not kept.
        announced: whether each step is printed as a line when it has ended. The lines come in the order of the numbers, each phase once before its
            steps: a step that ends before its predecessors is printed after them.
    """

    def __init__(self, owner: Steps, plan: Iterable[tuple[str, str]], *, command: str = "", announced: bool = True) -> None:
        self._owner = owner
        self._command = command
        self._announced = announced
        self.items: list[Step] = []
        self.summary: Callable[[], str] = lambda: ""
        """What is left, for the view. It is called under the lock of the plan: no lock that it takes may be held while a step is set or a line printed."""
        self._known = False  # until the state of any step is known, the plan is a forecast
        self._printed: dict[int, State] = {}
        self._phase = ""
        self._learned: dict[str, float] = {}
        self.replan(plan)

    def replan(self, plan: Iterable[tuple[str, str]]) -> None:
        """Take this plan, phase and title of each step, for the one so far. The same again changes nothing."""
        wanted = [(printable(phase), printable(title)) for phase, title in plan]
        with self._owner.lock:
            if wanted != [(step.phase, step.title) for step in self.items]:
                last = self._owner.durations.last(self._command) if self._command and self._owner.durations else {}
                self.items = [Step(number, title, phase, typical=last.get(title)) for number, (phase, title) in enumerate(wanted, 1)]

    def set(self, number: int, state: State, *, seconds: float | None = None, running_for: float = 0.0, note: str = "") -> None:
        """What became of a step.

        Args:
            seconds: how long it took; None: since it began, as far as that was seen here.
            running_for: seconds for which it had been running when this was first seen.
        """
        owner = self._owner
        with owner.lock:
            self._known = True
            step = self.items[number - 1]
            before, step.state, step.note = step.state, state, printable(note)
            if state is State.RUNNING and (before is not State.RUNNING or step.began is None):
                step.began = owner.clock() - running_for
            if state in ENDED and state is not before:
                step.timed = seconds is not None or step.began is not None
                step.seconds = seconds if seconds is not None else owner.clock() - step.began if step.began is not None else 0.0
                if state is State.DONE and step.timed:
                    self._learned[step.title] = step.seconds
            if self._printed.get(number, state) is not state and state in ENDED:
                self._line(step)
            self._print()

    def beat(self, text: str) -> None:
        """Print what is waited for, if nothing was printed for a while."""
        if text and self._owner.quiet() >= HEARTBEAT:
            self._owner.print_line(f"  · {printable(text)}")

    def close(self, state: State = State.DONE) -> None:
        """Nothing more will come: print what has ended and was not printed, and mark what has not ended as `state` has it."""
        with self._owner.lock:
            if not self._known:
                self.items = []
            for step in self.items:
                if step.state is State.RUNNING and state is not State.DONE:
                    step.seconds = step.elapsed(self._owner.clock())
                    step.state = State.INTERRUPTED if state is State.INTERRUPTED else State.UNFINISHED
            self._print(gaps=True)
            learned, self._learned = self._learned, {}
        if self._command and self._owner.durations:
            self._owner.durations.learn(self._command, learned)

    def _print(self, *, gaps: bool = False) -> None:
        for step in self.items:
            if step.number in self._printed:
                continue
            if step.state not in ENDED:
                if gaps:
                    continue
                return
            if step.phase != self._phase:
                self._phase = step.phase
                if self._announced:
                    self._owner.print_line(step.phase)
            self._line(step)

    def _line(self, step: Step) -> None:
        self._printed[step.number] = step.state
        if self._announced:
            total = len(self.items)
            took = f", {human_duration(step.seconds)}" if step.timed and step.state is not State.SKIPPED else ""
            note = f" ({step.note})" if step.note and step.state is not State.DONE else ""
            self._owner.print_line(f"  [{step.number:>{len(str(total))}}/{total}] {step.title}: {step.state}{took}{note}")


@dataclass
class Steps:
    """A plan of `total` steps, printed as it goes on: `[ 3/12] Installing containerd ... done, 4.2s`.

    The lines read the same on a terminal, in a file and in a CI log. As a context manager (`with steps:`) it draws `view`, if there is one, from the
    beginning to the end of the block.

    Args:
        plan: the titles, as far as they are known in advance; `total` follows from it.
        command: what durations are kept under, with `durations`.
        log: where the lines go while a view is drawn; without one they stay above it.
        kept: where the final state is kept as JSON if the block succeeds.
    """

    total: int = 0
    out: TextIO = field(default_factory=lambda: sys.stdout)
    done: list[Step] = field(default_factory=list)
    plan: Sequence[str] = ()
    command: str = ""
    view: View | None = None
    durations: Durations | None = None
    log: Path | None = None
    kept: Path | None = None
    clock: Callable[[], float] = time.monotonic
    items: list[Step] = field(init=False)
    root: Group | None = field(init=False, default=None)
    """Steps without a step around them (`ckp cluster create --wait`)."""
    notices: list[str] = field(init=False, default_factory=list)
    state: State = field(init=False, default=State.WAITING)
    began: float = field(init=False)
    lock: threading.RLock = field(init=False, default_factory=threading.RLock)
    _current: Step | None = field(init=False, default=None)
    _drawn: bool = field(init=False, default=False)
    _log_stream: TextIO | None = field(init=False, default=None)
    _last: float = field(init=False)
    _ended: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        last = self.durations.last(self.command) if self.durations and self.plan else {}
        titles = [printable(title) for title in self.plan]
        self.items = [Step(number, title, typical=last.get(title)) for number, title in enumerate(titles, 1)]
        self.total = self.total or len(self.plan)
        self.began = self._last = self.clock()

    # -- the whole plan

    def __enter__(self) -> Self:
        self.state, self.began = State.RUNNING, self.clock()
        if self.view is not None:
            self._open_log()
            self._drawn = True
            self.view.begin(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self.lock:
            self.state = State.DONE if kind is None else _outcome(kind)
            self._ended = self.clock()
            if self.root is not None:
                self.root.close(self.state)
        if self.view is not None:
            self.view.end()
            self._drawn = False
        if self._log_stream is not None:
            self._log_stream.close()
            self._log_stream = None
        self._keep()

    @property
    def drawn(self) -> bool:
        """Whether the plan is drawn by a view, so that a person has seen each step."""
        return self.view is not None

    def elapsed(self) -> float:
        """Seconds since the beginning of the block, or from there to its end."""
        return (self.clock() if self._ended is None else self._ended) - self.began

    def remaining(self) -> float | None:
        """Seconds that the rest of the plan took last time; None if that is not known of each step."""
        with self.lock:
            rest = [step for step in self.items if step.state in (State.WAITING, State.RUNNING)]
            if not rest or len(self.items) < self.total:
                return None
            now, left = self.clock(), 0.0
            for step in rest:
                if step.typical is None:
                    return None
                left += max(0.0, step.typical - step.elapsed(now))
            return left

    def record(self) -> dict[str, Any]:
        """The present state as data: what the picture in the README is drawn from."""
        with self.lock:
            steps = [step.record() for step in (self.items or (self.root.items if self.root else []))]
            state = {"state": str(self.state), "seconds": round(self.elapsed(), 3)}
            return {"version": 1, "command": self.command, **state, "notices": list(self.notices), "steps": steps}

    # -- one step after the other

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Run the block as the next step; an exception marks it failed and goes on up."""
        with self.lock:
            current = self._claim(printable(title))
            current.state, current.began = State.RUNNING, self.clock()
            self._current = current
            self.print_line(f"{self._prefix(current)} {current.title}")
        ended = threading.Event()
        beat = threading.Thread(target=self._beat, args=(current, ended), daemon=True)
        beat.start()
        state = State.DONE
        try:
            yield current
        except BaseException as error:
            state = _outcome(type(error))
            raise
        finally:
            ended.set()
            beat.join()
            if current.group is not None:
                current.group.close(state)
            with self.lock:
                current.seconds = current.elapsed(self.clock())
                current.state = state
                current.note = printable(current.note)
                self.done.append(current)
                self._current = None
                note = f" ({current.note})" if current.note else ""
                self.print_line(f"{self._prefix(current)} {current.title}: {state}, {human_duration(current.seconds)}{note}")
            if state is State.DONE and self.command and self.durations:
                self.durations.learn(self.command, {current.title: current.seconds})

    def say(self, text: str) -> None:
        """Progress inside the current step: a line, or several."""
        with self.lock:
            for line in printable_lines(text):
                if self._current is not None and line.strip():
                    self._current.lines.append(line)
                self.print_line(f"{' ' * (2 * len(str(self.total)) + 3)} · {line}", stays=line.startswith(PROMINENT))
                if line.startswith(PROMINENT):
                    self.notices.append(line)

    def group(self, plan: Iterable[tuple[str, str]], *, command: str = "", announced: bool = True) -> Group:
        """Steps inside the current step, or without one around them: phase and title of each."""
        made = Group(self, plan, command=command, announced=announced)
        with self.lock:
            if self._current is not None:
                self._current.group = made
            else:
                self.root = made
        return made

    # -- lines

    def print_line(self, line: str, *, stays: bool = False) -> None:
        """Print a line that is safe for a terminal; while a view is drawn: into the log, and above the view if there is no log or the line `stays`."""
        with self.lock:
            self._last = self.clock()
            if not self._drawn:
                print(line, file=self.out, flush=True)
                return
            logged = self._write_log(line)
            assert self.view is not None
            if stays or not logged:
                self.view.above(line)

    def quiet(self) -> float:
        """Seconds since the last line."""
        return self.clock() - self._last

    def _claim(self, title: str) -> Step:
        """The next step of the plan, under the title that it has in the end."""
        number = len(self.done) + 1
        if number > len(self.items):
            self.items.append(Step(number, title))
            self.total = max(self.total, number)
        found = self.items[number - 1]
        if found.title != title:
            last = self.durations.last(self.command) if self.durations else {}
            found.title, found.typical = title, last.get(title)
        return found

    def _beat(self, current: Step, ended: threading.Event) -> None:
        pause = HEARTBEAT
        while not ended.wait(pause):
            with self.lock:
                if self.quiet() >= HEARTBEAT:
                    note = f" ({printable(current.note)})" if current.note else ""
                    running = f"{current.title}: still running, {human_duration(current.elapsed(self.clock()))}{note}"
                    self.print_line(f"{' ' * (2 * len(str(self.total)) + 3)} · {running}")
                pause = max(0.1, HEARTBEAT - self.quiet())

    def _prefix(self, step: Step) -> str:
        return f"[{step.number:>{len(str(self.total))}}/{self.total}]"

    # -- files, all of them conveniences: work does not fail because one of them can't be written

    def _open_log(self) -> None:
        if self.log is None:
            return
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            self._log_stream = os.fdopen(os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8")
        except OSError:
            self.log = None

    def _write_log(self, line: str) -> bool:
        if self._log_stream is None:
            return False
        try:
            print(line, file=self._log_stream, flush=True)
        except OSError:
            self._log_stream = None
            return False
        return True

    def _keep(self) -> None:
        if self.kept is None or self.state is not State.DONE:
            return
        try:
            atomic_write(self.kept, json.dumps(self.record(), indent=1, ensure_ascii=False) + "\n")
        except (OSError, CkpError):
            pass


def _outcome(kind: type[BaseException]) -> State:
    return State.INTERRUPTED if issubclass(kind, KeyboardInterrupt) else State.FAILED
