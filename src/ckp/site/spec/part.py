"""What the parts of a site's description share: strictness, names of keys, and rules between fields."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, ClassVar, Self, get_type_hints

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.alias_generators import to_camel

from ckp.site.spec.findings import Finding, Refused, given


class Part(BaseModel):
    """A mapping of `site.yaml`. Keys are camelCase in the file, fields snake_case here; unknown ones are errors, and values never change.

    Raises:
        pydantic.ValidationError: a value is not of its type, or breaks a rule. `read_site` raises InvalidInput with lines instead.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, validate_by_name=True, validate_by_alias=True, hide_input_in_errors=True)

    one_of: ClassVar[tuple[str, ...]] = ()
    """Fields of which exactly one is given."""

    @classmethod
    def rules(cls, part: Any) -> Iterator[Finding]:
        """Findings about fields together.

        Args:
            part: the model, or what could be read of one, as `ckp.site.spec.findings.at` reads it.
        """
        del part
        return iter(())

    @classmethod
    def findings(cls, part: Any) -> Iterator[Finding]:
        """All findings about fields together, with their places relative to this part. `part` is as for `rules`."""
        if cls.one_of and sum(given(part, name) for name in cls.one_of) != 1:
            keys = [key_of(cls, name) for name in cls.one_of]
            names = f"{', '.join(keys[:-1])} and {keys[-1]}"
            there = [key for key, name in zip(keys, cls.one_of, strict=True) if given(part, name)]
            what = f"{' and '.join(there)} exclude each other" if there else f"one of {names} is missing"
            yield Finding((there[-1],) if there else (), what, f"write exactly one of {names}")
        yield from cls.rules(part)

    @model_validator(mode="after")
    def _follows_rules(self) -> Self:
        for finding in type(self).findings(self):
            raise Refused(str(finding), "")
        return self


def key_of(model: type[Part], field: str) -> str:
    """The key in the file of a field."""
    return model.model_fields[field].alias or field


@cache
def hints(model: type[Part]) -> dict[str, Any]:
    """Field -> its annotation, with everything that is `Annotated`."""
    return {name: hint for name, hint in get_type_hints(model, include_extras=True).items() if name in model.model_fields}
