"""The errors of the host tools, each with a sentence for people."""

from __future__ import annotations

from ckp.hostkit.text import printable

SET_CLOCK = "set the clock (timedatectl set-ntp true, or chronyc makestep)"
"""What to do about a host's clock that is wrong."""


class AgentError(Exception):
    """An expected failure, described in a sentence.

    Args:
        brief: what is wrong and where.
        details: what was observed; may be several lines.
        resolution: what the reader can do now.
        reason: CamelCase, for machines (the Report's `reason`).
        permanent: an early retry can't help.
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
        """The error as plain text for a terminal or a log; control characters in it are escaped."""
        lines = [f"error: {printable(self.brief)}"]
        if self.details:
            lines += [f"  | {printable(line)}" for line in self.details.rstrip().split("\n")]
        if self.resolution:
            lines.append(f"  what to do: {printable(self.resolution)}")
        return "\n".join(lines)

    def sentence(self) -> str:
        """One line for a report: what is wrong, the last line of the details, what to do; control characters in it are escaped."""
        parts = [self.brief]
        if self.details:
            parts.append(self.details.strip().splitlines()[-1].strip()[:300])
        if self.resolution:
            parts.append(self.resolution)
        return printable(". ".join(part.rstrip(".") for part in parts))


class InvalidInput(AgentError):
    """The request can't be met as it is; nothing was changed."""

    exit_code = 2
    default_reason = "InvalidInput"


class VerificationFailed(AgentError):
    """A signature, a maintainer or a digest is not the expected one; nothing was changed. Retrying with the same bytes can't help."""

    exit_code = 3
    default_reason = "VerificationFailed"

    def __init__(self, brief: str, *, details: str = "", resolution: str = "", check: str = "", key: str = "") -> None:
        if key:
            details = f"{details}\nkey: {key}".strip()
        super().__init__(brief, details=details, resolution=resolution, permanent=True)
        self.check = check
        self.key = key


class Cancelled(AgentError):
    """A step was cancelled because the desired state has changed, or the agent stops."""

    default_reason = "Cancelled"


class ProcessFailed(AgentError):
    """A program failed, or did not end in time."""

    default_reason = "CommandFailed"
