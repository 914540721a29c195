"""Requests to a cluster's API server, and to etcd's JSON gateway: HTTPS with the standard library, always directly, each with a time limit."""

from __future__ import annotations

import http.client
import json
import ssl
from dataclasses import dataclass
from typing import Any, Optional

ANSWER_BYTES = 4 << 20


class Unreachable(Exception):
    """There was no answer. The text says why, in a few words."""


@dataclass(frozen=True)
class Answer:
    """An answer over HTTP.

    Args:
        date: its Date header, "" if it has none.
    """

    status: int
    body: bytes
    date: str = ""

    def json(self) -> Any:
        """The body's JSON; None if it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    def message(self) -> str:
        """What the server says, for people."""
        data = self.json()
        text = data.get("message") if isinstance(data, dict) else None
        return str(text or self.body[:200].decode(errors="replace").strip() or f"status {self.status}")


def trust(ca_file: str = "", ca_pem: str = "", certificate: str = "", key: str = "") -> ssl.SSLContext:
    """TLS that trusts one CA, with a client certificate if one is given.

    Raises:
        OSError: a file can't be read.
        ssl.SSLError: it is malformed.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cafile=ca_file or None, cadata=ca_pem or None)
    if certificate:
        context.load_cert_chain(certificate, key)
    return context


def without_trust() -> ssl.SSLContext:
    """TLS that trusts every server: only to read what is verified otherwise afterwards."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Server:
    """One server. The connection is kept between requests, and made again after an error."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext, *, bearer: str = "") -> None:
        self.host, self.port = host, port
        self._context = context
        self._headers = {"Accept": "application/json", **({"Authorization": f"Bearer {bearer}"} if bearer else {})}
        self._connection: Optional[http.client.HTTPSConnection] = None

    def request(self, method: str, path: str, body: Any = None, *, timeout: float) -> Answer:
        """Send a request and return the answer, whatever its status.

        Args:
            body: is sent as JSON.
            timeout: seconds for each wait on the network.

        Raises:
            Unreachable: no connection, no trust, or no answer in time. The request may have been carried out all the same.
        """
        headers = {**self._headers, **({"Content-Type": "application/json"} if body is not None else {})}
        data = None if body is None else json.dumps(body).encode()
        try:
            connection = self._connected(timeout)
            connection.request(method, path, body=data, headers=headers)
            answer = connection.getresponse()
            content = answer.read(ANSWER_BYTES)
            if answer.will_close or not answer.isclosed():
                self.close()
            return Answer(answer.status, content, answer.getheader("Date") or "")
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise Unreachable(_reason(error)) from error

    def _connected(self, timeout: float) -> http.client.HTTPSConnection:
        if self._connection is None:
            self._connection = http.client.HTTPSConnection(self.host, self.port, timeout=timeout, context=self._context)
        elif self._connection.sock is not None:
            self._connection.sock.settimeout(timeout)
        self._connection.timeout = timeout
        return self._connection

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, TimeoutError) or "timed out" in str(error):
        return "no answer in time"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text)
