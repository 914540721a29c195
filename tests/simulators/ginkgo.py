"""A ginkgo that runs no tests: it writes the log and the files that the real one writes, for the tests that its focus finds in a list.

As a program: `python ginkgo.py SCRIPT …ginkgo's own arguments…`; SCRIPT is JSON: `tests` (name -> seconds and optionally `fails`: a message), `hangs`
(names that never end), `dies_after` (tests after which it kills itself), `cleanup` (a file that an interrupted run writes).
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

LINE = "-" * 30


def say(text: str) -> None:
    print(text, flush=True)


def run_one(name: str, test: dict[str, Any], *, parallel: bool) -> None:
    """Its part of the log."""
    words = name.split(" ")
    shown = f"{name} [labels]"
    header = f"• [{test['seconds']:.3f} seconds]"
    if not parallel:
        say(f"{LINE}\n{shown}\nk8s.io/kubernetes/test/e2e/a.go:1")
    if message := test.get("fails"):
        header = header.replace("•", "• [FAILED]")
        say(f"{LINE}\n{header}" if parallel else header)
        texts = [words[0], "[It]", *words[1:]]
        say(f"{' '.join(texts)} [labels]\nk8s.io/kubernetes/test/e2e/a.go:1\n")
        say(f"  [FAILED] {message}\n  In [It] at: a.go:2 @ 11/29/26 07:28:12.9")
    else:
        say(f"{LINE}\n{header}\n{shown}\nk8s.io/kubernetes/test/e2e/a.go:1" if parallel else header)


def main() -> int:
    script: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    options = dict(item.removeprefix("--").split("=", 1) for item in sys.argv[2:] if item.startswith("--") and "=" in item)
    (Path(sys.argv[1]).parent / "asked.jsonl").open("a").write(json.dumps({"options": options, "repositories": os.environ.get("KUBE_TEST_REPO_LIST")}) + "\n")

    def interrupted(_number: int, _frame: object) -> None:
        Path(script["cleanup"]).write_text("namespaces are gone")
        say("Interrupted by User")
        sys.exit(1)

    signal.signal(signal.SIGINT, interrupted)
    found = [name for name in script["tests"] if re.search(options["focus"], f"Kubernetes e2e suite {name}")]
    parallel = options["procs"] != "1"
    say(f"e2e test version: {script.get('version', 'v1.35.1-ckp')}\nkube-apiserver version: {script.get('version', 'v1.35.1-ckp')}")
    say(f"Will run {len(found)} of 7355 specs")
    failed = 0
    for number, name in enumerate(found):
        if number == script.get("dies_after"):
            os.kill(os.getpid(), signal.SIGKILL)
        if name in script.get("hangs", []):
            say(f"{LINE}\n{name} [labels]")
            time.sleep(600)
        run_one(name, script["tests"][name], parallel=parallel)
        failed += "fails" in script["tests"][name]
    Path(options["report-dir"], "junit_01.xml").write_text("<testsuites/>")
    say(f"{LINE}\n\nRan {len(found)} of 7355 Specs in 1.0 seconds")
    say(f"{'FAIL' if failed else 'SUCCESS'}! -- {len(found) - failed} Passed | {failed} Failed | 0 Pending | {7355 - len(found)} Skipped\nPASS")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
