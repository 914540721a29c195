"""`make test-all` runs every test once, `make test` all but those marked `long`; and the run itself: its parts, its last line, its end."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from _pytest.mark.expression import Expression

from tests import suite
from tests.conftest import BEGIN_FIRST
from tests.support import built_release, release_packages
from tests.support.checkout import REPO
from tests.support.marks import not_built

pytestmark = pytest.mark.contract

COLLECT = """
import json, sys, pytest
class Plugin:
    def pytest_collection_finish(self, session):
        self.found = [(item.nodeid, [mark.name for mark in item.iter_markers()]) for item in session.items]
plugin = Plugin()
code = pytest.main(["-q", "--collect-only", "-p", "no:cacheprovider", "tests"], plugins=[plugin])
json.dump(plugin.found, open(sys.argv[1], "w"))
sys.exit(code)
"""


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Every test with its marks."""
    target = tmp_path_factory.mktemp("collected") / "tests.json"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "CKP_CHAOS", "CKP_LAB_CHAOS"))}
    argv: list[str | Path] = [sys.executable, "-c", COLLECT, target]
    subprocess.run(argv, cwd=REPO, env={**environment, "PYTHONPATH": "src:."}, check=True, timeout=300, stdout=subprocess.DEVNULL)
    return {name: set(marks) for name, marks in json.loads(target.read_text())}


def runs(part: suite.Part, name: str, marks: set[str]) -> bool:
    """Whether a part's run of pytest has this test."""
    if part.results is None:
        return False
    argv = list(part.argv)
    folders = [argument for argument in argv if argument.startswith("tests/")]
    within = any(name.startswith(f"{folder}/") for folder in folders)
    return within and ("-m" not in argv[3:] or expression(argv[argv.index("-m", 3) + 1]).evaluate(lambda mark, /, **_: mark in marks))


expression = cache(Expression.compile)


def selected(collected: dict[str, set[str]], *, everything: bool) -> dict[str, list[str]]:
    """For each test the parts that run it."""
    parts = [part for stage in suite.stages(everything=everything) for part in stage]
    return {name: [part.name for part in parts if runs(part, name, marks)] for name, marks in collected.items()}


def test_make_test_all_runs_every_test_once(collected: dict[str, set[str]]) -> None:
    assert len(collected) > 1000
    assert {name: parts for name, parts in selected(collected, everything=True).items() if len(parts) != 1} == {}


def test_make_test_leaves_out_what_is_long_and_nothing_else(collected: dict[str, set[str]]) -> None:
    chosen = selected(collected, everything=False)
    assert {name for name, parts in chosen.items() if not parts} == {name for name, marks in collected.items() if "long" in marks}
    assert {name: parts for name, parts in chosen.items() if len(parts) > 1} == {}


def test_the_main_job_is_always_run(collected: dict[str, set[str]]) -> None:
    main = [name for name in collected if name.startswith("tests/e2e/test_1_main_job.py::")]
    assert len(main) > 10
    assert {tuple(selected(collected, everything=False)[name]) for name in main} == {("e2e",)}


def test_the_files_that_begin_first_exist() -> None:
    assert [name for name in BEGIN_FIRST if not (REPO / "tests" / name).exists()] == []


