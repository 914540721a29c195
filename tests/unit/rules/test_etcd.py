"""etcd's space: quotas, and which step comes next."""

from __future__ import annotations

import pytest

from ckp.rules.etcd import MIB, Action, Member, Step, bytes_of, is_without_data, nearly_full, next_step, quota_for, quota_now, went_back

GIB = 1 << 30


@pytest.mark.parametrize(("text", "count"), [("2Gi", 2 * GIB), ("512Mi", 512 * MIB), ("10G", 10**10), ("1.5Gi", 3 * GIB // 2), ("1e9", 10**9), ("4096", 4096)])
def test_quantities_are_read_as_kubernetes_reads_them(text: str, count: int) -> None:
    assert bytes_of(text) == count


@pytest.mark.parametrize("text", ["", "2 Gi", "Gi", "-1Gi", "2GiB"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no number of bytes"):
        bytes_of(text)


@pytest.mark.parametrize("volume", [1 * GIB, 2 * GIB, 8 * GIB, 100 * GIB])
def test_log_database_and_its_defragmented_copy_fit_into_the_volume(volume: int) -> None:
    quota = quota_for(volume)
    assert quota >= volume // 4 or quota == 8 * GIB
    assert 7 * 64 * 10**6 + 2 * quota <= volume


def test_a_larger_quota_of_before_is_taken_back_only_where_the_database_fits() -> None:
    """CKP 0.2.0 gave every etcd 2 GiB: taken back at once, a large database would be at its quota, and refuse writes."""
    wanted = quota_for(2 * GIB)
    assert quota_now(2 * GIB, 0, 0) == wanted
    assert quota_now(2 * GIB, 2 * GIB, 0) == 2 * GIB, "not known yet"
    assert quota_now(2 * GIB, 2 * GIB, wanted - 1) == 2 * GIB, "it would be nearly full at once"
    assert quota_now(2 * GIB, 2 * GIB, wanted // 2) == wanted
    assert quota_now(8 * GIB, 2 * GIB, 0) == quota_for(8 * GIB)


def member(name: str, size: int, in_use: int, *, leader: bool = False) -> Member:
    return Member(name, f"id-{name}", leader, size, in_use)


def test_with_the_alarm_members_are_defragmented_one_by_one_the_leader_last_and_then_it_is_ended() -> None:
    members = [member("a", 100, 20, leader=True), member("b", 100, 20), member("c", 100, 20)]
    done: set[str] = set()
    order = []
    while (step := next_step(members, True, 100, done)) and step.action is not Action.DISARM:
        assert step.action is Action.COMPACT_AND_DEFRAGMENT
        order.append(step.member)
        done.add(step.member)
        members = [member(item.name, item.in_use, item.in_use, leader=item.leader) if item.name == step.member else item for item in members]
    assert order == ["b", "c", "a"]
    assert step == Step(Action.DISARM)


def test_an_alarm_that_would_come_back_at_once_is_not_ended() -> None:
    members = [member("a", 95, 95)]
    assert next_step(members, True, 100, {"a"}) == Step(Action.COMPACT), "only a compaction shows what was deleted since"
    assert next_step([member("a", 95, 40)], True, 100, {"a"}) == Step(Action.COMPACT_AND_DEFRAGMENT, "a"), "it shows that there is something to free"
    assert next_step(members, True, 100, set()) == Step(Action.COMPACT_AND_DEFRAGMENT, "a"), "what was deleted since may be freed"
    assert nearly_full(members, 100)


def test_without_an_alarm_only_a_large_and_half_empty_database_is_defragmented() -> None:
    assert next_step([member("a", 69, 10)], False, 100, set()) is None
    assert next_step([member("a", 80, 60)], False, 100, set()) is None
    assert next_step([member("a", 80, 40)], False, 100, set()) == Step(Action.DEFRAGMENT, "a")
    assert next_step([member("a", 80, 40)], False, 100, {"a"}) is None


def test_data_went_back_by_its_revision_or_its_cluster_and_a_lagging_member_is_none() -> None:
    assert went_back(("", 0), [("a", 5)]) == "", "nothing was recorded"
    assert went_back(("a", 900), []) == "", "nothing is seen"
    assert went_back(("a", 900), [("a", 900), ("a", 12)]) == ""
    assert went_back(("a", 900), [("a", 899)]) == "its newest revision is 899, and 900 was seen before"
    assert "another etcd cluster (b)" in went_back(("a", 900), [("a", 1000), ("b", 1000)])


def test_a_members_last_words_tell_whether_it_had_data() -> None:
    assert is_without_data('"error":"cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs"')
    assert is_without_data("panic: tocommit(28) is out of range [lastIndex(0)]. Was the raft log corrupted, truncated, or lost?")
    assert not is_without_data("received SIGTERM") and not is_without_data("")
