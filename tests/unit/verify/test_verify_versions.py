"""Versions are ordered as dpkg and rpm order them: those tools are the judges."""

from __future__ import annotations

import itertools
import shutil
import subprocess

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ckp.verify.versions import canonical, compare, compare_deb, compare_rpm

SIGNS = {-1: "lt", 0: "eq", 1: "gt"}
FAST = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
DEB = st.from_regex(r"([0-9]{1,2}:)?[0-9][0-9a-zA-C.+~-]{0,10}[0-9a-c~]", fullmatch=True)
RPM = st.from_regex(r"([0-9]{1,2}:)?[0-9a-cA-C.+~^_]{1,8}(-[0-9a-c.~^]{1,5})?", fullmatch=True)


@FAST
@given(st.lists(st.tuples(DEB, DEB), min_size=10, max_size=10))
def test_debs_are_ordered_as_dpkg_orders_them(pairs: list[tuple[str, str]]) -> None:
    script = "\n".join(
        f"dpkg --compare-versions '{first}' {SIGNS[compare_deb(first, second)]} '{second}' || echo '{first} {second}'" for first, second in pairs
    )
    said = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert said.stdout == "", [(first, second, compare_deb(first, second)) for first, second in pairs]


@pytest.mark.skipif(shutil.which("rpm") is None, reason="rpm is not installed (make setup installs it)")
@FAST
@given(st.lists(st.tuples(RPM, RPM), min_size=20, max_size=20))
@example([("0", "0-0"), ("0-0", "0"), ("0", "0-~"), ("0:1-1", "1-1"), ("1-1", "0:1")])
def test_rpms_are_ordered_as_rpm_orders_them(pairs: list[tuple[str, str]]) -> None:
    lua = ";".join(f"print(rpm.vercmp('{first}','{second}')..'\\n')" for first, second in pairs)
    said = subprocess.run(["rpm", "--eval", f"%{{lua:{lua}}}"], capture_output=True, text=True, check=True, timeout=60).stdout
    assert [int(number) for number in said.split()] == [compare_rpm(first, second) for first, second in pairs], pairs


ALIKE = st.lists(st.from_regex(r"(0?[01]:)?[01][01a.~]{0,3}(-[01a~]{1,2})?", fullmatch=True), min_size=2, max_size=30)
"""Versions so short that of many some are equal though they are written otherwise."""


@settings(deadline=None)
@given(kind=st.sampled_from(["deb", "rpm"]), versions=ALIKE)
@example("deb", ["1.0", "0:1.00", "1.", "1.0-0", "00:1.0-", "1", "1.0a", "1~"])
@example("rpm", ["1.0", "0:1.00", "1_0", "1.0.", "1", "1.0-1", "1.0-1_", "1.0-01"])
def test_versions_have_the_same_canonical_text_if_they_are_equal_and_only_then(kind: str, versions: list[str]) -> None:
    for first, second in itertools.combinations(versions, 2):
        assert (canonical(kind, first) == canonical(kind, second)) == (compare(kind, first, second) == 0), (first, second)


@pytest.mark.parametrize("compare", [compare_deb, compare_rpm])
def test_what_the_agent_compares(compare: object) -> None:
    assert callable(compare)
    ordered = ["1.9.0-ckp", "1.34.9-ckp", "1.35.0-ckp", "1.35.1-ckp", "1.35.2-ckp", "1.35.10-ckp", "2.0.0-ckp", "10.0.0-ckp", "99999999999999999999999.0-ckp"]
    for first, second in itertools.pairwise(ordered):
        assert compare(first, second) == -1 and compare(second, first) == 1 and compare(first, first) == 0
    assert compare("1." + "9" * 5000 + "-1", "1.8-1") == 1
    assert compare("0.1.0+abcdef01", "0.1.0+12345678") in (-1, 1)


def test_upstreams_packages_stand_below_ours() -> None:
    """1.35.1-1.1 of pkgs.k8s.io: moving to CKP is an upgrade for dpkg, and for rpm a downgrade, since letters are older than digits there."""
    assert compare_deb("1.35.1-1.1", "1.35.1-ckp") == -1
    assert compare_rpm("1.35.1-150500.1.1", "1.35.1-ckp") == 1
