"""The evidence of each of a cluster's steps: hosts are provisioned, connected, approved and assigned one after the other, and each can be missing alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ckp.api.objects.byo_host import ByoHost
from ckp.api.objects.control_plane import ManagedControlPlane
from ckp.rules.addons import Progress, Purpose, progress, requested
from ckp.rules.claims import Wanted
from ckp.rules.cluster_hosts import HostCounts, count_hosts
from ckp.rules.lifecycle import STEPS, Observation, evaluate

GROUP = {"hostgroup.ckp.coredge.io/lab": ""}
LAB = Wanted(GROUP, cpus=2)


def host(name: str, *, machine: str = "", labels: dict[str, str] = GROUP, **changes: Any) -> ByoHost:
    """A host of the group with all that the steps want; `changes` go over its status."""
    status = {
        "facts": {"os_id": "debian", "os_version": "12", "cpus": 4},
        "agent": {"connected": True, "certificateSerial": "0a"},
    }
    spec = {"machineRef": {"name": machine, "uid": machine}} if machine else {}
    return ByoHost.of({"metadata": {"name": name, "labels": labels}, "spec": spec | changes.pop("spec", {}), "status": {**status, **changes}})


def counts(*hosts: ByoHost, workers: int = 2, machines: tuple[str, ...] = ("m1", "m2"), leaving: tuple[str, ...] = ()) -> HostCounts:
    return count_hosts(hosts, [LAB], machines, leaving, workers)


READY = host("a"), host("b")


def test_hosts_of_the_group_that_are_ready_count_for_each_step() -> None:
    assert counts(*READY) == HostCounts(provisioned=2, connected=2, approved=2, assigned=2, claimed=0)
    assert counts(host("a", machine="m1"), host("b", machine="m2")).claimed == 2


@pytest.mark.parametrize(
    ("second", "missing"),
    [
        (host("b", facts={}), "provisioned"),
        (host("b", facts={"os_id": "debian", "os_version": "12", "cpus": 1}), "provisioned"),
        (host("b", facts={"os_id": "debian", "cpus": 4, "findings": [{"problem": "swap is on", "blocking": True}]}), "provisioned"),
        (host("b", agent={"certificateSerial": "0a"}), "connected"),
        (host("b", agent={"connected": True}), "approved"),
        (host("b", spec={"revokedSerial": "0a"}), "approved"),
        (host("b", labels={}), "assigned"),
    ],
)
def test_each_count_has_evidence_of_its_own(second: ByoHost, missing: str) -> None:
    assert counts(host("a"), second) == replace(counts(*READY), **{missing: 1})


def test_hosts_beside_the_group_count_only_while_it_has_too_few() -> None:
    """They are provisioned, connected and approved before they are put into the group."""
    assert counts(host("a", labels={}), host("b", labels={}), host("c", labels={})) == HostCounts(provisioned=2, connected=2, approved=2, assigned=0)
    offline = {"certificateSerial": "0a"}
    assert counts(host("a", agent=offline), host("b", agent=offline), host("c", labels={})).connected == 0, "others are no excuse for the group's own"


def test_hosts_of_other_clusters_and_hosts_that_leave_do_not_count() -> None:
    gone = ByoHost.of({"metadata": {"name": "c", "labels": GROUP, "deletionTimestamp": "2026-05-01T12:00:00Z"}})
    assert counts(host("a", machine="other"), gone) == HostCounts()


def test_a_host_that_a_machine_holds_is_assigned_whatever_became_of_its_labels() -> None:
    assert counts(host("a", machine="m1", labels={})).assigned == 1
    leaving = counts(host("a", machine="old", labels={}), leaving=("old",))
    assert (leaving.assigned, leaving.claimed) == (1, 0)


FULL = Observation(
    requested_at="2026-05-01T12:00:00Z",
    infrastructure_ready=True,
    workers=2,
    hosts=HostCounts(provisioned=2, connected=2, approved=2, assigned=2, claimed=2),
    resources=True,
    machines=2,
    control_plane_ready=True,
    nodes_joined=2,
    nodes_ready=2,
    workload_ready=True,
    network=(Progress("cilium", installed=True),),
    storage=(Progress("ceph", installed=True), Progress("velero", installed=True)),
    certificates=3,
    certificates_ready=3,
)
HOSTS = FULL.hosts
MISSING: dict[str, tuple[Observation, str]] = {
    "Requested": (replace(FULL, requested_at=""), ""),
    "ProviderResolved": (replace(FULL, infrastructure_ready=False), "the ByoCluster is not ready yet"),
    "HostsProvisioned": (replace(FULL, hosts=replace(HOSTS, provisioned=1)), "1 of 2 hosts report a system that fits"),
    "AgentsRegistered": (replace(FULL, hosts=replace(HOSTS, connected=1)), "1 of 2 hosts connected"),
    "HostsApproved": (replace(FULL, hosts=replace(HOSTS, approved=1)), "1 of 2 hosts approved"),
    "HostsAssigned": (replace(FULL, hosts=replace(HOSTS, assigned=1)), "1 of 2 hosts in the group and not held by another cluster"),
    "ResourcesCreated": (replace(FULL, resources=False), "not all objects are there yet"),
    "ReconcilersBootstrapped": (replace(FULL, hosts=replace(HOSTS, claimed=1)), "1 of 2 machines hold a host"),
    "WorkersJoined": (replace(FULL, nodes_joined=1, machines_failed="m1: no bundle"), "m1: no bundle"),
    "ClusterReady": (replace(FULL, nodes_ready=1), "1 of 2 nodes ready"),
    "NetworkInstalled": (replace(FULL, network=(Progress("cilium"),)), "cilium is being installed"),
    "StorageAndBackup": (replace(FULL, storage=(FULL.storage[0], Progress("velero", message="no S3"))), "no S3"),
    "CertificatesIssued": (replace(FULL, certificates_ready=2), "2 of 3 certificates"),
}


def done(seen: Observation) -> dict[str, bool | None]:
    return {step.name: is_done for step, is_done, _ in evaluate(seen)}


@pytest.mark.parametrize("name", sorted(MISSING))
def test_each_step_can_be_missing_alone(name: str) -> None:
    seen, message = MISSING[name]
    assert done(seen) == {**done(FULL), name: False}
    assert next(waiting for step, _, waiting in evaluate(seen) if step.name == name) == message


def test_every_step_but_one_is_missing_alone_above() -> None:
    """A control plane that is not up is no ready cluster either."""
    assert set(done(FULL)) - set(MISSING) == {"ControlPlaneUp"}
    assert all(done(FULL).values())
    assert {name for name, is_done in done(replace(FULL, control_plane_ready=False)).items() if not is_done} == {"ControlPlaneUp", "ClusterReady"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workload_message": "no pod of CoreDNS is ready"}, "no pod of CoreDNS is ready"),
        ({}, "no pod has been seen to work yet"),
        ({"nodes_ready": 0, "workload_message": "the cluster has no network yet"}, "0 of 2 nodes ready; the cluster has no network yet"),
        ({"nodes_ready": 0}, "0 of 2 nodes ready"),
    ],
)
def test_a_cluster_in_which_no_pod_works_is_not_ready(changes: dict[str, Any], message: str) -> None:
    """Nodes that are ready are not enough: a pod must resolve a name and reach the API server."""
    seen = replace(FULL, workload_ready=False, **changes)
    assert done(seen) == {**done(FULL), "ClusterReady": False}
    assert next(waiting for step, _, waiting in evaluate(seen) if step.name == "ClusterReady") == message


def test_nothing_counts_as_enough_before_there_is_a_machine_deployment() -> None:
    waiting = {name for name, is_done in done(replace(FULL, workers=0)).items() if not is_done}
    assert waiting == {"HostsProvisioned", "AgentsRegistered", "HostsApproved", "HostsAssigned", "ReconcilersBootstrapped", "WorkersJoined", "ClusterReady"}


def test_what_was_not_requested_is_no_step_to_wait_for() -> None:
    assert done(replace(FULL, network=(), storage=()))["NetworkInstalled"] is None
    assert len(STEPS) == len(done(FULL))


def test_addons_are_read_by_their_names() -> None:
    addons = [{"name": "other", "state": "Installed"}, {"name": "cilium", "state": "Installing", "message": "helm is installing the chart"}]
    plane = ManagedControlPlane.of({"metadata": {"name": "demo"}, "spec": {"version": "v1.35.1"}, "status": {"addons": addons}})
    assert progress(plane, Purpose.NETWORK) == (Progress("cilium", message="helm is installing the chart"),)
    assert progress(plane, Purpose.STORAGE, Purpose.BACKUP) == ()
    none = ManagedControlPlane.of({"metadata": {"name": "demo"}, "spec": {"version": "v1.35.1", "addons": {"cni": "none"}}})
    assert requested(none.spec) == () and progress(none, Purpose.NETWORK) == ()
