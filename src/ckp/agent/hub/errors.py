"""How talking to the hub fails."""

from __future__ import annotations

from typing import Any

from ckp.hostkit.errors import AgentError


class EnrolmentFailed(AgentError):
    """The hub said no, or can't be trusted."""

    default_reason = "EnrolmentFailed"


class HubUnreachable(AgentError):
    """The hub did not answer; it is asked again."""

    default_reason = "HubUnreachable"


def refusal(code: int, data: Any) -> EnrolmentFailed:
    """What an answer with an error's status means for this host.

    Args:
        code: HTTP's status.
        data: the answer's JSON, as the hub sent it.
    """
    said = data.get("error", {}) if isinstance(data, dict) else {}
    said = said if isinstance(said, dict) else {}
    message = str(said.get("message") or "")[:500]
    known = {
        401: ("WrongKey", "the hub does not accept the pre-shared key of this host", "write the project's current key into the psk file (ckp host psk)"),
        403: ("WrongKey", "the hub refuses this host", "ask who runs the project"),
        409: (
            "IdentityTaken",
            "another host has this machine's identity already",
            "remove the other host in Compass, or give this machine its own /etc/machine-id",
        ),
        413: ("RequestRefused", "the hub refuses the request as too large", "report this with the agent's log"),
        422: ("RequestRefused", "the hub does not understand the request", "use an agent that fits the hub's version"),
        429: ("TooManyRequests", "the hub asks to slow down", "it is asked again later"),
    }
    reason, brief, resolution = known.get(code, ("HubError", f"the hub answers with status {code}", "it is asked again; see the hub's log"))
    return EnrolmentFailed(
        brief, details=message, resolution=str(said.get("resolution") or resolution)[:500], reason=reason, permanent=code in (401, 403, 409, 413, 422)
    )
