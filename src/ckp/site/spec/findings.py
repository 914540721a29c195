"""What is wrong with a site: where, what, and what to write instead.

Rules between fields read what they need with `at`, which answers None for what is absent or broken. So they can judge a file that has other
errors, and a reader sees all errors of a file at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ckp.kits.text import printable

Step = str | int
Place = tuple[Step, ...]
"""Where a value is in the file: keys as they are written there, and positions in lists (from 0)."""


class _Broken:
    """The type of BROKEN."""

    def __repr__(self) -> str:
        return "BROKEN"


BROKEN: Final = _Broken()
"""Takes the place of a value that was given and is wrong by itself."""


@dataclass(frozen=True)
class Finding:
    """One error.

    Args:
        place: the value or key that it is about.
        what: what is wrong, without a full stop.
        remedy: what to write instead; an imperative sentence without a full stop.
    """

    place: Place
    what: str
    remedy: str

    def below(self, *steps: Step) -> Finding:
        """The same finding as seen from further up: `steps` lead from there to here."""
        return Finding((*steps, *self.place), self.what, self.remedy)

    def __str__(self) -> str:
        path = key_path(self.place)
        return f"{path}: {self.what}; {self.remedy}" if path else f"{self.what}; {self.remedy}"


class Refused(ValueError):
    """A value that its type does not take.

    Args:
        what: what is wrong with it, such as `"a b" is not a name`.
        remedy: what to write instead; empty if `what` says it.
    """

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}; {remedy}" if remedy else what)
        self.what = what
        self.remedy = remedy


def key_path(place: Place) -> str:
    """A place as people write it: `management.hosts[0].ssh.port`; empty for the whole file. Keys are the file's: control characters are escaped."""
    text = ""
    for step in place:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return printable(text)


def at(part: Any, *names: str) -> Any:
    """A value below `part`, by the names of fields; None if it is absent or broken, or something on the way is.

    Args:
        part: a model, or what could be read of one: a mapping from the names of its fields.
    """
    for name in names:
        part = part.get(name) if isinstance(part, Mapping) else getattr(part, name, None)
        if part is None or part is BROKEN:
            return None
    return part


def given(part: Any, name: str) -> bool:
    """Whether a field has a value, be it a broken one."""
    return (part.get(name) if isinstance(part, Mapping) else getattr(part, name, None)) is not None


def absent(part: Any, *names: str) -> bool:
    """Whether it is known that a field was not given: neither it nor anything on the way to it is broken."""
    above = at(part, *names[:-1])
    return above is not None and not given(above, names[-1])


def items(part: Any, *names: str) -> Iterator[tuple[int, Any]]:
    """Positions and values of a list that are not broken."""
    yield from ((number, item) for number, item in enumerate(at(part, *names) or ()) if item is not BROKEN)


def shown(text: object, *, longest: int = 60) -> str:
    """A value for an error, in quotes; long ones are cut."""
    short = str(text)
    return repr(short if len(short) <= longest else f"{short[:longest]}…")
