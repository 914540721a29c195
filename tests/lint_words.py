"""Words that the project does not use (tests/words.txt), in any tracked text: each with its place and with what to write instead."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.lint_files import ROOT, tracked

WORDS = "tests/words.txt"
LEFT_OUT = (WORDS, "LICENSE", "packaging/containerd/LGPL-2.1.txt")
LEFT_OUT_BELOW = ("catalog/sources/",)
LEFT_OUT_SUFFIXES = (".svg",)
GLOSSARY = "CONTRIBUTING.md"
"""Its tables name words that are not to be used."""


@dataclass(frozen=True)
class Word:
    """A word, as a regular expression without case, and what takes its place."""

    pattern: re.Pattern[str]
    instead: str


def read_words(text: str) -> list[Word]:
    """`regex<TAB>what to write instead`, one a line; `#` begins a comment.

    Raises:
        ValueError: a line has no tab, or its expression is none; the message names the line.
    """
    words = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        pattern, tab, instead = line.partition("\t")
        if not tab or not instead.strip():
            raise ValueError(f"{WORDS}:{number}: a tab and what to write instead are missing")
        try:
            words.append(Word(re.compile(rf"\b(?:{pattern})\b", re.IGNORECASE), instead.strip()))
        except re.error as error:
            raise ValueError(f"{WORDS}:{number}: {pattern} is not a regular expression: {error}") from None
    return words


def findings(name: str, text: str, words: list[Word]) -> Iterator[str]:
    """Every word of the list in a file's text, with its place."""
    for number, line in enumerate(text.splitlines(), start=1):
        if name == GLOSSARY and line.startswith("|"):
            continue
        for word in words:
            for found in word.pattern.finditer(line):
                yield f"{name}:{number}:{found.start() + 1}: {found[0]}: write {word.instead}"


def texts() -> Iterator[tuple[str, str]]:
    """Name and text of each tracked file that is text and is not left out."""
    for name in tracked():
        path = ROOT / name
        if name in LEFT_OUT or name.startswith(LEFT_OUT_BELOW) or name.endswith(LEFT_OUT_SUFFIXES) or path.is_symlink():
            continue
        try:
            yield name, path.read_text()
        except UnicodeDecodeError:
            continue


def main() -> int:
    """Print each finding; 1 if there is one."""
    words = read_words(Path(ROOT / WORDS).read_text())
    found = [finding for name, text in texts() for finding in findings(name, text, words)]
    if found:
        print(*found, f"lint: {len(found)} words that the project does not use ({WORDS} has the list, CONTRIBUTING.md the terms)", sep="\n", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
