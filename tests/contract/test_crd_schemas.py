"""The CRDs' schemas are generated from the read models; what they allow stays what 0.2.0 allowed, but for what is listed here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest

from ckp.api.crds import all_crds
from ckp.api.objects.base import ApiModel, Schema
from ckp.api.objects.control_plane import FIXED_ETCD, ONE_MINOR
from ckp.api.objects.openapi import schema_of

BEFORE: dict[str, Any] = json.loads((Path(__file__).parent / "crds-0.2.0.json").read_text())
NOW = {crd["spec"]["names"]["kind"]: crd for crd in all_crds()}
CHANGED: dict[str, Any] = {
    # the hub wrote it all along; only the schema did not name it
    "ByoHost.status.agent.clockOffsetSeconds: type": "number",
    # still a list, so that stored objects are read; a map by name, so that several writers of addons do not overwrite each other
    "ManagedControlPlane.status.addons: x-kubernetes-list-type": "map",
    "ManagedControlPlane.status.addons: x-kubernetes-list-map-keys": ["name"],
    "ManagedControlPlane.status.addons[items]: required": ["name"],
    # new: an API server that is reached by further names and addresses
    "ManagedControlPlane.spec.certSANs: type": "array",
    "ManagedControlPlane.spec.certSANs[items]: type": "string",
    "ManagedControlPlaneTemplate.spec.template.spec.certSANs: type": "array",
    "ManagedControlPlaneTemplate.spec.template.spec.certSANs[items]: type": "string",
    # members and volumes were never changed by it; now it is refused with a sentence
    "ManagedControlPlane.spec: x-kubernetes-validations": FIXED_ETCD,
    # a control plane that skips minors or goes back breaks its cluster; only changes of the version are judged
    "ManagedControlPlane: x-kubernetes-validations": ONE_MINOR,
    # a step of which nobody can see whether it is still done
    "ManagedControlPlane.status.steps[items].state: enum": ["Pending", "Running", "Done", "Skipped", "Failed", "Unknown"],
    # what was seen of etcd, so that a database that lost data is known by it
    "ManagedControlPlane.status.etcd: type": "object",
    "ManagedControlPlane.status.etcd.clusterId: type": "string",
    **{f"ManagedControlPlane.status.etcd.{name}: type": "integer" for name in ("revision", "databaseBytes", "inUseBytes", "quotaBytes")},
    **{f"ManagedControlPlane.status.etcd.{name}: format": "int64" for name in ("revision", "databaseBytes", "inUseBytes", "quotaBytes")},
}
"""Every keyword that is another than at 0.2.0, and why."""
NEW_KINDS = {"ByoRemediation", "ByoRemediationTemplate", "ClusterUpgrade"}
ADDED = (
    *("ByoCluster.status.replacements", "ByoCluster.status.unhealthy", "ByoMachine.status.nodeReadyAt"),
    *("ByoMachine.spec.kubernetesVersion", "ByoMachine.spec.prepareVersion", "ByoMachine.status.upgrade"),
    *(f"ByoMachineTemplate.spec.template.spec.{name}" for name in ("kubernetesVersion", "prepareVersion")),
    *("ManagedControlPlane.spec.backup", "ManagedControlPlaneTemplate.spec.template.spec.backup"),
    *("ManagedControlPlane.spec.upgrade", "ManagedControlPlaneTemplate.spec.template.spec.upgrade"),
    *("ManagedControlPlane.status.backup", "ManagedControlPlane.status.restore", "ManagedControlPlane.status.upgrade"),
    *("ByoCluster.spec.imageFetchTimeout", "ByoClusterTemplate.spec.template.spec.imageFetchTimeout"),
)
"""Fields that 0.2.0 did not have, with all that is below them: none is required of a stored object."""


def keywords(node: dict[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    """Each keyword of a schema by the path of its field; descriptions, and the order of names, mean nothing to the API server."""
    for key, value in node.items():
        if key == "properties":
            for name, below in value.items():
                yield from keywords(below, f"{path}.{name}")
        elif key in ("items", "additionalProperties"):
            yield from keywords(value, f"{path}[{key}]")
        elif key != "description":
            yield f"{path}: {key}", sorted(value) if key == "required" else value


def described(crds: dict[str, Any]) -> dict[str, Any]:
    return {path: value for kind, crd in crds.items() for path, value in keywords(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"], kind)}


def test_the_snapshot_is_not_empty() -> None:
    assert len(described(BEFORE)) > 300 and described(BEFORE)["ManagedControlPlane.spec.etcd.replicas: enum"] == [1, 3, 5]


def test_schemas_allow_what_they_allowed_but_for_the_changes_listed() -> None:
    before, now = described(BEFORE), described(NOW)
    assert not any(path.startswith(ADDED) for path in before)
    differ = {path: now.get(path) for path in before.keys() | now.keys() if before.get(path) != now.get(path) and not path.startswith(ADDED)}
    assert {path: value for path, value in differ.items() if path.partition(".")[0].partition(":")[0] not in NEW_KINDS} == CHANGED


def test_everything_of_a_crd_but_its_schema_is_as_it_was() -> None:
    for kind in NOW.keys() - NEW_KINDS:
        crd = NOW[kind]
        [version], [old] = crd["spec"]["versions"], BEFORE[kind]["spec"]["versions"]
        assert {**version, "schema": None} == {**old, "schema": None}
        assert {**crd, "spec": {**crd["spec"], "versions": None}} == {**BEFORE[kind], "spec": {**BEFORE[kind]["spec"], "versions": None}}
    assert NOW.keys() - NEW_KINDS == BEFORE.keys()


ALLOWED = {
    *("type", "description", "properties", "required", "items", "additionalProperties", "format", "maximum", "minimum", "enum", "pattern", "default"),
    *("x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-validations", "x-kubernetes-preserve-unknown-fields"),
}


def levels(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for below in [*node.get("properties", {}).values(), *(node[key] for key in ("items", "additionalProperties") if key in node)]:
        yield from levels(below)


@pytest.mark.parametrize("kind", sorted(NOW))
def test_schemas_are_structural(kind: str) -> None:
    """Kubernetes: each level has a type, is inline, and uses only keywords that a structural schema may."""
    for level in levels(NOW[kind]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]):
        assert level["type"] in ("object", "array", "string", "integer", "number", "boolean") and level.keys() <= ALLOWED
        for key in level.get("x-kubernetes-list-map-keys", ()):
            assert key in level["items"]["required"], "what tells entries of a map apart is never absent"


def test_a_type_without_a_structural_schema_is_refused() -> None:
    class Odd(ApiModel):
        either: int | str = 0

    with pytest.raises(TypeError, match="no structural schema for int"):
        schema_of(Odd)


def test_keywords_come_from_the_types_and_from_the_fields() -> None:
    class Some(ApiModel):
        two_words: Annotated[int | None, Schema("Why.", minimum=0)] = None
        size: Annotated[str, Schema(defaulted=True, required=True)] = "2Gi"

    assert schema_of(Some) == {
        "type": "object",
        "properties": {"twoWords": {"type": "integer", "description": "Why.", "minimum": 0}, "size": {"type": "string", "default": "2Gi"}},
        "required": ["size"],
    }
