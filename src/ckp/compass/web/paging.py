"""Lists in pages: which part of a list is shown, and the addresses of the others. The place in a list stands in the URL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Generic, Self, TypeVar
from urllib.parse import urlencode

from starlette.requests import Request

T = TypeVar("T")

PER_PAGE = 50


@dataclass(frozen=True)
class Paged(Generic[T]):
    """A part of a list.

    Args:
        first: number of the first one that is shown, from 1; 0 if there is none.
        total: how many there are, with the filters.
        previous, following: addresses; empty if there is none.
        query: the filters and the page, for addresses of the same place.
    """

    items: Sequence[T]
    first: int
    total: int
    previous: str
    following: str
    query: str

    @property
    def last(self) -> int:
        """Number of the last one that is shown."""
        return self.first + len(self.items) - 1 if self.items else 0


@dataclass(frozen=True)
class UrlFilters:
    """What of a list is shown; its fields are parameters of the URL, all texts, and what is empty does not matter."""

    @classmethod
    def of(cls, request: Request) -> Self:
        """Those in the URL."""
        return cls(**{each.name: parameter(request, each.name) for each in fields(cls)})


def parameter(request: Request, name: str, *, limit: int = 100) -> str:
    """A parameter of the URL, without blanks around it; what is longer than any name can be is cut."""
    return request.query_params.get(name, "").strip()[:limit]


def paged(request: Request, items: Sequence[T], filters: dict[str, str], *, per_page: int = PER_PAGE) -> Paged[T]:
    """The page of `items` that the URL names; of a page that is none, the nearest."""
    asked = parameter(request, "page", limit=6)
    pages = max(1, -(-len(items) // per_page))
    page = min(max(1, int(asked) if asked.isascii() and asked.isdecimal() else 1), pages)
    kept = {name: value for name, value in filters.items() if value}

    def query(number: int) -> str:
        return urlencode(kept | ({"page": str(number)} if number > 1 else {}))

    shown = items[(page - 1) * per_page : page * per_page]
    return Paged(
        items=shown,
        first=(page - 1) * per_page + 1 if shown else 0,
        total=len(items),
        previous=f"?{query(page - 1)}" if page > 1 else "",
        following=f"?{query(page + 1)}" if page < pages else "",
        query=query(page),
    )
