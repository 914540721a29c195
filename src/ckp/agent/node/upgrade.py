"""The upgrade of a node in place to another release, step by step, and its way back.

    prepare   space ▶ pull ▶ verify                          -> Prepared     nothing of the node is changed
    install   save ▶ install ▶ configure ▶ restart ▶ check   -> Done         what runs in pods goes on
    back      reinstall ▶ restore ▶ restart-old ▶ check-old  -> Failed       the node is wholly of its old release again

The journal's note UPGRADE names the step that is next, and is written before that step changes anything. So after a kill or a power cut the agent goes on
where it stopped, also before it has heard from the hub: a node must not stay between two releases because the hub is away. The member of the journal is of
the new release in the same write that says Done.

Until `install` begins a failure changes nothing: what may pass (a registry that is away, a full disk) is tried again, the rest is final. From `install` on, a
step that fails too often, or is begun too often without an end (it may be what crashes the host), leads back. The way back has no other way: it is tried
until it succeeds. A request that is Done or Failed is not worked on again.
"""

from __future__ import annotations

import random
import time
from dataclasses import asdict, dataclass, replace
from typing import Any, Callable, Optional, Protocol, Sequence

from ckp.agent.journal import Journal, now
from ckp.agent.messages import Membership, NodeUpgrade, UpgradeReport
from ckp.hostkit.errors import AgentError, Cancelled
from ckp.hostkit.files import sync_host
from ckp.hostkit.logs import log

UPGRADE = "upgrade"
"""The journal's note of the upgrade: a Record."""
PREPARE = ("space", "pull", "verify")
INSTALL = ("save", "install", "configure", "restart", "check")
BACK = ("reinstall", "restore", "restart-old", "check-old")
PERSISTENT = ("pull", "save", "install", "configure", "reinstall", "restore")
"""Steps whose changes are synced to the disk before the journal says that they are done: dpkg and kubeadm do not sync all that they write."""
PREPARING, PREPARED, INSTALLING, CHECKING, ROLLING_BACK, DONE, FAILED = "Preparing", "Prepared", "Installing", "Checking", "RollingBack", "Done", "Failed"
ACTIVE = (INSTALLING, CHECKING, ROLLING_BACK)
MAX_FAILURES = {"check": 1}
USUAL_FAILURES = 3
"""How often a step of INSTALL may fail before the node goes back. The check has waited long enough by itself."""
MAX_RUNS = 6
"""How often a step of INSTALL is begun without an end before the node goes back."""
FIRST_DELAY, LONGEST_DELAY = 2.0, 300.0
MISSING = "BundleMissing"
BACK_AGAIN = "; it is tried again to put back "
"""Between what led back and what keeps the host from getting there."""


@dataclass(frozen=True)
class Record:
    """The upgrade as the journal keeps it."""

    request: str
    release: str
    image: str  # of the bundle, by digest
    old_release: str
    old_image: str
    state: str = PREPARING
    step: str = PREPARE[0]
    runs: int = 0  # of this step, begun without an end
    failures: int = 0  # of this step
    reason: str = ""
    message: str = ""
    restored: bool = False
    saved: bool = False  # what `save` keeps is of the old release, and the host's own files may be of the new one: it is not saved again
    kept: str = ""  # what the installation reported of the owner's configuration
    at: str = ""


class UpgradeSteps(Protocol):
    """What the upgrade does on a host. Every step is idempotent, and may be repeated after an interruption at any point."""

    def run(self, step: str, record: Record, wanted: Membership | None, cancelled: Callable[[], bool]) -> str:
        """Do a step of PREPARE (which has `wanted`), INSTALL or BACK; returns a note. Raises AgentError, or Cancelled if `cancelled` returned True."""
        ...

    def no_way_back(self, record: Record) -> str:
        """Why the old packages must not be put back over the new ones; "" if they may."""
        ...

    def tidy(self, images: Sequence[str]) -> None:
        """Delete all bundles but these, and what `save` kept."""
        ...


