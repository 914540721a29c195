"""The labels and taints that users set on a host are its node's too, also those that change after the join."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ckp.api.objects.byo_host import ByoHost
from ckp.rules.claims import user_labels


@dataclass(frozen=True)
class LabelsAndTaints:
    """The labels and taints that a host gives to the node of one machine.

    `settled`: the node carries exactly these. Otherwise these are all that it may have got from us so far, to be removed again if they are not wanted.
    """

    machine: str = ""  # uid of the ByoMachine whose node it is
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[str, ...] = ()
    settled: bool = False

    @classmethod
    def wanted(cls, host: ByoHost) -> LabelsAndTaints:
        """What a ByoHost asks for."""
        return cls(host.spec.machine_ref.uid, user_labels(host.metadata.labels), host.spec.taints, settled=True)

    @classmethod
    def recorded(cls, host: ByoHost) -> LabelsAndTaints:
        """What a ByoHost's status records of them."""
        found = host.status.node_marks
        return cls(found.machine, found.labels, found.taints, found.settled)

    def to_json(self) -> dict[str, Any]:
        """For the status."""
        return {"machine": self.machine, "labels": dict(self.labels), "taints": list(self.taints), "settled": self.settled}

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self.labels or self.taints)

    def joined_with(self, wanted: LabelsAndTaints) -> LabelsAndTaints:
        """Before the join: the node registers with one of all the sets that it was given meanwhile, and it is not known with which."""
        return replace(wanted, labels={**self.labels, **wanted.labels}, taints=tuple(dict.fromkeys((*self.taints, *wanted.taints))), settled=False)


def node_patch(node: Mapping[str, Any], before: LabelsAndTaints, wanted: LabelsAndTaints) -> dict[str, Any]:
    """The merge patch that brings a Node from `before` to `wanted`; empty if there is nothing to do. What others put on it stays.

    With the resourceVersion: taints are one list that others change too, so it must be the one that was read.
    """
    labels = node["metadata"].get("labels") or {}
    changed: dict[str, str | None] = {key: value for key, value in wanted.labels.items() if labels.get(key) != value}
    changed |= {key: None for key in before.labels if key not in wanted.labels and key in labels}
    has = list((node.get("spec") or {}).get("taints") or [])
    ours = {_key(taint) for taint in map(parse_taint, (*before.taints, *wanted.taints))}
    kept = {_key(taint): taint for taint in has if _key(taint) in ours}
    taints = [taint for taint in has if _key(taint) not in ours]
    for taint in map(parse_taint, wanted.taints):
        old = kept.get(_key(taint), {})
        taints.append(old if old.get("value", "") == taint.get("value", "") and old else taint)
    patch: dict[str, Any] = {}
    if changed:
        patch["metadata"] = {"labels": changed}
    if sorted(map(_text, taints)) != sorted(map(_text, has)):
        patch["spec"] = {"taints": taints or None}
    if patch:
        patch.setdefault("metadata", {})["resourceVersion"] = node["metadata"]["resourceVersion"]
    return patch


def parse_taint(text: str) -> dict[str, str]:
    """`key[=value]:effect` as an entry of a Node's spec.taints."""
    mark, _, effect = text.rpartition(":")
    key, _, value = mark.partition("=")
    return {"key": key, "effect": effect, **({"value": value} if value else {})}


def _key(taint: Mapping[str, Any]) -> tuple[str, str]:
    """What makes a taint the same one (core/v1: key and effect)."""
    return str(taint.get("key")), str(taint.get("effect"))


def _text(taint: Mapping[str, Any]) -> str:
    return f"{taint.get('key')}={taint.get('value', '')}:{taint.get('effect')}"
