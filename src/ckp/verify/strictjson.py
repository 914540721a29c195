"""JSON that every reader reads alike (RFC 8259 leaves open what a repeated name, a huge number or another encoding means)."""

from __future__ import annotations

import json
import re
from typing import Any, Callable, Dict, List, NoReturn, Tuple

MAX_DIGITS = 18
"""Of a number: more than a size or a count ever has, and few enough that any reader holds it exactly (64 bits)."""
_UNPRINTABLE = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\ud800-\\udfff]")


def parse(raw: bytes, broken: Callable[[str], Exception]) -> Any:
    """The value of a document in UTF-8 without a repeated name, NaN, a fraction, an exponent, or a number of more than 18 digits.

    Raises:
        Exception: made by `broken` from a sentence's end.
    """

    def pairs(items: List[Tuple[str, Any]]) -> Dict[str, Any]:
        found: Dict[str, Any] = {}
        for name, value in items:
            if name in found:
                raise broken(f"it has {name[:80]!r} twice")
            found[name] = value
        return found

    def integer(text: str) -> int:
        if len(text.lstrip("-")) > MAX_DIGITS:
            raise broken(f"it has a number of {len(text)} digits")
        return int(text)

    def refuse(text: str) -> NoReturn:
        raise broken(f"it has the number {text[:40]}, and only whole ones without an exponent are read")

    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=pairs, parse_int=integer, parse_float=refuse, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise broken(str(error)) from None


def is_integer(value: object, least: int, most: int) -> bool:
    """Whether it is a whole number (true and false are none) in this range."""
    return type(value) is int and least <= value <= most


def is_plain_text(value: object, most: int) -> bool:
    """Whether it is a text of at most `most` characters that are all printable, and stand on one line."""
    return isinstance(value, str) and len(value) <= most and not _UNPRINTABLE.search(value)
