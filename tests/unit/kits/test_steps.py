"""Steps: printed in order whatever ends first, escaped, remembered, and logged while a view draws them."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ckp.kits import steps as module
from ckp.kits.durations import LIMIT, Durations
from ckp.kits.errors import CkpError
from ckp.kits.steps import Group, State, Steps
from ckp.kits.text import printable

PLAN = [("Provisioning", "Requested"), ("Provisioning", "Hosts"), ("Bootstrap", "Control plane"), ("Addons", "Network"), ("Addons", "Storage")]


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


class Recorder:
    """A view that keeps what it is given."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.ended = False

    def begin(self, steps: Steps) -> None:
        self.steps = steps

    def above(self, line: str) -> None:
        self.lines.append(line)

    def end(self) -> None:
        self.ended = True


def grouped(act: Callable[[Group, Clock], None]) -> list[str]:
    """The lines of a plan with a group alone."""
    out, clock = io.StringIO(), Clock()
    with Steps(out=out, clock=clock) as steps:
        act(steps.group(PLAN), clock)
    return out.getvalue().splitlines()


def test_steps_are_printed_in_their_order_and_each_phase_once_whatever_ends_first() -> None:
    def act(group: Group, clock: Clock) -> None:
        group.set(5, State.SKIPPED, note="not asked for")
        group.set(1, State.DONE, seconds=0.5)
        group.set(4, State.DONE, seconds=61)
        group.set(3, State.RUNNING)
        clock.seconds += 42
        group.set(3, State.DONE)
        group.set(2, State.DONE, seconds=1)

    assert grouped(act) == [
        "Provisioning",
        "  [1/5] Requested: done, 0.5s",
        "  [2/5] Hosts: done, 1.0s",
        "Bootstrap",
        "  [3/5] Control plane: done, 42s",
        "Addons",
        "  [4/5] Network: done, 1m01s",
        "  [5/5] Storage: skipped (not asked for)",
    ]


def test_a_step_is_printed_as_soon_as_those_before_it_are() -> None:
    out = io.StringIO()
    with Steps(out=out) as steps:
        group = steps.group(PLAN)
        group.set(2, State.DONE, seconds=1)
        assert out.getvalue() == ""
        group.set(1, State.DONE, seconds=1)
        assert out.getvalue().splitlines()[-1] == "  [2/5] Hosts: done, 1.0s"


def test_what_has_ended_is_printed_when_the_wait_ends_early_and_what_has_not_is_not() -> None:
    def act(group: Group, _: Clock) -> None:
        group.set(1, State.DONE, seconds=1)
        group.set(3, State.RUNNING, note="starting")
        group.set(4, State.DONE, seconds=2)

    assert grouped(act) == ["Provisioning", "  [1/5] Requested: done, 1.0s", "Addons", "  [4/5] Network: done, 2.0s"]


def test_a_failed_step_that_succeeds_in_the_end_is_printed_again_and_one_that_stays_is_not() -> None:
    def act(group: Group, _: Clock) -> None:
        group.set(1, State.FAILED, note="no host")
        group.set(1, State.FAILED, note="no host yet")
        group.set(2, State.DONE, seconds=1)
        group.set(1, State.RUNNING)
        group.set(1, State.DONE, seconds=9)

    assert grouped(act) == ["Provisioning", "  [1/5] Requested: FAILED (no host)", "  [2/5] Hosts: done, 1.0s", "  [1/5] Requested: done, 9.0s"]


def test_control_characters_from_outside_are_escaped() -> None:
    out = io.StringIO()
    evil = "\x1b[2Jcleared\x07 \x9b31m \u202egnp"
    with pytest.raises(CkpError), Steps(1, out) as steps:
        with steps.step(evil) as step:
            step.note = evil
            group = steps.group([(evil, evil)])
            group.set(1, State.FAILED, note=evil)
            steps.say(f"{evil}\n{evil}\rover")
            raise CkpError(evil, details=evil, resolution=evil)
    assert all(character.isprintable() or character == "\n" for character in out.getvalue())
    assert r"\x1b[2Jcleared\x07 \x9b31m \u202egnp" in out.getvalue()
    assert sum("· \\x1b[2J" in line for line in out.getvalue().splitlines()) == 2, "a line break stays one"
    assert all(character.isprintable() or character == "\n" for character in CkpError(evil, details=f"a\n{evil}", resolution=evil).render())


@pytest.mark.parametrize("text", ["✓ — naïve 日本語", "[red]no markup[/red]", ""])
def test_what_is_printable_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_a_silent_step_shows_that_it_runs_and_one_that_is_not_silent_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT", 0.2)
    out = io.StringIO()
    steps, silence = Steps(2, out), threading.Event()
    with steps.step("silent") as step:
        step.note = "waiting for the moon"
        silence.wait(0.7)
    with steps.step("talkative"):
        for number in range(14):
            steps.say(f"line {number}")
            silence.wait(0.05)
    beats = [line for line in out.getvalue().splitlines() if "still running" in line]
    assert beats, out.getvalue()
    assert all("silent: still running, 0." in line and line.endswith("(waiting for the moon)") for line in beats)


def test_a_waiting_group_shows_what_it_waits_for_after_a_while_only() -> None:
    def act(group: Group, clock: Clock) -> None:
        group.beat("too early")
        clock.seconds += 15
        group.beat("2 of 3 hosts\x1b[0m")
        group.beat("too early again")

    assert grouped(act) == [r"  · 2 of 3 hosts\x1b[0m"]


