"""The tests of a plan, phase by phase, from where an earlier run was broken off to the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ckp.conformance.ginkgo import LOG, Target, command, focus_of, run_ginkgo
from ckp.conformance.ginkgolog import Ended, State, read_log
from ckp.conformance.programs import Programs
from ckp.conformance.records import Record, TestTimes
from ckp.conformance.suite import CONFORMANCE, Phase, Test, expected_seconds
from ckp.kits.clock import human_duration
from ckp.kits.errors import CkpError
from ckp.kits.steps import Step, Steps

WHOLE = "\\[Conformance\\]"
"""The focus of a run for a submission, as everybody's has it."""
TIMEOUT = 4 * 3600.0
"""Seconds for one run of ginkgo: the whole suite, one test after the other, takes two hours on a good machine."""
MARGIN = 600.0
"""Seconds that ginkgo has for ending in order at its own timeout, before it is killed."""


@dataclass
class Run:
    """One run.

    Args:
        steps: shows each phase as a step.
        times: how long tests took last time.
    """

    record: Record
    programs: Programs
    target: Target
    steps: Steps
    times: TestTimes

    def go(self) -> None:
        """Run all phases; what had ended before is not run again.

        Raises:
            CkpError: ginkgo ended without having run all tests.
            KeyboardInterrupt: when the tests that were running have cleaned up.
        """
        for phase in self.record.plan.phases:
            with self.steps.step(phase.title) as step:
                self._run(phase, step)

    def _run(self, phase: Phase, step: Step) -> None:
        before = self.record.ended(phase)
        left = [test for test in phase.tests if test.name not in before]
        if before:
            self.steps.say(f"{len(before)} of them have ended before")
        if not left:
            return
        progress = Progress(phase, left, dict(self.times.known()), len(before), self.steps.say, step)
        folder = self.record.new_attempt(phase)
        focus = WHOLE if self.record.plan.submission else focus_of([test.name for test in left])
        argv = command(self.programs, self.target, phase, folder, focus=focus, timeout=TIMEOUT)
        progress.show()
        try:
            run_ginkgo(argv, self.target, phase, folder, progress.ended, progress.began, timeout=TIMEOUT + MARGIN)
        finally:
            self.times.learn(self.record.ended(phase))
        ended = self.record.ended(phase)
        if missing := [test.name for test in phase.tests if test.name not in ended]:
            lines = (folder / LOG).read_text(errors="replace").splitlines()[-25:]
            raise CkpError(
                f"the run ended, and {len(missing)} of {len(phase.tests)} tests had not been run",
                details="\n".join(lines),
                resolution=f"see {folder / LOG}; the same command goes on from here",
            )
        if self.record.plan.submission and not read_log(folder / LOG, ended)[1]:
            raise CkpError(f"{folder / LOG} is not whole: ginkgo's last line is missing", resolution="run the command again: a submission is one piece")
        step.note = progress.outcome()


@dataclass
class Progress:
    """What a person sees of a phase while it runs.

    Args:
        left: the tests that are to end.
        known: seconds by name, from last time.
        done: how many had ended before.
    """

    phase: Phase
    left: list[Test]
    known: dict[str, float]
    done: int
    say: Callable[[str], None]
    step: Step
    failed: int = 0
    running: str = ""

    def began(self, name: str) -> None:
        """A test has begun."""
        self.running = name
        self.show()

    def ended(self, item: Ended) -> None:
        """A test has ended."""
        self.done += 1
        self.failed += item.state is State.FAILED
        self.left = [test for test in self.left if test.name != item.name]
        self.running = ""
        total = len(self.phase.tests)
        word = "FAILED" if item.state is State.FAILED else "passed"
        self.say(f"[{self.done:>{len(str(total))}}/{total}] {word} {human_duration(item.seconds):>6}  {item.name.replace(f' {CONFORMANCE}', '')}")
        if item.reason:
            self.say(item.reason)
        self.show()

    def show(self) -> None:
        """What is left, in the step's note."""
        parts = [f"{self.done} of {len(self.phase.tests)}", *([f"{self.failed} failed"] if self.failed else [])]
        seconds = expected_seconds(self.left, self.known, self.phase.processes)
        if seconds:
            parts.append(f"about {human_duration(seconds)} left by last time")
        if self.running:
            parts.append(f"now {self.running}")
        self.step.note = ", ".join(parts)

    def outcome(self) -> str:
        """How the phase ended."""
        return f"{self.done - self.failed} passed, {self.failed} failed"
