"""Interrupted or killed, a build ends at once: nothing more is begun, no program goes on, and no scratch is left that nobody sweeps.

The command is the real one with the real catalog; in the place of Go's toolchains are scripts that take for ever.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ckp.kits import stopping
from ckp.kits.files import exclusive
from ckp.kits.processes import run
from ckp.kits.stopping import Interrupted, pool
from tests.support.checkout import REPO
from tests.support.said import BUILDING

GO = """#!/bin/sh
[ "$1" = build ] || exit 0
sleep 300 &
touch "${TMPDIR:-/tmp}/of-the-linker"
echo "$$ $!" > "$BEGUN/$$.part" && mv "$BEGUN/$$.part" "$BEGUN/$$"
wait
"""
SOON = 60.0
"""Seconds; the machine may be busy."""


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + SOON
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


class Build:
    """`ckp dist build` in a process of its own, with caches and temporary files of its own."""

    def __init__(self, root: Path) -> None:
        self.cache, self.begun, self.temporary = root / "cache", root / "begun", root / "tmp"
        self.begun.mkdir()
        self.temporary.mkdir()
        for version, data in tomllib.loads((REPO / "catalog" / "toolchains.toml").read_text()).items():
            go = self.cache / "go" / "mod" / "golang.org" / f"toolchain@v0.0.1-go{version}.linux-amd64" / "bin" / "go"
            go.parent.mkdir(parents=True)
            go.write_text(GO)
            go.chmod(0o755)
            (self.cache / "go" / f"toolchain-{version}.verified").write_text(data["sum"])
        own = {"CKP_CACHE": self.cache, "CKP_KEYS": root / "keys", "BEGUN": self.begun, "TMPDIR": self.temporary, "PYTHONPATH": REPO / "src"}
        self.child = subprocess.Popen(
            # A shell starts its background jobs with SIGINT ignored, and a command that is started so rightly does not listen to it.
            ["env", "--default-signal=INT", sys.executable, "-m", "ckp.cli.main", "dist", "build", "v1.35.1", "--profile", "lab"],
            env={**os.environ, **{name: str(value) for name, value in own.items()}},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def pids(self) -> list[int]:
        """The processes of all builds that were begun: the command, and one that it started."""
        return [int(pid) for file in self.begun.iterdir() if file.suffix != ".part" for pid in file.read_text().split()]

    def alive(self) -> list[int]:
        return [pid for pid in self.pids() if lives(pid)]

    def scratch(self) -> list[str]:
        """What is neither a lock nor a toolchain."""
        left = [*self.temporary.rglob("*"), *(self.cache / "builds").rglob("*")]
        return [str(path) for path in left if path.suffix != ".lock"]

    def end(self) -> None:
        self.child.kill()
        self.child.communicate()
        for pid in self.alive():
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Build]:
    """One that is under way."""
    started = Build(tmp_path)
    try:
        assert until(lambda: started.alive() != []), "no build was begun"
        yield started
    finally:
        started.end()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_ends_at_once_with_one_line(build: Build, number: signal.Signals) -> None:
    os.kill(build.child.pid, number)
    out, err = build.child.communicate(timeout=SOON)
    assert build.child.returncode == 130
    assert err.strip() == "interrupted; run the same command again to continue"
    assert "FAILED" not in out
    begun = len(build.pids())
    assert until(lambda: build.alive() == [])
    assert build.scratch() == []
    assert len(build.pids()) == begun
    assert 1 <= len(BUILDING.findall(out)) <= (os.cpu_count() or 1), "what was waiting was not begun"


def test_a_killed_build_takes_its_programs_along_and_leaves_what_the_next_sweeps(build: Build) -> None:
    assert len(build.alive()) >= 2
    os.kill(build.child.pid, signal.SIGKILL)
    build.child.wait(timeout=SOON)
    assert until(lambda: build.alive() == []), "the command and what it started"
    assert list(build.temporary.iterdir()) == [], "the temporary files of a build lie in its scratch"
    left = [path.name for path in (build.cache / "builds").iterdir() if path.suffix != ".lock"]
    assert left != []
    assert all(name.startswith(".") for name in left), "which building_directory sweeps"


def test_what_waits_in_a_pool_is_broken_off(tmp_path: Path) -> None:
    """A program, a lock that another holds, a pause: none of them keeps an interrupted command."""
    begun = threading.Barrier(4)
    after: list[str] = []

    def program() -> None:
        begun.wait()
        run(["sleep", "300"], timeout=300, check=False)
        after.append("program")

    def lock() -> None:
        begun.wait()
        with exclusive(tmp_path / "lock", what="waiting", timeout=300):
            after.append("lock")

    def pause() -> None:
        begun.wait()
        stopping.pause(300)
        after.append("pause")

    started = time.monotonic()
    with exclusive(tmp_path / "lock", what="holding", timeout=1), pytest.raises(KeyboardInterrupt), pool(3) as threads:
        jobs = [threads.submit(work) for work in (program, lock, pause)]
        waiting = threads.submit(after.append, "not begun")
        begun.wait()
        raise KeyboardInterrupt
    assert time.monotonic() - started < SOON
    assert after == []
    assert waiting.cancelled()
    assert all(isinstance(job.exception(), Interrupted) for job in jobs)
    assert run(["true"], timeout=SOON).code == 0, "the main thread's own clearing up goes on"


def test_a_failure_in_a_pool_drops_what_is_not_begun_and_lets_the_rest_end() -> None:
    begun = threading.Event()
    done: list[str] = []

    def work() -> None:
        begun.set()
        run(["sleep", "0.2"], timeout=10)
        done.append("under way")

    with pytest.raises(ValueError, match="no"), pool(1) as threads:
        threads.submit(work)
        waiting = threads.submit(done.append, "not begun")
        begun.wait()
        raise ValueError("no")
    assert done == ["under way"]
    assert waiting.cancelled()
