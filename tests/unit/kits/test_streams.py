"""Programs whose output is followed while they run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ckp.kits.errors import CkpError
from ckp.kits.streams import stream


def ended(pid: int) -> bool:
    """Whether a process is gone, or a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until_ended(pid: int) -> None:
    deadline = time.monotonic() + 30
    while not ended(pid):
        assert time.monotonic() < deadline, f"{pid} lives on"
        time.sleep(0.02)


def test_output_comes_line_by_line_with_both_streams_and_the_code() -> None:
    lines: list[str] = []
    code = stream(["sh", "-c", "cat; echo err >&2; exit 3"], timeout=60, on_line=lines.append, stdin="a\nb\n", what="x")
    assert (code, lines) == (3, ["a", "b", "err"])


def test_a_stream_that_does_not_end_is_killed_with_its_children() -> None:
    with pytest.raises(CkpError, match="did not end within"):
        stream(["sh", "-c", "sleep 60 & sleep 60"], timeout=0.3, on_line=lambda _line: None, what="sleeping")


def test_a_line_is_in_the_log_before_it_is_handed_over(tmp_path: Path) -> None:
    seen: list[bytes] = []
    log = tmp_path / "log"
    stream(["printf", "one\\ntwo\\n"], timeout=60, on_line=lambda _line: seen.append(log.read_bytes()), log=log, what="x")
    assert seen == [b"one\n", b"one\ntwo\n"]


def test_a_log_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("earlier")
    with pytest.raises(FileExistsError):
        stream(["true"], timeout=60, on_line=print, log=tmp_path / "log", what="x")
    assert (tmp_path / "log").read_text() == "earlier"


def interrupt_at(line: str) -> None:
    if line.startswith("begun"):
        raise KeyboardInterrupt


def test_an_interrupted_program_may_end_in_order_and_is_heard_until_then() -> None:
    lines: list[str] = []

    def on_line(line: str) -> None:
        lines.append(line)
        interrupt_at(line)

    clean_up = "signal.signal(signal.SIGINT, lambda *_: (print('cleaned', flush=True), sys.exit(0)))"
    script = f"import signal, sys, time\n{clean_up}\nprint('begun', flush=True)\ntime.sleep(60)"
    with pytest.raises(KeyboardInterrupt):
        stream([sys.executable, "-c", script], timeout=60, on_line=on_line, interrupt=signal.SIGINT, grace=60, what="x")
    assert lines == ["begun", "cleaned"]


def test_an_interrupted_program_that_goes_on_is_killed_after_its_grace() -> None:
    pids: list[int] = []

    def on_line(line: str) -> None:
        pids.append(int(line.removeprefix("begun ")))
        interrupt_at(line)

    with pytest.raises(KeyboardInterrupt):
        stream(["sh", "-c", "trap '' INT; echo begun $$; sleep 60"], timeout=60, on_line=on_line, interrupt=signal.SIGINT, grace=0.3, what="x")
    wait_until_ended(pids[0])


def test_a_program_does_not_outlive_a_killed_caller() -> None:
    """The caller prints a line of its program only when it watches over it."""
    script = "from ckp.kits.streams import stream\nstream(['sh', '-c', 'echo $$; sleep 60'], timeout=60, on_line=lambda x: print(x, flush=True), what='x')"
    with subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": "src"}, stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout is not None
        pid = int(caller.stdout.readline())
        caller.kill()
    wait_until_ended(pid)
