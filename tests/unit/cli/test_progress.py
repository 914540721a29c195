"""How steps look: drawn for a person at a terminal, as plain lines for all others."""

from __future__ import annotations

import html
import importlib.util
import io
import json
import os
import pty
import re
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pytest
from rich.cells import cell_len
from rich.console import Console

from ckp.cli.view import live as live_module
from ckp.cli.view.cluster import ClusterProgress, seconds_of
from ckp.cli.view.frame import frame
from ckp.cli.view.live import LiveView
from ckp.cli.view.progress import LOGS, drawable, folder, planned, waiting
from ckp.kits import steps as steps_module
from ckp.kits.durations import Durations
from ckp.kits.errors import CkpError
from ckp.kits.steps import State, Steps
from ckp.rules.lifecycle import PHASES, STEPS

TITLES = ["Checking this machine", "Building v1.35.1-ckp from source", "Installing a standalone CKP node on the management host", "Creating the cluster demo"]
ESCAPE = "\x1b"
REPO = Path(__file__).resolve().parents[3]


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def cluster(done: int, message: str = "the API server is starting") -> dict[str, Any]:
    """What Compass answers when so many steps are done, and the last one, which needs no other."""
    rows = []
    for number, step in enumerate(STEPS, 1):
        state = "Skipped" if number == 13 else "Done" if number <= done or number == 14 else "Running" if number == done + 1 else "Pending"
        times = {"startedAt": "2026-04-01T12:00:00Z", "finishedAt": f"2026-04-01T12:00:{number:02}Z"} if state == "Done" else {}
        rows.append({"number": number, "phase": step.phase, "title": step.title, "state": state, "message": message, **times})
    return {"steps": rows}


class Run:
    """A command of four steps, stopped where a test looks."""

    def __init__(self, tmp_path: Path, durations: bool = True) -> None:
        self.clock = Clock()
        self.durations = Durations(tmp_path / "durations.json")
        if durations:
            self.durations.learn("up", {TITLES[1]: 80, TITLES[2]: 67, TITLES[3]: 66})
            self.durations.learn("cluster", {"Control plane up": 38})
        self.steps = Steps(out=io.StringIO(), plan=TITLES, command="up", durations=self.durations, clock=self.clock)
        self.steps.state, self.steps.began = State.RUNNING, self.clock()

    @contextmanager
    def until(self, number: int) -> Iterator[Steps]:
        """The steps before this one are done, and it runs."""
        for title in TITLES[: number - 1]:
            with self.steps.step(title):
                self.clock.seconds += 5
        with self.steps.step(TITLES[number - 1]):
            yield self.steps

    def rows(self, width: int = 100, height: int | None = 60, encoding: str = "utf-8") -> list[str]:
        return [text.plain for text in frame(self.steps, width, height, encoding)]


def row(rows: list[str], words: str) -> str:
    found = [text for text in rows if words in text]
    assert len(found) == 1, (words, rows)
    return found[0]


