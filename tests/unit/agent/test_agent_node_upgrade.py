"""A node is upgraded in place, or is what it was: wherever it is killed, whatever fails, and without a hub."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ckp.agent import journal as journal_module
from ckp.agent.journal import Journal, Member
from ckp.agent.messages import AgentTarget, BundleRef, Desired, Membership, NodeUpgrade, UpgradeReport
from ckp.agent.node.engine import STEPS, Engine
from ckp.agent.node.settings import Settled
from ckp.agent.node.upgrade import BACK, INSTALL, MAX_RUNS, PREPARE, UPGRADE, Upgrades
from ckp.hostkit.files import atomic_write
from tests.simulators.node_upgrade import NodeSimulator, SimulatedUpgrade
from tests.support.kills import stride
from tests.unit.agent.test_agent_engine import Killed, Power, member

OLD, NEW, NEXT = "v1.34.3", "v1.35.1", "v1.35.2"


def image(letter: str) -> str:
    return f"registry.example:5000/ckp/bundle@sha256:{letter * 64}"


OLD_IMAGE, NEW_IMAGE, NEXT_IMAGE = image("a"), image("b"), image("c")


def wanted(phase: str = "install", request: str = "1", release: str = NEW, bundle: str = NEW_IMAGE) -> Membership:
    return replace(member(bundle="a", release=OLD), upgrade=NodeUpgrade(request, release, BundleRef(bundle, f"{release}-ckp", release), phase))


PLAIN, COMMITTED = member(bundle="a", release=OLD), member(bundle="b", release=NEW)


@pytest.fixture(scope="module", autouse=True)
def no_disk() -> Iterator[None]:
    """The thousands of writes of these tests need not reach the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _handle: None)
        yield


class Joined:
    """The other actions on a host that has joined; it notes what was done."""

    def __init__(self, node: NodeSimulator) -> None:
        self.node = node
        self.running: list[str] = []

    def step(self, name: str, membership: Membership, cancelled: Callable[[], bool]) -> str:
        self.running.append(name)
        return ""

    def reset(self, cancelled: Callable[[], bool]) -> str:
        self.running.append("reset")
        return ""

    def settle(self, membership: Membership) -> Settled:
        self.running.append("settle")
        return Settled()

    def unhealthy(self) -> str:
        return "" if self.node.kubelet else "the kubelet is not healthy"

    def upgrade_agent(self, target: AgentTarget | None) -> str:
        self.running.append("upgrade-agent")
        return "handed over"


