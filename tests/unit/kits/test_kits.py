"""Atomic files, processes with a timeout, waits that end with a reason, progress."""

from __future__ import annotations

import io
import itertools
import os
import time
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckp.kits.clock import exact_duration, human_duration, parse_duration
from ckp.kits.errors import CkpError, TimedOut
from ckp.kits.files import atomic_write, building_directory, exclusive, finish_together, write_together
from ckp.kits.processes import Daemon, ProcessFailed, run
from ckp.kits.retry import wait_until
from ckp.kits.steps import Steps
from tests.support.kills import killed


def test_a_failed_build_leaves_no_final_name_and_no_scratch(tmp_path: Path) -> None:
    final = tmp_path / "thing"
    with pytest.raises(RuntimeError), building_directory(final) as scratch:
        (scratch / "half").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_an_atomic_write_keeps_the_mode_that_was_asked_for(tmp_path: Path) -> None:
    atomic_write(tmp_path / "secret", "x", mode=0o600)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


def test_files_written_together_are_all_new_or_all_old_after_a_kill_at_any_point(tmp_path: Path) -> None:
    old, new = {"public/a": (b"1", 0o644), "secret": (b"1", 0o600)}, {"public/a": (b"2", 0o644), "public/b": (b"2", 0o644), "secret": (b"2", 0o600)}
    seen = []
    for at in itertools.count(1):
        folder = tmp_path / str(at)
        write_together(folder, "first", old)
        ended = not killed(partial(write_together, folder, "second", new), at)
        decided = finish_together(folder) == {"second"}
        wanted = new if ended or decided else old
        seen.append(decided)
        assert {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mode & 0o777) for path in folder.rglob("*") if path.is_file()} == wanted
        assert {path.name for path in folder.iterdir()} == {"public", "secret"}
        if ended:
            break
    assert seen == [False] * 4 + [True] * 3 + [False]


def test_a_wait_for_a_held_lock_times_out_with_an_error_that_names_the_work(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with exclusive(lock, what="a", timeout=1), pytest.raises(TimedOut, match="building x: another process is still doing it"):
        with exclusive(lock, what="building x", timeout=0.1):
            pass


def test_a_program_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    with pytest.raises(ProcessFailed, match="did not end within"):
        run(["sh", "-c", f"sleep 300 & echo $! > {tmp_path}/child; wait"], timeout=1)
    child = int((tmp_path / "child").read_text())
    time.sleep(0.1)
    state = Path(f"/proc/{child}/stat")
    assert not state.exists() or " Z " in state.read_text()


def test_a_failure_carries_the_last_output_but_not_the_arguments() -> None:
    with pytest.raises(ProcessFailed) as caught:
        run(["sh", "-c", "echo broken >&2; exit 7", "s3cret"], timeout=10, what="trying")
    assert caught.value.brief == "trying failed with exit code 7"
    assert caught.value.details == "broken"
    assert "s3cret" not in caught.value.render()


def test_a_reused_pid_is_not_taken_for_the_daemon(tmp_path: Path) -> None:
    daemon = Daemon("x", tmp_path / "pid", tmp_path / "log")
    daemon.pidfile.write_text(f"{os.getpid()} 1\n")
    assert daemon.pid() is None
    daemon.stop()  # must not signal us


def test_a_wait_ends_with_its_reason() -> None:
    with pytest.raises(TimedOut) as caught:
        wait_until(lambda: False, what="the file", timeout=0.05, every=0.01, reason=lambda: "the folder is empty")
    assert caught.value.details == "the folder is empty"


def test_steps_show_number_outcome_and_time() -> None:
    out = io.StringIO()
    steps = Steps(2, out)
    with steps.step("one"):
        steps.say("inside")
    with pytest.raises(CkpError), steps.step("two"):
        raise CkpError("no")
    lines = out.getvalue().splitlines()
    assert lines[0] == "[1/2] one"
    assert lines[2].startswith("[1/2] one: done, ")
    assert lines[-1].startswith("[2/2] two: FAILED, ")


@pytest.mark.parametrize(("seconds", "text"), [(0.44, "0.4s"), (12.4, "12s"), (185, "3m05s"), (7260, "2h01m")])
def test_durations_read_well(seconds: float, text: str) -> None:
    assert human_duration(seconds) == text


@given(st.integers(min_value=0, max_value=10**7))
def test_a_duration_of_a_setting_is_read_as_it_was_written(seconds: int) -> None:
    assert parse_duration(exact_duration(seconds)) == seconds


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("10m0s", 600), ("1h", 3600), ("1h30m", 5400), (" 5s ", 5), ("1.5s", 1)])
def test_a_duration_is_read_in_the_ways_that_people_and_go_write_it(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-1s", "5d", "1h 3m", "300ms", "m", "²", "1m5"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)
