"""Reconciles the host: compares the desired state with the journal, and does the next step. Level-triggered, one step at a time.

    desired: free     journal: no member      -> Free
    desired: free     journal: a member       -> reset                      -> Free
    desired: M        journal: M              -> the first step not done    -> ... -> Joined
    desired: M, joined                        -> its settings, once a minute and with each new desired state
    desired: M, joined, with an upgrade       -> the next step of the upgrade (ckp.agent.node.upgrade), and nothing else while the node is between releases
    desired: M, without join data             -> all steps before the join  -> Prepared
    desired: M        journal: another member -> reset, then as above

A newer desired state takes effect after the running step (which may end its waits early). A failed step is retried with backoff. One that
fails permanently (such as a verification) has the phase Failed and is retried rarely, or at once when the desired state changes.
The engine never acts on an old desired state: after a restart it waits until the hub sends it. Only a node that is between two releases is brought to one
of them at once. A reset comes before an upgrade, and an upgrade of the agent after it.
"""

from __future__ import annotations

import functools
import random
import threading
import time
from dataclasses import replace
from typing import Callable, Optional, Protocol

from ckp.agent.journal import Journal, Member
from ckp.agent.messages import JOURNAL_SENT, AgentTarget, Desired, Membership, Report
from ckp.agent.node.settings import Settled
from ckp.agent.node.upgrade import Upgrades
from ckp.hostkit.errors import AgentError, Cancelled
from ckp.hostkit.files import sync_host
from ckp.hostkit.logs import log

STEPS = ("preflight", "pull", "verify", "prepare", "install", "fetch", "join", "check")
PHASE_OF = {
    "preflight": "Preflight",
    "pull": "Pulling",
    "verify": "Verifying",
    "prepare": "Preparing",
    "install": "Installing",
    "fetch": "Fetching",
    "join": "Joining",
    "check": "Checking",
}
PERSISTENT = ("pull", "prepare", "install", "join", "reset")
"""Steps that change the host's files. Their changes are synced to the disk before the journal marks them done: a power cut could undo them unnoticed."""
FIRST_DELAY, AGENT_FIRST_DELAY, LONGEST_DELAY, PERMANENT_DELAY = 2.0, 10.0, 300.0, 900.0
HEALTH_SECONDS = 60.0
JOURNAL_SECONDS = 10.0


class Actions(Protocol):
    """What the engine can do on a host. Every action is idempotent, and may be repeated after an interruption at any point."""

    def step(self, name: str, membership: Membership, cancelled: Callable[[], bool]) -> str:
        """Do one of STEPS; returns a note for the journal. Raises AgentError, or Cancelled if `cancelled` returned True."""
        ...

    def reset(self, cancelled: Callable[[], bool]) -> str:
        """Undo everything that the journal records; returns a note for it. Raises AgentError."""
        ...

    def settle(self, membership: Membership) -> Settled:
        """One pass over the settings of a joined host, which follow its membership without another join."""
        ...

    def unhealthy(self) -> str:
        """Why a joined host is unhealthy; "" if it is healthy."""
        ...

    def upgrade_agent(self, target: AgentTarget | None) -> str:
        """Hand over to the guard that upgrades this agent; returns a note, "" if the target runs already. Raises AgentError.

        None: there is no request any longer, so a version that was taken back before may be requested again.
        """
        ...


