"""`ckp up` refuses a machine that is too small before it starts anything, and sums up in the order of the steps."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from click.testing import CliRunner

from ckp.catalog.load import Catalog
from ckp.cli import up
from ckp.cli.distribution.release import default_release
from ckp.distribution.carry.airgap import ImportedRelease
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


@pytest.mark.parametrize("archived", [False, True])
def test_its_steps_are_called_as_the_plan_has_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, archived: bool) -> None:
    """What the plan names otherwise than the step would change its name as it begins, and never know how long it took last time."""
    monkeypatch.setenv("CKP_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("CKP_CACHE", str(tmp_path / "cache"))
    for name in (
        "Distribution",
        "LabHosts",
        "publish",
        "Site",
        "Enrolment",
        "Session",
        "read_config",
        "create_cluster",
        "save_kubeconfig",
        "show_summary",
        "check_machine",
    ):
        monkeypatch.setattr(up, name, MagicMock(name=name))
    inventory = MagicMock()
    monkeypatch.setattr(up, "lab_inventory", lambda _: inventory)
    monkeypatch.setattr(
        ImportedRelease,
        "read",
        lambda *_: SimpleNamespace(registry_name=inventory.registry.address, base=None, stand_ins=[], release=SimpleNamespace(name="v1.35.1")),
    )
    monkeypatch.setattr(up, "trusted_keys", lambda _: tmp_path)
    archive = tmp_path / "release.ckp"
    archive.write_text("")
    arguments = ["--from", str(archive)] if archived else []
    done = CliRunner().invoke(up.up, [*arguments, "--workers", "3"], catch_exceptions=False)
    release: Any = Catalog().release(default_release())
    wanted = up.titles(release, archive if archived else None, 3, up.CLUSTER)
    assert re.findall(rf"^\[ ?\d+/{len(wanted)}\] (.*): done, ", done.stdout, flags=re.M) == wanted
