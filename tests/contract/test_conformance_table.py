"""The table of conformance runs says what was measured: the page is made of the rows, and a row's counts are those of the release's list."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ckp.catalog.load import Catalog
from tests import conformance_table as table

RESULTS = {
    "release": "v1.35.1",
    "suite": "conformance",
    "started": "2026-11-30T10:00:00Z",
    "ended": "2026-11-30T10:57:20Z",
    "total": 2,
    "selected": 2,
    "passed": 1,
    "failed": 1,
    "logs": [{"file": "parallel-01/e2e.log", "sha256": "ab" * 32}],
    "tests": [{"name": "[sig-node] one", "state": "passed", "seconds": 1.0}, {"name": "[sig-apps] two", "state": "failed", "seconds": 1.0, "reason": "x"}],
}


def run_of(folder: Path, **changes: Any) -> Path:
    (folder / "results.json").write_text(json.dumps({**RESULTS, **changes}))
    return folder


def test_a_run_becomes_a_row_that_names_what_failed(tmp_path: Path) -> None:
    row = table.row_of(run_of(tmp_path), "hosted", "c" * 40, "2 × Processor, 8 GiB")
    assert (row["passed"], row["total"], row["failed"], row["date"], row["minutes"]) == (1, 2, ["[sig-apps] two"], "2026-11-30", 57)
    text = table.page([row])
    assert "| v1.35.1 | hosted control plane, two workers | 1 of 2 | 2026-11-30 | `cccccccccccc` | 57 min | 2 × Processor, 8 GiB |" in text
    assert "- v1.35.1, hosted control plane, two workers: [sig-apps] two" in text and "abababababababab…" in text


@pytest.mark.parametrize("changes", [{"suite": "dns"}, {"selected": 1}, {"passed": 2}])
def test_a_run_of_less_than_the_whole_suite_is_no_row(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        table.row_of(run_of(tmp_path, **changes), "hosted", "c" * 40, "2 × Processor")


def test_a_run_that_is_not_complete_is_no_row(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not complete"):
        table.row_of(tmp_path, "hosted", "c" * 40, "2 × Processor")


def test_the_page_is_made_of_the_rows() -> None:
    kept = table.rows()
    assert not kept or table.PAGE.read_text() == table.page(kept), "python -m tests.conformance_table writes the page"
    assert len({(row["release"], row["cluster"]) for row in kept}) == len(kept)
    for row in kept:
        assert row["passed"] + len(row["failed"]) == row["total"] == Catalog().conformance(row["release"]).tests, row["release"]