class Engine:
    """See the module's docstring. `run` is the worker's loop; all other methods may be called from other threads."""

    def __init__(
        self,
        journal: Journal,
        actions: Actions,
        *,
        upgrades: Optional[Upgrades] = None,
        clock: Callable[[], float] = time.monotonic,
        sync: Callable[[], None] = sync_host,
    ) -> None:
        self.journal = journal
        self.actions = actions
        self.upgrades = upgrades  # None: of simulated hosts that are never upgraded
        self.clock = clock
        self.sync = sync
        self._changed = threading.Condition()
        self._version = 0
        self._stopped = False
        self._desired: Desired | None = None
        self._verified = False  # for this process only: the bundle on the disk is verified again after every start
        self._attempts = 0
        self._failed_step = ""
        self._reason = ""
        self._message = ""
        self._permanent = False
        self._retry_at = 0.0
        self._failed_for: Membership | None = None
        self._agent_seen: AgentTarget | None = None
        self._agent_problem: AgentError | None = None
        self._agent_retry_at = 0.0
        self._agent_attempts = 0
        self._unsettled = Settled()
        self._phase = "Joined" if self._joined() else PHASE_OF.get(self._next_step() or "", "Preflight") if journal.member else "Free"

    # -- for other threads -------------------------------------------------------------------------------------------------

    def submit(self, desired: Desired) -> None:
        """Set the desired state that the hub sent last."""
        with self._changed:
            if self._desired == desired:
                return
            self._desired = desired
            self._changed.notify_all()
        self._publish()

    def stop(self) -> None:
        """Make run() return after the running step."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def wake(self) -> None:
        """Wake up all wait_change calls, so that they check their conditions."""
        with self._changed:
            self._changed.notify_all()

    def report(self) -> tuple[Report, int]:
        """The observed state for the hub, and its version for wait_change."""
        with self._changed:
            member = self.journal.member or Member(key="")
            generation = self._desired.generation if self._desired else int(self.journal.notes.get("generation", 0))
            return (
                Report(
                    generation=generation,
                    phase=self._phase,
                    cluster=member.cluster,
                    machine=member.machine,
                    release=member.release,
                    reason=self._reason or (self._agent_problem.reason if self._agent_problem else ""),
                    message=(self._message or (self._agent_problem.sentence() if self._agent_problem else ""))[:2000],
                    attempts=self._attempts,
                    journal=self.journal.last(JOURNAL_SENT),
                    upgrade=self.upgrades.report() if self.upgrades else None,
                ),
                self._version,
            )

    def wait_change(self, version: int, timeout: float, closed: threading.Event) -> None:
        """Wait until the state is newer than `version`, `timeout` seconds have passed, or `closed` is set and wake() was called."""
        with self._changed:
            self._changed.wait_for(lambda: self._version != version or closed.is_set() or self._stopped, timeout)

    # -- the loop ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until stop()."""
        while True:
            with self._changed:
                if self._stopped:
                    return
                before = self._desired
            try:
                wait = self.work_once()
            except OSError as error:  # the journal can't be written (a full disk): no step may run without it
                log(f"the journal can't be written: {error}")
                with self._changed:
                    self._reason, self._message = "JournalNotWritable", f"the agent's journal can't be written: {error.strerror}"
                self._publish()
                wait = JOURNAL_SECONDS
            with self._changed:
                if wait != 0.0:
                    self._changed.wait_for(functools.partial(self._has_news, before), wait)

    def _has_news(self, seen: Desired | None) -> bool:
        return self._stopped or self._desired is not seen

    def work_once(self) -> float | None:
        """Do the next step. Returns 0.0 to continue at once, seconds to wait, or None: nothing to do until the desired state changes."""
        with self._changed:
            desired = self._desired
        if desired is None:
            return self._upgrade_node(None) if self._between_releases() else None
        again = None if self._between_releases() else self._upgrade_agent(desired.agent)
        wait = self._work(desired)
        return wait if again is None else again if wait is None else min(wait, again)

    def _upgrade_agent(self, target: AgentTarget | None) -> float | None:
        """Between two steps, start a requested upgrade of the agent. A failure is shown, and retried with a backoff of its own; other work continues.

        Returns the seconds until the next attempt, or None.
        """
        if target != self._agent_seen:
            self._agent_seen, self._agent_problem, self._agent_retry_at, self._agent_attempts = target, None, 0.0, 0
            if target is None:
                self.actions.upgrade_agent(None)
                self._publish()
        if target is None or self._agent_retry_at == float("inf"):
            return None
        left = self._agent_retry_at - self.clock()
        if left > 0:
            return left
        started = self.clock()
        try:
            note = self.actions.upgrade_agent(target)
        except AgentError as error:
            self._agent_problem = error
            self._agent_attempts += 1
            delay = _delay(error, self._agent_attempts, AGENT_FIRST_DELAY)
            self._agent_retry_at = self.clock() + delay
            self.journal.record("upgrade-agent", "failed", self.clock() - started, error.sentence())
            log(f"upgrade-agent: failed, next in {delay:.0f} s\n{error.render()}")
            self._publish()
            return delay
        self._agent_problem, self._agent_retry_at = None, float("inf")
        if note:
            self.journal.record("upgrade-agent", "started", self.clock() - started, note)
            log(f"upgrade-agent: {note}")
        self._publish()
        return None

    def _work(self, desired: Desired) -> float | None:
        wanted, have = desired.membership, self.journal.member
        if self._failed_step and self._failed_for == wanted:
            left = self._retry_at - self.clock()
            if left > 0:
                return left
        elif self._failed_step:
            self._clear_failure()
        if have is not None and (wanted is None or have.key != wanted.key()):
            return self._do("reset", wanted, "Resetting", lambda: self.actions.reset(lambda: False))
        if wanted is None:
            self._show("Free")
            self._verified = False
            return None
        if have is None:
            self.journal.begin(Member(wanted.key(), wanted.release, wanted.bundle.image, wanted.cluster, wanted.machine))
            self._verified = False
            return 0.0
        if not self._joined() and have.bundle != wanted.bundle.image:
            self._other_bundle(wanted)
        step = self._next_step()
        if step is None:
            return self._joined_state(wanted)
        if step == "join" and not wanted.files:
            self._show("Prepared")  # the control plane is not ready yet: wait for the join data
            return None
        if step in ("install", "prepare", "join") and not self._verified and "install" not in self.journal.done:
            step = "verify"
        return self._do(step, wanted, PHASE_OF[step], lambda: self.actions.step(step, wanted, lambda: self._superseded(wanted, step)))

    def _do(self, step: str, wanted: Membership | None, phase: str, action: Callable[[], str]) -> float | None:
        self._show(phase, keep_failure=self._failed_step == step)
        self.journal.record(step, "started")
        started = self.clock()
        try:
            note = action()
            if step in PERSISTENT:
                self.sync()  # kubeadm and the scripts of packages do not sync what they write
        except Cancelled as error:
            self.journal.record(step, "failed", self.clock() - started, error.brief)
            return 0.0
        except AgentError as error:
            return self._failed(step, wanted, phase, error, started)
        except Exception as error:  # a full disk, a bug: the agent keeps running, reports it and retries
            known = AgentError(f"{step}: {type(error).__name__}: {error}", reason="DiskFull" if getattr(error, "errno", None) == 28 else "UnexpectedError")
            return self._failed(step, wanted, phase, known, started)
        seconds = self.clock() - started
        if step == "reset":
            self.journal.forget()
            self.journal.record(step, "done", seconds, note)
        else:
            if step == "verify":
                self._verified = True
            self.journal.finish_step(step, seconds, note)
        log(f"{step}: done in {seconds:.1f} s{': ' + note if note else ''}")
        self._clear_failure()
        self._publish()
        return 0.0

    def _failed(self, step: str, wanted: Membership | None, phase: str, error: AgentError, started: float) -> float:
        self._attempts = self._attempts + 1 if self._failed_step == step else 1
        self._failed_step = step
        self._failed_for = wanted
        self._permanent = error.permanent
        delay = _delay(error, self._attempts, FIRST_DELAY)
        self._retry_at = self.clock() + delay
        self._reason = error.reason
        self._message = error.sentence()
        if step == "verify":
            self.journal.undo_steps(["pull", "verify"])  # the bundle on the disk does not verify: the next attempt pulls it again
        self._phase = "Failed" if error.permanent else phase
        try:
            self.journal.record(step, "failed", self.clock() - started, error.sentence())
        except OSError as problem:
            log(f"the journal can't be written: {problem}")
        log(f"{step}: attempt {self._attempts} failed, next in {delay:.0f} s\n{error.render()}")
        self._publish()
        return delay

    # -- helpers -------------------------------------------------------------------------------------------------

    def _superseded(self, wanted: Membership, step: str) -> bool:
        """Whether the running step is to end early: the agent stops, another membership is desired, or a fetch has another time, and begins again with it."""
        with self._changed:
            if self._stopped:
                return True
            newest = self._desired.membership if self._desired else None
            if newest is None or newest.key() != wanted.key():
                return True
            return step == "fetch" and newest.image_fetch_seconds != wanted.image_fetch_seconds

    def _joined(self) -> bool:
        return self.journal.member is not None and all(step in self.journal.done for step in STEPS)

    def _next_step(self) -> str | None:
        return next((step for step in STEPS if step not in self.journal.done), None)

    def _other_bundle(self, wanted: Membership) -> None:
        """Another bundle is desired before the host has joined: its packages are installed over those of the old one."""
        assert self.journal.member is not None
        self.journal.member = replace(self.journal.member, release=wanted.release, bundle=wanted.bundle.image)
        self.journal.undo_steps(["pull", "verify", "prepare", "install", "fetch", "join", "check"])
        self._verified = False

    def _joined_state(self, wanted: Membership) -> float:
        assert self.journal.member is not None
        upgrade = self._upgrade_node(wanted)
        if upgrade is not None and (upgrade == 0.0 or self._between_releases()):
            self._show("Joined")
            return upgrade
        reason, message = self._settle(wanted)
        if self.journal.member.release != wanted.release and wanted.upgrade is None:
            reason = "UpgradeNotRequested"
            message = f"this node runs {self.journal.member.release}, and {wanted.release} is desired, without a request to upgrade it"
        elif unhealthy := self.actions.unhealthy():
            reason, message = "Unhealthy", unhealthy
        self._show("Joined", reason=reason, message=message)
        return HEALTH_SECONDS if upgrade is None else min(upgrade, HEALTH_SECONDS)

    def _between_releases(self) -> bool:
        return self.upgrades is not None and self._joined() and self.upgrades.active

    def _upgrade_node(self, wanted: Optional[Membership]) -> float | None:
        """One step of the node's upgrade; the seconds until the next one, None if there is nothing to do."""
        if self.upgrades is None:
            return None
        before = self.upgrades.record
        try:
            return self.upgrades.work(wanted, lambda: self._upgrade_superseded(wanted))
        finally:
            if self.upgrades.record != before:
                self._publish()

    def _upgrade_superseded(self, wanted: Optional[Membership]) -> bool:
        """Whether the running step is to end early: the agent stops, the host leaves the cluster, or what is being prepared is no longer wanted."""
        with self._changed:
            if self._stopped:
                return True
            if self._desired is None:
                return False
            newest, have = self._desired.membership, self.journal.member
            if newest is None or have is None or newest.key() != have.key:
                return True
            return wanted is not None and newest.upgrade != wanted.upgrade and not self._between_releases()

    def _settle(self, wanted: Membership) -> tuple[str, str]:
        """One pass over a joined host's settings; (reason, message) of what is not as it should be."""
        started = self.clock()
        try:
            settled = self.actions.settle(wanted)
        except Exception as error:  # as in _do: a full disk or a bug must not end the agent of a node
            settled = Settled("", "UnexpectedError", f"settings: {type(error).__name__}: {error}", failed=True)
        if settled.done:
            self.sync()
            self.journal.record("settings", "done", self.clock() - started, settled.done)
            log(f"settings: {settled.done}")
        if settled.failed and settled != self._unsettled:  # it is tried again every minute: recorded once
            self.journal.record("settings", "failed", self.clock() - started, settled.message)
            log(f"settings: failed: {settled.message}")
        self._unsettled = settled
        return settled.reason, settled.message

    def _clear_failure(self) -> None:
        self._attempts = 0
        self._failed_step = self._reason = self._message = ""
        self._permanent = False
        self._failed_for = None

    def _show(self, phase: str, *, keep_failure: bool = False, reason: str = "", message: str = "") -> None:
        """Set what is reported. With `keep_failure` the step's last failure stays visible while it is retried."""
        if self._desired is not None:
            self.journal.note("generation", self._desired.generation)
        with self._changed:
            if not keep_failure:
                self._reason, self._message = reason, message
            new = (phase, self._reason, self._message)
            if getattr(self, "_shown", None) == new:
                return
            self._shown = new
            self._phase = phase
        self._publish()

    def _publish(self) -> None:
        with self._changed:
            self._version += 1
            self._changed.notify_all()


def _delay(error: AgentError, attempts: int, first: float) -> float:
    """Seconds until the next attempt: exponential backoff with jitter, so that hosts that failed together don't retry together."""
    if error.permanent:
        return PERMANENT_DELAY
    return min(LONGEST_DELAY, first * 2.0 ** min(attempts - 1, 10)) * random.uniform(0.75, 1.0)
