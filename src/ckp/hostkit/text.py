"""Text from outside, made safe for a terminal. As ckp.kits.text, which does not ship to hosts."""

from __future__ import annotations

import re

_UNSAFE = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")
"""C0 and C1 controls (ECMA-48), line separators, what changes the direction of writing (UAX #9), and lone surrogates, which can't be encoded."""


def printable(text: str) -> str:
    """The text on one line with its control characters escaped, so that it can't move the cursor, set a title or hide what follows."""
    return _UNSAFE.sub(lambda match: " " if match[0] in "\t\n" else match[0].encode("unicode_escape", "surrogatepass").decode(), text)


def printable_lines(text: str) -> str:
    """As `printable`, but line breaks are kept."""
    return "\n".join(printable(line) for line in text.split("\n"))
