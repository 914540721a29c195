"""Which certificate a host's agent may connect with: the serials that its object names. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Host = Mapping[str, Any]
"""A ByoHost object."""


def agent_of(host: Host) -> Mapping[str, Any]:
    """What is known of the host's agent; nothing if it never connected."""
    return (host.get("status") or {}).get("agent") or {}


def certificate_serial(host: Host) -> str:
    """The serial of the certificate that this host connects with; '' if none was given out."""
    return str(agent_of(host).get("certificateSerial") or "")


def enrolled_serial(host: Host) -> str:
    """The serial of the certificate that the host's last enrolment brought; '' if it was given out before that was noted."""
    return str(agent_of(host).get("enrolledSerial") or "")


def next_serial(host: Host) -> str:
    """The serial of a renewed certificate that the host was given and has not used yet; '' if there is none."""
    return str(agent_of(host).get("nextCertificateSerial") or "")


def revoked_serial(host: Host) -> str:
    """The serial that an operator has revoked; '' if none."""
    return str((host.get("spec") or {}).get("revokedSerial") or "")


def may_connect(host: Host, serial: str) -> bool:
    """Whether this very certificate opens the channel for this host now. With a certificate its renewal is revoked too, used or not."""
    current, revoked = certificate_serial(host), revoked_serial(host)
    if not serial or serial == revoked or (current and current == revoked):
        return False
    return serial in (current, next_serial(host))
