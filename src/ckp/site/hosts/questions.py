"""Several questions to a host in one round trip: what a command costs over SSH is the way there and back, and hardly ever the answer."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from ckp.kits.processes import Finished
from ckp.site.inventory import SiteHost

HEAD = "# questions\n"
"""Begins the script that asks them, a command in each line."""
END = "; printf '\\036%d\\036' $?"
"""Ends each line: the exit code, between record separators that no answer has."""

Argv = Sequence[str | Path]


class Asked:
    """A host of which some things were asked already. What else it is asked goes there.

    Args:
        questions: commands that change nothing, and read nothing from standard input.

    Raises:
        CkpError: the host is not reached.
    """

    def __init__(self, host: SiteHost, questions: Sequence[Argv], *, timeout: float) -> None:
        self._host = host
        asked = [tuple(map(str, argv)) for argv in questions]
        done = host.run(["sh", "-c", script_of(asked)], timeout=timeout, check=False, what=f"looking at {host.name}")
        parts = re.split("\036(\\d+)\036", done.stdout)
        pairs = zip(asked, zip(parts[::2], parts[1::2], strict=False), strict=False)  # of one that broke off, the rest is asked again
        self._answers = {argv: Finished(argv, int(code), text, "", done.seconds) for argv, (text, code) in pairs}

    @property
    def name(self) -> str:
        """Its hostname."""
        return self._host.name

    @property
    def address(self) -> str:
        """Its IPv4 address in the site's host network."""
        return self._host.address

    def run(self, argv: Argv, *, timeout: float, stdin: str | bytes | None = None, check: bool = True, what: str = "") -> Finished:
        """As `SiteHost` has it. One that failed is asked again where its failing is an error, for what it says."""
        known = self._answers.get(tuple(map(str, argv))) if stdin is None else None
        if known is not None and not (check and known.code):
            return known
        return self._host.run(argv, timeout=timeout, stdin=stdin, check=check, what=what)

    def stream(self, argv: Argv, *, timeout: float, on_line: Callable[[str], None]) -> int:
        """As `SiteHost` has it."""
        return self._host.stream(argv, timeout=timeout, on_line=on_line)

    def push(self, source: Path | bytes, target: str, *, mode: int = 0o644) -> None:
        """As `SiteHost` has it."""
        self._host.push(source, target, mode=mode)

    def pull(self, source: str) -> bytes:
        """As `SiteHost` has it."""
        return self._host.pull(source)


def script_of(questions: Sequence[Argv]) -> str:
    """The script that asks them; what they say of errors is not kept."""
    return HEAD + "".join(f"{shlex.join(map(str, argv))} 2>/dev/null{END}\n" for argv in questions)
