"""Structural schemas (OpenAPI v3, as CustomResourceDefinitions want them) from the read models.

Kubernetes wants every level inline and typed: no $ref, no titles, no anyOf
(https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema).
An optional field is one that may be absent; none is nullable, so a null is dropped or refused by the API server.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from ckp.api.objects.base import ApiModel, Schema

OpenApi = dict[str, Any]
PRESERVE = "x-kubernetes-preserve-unknown-fields"
SCALARS: Mapping[Any, str] = {str: "string", bool: "boolean", int: "integer", float: "number"}


def schema_of(model: type[ApiModel]) -> OpenApi:
    """The schema of a model and of all below it.

    Raises:
        TypeError: a field's type has no structural schema here.
    """
    if model.opaque:
        return {"type": "object", PRESERVE: True}
    properties: OpenApi = {}
    required: list[str] = []
    for field in model.model_fields.values():
        notes = [note for note in field.metadata if isinstance(note, Schema)]
        name = field.alias or ""
        properties[name] = _field(field, notes)
        if any(note.required for note in notes):
            required.append(name)
    schema: OpenApi = {"type": "object", "properties": properties}
    if required:
        schema["required"] = required
    if model.preserve_unknown:
        schema[PRESERVE] = True
    return schema


def _field(field: FieldInfo, notes: list[Schema]) -> OpenApi:
    schema = _type(field.annotation)
    for note in notes:
        schema |= _keywords(note)
        if note.defaulted:
            schema["default"] = field.default
    return schema


def _keywords(note: Schema) -> OpenApi:
    return {**({"description": note.description} if note.description else {}), **note.keywords}


def _type(annotation: Any) -> OpenApi:
    if annotation in SCALARS:
        return {"type": SCALARS[annotation]}
    if isinstance(annotation, type) and issubclass(annotation, ApiModel):
        return schema_of(annotation)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        schema = _type(arguments[0])
        for note in arguments[1:]:
            if isinstance(note, Schema):
                schema |= _keywords(note)
        return schema
    if origin in (Union, UnionType) and len(arguments) == 2 and NoneType in arguments:
        return _type(next(argument for argument in arguments if argument is not NoneType))
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return {"type": "array", "items": _type(arguments[0])}
    if isinstance(origin, type) and issubclass(origin, Mapping) and arguments[0] is str:
        if arguments[1] is Any:
            return {"type": "object", PRESERVE: True}
        return {"type": "object", "additionalProperties": _type(arguments[1])}
    raise TypeError(f"no structural schema for {annotation}")
