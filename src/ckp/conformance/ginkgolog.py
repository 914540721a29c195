"""What ginkgo's own log says of each test, while it is written and afterwards: the record that also a killed run leaves.

The shapes are those of ginkgo v2's default reporter with -v and without colours (reporters/default_reporter.go): `• [1.234 seconds]`,
`• [FAILED] [1.234 seconds]`, with the test's name before it (one process: the name is printed as the test begins) or behind it (several).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from ckp.kits.text import printable

DELIMITER = "-" * 30
_HEADER = re.compile(r"^•(?: \[(?P<state>[A-Z][A-Z ]*)\])?(?: \[(?P<seconds>\d+\.\d+) seconds\])$")
_NODE = re.compile(r" ?\[(?:It|BeforeEach|JustBeforeEach|AfterEach|JustAfterEach|BeforeAll|AfterAll|DeferCleanup \([A-Za-z ]+\))\]")
_LABELS = re.compile(r" \[[^\[\]]*\]$")
_SUMMARY = re.compile(r"^(?:FAIL!|SUCCESS!)[^|]*-- (\d+) Passed \| (\d+) Failed \|.* (\d+) Skipped$")
NOT_ENDED = ("INTERRUPTED", "ABORTED")
"""States of tests that were broken off from outside: they say nothing about the cluster, and are run again."""
KEPT = 12
"""Lines of a failure's message that are kept."""


class State(StrEnum):
    """How a test ended."""

    PASSED = "passed"
    FAILED = "failed"


@dataclass(frozen=True)
class Ended:
    """A test that has ended.

    Args:
        seconds: how long it took.
        reason: of a failed one, the first lines of ginkgo's message; empty if it was not seen.
    """

    name: str
    state: State
    seconds: float
    reason: str = ""


@dataclass
class LogReader:
    """Takes the log's lines one by one, and yields each test as it has ended.

    Args:
        names: the full names of the tests that are run; what is not among them is not a test for it.

    Attributes:
        running: the test that has begun and not ended; known with one process only.
        summed_up: whether ginkgo has printed its last line, so that the log is whole.
    """

    names: frozenset[str]
    running: str = ""
    summed_up: bool = False
    _header: re.Match[str] | None = field(default=None, init=False)
    _after_delimiter: bool = field(default=False, init=False)
    _failed: Ended | None = field(default=None, init=False)
    _reason: list[str] = field(default_factory=list, init=False)

    def read(self, lines: Iterable[str]) -> Iterator[Ended]:
        """What has ended in these lines. A failed test is yielded when the lines behind its header have said why."""
        for line in lines:
            yield from self._line(line.rstrip("\n"))

    def _line(self, line: str) -> Iterator[Ended]:
        if line == DELIMITER:
            yield from self._give_failed()
            self._after_delimiter = True
            return
        if _SUMMARY.match(line):
            yield from self._give_failed()
            self.summed_up = True
            return
        if found := _HEADER.match(line):
            yield from self._give_failed()
            self._header, self._after_delimiter = found, False
            if found["state"] in NOT_ENDED:
                self._header, self.running = None, ""
            elif self.running and found["state"] is None:  # streamed: a passed test's name came as it began
                yield self._ended(self.running)
            return
        if self._header is not None:
            if name := self._name_of(line):
                ended = self._ended(name)
                if ended.state is State.PASSED:
                    yield ended
                else:
                    self._failed, self._reason = ended, []
            self._header = None
            return
        if self._after_delimiter:
            self._after_delimiter = False
            if name := self._name_of(line):
                self.running = name
            return
        if self._failed is not None:
            self._reason.append(line)

    def end(self) -> Iterator[Ended]:
        """What is known when nothing more will be written."""
        yield from self._give_failed()

    def _ended(self, name: str) -> Ended:
        assert self._header is not None
        state = State.PASSED if self._header["state"] is None else State.FAILED
        seconds = float(self._header["seconds"])
        self._header, self.running = None, ""
        return Ended(name, state, seconds)

    def _give_failed(self) -> Iterator[Ended]:
        if self._failed is not None:
            ended, self._failed = self._failed, None
            yield Ended(ended.name, ended.state, ended.seconds, _why(self._reason))

    def _name_of(self, line: str) -> str:
        """The test that a line names: with the kind of the node that failed in it, and its labels behind it, or without."""
        plain = _NODE.sub("", line).strip()
        return next((text for text in (line, plain, _LABELS.sub("", line), _LABELS.sub("", plain)) if text in self.names), "")


def _why(lines: list[str]) -> str:
    """The message of a failure: what stands behind the last `[FAILED]`, up to where ginkgo names the place."""
    starts = [number for number, line in enumerate(lines) if line.lstrip().startswith(("[FAILED]", "[TIMEDOUT]", "[PANICKED]", "[INTERRUPTED]", "[ABORTED]"))]
    if not starts:
        return ""
    found: list[str] = []
    for line in lines[starts[-1] :]:
        found.append(printable(line.strip()))
        if line.lstrip().startswith("In [") or len(found) == KEPT:
            break
    return "\n".join(line for line in found if line)


def read_log(path: Path, names: Iterable[str]) -> tuple[list[Ended], bool]:
    """All tests that have ended by a log, in its order, and whether the log is whole. A log that is not there is an empty one."""
    reader = LogReader(frozenset(names))
    if not path.exists():
        return [], False
    with path.open(encoding="utf-8", errors="replace") as stream:
        ended = list(reader.read(stream))
    return [*ended, *reader.end()], reader.summed_up
