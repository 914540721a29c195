"""What is known of a request of the console."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from starlette.requests import Request

from ckp.compass.access.sessions import Session
from ckp.compass.web.forms.reading import Form

COOKIE = "__Host-ckp"
"""Browsers take a cookie of such a name only over TLS, for this host alone and all of its paths (RFC 6265bis, 4.1.3.2)."""


@dataclass
class State:
    """Of one request.

    Args:
        request_id: stands in the answer's header, on error pages and in the log.
        failure: what the gate refused it for.
    """

    request_id: str
    session: Session | None = None
    form: Form | None = None
    failure: Exception | None = None


def state_of(request: Request) -> State:
    """What the gate has found out."""
    return cast(State, request.scope["state"]["console"])
