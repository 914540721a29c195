"""Text from outside, made safe for a terminal."""

from __future__ import annotations

import re

_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""C0 and C1 controls (ECMA-48), line separators, what changes the direction of writing (UAX #9), and lone surrogates, which can't be encoded."""


def printable(text: str) -> str:
    r"""The text on one line with its control characters escaped (`\x1b`, `\u202e`), so that it can't move the cursor, set a title or hide what follows.

    A tab becomes a space, and so does a line break.
    """
    return _UNSAFE.sub(_escaped, text)


def printable_lines(text: str) -> list[str]:
    """As `printable`, but line breaks are kept: at least one line."""
    return [printable(line) for line in re.split(r"\r?\n", text)]


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    if match[0] in "\t\n":
        return " "
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
