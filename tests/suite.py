"""`make test` and `make test-all`: lint and all suites, as much at a time as is safe, with one line of results in the end.

What needs no built release runs while the release is built, and what needs it as soon as it is; then what depends on the clock; then the main job on
lab hosts. Each part writes its log and its results below build/test, and the end of a part that failed is shown. docs/how-to/tests.md says what is where
and how long it takes.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any
from xml.etree import ElementTree

from tests.support import kills

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / "build" / "test"
RELEASE = "v1.35.1"
"""What the tests are written for (tests/support/built_release.py)."""
BUILT = {"CKP_TESTS_BUILT": "1"}
"""The release is built: a test that does not find it fails, and is not skipped."""
BYTECODE = {"PYTHONDONTWRITEBYTECODE": ""}
"""Hundreds of Pythons start, and each would compile our code where the environment has told them to write none."""
WORKERS = min(4, len(os.sched_getaffinity(0)))
STEPS_BACK = 5
"""How nice the parts are that wait most of the time, for other programs: the unit tests beside them have shorter time limits. The component tests
have a worker more for the same reason."""
DURATIONS = "durations.txt"
SLOWEST = 40
TAIL_LINES = 60
SIGN_OF_LIFE = 60.0
"""Seconds between two lines that show where the parts are."""
END_SECONDS = 180.0
"""What an interrupted part has to end in: the end-to-end tests take their lab down."""


@dataclass(frozen=True)
class Part:
    """One command with a log of its own.

    Args:
        needs: the part of the same stage that has to pass before it begins.
        first: when it fails, nothing else is begun, in later stages neither.
        work: it makes something for later parts, and is ended at once when a part beside it fails that is `first`.
        nice: by how much it steps back for the others.
        live: its output is shown as it comes.
        results: where it writes its results (JUnit's XML), if it runs tests.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    needs: str = ""
    first: bool = False
    work: bool = False
    nice: int = 0
    live: bool = False
    results: Path | None = None

    @property
    def log(self) -> Path:
        """All of its output."""
        return LOGS / f"{self.name}.log"


@dataclass
class Counts:
    """Results of tests, added up."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.passed + other.passed, self.failed + other.failed, self.skipped + other.skipped)

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


class Ended(BaseException):
    """A signal, or the end of the process that started us."""


def pytest_part(name: str, *arguments: str, marks: str = "", parallel: str = "", workers: int = WORKERS, live: bool = False, **more: Any) -> Part:
    """A run of pytest.

    Args:
        marks: an expression of marks, as `-m` takes it.
        parallel: how pytest-xdist hands out the tests ("loadfile", "load"); one process if empty.
        workers: how many processes run them then.
        more: what else a part has.
    """
    results = LOGS / f"{name}.xml"
    argv = [sys.executable, "-m", "pytest", "-v" if live else "-q", f"--durations={SLOWEST}", f"--junitxml={results}", "-o", f"cache_dir={LOGS}/.cache-{name}"]
    argv += ["-m", marks] if marks else []
    # In which order files begin, tests/conftest.py says.
    argv += ["-n", str(workers), f"--dist={parallel}", "--no-loadscope-reorder"] if parallel else []
    return Part(name, [*argv, *arguments], live=live, results=results, **more)


def stages(*, everything: bool) -> list[list[Part]]:
    """The parts, by what may run at the same time."""
    short = "" if everything else " and not long"
    kill = {kills.EVERY: "1"} if everything else {}
    released = partial(pytest_part, env=BUILT, needs="build", nice=STEPS_BACK)
    build = [str(ROOT / "ckp"), "dist", "build", RELEASE, "--profile", "lab", "--test-tools"]
    return [
        [
            # The build is what steps back: it takes all the cores that there are, and tests have time limits.
            Part("build", build, first=True, work=True, nice=10),
            Part("lint", [str(ROOT / "tests" / "lint.sh")], first=True),
            pytest_part("unit", "tests/unit", "tests/contract", "tests/fuzz", marks=f"not release{short}", parallel="loadfile", first=True, env=kill),
            released(
                "component", "tests/unit", "tests/contract", "tests/component", marks=f"(release or component){short}", parallel="loadfile", workers=WORKERS + 1
            ),
            released("lab", "tests/e2e", marks=f"lab{short}"),
        ],
        [pytest_part("chaos", "tests/chaos", marks="" if everything else "not long", parallel="load")],
        [pytest_part("e2e", "tests/e2e", marks=f"e2e and not lab{short}", live=True)],
    ]


class Running:
    """A part that runs, in a process group of its own."""

    def __init__(self, part: Part) -> None:
        self.part, self.started = part, time.monotonic()
        self.stopped, self.stopped_at, self.reported = False, 0.0, False
        self.ended_at: float | None = None
        for path in (part.log, part.results):
            if path is not None:
                path.unlink(missing_ok=True)
        with part.log.open("wb") as log:
            out = subprocess.PIPE if part.live else log
            environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1", **BYTECODE, **part.env}
            # The parent's death signal: if this process is killed, no part goes on alone.
            # A shell starts background jobs with SIGINT ignored, and a child would inherit that.
            argv = ["nice", "-n", str(part.nice), "env", "--default-signal=INT", "setpriv", "--pdeathsig", "TERM", "--", *part.argv]
            self.child = subprocess.Popen(
                argv, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.copier = threading.Thread(target=self._copy, daemon=True) if part.live else None
        if self.copier is not None:
            self.copier.start()

    def _copy(self) -> None:
        assert self.child.stdout is not None
        with self.part.log.open("wb") as log:
            for line in self.child.stdout:
                log.write(line)
                log.flush()
                sys.stdout.buffer.write(line)
                sys.stdout.buffer.flush()

    @property
    def seconds(self) -> float:
        """How long it has run; once it has ended, how long it ran."""
        return (self.ended_at or time.monotonic()) - self.started

    def ended(self) -> bool:
        """Whether it has ended, and all that it printed is copied."""
        if self.child.poll() is None:
            return False
        self.ended_at = self.ended_at or time.monotonic()
        if self.copier is not None:
            self.copier.join(10)
        return True

    @property
    def failed(self) -> bool:
        return self.child.poll() not in (None, 0)

    def last_line(self) -> str:
        lines = [line for line in self.part.log.read_text(errors="replace").splitlines()[-20:] if line.strip()]
        return lines[-1].strip()[:110] if lines else ""

    def interrupt(self) -> None:
        """As Ctrl-C does, for the whole group."""
        self.stopped, self.stopped_at = True, time.monotonic()
        self._signal(signal.SIGINT)

    def end(self, within: float) -> None:
        """Wait for it, and kill what is left of its group."""
        try:
            self.child.wait(within)
        except subprocess.TimeoutExpired:
            say(f"{self.part.name} did not end within {within:.0f} s and is killed")
        self._signal(signal.SIGKILL)
        self.child.wait()

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self.child.pid, number)
        except ProcessLookupError:
            pass


def say(text: str) -> None:
    """A line of our own, between those of live parts."""
    print(f"test: {text}", flush=True)


def minutes(seconds: float) -> str:
    """Seconds as people read them."""
    return f"{int(seconds) // 60}m{int(seconds) % 60:02}s"


def run_stage(parts: Sequence[Part], parent: int) -> list[Running]:
    """Run the parts at the same time, each once what it needs has passed, to the end of all that were begun."""
    running: list[Running] = []
    waiting, stop = list(parts), False
    try:
        shown = time.monotonic()
        while True:
            passed = {"", *(item.part.name for item in running if item.ended() and not item.failed)}
            for part in [part for part in waiting if part.needs in passed and not stop]:
                waiting.remove(part)
                running.append(Running(part))
                say(f"{part.name} begins, its log is {os.path.relpath(part.log, ROOT)}")
            left = [item for item in running if not item.reported]
            if not left:
                break
            time.sleep(0.2)
            if os.getppid() != parent:
                raise Ended
            for item in left:
                if item.stopped and time.monotonic() - item.stopped_at > END_SECONDS:
                    item.end(0)
            for item in [item for item in left if item.ended()]:
                report(item)
                stop = stop or (item.failed and item.part.first)
            for item in running if stop else []:
                if item.part.work and not item.ended() and not item.stopped:
                    item.interrupt()
            if time.monotonic() - shown > SIGN_OF_LIFE:
                shown = time.monotonic()
                for item in running:
                    if not item.ended() and not item.part.live:
                        say(f"{item.part.name} {minutes(item.seconds)}: {item.last_line()}")
        for part in waiting:
            say(f"{part.name} is not run")
        return running
    finally:
        alive = [item for item in running if item.child.poll() is None]
        for item in alive:
            item.interrupt()
        limit = time.monotonic() + END_SECONDS
        for item in alive:
            item.end(max(0.1, limit - time.monotonic()))


def report(item: Running) -> None:
    """How a part ended; of one that failed, the end of its log."""
    item.reported = True
    if item.stopped:
        say(f"{item.part.name} was stopped after {minutes(item.seconds)}")
    elif not item.failed:
        say(f"{item.part.name} passed in {minutes(item.seconds)}: {item.last_line().strip('= ')}")
    else:
        if not item.part.live:
            lines = item.part.log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
            print("\n".join((f"---- the end of {item.part.log}", *lines, "----")), flush=True)
        say(f"{item.part.name} FAILED after {minutes(item.seconds)} with exit code {item.child.returncode}, all of it: {os.path.relpath(item.part.log, ROOT)}")


def _results(part: Part) -> Iterator[ElementTree.Element]:
    if part.results is None or not part.results.exists():
        return
    try:
        found = ElementTree.parse(part.results)  # written by our own pytest
    except ElementTree.ParseError:
        return  # it was killed as it wrote
    yield from found.iter("testcase")


def failures(part: Part) -> Iterator[str]:
    """Each failed test of a part with the first line of its reason."""
    for case in _results(part):
        for child in case:
            if child.tag in ("failure", "error"):
                yield f"{case.get('classname', '')}::{case.get('name', '')}: {child.get('message', '').partition(chr(10))[0][:200]}"


def cases(part: Part) -> Iterator[tuple[str, float, str]]:
    """Name, seconds and outcome of each test of a part that wrote results."""
    for case in _results(part):
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        yield f"{case.get('classname', '')}::{case.get('name', '')}", float(case.get("time", 0)), outcome


def counts(ended: Running) -> Counts:
    """What came out of a part. One that failed and counts no failed test (lint, the build, a crash of pytest) is one failure."""
    outcomes = [outcome for _, _, outcome in cases(ended.part)]
    found = Counts(outcomes.count("passed"), outcomes.count("failed"), outcomes.count("skipped"))
    if ended.failed and not ended.stopped and not found.failed:
        found.failed = 1
    return found


def write_durations(parts: Sequence[Part]) -> list[str]:
    """The slowest tests of all parts, kept for whoever asks where the time goes."""
    timed = sorted(((seconds, name) for part in parts for name, seconds, _ in cases(part)), reverse=True)
    (LOGS / DURATIONS).write_text("".join(f"{seconds:8.2f}s {name}\n" for seconds, name in timed))
    return [f"{seconds:8.2f}s {name}" for seconds, name in timed[:SLOWEST]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run all stages; 0 if every part passed.

    The last line is `N passed, N failed, N skipped` (`interrupted: …` after a signal), however it ends: CI reads that one.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.suite", description="Run lint and all suites.")
    parser.add_argument("--all", action="store_true", help="those marked `long` as well")
    arguments = parser.parse_args(argv)
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, _interrupted)
    LOGS.mkdir(parents=True, exist_ok=True)
    started, parent = time.monotonic(), os.getppid()
    done: list[Running] = []
    total, ok, interrupted = Counts(), True, False
    try:
        for parts in stages(everything=arguments.all):
            done += run_stage(parts, parent)
            ok = not any(item.failed for item in done)
            if any(item.failed and item.part.first for item in done):
                say("what had not begun is not run; fix these first")
                break
    except (KeyboardInterrupt, Ended):
        ok, interrupted = False, True
    for item in done:
        total += counts(item)
    slowest = write_durations([item.part for item in done])
    if slowest:
        print(f"\nthe {len(slowest)} slowest tests ({os.path.relpath(LOGS / DURATIONS, ROOT)} has all):", *slowest, "", sep="\n")
    for failure in [f"{item.part.name}: {failure}" for item in done for failure in failures(item.part)]:
        say(f"FAILED in {failure}")
    for item in done:
        say(f"{item.part.name:<10} {'stopped' if item.stopped else 'FAILED' if item.failed else 'passed':<8} {minutes(item.seconds):>7}  {counts(item)}")
    say(f"all of it took {minutes(time.monotonic() - started)}")
    print(f"{'interrupted: ' if interrupted else ''}{total}", flush=True)
    return 130 if interrupted else 0 if ok else 1


def _interrupted(_number: int, _frame: FrameType | None) -> None:
    raise Ended


if __name__ == "__main__":
    sys.exit(main())
