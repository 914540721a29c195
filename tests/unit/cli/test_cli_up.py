"""`ckp up` refuses a machine that is too small before it starts anything, and sums up in the order of the steps."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from ckp.cli import up
from ckp.kits.errors import CkpError
from ckp.kits.steps import Steps
from ckp.rules.lifecycle import STEPS


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(CkpError, match="needs root"):
        up.check_machine()


def test_too_little_memory_is_refused_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "sysconf", lambda name: 4096 if name == "SC_PAGE_SIZE" else (2 << 30) // 4096)
    with pytest.raises(CkpError, match=r"has 2\.0 GiB of memory, and the lab needs 6"):
        up.check_machine()


def test_too_little_disk_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("CKP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(up, "MIN_DISK_GIB", 1 << 20)
    with pytest.raises(CkpError, match="are needed below"):
        up.check_machine()


def test_the_summary_lists_the_fourteen_steps_in_order_under_their_phases(capsys: pytest.CaptureFixture[str]) -> None:
    steps = [
        {
            "number": number,
            "phase": phase,
            "name": name,
            "title": title,
            "state": "Done",
            "startedAt": "2026-05-01T12:00:00Z",
            "finishedAt": "2026-05-01T12:00:42Z",
        }
        for number, (phase, name, title) in enumerate(STEPS, start=1)
    ]
    up.show_summary({"version": "v1.35.1", "machines": [{}, {}], "steps": steps}, Path("/k"), Steps(1, io.StringIO()), "demo", "10.88.0.100")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert [line.split()[0] for line in lines if line.startswith("  ") and "42s" in line] == [f"{number}." for number in range(1, 15)]
    assert [line for line in lines if line in ("Provisioning", "Bootstrap", "Cluster Ready", "Addons")] == [
        "Provisioning",
        "Bootstrap",
        "Cluster Ready",
        "Addons",
    ]
