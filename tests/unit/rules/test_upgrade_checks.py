"""What stands against an upgrade: each blocker is named alone, with its place and a remedy, and only some may be accepted."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckp.agent.node.upgrade_steps import SPARE, USUAL_BUNDLE
from ckp.api.platform import Options
from ckp.rules.upgrade_checks import ACCEPTABLE, Check, DeprecatedApi, Facts, NodeFacts, check, deprecated_apis, holding
from ckp.rules.upgrade_options import Used
from ckp.rules.upgrades import Version, path

NOW = datetime(2026, 5, 1, tzinfo=UTC)
RELEASES = dict.fromkeys(("v1.33.7", "v1.34.3", "v1.35.1"), ("debian-12", "ubuntu-24.04"))
NODE = NodeFacts("n1", "workers", "v1.33.7-ckp", "debian-12", ready=True, online=True)
GOOD = Facts("v1.33.7", "v1.35.1", path("v1.33.7", "v1.35.1", RELEASES), RELEASES, (NODE,), certificates={"demo-apiserver": NOW + timedelta(days=900)})
OPTIONS = {
    "v1.33.7": Options(free_gates=("New", "Old")),
    "v1.34.3": Options(free_gates=("New",), removed_flags={"kubelet": ("cloud-config",)}),
    "v1.35.1": Options(free_gates=("New",)),
}
CASES: dict[Check, tuple[Facts, str]] = {
    Check.NO_WAY: (replace(GOOD, path=path("v1.35.1", "v1.34.3", RELEASES)), "v1.35.1"),
    Check.RELEASE_MISSING: (replace(GOOD, path=path("v1.33.7", "v1.35.1", ("v1.35.1",))), "v1.34"),
    Check.BUNDLE_MISSING: (replace(GOOD, nodes=(replace(NODE, system="rhel-9"),)), "n1"),
    Check.OTHER_UPGRADE: (replace(GOOD, other="demo-1"), "demo-1"),
    Check.NOT_REACHED: (replace(GOOD, unseen="timed out"), "API server"),
    Check.CONTROL_PLANE: (replace(GOOD, plane="the API server is starting"), "control plane"),
    Check.ETCD: (replace(GOOD, etcd="1 of 3 members of etcd are ready"), "etcd"),
    Check.ETCD_SPACE: (replace(GOOD, etcd_space="760 MiB in use of the 800 MiB that its volume has room for"), "etcd"),
    Check.AGENT: (replace(GOOD, nodes=(replace(NODE, old_agent="0.2.0"),)), "upgrade-agent n1"),
    Check.SPACE: (replace(GOOD, nodes=(replace(NODE, free=1 << 30),)), "1024 MiB are free"),
    Check.CORDON: (replace(GOOD, nodes=(replace(NODE, cordoned=True),)), "n1"),
    Check.TAINT: (replace(GOOD, nodes=(replace(NODE, taints=("node.kubernetes.io/disk-pressure",)),)), "disk-pressure"),
    Check.ADDON: (replace(GOOD, addons=(("calico", "v1.34.3"),)), "calico"),
    Check.SKEW: (replace(GOOD, nodes=(replace(NODE, kubelet="v1.29.9"),)), "n1"),
    Check.UNKNOWN: (replace(GOOD, unknown=("n9",)), "n9"),
    Check.NODE: (replace(GOOD, nodes=(replace(NODE, ready=False),)), "n1"),
    Check.HOST: (replace(GOOD, nodes=(replace(NODE, online=False),)), "n1"),
    Check.BUDGET: (replace(GOOD, budgets=(("shop/web", "2 of 2 pods are needed"),)), "shop/web"),
    Check.WEBHOOK: (replace(GOOD, webhooks=(("ValidatingWebhookConfiguration/policy", "policy/server"),)), "ValidatingWebhookConfiguration/policy"),
    Check.REMOVED_API: (replace(GOOD, deprecated=(DeprecatedApi("flowschemas.v1beta3", Version(1, 34, 0)),)), "flowschemas.v1beta3"),
    Check.GATE: (replace(GOOD, options=OPTIONS, kubelets=(Used("n1", "kubelet", "v1.33.7", {"Old": True}),)), "n1"),
    Check.FLAG: (replace(GOOD, options=OPTIONS, kubelets=(Used("n1", "kubelet", "v1.33.7", flags=("cloud-config",)),)), "cloud-config"),
    Check.OPTIONS: (replace(GOOD, unseen_options=(("n1", "timed out"),)), "n1"),
    Check.BACKUP: (replace(GOOD, backup="there is none"), "backup"),
    Check.CERTIFICATE: (replace(GOOD, certificates={"demo-admin": NOW + timedelta(days=3)}), "demo-admin"),
}


def test_a_cluster_that_is_well_has_no_finding_and_every_check_has_a_case() -> None:
    assert check(GOOD, NOW) == [] and CASES.keys() == set(Check)


@pytest.mark.parametrize("name", list(Check))
def test_each_blocker_is_named_alone_with_its_place_and_a_remedy(name: Check) -> None:
    facts, where = CASES[name]
    [found] = check(facts, NOW)
    assert (found.name, found.acceptable) == (name, name in ACCEPTABLE)
    assert where in found.where + found.message + found.remedy and found.remedy
    assert bool(holding([found], {name})) == (not found.acceptable) and holding([found], ())


@given(st.sets(st.sampled_from(list(Check))), st.sets(st.sampled_from(list(Check))))
def test_what_may_not_be_accepted_holds_it_up_whatever_is_accepted(present: set[Check], accepted: set[Check]) -> None:
    found = [finding for name in present for finding in check(CASES[name][0], NOW)]
    assert {finding.name for finding in holding(found, accepted)} == {name for name in present if name not in accepted & ACCEPTABLE}


def test_a_removed_api_counts_from_the_release_without_it_and_a_budget_only_where_nodes_are_drained() -> None:
    later = replace(GOOD, deprecated=(DeprecatedApi("things.v1beta1", Version(1, 36, 0)),))
    assert check(later, NOW) == [] == check(replace(CASES[Check.BUDGET][0], nodes=()), NOW)


@given(st.integers(0, 4 << 30), st.booleans(), st.sampled_from(["v1.33.7", "v1.35.1-ckp"]))
def test_space_is_asked_for_only_of_hosts_that_install_and_less_of_those_that_have_the_bundle(free: int, prepared: bool, kubelet: str) -> None:
    facts = replace(GOOD, nodes=(replace(NODE, free=free, prepared=prepared, kubelet=kubelet),))
    found = [finding for finding in check(facts, NOW) if finding.name is Check.SPACE]
    needed = SPARE + (0 if prepared else 2 * USUAL_BUNDLE)
    assert bool(found) == (free < needed and kubelet == "v1.33.7")
    assert all(f"{free >> 20} MiB are free" in finding.message and f"{needed >> 20} MiB are needed" in finding.message for finding in found)


def test_deprecated_apis_are_read_from_the_api_servers_metrics() -> None:
    metrics = """# TYPE apiserver_requested_deprecated_apis gauge
apiserver_requested_deprecated_apis{group="flowcontrol.apiserver.k8s.io",removed_release="1.32",resource="flowschemas",subresource="",version="v1beta3"} 1
apiserver_requested_deprecated_apis{group="apps",removed_release="1.40",resource="things",subresource="status",version="v1beta1"} 1
apiserver_requested_deprecated_apis{group="",removed_release="",resource="componentstatuses",subresource="",version="v1"} 1
apiserver_requested_deprecated_apis{group="old",removed_release="1.30",resource="never",subresource="",version="v1"} 0
other_metric{removed_release="1.20"} 1
"""
    found = deprecated_apis(metrics)
    assert [(api.name, api.removed_in.line) for api in found] == [
        ("flowschemas.v1beta3.flowcontrol.apiserver.k8s.io", "v1.32"),
        ("things.v1beta1.apps/status", "v1.40"),
    ]
    assert deprecated_apis("") == []
