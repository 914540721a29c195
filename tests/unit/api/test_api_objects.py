"""Read models of CKP's own kinds: what the API server returns, read once."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, get_args

import pytest

from ckp.api.host_protocol import HostFacts, Phase
from ckp.api.objects.byo_host import ByoHost, HostFinding
from ckp.api.objects.byo_machine import ByoMachine
from ckp.api.objects.control_plane import ManagedControlPlane
from ckp.api.platform import Releases
from ckp.api.states import ConditionType, HostPhase
from ckp.kits.errors import CkpError, InvalidInput
from ckp.rules.claims import Wanted, candidate, choose_host

FULL: dict[str, Any] = {
    "apiVersion": "infrastructure.cluster.x-k8s.io/v1beta1",
    "kind": "ByoHost",
    "metadata": {"name": "one", "namespace": "ckp-default-default", "uid": "u", "labels": {"rack": "r7"}, "managedFields": [{"manager": "ckp-hub"}]},
    "spec": {"machineRef": {"kind": "ByoMachine", "name": "m-1", "uid": "m"}, "taints": ["a=b:NoSchedule"], "newField": {"x": 1}},
    "status": {
        "agent": {"connected": True, "bootIDs": ["b1"], "bootIDsOf": "0a", "certificateSerial": "0a", "clockOffsetSeconds": 2, "lastSeen": "yesterday"},
        "facts": {"os_id": "debian", "os_version": "12", "cpus": 4, "memory_bytes": 1 << 33, "disks": [{"name": "sda"}]},
        "observed": {"phase": "Joined", "generation": 3, "cluster": "ckp-default-default/demo"},
        "conditions": [{"type": "AgentConnected", "status": "True", "lastTransitionTime": "2026-04-01T12:00:00Z"}],
        "journal": [{"at": "2026-04-01T12:00:00Z", "step": "join", "outcome": "done"}] * 50,
    },
}


def test_an_object_is_read_by_the_names_of_the_wire() -> None:
    host = ByoHost.of(FULL)
    assert (host.name, host.spec.machine_ref.uid, host.claimed, host.spec.taints) == ("one", "m", True, ("a=b:NoSchedule",))
    assert (host.status.agent.boot_ids, host.status.agent.boot_ids_of, host.status.agent.clock_offset_seconds) == (("b1",), "0a", 2.0)
    assert (host.status.facts.os_id, host.status.facts.memory_bytes, host.status.observed.cluster_name) == ("debian", 1 << 33, "demo")
    assert host.condition(ConditionType.AGENT_CONNECTED).is_true
    assert ByoMachine.of({"spec": {"providerID": "byoh://a/b/c"}}).spec.provider_id == "byoh://a/b/c"


def test_what_is_absent_is_empty_and_a_null_is_absent() -> None:
    for obj in ({"metadata": {"name": "one"}}, {"metadata": {"name": "one", "labels": None}, "spec": None, "status": {"agent": None, "conditions": None}}):
        host = ByoHost.of(obj)
        assert not host.claimed and not host.deleting and host.status.agent.last_seen == "" and host.metadata.labels == {}
        missing = host.condition(ConditionType.STABLE)
        assert not missing.is_true and not missing.is_false


def test_unknown_fields_of_a_newer_version_are_kept() -> None:
    assert ByoHost.of(FULL).spec.model_extra == {"newField": {"x": 1}}


def test_a_time_that_is_none_does_not_keep_the_rest_from_being_read() -> None:
    assert ByoHost.of(FULL).status.agent.last_seen == "yesterday"


def test_a_field_of_another_type_is_an_error_that_names_object_and_field() -> None:
    with pytest.raises(CkpError, match="ByoHost t/one can't be read") as caught:
        ByoHost.of({"metadata": {"name": "one", "namespace": "t"}, "spec": {"taints": "NoSchedule"}})
    assert "spec.taints" in caught.value.details and "NoSchedule" not in caught.value.details


def test_defaults_are_those_of_the_crd() -> None:
    plane = ManagedControlPlane.of({"metadata": {"name": "demo"}, "spec": {"version": "v1.35.1"}})
    assert (plane.spec.replicas, plane.spec.etcd.replicas, plane.spec.etcd.size, plane.spec.addons.cni) == (1, 1, "2Gi", "cilium")


def test_phases_are_those_of_the_protocol() -> None:
    assert tuple(HostPhase) == get_args(Phase)


def test_facts_are_named_as_the_protocol_names_them() -> None:
    assert set(type(ByoHost.of(FULL).status.facts).model_fields) <= set(HostFacts.model_fields)


def test_advice_is_read_under_its_old_name_too() -> None:
    assert HostFinding.model_validate({"problem": "p", "mend": "stop it"}).advice == "stop it"
    assert HostFinding.model_validate({"problem": "p", "mend": "old", "remediation": "new"}).advice == "new"


def test_reading_is_cheap_enough_for_thousands_of_hosts_in_one_pass() -> None:
    start = time.process_time()
    for _ in range(500):
        ByoHost.of(FULL)
    assert (time.process_time() - start) / 500 < 0.002


@pytest.mark.parametrize(
    "status",
    [
        {"facts": {"hostname": ["x"]}},
        {"facts": {"cpus": "many"}},
        {"facts": "x"},
        {"facts": {"findings": {"a": "b"}}},
        {"observed": {"phase": ["Free"]}},
        {"observed": 7},
        {"journal": "abc"},
        {"journal": ["abc"]},
        {"agent": {"connected": True, "clockOffsetSeconds": "x"}},
    ],
    ids=str,
)
def test_a_part_that_the_crd_does_not_check_keeps_nothing_else_from_being_read(status: dict[str, Any]) -> None:
    host = ByoHost.of({**FULL, "status": {**FULL["status"], **status}})
    assert (host.name, host.status.agent.connected) == ("one", True)


def test_a_host_whose_facts_cannot_be_read_is_not_claimed_and_does_not_keep_others_from_it() -> None:
    def free(name: str, facts: Any) -> ByoHost:
        return ByoHost.of({"metadata": {"name": name}, "status": {"agent": {"connected": True}, "observed": {"phase": "Free"}, "facts": facts}})

    odd, good = candidate(free("a", {"hostname": ["x"]})), candidate(free("b", {"cpus": 2}))
    choice = choose_host([odd, good], Wanted(), "m")
    assert choice.host == "b"
    assert odd.unavailable() == "unfit" and "cannot be read" in odd.unfit


@pytest.mark.parametrize("content", [None, "no json", "{}", '{"releases": 3}'], ids=str)
def test_a_releases_file_that_cannot_be_read_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "releases.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InvalidInput, match=r"the releases file .*releases\.json cannot be read"):
        Releases.load(path)
