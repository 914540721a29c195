"""Changing `releases` of a site's file in place: everything else, comments among it, stays as it was written.

A change is made to the text and then read: a file in which it would say anything but what was meant is left alone.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ckp.kits.errors import CkpError, InvalidInput
from ckp.kits.files import atomic_write
from ckp.site.spec import yamltree
from ckp.site.spec.model import SiteSpec
from ckp.site.spec.read import parse_site
from ckp.site.spec.yamltree import Mapping, Node, Scalar, dump_text
from ckp.site.spec.yamltree import Sequence as List

KEY = "releases"


def set_releases(path: Path, names: Sequence[str]) -> bool:
    """Let a site's file name exactly these releases; returns whether that changed it. Those that it names already stay where they are.

    Raises:
        InvalidInput: the file can't be read, or what it says of releases is written in a way that can't be changed here; it was not changed.
    """
    place = path.resolve()  # a link stays one
    try:
        data = place.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path} can't be read: {error.strerror}", resolution="name a file that describes a site") from None
    spec = parse_site(data, path)
    wanted = [*(name for name in spec.releases if name in names), *(name for name in names if name not in spec.releases)]
    if tuple(wanted) == spec.releases:
        return False
    changed = _Text(data.decode()).with_releases(wanted)
    if changed is None or not _says(changed, path, spec, wanted):
        raise InvalidInput(
            f"`{KEY}` of {path} can't be changed by this command, and the file was not changed",
            resolution=f"write there: {KEY}: [{', '.join(wanted)}]",
        )
    found = place.stat()
    atomic_write(place, changed.encode(), mode=stat.S_IMODE(found.st_mode))
    if os.geteuid() == 0:
        os.chown(place, found.st_uid, found.st_gid)
    return True


def _says(text: str, path: Path, before: SiteSpec, names: Sequence[str]) -> bool:
    with suppress(CkpError):
        return parse_site(text.encode(), path) == before.model_copy(update={KEY: tuple(names)})
    return False


@dataclass
class _Text:
    """A file's text with its line breaks."""

    text: str

    def with_releases(self, names: Sequence[str]) -> str | None:
        """The text with these names in it; None if they are written in no way that is known here."""
        value = self._value()
        if value is None:
            end = "" if not self.text or self.text.endswith("\n") else self._newline
            return f"{self.text}{end}{KEY}:{self._newline}" + "".join(f"  - {dump_text(name)}{self._newline}" for name in names)
        if not isinstance(value, List) or not all(isinstance(item, Scalar) for item in value.nodes):
            return None
        lines = self.text.splitlines(keepends=True)
        flow = lines[value.mark.line - 1][value.mark.column - 1 :].startswith("[")
        return self._in_brackets(lines, value, names) if flow else self._with_dashes(lines, value, names)

    @property
    def _newline(self) -> str:
        return "\r\n" if "\r\n" in self.text else "\n"

    def _value(self) -> Node | None:
        root = yamltree.parse(self.text.encode())
        pairs = root.pairs if isinstance(root, Mapping) else []
        return next((value for key, value in pairs if isinstance(key, Scalar) and key.text == KEY), None)

    def _in_brackets(self, lines: list[str], value: List, names: Sequence[str]) -> str | None:
        """`[a, b]` on one line."""
        number, start = value.mark.line - 1, value.mark.column - 1
        match = re.match(r"\[[^\[\]{}#]*\]", lines[number][start:])
        if match is None:
            return None
        lines[number] = f"{lines[number][:start]}[{', '.join(map(dump_text, names))}]{lines[number][start + match.end() :]}"
        return "".join(lines)

    def _with_dashes(self, lines: list[str], value: List, names: Sequence[str]) -> str | None:
        """Each name on a line of its own: lines of names that go are removed, new ones follow the last."""
        places = {item.text: item.mark.line - 1 for item in value.nodes if isinstance(item, Scalar)}
        last = max(places.values())
        begin = re.match(r" *- +", lines[last])
        if begin is None or len(set(places.values())) < len(value.nodes):
            return None
        if not lines[last].endswith("\n"):
            lines[last] += self._newline
        added = [f"{begin[0]}{dump_text(name)}{self._newline}" for name in names if name not in places]
        gone = {line for name, line in places.items() if name not in names}
        kept = [[line] if number not in gone else [] for number, line in enumerate(lines)]
        kept[last] += added
        return "".join(line for group in kept for line in group)
