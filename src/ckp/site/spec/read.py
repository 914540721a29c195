"""Reading `site.yaml`: all errors of a file at once, each with its line and what to write instead."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ckp.kits.errors import InvalidInput
from ckp.site.spec import secrets, yamltree
from ckp.site.spec.findings import BROKEN, Finding, Place, Refused, shown
from ckp.site.spec.model import Origin, SiteSpec
from ckp.site.spec.part import Part, hints, key_of
from ckp.site.spec.shapes import Shape, shape_of
from ckp.site.spec.types import FOLDER
from ckp.site.spec.yamltree import Mark, Node, Scalar, YamlError

SHOWN_ERRORS = 100
LONGEST_VALUE = 4096
"""Characters of one value that is not below hostSettings or addonValues."""


@dataclass(frozen=True)
class Located:
    """A finding with its place in the text."""

    mark: Mark
    finding: Finding


class InvalidSite(InvalidInput):
    """The file does not describe a site.

    Args:
        path: the file.
        found: what is wrong, in the order of lines.
    """

    def __init__(self, path: Path, found: Iterable[Located]) -> None:
        self.found = tuple(found)
        lines = [f"{path}:{item.mark.line}:{item.mark.column}: {item.finding}" for item in self.found[:SHOWN_ERRORS]]
        if len(self.found) > SHOWN_ERRORS:
            lines.append(f"and {len(self.found) - SHOWN_ERRORS} more")
        many = f"{len(self.found)} errors" if len(self.found) > 1 else "1 error"
        super().__init__(
            f"{path} does not describe a site: {many}",
            details="\n".join(lines),
            resolution="correct the lines named above; `ckp site reference` prints every key",
        )


def read_site(path: Path) -> SiteSpec:
    """The site that a file describes. Relative paths in it become absolute: they are relative to the file's folder.

    Raises:
        InvalidInput: the file can't be read, or something in it is wrong: all errors, in the order of lines.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(yamltree.MAX_BYTES + 1)
    except FileNotFoundError:
        raise InvalidInput(f"there is no file {path}", resolution=f"write one: ckp site init {path}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InvalidInput(f"{path} can't be read: {reason}", resolution="name a file that describes a site") from None
    return parse_site(data, path)


def parse_site(data: bytes, path: Path) -> SiteSpec:
    """The site that a file's content describes; `path` is where it lies, or will.

    Raises:
        InvalidSite: something in it is wrong.
    """
    try:
        tree = yamltree.parse(data)
    except YamlError as error:
        raise InvalidSite(path, [Located(error.mark, Finding((), error.what, error.remedy))]) from None
    reading = _Reading(path.absolute().parent)
    spec = reading.part(tree, SiteSpec, ())
    if reading.found:
        raise InvalidSite(path, sorted(reading.found, key=lambda item: (item.mark.line, item.mark.column)))
    assert isinstance(spec, SiteSpec)
    spec._origin = Origin(path, reading.lines)
    return spec


def dump_site(spec: SiteSpec) -> str:
    """A site as a file without comments: what has its default's value is left out. `parse_site` reads an equal site from it."""
    data = spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return yamltree.dump({"apiVersion": spec.api_version, "kind": spec.kind, **data, "releases": list(spec.releases)})


def read_value(hint: Any, text: str) -> Any:
    """One value that is not from a file, as a type of `ckp.site.spec.types` reads it.

    Raises:
        Refused: it is none.
    """
    return _validated(shape_of(hint), text, {})


class _Reading:
    """One reading of a file: what was found, and where values are.

    Args:
        folder: what relative paths are relative to.
    """

    def __init__(self, folder: Path) -> None:
        self.context = {FOLDER: folder}
        self.found: list[Located] = []
        self.marks: dict[Place, Mark] = {}
        self.lines: dict[Place, int] = {}

    def part(self, node: Node, model: type[Part], place: Place) -> Any:
        """A mapping as a model; what could be read of it, by the names of fields, if there are errors; BROKEN if it is no mapping."""
        before = len(self.found)
        keys = {key_of(model, name): name for name in model.model_fields}
        pairs = self._pairs(node, place, f"write keys below it: {', '.join(keys)}" if keys else "write {}")
        if pairs is None:
            return BROKEN
        has: dict[str, Any] = {}
        for key, value in pairs:
            if (name := keys.get(key.text)) is not None:
                has[name] = self.value(value, hints(model)[name], (*place, key.text), model)
            elif (meant := self._unknown(key, value, model, place)) in keys:
                has.setdefault(keys[meant], BROKEN)
        for key_text, name in keys.items():
            field = model.model_fields[name]
            if name not in has and field.is_required():
                self._find(place, Finding(place, f"{key_text} is missing", f"write `{key_text}`: {field.description}".removesuffix(".")))
                has[name] = BROKEN
            elif name not in has:
                has[name] = field.get_default(call_default_factory=True, validated_data={})
        for finding in model.findings(has):
            self._find((*place, *finding.place), finding.below(*place))
        return model.model_validate(has, context=self.context) if len(self.found) == before else has

    def value(self, node: Node, hint: Any, place: Place, model: type[Part]) -> Any:
        """A value as its annotation wants it; BROKEN if it is wrong by itself. `model`: the part that has it."""
        shape = shape_of(hint)
        if shape.many:
            return self._list(node, shape, place, model)
        if shape.part is not None:
            return self.part(node, shape.part, place)
        if shape.free == 1:
            return self._free_mapping(node, place)
        if shape.free == 2:
            pairs = self._pairs(node, place, "write names below it, each with its own values")
            return BROKEN if pairs is None else {key.text: self._free_mapping(value, (*place, key.text)) for key, value in pairs}
        return self._leaf(node, shape, place, model)

    # -- what was found

    def _find(self, place: Place, finding: Finding, mark: Mark | None = None) -> None:
        while mark is None and place and place not in self.marks:
            place = place[:-1]
        self.found.append(Located(mark or self.marks.get(place, Mark(1, 1)), finding))

    def _wrong(self, node: Node, place: Place, what: str, remedy: str) -> None:
        self._find(place, Finding(place, what, remedy), node.mark)

    def _unknown(self, key: Scalar, value: Node, model: type[Part], place: Place) -> str:
        """Find an unknown key; answers the known one that was meant."""
        known = [key_of(model, name) for name in model.model_fields]
        text = value.text if isinstance(value, Scalar) else ""
        if text and (secrets.secret_key(key.text) or secrets.secret_text(text)):
            self._wrong(
                key, (*place, key.text[:80]), secrets.secret_text(text) or "secrets are not written into this file", secrets.remedy(model, key.text[:80])
            )
            return next((name for name in known if name in secrets.HOLDERS), "")
        lower = {name.lower(): name for name in known}
        few = len(self.found) < SHOWN_ERRORS  # comparing takes long, and more are not shown
        nearest = [lower[name] for name in get_close_matches(key.text[:80].lower(), list(lower), 1, 0.6)] if few else []
        options = f"write one of {', '.join(known)}" if known else "remove it"
        remedy = f"write `{nearest[0]}`, or remove it" if nearest else options
        self._wrong(key, place, f"there is no key {shown(key.text)} here", remedy)
        return nearest[0] if nearest else ""

    # -- mappings and lists

    def _pairs(self, node: Node, place: Place, remedy: str) -> list[tuple[Scalar, Node]] | None:
        """Keys and values of a mapping, each key once; None if it is none. Without a value it is empty."""
        if isinstance(node, Scalar) and node.is_null:
            return []
        if not isinstance(node, yamltree.Mapping):
            self._wrong(node, place, f"this is {_kind_of(node)}, and must be a mapping", remedy)
            return None
        first: dict[str, Mark] = {}
        pairs: list[tuple[Scalar, Node]] = []
        for key, value in node.pairs:
            if not isinstance(key, Scalar) or (key.plain and key.text == "<<"):
                self._wrong(key, place, f"{'a merge key' if isinstance(key, Scalar) else _kind_of(key)} can't be a key", "write a name followed by a colon")
            elif key.text in first:
                self._wrong(key, place, f"line {first[key.text].line} has the key {shown(key.text)} already", "keep one of the two")
            else:
                first[key.text] = key.mark
                below = (*place, key.text)
                self.lines[below] = key.mark.line
                self.marks[below] = value.mark if isinstance(value, Scalar) and not value.is_null else key.mark
                pairs.append((key, value))
        return pairs

    def _list(self, node: Node, shape: Shape, place: Place, model: type[Part]) -> Any:
        if isinstance(node, Scalar) and node.is_null:
            return ()
        if not isinstance(node, yamltree.Sequence):
            self._wrong(node, place, f"this is {_kind_of(node)}, and must be a list", "write each item on a line of its own that begins with a dash")
            return BROKEN
        found = []
        for number, item in enumerate(node.nodes):
            below = (*place, number)
            self.marks[below], self.lines[below] = item.mark, item.mark.line
            found.append(self.value(item, shape.hint, below, model))
        return tuple(found)

    # -- values

    def _leaf(self, node: Node, shape: Shape, place: Place, model: type[Part]) -> Any:
        kind = shape.kind
        if not isinstance(node, Scalar):
            self._wrong(node, place, f"this is {_kind_of(node)}", f"write one value: {kind}")
        elif node.is_null:
            self._find(place, Finding(place, "it has no value", f"write a value ({kind}), or remove the key"))
        elif len(node.text) > LONGEST_VALUE:
            self._wrong(node, place, f"this has {len(node.text)} characters", f"write {kind}")
        elif said := secrets.secret_text(node.text):
            self._wrong(node, place, said, secrets.remedy(model, next(str(step) for step in reversed(place) if isinstance(step, str))))
        else:
            try:
                return _validated(shape, _scalar(node, shape.base), self.context)
            except Refused as error:
                self._wrong(node, place, error.what, error.remedy)
        return BROKEN

    def _free_mapping(self, node: Node, place: Place) -> Any:
        pairs = self._pairs(node, place, "write keys and values below it")
        return BROKEN if pairs is None else {key.text: self._free(value, (*place, key.text)) for key, value in pairs}

    def _free(self, node: Node, place: Place) -> Any:
        """A value that has no type of ours."""
        if isinstance(node, yamltree.Mapping):
            return self._free_mapping(node, place)
        if isinstance(node, yamltree.Sequence):
            return [self._free(item, (*place, number)) for number, item in enumerate(node.nodes)]
        try:
            value = yamltree.resolve(node)
        except Refused as error:
            self._wrong(node, place, error.what, error.remedy)
            return BROKEN
        key = next((str(step) for step in reversed(place) if isinstance(step, str)), "")
        if isinstance(value, str) and value and (secrets.secret_text(value) or secrets.secret_key(key)):
            said = secrets.secret_text(value) or "this looks like a secret, and secrets are not written into this file"
            self._wrong(node, place, said, "keep it in a Secret of the cluster, and name that Secret here")
            return BROKEN
        return value


def _kind_of(node: Node) -> str:
    if isinstance(node, Scalar):
        return "a single value"
    return "a list" if isinstance(node, yamltree.Sequence) else "a mapping"


def _validated(shape: Shape, value: Any, context: dict[str, Path]) -> Any:
    try:
        return _adapter(shape.hint).validate_python(value, context=context)
    except ValidationError as error:
        wrong = error.errors()[0].get("ctx", {}).get("error")
        raise wrong if isinstance(wrong, Refused) else Refused(f"{shown(value)} is not valid here", f"write {shape.kind}") from None


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint)


def _scalar(node: Scalar, base: Any) -> Any:
    """A value as its type is read: numbers and truth values must be written as such, text is what is written.

    Raises:
        Refused: it is neither a whole number nor a truth value, and should be one.
    """
    text = node.text
    if base is bool:
        if node.plain and text in ("true", "false"):
            return text == "true"
        raise Refused(f"{shown(text)} is not a truth value", "write true or false, without quotes")
    if base is int:
        try:
            value = yamltree.resolve(node)
        except Refused:
            value = None
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        raise Refused(f"{shown(text)} is not a whole number", "write it in decimal digits, without quotes, leading zeros and exponent")
    return text
