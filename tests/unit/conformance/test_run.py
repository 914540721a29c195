"""A run from its plan to its results, with a ginkgo that writes logs as the real one does."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ckp.conformance.ginkgo import Target, focus_of
from ckp.conformance.ginkgolog import State
from ckp.conformance.programs import Programs
from ckp.conformance.records import Plan, Record, TestTimes, records
from ckp.conformance.results import Results
from ckp.conformance.run import Run
from ckp.conformance.submission import Product, write_submission
from ckp.conformance.suite import Test, phases
from ckp.kits.errors import CkpError, InvalidInput
from ckp.kits.steps import Steps
from tests.support.checkout import REPO

A, B, C, S = (f"[sig-{sig}] {text} [Conformance]" for sig, text in (("apps", "a"), ("node", "b"), ("auth", "c (d.e|f)"), ("apps", "s [Serial]")))
STARTED = "2026-11-29T07:28:00Z"
PRODUCT = Product("https://docs.example/ckp", "https://docs.example/logo.svg", "who@example.com")


class World:
    """A run's places, and what its ginkgo does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.script: dict[str, Any] = {
            "tests": {name: {"seconds": 1.0 + number} for number, name in enumerate((A, B, C, S))},
            "cleanup": str(folder / "cleaned"),
        }
        self.out = io.StringIO()
        ginkgo = folder / "ginkgo"
        ginkgo.write_text(f'#!/bin/sh\nexec {sys.executable} {REPO}/tests/simulators/ginkgo.py {folder}/script.json "$@"\n')
        ginkgo.chmod(0o755)

    def plan(self, *names: str, processes: int = 3, submission: bool = False) -> Plan:
        tests = sorted(map(Test, names or (A, B, C, S)))
        return Plan("v1.35.1", "uid-1", "v1.35.1-ckp", STARTED, 4, submission, tuple(phases(tests, processes)))

    def run(self, plan: Plan) -> Record:
        (self.folder / "script.json").write_text(json.dumps(self.script))
        record, _old = Record.begin(self.folder / "runs", plan)
        programs = Programs(Path("e2e.test"), self.folder / "ginkgo", Path("kubectl"), {})
        target = Target(Path("/k"), Path("/repositories"), "ubuntu")
        times = TestTimes(self.folder / "times", plan.release)
        Run(record, programs, target, Steps(out=self.out), times).go()
        Results.of(record).write(record, "2026-01-02T04:00:00Z")
        return record

    def asked(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "asked.jsonl").read_text().splitlines()]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_all_tests_of_a_plan_are_run_and_counted(world: World) -> None:
    record = world.run(world.plan())
    results = Results.of(record)
    assert (results.passed, results.failed, results.missing) == (4, [], [])
    assert results.sentence() == "4 of 4 passed, with test images rebuilt from source"
    assert [item["options"]["procs"] for item in world.asked()] == ["3", "1"]


def test_the_suite_is_told_where_its_images_are_and_what_the_nodes_run(world: World) -> None:
    world.run(world.plan())
    (first, _then) = world.asked()
    assert first["repositories"] == "/repositories"
    assert first["options"]["node-os-distro"] == "ubuntu"
    assert first["options"]["kubeconfig"] == "/k"


def test_progress_names_each_test_that_has_ended_and_what_is_left(world: World) -> None:
    world.script["tests"][B]["fails"] = "no such luck"
    world.run(world.plan())
    shown = world.out.getvalue()
    assert "passed   1.0s  [sig-apps] a\n" in shown
    assert "FAILED   2.0s  [sig-node] b\n" in shown
    assert "[FAILED] no such luck" in shown
    assert "(2 passed, 1 failed)" in shown


def test_a_failure_has_its_reason_and_the_command_that_runs_it_again(world: World) -> None:
    world.script["tests"][C]["fails"] = "no such luck"
    results = Results.of(world.run(world.plan()))
    assert "[FAILED] no such luck" in results.failures()
    assert "ckp conformance run --focus '(?:^| )(?:\\[sig\\-auth\\]\\ c\\ \\(d\\.e\\|f\\)\\ \\[Conformance\\])$'" in results.failures()


