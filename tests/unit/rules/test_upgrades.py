"""By which releases a cluster is upgraded, and in which order its nodes follow: Kubernetes' version skew policy, held by every path."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckp.kits.errors import InvalidInput
from ckp.rules.upgrades import (
    OLDEST_KUBELET,
    NodeState,
    Path,
    Stage,
    Target,
    Version,
    Worker,
    drains,
    kubectl_skew,
    kubelet_skew,
    order,
    path,
    soak_refusal,
    stages,
    step_refusal,
    target,
    turn,
)

THREE = ("v1.33.7", "v1.34.3", "v1.35.1")
versions = st.builds(Version, st.just(1), st.integers(28, 40), st.integers(0, 20)).map(str)
releases = st.lists(versions, unique=True, max_size=12)


@pytest.mark.parametrize("text", ["", "1", "v1.35", "v1.x.1", "v1.35.1ckp", "v-1.35.1", "v1.35.1\n"])
def test_what_is_no_version_is_refused_with_what_one_looks_like(text: str) -> None:
    with pytest.raises(InvalidInput, match="is no version"):
        Version.parse(text)


def test_versions_are_read_as_programs_say_them_and_sort_as_numbers() -> None:
    assert str(Version.parse("v1.35.1-ckp")) == "v1.35.1" and Version.parse("1.9.10") < Version.parse("v1.10.2")


@pytest.mark.parametrize(
    ("current", "wanted", "installed", "expected"),
    [
        ("v1.33.7", "v1.35.1", THREE, Path(("v1.34.3", "v1.35.1"))),
        ("v1.33.7", "v1.34.3", THREE, Path(("v1.34.3",))),
        ("v1.33.7", "v1.33.9", (*THREE, "v1.33.8", "v1.33.9"), Path(("v1.33.9",))),
        ("v1.33.7", "v1.35.1", (*THREE, "v1.34.1", "v1.34.10"), Path(("v1.34.10", "v1.35.1"))),
        ("v1.35.1", "v1.35.1", (), Path()),
        ("v1.33.7", "v1.36.0", THREE, Path(("v1.34.3", "v1.35.1", "v1.36.0"), ("v1.36.0",))),
        ("v1.33.7", "v1.35.1", ("v1.33.7", "v1.35.1"), Path(("v1.35.1",), ("v1.34",))),
    ],
)
def test_a_path_takes_the_newest_release_of_each_minor_and_names_what_is_missing(current: str, wanted: str, installed: tuple[str, ...], expected: Path) -> None:
    assert path(current, wanted, installed) == expected


@pytest.mark.parametrize("wanted", ["v1.33.6", "v1.32.9", "v2.0.0"])
def test_there_is_no_way_back_and_none_to_another_major(wanted: str) -> None:
    assert path("v1.33.7", wanted, [*THREE, wanted]).refusal


@given(versions, versions, releases, st.booleans())
def test_a_path_that_is_open_ends_at_the_version_by_steps_of_one_minor_each(current: str, wanted: str, installed: list[str], every: bool) -> None:
    found = path(current, wanted, installed + every * [wanted, *(f"v1.{minor}.0" for minor in range(28, 41))])
    if not found.is_open:
        assert Version.parse(wanted) < Version.parse(current) or found.missing
        return
    way = [current, *found.steps]
    assert way[-1] == wanted and (every or set(found.steps) <= set(installed))
    assert not any(step_refusal(one, next_one) for one, next_one in pairwise(way))


@given(versions, versions, releases, st.lists(versions, max_size=4))
def test_no_stage_leaves_a_kubelet_too_old_or_newer_than_the_api_server(current: str, wanted: str, installed: list[str], workers: list[str]) -> None:
    workers = [kubelet for kubelet in workers if not kubelet_skew(kubelet, current) and Version.parse(kubelet) <= Version.parse(current)]
    found = path(current, wanted, [*installed, *(f"v1.{minor}.1" for minor in range(28, 41)), wanted])
    if Version.parse(wanted) < Version.parse(current):
        assert found.refusal
        return
    plane, kubelets = current, list(workers)
    for stage in stages(current, found.steps, workers):
        if stage.workers:
            kubelets = [str(max(Version.parse(kubelet), Version.parse(stage.version))) for kubelet in kubelets]
        else:
            assert not step_refusal(plane, stage.version)
            plane = stage.version
        assert not any(kubelet_skew(kubelet, plane) for kubelet in kubelets)
    assert plane == wanted and all(Version.parse(kubelet) == Version.parse(wanted) for kubelet in kubelets)


def test_workers_are_drained_once_over_three_minors_and_twice_over_four() -> None:
    four = ("v1.34.1", "v1.35.1", "v1.36.1", "v1.37.1")
    once = stages("v1.33.7", four[:3], ["v1.33.7"])
    assert once == (Stage("v1.34.1"), Stage("v1.35.1"), Stage("v1.36.1"), Stage("v1.36.1", workers=True)) and drains(once) == 1
    twice = stages("v1.33.7", four, ["v1.33.7", "v1.33.7"])
    assert [stage.version for stage in twice if stage.workers] == ["v1.36.1", "v1.37.1"]


def test_workers_alone_follow_a_control_plane_that_is_there_already() -> None:
    assert stages("v1.35.1", (), ["v1.35.1", "v1.34.3"]) == (Stage("v1.35.1", workers=True),)
    assert stages("v1.35.1", (), ["v1.35.1"]) == () == stages("v1.35.1", (), [])


def test_skew_is_three_minors_for_kubelets_and_one_either_way_for_kubectl() -> None:
    """https://kubernetes.io/releases/version-skew-policy/"""
    assert kubelet_skew("v1.32.0-ckp", "v1.35.1") == "" and "4 minors older" in kubelet_skew("v1.31.9", "v1.35.1")
    assert "newer than the API server" in kubelet_skew("v1.36.0", "v1.35.1", "kube-proxy")
    assert kubelet_skew("v1.35.9", "v1.35.1") == "", "patch versions do not count"
    assert [bool(kubectl_skew(f"v1.{minor}.0", "v1.35.1")) for minor in (33, 34, 35, 36, 37)] == [True, False, False, False, True]
    assert OLDEST_KUBELET == 3


