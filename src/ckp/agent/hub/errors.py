"""Errors of the communication with the hub."""

from __future__ import annotations

import ssl
import time
from typing import Any

from ckp.hostkit.errors import SET_CLOCK, AgentError


class EnrolmentFailed(AgentError):
    """The hub refused the request, or can't be trusted."""

    default_reason = "EnrolmentFailed"


class HubUnreachable(AgentError):
    """The hub did not answer; the request is repeated."""

    default_reason = "HubUnreachable"


NOT_YET_VALID, EXPIRED = 9, 10
"""OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED."""


def clock_problem(error: ssl.SSLCertVerificationError) -> str:
    """What is wrong with this host's clock, if the verification of the hub's certificate failed by the time; "" if it failed otherwise."""
    now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    if error.verify_code == NOT_YET_VALID:
        return f"this host's clock says {now}, and the hub's certificate begins later: {SET_CLOCK}"
    if error.verify_code == EXPIRED:
        return f"this host's clock says {now}, and the hub's certificate has ended before: if the clock is ahead, {SET_CLOCK}; if not, renew the certificate"
    return ""


def refusal(code: int, data: Any) -> EnrolmentFailed:
    """The error for an answer with an error status.

    Args:
        code: the HTTP status.
        data: the parsed JSON body.
    """
    body = data.get("error", {}) if isinstance(data, dict) else {}
    body = body if isinstance(body, dict) else {}
    message = str(body.get("message") or "")[:500]
    known = {
        401: ("WrongKey", "the hub does not accept the pre-shared key of this host", "write the project's current key into the psk file (ckp host psk)"),
        403: ("WrongKey", "the hub refuses this host", "ask the administrator of the project"),
        409: (
            "IdentityTaken",
            "another host already has this machine's identity",
            "remove the other host in Compass, or give this machine its own /etc/machine-id",
        ),
        413: ("RequestRefused", "the hub refuses the request as too large", "report this with the agent's log"),
        422: ("RequestRefused", "the hub can't read the request", "use an agent of the hub's version"),
        429: ("TooManyRequests", "the hub limits the rate of requests", "the agent tries again later"),
    }
    reason, brief, resolution = known.get(code, ("HubError", f"the hub answered with status {code}", "the agent tries again; see the hub's log"))
    return EnrolmentFailed(
        brief, details=message, resolution=str(body.get("resolution") or resolution)[:500], reason=reason, permanent=code in (401, 403, 409, 413, 422)
    )
