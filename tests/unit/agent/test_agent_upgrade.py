"""The agent replaces itself, and is brought back if the new one is no good; whoever is killed, and whenever."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ckp.agent import upgrade as module
from ckp.agent.journal import Journal
from ckp.agent.messages import AgentTarget, Desired
from ckp.agent.node.engine import Engine
from ckp.agent.node.settings import Settled
from ckp.agent.upgrade import Upgrades
from ckp.hostkit.errors import AgentError, VerificationFailed

OLD, NEW = "0.1.0+1-ckp", "0.2.0+2-ckp"
IMAGES = {NEW: "r/ckp/ckp-agent@sha256:" + "2" * 64, OLD: "r/ckp/ckp-agent@sha256:" + "1" * 64}
TARGET = AgentTarget(NEW, IMAGES[NEW], IMAGES[OLD])


class Killed(BaseException):
    """As by SIGKILL: no handler of the code sees it."""


@dataclass
class Host:
    """A host with one package; a package's file says its version, and verification reads it from there."""

    folder: Path
    version: str = OLD
    works: bool = True
    pulled: list[str] = field(default_factory=list)
    started: int = 0
    ticks: float = 0.0
    kill_at: str = ""
    installable: bool = True

    def __post_init__(self) -> None:
        self.upgrades = Upgrades(str(self.folder / "state"))

    def pull(self, image: str, folder: str, ca: str) -> None:
        self.pulled.append(image)
        version = next(version for version, known in IMAGES.items() if known == image)
        Path(folder).mkdir(parents=True)
        (Path(folder) / "ckp-agent.deb").write_text(version)

    def begin(self, target: AgentTarget = TARGET) -> str:
        installer: Any = type("Dpkg", (), {"name": "dpkg"})()
        return self.upgrades.begin(target, self.version, "keyring", self.pull, installer=installer)

    def install(self, path: str) -> None:
        self._die("before install")
        version = Path(path).read_text()
        if version == NEW and not self.installable:
            raise AgentError("dpkg said no")
        self.version = version
        self._die("after install")

    def restart(self) -> None:
        self._die("before restart")
        self.started += 1
        if self.version == OLD or self.works:
            self.upgrades.confirm(self.version)

    def watch(self) -> str:
        return self.upgrades.watch(self.install, self.restart, clock=self.clock)

    def clock(self) -> float:
        self.ticks += 60
        return self.ticks

    def _die(self, where: str) -> None:
        if self.kill_at == where:
            self.kill_at = ""
            raise Killed


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    tool = tmp_path / "ckp-agent"
    tool.write_text("the old tool")
    made = Host(tmp_path)

    def verify(path: str, keyring: str, *, name: str, version: str | None = None, architecture: str | None = None) -> Any:
        found = Path(path).read_text()
        if version is not None and found != version:
            raise VerificationFailed(f"{path}: Version is {found!r}, expected is {version!r}", check="version")
        return type("Info", (), {"version": found})()

    monkeypatch.setattr(module, "TOOL", str(tool))
    monkeypatch.setattr(module, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(module, "verify_package", verify)
    monkeypatch.setattr(module, "run", lambda argv, **_: made.pulled.append(" ".join(argv)))
    return made


def left(host: Host) -> set[str]:
    return {path.name for path in Path(host.upgrades.folder).iterdir()}


def test_a_version_that_reports_stays_and_its_package_is_kept_for_a_later_return(host: Host) -> None:
    assert "is being replaced by" in host.begin()
    assert host.pulled[-1] == "systemctl --no-block restart ckp-agent-upgrade.service"
    assert Path(host.upgrades.guard).read_text() == "the old tool"
    assert host.watch() == f"the agent {NEW} reports"
    assert host.version == NEW
    assert "upgrade.json" not in left(host)
    assert [path.read_text() for path in Path(host.upgrades.folder).glob("*/ckp-agent.deb")] == [NEW]


@pytest.mark.parametrize("installable", [True, False])
def test_a_version_that_does_not_report_or_install_is_taken_back_and_not_tried_again(host: Host, installable: bool) -> None:
    host.works, host.installable = False, installable
    host.begin()
    assert host.watch().startswith(f"returned to {OLD}")
    assert host.version == OLD and host.started == (2 if installable else 1)
    with pytest.raises(AgentError, match="installed before and rolled back") as refused:
        host.begin()
    assert refused.value.permanent and refused.value.reason == "AgentUpgradeReturned"
    assert ("did not report" if installable else "dpkg said no") in str(refused.value)
    host.upgrades.forget_failure()
    assert "is being replaced" in host.begin(), "after the request was withdrawn the version may be requested again"


@pytest.mark.parametrize("works", [True, False])
@pytest.mark.parametrize("kill_at", ["before install", "after install", "before restart"])
def test_a_guard_that_is_killed_at_any_point_resumes(host: Host, kill_at: str, works: bool) -> None:
    host.works, host.kill_at = works, kill_at
    host.begin()
    with pytest.raises(Killed):
        host.watch()
    if kill_at == "after install" and works:
        host.upgrades.confirm(host.version)  # the power came back, and systemd started the new agent
    host.watch()
    assert host.version == (NEW if works else OLD)
    assert host.watch() == "there is no upgrade to complete"


def test_without_a_package_of_the_running_version_nothing_is_replaced(host: Host) -> None:
    with pytest.raises(AgentError, match="is not upgraded: there is no package of it to return to"):
        host.begin(AgentTarget(NEW, IMAGES[NEW]))
    assert "upgrade.json" not in left(host)
    host.begin()
    host.watch()
    IMAGES["0.3.0+3-ckp"] = "r/ckp/ckp-agent@sha256:" + "3" * 64
    assert "is being replaced" in host.begin(AgentTarget("0.3.0+3-ckp", IMAGES["0.3.0+3-ckp"])), "the kept package is one"


def test_a_package_of_another_version_is_refused_and_not_kept(host: Host) -> None:
    with pytest.raises(VerificationFailed):
        host.begin(AgentTarget("0.9.9-ckp", IMAGES[NEW], IMAGES[OLD]))
    assert left(host) == set()


def test_an_image_by_tag_is_refused(host: Host) -> None:
    with pytest.raises(AgentError, match="by digest"):
        host.begin(AgentTarget(NEW, "r/ckp/ckp-agent:latest", IMAGES[OLD]))


def test_a_package_that_was_changed_on_disk_is_not_installed(host: Host) -> None:
    host.begin()
    package = json.loads(Path(host.upgrades.record_path).read_text())["package"]
    Path(package).write_text("another")
    assert host.watch().startswith(f"returned to {OLD}")
    assert host.version == OLD


def test_a_confirmation_without_an_upgrade_leaves_nothing(host: Host) -> None:
    host.upgrades.confirm(OLD)
    assert not Path(host.upgrades.folder).exists()


class Actions:
    """A free host whose only work is to upgrade its agent."""

    def __init__(self) -> None:
        self.asked: list[AgentTarget] = []
        self.problem: AgentError | None = None
        self.taken_back = 0

    def step(self, name: str, member: Any, cancelled: Any) -> str:
        return ""

    def reset(self, cancelled: Any) -> str:
        return ""

    def settle(self, membership: Any) -> Settled:
        return Settled()

    def unhealthy(self) -> str:
        return ""

    def upgrade_agent(self, target: AgentTarget | None) -> str:
        if target is None:
            self.taken_back += 1
            return ""
        self.asked.append(target)
        if self.problem:
            raise self.problem
        return "handed over"


def test_the_engine_hands_over_once_and_shows_what_goes_wrong_without_stopping_its_work(tmp_path: Path) -> None:
    now = [0.0]
    actions = Actions()
    engine = Engine(Journal(str(tmp_path / "j.json"), str(tmp_path / "saved")), actions, clock=lambda: now[0])
    engine.submit(Desired(1, "h", None, TARGET))
    assert engine.work_once() is None and engine.work_once() is None
    assert actions.asked == [TARGET]
    actions.problem = AgentError("the registry does not answer", reason="PullFailed")
    other = AgentTarget("0.3.0", IMAGES[NEW])
    engine.submit(Desired(1, "h", None, other))
    wait = engine.work_once()
    assert wait is not None and wait > 0
    report, _ = engine.report()
    assert (report.phase, report.reason) == ("Free", "PullFailed"), "the host is free all the same"
    assert engine.work_once() is not None and actions.asked == [TARGET, other], "not before its time"
    now[0] += wait
    actions.problem = None
    engine.work_once()
    assert actions.asked == [TARGET, other, other]
    assert engine.report()[0].reason == ""
    engine.submit(Desired(2, "h", None))
    engine.work_once()
    engine.work_once()
    assert actions.taken_back == 1
    shutil.rmtree(tmp_path / "saved", ignore_errors=True)