def test_it_shows_what_is_done_what_runs_since_when_and_what_is_next(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with run.until(2) as steps:
        steps.say("building etcd v3.5.15")
        run.clock.seconds += 12
        rows = run.rows()
    assert row(rows, TITLES[0]).split() == ["✓", "1.", *TITLES[0].split(), "5.0s"]
    assert row(rows, TITLES[1]).split()[1:] == ["2.", *TITLES[1].split(), "12s", "last", "time", "1m20s"]
    assert rows[rows.index(row(rows, TITLES[1])) + 1].strip() == "· building etcd v3.5.15"
    assert row(rows, TITLES[2]).split() == ["3.", *TITLES[2].split(), "last", "time", "1m07s"]
    assert [rows.index(row(rows, title)) for title in TITLES] == sorted(rows.index(row(rows, title)) for title in TITLES)
    assert rows[-1].strip() == "17s, about 3m21s left", "68 + 67 + 66 seconds"


def test_without_durations_no_time_is_promised(tmp_path: Path) -> None:
    run = Run(tmp_path, durations=False)
    with run.until(2):
        rows = run.rows()
    assert not any("last time" in text or "left" in text for text in rows)


@pytest.mark.parametrize("width", [100, 80, 60, 40])
@pytest.mark.parametrize("done", [0, 3, 8, 12, 14])
def test_the_fourteen_steps_stand_in_their_order_below_the_phases_each_of_which_appears_once(tmp_path: Path, width: int, done: int) -> None:
    run = Run(tmp_path)
    with run.until(4) as steps:
        ClusterProgress(steps).update(cluster(done))
        rows = run.rows(width)
    inner = rows[rows.index(next(text for text in rows if " 4. " in text and TITLES[3][:12] in text)) :]
    numbers = [int(word[:-1]) for text in inner[1:] for word in text.split()[:4] if word[:-1].isdigit() and word.endswith(".")]
    assert numbers == list(range(1, 15))
    found = [next((index for index, text in enumerate(inner) if text.strip().startswith(phase)), -1) for phase in PHASES]
    assert found == sorted(found) and -1 not in found
    assert all(sum(text.strip().startswith(phase) for text in inner) == 1 for phase in PHASES if phase != "Cluster Ready")
    assert all(cell_len(text) < width for text in rows)


@pytest.mark.parametrize("height", range(5, 40))
@pytest.mark.parametrize("width", [100, 60])
def test_it_fits_any_terminal_and_what_runs_and_what_is_next_stays_visible(tmp_path: Path, height: int, width: int) -> None:
    run = Run(tmp_path)
    with run.until(4) as steps:
        ClusterProgress(steps).update(cluster(8))
        rows = run.rows(width, height)
    assert len(rows) <= height
    assert any("9. Control plane up" in text for text in rows), rows
    assert height < 7 or any("10. Workers joined" in text for text in rows), rows


def test_a_build_shows_those_that_run_side_by_side_and_what_is_left(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with run.until(2) as steps:
        group = steps.group([("", f"component-{number}") for number in range(30)], announced=False)
        group.summary = lambda: "28 left, about 3m05s"
        group.set(1, State.DONE, seconds=3)
        group.set(2, State.RUNNING)
        group.set(4, State.RUNNING)
        rows = run.rows(height=20)
        assert "component" not in run.steps.out.getvalue()  # type: ignore[attr-defined]
        tall = run.rows(height=60)
    assert [word for text in rows for word in text.split() if word.startswith("component-")] == ["component-1", "component-3", "component-2"]
    assert any("28 left, about 3m05s" in text for text in tall)
    assert len(rows) <= 20


def test_an_encoding_without_the_signs_gets_ascii(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with run.until(4) as steps:
        ClusterProgress(steps).update(cluster(8, message="été 日本"))
        for encoding in ("ascii", "iso-8859-1", "no-such-encoding"):
            rows = run.rows(60, 60, encoding)
            assert all(text.encode("iso-8859-1" if encoding == "iso-8859-1" else "ascii") is not None for text in rows)
            assert rows[0].startswith("+  1. Checking")


def test_a_failure_leaves_what_was_said_last_and_what_was_not_done(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with pytest.raises(CkpError), run.until(3) as steps:
        for number in range(20):
            steps.say(f"line {number}")
        raise CkpError("no")
    run.steps.state = State.FAILED
    rows = run.rows(height=None)
    assert row(rows, TITLES[2]).startswith("✗") and row(rows, TITLES[2]).endswith("failed")
    assert [text.strip() for text in rows if "· line" in text] == [f"· line {number}" for number in range(8, 20)]
    assert row(rows, TITLES[3]).startswith("   4.")
    assert rows[-1].strip().startswith("failed after")


def test_an_interrupt_marks_what_ran(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with pytest.raises(KeyboardInterrupt), run.until(4) as steps:
        ClusterProgress(steps).update(cluster(8))
        raise KeyboardInterrupt
    rows = run.rows(height=None)
    assert row(rows, TITLES[3]).endswith("stopped")
    assert row(rows, "Control plane up").endswith("stopped")
    assert row(rows, "Workers joined").endswith("10. Workers joined")


def test_a_wait_that_fails_says_what_was_not_done(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with pytest.raises(CkpError), run.until(4) as steps:
        ClusterProgress(steps).update(cluster(8))
        raise CkpError("not within 20m")
    rows = run.rows(height=None)
    assert row(rows, "Control plane up").endswith("not done")
    assert rows[rows.index(row(rows, "Control plane up")) + 1].strip() == "· the API server is starting"


def test_what_compass_says_cannot_move_the_cursor_nor_use_markup(tmp_path: Path) -> None:
    run = Run(tmp_path)
    evil = cluster(8, message=f"{ESCAPE}[2J[bold]gone\n\x07")
    evil["steps"][8]["title"] = f"{ESCAPE}]0;title\x07"
    evil["steps"][8]["phase"] = f"Phase{ESCAPE}c"
    with run.until(4) as steps:
        ClusterProgress(steps).update(evil)
        rows = run.rows()
    assert all(text.isprintable() for text in rows)
    assert any("[bold]gone" in text for text in rows)


def test_steps_of_another_compass_take_the_place_of_those_that_are_known_here(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with run.until(4) as steps:
        progress = ClusterProgress(steps)
        assert any("Control plane up" in text for text in run.rows()), "what is to be expected"
        progress.update({"steps": []})
        progress.update({"steps": [{"phase": "P", "title": "Only this", "state": "Running"}, {"title": "And that", "state": "Unheard-of"}]})
        rows = run.rows()
    assert any("Only this" in text for text in rows) and not any("Control plane up" in text for text in rows)


def test_a_step_that_began_before_we_looked_shows_for_how_long_it_has_run() -> None:
    begun = {"startedAt": "2026-04-01T12:00:00Z"}
    assert seconds_of(begun, now=datetime(2026, 4, 1, 12, 5, tzinfo=UTC)) == 300
    assert seconds_of(begun, now=datetime(2026, 4, 1, 11, 5, tzinfo=UTC)) == 0, "its clock may be ahead"
    assert seconds_of(begun) is None
    assert seconds_of({"startedAt": "soon", "finishedAt": 3}) is None


# On a terminal.


def console(width: int = 80, height: int = 24) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=True, width=width, height=height, color_system="truecolor", legacy_windows=False), out


def test_the_view_draws_while_it_runs_and_leaves_the_final_state_with_what_was_printed_above(tmp_path: Path) -> None:
    terminal, out = console()
    with Steps(plan=["one", "two"], view=LiveView(io.StringIO(), terminal), log=tmp_path / "log") as steps:
        with steps.step("one"):
            steps.say(f"STAND-IN: this for that{ESCAPE}[5m")
        with steps.step("two"):
            pass
    text = out.getvalue()
    assert f"{ESCAPE}[?25l" in text and text.rindex(f"{ESCAPE}[?25h") > text.rindex("done in"), "the cursor is shown again"
    end = text[text.rindex("STAND-IN") :]
    assert "[5m" in end and f"{ESCAPE}[5m" not in text
    assert end.rindex(" 1. one") < end.rindex(" 2. two") < end.rindex("done in") < end.rindex("  log: ")


def test_a_terminal_that_goes_away_ends_the_drawing_and_not_the_work() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    view = LiveView(io.StringIO(), Console(file=Gone(), force_terminal=True, width=80, height=24))
    view._live.start = lambda refresh=False: None  # type: ignore[method-assign]
    with Steps(plan=["one"], view=view) as steps:
        with steps.step("one"):
            pass
    assert steps.state is State.DONE


SCRIPT = """
import sys, time, click
from ckp.cli.view.progress import planned
from ckp.kits.errors import CkpError
try:
    with planned("try it", ["one", "two"]) as steps:
        with steps.step("one"):
            steps.say("quiet")
            click.echo("echoed")
            print("to stderr", file=sys.stderr)
            print("no line end", end="")
            time.sleep(0.3)
        with steps.step("two"):
            raise CkpError("it failed")
except CkpError as error:
    click.echo(error.render(), err=True)
print("after")
"""


def on_a_terminal(tmp_path: Path, **environment: str) -> str:
    """What a terminal of 80 columns receives from SCRIPT."""
    parent, child = pty.openpty()
    termios.tcsetwinsize(child, (24, 80))
    variables = {key: value for key, value in os.environ.items() if key not in ("CI", "NO_COLOR", "CKP_PROGRESS", "COLUMNS", "LINES")}
    variables |= {"PYTHONPATH": str(REPO / "src"), "CKP_CACHE": str(tmp_path), "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", **environment}
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stdin=child, stdout=child, stderr=child, env=variables) as process:
        os.close(child)
        received = b""
        while True:
            try:
                chunk = os.read(parent, 65536)
            except OSError:  # Linux: EIO, when the last end of the terminal is closed
                break
            if not chunk:
                break
            received += chunk
    os.close(parent)
    assert process.returncode == 0, received
    return received.decode()


def test_on_a_real_terminal_what_click_and_print_write_stands_whole_above_the_drawing(tmp_path: Path) -> None:
    received = on_a_terminal(tmp_path)
    assert f"{ESCAPE}[?25h" in received
    final = received[received.rindex("no line end") :]
    lines = click.unstyle(final).splitlines()
    assert [line.split()[:3] for line in lines if line.strip().startswith(("✓", "✗"))] == [["✓", "1.", "one"], ["✗", "2.", "two"]]
    for line in ("echoed", "to stderr"):
        assert f"{line}\r\n" in received
    assert lines[-2:] == ["error: it failed", "after"]
    log = next((tmp_path / "progress").glob("try-it-*.log"))
    assert "· quiet" in log.read_text() and str(log)[-30:] in click.unstyle(final).replace("\r\n", "")


@pytest.mark.parametrize("environment", [{"CI": "true"}, {"TERM": "dumb"}, {"CKP_PROGRESS": "plain"}])
def test_where_nothing_can_be_drawn_a_terminal_gets_plain_lines(tmp_path: Path, environment: dict[str, str]) -> None:
    received = on_a_terminal(tmp_path, **environment)
    assert ESCAPE not in received
    assert received.splitlines()[0] == "[1/2] one"
    assert received.splitlines()[-2:] == ["error: it failed", "after"]


def test_no_color_draws_without_colours(tmp_path: Path) -> None:
    colours = [f"{ESCAPE}[3{number}" for number in range(8)] + [f"{ESCAPE}[1;3{number}" for number in range(8)]
    assert any(colour in on_a_terminal(tmp_path) for colour in colours)
    received = on_a_terminal(tmp_path, NO_COLOR="1")
    assert not any(colour in received for colour in colours)
    assert "✓" in received


def test_a_pipe_gets_plain_lines_without_escape_codes(tmp_path: Path) -> None:
    variables = {key: value for key, value in os.environ.items() if key != "CI"}
    variables |= {"PYTHONPATH": str(REPO / "src"), "CKP_CACHE": str(tmp_path), "TERM": "xterm"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=variables, capture_output=True, text=True, check=True)
    assert ESCAPE not in done.stdout + done.stderr
    assert [line.strip() for line in done.stdout.splitlines()][:3] == ["[1/2] one", "· quiet", "echoed"]
    assert list(Durations(tmp_path / "progress" / "durations.json").last("try it")) == ["one"]


def test_the_help_loads_nothing_that_draws() -> None:
    """httpx imports rich, if it is there, for a command line of its own."""
    code = "import sys, ckp.cli.main; print([name for name in sys.modules if name in ('ckp.cli.view.live', 'ckp.cli.view.frame')])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(REPO / "src")})
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [({"TERM": "xterm"}, True), ({"TERM": "xterm", "CI": "false"}, True), ({"TERM": "xterm", "CI": "1"}, False), ({}, False), ({"TERM": "dumb"}, False)],
)
def test_it_is_drawn_on_capable_terminals_that_a_person_watches(environment: dict[str, str], wanted: bool) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert drawable(Terminal(), environment) is wanted
    assert not drawable(io.StringIO(), environment)


def test_a_wait_for_one_thing_shows_what_is_missing_and_remembers_how_long_it_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKP_CACHE", str(tmp_path))
    monkeypatch.setattr(steps_module, "HEARTBEAT", 0.0)
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    with pytest.raises(CkpError), waiting("host drain", "Host drained") as missing:
        missing("3 pods left")
        raise CkpError("not within 5m")
    assert stderr.getvalue() == "  · 3 pods left\n"
    durations = Durations(folder() / "durations.json")
    assert durations.last("host drain") == {}
    with waiting("host drain", "Host drained"):
        pass
    assert list(durations.last("host drain")) == ["Host drained"]


def test_old_logs_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("CKP_CACHE", str(tmp_path))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("CKP_PROGRESS", raising=False)
    folder().mkdir(parents=True)
    for number in range(LOGS + 5):
        (folder() / f"up-{number:03}.log").write_text("")
        os.utime(folder() / f"up-{number:03}.log", (number, number))
    planned("up", ["one"], Terminal())
    left = sorted(path.name for path in folder().glob("*.log"))
    assert len(left) == LOGS - 1 and left[-1] == f"up-{LOGS + 4:03}.log", "and one more is to come"


def narrower(view: LiveView, widths: list[int], draw: Callable[[], None]) -> None:
    for width in widths:
        view.console.width = width
        draw()


def test_a_terminal_that_becomes_narrower_is_cleared_of_the_rows_that_it_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "REDRAW_SECONDS", 60.0)
    terminal, out = console(width=100)
    view = LiveView(io.StringIO(), terminal)
    steps = Steps(plan=["x" * 50, "two"], view=view)
    view._steps = steps
    narrower(view, [100], view._draw)
    out.truncate(0)
    narrower(view, [30], view._draw)
    wrapped = 1  # `   1. xxx…` takes 56 columns: two rows of 30; the other rows still fit
    assert out.getvalue().startswith("\r" + f"{ESCAPE}[2K{ESCAPE}[1A" * wrapped), repr(out.getvalue()[:80])


def test_the_readmes_picture_can_be_read_and_shows_each_step_of_the_recorded_run() -> None:
    images = REPO / "docs" / "images"
    spec = importlib.util.spec_from_file_location("record", images / "record.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    run = json.loads((images / "make-up.json").read_text())
    for svg in (module.picture(run), (images / "make-up.svg").read_text()):
        found = re.findall(r'<text class="make-up-r[^"]*" x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]*)</text>', svg)
        assert len({y for _, y, _ in found}) <= 30
        assert all(float(x) / 12.2 + len(html.unescape(text).rstrip()) <= 100.5 for x, _, text in found), "12.2 units a column"
        words = html.unescape(svg).replace("\xa0", " ")
        for step in [*run["steps"], *run["steps"][-1]["steps"]]:
            assert f"{step['number']:>2}. {step['title']}" in words
        assert "http" not in re.sub(r'xmlns="[^"]*"|<!--.*?-->', "", svg), "it calls nobody"
