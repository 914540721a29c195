"""What a site's file may ask for and this version of CKP can't do yet: one table, from which a row is removed when its work is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ckp.site.spec.findings import Place, at, key_path


@dataclass(frozen=True)
class Unsupported:
    """A part of the file that is not applied.

    Args:
        path: its key, such as `management.kubeconfig`.
        line: where it is in the file, from 1; 0 if the site was not read from a file.
        why: what this version does instead, or that it can't do it.
    """

    path: str
    line: int
    why: str


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Args:
        place: keys as they are in the file.
        used: whether a site asks for it, from its SiteSpec.
        why: as of `Unsupported`.
    """

    place: Place
    used: Callable[[Any], bool]
    why: str


def _set(*names: str) -> Callable[[Any], bool]:
    """Whether a field has a value, and not an empty one."""
    return lambda spec: at(spec, *names) not in (None, ())


TABLE: tuple[Row, ...] = ()


def not_applied(spec: Any, line: Callable[..., int]) -> list[Unsupported]:
    """The rows that a site uses.

    Args:
        spec: a SiteSpec.
        line: place -> line of the file.
    """
    return [Unsupported(key_path(row.place), line(*row.place), row.why) for row in TABLE if row.used(spec)]