def test_a_suite_is_named_in_its_results_and_in_what_runs_a_test_again(world: World) -> None:
    world.script["tests"][A]["fails"] = "no such luck"
    results = Results.of(world.run(replace(world.plan(), suite="dns")))
    assert results.sentence() == "suite dns: 3 of 4 passed, with test images rebuilt from source"
    assert "ckp conformance run --suite dns --focus " in results.failures()


def test_a_part_is_counted_against_the_whole(world: World) -> None:
    assert Results.of(world.run(world.plan(A))).sentence() == "1 of 1 passed, with test images rebuilt from source (4 in all)"


def test_the_results_are_kept_for_programs(world: World) -> None:
    world.script["tests"][B]["fails"] = "no such luck"
    record = world.run(world.plan())
    data = json.loads((record.folder / "results.json").read_text())
    assert (data["started"], data["ended"]) == (STARTED, "2026-01-02T04:00:00Z")
    assert (data["passed"], data["failed"], data["total"]) == (3, 1, 4)
    assert {item["name"] for item in data["tests"] if item["state"] == "failed"} == {B}
    assert [item["file"] for item in data["logs"]] == ["parallel-01/e2e.log", "serial-01/e2e.log"]
    (suite,) = ET.parse(record.folder / "junit.xml").getroot()
    assert suite.attrib["tests"] == "4"
    assert [case.attrib["name"] for case in suite if len(case)] == [B]


def test_a_run_that_died_goes_on_with_what_is_left(world: World) -> None:
    world.script |= {"dies_after": 2}
    with pytest.raises(CkpError, match="1 of 3 tests had not been run"):
        world.run(world.plan())
    del world.script["dies_after"]
    record = world.run(replace(world.plan(), started="2026-11-29T08:00:00Z"))
    assert record.plan.started == STARTED
    assert Results.of(record).passed == 4
    assert [item["options"]["focus"] for item in world.asked()][1] == focus_of([C])


def test_what_failed_before_a_break_stays_failed(world: World) -> None:
    world.script["tests"][A]["fails"] = "no such luck"
    world.script |= {"dies_after": 1}
    with pytest.raises(CkpError):
        world.run(world.plan())
    del world.script["dies_after"], world.script["tests"][A]["fails"]
    assert [item.name for item in Results.of(world.run(world.plan())).failed] == [A]


def test_a_complete_run_is_not_gone_on_with(world: World) -> None:
    first = world.run(world.plan())
    second = world.run(replace(world.plan(), started="2026-11-29T08:00:00Z"))
    assert second.folder != first.folder
    assert [record.plan.started for record in records(world.folder / "runs")] == [STARTED, "2026-11-29T08:00:00Z"]


def test_another_selection_or_cluster_is_another_run(world: World) -> None:
    first, _ = Record.begin(world.folder / "runs", world.plan())
    for other in (world.plan(A), world.plan(processes=1), replace(world.plan(), cluster="uid-2")):
        record, old = Record.begin(world.folder / "runs", replace(other, started=f"2026-11-29T08:00:0{len(list(records(world.folder / 'runs')))}Z"))
        assert (old, record.folder == first.folder) == (False, False)


def test_a_folder_that_is_no_run_is_passed_over(world: World) -> None:
    for name, text in (("a", "{"), ("b", "[]"), ("c", '{"format": 2}')):
        (world.folder / "runs" / name).mkdir(parents=True)
        (world.folder / "runs" / name / "plan.json").write_text(text)
    record = world.run(world.plan())
    assert list(records(world.folder / "runs")) == [record]


