"""One run of ginkgo over a set of tests: its command line, its progress while it runs, and its orderly end."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckp.conformance.ginkgolog import Ended, LogReader
from ckp.conformance.programs import Programs
from ckp.conformance.suite import Phase
from ckp.kits.streams import stream

LOG, REPORT, JUNIT = "e2e.log", "report.json", "junit_01.xml"
"""Files of one run of ginkgo: its output, its own report, and the one that the suite writes (test/e2e/framework: junit_<prefix>01.xml)."""
GRACE = 150.0
"""Seconds that a run which is interrupted has for taking away what its tests have made: the framework deletes namespaces, and waits for that."""


@dataclass(frozen=True)
class Target:
    """The cluster that is tested, and what its tests need to know.

    Args:
        kubeconfig: of a cluster administrator.
        repositories: the file that KUBE_TEST_REPO_LIST names: where test images are pulled from.
        node_os: --node-os-distro; some tests look at what a distribution has.
    """

    kubeconfig: Path
    repositories: Path
    node_os: str = "debian"


def focus_of(names: Sequence[str]) -> str:
    """A regular expression that finds just these tests. ginkgo matches against the suite's description and the test's full name, with a blank between."""
    return f"(?:^| )(?:{'|'.join(map(re.escape, names))})$"


def command(programs: Programs, target: Target, phase: Phase, folder: Path, *, focus: str, timeout: float) -> list[str | Path]:
    """The command line, as upstream's conformance image runs it (test/conformance/image/go-runner), with what a slow machine needs.

    Args:
        timeout: seconds for the run; ginkgo ends it in order then.
    """
    argv: list[str | Path] = [programs.ginkgo, f"--focus={focus}", f"--timeout={timeout:.0f}s", "-v", "--silence-skips", "--no-color"]
    argv += [f"--output-dir={folder}", f"--json-report={REPORT}", f"--procs={phase.processes}", programs.e2e_test, "--"]
    argv += [f"--kubeconfig={target.kubeconfig}", f"--kubectl-path={programs.kubectl}", f"--report-dir={folder}", "--provider=skeleton"]
    argv += [f"--node-os-distro={target.node_os}", "--disable-log-dump=true", "--allowed-not-ready-nodes=0"]
    return [*argv, "--system-pods-startup-timeout=10m", "--node-schedulable-timeout=10m", f"--e2e-output-dir={folder}"]


def run_ginkgo(
    argv: Sequence[str | Path], target: Target, phase: Phase, folder: Path, on: Callable[[Ended], None], now: Callable[[str], None], *, timeout: float
) -> int:
    """Run it to its end; returns ginkgo's exit code. Its output lies in `folder`/e2e.log then.

    Args:
        on: takes each test as it ends.
        now: takes the name of each test that begins; only with one process.
        timeout: seconds after which it is killed, if it has not ended by itself.

    Raises:
        ProcessFailed: it could not be started, or ran out of time.
        KeyboardInterrupt: after ginkgo was given `GRACE` seconds to clean up.
    """
    reader = LogReader(frozenset(test.name for test in phase.tests))
    seen = ""

    def line(text: str) -> None:
        nonlocal seen
        for ended in reader.read([text]):
            on(ended)
        if reader.running != seen:
            seen = reader.running
            if seen:
                now(seen)

    environment: Mapping[str, str] = {"KUBE_TEST_REPO_LIST": str(target.repositories), "KUBECONFIG": str(target.kubeconfig)}
    code = stream(argv, on_line=line, log=folder / LOG, timeout=timeout, env=environment, interrupt=signal.SIGINT, grace=GRACE, what="running the tests")
    for ended in reader.end():
        on(ended)
    return code
