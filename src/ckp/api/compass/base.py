"""What all requests and views have in common: JSON in camelCase, and errors in one shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

from ckp.kits.errors import InvalidInput


class Request(BaseModel):
    """What a caller asks for. Unknown fields are refused, so that a misspelt one is not silently dropped."""

    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True, validate_by_alias=True, extra="forbid", str_strip_whitespace=True, frozen=True)

    @classmethod
    def of(cls, **values: Any) -> Self:
        """A request from values by field name.

        Raises:
            InvalidInput: with the sentence that Compass would answer.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first, *others = sentences(error.errors())
            raise InvalidInput(first, details="\n".join(others)) from None

    def body(self) -> dict[str, Any]:
        """The request as JSON data: what was set, so that an older Compass need not know the other fields."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


class View(BaseModel):
    """What Compass shows. A reader ignores fields that it does not know: a newer Compass may have more."""

    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True, validate_by_alias=True, frozen=True)


T = TypeVar("T", bound=BaseModel)


class Items(BaseModel, Generic[T]):
    """A list."""

    items: list[T]


def is_none(value: object) -> bool:
    """For fields that are left out of JSON where there is nothing to show."""
    return value is None


M = TypeVar("M", bound=BaseModel)


def readable(model: type[M], data: Any) -> M | None:
    """`data` as a model, or None if it is empty or has another shape: what one host or controller wrote oddly must not hide all others."""
    try:
        return model.model_validate(data) if data else None
    except ValidationError:
        return None


def readable_items(model: type[M], items: Sequence[Any] | None) -> list[M]:
    """Those of `items` that are readable."""
    return [found for item in items or () if (found := readable(model, item)) is not None]


def sentences(problems: Sequence[Any]) -> list[str]:
    """pydantic's errors, each as a sentence that begins with the field's name."""
    return [_sentence(problem) for problem in problems]


def _sentence(problem: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in problem.get("loc", ()) if part not in ("body", "query", "path"))
    kind, text = problem.get("type", ""), str(problem.get("msg", ""))
    if kind == "json_invalid":
        return "the body is not valid JSON"
    if kind == "missing":
        text = "is missing"
    elif kind == "extra_forbidden":
        text = "is not a known field"
    else:
        text = text[:1].lower() + text[1:]
    return f"{where or 'the body'}: {text}"
