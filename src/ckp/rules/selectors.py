"""Label selectors, as Kubernetes reads them (apimachinery, pkg/labels/selector.go). Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping


def matches(key: str, operator: str, values: Collection[str], labels: Mapping[str, str]) -> bool:
    """Whether labels meet one requirement of matchExpressions; an unknown operator is met by none."""
    match operator:
        case "In":
            return labels.get(key) in values
        case "NotIn":
            return labels.get(key) not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
    return False
