"""An existing cluster that CKP installs only its own layer onto: judged, planned, applied, and left as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ckp.kits.errors import CkpError, InvalidInput
from ckp.site.clusters import brought
from ckp.site.clusters.existing import ExistingCluster
from ckp.site.clusters.look import CERT_MANAGER, CLUSTER_API, SeenExisting, SeenGroup, problems
from ckp.site.spec.read import InvalidSite, parse_site
from tests.unit.site.test_existing_registry import Place
from tests.worlds.applied_site import RELEASE, TEXT, AppliedSite

HOSTS = "  hosts:\n    - {name: m1, address: 192.0.2.10}\n"
CHANGES = (
    (HOSTS, "  kubeconfig: admin.conf\n"),
    ("ciliumPool: {first: 192.0.2.200, last: 192.0.2.220}", "className: metallb.example/lb"),
    ("own: {name: images.example.test, port: 5443, storage: /srv/images}", "existing: {address: 'images.example.test:5443', prefix: infra/k8s}"),
    ("workers: {group", "workers: {systems: [debian-12], group"),
    ("hostSettings: {kubelet: {maxPods: 50}}\n", ""),
)
ADDRESSES = {"Compass": "192.0.2.200", "the hub": "192.0.2.201"}


def text(*changes: tuple[str, str]) -> str:
    """The file of a site on an existing cluster."""
    found = TEXT
    for old, new in (*CHANGES, *changes):
        assert old in found, old
        found = found.replace(old, new)
    return found


# -- judging


KINDS = frozenset({"kubeadmconfigtemplates.bootstrap.cluster.x-k8s.io"})
GOOD = SeenExisting("v1.33.4", admin=True)
FAULTS: dict[str, tuple[SeenExisting, str]] = {
    "an old version": (SeenExisting("v1.27.9", admin=True), "runs Kubernetes v1.27.9, and CKP needs 1.28 or newer"),
    "no version": (SeenExisting("?", admin=True), "runs Kubernetes ?"),
    "too few rights": (SeenExisting("v1.33.4", admin=False), "the kubeconfig may not do everything"),
    "another Cluster API": (
        SeenExisting("v1.33.4", True, {CLUSTER_API: SeenGroup(CLUSTER_API, "v1.9.3", KINDS)}),
        "the cluster has Cluster API v1.9.3, and CKP's providers are for v1.7.x",
    ),
    "definitions of Cluster API only": (SeenExisting("v1.33.4", True, {CLUSTER_API: SeenGroup(CLUSTER_API, "")}), "and no Deployment capi-controller-manager"),
    "no bootstrap provider": (SeenExisting("v1.33.4", True, {CLUSTER_API: SeenGroup(CLUSTER_API, "v1.7.7")}), "without kubeadm's bootstrap provider"),
    "cert-manager elsewhere": (SeenExisting("v1.33.4", True, {CERT_MANAGER: SeenGroup(CERT_MANAGER, "")}), "no Deployment cert-manager in the namespace"),
    "a taken address": (SeenExisting("v1.33.4", True, services={"192.0.2.201": "web/front"}), "192.0.2.201 of the hub is that of the Service web/front"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_cluster_that_can_not_be_used_is_named_with_what_to_do(name: str) -> None:
    seen, words = FAULTS[name]
    [found] = problems(seen, ADDRESSES)
    assert words in found.what and found.remedy


def test_what_its_owner_has_may_be_used() -> None:
    own = {CERT_MANAGER: SeenGroup(CERT_MANAGER, "v1.15.3"), CLUSTER_API: SeenGroup(CLUSTER_API, "v1.7.4", KINDS)}
    for seen in (GOOD, SeenExisting("v1.35.1+k3s1", True, own, {"192.0.2.77": "web/front"})):
        assert list(problems(seen, ADDRESSES)) == []


# -- the file


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (CHANGES[2][1], CHANGES[2][0], "CKP's own registry runs on management hosts, and there are none"),
        (CHANGES[1][1], CHANGES[1][0], "the network of an existing cluster is not CKP's"),
        (CHANGES[1][1], "onHosts: [192.0.2.200, 192.0.2.201]", "its hosts are not CKP's"),
        ("prefix: infra/k8s", "pullCredentialsFile: pull.json", "the nodes of an existing cluster can't be given a password"),
        ("systems: [debian-12], ", "", "workers.systems is missing"),
        ("addonValues", "hostSettings: {kubelet: {}}\naddonValues", "they are for management hosts, and there are none"),
        ("  managementPods", "  api: {names: [api.example.test]}\n  managementPods", "an existing cluster has a certificate of its own"),
    ],
)
def test_what_can_not_be_together_is_an_error_of_the_file_with_the_reason(old: str, new: str, words: str) -> None:
    with pytest.raises(InvalidSite) as caught:
        parse_site(text((old, new)).encode(), Path("site.yaml"))
    assert words in str(caught.value) + caught.value.details


def test_the_rest_is_taken() -> None:
    parse_site(text().encode(), Path("site.yaml"))


# -- a site on it


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AppliedSite:
    """A cluster of somebody's, with a StorageClass and an application in it."""
    made = AppliedSite(tmp_path, monkeypatch)
    Place(tmp_path, monkeypatch)
    (tmp_path / "admin.conf").write_text("the owner's")
    made.file.write_text(text())
    made.host.api.start("uid-of-owner")
    made.host.api.add(
        "StorageClass", "", "fast", provisioner="rancher.io/local-path", metadata={"annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}
    )
    made.host.api.add("Deployment", "web", "front", spec={"template": {"spec": {"containers": []}}})

    def kubectl(_cluster: ExistingCluster, *words: str, stdin: str | None = None, timeout: float = 0) -> str:
        code, out, err = made.host.api.kubectl(words, stdin)
        if code:
            raise CkpError(f"kubectl {words[0]} failed", details=err)
        return out

    monkeypatch.setattr(ExistingCluster, "kubectl", kubectl)
    return made


def rows(site: AppliedSite) -> dict[str, dict[str, str]]:
    return site.plan()[1]


def findings(site: AppliedSite) -> list[str]:
    return [f"{item['check']}: {item['what']}" for item in json.loads(site.run("check", "-o", "json").stdout)["items"]]


def layer(site: AppliedSite) -> dict[tuple[str, str, str], dict[str, Any]]:
    """What has the site's label."""
    return {key: each for key, each in site.host.api.objects.items() if (each["metadata"].get("labels") or {}).get(brought.SITE_LABEL) == "berlin"}


def test_only_the_layer_is_planned_and_installed_and_no_host_is_touched(site: AppliedSite) -> None:
    assert findings(site) == []
    code, planned = site.plan()
    assert code == 1
    assert planned["management cluster"]["detail"] == "an existing cluster, Kubernetes v1.33.4: only CKP's layer is installed"
    assert {part: planned[part]["action"] for part in ("foundation", "cert-manager", "cluster-api", "ckp")} == dict.fromkeys(
        ("foundation", "cert-manager", "cluster-api", "ckp"), "create"
    )
    assert not {"host tool", "host settings", "registry name"} & planned.keys()
    done = site.run("apply")
    assert "Installing a standalone CKP node" not in done.output and site.host.calls == [call for call in site.host.calls if call.startswith("kubectl")]
    assert {"ckp-compass", "ckp-hub", "ckp-controllers", "cert-manager"} <= {name for kind, _, name in layer(site) if kind == "Deployment"}
    assert {part: row for part, row in rows(site).items() if row["action"] != "none"} == {}
    assert findings(site) == []
    status = json.loads(site.run("status", "-o", "json").stdout)
    assert "ckp-system/ckp-compass" in {part["name"] for part in status} and "host" not in {part["name"] for part in status}
    assert (site.root / "admin.conf").read_text() == "the owner's"


def test_cert_manager_and_cluster_api_of_the_owner_are_used_and_stay(site: AppliedSite) -> None:
    for name in ("certificates.cert-manager.io", "clusters.cluster.x-k8s.io", *KINDS):
        site.host.api.add("CustomResourceDefinition", "", name)
    pod = {"template": {"spec": {"containers": [{"name": "main", "image": "q.example/cert-manager-controller:v1.15.3@sha256:0"}]}}}
    site.host.api.add("Deployment", "cert-manager", "cert-manager", spec=pod)
    capi = {"template": {"spec": {"containers": [{"name": "manager", "image": "r.example/cluster-api-controller:v1.7.7"}]}}}
    site.host.api.add("Deployment", "capi-system", "capi-controller-manager", spec=capi)
    assert findings(site) == []
    assert (rows(site)["cert-manager"]["action"], rows(site)["cert-manager"]["detail"]) == ("none", "that of the cluster's owner is used: v1.15.3")
    site.run("apply")
    before = dict(site.host.api.objects)
    assert ("Deployment", "cert-manager-system", "cert-manager") not in before and ("Deployment", "capi-system", "capi") not in before
    site.run("remove", "--confirm", "berlin")
    assert layer(site) == {}
    for key in (("Deployment", "cert-manager", "cert-manager"), ("Deployment", "capi-system", "capi-controller-manager"), ("Deployment", "web", "front")):
        assert site.host.api.objects[key] == before[key]
    assert ("CustomResourceDefinition", "", "certificates.cert-manager.io") in site.host.api.objects


def test_a_cluster_that_can_not_be_used_is_refused_before_anything_is_changed(site: AppliedSite) -> None:
    site.host.api.add("Service", "web", "front", spec={"type": "LoadBalancer"}, status={"loadBalancer": {"ingress": [{"ip": "192.0.2.200"}]}})
    assert findings(site) == ["cluster: the address 192.0.2.200 of Compass is that of the Service web/front"]
    code, planned = site.plan()
    assert code == 2 and planned["management cluster"]["action"] == "refused"
    before = site.everything()
    with pytest.raises(InvalidInput, match="nothing was changed"):
        site.run("apply")
    assert site.everything() == before


def test_a_cluster_without_a_default_class_is_found(site: AppliedSite) -> None:
    site.host.api.objects["StorageClass", "", "fast"]["metadata"]["annotations"] = {}
    assert findings(site) == ["storage: the cluster has no default StorageClass, and etcd and Compass' SQLite would get no volume"]


def test_a_cluster_that_does_not_answer_is_a_finding_and_an_error(site: AppliedSite) -> None:
    site.host.api.answers = False
    [found] = findings(site)
    assert found.startswith("cluster: kubectl version failed")
    with pytest.raises(CkpError):
        site.run("plan")


def test_a_cluster_with_another_site_is_refused(site: AppliedSite) -> None:
    site.host.api.add("Namespace", "", "ckp-system", metadata={"labels": {brought.SITE_LABEL: "paris"}})
    assert findings(site) == ["cluster: the cluster carries the site paris"]
    assert site.plan()[0] == 2


def test_removing_takes_what_was_brought_and_nothing_else(site: AppliedSite) -> None:
    before = dict(site.host.api.objects)
    site.run("apply")
    site.host.api.add("Namespace", "", "ckp-a-b", metadata={"labels": {"ckp.coredge.io/domain": "a"}})
    site.host.create_cluster("one", RELEASE)
    site.host.api.add("Cluster", "ckp-a-b", "one")
    with pytest.raises(CkpError, match="the site carries 1 workload clusters"):
        site.run("remove", "--confirm", "berlin")
    site.host.api.objects = {key: each for key, each in site.host.api.objects.items() if key[1] != "ckp-a-b"}
    site.run("remove", "--confirm", "berlin")
    left = {key for key in site.host.api.objects if key[1] not in ("ckp-system", "cert-manager")}  # those go with their namespaces
    assert left == set(before)
