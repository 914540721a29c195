"""docs/reference/conformance.md, the table of whole conformance runs: `python -m tests.conformance_table RUN --cluster KIND` adds a run to it.

    a run's folder (results.json) ▶ one row of docs/reference/conformance.json ▶ the page

To be called where the run was made, on its machine and at its commit: both are written into the row.
One row per release and kind of cluster, the latest run. A run that failed has its row too, with what failed: the table says what came out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.support import machine
from tests.support.checkout import REPO

ROWS = REPO / "docs" / "reference" / "conformance.json"
PAGE = REPO / "docs" / "reference" / "conformance.md"
KINDS = {"hosted": "hosted control plane, two workers", "standalone": "standalone, one host", "calico": "hosted control plane with Calico, two workers"}
SHOWN_DIGITS = 16
HEAD = """# Whole conformance runs

All tests of a release's conformance suite, run by `ckp conformance run` on lab hosts, with test images rebuilt from source
([how](../how-to/conformance.md)). This is no certification: that is the CNCF's programme to give, for a run with upstream's own images.

Each row is the latest whole run of its release on its kind of cluster. `python -m tests.conformance_table` writes this page
from the run's `results.json`.

| release | cluster | passed | run on | commit | time | machine |
| --- | --- | --- | --- | --- | --- | --- |
"""
LOGS = """
## Logs
SHA-256 of the logs that ginkgo wrote, for whoever holds the run's folder against this table:

"""


def rows() -> list[dict[str, Any]]:
    """The rows that are kept, in the order of the page."""
    kept: list[dict[str, Any]] = json.loads(ROWS.read_text()) if ROWS.exists() else []
    return sorted(kept, key=lambda row: (list(KINDS).index(row["cluster"]), row["release"]))


def row_of(run: Path, kind: str, commit: str, where: str) -> dict[str, Any]:
    """A run's row. Raises ValueError for a run that is not of the whole conformance suite, or not complete."""
    try:
        results = json.loads((run / "results.json").read_text())
    except FileNotFoundError:
        raise ValueError(f"{run} has no results.json: the run is not complete") from None
    if results["suite"] != "conformance" or results["selected"] != results["total"]:
        raise ValueError(f"{run} ran {results['selected']} of {results['total']} tests of the suite {results['suite']}, not the whole of conformance")
    if results["passed"] + results["failed"] != results["total"]:
        raise ValueError(f"{run}: {results['passed']} passed and {results['failed']} failed are not {results['total']}")
    started, ended = (datetime.fromisoformat(results[key]) for key in ("started", "ended"))
    return {
        "release": results["release"],
        "cluster": kind,
        "passed": results["passed"],
        "total": results["total"],
        "failed": [test["name"] for test in results["tests"] if test["state"] == "failed"],
        "date": results["started"][:10],
        "minutes": round((ended - started).total_seconds() / 60),
        "commit": commit,
        "machine": where,
        "logs": {log["file"]: log["sha256"] for log in results["logs"]},
    }


def page(kept: list[dict[str, Any]]) -> str:
    """The whole page."""
    text = HEAD
    for row in kept:
        passed = f"{row['passed']} of {row['total']}"
        text += (
            f"| {row['release']} | {KINDS[row['cluster']]} | {passed} | {row['date']} | `{row['commit'][:12]}` | {row['minutes']} min | {row['machine']} |\n"
        )
    failed = [(row, name) for row in kept for name in row["failed"]]
    text += "\n## What failed\n" if failed else ""
    for row, name in failed:
        text += f"- {row['release']}, {KINDS[row['cluster']]}: {name}\n"
    text += LOGS
    for row in kept:
        for file, digest in row["logs"].items():
            text += f"- {row['release']}, {KINDS[row['cluster']]}, `{file}`: `{digest[:SHOWN_DIGITS]}…`\n"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, help="the run's folder, such as build/conformance/20261130T101500Z")
    parser.add_argument("--cluster", choices=list(KINDS), required=True, help="what kind of cluster it ran on")
    given = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPO, capture_output=True, text=True, check=True).stdout.strip()
    try:
        new = row_of(given.run, given.cluster, commit, machine.described())
    except ValueError as error:
        parser.error(str(error))
    kept = [row for row in rows() if (row["release"], row["cluster"]) != (new["release"], new["cluster"])]
    ROWS.write_text(json.dumps([*kept, new], indent=1) + "\n")
    PAGE.write_text(page(rows()))
    print(f"{PAGE} is written", file=sys.stderr)


if __name__ == "__main__":
    main()
