"""What a plan looks like on a terminal at one moment: its steps in their order, as rows that fit. Needs rich, so it is imported when something is drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from ckp.kits.clock import human_duration
from ckp.kits.steps import Group, State, Step, Steps
from ckp.kits.text import printable

WIDEST = 100
"""Columns that are used at most, so that a time stays near its step."""
BESIDE = 92
"""From this width on, phases stand beside their steps; below it they have rows of their own."""
LONG_ESTIMATE = 76
"""From this width on, `last time 1m20s` is written out; below it `~1m20s`."""
TIME = 7
WORDS = {State.FAILED: "failed", State.INTERRUPTED: "stopped", State.UNFINISHED: "not done"}
"""What is written after a step that is over without being done."""
LINES = 3
"""Latest lines of progress that are shown below a running step."""
INDENT = 5


@dataclass(frozen=True)
class Signs:
    """The characters that are not letters."""

    done: str = "✓"
    failed: str = "✗"
    skipped: str = "–"
    stopped: str = "!"
    bullet: str = "·"
    more: str = "…"
    spinner: str = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"

    @staticmethod
    def of(encoding: str) -> Signs:
        """Those that an encoding can write."""
        try:
            "✓✗–·…⠋".encode(encoding)
        except (UnicodeError, LookupError):
            return Signs("+", "x", "-", "!", "-", "...", "|/-\\")
        return Signs()


@dataclass(frozen=True)
class Row:
    """One row before it is laid out.

    Args:
        left: mark, number and title, or a line of progress.
        indent: columns before it.
        phase: named before it, where there is room beside the steps.
        after: what follows the time.
    """

    left: str
    style: str = ""
    indent: int = 0
    mark: str = ""
    mark_style: str = ""
    phase: str | None = None
    time: str = ""
    after: str = ""
    whole: bool = False
    """Whether it takes the whole width: lines of progress have no time."""


@dataclass(frozen=True)
class Compaction:
    """What is left out where there are too few rows; each level leaves out more."""

    lines: int = LINES
    phases_done: bool = False
    steps_done: bool = False
    phases_waiting: bool = False
    steps_waiting: bool = False
    inner: bool = False


LEVELS = (
    Compaction(),
    Compaction(1),
    Compaction(1, True),
    Compaction(1, True, True),
    Compaction(1, True, True, True),
    Compaction(1, True, True, True, True),
    Compaction(1, True, True, True, True, True),
    Compaction(0, True, True, True, True, True),
)


def frame(steps: Steps, width: int, height: int | None, encoding: str = "utf-8") -> list[Text]:
    """The rows of a plan.

    Args:
        width: columns of the terminal.
        height: rows that there are; None: as many as are needed, as at the end.
        encoding: of the terminal; without UTF-8 all signs are ASCII.
    """
    drawing = _Drawing(steps, width, Signs.of(encoding))
    with steps.lock:
        found = drawing.rows(LEVELS[0])
        for level in LEVELS[1:]:
            if height is None or len(found) < height:
                break
            found = drawing.rows(level)
    foot = drawing.foot()
    if height is not None and len(found) + 1 > height:
        running = next((index for index, row in enumerate(found) if row.mark and row.mark in drawing.signs.spinner), 0)
        room = max(1, height - 1)
        start = max(0, min(running - room // 2, len(found) - room))
        found = found[start : start + room]
    laid = [drawing.lay_out(row) for row in [*found, foot]]
    for text in laid:
        text.plain = writable(text.plain, encoding)
    return laid


def writable(line: str, encoding: str) -> str:
    """The line with `?` for what the terminal's encoding can't write."""
    try:
        return line.encode(encoding, "replace").decode(encoding)
    except LookupError:
        return line.encode("ascii", "replace").decode("ascii")


class _Drawing:
    """One plan at one moment for one width."""

    def __init__(self, steps: Steps, width: int, signs: Signs) -> None:
        self.steps, self.signs = steps, signs
        self.width = max(20, min(width - 1, WIDEST))
        self.beside = self.width >= BESIDE
        self.now = steps.clock()
        self.last = "last time {}" if self.width >= LONG_ESTIMATE else "~{}"
        groups = [step.group for step in steps.items if step.group] + ([steps.root] if steps.root else [])
        inner = [step for group in groups for step in group.items]
        self.phase_width = max((cell_len(step.phase) for step in inner), default=0)
        room = self.width - TIME - 3 - max(cell_len(self.last.format("1m20s")), *map(len, WORDS.values()))
        # Of all steps, also of those that are not shown now, so that the column of times stays where it is.
        lefts = [cell_len(self._numbered(step)) + 2 for step in steps.items]
        lefts += [self._inner_indent(bool(steps.items)) + cell_len(self._numbered(step)) + 2 for step in inner]
        self.column = max(10, min(room, max(lefts, default=0)))

    # -- which rows

    def rows(self, level: Compaction) -> list[Row]:
        """All rows but the last."""
        found: list[Row] = []
        items = self.steps.items
        for state, chunk in self._chunks(items, level.steps_done, level.steps_waiting):
            if state is State.DONE and len(chunk) > 1 and level.steps_done:
                took = human_duration(sum(step.seconds for step in chunk))
                found.append(self._marked(Row(f"{chunk[0].number}-{chunk[-1].number} done", "dim", time=took), State.DONE))
                continue
            shown = chunk[:1] if state is State.WAITING and level.steps_waiting else chunk
            for step in shown:
                found += self._step(step, level)
            if len(shown) < len(chunk):
                found.append(Row(f"  {self.signs.more} {len(chunk) - len(shown)} more after it", "dim", indent=2))
        if self.steps.root:
            found += self._group(self.steps.root, level, nested=bool(items))
        return found

    def _chunks(self, items: Sequence[Step], done: bool, waiting: bool) -> Iterator[tuple[State, list[Step]]]:
        def key(step: Step) -> tuple[State, int]:
            together = (done and step.state is State.DONE) or (waiting and step.state is State.WAITING)
            return step.state, 0 if together else step.number

        for (state, _), chunk in groupby(items, key):
            yield state, list(chunk)

    def _step(self, step: Step, level: Compaction) -> list[Row]:
        found = [self._one(step, 0)]
        active = step.state not in (State.WAITING, State.DONE, State.SKIPPED)
        if step.group is not None and step.group.items and (active or any(item.phase for item in step.group.items)):
            found += self._group(step.group, level, nested=True)
            if step.state is State.RUNNING and level.lines and not any(item.phase for item in step.group.items):
                found += self._lines(step, 1)
        elif active:
            found += self._lines(step, level.lines if step.state is State.RUNNING else len(step.lines))
        return found

    def _lines(self, step: Step, count: int) -> list[Row]:
        shown = list(step.lines)[-count:] if count else []
        return [Row(f"{self.signs.bullet} {line}", "dim", indent=INDENT + 2, whole=True) for line in shown]

    def _group(self, group: Group, level: Compaction, *, nested: bool) -> list[Row]:
        indent = INDENT if nested else 0
        found: list[Row] = []
        if level.inner:
            return self._few(group, level, indent)
        for phase, chunk in groupby(group.items, lambda step: step.phase):
            members = list(chunk)
            over = all(step.state in (State.DONE, State.SKIPPED) for step in members)
            ahead = all(step.state is State.WAITING for step in members)
            if phase and ((over and level.phases_done) or (ahead and level.phases_waiting)):
                row = Row(f"{phase}: {len(members)} steps{' done' if over else ''}", "dim", indent=indent)
                found.append(self._marked(row, State.DONE if over else State.WAITING))
                continue
            if phase and not self.beside:
                found.append(Row(phase, "bold" if not ahead else "dim", indent=indent))
            for index, step in enumerate(members):
                found.append(self._one(step, self._inner_indent(nested), phase=(phase if index == 0 else "") if phase and self.beside else None))
                found += self._note(step, level, nested)
        summary = group.summary()
        return found + ([Row(summary, "dim", indent=indent + 2, whole=True)] if summary and self.steps.state is State.RUNNING else [])

    def _few(self, group: Group, level: Compaction, indent: int) -> list[Row]:
        """What runs or failed, and what is next."""
        over = [step for step in group.items if step.state in (State.DONE, State.SKIPPED)]
        waiting = [step for step in group.items if step.state is State.WAITING]
        found = [self._marked(Row(f"{len(over)} of {len(group.items)} steps done", "dim", indent=indent), State.DONE)] if over else []
        for step in group.items:
            if step not in over and step not in waiting:
                found.append(self._one(step, indent))
                found += self._note(step, level, bool(indent))
        return found + [self._one(step, indent) for step in waiting[:1]]

    def _note(self, step: Step, level: Compaction, nested: bool) -> list[Row]:
        quiet = not step.note or step.state in (State.WAITING, State.DONE, State.SKIPPED)
        return [] if quiet or not level.lines else [Row(f"{self.signs.bullet} {step.note}", "dim", indent=self._inner_indent(nested) + 6, whole=True)]

    def _inner_indent(self, nested: bool) -> int:
        return (INDENT if nested else 0) + (self.phase_width + 2 if self.beside and self.phase_width else 2 if self.phase_width else 0)

    def _one(self, step: Step, indent: int, phase: str | None = None) -> Row:
        row = Row(self._numbered(step), indent=indent, phase=phase)
        if step.state in (State.WAITING, State.RUNNING) and step.typical is not None:
            row = replace(row, after=self.last.format(human_duration(step.typical)))
        if step.state in (State.DONE, State.FAILED, State.UNFINISHED, State.INTERRUPTED) or (step.state is State.RUNNING):
            row = replace(row, time=human_duration(step.elapsed(self.now)))
        if step.state is State.SKIPPED:
            row = replace(row, time="skipped", after=step.note)
        elif step.state in WORDS:
            row = replace(row, after=WORDS[step.state])
        return self._marked(row, step.state)

    def _numbered(self, step: Step) -> str:
        return f"{step.number:>2}. {step.title}"

    def _marked(self, row: Row, state: State) -> Row:
        signs = self.signs
        mark, style, text = {
            State.WAITING: (" ", "", "dim"),
            State.RUNNING: (signs.spinner[int(self.now * 10) % len(signs.spinner)], "cyan", "bold"),
            State.DONE: (signs.done, "green", ""),
            State.SKIPPED: (signs.skipped, "dim", "dim"),
            State.FAILED: (signs.failed, "bold red", "bold"),
            State.INTERRUPTED: (signs.stopped, "yellow", "bold"),
            State.UNFINISHED: (signs.stopped, "yellow", "bold"),
        }[state]
        return replace(row, mark=mark, mark_style=style, style=row.style or text)

    def foot(self) -> Row:
        """The last row: how long in all, how long it may still take, where the lines are."""
        steps = self.steps
        took = human_duration(steps.elapsed())
        if steps.state is State.RUNNING:
            left = steps.remaining()
            estimate = f", about {human_duration(left)} left" if left else ""
            place = f"; log: {printable(str(steps.log))}" if steps.log else ""
            return Row(f"{took}{estimate}{place}", "dim", indent=2, whole=True)
        word = {State.DONE: "done in", State.INTERRUPTED: "interrupted after"}.get(steps.state, "failed after")
        return Row(f"{word} {took}", "bold", indent=2, whole=True)

    # -- how one looks

    def lay_out(self, row: Row) -> Text:
        """One line of at most `width` columns, without space at its end."""
        text = Text(no_wrap=True, overflow="crop")
        indent = row.indent
        if row.phase is not None:
            start = indent - self.phase_width - 2
            text.append(" " * start + set_cell_size(row.phase, self.phase_width + 2), "bold")
        else:
            text.append(" " * indent)
        if row.mark:
            text.append(f"{row.mark} ", row.mark_style)
        room = (self.width if row.whole else self.column) - text.cell_len
        text.append(self._cut(row.left, max(1, room)), row.style)
        if row.time or row.after:
            text.append(" " * max(1, self.column - text.cell_len + 1))
            text.append(f"{row.time:>{TIME}}", "green" if row.mark == self.signs.done else row.style)
        if row.after:
            text.append("  " + self._cut(row.after, max(1, self.width - text.cell_len - 2)), "dim")
        text.rstrip()
        return text

    def _cut(self, words: str, room: int) -> str:
        if cell_len(words) <= room:
            return words
        more = self.signs.more if room > len(self.signs.more) else ""
        return set_cell_size(words, room - len(more)) + more
