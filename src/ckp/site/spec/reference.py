"""docs/reference/site.md, made from the model: `ckp site reference --write` writes it, a contract test holds the page against it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from ckp.kits import paths
from ckp.kits.clock import exact_duration
from ckp.kits.errors import InvalidInput
from ckp.kits.files import atomic_write
from ckp.site.spec.model import SiteSpec
from ckp.site.spec.part import Part, hints, key_of
from ckp.site.spec.shapes import Shape, shape_of
from ckp.site.spec.template import Answers, render

COMMAND = "ckp site reference --write"
PAGE = Path("docs/reference/site.md")
"""Below the root of a checkout."""
EXAMPLE = Answers(
    name="munich-1",
    hosts=(
        ("node-1", IPv4Address("192.0.2.11")),
        ("node-2", IPv4Address("192.0.2.12")),
        ("node-3", IPv4Address("192.0.2.13")),
    ),
    user="admin",
    network=IPv4Network("192.0.2.0/24"),
    pool=(IPv4Address("192.0.2.200"), IPv4Address("192.0.2.249")),
    release="v1.35.1",
    virtual_address=IPv4Address("192.0.2.10"),
)


def markdown() -> str:
    """The page."""
    blocks = [
        "# The file that describes a site",
        f"Made by `{COMMAND}` from the model in `src/ckp/site/spec`; not edited by hand.",
        "`ckp site init` writes a file to begin with. A file is read strictly: unknown keys, keys that are there twice and values of another type are errors. "
        "All errors of a file are shown at once, each as `file:line:column: key: what is wrong; what to write instead`, and nothing is changed.",
        "- The file is UTF-8 YAML with one document, of at most 1 MiB. Anchors, aliases, tags and directives are not supported.\n"
        "- Where text is expected, it is what is written: `name: no` is the name `no`. Numbers are decimal. Below `hostSettings` and `addonValues`, "
        "what YAML 1.1 and 1.2 read in different ways (`no`, `012`, `1e3`) must be written in quotes or in another way.\n"
        "- Secrets are never in the file: keys that end with `File` name a file that holds one.\n"
        "- Relative paths are relative to the folder of the file; `~/` is the user's home.\n"
        "- Durations are written as `90m`, `24h` or `1h30m`. All addresses are IPv4.",
        *(block for title, model in _parts() for block in _part(title, model)),
        "## Example",
        f"```yaml\n{render(EXAMPLE)}```",
    ]
    return "\n\n".join(blocks) + "\n"


def _parts() -> Iterator[tuple[str, type[Part]]]:
    """All mappings of the file: their path, and their model, in the order of the file."""
    waiting: list[tuple[str, type[Part]]] = [("", SiteSpec)]
    while waiting:
        title, model = waiting.pop(0)
        yield title, model
        below = []
        for name, hint in hints(model).items():
            shape = shape_of(hint)
            if shape.part is not None and shape.part.model_fields:
                below.append((f"{title}.{key_of(model, name)}{'[]' if shape.many else ''}".removeprefix("."), shape.part))
        waiting = below + waiting


def _part(title: str, model: type[Part]) -> list[str]:
    rows = ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in model.model_fields.items():
        shape = shape_of(hints(model)[name])
        rows.append(f"| `{key_of(model, name)}` | {_value(shape)} | {_default(model, name, field)} | {field.description} |")
    about = " ".join((model.__doc__ or "").split())
    if model.one_of:
        about += f" Exactly one of {', '.join(f'`{key_of(model, name)}`' for name in model.one_of)} is given."
    return [f"## {f'`{title}`' if title else 'The whole file'}", about, "\n".join(rows)]


def _value(shape: Shape) -> str:
    return f"list: {shape.kind}" if shape.many else shape.kind


def _default(model: type[Part], name: str, field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if name in model.one_of or field.default_factory is not None:
        return ""
    value: Any = field.get_default()
    if value is None or isinstance(value, Part) or value in ((), {}):
        return ""
    if isinstance(value, timedelta):
        return f"`{exact_duration(int(value.total_seconds()))}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def write() -> Path:
    """Write the page into the checkout that this code runs from.

    Raises:
        InvalidInput: it runs from none.
    """
    root = paths.checkout()
    if root is None:
        raise InvalidInput("an installed ckp has no docs to write", resolution="run it in a checkout of CKP: ./ckp site reference --write")
    atomic_write(root / PAGE, markdown())
    return root / PAGE