def test_durations_of_steps_that_succeeded_are_known_the_next_time(tmp_path: Path) -> None:
    clock, durations = Clock(), Durations(tmp_path / "d.json")

    def run(plan: list[str], failing: str = "") -> Steps:
        steps = Steps(out=io.StringIO(), plan=plan, command="up", durations=durations, clock=clock)
        with steps:
            for title in plan:
                with steps.step(title):
                    if title == "two":
                        group = steps.group([("", "inner")], command="cluster")
                        group.set(1, State.DONE, seconds=7)
                    clock.seconds += 20
                    if title == failing:
                        raise CkpError("no")
        return steps

    run(["one", "two"])
    with pytest.raises(CkpError):
        run(["three"], failing="three")
    steps = Steps(out=io.StringIO(), plan=["one", "two", "three"], command="up", durations=durations, clock=clock)
    assert [step.typical for step in steps.items] == [20, 20, None]
    assert steps.group([("", "inner"), ("", "other")], command="cluster").items[0].typical == 7
    assert steps.remaining() is None, "of one step nothing is known"
    assert Steps(plan=["one", "two"], command="up", durations=durations, clock=clock).remaining() == 40
    assert Steps(plan=["one"], command="dist build", durations=durations).items[0].typical is None


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"steps": 3}', '{"steps": {"up": {"one": "x"}}}', '{"steps": {"up": {"one": [1]}}}', "\x00", "[" * 100_000]
)
def test_a_damaged_file_of_durations_counts_as_empty_and_is_replaced(tmp_path: Path, content: str) -> None:
    durations = Durations(tmp_path / "d.json")
    durations.path.write_text(content)
    assert durations.last("up") == {}
    durations.learn("up", {"one": 1.5})
    assert durations.last("up") == {"one": 1.5}


def test_durations_that_cannot_be_kept_harm_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    Durations(tmp_path / "file" / "d.json").learn("up", {"one": 1})


def test_durations_are_bounded_and_the_latest_stay(tmp_path: Path) -> None:
    durations = Durations(tmp_path / "d.json")
    durations.learn("old", {f"step {number}": 1 for number in range(LIMIT)})
    durations.learn("new", {"one": 1})
    assert durations.last("new") == {"one": 1}
    assert len(durations.last("old")) == LIMIT - 1


def test_while_a_view_draws_all_lines_go_to_the_log_and_the_prominent_ones_stay_on_the_screen(tmp_path: Path) -> None:
    view, out, log = Recorder(), io.StringIO(), tmp_path / "logs" / "up.log"
    with Steps(out=out, plan=["one"], view=view, log=log) as steps:
        with steps.step("one"):
            steps.say("quiet")
            steps.say("STAND-IN: this for that")
    assert view.ended
    assert out.getvalue() == ""
    assert [line.strip() for line in view.lines] == ["· STAND-IN: this for that"]
    assert [line.strip() for line in log.read_text().splitlines()][:3] == ["[1/1] one", "· quiet", "· STAND-IN: this for that"]
    assert log.stat().st_mode & 0o777 == 0o600


def test_without_a_log_all_lines_stay_above_the_view(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    view = Recorder()
    with Steps(plan=["one"], view=view, log=tmp_path / "file" / "up.log") as steps:
        with steps.step("one"):
            steps.say("quiet")
    assert [line.strip() for line in view.lines][:2] == ["[1/1] one", "· quiet"]
    assert steps.log is None, "none is named that is not there"


def test_the_final_state_is_kept_as_data(tmp_path: Path) -> None:
    kept, clock = tmp_path / "up.json", Clock()
    with pytest.raises(KeyboardInterrupt), Steps(out=io.StringIO(), plan=["one", "two", "three"], command="up", kept=kept, clock=clock) as steps:
        with steps.step("one"):
            clock.seconds += 2
        with steps.step("two"):
            group = steps.group(PLAN[:2])
            group.set(1, State.DONE, seconds=1)
            group.set(2, State.RUNNING, running_for=5)
            clock.seconds += 3
            raise KeyboardInterrupt
    assert not kept.exists(), "only that of a run that succeeded"
    data = steps.record()
    assert (data["command"], data["state"], data["seconds"]) == ("up", "interrupted", 5)
    assert [(step["title"], step["state"], step["seconds"]) for step in data["steps"]] == [
        ("one", "done", 2),
        ("two", "interrupted", 3),
        ("three", "waiting", 0),
    ]
    assert [(step["phase"], step["state"], step["seconds"]) for step in data["steps"][1]["steps"]] == [
        ("Provisioning", "done", 1),
        ("Provisioning", "interrupted", 8),
    ]
    with Steps(out=io.StringIO(), plan=["one"], command="up", kept=kept, clock=clock) as steps, steps.step("one"):
        pass
    assert json.loads(kept.read_text()) == steps.record()


def test_a_plan_is_a_forecast_that_what_happens_corrects() -> None:
    out = io.StringIO()
    steps = Steps(out=out, plan=["one", "two"])
    for title in ("one", "another", "more"):
        with steps.step(title):
            pass
    assert [step.title for step in steps.items] == ["one", "another", "more"]
    assert out.getvalue().splitlines()[-1].startswith("[3/3] more: done")


def test_a_group_of_which_nothing_became_known_shows_nothing() -> None:
    assert grouped(lambda group, clock: None) == []
