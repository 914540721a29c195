"""Reading recipes: the TOML files below `packaging/` that describe packages, images and bundles.

An error names the file, the key, and what may be written there instead.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from ckp.distribution.builder.component import Built
from ckp.kits.errors import InvalidInput

T = TypeVar("T", bound=BaseModel)


class Strict(BaseModel):
    """A part of a recipe: unknown keys are rejected, and nothing changes it once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def read_recipe(file: Path, model: type[T], what: str) -> T:
    """The recipe in `file`.

    Args:
        what: what it describes, for errors: "a package".

    Raises:
        InvalidInput: the file cannot be read, or a key or value in it is wrong; with the keys that there are.
    """
    try:
        return model(**tomllib.loads(file.read_text()))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInput(f"{file} cannot be read: {error}") from error
    except ValidationError as error:
        findings = "\n".join(_finding(model, item["type"], item["loc"], item["msg"]) for item in error.errors())
        raise InvalidInput(f"{file} is not a valid recipe of {what}", details=findings, resolution="correct the keys named above") from error


def _finding(model: type[BaseModel], kind: str, place: Sequence[int | str], message: str) -> str:
    name = ".".join(map(str, place)) or "the file"
    if kind != "extra_forbidden":
        return f"{name}: {message.removeprefix('Value error, ')}"
    return f"{name}: unknown key; write one of: {', '.join(_keys(model, place))}"


def _keys(model: type[BaseModel], place: Sequence[int | str]) -> list[str]:
    """The keys that may stand where `place` (pydantic's `loc`) ends."""
    for part in place[:-1]:
        if isinstance(part, str) and part in model.model_fields:
            model = _model_in(model.model_fields[part].annotation) or model
    return sorted(field.alias or name for name, field in model.model_fields.items())


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)


def applies(when: Mapping[str, str], built: Mapping[str, Built]) -> bool:
    """Whether a release fulfils a recipe's `when`: each of these roles is played by the component named."""
    return all(role in built and built[role].chosen.source.component == component for role, component in when.items())


def built_source(reference: str, built: Mapping[str, Built], where: str) -> Path:
    """The path that `<component>/bin/<program>` or `<component>/files/<path>` names.

    Args:
        built: the release's components by their role.
        where: file and key of the reference, for errors.

    Raises:
        InvalidInput: the release has no such component, or that has no such program or file; with those that there are.
    """
    role, _, rest = reference.partition("/")
    if role not in built:
        raise InvalidInput(
            f"{where}: the release has no component {role!r}",
            resolution=f'write one of: {", ".join(sorted(built))}; for one that only some releases have, add when = {{ {role} = "{role}" }}',
        )
    kind, _, name = rest.partition("/")
    source = built[role].chosen.source
    known = {"bin": [binary.name for binary in source.binaries], "files": [file.as_ for file in source.files]}.get(kind)
    if known is None or not name:
        raise InvalidInput(f"{where}: {reference!r} names no program and no file", resolution=f"write {role}/bin/PROGRAM or {role}/files/PATH")
    good = name in known or (kind == "files" and any(name.startswith(f"{item}/") or item.startswith(f"{name}/") for item in known))
    if not good:
        what, key = ("program", "[[binaries]]") if kind == "bin" else ("file", "[[files]]")
        raise InvalidInput(
            f"{where}: {source.component} {source.version} has no {what} {name!r}",
            details=f"{key} of its source.toml: {', '.join(known) or 'none'}",
            resolution=f"write one of these, or add it to {source.folder}/source.toml",
        )
    return built[role].folder / rest
