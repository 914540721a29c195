"""Which tests a run takes, and in which phases."""

from __future__ import annotations

import re
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckp.conformance.ginkgo import focus_of
from ckp.conformance.prepare import named_suites
from ckp.conformance.suite import Selection, Test, check_sample, expected_seconds, phases, read_all, read_list, read_suites
from ckp.kits import paths
from ckp.kits.errors import CkpError, InvalidInput

DNS = Test("[sig-network] DNS should provide DNS for services [Conformance]")
TAINT = Test("[sig-node] NoExecuteTaintManager Single Pod [Serial] removing taint cancels eviction [Disruptive] [Conformance]")
DAEMON = Test("[sig-apps] Daemon set [Serial] should run and stop simple daemon [Conformance]")
CRON = Test("[sig-apps] CronJob should not schedule jobs when suspended [Slow] [Conformance]")
ALL = sorted([DNS, TAINT, DAEMON, CRON])


def test_the_list_is_read_as_the_suite_prints_it() -> None:
    text = (
        "- testname: DNS\n  codename: '[sig-network] DNS should provide DNS\n    for services [Conformance]'\n  description: d\n  release: v1.9\n  file: a.go\n"
    )
    assert read_list(text) == [DNS]


@pytest.mark.parametrize("text", ["", "[]", "a: b", "- x", "- testname: only", "{"])
def test_what_is_no_list_of_tests_is_an_error(text: str) -> None:
    with pytest.raises(CkpError, match="list of conformance tests"):
        read_list(text)


def test_a_test_that_is_listed_twice_is_an_error() -> None:
    with pytest.raises(CkpError, match="twice"):
        read_list("- codename: a\n- codename: a\n")


def test_nothing_said_is_the_whole_suite() -> None:
    assert Selection().whole
    assert Selection().of(ALL, []) == ALL


def test_conditions_add_up() -> None:
    assert Selection(sigs=("apps",)).of(ALL, []) == [CRON, DAEMON]
    assert Selection(sigs=("sig-apps",), serial_only=True).of(ALL, []) == [DAEMON]
    assert Selection(focus=("DNS", r"\[Slow\]")).of(ALL, []) == [CRON, DNS]
    assert Selection(quick=True).of(ALL, [DNS.name]) == [DNS]


def test_a_selection_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no test of the suite is selected"):
        Selection(focus=("nothing like this",)).of(ALL, [])


def test_a_sig_without_tests_is_refused_with_those_that_have_some() -> None:
    with pytest.raises(InvalidInput) as refused:
        Selection(sigs=("netwrok",)).of(ALL, [])
    assert "sig-netwrok" in refused.value.brief
    assert "sig-network" in refused.value.resolution


def test_a_malformed_focus_is_refused() -> None:
    with pytest.raises(InvalidInput, match="not a regular expression"):
        Selection(focus=("[",)).of(ALL, [])


def test_what_disturbs_others_runs_alone_afterwards() -> None:
    first, then = phases(ALL, 3)
    assert (first.processes, set(first.tests)) == (3, {DNS, CRON})
    assert (then.processes, set(then.tests)) == (1, {TAINT, DAEMON})


def test_with_one_process_all_is_one_phase() -> None:
    (only,) = phases(ALL, 1)
    assert (only.processes, list(only.tests)) == (1, ALL)


def test_a_phase_without_tests_is_left_out() -> None:
    assert [phase.kind for phase in phases([DAEMON], 3)] == ["serial"]


@given(st.sets(st.text(min_size=1, max_size=12), min_size=1, max_size=8), st.integers(1, 6))
def test_phases_take_each_test_once(names: set[str], processes: int) -> None:
    tests = sorted(map(Test, names))
    assert sorted(test for phase in phases(tests, processes) for test in phase.tests) == tests


@given(st.lists(st.sampled_from([test.name for test in ALL]), min_size=1, unique=True))
def test_the_focus_finds_just_the_tests_that_it_is_made_of(names: list[str]) -> None:
    pattern = re.compile(focus_of(names))
    found = [test.name for test in ALL if pattern.search(f"Kubernetes e2e suite {test.name}")]
    assert sorted(found) == sorted(names)


def test_a_rest_is_never_shorter_than_its_longest_test() -> None:
    known = {DNS.name: 10.0, TAINT.name: 300.0, DAEMON.name: 20.0, CRON.name: 30.0}
    assert expected_seconds(ALL, known, 3) == 300.0
    assert expected_seconds([DNS, DAEMON], known, 1) == 30.0
    assert expected_seconds([], known, 3) == 0.0


def test_how_long_it_takes_is_not_guessed_from_a_few() -> None:
    assert expected_seconds(ALL, {DNS.name: 1.0}, 1) is None


def test_the_quick_sample_touches_every_sig_and_both_kinds() -> None:
    sample = [Test(name) for name in check_sample(tomllib.loads(paths.data("catalog", "conformance", "quick.toml").read_text()))]
    sigs = {"api-machinery", "apps", "architecture", "auth", "cli", "instrumentation", "network", "node", "scheduling", "storage"}
    assert {test.sig for test in sample} == {f"sig-{name}" for name in sigs}
    assert {test.serial for test in sample} == {True, False}
    assert len(set(sample)) == len(sample)


@pytest.mark.parametrize("data", [{}, {"tests": []}, {"tests": [1]}, {"tests": "a"}])
def test_a_sample_without_names_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(InvalidInput, match="a list of names"):
        check_sample(data)


LISTED = """The following spec names can be used with 'ginkgo run --focus/skip':
    k8s.io/kubernetes@v1.35.1/test/e2e/network/dns.go:54: [sig-network] DNS should provide DNS for services [Conformance]
    k8s.io/kubernetes@v1.35.1/test/e2e/network/netpol/network_policy.go:121: [sig-network] Netpol NetworkPolicy: a [Feature:NetworkPolicy]
    k8s.io/kubernetes@v1.35.1/test/e2e/network/netpol/network_policy.go:122: [sig-network] Netpol NetworkPolicy using SCTP [Feature:NetworkPolicy]
"""


def test_all_tests_are_read_as_the_suite_lists_them() -> None:
    assert DNS in read_all(LISTED) and len(read_all(LISTED)) == 3
    with pytest.raises(CkpError, match="is empty"):
        read_all("nothing\n")


def test_a_named_suite_says_what_it_leaves_out_and_why() -> None:
    suite = read_suites({"np": {"title": "t", "focus": ["Netpol"], "left_out": [{"match": "SCTP", "why": "it is off"}]}})["np"]
    taken, left_out = suite.of(read_all(LISTED))
    assert [test.name for test in taken] == ["[sig-network] Netpol NetworkPolicy: a [Feature:NetworkPolicy]"]
    assert [(test.name, why) for test, why in left_out] == [("[sig-network] Netpol NetworkPolicy using SCTP [Feature:NetworkPolicy]", "it is off")]


def test_every_suite_of_the_catalog_can_be_read() -> None:
    assert {"network-policy", "services", "dns"} <= named_suites().keys()


@pytest.mark.parametrize("data", [{"a": {"title": "t", "focus": []}}, {"a": {"focus": ["x"]}}, {"a": {"title": "t", "focus": ["x"], "more": 1}}, {"a": "x"}])
def test_a_malformed_suite_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(InvalidInput, match="malformed"):
        read_suites(data)
