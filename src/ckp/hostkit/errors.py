"""Errors of the tools on a host, each told in a sentence."""

from __future__ import annotations


class AgentError(Exception):
    """An expected failure, told in a sentence.

    Args:
        brief: what is wrong and where.
        details: what was seen; may be several lines.
        resolution: what the reader can do now.
        reason: CamelCase, for machines (the Report's `reason`).
        permanent: trying again soon cannot help.
    """

    exit_code = 1
    default_reason = "Failed"

    def __init__(self, brief: str, *, details: str = "", resolution: str = "", reason: str = "", permanent: bool = False) -> None:
        super().__init__(brief)
        self.brief = brief
        self.details = details
        self.resolution = resolution
        self.reason = reason or self.default_reason
        self.permanent = permanent

    def render(self) -> str:
        """The error as plain text for a terminal or a log."""
        lines = [f"error: {self.brief}"]
        if self.details:
            lines += [f"  | {line}" for line in self.details.rstrip().splitlines()]
        if self.resolution:
            lines.append(f"  what to do: {self.resolution}")
        return "\n".join(lines)

    def sentence(self) -> str:
        """One line for a report: what is wrong, the last thing that was seen, what to do."""
        parts = [self.brief]
        if self.details:
            parts.append(self.details.strip().splitlines()[-1].strip()[:300])
        if self.resolution:
            parts.append(self.resolution)
        return ". ".join(part.rstrip(".") for part in parts)


class InvalidInput(AgentError):
    """The caller asked for something that cannot be: nothing was changed."""

    exit_code = 2
    default_reason = "InvalidInput"


class VerificationFailed(AgentError):
    """A signature, a maintainer or a digest is not what it must be: nothing was changed. Trying the same bytes again cannot help."""

    exit_code = 3
    default_reason = "VerificationFailed"

    def __init__(self, brief: str, *, details: str = "", resolution: str = "", check: str = "", key: str = "") -> None:
        if key:
            details = f"{details}\nkey: {key}".strip()
        super().__init__(brief, details=details, resolution=resolution, permanent=True)
        self.check = check
        self.key = key


class Cancelled(AgentError):
    """A wait was given up because something newer is wanted."""

    default_reason = "Cancelled"


class ProcessFailed(AgentError):
    """A program ended with an error, or did not end in time."""

    default_reason = "CommandFailed"
