"""The agent's engine reaches what is wanted, whatever is wanted meanwhile and wherever it is killed."""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckp.agent import journal as journal_module
from ckp.agent.journal import Journal
from ckp.agent.messages import AgentTarget, BundleRef, Desired, JoinFile, Membership
from ckp.agent.node.engine import FIRST_DELAY, PERMANENT_DELAY, STEPS, Engine
from ckp.agent.node.settings import Settled
from ckp.hostkit.errors import AgentError, Cancelled, VerificationFailed
from ckp.hostkit.files import atomic_write


def member(name: str = "m1", bundle: str = "a", release: str = "v1.35.1") -> Membership:
    image = f"registry.example:5000/ckp/bundle@sha256:{bundle * 64}"
    return Membership(
        cluster="default/demo",
        machine=name,
        node_name=f"node-{name}",
        provider_id=f"byoh://h/{name}",
        release=release,
        bundle=BundleRef(image, "v1.35.1", release),
        files=(JoinFile("/run/kubeadm/join.yaml", "token"),),
        join_config="/run/kubeadm/join.yaml",
        sandbox_image="registry.example:5000/ckp/pause:3.10",
        registry="registry.example:5000",
    )


@pytest.fixture(scope="module", autouse=True)
def no_disk() -> Iterator[None]:
    """The thousands of writes of these tests need not reach the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _handle: None)
        yield


class Killed(BaseException):
    """The power went."""


@dataclass
class Power:
    """Counts every effect on the host and every write of the journal; goes at the chosen ones."""

    cuts: list[int] = field(default_factory=list)
    count: int = 0

    def tick(self) -> None:
        self.count += 1
        if self.cuts and self.count == self.cuts[0]:
            self.cuts.pop(0)
            self.count = 0
            raise Killed


@dataclass
class Host:
    """What survives a power cut on a simulated host."""

    power: Power
    bundle: str = ""
    prepared: bool = False
    packages: dict[str, str] = field(default_factory=dict)
    node: str = ""
    joins: list[str] = field(default_factory=list)
    broken: list[Exception] = field(default_factory=list)


class SimulatedActions:
    """Does to a Host what HostActions does to a real one, effect by effect; checks the rules that must hold at each."""

    def __init__(self, host: Host, journal: Journal) -> None:
        self.host, self.journal = host, journal
        self.verified = ""
        self.running: list[str] = []
        self.settled: list[Settled | Exception] = []

    def step(self, name: str, wanted: Membership, cancelled: Callable[[], bool]) -> str:
        self.running.append(name)
        if self.host.broken:
            raise self.host.broken.pop(0)
        host, tick = self.host, self.host.power.tick
        tick()
        if name == "pull":
            host.bundle = wanted.bundle.image
        elif name == "verify":
            if host.bundle != wanted.bundle.image:
                raise AgentError("the pulled bundle is no longer there", reason="BundleMissing")
            self.verified = host.bundle
        elif name == "prepare":
            host.prepared = True
        elif name == "install":
            assert self.verified == wanted.bundle.image, "only what this process verified may be installed"
            assert host.prepared
            self.journal.add_packages(["containerd", "kubelet"])
            for package in ("containerd", "kubelet"):
                tick()
                assert package in json.loads(Path(self.journal.path).read_text())["packages"], "the journal must know of it before it is there"
                host.packages[package] = wanted.bundle.image
        elif name == "join":
            assert set(host.packages) == {"containerd", "kubelet"}
            if host.node != wanted.node_name:
                assert host.node == "", "a host joins only when it is free"
                host.node = wanted.node_name
                host.joins.append(wanted.machine)
        elif name == "check" and host.node != wanted.node_name:
            raise AgentError("the kubelet is not well")
        tick()
        return ""

    def reset(self, cancelled: Callable[[], bool]) -> str:
        tick = self.host.power.tick
        self.running.append("reset")
        tick()
        if self.host.broken:
            raise self.host.broken.pop(0)
        self.host.node = ""
        tick()
        for package in list(self.journal.packages):
            self.host.packages.pop(package, None)
            tick()
        self.host.prepared = False
        self.host.bundle = ""
        tick()
        return ""

    def settle(self, membership: Membership) -> Settled:
        found = self.settled.pop(0) if self.settled else Settled()
        if isinstance(found, Exception):
            raise found
        return found

    def unhealthy(self) -> str:
        return ""

    def upgrade_agent(self, target: AgentTarget | None) -> str:
        raise AssertionError("no test here asks for another agent")


class Bench:
    """A host with its journal, and an engine that can be started again."""

    def __init__(self, folder: str, cuts: list[int] | None = None) -> None:
        self.power = Power(cuts or [])
        self.host = Host(self.power)
        self.folder = folder
        self.now = 0.0
        self.start()

    def start(self) -> None:
        self.journal = Journal(f"{self.folder}/journal.json", f"{self.folder}/saved")
        self.actions = SimulatedActions(self.host, self.journal)
        self.engine = Engine(self.journal, self.actions, clock=lambda: self.now, sync=lambda: None)

    def settle(self, rounds: int = 200) -> None:
        """Work until there is nothing to do but wait for a person or a check; waits take no time."""
        for _ in range(rounds):
            wait = self.engine.work_once()
            if wait is None or (wait == 60.0 and self.phase == "Joined"):
                return
            self.now += wait
        raise AssertionError(f"not settled: {self.engine.report()[0]}")

    @property
    def phase(self) -> str:
        return self.engine.report()[0].phase


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(str(tmp_path))


def test_a_membership_goes_through_its_steps_in_order_and_ends_joined(bench: Bench) -> None:
    bench.engine.submit(Desired(1, "h", member()))
    bench.settle()
    assert tuple(bench.actions.running) == STEPS
    report, _ = bench.engine.report()
    assert (report.phase, report.cluster, report.machine, report.release, report.generation) == ("Joined", "default/demo", "m1", "v1.35.1", 1)
    assert [(entry.step, entry.outcome) for entry in report.journal if entry.outcome == "done"] == [(step, "done") for step in STEPS]


def test_before_there_is_join_data_a_host_prepares_itself_and_with_it_only_the_join_is_left(bench: Bench) -> None:
    early = replace(member(), files=(), join_config="")
    bench.engine.submit(Desired(1, "h", early))
    bench.settle()
    assert bench.phase == "Prepared"
    assert tuple(bench.actions.running) == STEPS[: STEPS.index("join")]
    assert bench.actions.host.joins == []
    bench.actions.running.clear()
    bench.engine.submit(Desired(2, "h", member()))
    bench.settle()
    assert bench.phase == "Joined"
    assert tuple(bench.actions.running) == ("join", "check")
    assert bench.engine.report()[0].generation == 2


def test_a_node_takes_over_settings_without_joining_again(bench: Bench) -> None:
    bench.engine.submit(Desired(1, "h", member()))
    bench.settle()
    bench.actions.running.clear()
    bench.actions.settled = [
        Settled("certs.d: ca.crt"),
        Settled("", "SettingsChanging", "the kubelet is restarted"),
        Settled("", "R", "no", True),
        Settled("", "R", "no", True),
    ]
    bench.engine.submit(Desired(2, "h", replace(member(), registry_ca="new")))
    assert bench.engine.work_once() == 60.0
    assert bench.engine.report()[0].reason == ""
    bench.engine.work_once()
    report = bench.engine.report()[0]
    assert (report.phase, report.reason, report.message, report.generation) == ("Joined", "SettingsChanging", "the kubelet is restarted", 2)
    bench.engine.work_once()
    bench.engine.work_once()
    assert bench.engine.report()[0].reason == "R"
    entries = [(entry.outcome, entry.message) for entry in bench.journal.entries if entry.step == "settings"]
    assert entries == [("done", "certs.d: ca.crt"), ("failed", "no")], "what fails every minute is recorded once"
    bench.engine.work_once()
    assert bench.engine.report()[0].reason == "" and bench.actions.running == []


def test_a_fault_in_the_settings_does_not_end_the_agent(bench: Bench) -> None:
    bench.engine.submit(Desired(1, "h", member()))
    bench.settle()
    bench.actions.settled = [KeyError("x")]
    assert bench.engine.work_once() == 60.0
    assert bench.engine.report()[0].reason == "UnexpectedError"


def test_without_a_desired_state_nothing_is_done(bench: Bench) -> None:
    assert bench.engine.work_once() is None
    assert bench.actions.running == []
    assert bench.phase == "Free"


def test_a_free_host_that_shall_be_free_is_not_reset(bench: Bench) -> None:
    bench.engine.submit(Desired(1, "h", None))
    bench.settle()
    assert bench.actions.running == []


def test_leaving_resets_and_ends_free(bench: Bench) -> None:
    bench.engine.submit(Desired(1, "h", member()))
    bench.settle()
    bench.engine.submit(Desired(2, "h", None))
    bench.settle()
    assert bench.phase == "Free"
    assert bench.host == Host(bench.power, joins=["m1"])
    assert bench.journal.packages == [] and bench.journal.member is None


def test_a_failed_reset_is_tried_again(bench: Bench) -> None:
    """And until it succeeds the host is not called free: a machine's finalizer waits for that word."""
    bench.engine.submit(Desired(1, "h", member()))
    bench.settle()
    bench.host.broken = [AgentError("a mount is busy", reason="ResetIncomplete"), AgentError("a mount is still busy", reason="ResetIncomplete")]
    bench.engine.submit(Desired(2, "h", None))
    for attempt, message in enumerate(("a mount is busy", "a mount is still busy"), start=1):
        delay = bench.engine.work_once()
        report = bench.engine.report()[0]
        assert (report.phase, report.reason, report.attempts, report.message) == ("Resetting", "ResetIncomplete", attempt, message)
        assert delay
        bench.now += delay
    bench.settle()
    assert bench.phase == "Free" and bench.journal.member is None


