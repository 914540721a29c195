"""`ckp up` refuses a machine that is too small before it starts anything, and sums up in the order of the steps."""

from __future__ import annotations

import errno
import io
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import click
import httpx
import pytest
from click.testing import CliRunner

from ckp.catalog.load import Catalog
from ckp.cli import down, up
from ckp.cli import main as main_module
from ckp.cli.distribution.release import default_release
from ckp.clients.compass import Config, Session
from ckp.distribution.carry.airgap import ImportedRelease
from ckp.kits.errors import CkpError
from ckp.kits.steps import Steps
from ckp.rules.lifecycle import STEPS
from ckp.site.enrol import Enrolment
from ckp.site.install import Site
from ckp.site.inventory import Inventory
from ckp.site.lab import LabHosts


@pytest.mark.parametrize("command", [up.up, down.down], ids=["up", "down"])
def test_without_root_it_says_so_before_it_touches_anything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: click.Command) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("CKP_STATE", str(tmp_path / "state"))
    with pytest.raises(CkpError, match="needs root"):
        CliRunner().invoke(command, [], catch_exceptions=False)
    assert not (tmp_path / "state").exists()


def test_a_place_that_may_not_be_written_is_a_sentence() -> None:
    error = main_module._as_user_error(PermissionError(errno.EACCES, "Permission denied", "/var/lib/ckp"))
    assert error is not None and error.render().startswith("error: /var/lib/ckp: Permission denied") and "CKP_STATE" in error.render()


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
            "phase": step.phase,
            "name": step.name,
            "title": step.title,
            "state": "Done",
            "startedAt": "2026-05-01T12:00:00Z",
            "finishedAt": "2026-05-01T12:00:42Z",
        }
        for number, step in enumerate(STEPS, start=1)
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


class Recorder:
    """Takes the place of everything that `ckp up` calls, and notes the calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[Any, ...]] = []
        release = SimpleNamespace(name="v1.35.1", stamp="v1.35.1-ckp")
        self.dist = SimpleNamespace(
            release=release,
            build=lambda _steps: self.note("build"),
            pack=lambda formats: self.note("pack", *formats),
            make_images=lambda: self.note("images"),
            make_bundles=lambda registry, targets: self.note("bundles", registry, *(target.os for target in targets)),
        )
        monkeypatch.setattr(up, "check_machine", lambda: self.note("check"))
        monkeypatch.setattr(up, "Distribution", lambda *_: self.dist)
        monkeypatch.setattr(LabHosts, "boot", lambda hosts, _say: self.note("boot", hosts.count))
        monkeypatch.setattr(up, "publish", self.publish)
        for name in ("install_standalone", "deploy_management"):
            monkeypatch.setattr(Site, name, lambda _site, published, name=name: self.note(name, published))
        monkeypatch.setattr(Site, "log_in", lambda site: self.note("log in", site.inventory.network.compass))
        monkeypatch.setattr(up, "read_config", lambda: Config(server="https://compass.test", token="t", domain="d", project="p"))
        monkeypatch.setattr(up, "Session", lambda config: Session(config, transport=httpx.MockTransport(self.answer)))
        monkeypatch.setattr(Enrolment, "run", lambda enrolment: self.note("enrol", len(enrolment.site.inventory.network.reserved)))
        monkeypatch.setattr(
            up, "wait_until_ready", lambda _session, name, _timeout, _steps: {"version": "v1.35.1", "machines": [{}], "steps": [], "name": name}
        )

    def publish(self, dist: Any, inventory: Inventory, _say: object) -> str:
        self.note("publish", dist.release.name, inventory.registry.address)
        return "published"

    def note(self, *call: Any) -> None:
        self.calls.append(call)

    def answer(self, request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            self.note("create", json.loads(request.content))
            return httpx.Response(202, json={})
        if request.url.path.endswith("/kubeconfig"):
            return httpx.Response(200, text="kubeconfig")
        return httpx.Response(404, json={"error": {"message": "no such cluster"}})


def test_the_main_path_is_eleven_steps_in_order_at_the_lab(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CKP_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("CKP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(up, "kubeconfig_path", lambda name: tmp_path / name)
    world = Recorder(monkeypatch)
    answer = CliRunner().invoke(up.up, ["--workers", "3", "--name", "first"])
    assert answer.exit_code == 0, answer.output
    body = {"name": "first", "version": "v1.35.1", "cni": "cilium", "hostGroup": "lab", "workers": 3, "podCIDR": "10.42.0.0/16", "serviceCIDR": "10.43.0.0/16"}
    assert world.calls == [
        ("check",),
        ("build",),
        ("pack", "deb"),
        ("images",),
        ("bundles", "registry.ckp.lab:5000", "debian"),
        ("boot", 3),
        ("publish", "v1.35.1", "registry.ckp.lab:5000"),
        ("install_standalone", "published"),
        ("deploy_management", "published"),
        ("log in", "10.88.0.100"),
        ("enrol", 3),
        ("create", body),
    ]
    done = re.findall(r"^\[ ?(\d+)/11\] .*: done", answer.output, re.MULTILINE)
    assert done == [str(number) for number in range(1, 12)]
    assert "https://10.88.0.100" in answer.output and (tmp_path / "first").read_text() == "kubeconfig"