# -- one step of a control plane


def test_a_control_plane_that_was_never_ready_is_made_of_what_is_asked_for() -> None:
    assert target("", "", "v9.9.9", ()) == Target("v9.9.9")


@pytest.mark.parametrize(
    ("reached", "begun", "wanted", "version", "begin", "says"),
    [
        ("v1.33.7", "", "v1.33.7", "v1.33.7", False, ""),
        ("v1.33.7", "", "v1.34.3", "v1.34.3", True, ""),
        ("v1.33.7", "", "v1.35.1", "v1.33.7", False, "ask for a release of v1.34 first"),
        ("v1.34.3", "", "v1.33.7", "v1.34.3", False, "does not go back"),
        ("v1.34.3", "", "v1.34.2", "v1.34.3", False, "does not go back"),
        ("v1.34.3", "", "v1.35.0", "v1.34.3", False, "not among the installed releases"),
        ("v1.33.7", "v1.34.3", "v1.34.3", "v1.34.3", False, ""),
        ("v1.33.7", "v1.34.3", "v1.35.1", "v1.34.3", False, "is finished first; then:"),
        ("v1.33.7", "v1.34.3", "v1.33.7", "v1.34.3", False, "is committed, and is finished"),
        ("v1.33.7", "v1.34.3", "v1.32.0", "v1.34.3", False, "does not go back"),
        ("v1.33.7", "v1.34.3", "v1.34.4", "v1.34.4", True, ""),
        ("v1.33.7", "v1.33.8", "v1.33.7", "v1.33.7", True, ""),
    ],
)
def test_a_step_that_has_begun_is_finished_and_nothing_else_is_begun_meanwhile(
    reached: str, begun: str, wanted: str, version: str, begin: bool, says: str
) -> None:
    found = target(reached, begun, wanted, {*THREE, "v1.34.4", "v1.33.8", "v1.34.2"})
    assert (found.version, found.begin) == (version, begin)
    assert says in found.refusal and bool(says) == bool(found.refusal)


@pytest.mark.parametrize(
    ("begun", "wanted", "expected", "says"),
    [
        ("v1.34.3", "v1.33.7", Target("v1.33.7", begin=True, back=True), ""),
        ("v1.34.3", "v1.34.3", Target("v1.34.3"), ""),
        ("v1.34.3", "v1.34.4", Target("v1.34.4", begin=True), ""),
        ("v1.34.3", "v1.33.8", Target("v1.34.3"), "committed and finished, or rolled back, first"),
        ("v1.34.3", "v1.35.1", Target("v1.34.3"), "is finished first; then:"),
        ("v1.33.8", "v1.33.7", Target("v1.33.7", begin=True, back=True), ""),
    ],
)
def test_a_step_that_is_not_committed_goes_back_and_nowhere_else(begun: str, wanted: str, expected: Target, says: str) -> None:
    found = target("v1.33.7", begun, wanted, {*THREE, "v1.34.4", "v1.33.8"}, "a restore goes on", uncommitted=True)
    assert (found.version, found.begin, found.back) == (expected.version, expected.begin, expected.back)
    assert says in found.refusal and bool(says) == bool(found.refusal)


