"""The errors that CKP shows to people: what is wrong, where, and what to do about it."""

from __future__ import annotations

from ckp.kits.text import printable_lines


class CkpError(Exception):
    """An expected failure, described in a sentence.

    Args:
        brief: what is wrong and where, in one sentence without a full stop.
        details: what was seen (the tail of a log, a table of findings); may be several lines.
        resolution: what the reader can do now.
    """

    exit_code = 1

    def __init__(self, brief: str, *, details: str = "", resolution: str = "") -> None:
        super().__init__(brief)
        self.brief = brief
        self.details = details
        self.resolution = resolution

    def __str__(self) -> str:
        return f"{self.brief}\n{self.details}" if self.details else self.brief

    def render(self) -> str:
        """The error as plain text for a terminal or a log; control characters in what other programs and machines wrote are escaped."""
        lines = [f"error: {self.brief}"]
        if self.details:
            lines += [f"  | {line}" for line in self.details.rstrip().splitlines()]
        if self.resolution:
            lines.append(f"  what to do: {self.resolution}")
        return "\n".join(line for text in lines for line in printable_lines(text))


class InvalidInput(CkpError):
    """The request can't be met as it is; nothing was changed."""

    exit_code = 2


class NotFound(CkpError):
    """The named thing does not exist."""


class Conflict(CkpError):
    """The thing exists already, or is held by another owner."""


class VerificationFailed(CkpError):
    """A signature, a maintainer or a digest is not the expected one; nothing was changed."""

    exit_code = 3


class TimedOut(CkpError):
    """What was waited for did not happen before the timeout."""

    exit_code = 4
