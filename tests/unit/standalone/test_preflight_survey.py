"""What the host tool says of a host that is only looked at."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckp.hosttool.preflight import MANAGEMENT, WORKER, survey
from ckp.standalone import checks, steps
from ckp.standalone.options import CONTROL_PLANE


@pytest.mark.parametrize(("role", "several", "etcd", "api"), [(MANAGEMENT, False, False, True), (MANAGEMENT, True, True, True), (WORKER, True, False, False)])
def test_the_ports_that_the_installer_opens_are_those_of_the_role(role: str, several: bool, etcd: bool, api: bool, tmp_path: Path) -> None:
    found = survey(role, several=several, state_dir=str(tmp_path))
    assert ("2379-2380/tcp" in found["opened"], "6443/tcp" in found["opened"]) == (etcd, api)


def test_hosts_of_one_management_cluster_must_reach_what_the_installer_opens() -> None:
    opened = {port.ports for port in steps.ports_of(CONTROL_PLANE, several=True)}
    between = set(map(str, checks.PORTS)) - set(map(str, checks.LOCAL_PORTS))
    assert between - {"2379", "2380"} <= opened and "2379-2380" in opened