def test_files_that_take_long_begin_first_and_then_those_with_the_most_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one worker, the order in which files are handed out is the order in which they run."""
    monkeypatch.setattr(suite, "LOGS", tmp_path)
    tests = tmp_path / "tests"
    (tests / "unit").mkdir(parents=True)
    for name, count in (("a", 1), ("b", 3), ("long", 1)):
        (tests / "unit" / f"test_{name}.py").write_text("".join(f"def test_{name}{number}(): pass\n" for number in range(count)))
    text = (REPO / "tests/conftest.py").read_text()
    (tests / "conftest.py").write_text(f'{text}\nBEGIN_FIRST = ("unit/test_long.py",)\n')
    part = suite.pytest_part("order", str(tests), f"--rootdir={tmp_path}", "-vv", "-p", "no:cacheprovider", parallel="loadfile", workers=1)
    done = subprocess.run(part.argv, cwd=REPO, env={**os.environ, "PYTHONPATH": "src:."}, capture_output=True, text=True, check=True, timeout=120)
    assert re.findall(r"PASSED \S+::test_(\w+)", done.stdout) == ["long0", "b0", "b1", "b2", "a0"], done.stdout


# -- the run -----------------------------------------------------------------------------------------------------------

Stages = Callable[..., list[list[suite.Part]]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[[list[list[suite.Part]]], tuple[int, str]]:
    """Run stages; the exit code and all that was printed."""
    monkeypatch.setattr(suite, "LOGS", tmp_path / "logs")
    (tmp_path / "logs").mkdir()

    def ran(stages: list[list[suite.Part]]) -> tuple[int, str]:
        monkeypatch.setattr(suite, "stages", lambda everything: stages)
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
        try:
            code = suite.main([])
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return code, capfd.readouterr().out

    return ran


def shell(name: str, script: str, **more: Any) -> suite.Part:
    return suite.Part(name, ["sh", "-c", script], **more)


def file_of_tests(folder: Path, name: str, text: str) -> suite.Part:
    """A part that runs one file of tests."""
    (folder / f"test_{name}.py").write_text(text)
    return suite.pytest_part(name, str(folder / f"test_{name}.py"), f"--rootdir={folder}", "-p", "no:cacheprovider")


def last(output: str) -> str:
    return output.rstrip().splitlines()[-1]


def test_the_last_line_adds_up_the_tests_of_all_parts(run: Callable[[list[list[suite.Part]]], tuple[int, str]], tmp_path: Path) -> None:
    one = file_of_tests(tmp_path, "one", "import pytest\ndef test_a(): pass\ndef test_b(): pytest.skip('there is no moon')\n")
    two = file_of_tests(tmp_path, "two", "def test_c(): pass\n")
    code, output = run([[shell("lint", "echo fine"), one], [two]])
    assert code == 0
    assert last(output) == "2 passed, 0 failed, 1 skipped"
    assert "::test_c" in (suite.LOGS / suite.DURATIONS).read_text()


def test_a_part_that_was_killed_as_it_wrote_its_results_is_one_failure(run: Callable[[list[list[suite.Part]]], tuple[int, str]], tmp_path: Path) -> None:
    results = tmp_path / "cut.xml"
    cut = suite.Part("cut", ["sh", "-c", f"echo '<testsuites><testsuite>' >{results}; exit 1"], results=results)
    code, output = run([[cut]])
    assert (code, last(output)) == (1, "0 passed, 1 failed, 0 skipped")


def test_what_is_built_is_what_the_tests_are_written_for() -> None:
    assert suite.RELEASE == built_release.RELEASE == release_packages.RELEASE


def test_where_the_release_should_be_built_a_test_without_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CKP_TESTS_BUILT", raising=False)
    with pytest.raises(pytest.skip.Exception):
        not_built("etcd")
    monkeypatch.setenv("CKP_TESTS_BUILT", "1")
    with pytest.raises(pytest.fail.Exception, match="etcd"):
        not_built("etcd")


def test_each_part_is_shown_with_its_own_time(run: Callable[[list[list[suite.Part]]], tuple[int, str]], tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    _, output = run([[shell("quick", f"touch {ended}"), shell("slow", f"while [ ! -e {ended} ]; do sleep 0.1; done; sleep 3")]])
    quick, slow = (re.search(rf"^test: {name} +passed +(\d+)m(\d+)s", output, re.MULTILINE) for name in ("quick", "slow"))
    assert quick and slow and 60 * int(slow[1]) + int(slow[2]) >= 60 * int(quick[1]) + int(quick[2]) + 2, output


def test_a_failure_is_shown_and_fails_the_run_and_later_parts_still_run(run: Callable[[list[list[suite.Part]]], tuple[int, str]], tmp_path: Path) -> None:
    bad = file_of_tests(tmp_path, "bad", "def test_a(): assert 'this' == 'that'\n")
    code, output = run([[shell("lint", "true")], [bad], [shell("later", "echo it ran", live=True)]])
    assert code == 1
    assert "assert 'this' == 'that'" in output and "it ran" in output
    summary = output.partition("it ran")[2]
    assert "FAILED in bad: test_bad::test_a: AssertionError: assert 'this' == 'that'" in summary, "the end of the output names it, whatever else was long"
    assert last(output) == "0 passed, 1 failed, 0 skipped"


@pytest.mark.parametrize("ignored", [False, True], ids=["", "with SIGINT ignored, as shells start background jobs"])
def test_a_failure_beside_the_build_stops_the_build_and_what_needs_it(
    run: Callable[[list[list[suite.Part]]], tuple[int, str]], ignored: bool, request: pytest.FixtureRequest
) -> None:
    if ignored:
        request.addfinalizer(functools.partial(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, signal.SIG_IGN)))
    started = time.monotonic()
    build, lint = shell("build", "exec sleep 600", first=True, work=True), shell("lint", "echo line too long; exit 1", first=True)
    code, output = run([[build, lint, shell("component", "echo it ran", needs="build", live=True)], [shell("later", "echo it ran", live=True)]])
    assert time.monotonic() - started < 60
    assert code == 1
    assert "line too long" in output and "build was stopped" in output and "component is not run" in output and "it ran" not in output
    assert last(output) == "0 passed, 1 failed, 0 skipped", "lint counts as one"


def test_what_needs_the_build_begins_when_it_is_built_and_not_later(run: Callable[[list[list[suite.Part]]], tuple[int, str]], tmp_path: Path) -> None:
    """The unit tests last until the component tests have begun, and those see what the build made."""
    build = shell("build", f"sleep 1; echo made >{tmp_path}/made", first=True, work=True)
    unit = shell("unit", f"for _ in $(seq 600); do test -e {tmp_path}/begun && exit 0; sleep 0.1; done; exit 1", first=True)
    component = shell("component", f"cat {tmp_path}/made && touch {tmp_path}/begun", needs="build", live=True)
    code, output = run([[component, build, unit]])
    assert code == 0, output
    assert "made" in output.splitlines()


def test_of_what_runs_when_another_part_fails_all_results_are_seen(run: Callable[[list[list[suite.Part]]], tuple[int, str]], tmp_path: Path) -> None:
    """Only what makes something for later parts is stopped."""
    unit = shell("unit", f"for _ in $(seq 600); do test -e {tmp_path}/begun && exit 1; sleep 0.1; done", first=True)
    component = shell("component", f"touch {tmp_path}/begun; sleep 2; echo all of it", needs="build", live=True)
    code, output = run([[shell("build", "true", first=True, work=True), unit, component], [shell("later", "echo it ran", live=True)]])
    assert code == 1
    assert "all of it" in output and "it ran" not in output
    assert "what had not begun is not run" in output


def test_a_part_runs_as_nice_as_it_is(run: Callable[[list[list[suite.Part]]], tuple[int, str]]) -> None:
    code, output = run([[shell("one", "echo nice $(nice)", nice=5, live=True)]])
    assert code == 0
    assert f"nice {min(19, os.nice(0) + 5)}" in output


def alive(pid: int) -> bool:
    """Whether a process lives; one that is dead and that its new parent has yet to collect does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_its_parts_and_says_so(tmp_path: Path, number: int) -> None:
    """The part writes its pid, and has a child that ignores SIGINT, as shells' background processes do."""
    script = f"trap 'echo told >{tmp_path}/told; exit 3' INT; sh -c 'trap \"\" INT; sleep 600' & echo $! >{tmp_path}/pid; wait"
    program = (
        "import sys; from pathlib import Path; from tests import suite\n"
        f"suite.LOGS = Path({str(tmp_path)!r})\n"
        f"suite.stages = lambda everything: [[suite.Part('long', ['sh', '-c', {script!r}])]]\n"
        "sys.exit(suite.main([]))"
    )
    argv = ["env", "--default-signal=INT", sys.executable, "-c", program]  # this process may be a background job itself
    child = subprocess.Popen(argv, cwd=REPO, env={**os.environ, "PYTHONPATH": "src:."}, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 180
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(child.pid, number)
    output, _ = child.communicate(timeout=60)
    assert child.returncode == 130
    assert last(output) == "interrupted: 0 passed, 0 failed, 0 skipped"
    assert (tmp_path / "told").exists()
    assert not alive(int((tmp_path / "pid").read_text()))
