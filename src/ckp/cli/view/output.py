"""How answers are printed: as tables like kubectl's, or as JSON and YAML for programs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

import click
import yaml

from ckp.api.compass.base import View
from ckp.clients.compass import read
from ckp.kits.clock import parse_duration, parse_rfc3339
from ckp.kits.text import printable_lines

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
V = TypeVar("V", bound=View)

GAP = 3
"""Spaces between columns."""


@dataclass(frozen=True)
class Column(Generic[T]):
    """A column: its head, how to get its value from an item, and whether only `-o wide` shows it."""

    head: str
    value: Callable[[T], Any]
    wide: bool = False


def output_option(command: F) -> F:
    """Give a command `-o`."""
    choice = click.Choice(["table", "wide", "json", "yaml"])
    return click.option("-o", "--output", type=choice, default="table", show_default=True, help="How to print it.")(command)


def table(columns: Sequence[Column[T]], items: Sequence[T], *, wide: bool = False) -> str:
    """Aligned columns without borders; an empty cell is `<none>`, as kubectl has it."""
    shown = [column for column in columns if wide or not column.wide]
    rows = [[column.head for column in shown], *([cell(column.value(item)) for column in shown] for item in items)]
    widths = [max(len(row[index]) for row in rows) for index in range(len(shown))]
    return "\n".join((" " * GAP).join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def cell(value: Any) -> str:
    """One value as a table's cell, on one line."""
    if value is None or value in ("", [], ()):
        return "<none>"
    if isinstance(value, bool):
        return "True" if value else "False"
    if isinstance(value, (list, tuple)):
        value = ",".join(str(part) for part in value)
    return re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", str(value))


def echo(text: str, *, err: bool = False) -> None:
    """Print lines for people that hold what others wrote: names in packages, archives and registries. Control characters in them are escaped."""
    click.echo("\n".join(printable_lines(text)), err=err)


def show_list(answer: dict[str, Any], view: type[V], columns: Sequence[Column[V]], output: str, *, none: str) -> None:
    """Print a list.

    Args:
        answer: as Compass sent it; `-o json` and `-o yaml` print it unchanged.
        view: what a table reads its items as.
        none: printed to standard error if the list is empty.
    """
    if output in ("json", "yaml"):
        show_data(answer, output)
    elif answer["items"]:
        click.echo(table(columns, [read(view, item) for item in answer["items"]], wide=output == "wide"))
    else:
        click.echo(none, err=True)


def show_one(answer: dict[str, Any], view: type[V], columns: Sequence[Column[V]], output: str) -> None:
    """Print one object as a list prints it, or unchanged as data."""
    if output in ("json", "yaml"):
        show_data(answer, output)
    else:
        click.echo(table(columns, [read(view, answer)], wide=output == "wide"))


def show_data(data: Any, output: str) -> None:
    """Print data as JSON or YAML."""
    if output == "json":
        click.echo(json.dumps(data, indent=2, ensure_ascii=False))
    else:
        click.echo(yaml.safe_dump(data, sort_keys=False, allow_unicode=True).rstrip())


def describe(pairs: Sequence[tuple[str, Any]]) -> str:
    """`Name:   value` lines, aligned."""
    width = max(len(name) for name, _ in pairs) + 1
    return "\n".join(f"{name + ':':<{width}}   {cell(value)}" for name, value in pairs)


def section(title: str, body: str) -> str:
    """A titled, indented block; empty without a body."""
    return f"\n{title}:\n" + "\n".join(f"  {line}" for line in body.splitlines()) if body else ""


def age(moment: datetime | str | None, *, now: datetime | None = None) -> str:
    """How long ago, as kubectl writes it: 45s, 7m12s, 53m, 4h7m, 19h, 3d5h, 12d."""
    if not moment:
        return "<unknown>"
    since = parse_rfc3339(moment) if isinstance(moment, str) else moment
    return short_duration(((now or datetime.now(UTC)) - since).total_seconds())


def short_duration(total: float) -> str:
    """A duration as kubectl's HumanDuration writes it: the longer, the coarser."""
    seconds = max(0, int(total))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if seconds < 120:
        return f"{seconds}s"
    if minutes < 10:
        return f"{minutes}m{seconds % 60}s" if seconds % 60 else f"{minutes}m"
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return f"{hours}h{minutes % 60}m" if minutes % 60 else f"{hours}h"
    if hours < 48:
        return f"{hours}h"
    if days < 8:
        return f"{days}d{hours % 24}h" if hours % 24 else f"{days}d"
    return f"{days}d"


def gibibytes(count: Any) -> str:
    """Bytes as people read memory: 3.8Gi."""
    return f"{int(count) / (1 << 30):.1f}Gi" if count else ""


class Duration(click.ParamType[float]):
    """`90`, `90s`, `15m`, `1h30m`: seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read it, or fail with how to write one."""
        if isinstance(value, (int, float)):
            return float(value)
        try:
            return float(parse_duration(str(value)))
        except ValueError as error:
            self.fail(str(error), param, ctx)
