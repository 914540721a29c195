"""What was applied to objects, read back from the cluster: the fields that belong to one field manager (server-side apply, KEP-555).

So what a version of CKP has made of the management layer is known without that version, and can be applied again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

Obj = dict[str, Any]
Fields = Mapping[str, Any]


def applied_by(obj: Obj, manager: str) -> Obj:
    """An object with only what a field manager has set, so that it may be applied again; its name alone where it has set nothing.

    Args:
        obj: as the API server gives it, with its `managedFields`.
    """
    fields: dict[str, Any] = {}
    for entry in obj["metadata"].get("managedFields") or ():
        if entry.get("manager") == manager and not entry.get("subresource"):
            _merge(fields, entry.get("fieldsV1") or {})
    meta = obj["metadata"]
    found = _owned(obj, fields) if fields else {}  # below an object, nothing means all of it
    named = {"name": meta["name"], **({"namespace": meta["namespace"]} if meta.get("namespace") else {})}
    return {"apiVersion": obj["apiVersion"], "kind": obj["kind"], **found, "metadata": {**found.get("metadata", {}), **named}}


def _merge(into: dict[str, Any], more: Fields) -> None:
    for key, value in more.items():
        if key not in into:
            into[key] = _copy(value)
        elif into[key] and value:  # `{}` is all of it already
            _merge(into[key], value)
        else:
            into[key] = {}


def _copy(fields: Fields) -> dict[str, Any]:
    return {key: _copy(value) for key, value in fields.items()}


def _owned(value: Any, fields: Fields) -> Any:
    """As FieldsV1 says it: `f:` names a field, `k:` an item by its keys, `v:` an item of a set, `.` the thing itself; nothing below is all of it."""
    if not fields:
        return value
    if isinstance(value, dict):
        named = {key.removeprefix("f:"): inner for key, inner in fields.items() if key.startswith("f:")}
        return {name: _owned(value[name], inner) for name, inner in named.items() if name in value}
    if isinstance(value, list):
        return [item for each in value if (item := _item(each, fields)) is not None]
    return value


def _item(item: Any, fields: Fields) -> Any:
    for key, inner in fields.items():
        kind, _, text = key.partition(":")
        if kind == "v" and json.loads(text) == item:
            return item
        if kind == "k" and isinstance(item, dict):
            keys = json.loads(text)
            if all(item.get(name) == wanted for name, wanted in keys.items()):
                return _owned(item, inner)
    return None
