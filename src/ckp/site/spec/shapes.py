"""What an annotation of the model asks for in the file: one value, a list, a mapping with known keys, or one with any."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from ckp.site.spec.part import Part
from ckp.site.spec.types import Kind


@dataclass(frozen=True)
class Shape:
    """One shape.

    Args:
        kind: what a value is, or an item of the list, in the words of errors and of the reference.
        hint: its annotation, without None and without the list around it.
        many: whether it is a list.
        part: the model of a mapping with known keys.
        free: levels of names before any value: 1 for `hostSettings`, 2 for `addonValues`, 0 for all else.
    """

    kind: str
    hint: Any
    many: bool = False
    part: type[Part] | None = None
    free: int = 0

    @property
    def base(self) -> Any:
        """The Python type of one value."""
        return get_args(self.hint)[0] if get_origin(self.hint) is Annotated else self.hint


@cache
def shape_of(hint: Any) -> Shape:
    """The shape of an annotation of the model."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return shape_of(next(option for option in get_args(hint) if option is not type(None)))
    if origin is tuple:
        item = shape_of(get_args(hint)[0])
        return Shape(item.kind, item.hint, True, item.part)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        free = 1 if get_args(hint)[1] is Any else 2
        return Shape("mapping" if free == 1 else "mapping of mappings", hint, free=free)
    if isinstance(hint, type) and issubclass(hint, Part):
        return Shape("mapping", hint, part=hint)
    return Shape(_kind(hint), hint)


def _kind(hint: Any) -> str:
    if get_origin(hint) is Annotated:
        return next(note.text for note in hint.__metadata__ if isinstance(note, Kind))
    if get_origin(hint) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(hint))
    return "true or false" if hint is bool else "text"
