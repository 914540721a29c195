"""The table of rooms in docs/architecture.md, made from what is enforced: `python -m tests.architecture` writes it, a contract test holds the page against it.

What a room holds is the first sentence of its docstring; what it may import is what import-linter's contracts in pyproject.toml leave it.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN = "<!-- made by `python -m tests.architecture` from the contracts in pyproject.toml and the rooms' docstrings -->"
END = "<!-- end of what is made -->"


def contracts() -> list[dict[str, Any]]:
    """import-linter's contracts, as pyproject.toml has them."""
    found: list[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    return found


def layers_of(contract: Mapping[str, Any]) -> list[list[str]]:
    """The layers of a contract from the top, each with the modules that lie beside each other."""
    return [re.split(r"\s*[|:]\s*", layer) for layer in contract["layers"]]


def rooms() -> list[list[str]]:
    """The rooms of src/ckp by layer, from the top."""
    return layers_of(next(contract for contract in contracts() if contract["id"] == "rooms"))


def may_import(room: str) -> tuple[list[str], list[str]]:
    """The rooms that a room may import, from the top; and what of those it may not."""
    order = rooms()
    level = next(number for number, layer in enumerate(order) if room in layer)
    allowed = [name for layer in order[level + 1 :] for name in layer]
    parts: list[str] = []
    for contract in contracts():
        if contract["type"] == "forbidden" and f"ckp.{room}" in contract["source_modules"]:
            forbidden = [name.removeprefix("ckp.") for name in contract["forbidden_modules"]]
            allowed = [name for name in allowed if name not in forbidden]
            parts += [name for name in forbidden if "." in name and name.split(".")[0] in allowed]
        if contract["type"] == "protected" and f"ckp.{room}" not in contract["allowed_importers"]:
            allowed = [name for name in allowed if f"ckp.{name}" not in contract["protected_modules"]]
    return allowed, parts


def holds(room: str) -> str:
    """The first sentence of a room's docstring."""
    text = ast.get_docstring(ast.parse((ROOT / "src" / "ckp" / room / "__init__.py").read_text())) or ""
    return re.split(r"\.\s", " ".join(text.split("\n\n")[0].split()) + " ", maxsplit=1)[0].rstrip(".: ")


def listed(names: Sequence[str]) -> str:
    """Names as a sentence has them."""
    return ", ".join(names) or "–"


def table() -> str:
    """Both tables: the rooms, and the layers within those that have some."""
    lines = ["| room | holds | may import |", "| --- | --- | --- |"]
    for layer in rooms():
        for room in layer:
            allowed, parts = may_import(room)
            but = f"; not {listed(parts)}" if parts else ""
            lines.append(f"| {room} | {holds(room)} | {listed(allowed)}{but} |")
    lines += ["", "Within a room, what stands further left may import what stands further right; what `·` parts knows nothing of each other.", ""]
    lines += ["| room | its layers |", "| --- | --- |"]
    for contract in contracts():
        containers = contract.get("containers", [])
        if contract["type"] == "layers" and containers != ["ckp"]:
            inside = " → ".join(" · ".join(layer) for layer in layers_of(contract) if layer != ["__main__"])
            lines += [f"| {container.removeprefix('ckp.')} | {inside} |" for container in containers]
    return "\n".join(lines)


def page() -> str:
    """The page as it should be.

    Raises:
        ValueError: it has not both markers, in their order.
    """
    text = PAGE.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{PAGE}: the lines {BEGIN} and {END} must be there once, in this order")
    return f"{text[: text.index(BEGIN)]}{BEGIN}\n{table()}\n{text[text.index(END) :]}"


if __name__ == "__main__":
    PAGE.write_text(page())
    sys.exit(0)
