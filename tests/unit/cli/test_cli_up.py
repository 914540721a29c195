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

import click
import httpx
import pytest
from click.testing import CliRunner

from ckp.catalog.load import Catalog
from ckp.cli import deliverables, down, up
from ckp.cli import main as main_module
from ckp.clients.compass import Session
from ckp.distribution.registries.server import RegistryServer
from ckp.kits.errors import CkpError, Conflict
from ckp.kits.steps import Steps
from ckp.lab.lab import Lab
from ckp.rules.lifecycle import STEPS
from ckp.site import install, lab
from ckp.site.enrol import Enrolment
from ckp.site.lab import LabHosts
from ckp.site.spec.read import read_site
from tests.worlds.applied_site import RELEASE, AppliedSite


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


class World(AppliedSite):
    """A lab of simulated hosts, in which the site is applied whole; what comes after it, in Compass, is noted."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(root, monkeypatch, "management", "10.88.0.10")
        self.file = lab.state() / lab.FILE
        self.calls: list[tuple[Any, ...]] = []
        self.version = ""
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        monkeypatch.setattr(up, "check_machine", lambda: None)
        monkeypatch.setattr(up, "kubeconfig_path", lambda name: root / name)
        monkeypatch.setattr(up, "verified_release", lambda archive, _keyring, _registry, systems, *_: self.made(archive.stem, systems))
        monkeypatch.setattr(LabHosts, "boot", lambda hosts, _say: self.calls.append(("boot", *(spec.name for spec in hosts.specs))))
        for module in (install, up):
            monkeypatch.setattr(module, "Session", lambda config: Session(config, transport=httpx.MockTransport(self.answer)))
        monkeypatch.setattr(Enrolment, "run", lambda enrolment: self.calls.append(("enrol", *(host.name for host in enrolment.site.worker_hosts))))
        monkeypatch.setattr(up, "wait_until_ready", lambda *_: {"version": RELEASE, "machines": [{}], "steps": []})

    def answer(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/api/v1/me":
            return httpx.Response(200, json={})
        if request.url.path.endswith("/host-groups"):
            body = json.loads(request.content)
            self.groups[body["name"]] = body["description"]
            return httpx.Response(201, json={})
        if request.method == "POST":
            body = json.loads(request.content)
            self.calls.append(("create", body))
            self.version = body["version"]
            return httpx.Response(202, json={})
        if request.url.path.endswith("/kubeconfig"):
            return httpx.Response(200, text="kubeconfig")
        if self.version:
            return httpx.Response(200, json={"version": self.version})
        return httpx.Response(404, json={"error": {"message": "no such cluster"}})

    def up(self, *arguments: str) -> str:
        done = CliRunner().invoke(up.up, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


@pytest.mark.parametrize("archived", [False, True])
def test_its_steps_are_called_as_the_plan_has_them(world: World, archived: bool) -> None:
    """What the plan names otherwise than the step would change its name as it begins, and never know how long it took last time."""
    arguments = world.taking([RELEASE]) if archived else []
    output = world.up(*arguments, "--workers", "3")
    hosts = LabHosts(3)
    wanted = up.titles(Catalog(), Catalog().release(RELEASE), [RELEASE], Path(arguments[1]) if archived else None, hosts, up.CLUSTER)
    if not archived:  # the world's releases are not built step by step
        wanted = [title for title in wanted if title not in deliverables.made_titles(Catalog().release(RELEASE))]
    assert re.findall(r"^\[ ?\d+/\d+\] (.*): done, ", output, flags=re.M) == wanted


def test_the_main_path_is_a_site_applied_between_hosts_that_are_made_and_a_cluster(world: World, tmp_path: Path) -> None:
    output = world.up("--workers", "3", "--name", "first")
    body = {"name": "first", "version": RELEASE, "cni": "cilium", "hostGroup": "lab", "workers": 3, "podCIDR": "10.42.0.0/16", "serviceCIDR": "10.43.0.0/16"}
    workers = ("worker-1", "worker-2", "worker-3")
    assert world.calls == [("boot", "management", *workers), ("enrol", *workers), ("create", body)]
    assert world.groups == {"lab": "The lab's workers"}
    assert "https://10.88.0.100" in output and (tmp_path / "first").read_text() == "kubeconfig"
    spec = read_site(world.file)
    assert (spec.releases, [str(host.address) for host in spec.management.hosts or ()]) == ((RELEASE,), ["10.88.0.10"])
    [way] = [host.connection for host in spec.management.hosts or ()]
    assert way is not None and (way.host, way.user) == ("10.88.0.10", "root")
    planned = world.run("plan", "--profile", "lab", "-o", "json")
    assert {item["action"] for item in json.loads(planned.stdout)["items"]} == {"none"} and planned.exit_code == 0, "its file describes what is there"


def test_a_second_run_changes_nothing_and_makes_no_second_cluster(world: World) -> None:
    world.up()
    before = world.everything()
    world.calls.clear()
    assert "management is a cluster already" in world.up()
    assert world.everything() == before and [call[0] for call in world.calls] == ["boot", "enrol"]


def test_a_cluster_of_another_release_is_not_taken_for_the_one_that_was_asked_for(world: World) -> None:
    world.up()
    world.calls.clear()
    with pytest.raises(Conflict, match=r"there is a cluster demo of v1\.35\.1, and v1\.34\.3 was asked for") as refused:
        world.up("--release", "v1.34.3")
    assert "--name" in refused.value.resolution
    assert [call[0] for call in world.calls] == ["boot"] and read_site(world.file).releases == (RELEASE,), "nothing was built or applied for it"


def test_three_management_hosts_share_an_address(world: World) -> None:
    for number in (2, 3):
        world.add(f"management-{number}", f"10.88.0.{9 + number}")
    world.up("--management", "3", "--workers", "1")
    assert world.calls[0] == ("boot", "management", "management-2", "management-3", "worker-1")
    spec = read_site(world.file)
    assert str(spec.addresses.api.virtual_address) == "10.88.0.9" == lab.lab_of(3).network.registry_address
    assert [name for name, host in world.hosts.items() if host.tokens] == ["management-2", "management-3"], "they have joined"


def test_a_lab_of_the_version_before_is_removed_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CKP_STATE", str(tmp_path))
    monkeypatch.setattr(Lab, "ensure_base", lambda *_: None)
    monkeypatch.setattr(RegistryServer, "running", lambda _server: True)
    with pytest.raises(Conflict, match=r"made by CKP 0\.2\.0") as refused:
        LabHosts(2).boot(lambda _line: None)
    assert "ckp down" in refused.value.resolution


def test_a_lab_keeps_the_number_of_its_management_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    there = [SimpleNamespace(name=name) for name in ("management", "worker-1")]
    monkeypatch.setattr(Lab, "ensure_base", lambda *_: None)
    monkeypatch.setattr(Lab, "hosts", lambda _lab: there)
    with pytest.raises(Conflict, match="the lab has 1 management host, not 3") as refused:
        LabHosts(2, lab.lab_of(3), 3).boot(lambda _line: None)
    assert "ckp down" in refused.value.resolution
