"""Which certificate a host's agent may connect with: the serials that its object names. Pure.

Reads these few fields directly: whether a host may connect does not depend on the rest of its object being readable (ckp.api.objects).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Host = Mapping[str, Any]
"""A ByoHost object."""


def agent_of(host: Host) -> Mapping[str, Any]:
    """`status.agent` as it is stored; empty if the agent never connected."""
    return (host.get("status") or {}).get("agent") or {}


def certificate_serial(host: Host) -> str:
    """The serial of the certificate that this host connects with; '' if none was issued."""
    return str(agent_of(host).get("certificateSerial") or "")


def enrolled_serial(host: Host) -> str:
    """The serial of the certificate that the host's last enrolment brought; '' if it was issued before that was recorded."""
    return str(agent_of(host).get("enrolledSerial") or "")


def next_serial(host: Host) -> str:
    """The serial of a renewed certificate that was issued to the host and not used yet; '' if there is none."""
    return str(agent_of(host).get("nextCertificateSerial") or "")


def revoked_serial(host: Host) -> str:
    """The serial that an operator has revoked; '' if none."""
    return str((host.get("spec") or {}).get("revokedSerial") or "")


def may_connect(host: Host, serial: str) -> bool:
    """Whether the host may connect with this very certificate now. Revoking a certificate revokes its renewal too, used or not."""
    current, revoked = certificate_serial(host), revoked_serial(host)
    if not serial or serial == revoked or (current and current == revoked):
        return False
    return serial in (current, next_serial(host))
