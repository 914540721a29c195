"""When a backup of a cluster is due, whether the newest is fresh, what may be restored where, and how far revisions are raised."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckp.api.states import Reason
from ckp.hostkit.backup.names import made_at, name_of
from ckp.rules.cluster_backups import (
    BUMP,
    LARGEST_REVISION,
    Attempts,
    Restorable,
    RestorePhase,
    backup_id,
    begun_at,
    bump_for,
    describe_step,
    due_at,
    freshness,
    refusal,
)

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
moments = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)).map(lambda moment: moment.replace(microsecond=0))


@given(moments)
def test_an_id_tells_when_a_backup_was_begun_and_is_the_end_of_its_name(moment: datetime) -> None:
    assert begun_at(backup_id(moment)) == moment == made_at("t.c.0", name_of("t.c.0", moment))
    assert f"-{backup_id(moment)}." in name_of("t.c.0", moment)


@given(moments, moments)
def test_ids_sort_by_time(one: datetime, other: datetime) -> None:
    assert (one < other) == (backup_id(one) < backup_id(other))


def test_what_is_no_id_is_none() -> None:
    assert begun_at("yesterday") is None


@pytest.mark.parametrize(
    ("attempts", "due"),
    [
        (Attempts(), None),
        (Attempts([NOW - 2 * HOUR, NOW - HOUR]), NOW + 5 * HOUR),
        (Attempts([], NOW, 1), NOW + timedelta(minutes=5)),
        (Attempts([NOW - HOUR], NOW, 3), NOW + timedelta(minutes=20)),
        (Attempts([NOW - HOUR], NOW, 500), NOW + 6 * HOUR),
    ],
)
def test_the_next_one_is_due_after_its_interval_and_after_a_failure_earlier(attempts: Attempts, due: datetime | None) -> None:
    assert due_at(attempts, 6 * HOUR) == due


def test_fresh_is_true_only_of_a_backup_that_is_new_enough_after_which_none_failed() -> None:
    assert freshness(Attempts([NOW - 5 * HOUR]), 6 * HOUR, NOW)[0]
    ok, reason, message = freshness(Attempts(), 6 * HOUR, NOW)
    assert (ok, reason) == (False, Reason.WAITING)
    ok, reason, message = freshness(Attempts([NOW - 10 * HOUR]), 6 * HOUR, NOW)
    assert (ok, reason) == (False, Reason.BACKUP_OVERDUE) and "the newest is 10h" in message
    ok, reason, message = freshness(Attempts([NOW - HOUR], NOW, 1, "the store said no"), 6 * HOUR, NOW)
    assert (ok, reason) == (False, Reason.BACKUP_FAILED) and "the store said no" in message


@given(st.integers(5, 10_000), st.integers(0, 100_000))
def test_what_is_fresh_is_no_older_than_the_schedule_and_its_slack(every: int, age: int) -> None:
    ok, _, _ = freshness(Attempts([NOW - timedelta(minutes=age)]), timedelta(minutes=every), NOW)
    assert ok == (age <= 1.5 * every + 10)


HERE = Restorable("t/demo", "aa", "v1.35.1")


@pytest.mark.parametrize(
    ("backup", "said"),
    [
        (HERE, ""),
        (Restorable("t/demo", "aa", "v1.34.9"), ""),
        (Restorable("t/demo", "aa", "v1.35.9"), ""),
        (Restorable("t/demo", "aa", "v1.36.0"), "of Kubernetes v1.36.0, and the cluster has v1.35.1"),
        (Restorable("t/demo", "bb", "v1.35.1"), "of an earlier cluster t/demo"),
        (Restorable("t/else", "bb", "v1.35.1"), "of the cluster t/else, not of t/demo"),
    ],
)
def test_a_backup_of_another_cluster_or_of_a_newer_minor_is_refused(backup: Restorable, said: str) -> None:
    assert said in refusal(backup, HERE) and bool(said) == bool(refusal(backup, HERE))


@given(st.integers(1, 1 << 40), st.integers(0, 1 << 40))
def test_a_restored_revision_is_beyond_all_that_was_seen_whatever_the_backup_s_was(backup: int, seen: int) -> None:
    restored = backup + bump_for(backup, seen)
    assert restored >= max(backup, seen) + BUMP and restored < LARGEST_REVISION


def test_restoring_the_same_backup_again_raises_the_revision_again() -> None:
    first = 100 + bump_for(100, 5000)
    second = 100 + bump_for(100, first)
    assert second >= first + BUMP


def test_steps_are_counted() -> None:
    assert describe_step(RestorePhase.STOPPING).startswith("step 2 of 4: ")
