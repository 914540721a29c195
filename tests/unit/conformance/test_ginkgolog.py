"""ginkgo's log, as its default reporter writes it with -v."""

from __future__ import annotations

from pathlib import Path

from ckp.conformance.ginkgolog import Ended, LogReader, State, read_log

A = "[sig-apps] Deployment should run the lifecycle of a Deployment [Conformance]"
B = "[sig-node] Pods should get a host IP [NodeConformance] [Conformance]"
C = "[sig-node] ConfigMap should be consumable via the environment [NodeConformance] [Conformance]"
NAMES = [A, B, C]
LINE = "-" * 30

ONE_PROCESS = f"""  I1129 07:28:00.0 1 e2e.go:109] Starting e2e run "x" on Ginkgo node 1
Running Suite: Kubernetes e2e suite - /tmp
==========================================
Random Seed: 1764400000 - will randomize all specs

Will run 3 of 7355 specs
{LINE}
[SynchronizedBeforeSuite]
k8s.io/kubernetes/test/e2e/e2e.go:69
  STEP: waiting for all nodes @ 11/29/26 07:28:01.1
[SynchronizedBeforeSuite] PASSED [0.113 seconds]
{LINE}
{A} [sig-apps, Conformance]
k8s.io/kubernetes/test/e2e/apps/deployment.go:184
  STEP: Creating a kubernetes client @ 11/29/26 07:28:02.2
  {LINE} not a delimiter
• [7.512 seconds]
{LINE}
{C} [sig-node, NodeConformance, Conformance]
k8s.io/kubernetes/test/e2e/common/node/configmap.go:45
  STEP: Creating configMap @ 11/29/26 07:28:10.2
  [FAILED] expected "data-1" in the output
  In [It] at: k8s.io/kubernetes/test/e2e/framework/pod/output/output.go:263 @ 11/29/26 07:28:12.9
• [FAILED] [2.034 seconds]
[sig-node] ConfigMap [It] should be consumable via the environment [NodeConformance] [Conformance] [sig-node, NodeConformance, Conformance]
k8s.io/kubernetes/test/e2e/common/node/configmap.go:45

  [FAILED] expected "data-1" in the output
  In [It] at: k8s.io/kubernetes/test/e2e/framework/pod/output/output.go:263 @ 11/29/26 07:28:12.9
{LINE}
{B} [sig-node, NodeConformance, Conformance]
k8s.io/kubernetes/test/e2e/common/node/pods.go:206
  STEP: creating pod @ 11/29/26 07:28:13.2
• [3.100 seconds]
{LINE}
[ReportAfterSuite] PASSED [0.013 seconds]
{LINE}

Summarizing 1 Failure:
  [FAIL] [sig-node] ConfigMap [It] should be consumable via the environment [NodeConformance] [Conformance] [sig-node, NodeConformance, Conformance]
  k8s.io/kubernetes/test/e2e/framework/pod/output/output.go:263

Ran 3 of 7355 Specs in 12.645 seconds
FAIL! -- 2 Passed | 1 Failed | 0 Pending | 7352 Skipped
--- FAIL: TestE2E (12.9s)
"""
SEVERAL_PROCESSES = f"""Will run 3 of 7355 specs
Running in parallel across 3 processes
{LINE}
• [3.100 seconds]
{B} [sig-node, NodeConformance, Conformance]
k8s.io/kubernetes/test/e2e/common/node/pods.go:206

  Timeline >>
  STEP: creating pod @ 11/29/26 07:28:13.2
  << Timeline
{LINE}
• [FAILED] [2.034 seconds]
[sig-node] ConfigMap [It] should be consumable via the environment [NodeConformance] [Conformance] [sig-node, NodeConformance, Conformance]
k8s.io/kubernetes/test/e2e/common/node/configmap.go:45

  Timeline >>
  STEP: Creating configMap @ 11/29/26 07:28:10.2
  [FAILED] in [It] - output.go:263 @ 11/29/26 07:28:12.9
  << Timeline

  [FAILED] expected "data-1" in the output
  In [It] at: k8s.io/kubernetes/test/e2e/framework/pod/output/output.go:263 @ 11/29/26 07:28:12.9
{LINE}
• [7.512 seconds]
{A} [sig-apps, Conformance]
k8s.io/kubernetes/test/e2e/apps/deployment.go:184
{LINE}

Ran 3 of 7355 Specs in 12.645 seconds
FAIL! -- 2 Passed | 1 Failed | 0 Pending | 7352 Skipped
"""
REASON = '[FAILED] expected "data-1" in the output\nIn [It] at: k8s.io/kubernetes/test/e2e/framework/pod/output/output.go:263 @ 11/29/26 07:28:12.9'
PASSED_A, PASSED_B, FAILED_C = Ended(A, State.PASSED, 7.512), Ended(B, State.PASSED, 3.1), Ended(C, State.FAILED, 2.034, REASON)


