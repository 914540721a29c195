"""The CustomResourceDefinitions of CKP's kinds, their schemas generated from the read models: `python -m ckp.api.crds` prints them.

Contract (every CRD): namespaced, named by its lower-case plural and group, labelled with the contract's version.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ckp.api.names import CONTRACT_LABEL, CONTROLPLANE_GROUP, INFRASTRUCTURE_GROUP, V1BETA1
from ckp.api.objects.base import Resource
from ckp.api.objects.byo_cluster import ByoCluster, ByoClusterTemplate
from ckp.api.objects.byo_host import ByoHost
from ckp.api.objects.byo_machine import ByoMachine, ByoMachineTemplate
from ckp.api.objects.byo_remediation import ByoRemediation, ByoRemediationTemplate
from ckp.api.objects.cluster_upgrade import ClusterUpgrade
from ckp.api.objects.control_plane import ONE_MINOR, ManagedControlPlane, ManagedControlPlaneTemplate
from ckp.api.objects.installer_config import K8sInstallerConfig, K8sInstallerConfigTemplate
from ckp.api.objects.openapi import schema_of

Column = tuple[str, str, str]
"""Title, type and JSONPath of a column of `kubectl get`."""

READY: Column = ("Ready", "boolean", ".status.ready")
HOST_COLUMNS: tuple[Column, ...] = (
    ("Connected", "boolean", ".status.agent.connected"),
    ("Phase", "string", ".status.observed.phase"),
    ("Machine", "string", ".spec.machineRef.name"),
    ("OS", "string", ".status.hostinfo.osimage"),
)
MACHINE_COLUMNS: tuple[Column, ...] = (READY, ("Host", "string", ".status.hostRef.name"), ("ProviderID", "string", ".spec.providerID"))
PLANE_COLUMNS: tuple[Column, ...] = (
    ("Version", "string", ".spec.version"),
    ("Initialized", "boolean", ".status.initialized"),
    READY,
    ("Endpoint", "string", ".spec.controlPlaneEndpoint.host"),
)
UPGRADE_COLUMNS: tuple[Column, ...] = (
    ("Cluster", "string", ".spec.clusterName"),
    ("Version", "string", ".spec.version"),
    ("Phase", "string", ".status.phase"),
    ("Message", "string", ".status.message"),
)


def _crd(group: str, model: type[Resource], *columns: Column, scale: bool = False, rules: Sequence[dict[str, str]] = ()) -> dict[str, Any]:
    """One CRD; the model's name is the kind. `rules`: of the whole object, in CEL."""
    kind = model.__name__
    plural = f"{kind.lower()}s"
    schema = schema_of(model)
    schema["properties"]["metadata"] = {"type": "object"}  # the API server has its own schema for it, and accepts no other here
    if rules:
        schema["x-kubernetes-validations"] = list(rules)
    subresources: dict[str, Any] = {"status": {}} if "status" in schema["properties"] else {}
    if scale:
        subresources["scale"] = {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.selector"}
    printed = [{"name": name, "type": type_, "jsonPath": path} for name, type_, path in columns]
    printed.append({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"})
    version = {
        "name": V1BETA1,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "subresources": subresources,
        "additionalPrinterColumns": printed,
    }
    labels = {**CONTRACT_LABEL, "cluster.x-k8s.io/provider": "infrastructure-byoh" if group == INFRASTRUCTURE_GROUP else "control-plane-ckp"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}", "labels": labels},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": kind, "listKind": f"{kind}List", "plural": plural, "singular": kind.lower(), "categories": ["cluster-api"]},
            "versions": [version],
        },
    }


def all_crds() -> list[dict[str, Any]]:
    """Every CRD, in a fixed order."""
    infra, control = INFRASTRUCTURE_GROUP, CONTROLPLANE_GROUP
    return [
        _crd(infra, ByoHost, *HOST_COLUMNS),
        _crd(infra, ByoCluster, READY),
        _crd(infra, ByoClusterTemplate),
        _crd(infra, ByoMachine, *MACHINE_COLUMNS),
        _crd(infra, ByoMachineTemplate),
        _crd(infra, K8sInstallerConfig, READY),
        _crd(infra, K8sInstallerConfigTemplate),
        _crd(infra, ByoRemediation),
        _crd(infra, ByoRemediationTemplate),
        _crd(control, ManagedControlPlane, *PLANE_COLUMNS, scale=True, rules=ONE_MINOR),
        _crd(control, ManagedControlPlaneTemplate),
        _crd(control, ClusterUpgrade, *UPGRADE_COLUMNS),
    ]


if __name__ == "__main__":
    print(json.dumps({"apiVersion": "v1", "kind": "List", "items": all_crds()}, indent=1))