def test_how_long_tests_took_is_known_the_next_time(world: World) -> None:
    world.run(world.plan())
    assert TestTimes(world.folder / "times", "v1.35.1").known() == {A: 1.0, B: 2.0, C: 3.0, S: 4.0}
    assert TestTimes(world.folder / "times", "v1.34.3").known() == {}


def test_an_interrupted_run_lets_its_tests_clean_up(world: World) -> None:
    world.script["hangs"] = [B]
    (world.folder / "script.json").write_text(json.dumps(world.script))
    program = f"""
        from pathlib import Path
        from tests.unit.conformance.test_run import World
        world = World(Path({str(world.folder)!r}))
        world.script["hangs"] = [{B!r}]
        world.out = __import__("sys").stdout
        world.run(world.plan(processes=1))
        """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=REPO,
        env={**os.environ, "PYTHONPATH": f"{REPO}/src:{REPO}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509 - the parent may ignore it
    )
    assert child.stdout is not None
    log = world.folder / "runs" / "20261129T072800Z" / "serial-01" / "e2e.log"
    deadline = time.monotonic() + 60
    while not (log.exists() and B in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=60)
    assert child.returncode != 0
    assert (world.folder / "cleaned").exists()
    (record,) = records(world.folder / "runs")
    assert {name: item.state for name, item in record.all_ended().items()} == {A: State.PASSED}


def submit(world: World) -> Record:
    return world.run(world.plan(processes=1, submission=True))


def test_a_submission_is_the_whole_suite_in_one_log(world: World) -> None:
    record = submit(world)
    folder = write_submission(record, PRODUCT, world.folder / "out")
    assert folder == world.folder / "out" / "v1.35" / "ckp"
    assert sorted(path.name for path in folder.iterdir()) == ["PRODUCT.yaml", "README.md", "e2e.log", "junit_01.xml"]
    assert world.asked()[0]["options"]["focus"] == "\\[Conformance\\]"
    assert (folder / "PRODUCT.yaml").read_text().splitlines()[:3] == ["vendor: Coredge.io", "name: Coredge Kubernetes Platform (CKP)", "version: v1.35.1-ckp"]
    assert "4 of 4 passed, with test images rebuilt from source" in (folder / "README.md").read_text()
    for file in folder.iterdir():
        assert "certified" not in file.read_text().lower()


def test_a_submission_that_was_broken_off_begins_again(world: World) -> None:
    world.script["dies_after"] = 2
    with pytest.raises(CkpError):
        submit(world)
    del world.script["dies_after"]
    (broken,) = records(world.folder / "runs")
    broken.broken_off()
    record = submit(world)
    assert record.folder == broken.folder
    assert len(record.attempts(record.plan.phases[0])) == 1
    write_submission(record, PRODUCT, world.folder / "out")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda world: world.run(world.plan()), "not made with --submission"),
        (lambda world: world.run(world.plan(A, processes=1, submission=True)), "it has 1 tests, and the suite of v1.35.1 has 4"),
        (lambda world: (world.script["tests"][A].update(fails="x"), submit(world))[1], "1 tests failed"),
        (lambda world: (world.script.update(version="v1.34.3-ckp"), submit(world))[1], "does not say that the API server's version is v1.35"),
    ],
)
def test_a_run_that_does_not_qualify_is_refused_with_the_reason(world: World, change: Any, reason: str) -> None:
    record = change(world)
    with pytest.raises(InvalidInput) as refused:
        write_submission(record, PRODUCT, world.folder / "out")
    assert reason in refused.value.details
    assert not (world.folder / "out").exists()


@pytest.mark.parametrize(
    "wrong",
    [{"documentation_url": "docs.example"}, {"product_logo_url": "https://docs.example/logo.png"}, {"contact_email_address": "nobody"}],
)
def test_a_product_with_a_malformed_field_is_refused(world: World, wrong: dict[str, str]) -> None:
    record = submit(world)
    with pytest.raises(InvalidInput, match=next(iter(wrong))):
        write_submission(record, replace(PRODUCT, **wrong), world.folder / "out")