def write(folder: Path, text: str) -> Path:
    path = folder / "e2e.log"
    path.write_text(text)
    return path


def test_the_log_of_one_process_says_how_each_test_ended(tmp_path: Path) -> None:
    assert read_log(write(tmp_path, ONE_PROCESS), NAMES) == ([PASSED_A, FAILED_C, PASSED_B], True)


def test_the_log_of_several_processes_says_the_same(tmp_path: Path) -> None:
    ended, whole = read_log(write(tmp_path, SEVERAL_PROCESSES), NAMES)
    assert whole
    assert sorted(ended, key=lambda item: item.name) == [PASSED_A, FAILED_C, PASSED_B]


def test_a_log_that_was_cut_off_has_what_had_ended(tmp_path: Path) -> None:
    cut = ONE_PROCESS[: ONE_PROCESS.index(B)]
    assert read_log(write(tmp_path, cut), NAMES) == ([PASSED_A, FAILED_C], False)


def test_a_log_cut_anywhere_never_says_more_than_the_whole(tmp_path: Path) -> None:
    for text in (ONE_PROCESS, SEVERAL_PROCESSES):
        whole = {item.name: item.state for item in read_log(write(tmp_path, text), NAMES)[0]}
        for end in range(0, len(text), 7):
            for item in read_log(write(tmp_path, text[:end]), NAMES)[0]:
                assert whole[item.name] is item.state


def test_a_log_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert read_log(tmp_path / "none", NAMES) == ([], False)


def test_the_test_that_runs_is_known_with_one_process() -> None:
    reader = LogReader(frozenset(NAMES))
    seen = []
    for line in ONE_PROCESS.splitlines():
        list(reader.read([line]))
        seen.append(reader.running)
    assert [name for number, name in enumerate(seen) if name and name != seen[number - 1]] == [A, C, B]
    assert reader.running == ""


def test_a_test_that_was_interrupted_has_not_ended(tmp_path: Path) -> None:
    for text in (ONE_PROCESS, SEVERAL_PROCESSES):
        interrupted = text.replace("• [FAILED]", "• [INTERRUPTED]")
        assert {item.name for item in read_log(write(tmp_path, interrupted), NAMES)[0]} == {A, B}


def test_a_test_of_others_is_passed_over(tmp_path: Path) -> None:
    ended, _whole = read_log(write(tmp_path, ONE_PROCESS), [A])
    assert ended == [PASSED_A]


def test_a_failure_before_a_test_or_behind_it_counts_for_the_test(tmp_path: Path) -> None:
    text = SEVERAL_PROCESSES.replace("ConfigMap [It] should", "ConfigMap [BeforeEach] should")
    assert FAILED_C in read_log(write(tmp_path, text), NAMES)[0]


def test_control_characters_of_a_message_reach_no_terminal(tmp_path: Path) -> None:
    text = ONE_PROCESS.replace('expected "data-1"', "expected \x1b[2J")
    (failed,) = [item for item in read_log(write(tmp_path, text), NAMES)[0] if item.state is State.FAILED]
    assert "\x1b" not in failed.reason
