"""Requests to the hub's enrolment port, with limits on time and size."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

from ckp.agent.config import Config
from ckp.agent.hub.errors import EnrolmentFailed, HubUnreachable, clock_problem
from ckp.hostkit import proxies

REQUEST_SECONDS = 20.0
MAX_ANSWER = 1 << 20


def request(config: Config, method: str, path: str, *, body: str | None = None, token: str = "") -> tuple[int, Any, float]:
    """One HTTPS request to the hub, whose certificate must chain to the configured CA. Returns status, JSON and Retry-After (seconds, 0 if none).

    It goes through this host's proxy, unless NO_PROXY names the hub.

    Raises:
        HubUnreachable: no connection, or no answer in time.
        EnrolmentFailed: the server is not the hub (its certificate does not chain to the configured CA).
    """
    import http.client
    import ssl

    parts = urlsplit(config.hub)
    context = ssl.create_default_context(cafile=config.ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    headers = {"Accept": "application/json", "User-Agent": "ckp-agent"}
    if body is not None:
        headers["Content-Type"] = "application/json"
    if token:
        headers["Authorization"] = f"Bearer {token}"
    connection = http.client.HTTPSConnection(parts.hostname or "", parts.port or 443, timeout=REQUEST_SECONDS, context=context)
    try:
        connection.sock = context.wrap_socket(proxies.connect(connection.host, connection.port, REQUEST_SECONDS), server_hostname=connection.host)
        connection.request(method, parts.path.rstrip("/") + path, body=body.encode() if body is not None else None, headers=headers)
        answer = connection.getresponse()
        raw = answer.read(MAX_ANSWER)
        retry = answer.getheader("Retry-After") or "0"
    except ssl.SSLCertVerificationError as error:
        if clock := clock_problem(error):
            raise HubUnreachable(clock, resolution="the pre-shared key was not sent; the agent tries again", reason="ClockWrong") from None
        raise EnrolmentFailed(
            f"the server at {config.hub} is not the configured hub: {error.verify_message}",
            details=f"its certificate does not chain to {config.ca}, or is for another name",
            resolution="check `hub` and `ca` in the agent's config.json; the pre-shared key was not sent",
            reason="HubNotTrusted",
        ) from None
    except (OSError, http.client.HTTPException) as error:
        raise HubUnreachable(f"the hub {config.hub} does not answer: {error}", resolution="the agent tries again; check the network and the address") from None
    finally:
        connection.close()
    try:
        data = json.loads(raw) if raw else {}
    except ValueError:
        data = {}
    return answer.status, data, float(retry) if retry.isdigit() else 0.0
