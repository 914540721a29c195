"""The pure decisions: claims, conditions, the fourteen steps."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckp.api.objects.byo_host import ByoHost, ByoHostStatus
from ckp.api.objects.byo_machine import ByoMachineSpec
from ckp.api.objects.control_plane import StepStatus
from ckp.rules.addons import Progress
from ckp.rules.claims import Candidate, Wanted, candidate, choose_host, cluster_networks, user_labels
from ckp.rules.cluster_hosts import HostCounts
from ckp.rules.conditions import make_condition, merge_conditions, summarize
from ckp.rules.flapping import Flaps
from ckp.rules.lifecycle import STEPS, Observation, advance, complete
from tests.unit.rules.test_cluster_steps import FULL

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
LABELS = {"hostgroup.ckp.coredge.io/lab": ""}
LAB = Wanted(LABELS)


def wanted(*expressions: dict[str, Any]) -> Wanted:
    """What a machine asks for that selects hosts by expressions."""
    return Wanted.of(ByoMachineSpec.model_validate({"selector": {"matchExpressions": list(expressions)}}))


def host(name: str, **changes: Any) -> Candidate:
    values: dict[str, Any] = {"labels": LABELS, "claimed_by": "", "connected": True, "cordoned": False, "deleting": False, "idle": True}
    return Candidate(name=name, **(values | changes))


def test_the_first_free_host_by_name_is_chosen_whatever_the_order() -> None:
    hosts = [host("b"), host("a"), host("c")]
    assert choose_host(hosts, LAB, "m").host == "a"
    assert choose_host(reversed(hosts), LAB, "m").host == "a"


def test_a_machine_keeps_the_host_that_it_holds_even_when_that_is_offline() -> None:
    assert choose_host([host("a"), host("b", claimed_by="m", connected=False)], LAB, "m").host == "b"


def test_none_is_chosen_with_the_reason_counted() -> None:
    hosts = [host("a", claimed_by="x"), host("b", connected=False), host("c", cordoned=True), host("d", idle=False)]
    assert choose_host(hosts, LAB, "m").reason == "none of 4 matching hosts is free: 1 in use, 1 offline, 1 cordoned, 1 not yet clean"
    assert choose_host(hosts, Wanted({"other": ""}), "m").reason == "no host carries the labels that the machine asks for"


NETWORKS = {"spec": {"clusterNetwork": {"pods": {"cidrBlocks": ["10.42.0.0/16", "odd"]}, "services": {"cidrBlocks": ["10.43.0.0/16", "fd00:43::/112"]}}}}


@pytest.mark.parametrize(
    ("addresses", "why"),
    [
        (("10.88.0.21", "10.42.3.1"), "its address 10.42.3.1 lies in the cluster's pod network 10.42.0.0/16"),
        (("10.43.0.10",), "its address 10.43.0.10 lies in the cluster's service network 10.43.0.0/16"),
        (("fd00:43::1",), "its address fd00:43::1 lies in the cluster's service network fd00:43::/112"),
        (("10.41.9.9/15",), ""),
        (("10.40.9.9/14",), "its network 10.40.0.0/14 overlaps the cluster's pod network 10.42.0.0/16"),
        (("10.88.0.21", "fd00:44::1", "not an address"), ""),
        ((), ""),
    ],
)
def test_a_host_with_an_address_in_the_clusters_networks_is_unfit_with_the_reason(addresses: tuple[str, ...], why: str) -> None:
    asked = replace(LAB, networks=cluster_networks(NETWORKS))
    choice = choose_host([host("a", addresses=addresses)], asked, "m")
    assert choice.host == ("" if why else "a")
    assert choice.reason == (f"none of 1 matching hosts is free: 1 unfit; a: {why}" if why else "")
    assert choose_host([host("a", addresses=addresses)], LAB, "m").host == "a", "only this cluster has these networks"


def test_a_host_reports_the_addresses_that_are_compared() -> None:
    status = ByoHostStatus.model_validate({"network": [{"ipAddrs": ["10.88.0.21"]}, {"ipAddrs": ["10.42.0.1", "fd00::1"]}]})
    assert candidate(ByoHost(status=status)).addresses == ("10.88.0.21", "10.42.0.1", "fd00::1")


def test_a_host_of_another_size_or_with_other_labels_is_not_asked_for() -> None:
    hosts = [host("small", cpus=2, memory_bytes=4 << 30), host("large", cpus=16, memory_bytes=64 << 30, labels=LABELS | {"rack": "r7"})]
    assert choose_host(hosts, LAB, "m").host == "small", "large ones stay for those who ask for them"
    assert choose_host(hosts, Wanted(LABELS, cpus=4), "m").host == "large"
    assert choose_host(hosts, Wanted(LABELS, memory_bytes=8 << 30), "m").host == "large"
    assert "large enough" in choose_host(hosts, Wanted(LABELS, cpus=64), "m").reason
    for operator, values, expected in (("In", ["r7"], "large"), ("NotIn", ["r7"], "small"), ("Exists", [], "large"), ("DoesNotExist", [], "small")):
        asked = wanted({"key": "rack", "operator": operator, "values": values})
        assert choose_host(hosts, asked, "m").host == expected, operator
    assert choose_host(hosts, wanted({"key": "rack", "operator": "Near"}), "m").host == ""


def test_only_users_labels_reach_a_node() -> None:
    labels = {"rack": "r7", "example.org/disk": "ssd", "hostgroup.ckp.coredge.io/lab": "", "ckp.coredge.io/domain": "d", "kubernetes.io/hostname": "h"}
    assert user_labels(labels | {"node.kubernetes.io/x": "", "cluster.x-k8s.io/y": "", "mykubernetes.io/z": "1"}) == {
        "rack": "r7",
        "example.org/disk": "ssd",
        "mykubernetes.io/z": "1",
    }


@pytest.mark.parametrize("name", ["remediation", "mend"])
def test_a_host_with_a_blocking_preflight_finding_is_not_claimed_and_its_remediation_is_shown(name: str) -> None:
    """`mend` is what a host of 0.2.0 has in its status until its agent connects again."""
    found = {"problem": "port 10250 is taken by nginx (pid 7)", name: "stop it", "blocking": True}
    bad = candidate(
        ByoHost.of({"metadata": {"name": "a"}, "status": {"observed": {"phase": "Free"}, "agent": {"connected": True}, "facts": {"findings": [found]}}})
    )
    assert bad.unavailable() == "unfit"
    assert choose_host([bad], Wanted(), "m").reason.endswith("1 unfit; a: port 10250 is taken by nginx (pid 7): stop it")
    assert not candidate(ByoHost.of({"metadata": {"name": "a"}, "status": {"facts": {"findings": [found | {"blocking": False}]}}})).unfit


def test_a_host_that_comes_and_goes_is_held_back_for_longer_each_time() -> None:
    flaps, at, held = Flaps(), NOW, []
    for _ in range(9):
        flaps = flaps.lost(at)
        assert flaps.lost(at) == flaps, "the same loss counts once"
        held.append(int((flaps.held_until - at).total_seconds()) if flaps.held_until else 0)
        at += timedelta(minutes=5)
    assert held == [0, 30, 60, 120, 240, 480, 960, 1800, 1800]
    assert flaps.lost(at + timedelta(hours=1)).held_until is None, "an hour of quiet is forgiven"
    assert Flaps.of(ByoHostStatus.model_validate({"flaps": flaps.to_json()})) == flaps and Flaps.of(ByoHostStatus()) == Flaps()


candidates = st.builds(
    host,
    st.text("abc", min_size=1, max_size=3),
    labels=st.sampled_from([LABELS, {}]),
    claimed_by=st.sampled_from(["", "m", "x"]),
    connected=st.booleans(),
    cordoned=st.booleans(),
    deleting=st.booleans(),
    idle=st.booleans(),
)


@given(st.lists(candidates, unique_by=lambda item: item.name, max_size=6), st.randoms())
def test_a_claim_never_takes_anothers_host_and_does_not_depend_on_order(hosts: list[Candidate], random: Any) -> None:
    choice = choose_host(hosts, LAB, "m")
    shuffled = list(hosts)
    random.shuffle(shuffled)
    assert choose_host(shuffled, LAB, "m") == choice
    if choice.host:
        chosen = next(item for item in hosts if item.name == choice.host)
        assert chosen.claimed_by in ("", "m")
        if chosen.claimed_by != "m":  # what it holds it keeps, whatever became of the labels
            assert chosen.labels == LABELS and not chosen.unavailable()
        if not chosen.claimed_by:
            assert chosen.connected and chosen.idle and not chosen.cordoned and not chosen.deleting
    else:
        assert choice.reason


def test_a_host_is_not_idle_before_it_has_said_so() -> None:
    assert not candidate(ByoHost.of({"metadata": {"name": "a"}, "spec": {}})).idle
    assert candidate(ByoHost.of({"metadata": {"name": "a"}, "status": {"observed": {"phase": "Free"}}})).idle


def test_a_conditions_time_changes_only_with_its_meaning() -> None:
    later = NOW + timedelta(minutes=5)
    first = make_condition("A", False, NOW, reason="Waiting", message="x")
    assert merge_conditions([first], [make_condition("A", False, later, reason="Waiting", message="x")]) == [first]
    assert merge_conditions([first], [make_condition("A", True, later)])[0]["lastTransitionTime"] == "2026-05-01T12:05:00Z"


def test_a_true_condition_carries_no_severity() -> None:
    """Contract: conditions of Cluster API v1beta1."""
    assert "severity" not in make_condition("A", True, NOW)
    assert make_condition("A", False, NOW, severity="Error")["severity"] == "Error"


def test_ready_is_the_worst_of_the_others() -> None:
    conditions = [
        make_condition("A", True, NOW),
        make_condition("B", False, NOW, reason="Slow"),
        make_condition("C", False, NOW, reason="Broken", severity="Error"),
    ]
    ready = summarize(conditions, NOW)
    assert (ready["status"], ready["reason"]) == ("False", "Broken")
    assert summarize(conditions[:1], NOW)["status"] == "True"


def test_the_steps_of_a_phase_are_together_and_each_has_a_name_and_a_title_of_its_own() -> None:
    """White paper §8. Each phase is shown as one heading, and a step is known by its name in the API and by its title on the screen."""
    assert [phase for phase, _ in groupby(step.phase for step in STEPS)] == ["Provisioning", "Bootstrap", "Cluster Ready", "Addons"]
    assert len({step.name for step in STEPS}) == len({step.title for step in STEPS}) == len(STEPS) == 14


DONE = replace(FULL, storage=())
"""Without the addons that nobody asked for."""


def recorded(steps: list[dict[str, Any]]) -> list[StepStatus]:
    """As the next pass reads them."""
    return [StepStatus.model_validate(step) for step in steps]


def test_a_finished_cluster_has_only_done_and_skipped_steps() -> None:
    steps = advance([], DONE, NOW)
    assert complete(steps)
    assert [step["state"] for step in steps].count("Skipped") == 1


def test_a_step_that_is_undone_runs_again_and_keeps_its_start() -> None:
    before = advance([], DONE, NOW)
    after = advance(recorded(before), replace(DONE, nodes_ready=1), NOW + timedelta(minutes=9))
    ready = next(step for step in after if step["name"] == "ClusterReady")
    assert ready["state"] == "Running"
    assert ready["startedAt"] == next(step for step in before if step["name"] == "ClusterReady")["startedAt"]
    assert ready["message"] == "1 of 2 nodes ready"


counts = st.builds(HostCounts, *(st.integers(0, 3) for _ in range(5)))
networks = st.tuples(st.builds(Progress, st.just("cilium"), st.booleans()))


@given(st.lists(st.builds(Observation, requested_at=st.just("2026-05-01T12:00:00Z"), workers=st.integers(1, 3), hosts=counts,
                          infrastructure_ready=st.booleans(), nodes_joined=st.integers(0, 3), network=networks,
                          unreached=st.sampled_from(["", "it is gone"])), max_size=5))  # fmt: skip
def test_a_written_finish_is_never_rewritten_while_the_step_stays_done(sights: list[Observation]) -> None:
    steps: list[dict[str, Any]] = []
    for minutes, seen in enumerate(sights):
        fresh = advance(recorded(steps), seen, NOW + timedelta(minutes=minutes))
        assert [step["number"] for step in fresh] == list(range(1, 15))
        for old, new in zip(steps, fresh, strict=False):
            if old["state"] == new["state"] == "Done":
                assert old["finishedAt"] == new["finishedAt"]
        steps = fresh


def test_only_a_host_whose_system_there_is_a_bundle_for_is_claimed() -> None:
    ubuntu, debian = host("a", system="ubuntu-24.04", memory_bytes=1), host("b", system="debian-12", memory_bytes=2)
    wanted = Wanted.of(ByoMachineSpec(), "v1.35.1", ["debian-12", "rhel-9"])
    assert choose_host([ubuntu, debian], wanted, "m").host == "b", "though the other one is smaller"
    assert choose_host([ubuntu], wanted, "m").reason.endswith("1 unfit; a: there is no bundle of v1.35.1 for ubuntu-24.04")


def test_a_system_is_named_as_its_bundles_are() -> None:
    for name, number, system in (("debian", "12", "debian-12"), ("rhel", "9.4", "rhel-9"), ("ubuntu", "24.04", "ubuntu-24.04"), ("", "", "")):
        facts = {"os_id": name, "os_version": number}
        assert candidate(ByoHost.of({"metadata": {"name": "a"}, "status": {"facts": facts}})).system == system


def test_a_drained_host_is_not_claimed() -> None:
    """The drain would go on with the next machine's node."""
    free = {"metadata": {"name": "a"}, "status": {"observed": {"phase": "Free"}, "agent": {"connected": True}}}
    assert candidate(ByoHost.of(free)).unavailable() == ""
    assert candidate(ByoHost.of(free | {"spec": {"drain": "2026-04-01T12:00:00Z"}})).unavailable() == "cordoned"
