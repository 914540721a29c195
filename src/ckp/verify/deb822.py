"""Control files, Packages and Release files (deb822(5)): read in one pass, as strictly as dpkg and apt together read them."""

from __future__ import annotations

import re
from typing import Iterable, Iterator, Mapping

from ckp.verify.archives import Broken

MAX_LINES = 1_000_000
MAX_LINE = 256 << 10
MAX_FIELDS = 256
_LABEL = re.compile(r"[!-9;-~]+")
# dpkg takes some of them for the end of a line, and a terminal obeys others.
_CONTROL_CHARACTER = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
BLANK = " \t"


class Paragraph(Mapping[str, str]):
    """The fields of one paragraph, found in any letter case, as dpkg and apt find them; iterated as they are written."""

    def __init__(self) -> None:
        self._fields: dict[str, tuple[str, list[str]]] = {}

    def add(self, label: str, value: str) -> bool:
        """Add a field. False if it is there already."""
        if label.lower() in self._fields:
            return False
        self._fields[label.lower()] = (label, [value])
        return True

    def extend(self, label: str, line: str) -> None:
        """Add a further line to a field that is there."""
        self._fields[label.lower()][1].append(line)

    def __getitem__(self, label: str) -> str:
        return "\n".join(self._fields[label.lower()][1])

    def __contains__(self, label: object) -> bool:
        return isinstance(label, str) and label.lower() in self._fields

    def __iter__(self) -> Iterator[str]:
        return (label for label, _ in self._fields.values())

    def __len__(self) -> int:
        return len(self._fields)


def parse_deb822(raw: bytes, broken: Broken) -> Iterator[Paragraph]:
    """The paragraphs of a text; values keep the newlines between their lines.

    Raises:
        VerificationFailed: made by `broken`, for text that is not UTF-8 or has control characters, a line that belongs to no field, a
            repeated field, a line of nothing but blanks, an empty line that ends no paragraph, no newline at the end, or too many lines.
    """
    return parse_lines(iter([raw]), broken)


def parse_lines(pieces: Iterable[bytes], broken: Broken) -> Iterator[Paragraph]:
    """As `parse_deb822`, of a text that comes in pieces; only one line and one paragraph of it are kept at a time."""
    fields, last = Paragraph(), ""
    for line in _lines(pieces, broken):
        if not line:
            if not fields:
                raise broken("it has an empty line that ends no paragraph")
            yield fields
            fields, last = Paragraph(), ""
        elif line[0] in BLANK:
            if not last:
                raise broken(f"the line {line[:80]!r} belongs to no field")
            if not line.strip(BLANK):
                raise broken(f"a line of {last} has nothing but blanks: dpkg takes it for an error, and others for the end")
            fields.extend(last, line.strip(BLANK))
        else:
            last, colon, value = line.partition(":")
            if not colon or not _LABEL.fullmatch(last) or last[0] in "#-":
                raise broken(f"the line {line[:80]!r} is not a field")
            if not fields.add(last, value.strip(BLANK)):
                raise broken(f"it has {last} twice")
            if len(fields) > MAX_FIELDS:
                raise broken(f"a paragraph of it has more than {MAX_FIELDS} fields")
    if fields:
        yield fields


def _lines(pieces: Iterable[bytes], broken: Broken) -> Iterator[str]:
    count, begun, length = 0, [], 0
    for piece in pieces:
        start = 0
        while True:
            end = piece.find(b"\n", start)
            begun.append(piece[start:] if end < 0 else piece[start:end])
            length += len(begun[-1])
            if length > MAX_LINE:
                raise broken(f"a line of it is longer than {MAX_LINE >> 10} KiB")
            if end < 0:
                break
            count += 1
            if count > MAX_LINES:
                raise broken(f"it has more than {MAX_LINES} lines")
            yield _decoded(b"".join(begun), broken)
            begun, length, start = [], 0, end + 1
    if length:
        raise broken("its last line has no end")


def _decoded(line: bytes, broken: Broken) -> str:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise broken(str(error)) from None
    found = _CONTROL_CHARACTER.search(text)
    if found:
        raise broken(f"it has the control character {found.group()!r}")
    return text


def words(value: str) -> list[str]:
    """The words of a value, between blanks and newlines: what is compared, since blanks mean nothing."""
    return [word for word in re.split(r"[ \t\n]+", value) if word]