def test_a_way_back_is_finished_before_the_way_there_begins_again() -> None:
    assert target("v1.33.7", "v1.33.7", "v1.34.3", THREE) == Target("v1.33.7", refusal="the control plane goes back to v1.33.7, and that is finished first")
    assert target("v1.33.7", "v1.34.3", "v1.33.7", THREE[1:], uncommitted=True).version == "v1.34.3", "not to what is no longer installed"


@pytest.mark.parametrize(
    ("reached", "wanted", "can"), [("v1.34.3", "v1.35.1", True), ("v1.31.2", "v1.32.0", True), ("v1.30.9", "v1.31.1", False), ("v1.30.1", "v1.30.9", True)]
)
def test_a_step_soaks_where_the_new_programs_can_behave_as_the_old_ones(reached: str, wanted: str, can: bool) -> None:
    assert (soak_refusal(reached, wanted) == "") is can


def test_no_step_begins_while_something_forbids_it_and_one_that_has_begun_goes_on() -> None:
    assert target("v1.33.7", "", "v1.34.3", THREE, "a restore goes on") == Target("v1.33.7", refusal="a restore goes on")
    assert target("v1.33.7", "v1.34.3", "v1.34.3", THREE, "a restore goes on") == Target("v1.34.3")


@given(versions, st.lists(versions, max_size=8), releases)
def test_whatever_is_asked_for_in_whatever_order_api_servers_are_never_two_minors_apart_and_never_go_back_a_minor(
    first: str, wishes: list[str], installed: list[str]
) -> None:
    reached, begun = first, ""
    for number, wanted in enumerate(wishes):
        found = target(reached, begun, wanted, installed)
        assert 0 <= Version.parse(found.version).minors_after(Version.parse(reached)) <= 1
        assert Version.parse(found.version) >= Version.parse(reached)
        if begun:
            assert Version.parse(found.version).line == Version.parse(begun).line
        if found.begin or begun:
            begun = found.version
            if number % 2:
                reached, begun = begun, ""


# -- nodes


NODES = [Worker(f"n{number}", "big" if number % 2 else "small") for number in range(5)]


def test_nodes_go_by_pool_and_name_and_as_they_are_named() -> None:
    assert [worker.name for worker in order(NODES)] == ["n1", "n3", "n0", "n2", "n4"]
    assert [worker.name for worker in order(NODES, pools=("small", "big"))] == ["n0", "n2", "n4", "n1", "n3"]
    assert [worker.name for worker in order(NODES, nodes=("n4", "n0"))] == ["n4", "n0"]


@given(st.permutations(NODES), st.integers(1, 3), st.integers(0, 6))
def test_never_more_at_once_each_exactly_once_and_the_first_alone_until_resumed(nodes: list[Worker], at_once: int, after_first: int) -> None:
    states, resumed, pauses = {node.name: NodeState.PENDING for node in nodes}, False, 0
    begun: list[str] = []
    while True:
        ordered = order([Worker(node.name, node.pool, states[node.name]) for node in nodes])
        now = turn(ordered, at_once, after_first, resumed=resumed)
        running = [name for name, state in states.items() if state is NodeState.RUNNING]
        if now.canary:
            assert len(begun) == after_first and not running and not resumed
            resumed, pauses = True, pauses + 1
            continue
        begun += now.begin
        states |= dict.fromkeys(now.begin, NodeState.RUNNING)
        running += now.begin
        assert len(running) <= at_once
        if not running:
            break
        states[running[0]] = NodeState.DONE
    assert begun == [worker.name for worker in order(nodes)] and set(states.values()) == {NodeState.DONE}
    assert pauses == (1 if 0 < after_first < len(nodes) else 0)


def test_after_a_failure_no_further_node_begins() -> None:
    nodes = [Worker("a", "p", NodeState.FAILED), Worker("b", "p", NodeState.RUNNING), Worker("c", "p")]
    assert turn(nodes, 3).begin == () and "a failed" in turn(nodes, 3).stopped
