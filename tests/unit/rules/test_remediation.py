"""Which unhealthy workers are replaced, and that replacing always ends with a person."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckp.api.objects.byo_cluster import Replacement
from ckp.api.states import Reason
from ckp.rules.remediation import BACKOFF, LIMIT, Action, Cause, Policy, Sick, Verdict, decide, most_unhealthy, replacement

NOW = datetime(2026, 4, 2, 12, tzinfo=UTC)
POLICY = Policy("demo", workers=4)


def sick(machine: str = "m1", **more: object) -> Sick:
    """One whose node was Ready for some minutes, and is reported now."""
    base = Sick(machine, f"uid-{machine}", f"host-{machine}", Cause.UNHEALTHY, "its node is not Ready", NOW, NOW - timedelta(minutes=20))
    return replace(base, **more)  # type: ignore[arg-type]


def one(item: Sick, history: list[Replacement] | None = None, policy: Policy = POLICY, now: datetime = NOW) -> Verdict:
    [verdict] = decide([item], history or [], policy, now)
    return verdict


def made(count: int, cause: Cause = Cause.UNHEALTHY, *, last: datetime = NOW - timedelta(hours=1)) -> list[Replacement]:
    verdicts = [Verdict(sick(f"old{number}"), Action.REPLACE, cause=cause, number=number + 1) for number in range(count)]
    return [replacement(verdict, last) for verdict in verdicts]


@pytest.mark.parametrize(("workers", "most"), [(0, 1), (1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (10, 5)])
def test_half_of_the_workers_may_be_unhealthy_and_of_one_that_one(workers: int, most: int) -> None:
    assert most_unhealthy(workers) == most


def test_the_first_is_replaced_at_once() -> None:
    verdict = one(sick())
    assert (verdict.action, verdict.cause, verdict.number) == (Action.REPLACE, Cause.UNHEALTHY, 1)


def test_a_node_that_is_upgraded_in_place_is_not_replaced_before_its_time_is_over() -> None:
    until = NOW + timedelta(minutes=40)
    verdict = one(sick(upgrading_until=until))
    assert (verdict.action, verdict.reason, verdict.until) == (Action.WAIT, Reason.NODE_UPGRADING, until)
    assert one(sick(upgrading_until=until), now=until).action is Action.REPLACE
    assert one(sick(upgrading_until=until, cause=Cause.LOST)).action is Action.REPLACE, "a host that is gone has nothing to wait for"


# A node that never was Ready.


def test_a_node_that_never_was_ready_has_the_time_to_start() -> None:
    never = sick(ready_at=None)
    verdict = one(never)
    assert (verdict.action, verdict.reason, verdict.until) == (Action.WAIT, Reason.WAITING_FOR_STARTUP, NOW + timedelta(minutes=25))
    assert one(never, now=NOW + timedelta(minutes=24)).action is Action.WAIT
    late = one(never, now=NOW + timedelta(minutes=26))
    assert (late.action, late.cause) == (Action.REPLACE, Cause.STARTUP)


def test_without_a_network_a_node_is_not_replaced_before_it_was_ready_once() -> None:
    bare = replace(POLICY, network=False)
    verdict = one(sick(ready_at=None), policy=bare, now=NOW + timedelta(days=30))
    assert (verdict.action, verdict.reason) == (Action.WAIT, Reason.WAITING_FOR_NETWORK) and "cni none" in verdict.message
    assert one(sick(), policy=bare).action is Action.REPLACE, "it was Ready, and is not any more"
    assert one(sick(ready_at=None, node_joined=False, cause=Cause.STARTUP), policy=bare).action is Action.REPLACE, "joining needs no network"


# Too many at once.


def test_more_than_half_at_once_are_not_replaced() -> None:
    verdicts = decide([sick(f"m{number}") for number in range(3)], [], POLICY, NOW)
    assert {(verdict.action, verdict.reason) for verdict in verdicts} == {(Action.WAIT, Reason.TOO_MANY_UNHEALTHY)}
    assert "3 of 4 workers" in verdicts[0].message and "host-m0, host-m1, host-m2" in verdicts[0].message


def test_nodes_that_are_not_ready_count_before_they_are_reported() -> None:
    one = decide([sick("m0")], [], replace(POLICY, not_reported=("m1", "m2")), NOW)
    assert (one[0].action, one[0].reason) == (Action.WAIT, Reason.TOO_MANY_UNHEALTHY) and "3 of 4 workers" in one[0].message and "m1, m2" in one[0].message
    assert decide([sick("m0")], [], replace(POLICY, not_reported=("m1",)), NOW)[0].action is Action.REPLACE


def test_one_that_failed_for_good_is_replaced_whatever_the_others_do() -> None:
    lost = sick("gone", cause=Cause.LOST)
    verdicts = decide([sick("m1"), sick("m2"), lost], made(5), replace(POLICY, api_unreachable="refused"), NOW)
    assert [verdict.sick.machine for verdict in verdicts if verdict.action is Action.REPLACE] == ["gone"]


def test_what_cannot_be_seen_is_not_replaced() -> None:
    verdict = one(sick(), policy=replace(POLICY, api_unreachable="the API server can't be reached"))
    assert (verdict.action, verdict.reason) == (Action.WAIT, Reason.CLUSTER_NOT_REACHED) and "can't be reached" in verdict.message


# Again and again.


def test_the_second_waits_and_the_third_is_held_for_a_person() -> None:
    second = one(sick(), made(1, last=NOW - timedelta(minutes=1)))
    assert (second.action, second.reason, second.until) == (Action.WAIT, Reason.BACKING_OFF, NOW - timedelta(minutes=1) + BACKOFF)
    assert one(sick(), made(1, last=NOW - BACKOFF)).number == 2
    third = one(sick(), made(LIMIT))
    assert (third.action, third.reason, third.number) == (Action.HOLD, Reason.HELD, 3)
    assert "ckp host remove host-m1" in third.message and "ckp cluster resume-replacement demo" in third.message


def test_causes_are_counted_apart() -> None:
    assert one(sick(), made(LIMIT, Cause.STARTUP)).action is Action.REPLACE
    assert one(sick(ready_at=None, node_joined=False, cause=Cause.STARTUP), made(LIMIT, Cause.STARTUP)).action is Action.HOLD


def test_two_that_fail_together_are_not_both_replaced_at_once() -> None:
    verdicts = decide([sick("m1"), sick("m2")], [], POLICY, NOW)
    assert [verdict.action for verdict in verdicts] == [Action.REPLACE, Action.WAIT]


def test_nodes_that_were_well_for_long_are_no_failed_attempts() -> None:
    old = NOW - timedelta(days=90)
    verdicts = decide([sick("m1", ready_at=old), sick("m2", ready_at=old)], made(LIMIT), POLICY, NOW)
    assert [(verdict.action, verdict.settled) for verdict in verdicts] == [(Action.REPLACE, True)] * 2
    history = [replacement(verdict, NOW) for verdict in verdicts]
    assert one(sick("m3"), history).action is Action.REPLACE, "they do not count"


def test_what_is_held_stays_held_until_a_person_lets_it_go_on() -> None:
    held = sick(held_at=NOW - timedelta(days=3), since=NOW - timedelta(days=3), ready_at=NOW - timedelta(days=3, minutes=20))
    assert one(held).action is Action.HOLD, "also when the failures before are long over"
    assert one(held, policy=replace(POLICY, workers=1)).action is Action.HOLD
    assert one(held, made(LIMIT), replace(POLICY, resumed=NOW - timedelta(days=4))).action is Action.HOLD, "that was before"
    assert one(held, made(LIMIT, last=NOW - timedelta(hours=2)), replace(POLICY, resumed=NOW - timedelta(hours=1))).action is Action.REPLACE


def test_an_entry_that_cannot_be_read_counts_as_made_long_ago() -> None:
    assert one(sick(), [Replacement(cause="Unhealthy", at="soon"), Replacement(cause="Unhealthy")]).action is Action.REPLACE


@given(
    st.lists(
        st.tuples(
            st.integers(min_value=0, max_value=3 * 86400),
            st.sampled_from([Cause.UNHEALTHY, Cause.STARTUP]),
            st.booleans(),
            st.integers(min_value=0, max_value=3000),
        ),
        max_size=30,
    ),
    st.integers(min_value=1, max_value=8),
)
def test_young_workers_are_replaced_at_most_twice_by_one_cause_in_a_day_whatever_happens(failures: list[tuple[int, Cause, bool, int]], workers: int) -> None:
    """Failures at any times, each seen until it is decided or the next comes."""
    start, history = NOW, list[Replacement]()
    for number, (offset, cause, joined, age) in enumerate(sorted(failures)):
        since = start + timedelta(seconds=offset)
        ready = since - timedelta(seconds=age) if cause is Cause.UNHEALTHY else None
        item = Sick(f"m{number}", f"u{number}", "h", cause, "why", since, ready, node_joined=joined or cause is Cause.UNHEALTHY)
        for later in (0, 600, 3600):
            now = since + timedelta(seconds=later)
            [verdict] = decide([item], history, Policy("demo", workers), now)
            if verdict.action is Action.REPLACE:
                assert not verdict.settled, "none was Ready for an hour"
                history.append(replacement(verdict, now))
                break
            assert verdict.message, "why it is not replaced is told"
    for cause in (Cause.UNHEALTHY, Cause.STARTUP):
        times = sorted(entry.at for entry in history if entry.cause == cause)
        for first, third in zip(times, times[LIMIT:], strict=False):
            assert datetime.fromisoformat(third) - datetime.fromisoformat(first) >= timedelta(hours=24)
