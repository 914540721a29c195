"""What Cluster API demands of a provider's CRDs (docs/reference/contract.md)."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from ckp.api.crds import all_crds
from tests.support.checkout import REPO

pytestmark = pytest.mark.contract
CRDS = {crd["spec"]["names"]["kind"]: crd for crd in all_crds()}


@pytest.mark.parametrize("kind", sorted(CRDS))
def test_crd_1_namespaced_and_named_by_plural_and_group(kind: str) -> None:
    crd = CRDS[kind]
    names = crd["spec"]["names"]
    assert crd["spec"]["scope"] == "Namespaced"
    assert crd["metadata"]["name"] == f"{names['plural']}.{crd['spec']['group']}"
    assert names["plural"] == names["plural"].lower() and names["plural"].startswith(kind.lower()[:-1])


@pytest.mark.parametrize("kind", sorted(CRDS))
def test_crd_2_the_contracts_label(kind: str) -> None:
    assert CRDS[kind]["metadata"]["labels"]["cluster.x-k8s.io/v1beta1"] == "v1beta1"
    assert [version["name"] for version in CRDS[kind]["spec"]["versions"]] == ["v1beta1"]


def test_crd_3_the_core_may_own_our_objects() -> None:
    documents: list[dict[str, Any]] = list(yaml.safe_load_all((REPO / "deploy" / "40-controllers.yaml").read_text()))
    role = next(item for item in documents if (item["metadata"].get("labels") or {}).get("cluster.x-k8s.io/aggregate-to-manager") == "true")
    assert set(role["rules"][0]["apiGroups"]) == {"controlplane.cluster.x-k8s.io", "infrastructure.cluster.x-k8s.io"}


def schema(kind: str, *path: str) -> dict[str, Any]:
    found: dict[str, Any] = CRDS[kind]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for name in path:
        found = found["properties"][name]
    return found


def test_cp_1_version_replicas_scale_and_selector() -> None:
    version = CRDS["ManagedControlPlane"]["spec"]["versions"][0]
    assert version["subresources"]["scale"] == {
        "specReplicasPath": ".spec.replicas",
        "statusReplicasPath": ".status.replicas",
        "labelSelectorPath": ".status.selector",
    }
    assert "version" in schema("ManagedControlPlane", "spec")["required"]
    status = schema("ManagedControlPlane", "status")["properties"]
    assert {"initialized", "ready", "version", "replicas", "readyReplicas", "updatedReplicas", "unavailableReplicas", "externalManagedControlPlane"} <= set(
        status
    )


def test_the_kinds_and_groups_of_upstreams_host_provider_are_kept() -> None:
    """Design: API compatible with BYOH, so people's manifests go on working."""
    for kind in ("ByoHost", "ByoCluster", "ByoMachine", "ByoMachineTemplate", "K8sInstallerConfig"):
        assert CRDS[kind]["spec"]["group"] == "infrastructure.cluster.x-k8s.io"
    assert {"selector", "installerRef", "providerID"} <= set(schema("ByoMachine", "spec")["properties"])
    assert "controlPlaneEndpoint" in schema("ByoCluster", "spec")["properties"]


def test_conditions_are_a_map_by_type_so_that_several_writers_do_not_overwrite_each_other() -> None:
    for kind in ("ByoHost", "ByoMachine", "ManagedControlPlane"):
        conditions = schema(kind, "status", "conditions")
        assert (conditions["x-kubernetes-list-type"], conditions["x-kubernetes-list-map-keys"]) == ("map", ["type"])