class Bench:
    """A node of OLD with its journal, and an agent that can be killed and started again."""

    def __init__(self, folder: str, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.power = Power()
        self.now = 0.0
        self.node = NodeSimulator(OLD, OLD_IMAGE)
        journal = Journal(f"{folder}/journal.json", f"{folder}/saved")
        journal.begin(Member(PLAIN.key(), OLD, OLD_IMAGE, PLAIN.cluster, PLAIN.machine))
        for step in STEPS:
            journal.finish_step(step, 0.0)
        self.node.tick = self.power.tick

        def written(path: str, content: bytes | str, *, mode: int = 0o644) -> None:
            self.node.write()  # before: the old state stays, or the disk is full
            atomic_write(path, content, mode=mode)
            self.power.tick()  # after: the new state is there, and nothing that follows

        patch.setattr(journal_module, "atomic_write", written)
        self.start()

    def start(self) -> None:
        self.journal = Journal(f"{self.folder}/journal.json", f"{self.folder}/saved")
        self.actions = Joined(self.node)
        self.steps = SimulatedUpgrade(self.node, self.journal)
        self.upgrades = Upgrades(self.journal, self.steps, clock=lambda: self.now, sync=self.node.sync)
        self.engine = Engine(self.journal, self.actions, upgrades=self.upgrades, clock=lambda: self.now, sync=self.node.sync)

    def turn(self) -> float | None:
        """As Engine.run does it: without a journal nothing is done, and it is tried again."""
        try:
            return self.engine.work_once()
        except OSError:
            return 10.0

    def work(self, desired: Membership | None, generation: int = 2, rounds: int = 300) -> UpgradeReport | None:
        self.engine.submit(Desired(generation, "h", desired))
        for _ in range(rounds):
            wait = self.turn()
            if wait is None or (wait == 60.0 and (self.report is None or self.report.state in ("Prepared", "Done", "Failed"))):
                return self.report
            self.now += wait
        raise AssertionError(f"not settled: {self.report}")

    def survive(self, desired: Membership | None, cut: Callable[[], None], *, hub: bool = True) -> UpgradeReport | None:
        """Work until the end, through one kill."""
        try:
            return self.work(desired)
        except Killed:
            cut()
            self.start()
            if not hub:
                for _ in range(50):
                    wait = self.turn()
                    if wait is None:
                        break
                    self.now += wait
                assert not self.upgrades.active, "a node does not wait for the hub between two releases"
            return self.work(desired)

    @property
    def report(self) -> UpgradeReport | None:
        return self.engine.report()[0].upgrade

    def check_whole(self) -> str:
        """The release that all of the node, and its journal, are of."""
        assert self.journal.member is not None
        release = self.node.wholly()
        assert release == self.journal.member.release == self.engine.report()[0].release
        assert self.journal.member.bundle == {OLD: OLD_IMAGE, NEW: NEW_IMAGE, NEXT: NEXT_IMAGE}[release]
        assert self.journal.member.bundle in self.node.files.bundles
        return release


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(str(tmp_path), monkeypatch)


def state(report: UpgradeReport | None) -> tuple[str, str, bool]:
    assert report is not None
    return report.state, report.reason, report.restored


# -- the way it goes -------------------------------------------------------------------------------------------------------


def test_a_prepared_node_is_not_changed_and_says_so(bench: Bench) -> None:
    report = bench.work(wanted("prepare"))
    assert state(report) == ("Prepared", "", False)
    assert bench.node.ran == list(PREPARE) and bench.node.restarts == 0
    assert bench.check_whole() == OLD
    assert bench.node.files.bundles == {OLD_IMAGE, NEW_IMAGE}
    assert bench.actions.running == ["settle"], "a node that is prepared goes on as before"


def test_an_upgrade_goes_through_its_steps_and_keeps_the_old_bundle_until_it_is_confirmed(bench: Bench) -> None:
    bench.work(wanted("prepare"))
    report = bench.work(wanted("install"), 3)
    assert state(report) == ("Done", "", False)
    assert report is not None and "v1.34.3 was replaced by v1.35.1; configuration kept" in report.message
    assert bench.node.ran == [*PREPARE, *INSTALL] and bench.node.restarts == 1
    assert bench.check_whole() == NEW
    assert OLD_IMAGE in bench.node.files.bundles
    bench.work(COMMITTED, 4)
    assert bench.report is None and bench.node.files.bundles == {NEW_IMAGE} and bench.node.files.saved is None
    assert bench.check_whole() == NEW


def test_an_install_that_was_not_prepared_prepares_first(bench: Bench) -> None:
    bench.work(wanted("install"))
    assert bench.node.ran == [*PREPARE, *INSTALL] and bench.check_whole() == NEW


def test_the_same_release_again_does_nothing(bench: Bench) -> None:
    report = bench.work(wanted("install", release=OLD, bundle=OLD_IMAGE))
    assert state(report) == ("Done", "", False) and bench.node.ran == []
    bench.work(wanted("install", "2"), 3)
    bench.node.ran.clear()
    assert state(bench.work(wanted("install", "3"), 4)) == ("Done", "", False)
    assert bench.node.ran == [] and bench.node.restarts == 1


def test_what_was_prepared_is_dropped_with_its_request(bench: Bench) -> None:
    bench.work(wanted("prepare"))
    bench.work(PLAIN, 3)
    assert bench.report is None and bench.node.files.bundles == {OLD_IMAGE}
    bench.work(wanted("prepare", "2"), 4)
    bench.work(wanted("prepare", "3", NEXT, NEXT_IMAGE), 5)
    assert bench.node.files.bundles == {OLD_IMAGE, NEXT_IMAGE}


def test_what_was_prepared_for_another_request_is_not_prepared_twice(bench: Bench) -> None:
    bench.work(wanted("prepare", "p"))
    bench.node.ran.clear()
    report = bench.work(wanted("install", "i"), 3)
    assert report is not None and report.request == "i" and bench.node.ran == list(INSTALL)


def test_the_agent_is_not_upgraded_while_the_node_is_between_two_releases(bench: Bench) -> None:
    bench.node.api_away = True
    bench.engine.submit(Desired(2, "h", wanted()))
    while not bench.upgrades.active:
        bench.turn()
    bench.engine.submit(Desired(3, "h", wanted(), AgentTarget("9", "r/ckp-agent@sha256:" + "0" * 64)))
    while bench.upgrades.active:
        wait = bench.turn()
        assert "upgrade-agent" not in bench.actions.running or not bench.upgrades.active
        bench.now += wait or 0.0
    bench.turn()
    assert "upgrade-agent" in bench.actions.running


def test_a_host_that_leaves_is_reset_whatever_it_was_upgraded_to(bench: Bench) -> None:
    bench.node.api_away = True
    bench.engine.submit(Desired(2, "h", wanted()))
    while "configure" not in bench.node.ran:
        bench.turn()
    bench.engine.submit(Desired(3, "h", None))
    bench.turn()
    assert bench.actions.running[-1] == "reset" and bench.journal.member is None and bench.report is None


def test_an_upgrade_that_was_withdrawn_while_it_installs_ends_all_the_same(bench: Bench) -> None:
    bench.engine.submit(Desired(2, "h", wanted()))
    while "install" not in bench.node.ran:
        bench.turn()
    bench.work(PLAIN, 3)
    assert state(bench.report)[0] == "Done" and bench.check_whole() == NEW
    assert OLD_IMAGE in bench.node.files.bundles, "nobody has confirmed the new release yet"


# -- what fails ------------------------------------------------------------------------------------------------------------


def test_what_may_pass_is_waited_for_while_nothing_is_changed(bench: Bench) -> None:
    bench.node.registry_away = True
    bench.engine.submit(Desired(2, "h", wanted()))
    for _ in range(20):
        bench.now += bench.turn() or 0.0
    assert state(bench.report) == ("Preparing", "PullFailed", False)
    assert "settle" in bench.actions.running, "meanwhile it is a node as any other"
    assert bench.check_whole() == OLD
    bench.node.registry_away = False
    assert state(bench.work(wanted())) == ("Done", "", False)


def test_a_bundle_that_does_not_verify_fails_for_good_and_changes_nothing(bench: Bench) -> None:
    bench.node.bad_bundles = {NEW_IMAGE}
    assert state(bench.work(wanted())) == ("Failed", "VerificationFailed", True)
    assert bench.check_whole() == OLD and bench.node.restarts == 0
    bench.node.ran.clear()
    bench.node.bad_bundles = set()
    assert state(bench.work(wanted(), 3)) == ("Failed", "VerificationFailed", True) and bench.node.ran == []
    assert state(bench.work(wanted(request="2"), 4)) == ("Done", "", False)


FAULTS: dict[str, tuple[dict[str, object], str]] = {
    "a package that dpkg can't install": ({"bad_package": (NEW, "kubelet")}, "InstallFailed"),
    "the first package already": ({"bad_package": (NEW, "containerd")}, "InstallFailed"),
    "an API server that is away": ({"api_away": True}, "KubeadmUpgradeFailed"),
    "a kubelet that does not start": ({"bad_kubelets": {NEW}}, "KubeletUnhealthy"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failure_puts_the_old_release_back_and_is_not_tried_again_until_it_is_requested_again(bench: Bench, fault: str) -> None:
    knobs, reason = FAULTS[fault]
    for name, value in knobs.items():
        setattr(bench.node, name, value)
    report = bench.work(wanted())
    assert state(report) == ("Failed", reason, True)
    assert report is not None and report.message.endswith("this node is of v1.34.3 again")
    assert bench.check_whole() == OLD
    bench.node.ran.clear()
    bench.start()
    bench.work(wanted(), 3)
    assert bench.node.ran == [], "nothing loops, also not after a restart of the agent"
    bench.node.bad_package, bench.node.api_away, bench.node.bad_kubelets = ("", ""), False, set()
    assert state(bench.work(wanted(request="2"), 4)) == ("Done", "", False)
    assert bench.check_whole() == NEW


@pytest.mark.parametrize("step", [*PREPARE, *INSTALL])
def test_a_disk_that_is_full_at_any_step_leaves_a_node_of_one_release_once_there_is_space_again(bench: Bench, step: str) -> None:
    bench.engine.submit(Desired(2, "h", wanted()))
    for _ in range(100):
        record = bench.upgrades.record
        if record is not None and record.step == step:
            break
        bench.turn()
    bench.node.full = True
    for _ in range(30):
        bench.now += bench.turn() or 0.0
    bench.node.full = False
    bench.work(wanted(), 3)
    assert bench.check_whole() in (OLD, NEW)
    assert state(bench.report)[0] == ("Done" if bench.check_whole() == NEW else "Failed")


def test_a_step_at_which_the_host_ends_each_time_is_given_up(bench: Bench) -> None:
    bench.node.crashes_at = "restart"
    bench.engine.submit(Desired(2, "h", wanted()))
    for _ in range(200):
        try:
            wait = bench.turn()
        except KeyboardInterrupt:
            bench.node.power_cut()
            bench.start()
            bench.engine.submit(Desired(2, "h", wanted()))
            continue
        if wait == 60.0:
            break
        bench.now += wait or 0.0
    assert bench.node.ran.count("restart") == MAX_RUNS
    assert state(bench.report) == ("Failed", "Interrupted", True) and bench.check_whole() == OLD


def test_where_there_is_no_safe_way_back_the_new_packages_stay_and_another_request_goes_on_with_them(bench: Bench) -> None:
    bench.node.one_way, bench.node.bad_kubelets = True, {NEW}
    report = bench.work(wanted())
    assert state(report) == ("Failed", "KubeletUnhealthy", False)
    assert report is not None and "are not put back: containerd 1.7 may not read" in report.message
    assert set(bench.node.files.packages.values()) == {NEW}
    bench.work(PLAIN, 3)
    assert bench.report is not None, "withdrawn or not, it is so"
    bench.node.bad_kubelets = set()
    assert state(bench.work(wanted(request="2"), 4)) == ("Done", "", False)
    assert bench.check_whole() == NEW


def test_a_way_back_that_fails_is_tried_until_it_succeeds_and_keeps_its_first_reason(bench: Bench) -> None:
    bench.node.bad_kubelets, bench.node.bad_package = {NEW}, (OLD, "kubelet")
    bench.engine.submit(Desired(2, "h", wanted()))
    for _ in range(60):
        bench.now += bench.turn() or 0.0
    report = bench.report
    assert state(report) == ("RollingBack", "KubeletUnhealthy", False)
    assert report is not None and "it is tried again to put back v1.34.3: dpkg: error" in report.message
    bench.node.bad_package = ("", "")
    assert state(bench.work(wanted(), 3)) == ("Failed", "KubeletUnhealthy", True) and bench.check_whole() == OLD


# -- kills -----------------------------------------------------------------------------------------------------------------

CUTS = range(1, 140, stride(5))


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("power", [False, True], ids=["killed", "power cut"])
def test_an_upgrade_that_is_killed_anywhere_goes_on_with_and_without_the_hub(bench: Bench, cut: int, power: bool) -> None:
    bench.power.cuts = [cut]
    report = bench.survive(wanted(), bench.node.power_cut if power else lambda: None, hub=cut % 2 == 0)
    assert state(report) == ("Done", "", False) and bench.check_whole() == NEW
    bench.power.cuts = []
    bench.work(COMMITTED, 9)
    assert bench.node.files.bundles == {NEW_IMAGE}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("fault", ["a kubelet that does not start", "a package that dpkg can't install"])
def test_a_way_back_that_is_killed_anywhere_ends_at_the_old_release(bench: Bench, cut: int, fault: str) -> None:
    for name, value in FAULTS[fault][0].items():
        setattr(bench.node, name, value)
    bench.power.cuts = [cut]
    report = bench.survive(wanted(), bench.node.power_cut, hub=cut % 2 == 1)
    assert state(report)[0::2] == ("Failed", True) and bench.check_whole() == OLD


def test_the_kills_reach_every_step(bench: Bench) -> None:
    """The cuts above go beyond the last instruction of an upgrade and of a way back."""
    bench.work(wanted())
    forward = bench.power.count
    bench.node.bad_kubelets = {NEXT}
    bench.power.count = 0
    bench.work(replace(COMMITTED, upgrade=wanted(request="2", release=NEXT, bundle=NEXT_IMAGE).upgrade), 3)
    assert bench.node.ran[-len(BACK) :] == list(BACK)
    assert 30 < forward < CUTS.stop and 30 < bench.power.count < CUTS.stop


def test_a_journal_of_the_upgrade_is_read_by_the_next_process(bench: Bench) -> None:
    bench.work(wanted("prepare"))
    record = bench.upgrades.record
    bench.start()
    assert bench.upgrades.record == record and bench.journal.notes[UPGRADE]["state"] == "Prepared"
    bench.journal.note(UPGRADE, {**bench.journal.notes[UPGRADE], "of_a_newer_agent": 1})
    assert bench.upgrades.record == record


def test_a_fault_of_the_program_does_not_leave_a_node_half_way(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(*_: object) -> str:
        raise ValueError("x")

    monkeypatch.setattr(SimulatedUpgrade, "_configure", fault)
    assert state(bench.work(wanted())) == ("Failed", "UnexpectedError", True) and bench.check_whole() == OLD


def test_a_wait_that_is_cancelled_because_the_agent_stops_is_no_failure(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from ckp.hostkit.errors import Cancelled

    def stopped(*_: object) -> str:
        bench.engine.stop()
        raise Cancelled("the agent stops")

    with monkeypatch.context() as patch:
        patch.setattr(SimulatedUpgrade, "_check", stopped)
        bench.engine.submit(Desired(2, "h", wanted()))
        bench.engine.run()
    record = bench.upgrades.record
    assert record is not None and (record.step, record.runs, record.failures) == ("check", 0, 0)
    bench.start()
    assert state(bench.work(wanted())) == ("Done", "", False)


def test_errors_name_their_step_in_the_journal(bench: Bench) -> None:
    bench.node.bad_kubelets = {NEW}
    bench.work(wanted())
    entries = [(entry.step, entry.outcome) for entry in bench.journal.entries if entry.step.startswith("upgrade-")]
    assert ("upgrade-check", "failed") in entries and ("upgrade-check-old", "done") in entries