def test_a_steps_changes_are_synced_before_the_journal_marks_it_done(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by chaos, seed 11: after a power cut the journal said joined, and the node's files, which nobody had synced, were gone for good."""
    happened: list[str] = []
    record = bench.journal.record

    def recorded(step: str, outcome: str, seconds: float = 0.0, message: str = "") -> None:
        record(step, outcome, seconds, message)
        happened.append(f"{step} {outcome}")

    monkeypatch.setattr(bench.journal, "record", recorded)
    bench.engine.sync = lambda: happened.append("sync")
    for generation, wanted in enumerate((member(), None)):
        bench.engine.submit(Desired(generation, "h", wanted))
        bench.settle()
    for step in ("pull", "prepare", "install", "join", "reset"):
        done = happened.index(f"{step} done")
        assert happened[done - 2 : done] == [f"{step} started", "sync"]


def test_a_host_does_not_report_that_it_is_free_before_its_journal_is_written(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.engine.submit(Desired(1, "h", member()))
    bench.settle()
    bench.engine.submit(Desired(2, "h", None))
    full = False

    def written(path: str, content: bytes | str, *, mode: int = 0o644) -> None:
        if full:
            raise OSError(28, "No space left on device")
        atomic_write(path, content, mode=mode)

    monkeypatch.setattr(journal_module, "atomic_write", written)
    reset = bench.actions.reset

    def then_full(cancelled: Callable[[], bool]) -> str:
        nonlocal full
        note = reset(cancelled)
        full = True
        return note

    bench.actions.reset = then_full  # type: ignore[method-assign]
    for _ in range(4):
        with pytest.raises(OSError, match="No space"):
            bench.engine.work_once()
        assert bench.phase != "Free"
    full = False
    bench.settle()
    assert bench.phase == "Free" and Journal(bench.journal.path, bench.journal.saved_dir).member is None


def test_another_membership_resets_first(bench: Bench) -> None:
    bench.engine.submit(Desired(1, "h", member("m1")))
    bench.settle()
    bench.engine.submit(Desired(2, "h", member("m2")))
    bench.settle()
    assert bench.host.joins == ["m1", "m2"]
    assert bench.actions.running[len(STEPS)] == "reset"


def test_new_bootstrap_data_for_a_joined_node_changes_nothing(bench: Bench) -> None:
    bench.engine.submit(Desired(1, "h", member()))
    bench.settle()
    bench.engine.submit(Desired(2, "h", replace(member(), files=(JoinFile("/run/kubeadm/join.yaml", "another token"),))))
    bench.settle()
    assert bench.host.joins == ["m1"]
    assert bench.engine.report()[0].generation == 2


def test_another_release_for_a_joined_node_is_reported_but_not_installed(bench: Bench) -> None:
    bench.engine.submit(Desired(1, "h", member()))
    bench.settle()
    bench.engine.submit(Desired(2, "h", member(bundle="b", release="v1.36.0")))
    bench.settle()
    report = bench.engine.report()[0]
    assert (report.phase, report.reason, report.release) == ("Joined", "UpgradeNotRequested", "v1.35.1")


def test_a_failed_step_is_retried_with_backoff_and_reports_the_cause(bench: Bench) -> None:
    bench.host.broken = [AgentError(f"no {number}", reason="PullFailed") for number in range(3)]
    bench.engine.submit(Desired(1, "h", member()))
    assert bench.engine.work_once() == 0.0
    delays = []
    for attempt in range(1, 4):
        delay = bench.engine.work_once()
        report = bench.engine.report()[0]
        assert (report.phase, report.reason, report.attempts, report.message) == ("Preflight", "PullFailed", attempt, f"no {attempt - 1}")
        assert delay
        delays.append(delay)
        assert bench.engine.work_once() == pytest.approx(delay), "nothing is done before its time"
        bench.now += delay
    assert delays[0] <= FIRST_DELAY and delays[0] < delays[1] < delays[2]
    bench.settle()
    report = bench.engine.report()[0]
    assert (report.phase, report.reason, report.attempts) == ("Joined", "", 0)


def test_a_failed_verification_is_shown_as_failed_and_tried_again_rarely(bench: Bench) -> None:
    bench.engine.submit(Desired(1, "h", member()))
    for _ in range(3):
        bench.engine.work_once()
    bench.host.broken = [VerificationFailed("kubelet.deb was changed after it was signed", key="ABCD")]
    assert bench.engine.work_once() == PERMANENT_DELAY
    report = bench.engine.report()[0]
    assert (report.phase, report.reason) == ("Failed", "VerificationFailed")
    assert "kubelet.deb" in report.message and "ABCD" in report.message
    assert bench.host.packages == {} and not bench.host.prepared, "nothing was changed"
    bench.now += PERMANENT_DELAY
    bench.settle()
    assert bench.actions.running.count("pull") == 2, "a bundle that does not verify is pulled again"


def test_something_else_that_is_wanted_ends_the_wait_of_a_failure(bench: Bench) -> None:
    bench.engine.submit(Desired(1, "h", member()))
    bench.engine.work_once()
    bench.host.broken = [AgentError("no", permanent=True)]
    assert bench.engine.work_once() == PERMANENT_DELAY
    bench.engine.submit(Desired(2, "h", member(bundle="b")))
    bench.settle()
    assert bench.host.packages["kubelet"].endswith("b" * 64)


def test_another_bundle_before_joining_is_pulled_verified_and_installed_over(bench: Bench) -> None:
    bench.engine.submit(Desired(1, "h", member()))
    while "install" not in bench.journal.done:
        bench.engine.work_once()
    bench.engine.submit(Desired(2, "h", member(bundle="b")))
    bench.settle()
    assert bench.host.packages["kubelet"].endswith("b" * 64)
    assert bench.host.joins == ["m1"]


def test_an_unexpected_error_is_reported_and_tried_again(bench: Bench) -> None:
    bench.host.broken = [OSError(28, "No space left on device"), KeyError("bug")]
    bench.engine.submit(Desired(1, "h", member()))
    bench.engine.work_once()
    bench.engine.work_once()
    assert bench.engine.report()[0].reason == "DiskFull"
    bench.now += 10
    bench.engine.work_once()
    assert bench.engine.report()[0].reason == "UnexpectedError"
    bench.now += 10
    bench.settle()
    assert bench.phase == "Joined"


def test_after_a_restart_a_joined_node_waits_for_the_hub_and_is_not_joined_again(bench: Bench) -> None:
    bench.engine.submit(Desired(7, "h", member()))
    bench.settle()
    bench.start()
    report = bench.engine.report()[0]
    assert (report.phase, report.generation) == ("Joined", 7)
    assert bench.engine.work_once() is None
    bench.engine.submit(Desired(7, "h", member()))
    bench.settle()
    assert bench.actions.running == [] and bench.host.joins == ["m1"]


def test_a_restart_between_verification_and_installation_verifies_again(bench: Bench) -> None:
    bench.engine.submit(Desired(1, "h", member()))
    while "prepare" not in bench.journal.done:
        bench.engine.work_once()
    bench.start()
    bench.engine.submit(Desired(1, "h", member()))
    bench.settle()
    assert bench.actions.running[:2] == ["verify", "install"]


def test_a_bundle_that_vanished_is_pulled_again(bench: Bench) -> None:
    bench.engine.submit(Desired(1, "h", member()))
    while "verify" not in bench.journal.done:
        bench.engine.work_once()
    bench.host.bundle = ""
    bench.start()
    bench.engine.submit(Desired(1, "h", member()))
    bench.settle()
    assert bench.phase == "Joined"


def test_a_newer_wish_gives_up_a_waiting_step(tmp_path: Path) -> None:
    bench = Bench(str(tmp_path))
    started, gone = threading.Event(), threading.Event()
    original = bench.actions.step

    def slow(name: str, wanted: Membership, cancelled: Callable[[], bool]) -> str:
        if name != "pull":
            return original(name, wanted, cancelled)
        started.set()
        while not cancelled():
            gone.wait(0.01)
        raise Cancelled("given up")

    bench.actions.step = slow  # type: ignore[method-assign]
    bench.engine.submit(Desired(1, "h", member()))
    worker = threading.Thread(target=bench.engine.run)
    worker.start()
    assert started.wait(5)
    bench.engine.submit(Desired(2, "h", None))
    deadline = 500
    while bench.phase != "Free" and deadline:
        gone.wait(0.01)
        deadline -= 1
    bench.engine.stop()
    worker.join(5)
    assert not worker.is_alive()
    assert bench.phase == "Free" and bench.actions.running[-1] == "reset"


@pytest.mark.parametrize(("slow_step", "again"), [("fetch", True), ("pull", False)])
def test_a_running_fetch_begins_again_with_the_new_time_for_it_and_no_other_step_does(tmp_path: Path, slow_step: str, again: bool) -> None:
    bench = Bench(str(tmp_path))
    bench.engine.submit(Desired(1, "h", replace(member(), image_fetch_seconds=900.0)))
    begun: list[float] = []
    original = bench.actions.step

    def slow(name: str, wanted: Membership, cancelled: Callable[[], bool]) -> str:
        if name == slow_step:
            begun.append(wanted.image_fetch_seconds)
            if len(begun) == 1:
                bench.engine.submit(Desired(2, "h", replace(member(), image_fetch_seconds=3600.0)))
                if cancelled():
                    raise Cancelled("given up")
        return original(name, wanted, cancelled)

    bench.actions.step = slow  # type: ignore[method-assign]
    bench.settle()
    assert begun == ([900.0, 3600.0] if again else [900.0])
    assert bench.phase == "Joined" and len(bench.host.joins) == 1


def test_each_change_is_published_once_and_waiters_see_it(bench: Bench) -> None:
    _, version = bench.engine.report()
    bench.engine.submit(Desired(1, "h", member()))
    _, later = bench.engine.report()
    assert later > version
    bench.engine.submit(Desired(1, "h", member()))
    assert bench.engine.report()[1] == later, "the same again is no change"


WISHES = st.lists(st.sampled_from([None, member("m1"), member("m2"), member("m1", "b")]), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    wishes=WISHES,
    cuts=st.lists(st.integers(min_value=1, max_value=60), max_size=12),
    patience=st.lists(st.integers(min_value=0, max_value=25), min_size=4, max_size=4),
)
def test_killed_anywhere_and_asked_for_anything_it_ends_where_it_should(wishes: list[Membership | None], cuts: list[int], patience: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        bench = Bench(folder)
        bench.power.cuts = list(cuts)

        def written(path: str, content: bytes | str, *, mode: int = 0o644) -> None:
            bench.power.tick()  # before the write: the old state stays
            atomic_write(path, content, mode=mode)
            bench.power.tick()  # after it: the new state is there, and nothing that follows

        patch.setattr(journal_module, "atomic_write", written)

        def survive(action: Callable[[], object]) -> None:
            while True:
                try:
                    action()
                    return
                except Killed:
                    bench.start()
                    bench.engine.submit(wish)

        def turn() -> None:
            bench.engine.work_once()  # after a cut it is another engine

        for generation, desired in enumerate(wishes):
            wish = Desired(generation, "h", desired)
            bench.engine.submit(wish)
            if generation < len(wishes) - 1:
                for _ in range(patience[generation]):  # not all wishes are waited for
                    survive(turn)
        survive(bench.settle)
        final = wishes[-1]
        if final is None:
            assert bench.phase == "Free"
            assert (bench.host.node, bench.host.packages, bench.host.prepared, bench.host.bundle) == ("", {}, False, "")
        else:
            assert bench.phase == "Joined"
            assert bench.host.node == final.node_name
            asked = [wish.machine for wish in wishes if wish is not None]
            assert len(bench.host.joins) <= len(asked), "no membership is joined twice"


@pytest.mark.parametrize("cut", range(1, 75))
def test_a_single_power_cut_at_every_point_of_join_and_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int) -> None:
    bench = Bench(str(tmp_path), [cut])

    def written(path: str, content: bytes | str, *, mode: int = 0o644) -> None:
        bench.power.tick()
        atomic_write(path, content, mode=mode)
        bench.power.tick()

    monkeypatch.setattr(journal_module, "atomic_write", written)
    for wish in (Desired(1, "h", member()), Desired(2, "h", None)):
        bench.engine.submit(wish)
        try:
            bench.settle()
        except Killed:
            bench.start()
            bench.engine.submit(wish)
            bench.settle()
    assert bench.phase == "Free"
    assert bench.host.joins == ["m1"]
    assert (bench.host.node, bench.host.packages) == ("", {})