class Upgrades:
    """See the module's docstring. Used by the engine's thread; `report` by others."""

    def __init__(self, journal: Journal, steps: UpgradeSteps, *, clock: Callable[[], float] = time.monotonic, sync: Callable[[], None] = sync_host) -> None:
        self.journal = journal
        self.steps = steps
        self.clock = clock
        self.sync = sync
        self._retry_at = 0.0

    @property
    def record(self) -> Optional[Record]:
        """The upgrade that this host is in, or was in last."""
        data = self.journal.notes.get(UPGRADE)
        # What another version of the agent has noted beside these fields says nothing to this one.
        return Record(**{name: value for name, value in data.items() if name in Record.__dataclass_fields__}) if data else None

    @property
    def active(self) -> bool:
        """Whether the node is, or may be, between two releases."""
        record = self.record
        return record is not None and record.state in ACTIVE

    def report(self) -> Optional[UpgradeReport]:
        """For the hub; None if there is none."""
        record = self.record
        if record is None:
            return None
        return UpgradeReport(record.request, record.release, record.state, record.reason, record.message[:1000], record.restored, record.at)

    def work(self, wanted: Membership | None, cancelled: Callable[[], bool]) -> float | None:
        """Do the next step. Returns 0.0 to continue at once, seconds until the next attempt, or None: there is nothing to do.

        Args:
            wanted: the membership that is desired; None while the hub has not sent it.

        Raises:
            OSError: the journal can't be written; no step was begun.
        """
        record = self._follow(wanted)
        if record is None:
            return None
        left = self._retry_at - self.clock()
        if left > 0:
            return left
        return self._do(record, wanted, cancelled)

    # -- which step is next ----------------------------------------------------------------------------------------------

    def _follow(self, wanted: Membership | None) -> Optional[Record]:
        """The record whose step is to be done now; None if there is none."""
        record = self.record
        if record is not None and record.state in ACTIVE:
            return record  # whatever is desired by now: first it must be wholly of one release
        if wanted is None or self.journal.member is None:
            return None
        target = wanted.upgrade
        if target is None:
            self._forget(record, wanted)
            return None
        if record is not None and record.request == target.request and record.state in (DONE, FAILED):
            return None
        if record is None or record.image != target.bundle.image or record.state in (DONE, FAILED):
            record = self._begin(record, target)
        elif record.request != target.request:
            record = self._write(replace(record, request=target.request))  # another request for what is prepared, or in progress
        if record.state == PREPARED and target.phase == "install":
            record = self._write(replace(record, state=INSTALLING, step=INSTALL[0], runs=0, failures=0))
        return record if record.state in (PREPARING, *ACTIVE) else None

    def _begin(self, before: Optional[Record], target: NodeUpgrade) -> Record:
        member = self.journal.member
        assert member is not None
        self._retry_at = 0.0
        image, release = target.bundle.image, target.release
        broken = before is not None and before.saved and before.state != DONE
        if (member.release, member.bundle) == (release, image) and not broken:
            return self._write(Record(target.request, release, image, release, image, DONE, "", message=f"this node is of {release} already"))
        return self._write(Record(target.request, release, image, member.release, member.bundle, saved=broken))

    def _forget(self, record: Optional[Record], wanted: Membership) -> None:
        """No upgrade is desired (any longer). What was prepared is dropped; the old bundle only when the new release is what the membership says."""
        if record is None or self.journal.member is None:
            return
        if record.state == DONE and wanted.release != self.journal.member.release:
            return
        if record.saved and record.state != DONE:
            return  # the old packages could not be put back: the next request must know
        self.steps.tidy([self.journal.member.bundle])
        self.journal.note(UPGRADE, None)

    def _write(self, record: Record) -> Record:
        before = self.record
        if before is None or before.state != record.state:
            record = replace(record, at=now())
        self.journal.note(UPGRADE, asdict(record))
        return record

    # -- one step --------------------------------------------------------------------------------------------------------

    def _do(self, record: Record, wanted: Membership | None, cancelled: Callable[[], bool]) -> float:
        step, name = record.step, f"upgrade-{record.step}"
        if step in INSTALL and record.runs >= MAX_RUNS:
            why = AgentError(f"the step {step} was begun {record.runs} times, and the agent or the host ended each time", reason="Interrupted")
            return self._give_up(record, why)
        before, record = record, self._write(replace(record, runs=record.runs + 1))
        self.journal.record(name, "started")
        started = self.clock()
        try:
            note = self.steps.run(step, record, wanted, cancelled)
            if step in PERSISTENT:
                self.sync()
        except Cancelled as error:
            self._write(replace(record, runs=before.runs))
            self.journal.record(name, "failed", self.clock() - started, error.brief)
            return 0.0
        except AgentError as error:
            return self._failed(record, error, started)
        except Exception as error:  # a full disk, a bug: the agent keeps running, and the node does not stay between two releases
            known = AgentError(f"{name}: {type(error).__name__}: {error}", reason="DiskFull" if getattr(error, "errno", None) == 28 else "UnexpectedError")
            return self._failed(record, known, started)
        self.journal.record(name, "done", self.clock() - started, note)
        log(f"{name}: done in {self.clock() - started:.1f} s{': ' + note if note else ''}")
        self._next(record, note)
        return 0.0

    def _next(self, record: Record, note: str) -> None:
        self._retry_at = 0.0
        step = record.step
        clean = replace(record, runs=0, failures=0)
        if step == PREPARE[-1]:
            self._write(replace(clean, state=PREPARED, step="", reason="", message=note))
        elif step == INSTALL[-1]:
            message = f"{record.old_release} was replaced by {record.release}" + (f"; {record.kept}" if record.kept else "")
            done = replace(clean, state=DONE, step="", reason="", message=message, at=now())
            self.journal.move(record.release, record.image, UPGRADE, asdict(done))
        elif step == BACK[-1]:
            message = f"{record.message.partition(BACK_AGAIN)[0]}; this node is of {record.old_release} again"
            self._write(replace(clean, state=FAILED, step="", restored=True, saved=False, message=message))
        else:
            steps = next(steps for steps in (PREPARE, INSTALL, BACK) if step in steps)
            following = steps[steps.index(step) + 1]
            state = CHECKING if following == INSTALL[-1] else record.state
            saved, kept = record.saved or step == "save", note if step == "install" else record.kept
            reason, message = (record.reason, record.message) if step in BACK else ("", "")
            self._write(replace(clean, state=state, step=following, saved=saved, kept=kept, reason=reason, message=message))

    def _failed(self, record: Record, error: AgentError, started: float) -> float:
        name, failures = f"upgrade-{record.step}", record.failures + 1
        self.journal.record(name, "failed", self.clock() - started, error.sentence())
        log(f"{name}: attempt {failures} failed\n{error.render()}")
        final = error.permanent or failures >= MAX_FAILURES.get(record.step, USUAL_FAILURES)
        if record.step == "save" and error.reason == MISSING:
            self._write(replace(record, state=PREPARING, step=PREPARE[0], runs=0, failures=0))  # what was prepared is gone: prepare again
            return 0.0
        if record.step in INSTALL and final:
            return self._give_up(record, error)
        if record.step in PREPARE and error.permanent:
            self._write(replace(record, state=FAILED, step="", runs=0, restored=not record.saved, reason=error.reason, message=error.sentence()))
            return 0.0
        shown: dict[str, Any] = {"reason": error.reason, "message": error.sentence()}
        if record.step in BACK:  # what led back stays the reason
            shown = {"message": f"{record.message.partition(BACK_AGAIN)[0]}{BACK_AGAIN}{record.old_release}: {error.sentence()}"}
        self._write(replace(record, runs=0, failures=failures, **shown))
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(failures - 1, 10)) * random.uniform(0.75, 1.0)
        self._retry_at = self.clock() + delay
        return delay

    def _give_up(self, record: Record, error: AgentError) -> float:
        """A step of INSTALL failed for good: go back where that is safe."""
        self._retry_at = 0.0
        failed = replace(record, runs=0, failures=0, reason=error.reason, message=error.sentence())
        if record.step == "save":
            self._write(replace(failed, state=FAILED, step="", restored=not record.saved))
            return 0.0
        why = self.steps.no_way_back(record)
        if why:
            message = f"{failed.message}. The old packages are not put back: {why}"
            self._write(replace(failed, state=FAILED, step="", restored=False, message=message))
        else:
            self._write(replace(failed, state=ROLLING_BACK, step=BACK[0]))
        return 0.0
