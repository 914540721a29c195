"""What the deletion of a Machine waits for, and when Cluster API must look again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckp.api import names
from ckp.api.objects.byo_host import ByoHost
from ckp.kits.clock import rfc3339
from ckp.rules.leaving import looked, overdue, waits_for

START = datetime(2026, 4, 1, 12, tzinfo=UTC)
HOST = {"metadata": {"name": "worker-1"}, "spec": {"machineRef": {"name": "m"}}}


def machine(
    conditions: dict[str, str], spec: dict[str, str] | None = None, *, deleting: bool = True, annotations: dict[str, str] | None = None
) -> dict[str, Any]:
    """A Machine whose conditions all changed at START."""
    meta = {"name": "m", "annotations": annotations or {}} | ({"deletionTimestamp": rfc3339(START)} if deleting else {})
    status = {"conditions": [{"type": kind, "status": value, "lastTransitionTime": rfc3339(START)} for kind, value in conditions.items()]}
    return {"metadata": meta, "spec": spec or {}, "status": status}


DRAINING = {"PreDrainDeleteHookSucceeded": "True", "DrainingSucceeded": "False"}
DETACHING = DRAINING | {"DrainingSucceeded": "True", "VolumeDetachSucceeded": "False"}


@pytest.mark.parametrize(
    ("conditions", "field"),
    [(DRAINING, "nodeDrainTimeout"), (DETACHING, "nodeVolumeDetachTimeout"), (DETACHING | {"DrainingSucceeded": "False"}, "nodeVolumeDetachTimeout")],
)
def test_cluster_api_is_made_to_look_once_a_timeout_has_run_out(conditions: dict[str, str], field: str) -> None:
    found = machine(conditions, {field: "5m0s"})
    assert not overdue(found, START + timedelta(minutes=4))
    assert overdue(found, START + timedelta(minutes=6))
    found["metadata"]["annotations"] |= looked(START + timedelta(minutes=6))["metadata"]["annotations"]
    assert not overdue(found, START + timedelta(minutes=6, seconds=20)), "it has just looked"
    assert overdue(found, START + timedelta(minutes=7)), "it did not get on"


@given(
    st.dictionaries(
        st.sampled_from(["DrainingSucceeded", "VolumeDetachSucceeded", "PreTerminateDeleteHookSucceeded"]), st.sampled_from(["True", "False", "Unknown"])
    ),
    st.booleans(),
    st.sampled_from(["", "0s", "10m", "soon"]),
    st.integers(min_value=0, max_value=10_000),
)
def test_it_is_never_made_to_look_where_there_is_no_timeout_or_it_has_not_run_out(conditions: dict[str, str], deleting: bool, timeout: str, later: int) -> None:
    spec = {"nodeDrainTimeout": timeout, "nodeVolumeDetachTimeout": timeout} if timeout else {}
    if overdue(machine(conditions, spec, deleting=deleting), START + timedelta(seconds=later)):
        assert deleting and timeout == "10m" and later >= 600 and "False" in conditions.values()


def test_each_stage_is_told_with_what_ends_it() -> None:
    host = ByoHost.of(HOST | {"status": {"conditions": [{"type": "AgentConnected", "status": "True"}], "observed": {"phase": "Resetting"}}})
    drained = machine(DRAINING, {"nodeDrainTimeout": "10m0s"})
    assert waits_for(drained, host) == ("its node is being drained, for at most 10m, since 2026-04-01T12:00:00Z; not to wait: ckp host remove worker-1 --force")
    assert "volumes of its node are being detached, without a limit" in waits_for(machine(DETACHING), host)
    gone = machine(DETACHING | {"PreTerminateDeleteHookSucceeded": "True"})
    assert waits_for(gone, host) == "host worker-1 is being reset (Resetting)"
    assert waits_for(gone, ByoHost()) == "its Node is being deleted"
    away = ByoHost.of(HOST | {"status": {"conditions": [{"type": "AgentConnected", "status": "False", "lastTransitionTime": "2026-04-01T11:00:00Z"}]}})
    assert "does not answer since 2026-04-01T11:00:00Z" in waits_for(gone, away) and "ckp host remove worker-1 --force" in waits_for(gone, away)
    assert waits_for(machine({}), host) == "its deletion begins"


def test_a_forced_deletion_does_not_say_that_it_drains() -> None:
    assert waits_for(machine(DRAINING, {"nodeDrainTimeout": "10m"}, annotations=names.FORCED), ByoHost.of(HOST)) == "its deletion begins"
