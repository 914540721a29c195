"""Backups of workload clusters: when one is due, whether the newest is fresh, which backup may be restored into which cluster, and in which steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from ckp.api.states import Reason
from ckp.kits.clock import human_duration

STAMP = "%Y%m%dT%H%M%SZ"
"""Of a backup's id, which is when it was begun. It is the last part of its name where it is kept, too (ckp.hostkit.backup.names)."""
RETRY = timedelta(minutes=5)
"""After a backup that failed; doubled with each further one, up to the interval of backups."""
SLACK = timedelta(minutes=10)
"""Beside half the interval, how late a backup may be before it counts as overdue."""
BUMP = 1_000_000_000
"""What revisions are raised by beyond the highest one that was seen: more than a cluster writes between two observations."""
LARGEST_REVISION = (1 << 63) - 1


def backup_id(moment: datetime) -> str:
    """The id of a backup that is begun now: `20260131T040500Z`. Ids sort by time."""
    return moment.astimezone(UTC).strftime(STAMP)


def begun_at(identifier: str) -> datetime | None:
    """When a backup was begun, by its id; None if that is none."""
    try:
        return datetime.strptime(identifier, STAMP).replace(tzinfo=UTC)
    except ValueError:
        return None


@dataclass(frozen=True)
class Attempts:
    """What is on record of a cluster's backups.

    Args:
        good: when each of those that are kept was begun, the oldest first.
        failed: when the last one that failed was begun; None if none has since the newest good one.
        failures: how many have failed since then, one after the other.
        message: of the last one that failed.
    """

    good: Sequence[datetime] = ()
    failed: datetime | None = None
    failures: int = 0
    message: str = ""


def due_at(attempts: Attempts, every: timedelta) -> datetime | None:
    """When the next backup is to be begun by the schedule; None: now."""
    if attempts.failed is not None:
        return attempts.failed + min(every, RETRY * (1 << min(max(attempts.failures, 1) - 1, 20)))
    return attempts.good[-1] + every if attempts.good else None


def freshness(attempts: Attempts, every: timedelta, now: datetime) -> tuple[bool, Reason, str]:
    """Whether there is a backup as new as there should be, and all went well since; else why not, for the condition BackupFresh."""
    newest = attempts.good[-1] if attempts.good else None
    age = f"the newest is {human_duration(max(0.0, (now - newest).total_seconds()))} old" if newest else "there is none"
    if attempts.failed is not None:
        return False, Reason.BACKUP_FAILED, f"the backup {backup_id(attempts.failed)} failed, and {age}: {attempts.message}"
    if newest is None:
        return False, Reason.WAITING, "the first backup is not made yet"
    if now - newest > every + every / 2 + SLACK:
        return False, Reason.BACKUP_OVERDUE, f"one is asked for every {human_duration(every.total_seconds())}, and {age}"
    return True, Reason.WAITING, ""


def bump_for(backup: int, seen: int) -> int:
    """By how much a restored etcd's revision is raised, so that it is beyond all that the cluster's clients may have seen.

    Args:
        backup: the snapshot's revision.
        seen: the highest that is on record of the cluster, which may be some thousand behind; 0 if none is.
    """
    return max(0, seen - backup) + BUMP


@dataclass(frozen=True)
class Restorable:
    """What decides whether a backup fits a cluster.

    Args:
        cluster: `namespace/name`.
        identity: tells the cluster from others of that name: of the public key of its CA.
        version: of its Kubernetes, such as v1.35.1.
    """

    cluster: str
    identity: str
    version: str


def refusal(backup: Restorable, into: Restorable) -> str:
    """Why a backup can't be restored into a cluster in place; "" if it can."""
    if backup.identity != into.identity:
        if backup.cluster == into.cluster:
            return f"the backup is of an earlier cluster {backup.cluster}, with another CA: nodes and tokens of this one are unknown in it"
        return f"the backup is of the cluster {backup.cluster}, not of {into.cluster}"
    if _minor(backup.version) > _minor(into.version):
        return (
            f"the backup is of Kubernetes {backup.version}, and the cluster has {into.version}: an older API server does not read all that a newer one stores"
        )
    return ""


def _minor(version: str) -> tuple[int, int]:
    parts = version.removeprefix("v").split(".")
    return int(parts[0]), int(parts[1])


class RestorePhase(StrEnum):
    """Where a restore in place is. Each step is repeated until it is done, and none is begun before."""

    CHECKING = "Checking"
    """The backup is fetched, decrypted and restored on trial. The cluster goes on meanwhile."""
    STOPPING = "Stopping"
    """The API server, the controllers and the scheduler are stopped, then etcd."""
    PLACING = "Placing"
    """Each member's volume gets the data."""
    STARTING = "Starting"
    """etcd, then the API server, then what writes into it."""
    DONE = "Done"
    FAILED = "Failed"
    """The backup was refused; nothing was changed."""


RESTORE_STEPS = {
    RestorePhase.CHECKING: "the backup is checked; the cluster goes on meanwhile",
    RestorePhase.STOPPING: "the API server is held back, and etcd is stopped",
    RestorePhase.PLACING: "etcd's volumes get the backup's data",
    RestorePhase.STARTING: "etcd and the API server start with the backup's data",
}
"""What is done in each step, in their order."""
HOLDING = (RestorePhase.STOPPING, RestorePhase.PLACING)
"""Phases in which nothing of the cluster may run."""


def describe_step(phase: RestorePhase) -> str:
    """`step 2 of 4: …`."""
    steps = list(RESTORE_STEPS)
    return f"step {steps.index(phase) + 1} of {len(steps)}: {RESTORE_STEPS[phase]}"
