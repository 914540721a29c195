"""A copy of Compass' PostgreSQL as one stream: its form, for those who write it, check it and put it back.

A line of JSON names the version of the schema, and the columns of each table. Then comes each table in that order, as PostgreSQL's COPY writes it in its text
format: a line a row, and `\\.` at its end, which no row is. The last line is JSON with the number of rows of each table: without it, the copy is not whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ckp.kits.errors import InvalidInput, VerificationFailed

FORMAT = 1
END = b"\\.\n"
LONGEST_LINE = 64 << 20
"""Bytes of a row: more than Compass stores."""
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")


def header(schema: str, tables: Mapping[str, list[str]]) -> bytes:
    """The first line.

    Args:
        schema: its version, as the migrations name it.
        tables: names -> their columns.
    """
    return json.dumps({"format": FORMAT, "schema": schema, "tables": tables}).encode() + b"\n"


def footer(rows: Mapping[str, int]) -> bytes:
    """The last line."""
    return json.dumps({"rows": rows}).encode() + b"\n"


class Copied:
    """A copy that is read once, from its beginning to its end: each table's rows have to be taken, and then `finish`.

    Args:
        lines: the copy's, each with its line feed.

    Raises:
        InvalidInput: a later version has made it.
        VerificationFailed: it is none.
    """

    def __init__(self, lines: Iterator[bytes]) -> None:
        self._lines = lines
        found = self._json("beginning")
        version = found.get("format")
        if not isinstance(version, int) or version > FORMAT:
            raise InvalidInput(
                f"the copy of the database has the format {version}, and this version of CKP reads those up to {FORMAT}",
                resolution="use the version that made it",
            )
        self.schema = str(found.get("schema", ""))
        tables: Any = found.get("tables")
        names = [*tables, *(column for columns in tables.values() for column in columns)] if isinstance(tables, dict) else [""]
        if not self.schema or not all(isinstance(name, str) and _NAME.fullmatch(name) for name in names):
            raise _broken("its beginning does not say which tables it has")
        self.tables: dict[str, list[str]] = tables
        self.counts: dict[str, int] = {}

    def rows(self, table: str) -> Iterator[bytes]:
        """The rows of the next table. VerificationFailed if the copy ends before they do."""
        expected = list(self.tables)[len(self.counts)] if len(self.counts) < len(self.tables) else ""
        if table != expected:
            raise _broken(f"{expected or 'its end'} comes before {table}")
        for count, line in enumerate(self._lines):
            if line == END:
                self.counts[table] = count
                return
            if not line.endswith(b"\n"):
                break
            yield line
        raise _broken(f"it ends within {table}")

    def finish(self) -> Mapping[str, int]:
        """How many rows each table has. VerificationFailed if it is not what was written, or something follows."""
        if self._json("end").get("rows") != self.counts or list(self.counts) != list(self.tables):
            raise _broken("it does not have the rows that were written")
        if next(self._lines, b""):
            raise _broken("something follows its end")
        return self.counts

    def _json(self, what: str) -> dict[str, Any]:
        line = next(self._lines, b"")
        try:
            found = json.loads(line)
        except ValueError:
            raise _broken(f"its {what} can't be read") from None
        if not isinstance(found, dict) or not line.endswith(b"\n"):
            raise _broken(f"its {what} can't be read")
        return found


def _broken(why: str) -> VerificationFailed:
    return VerificationFailed(f"the copy of Compass' database is not whole: {why}", resolution="take another backup")
