"""Enrolment over HTTPS: requests pass through to Compass; once a person has approved, the hub signs. A small ASGI application, nothing more."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import httpx
import structlog
from cryptography import x509
from prometheus_client import CollectorRegistry, Counter
from pydantic import ValidationError

from ckp.api import kinds
from ckp.api.errors import ErrorBody, ErrorDetail, error_body
from ckp.api.host_protocol import EnrolmentRequest, EnrolmentStatus, EnrolmentTicket
from ckp.api.internal import ENROLMENTS_PATH, TOKEN_HEADER, CertificateBody, EnrolmentBody, Outcome
from ckp.clients.kube import Kube, Obj
from ckp.hub.identity import HostCa, HostId, serial_text, trusted_by_hosts
from ckp.kits.errors import CkpError
from ckp.rules import certificates

log = structlog.get_logger("hub.enrolment")

MAX_BODY_BYTES = 1 << 15
READ_SECONDS = 10.0
PREFIX = "/v1/enrolments"
_PASSED_ON = (401, 404, 409, 422, 429)

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Refused(CkpError):
    """An answer with an HTTP status and a code for machines."""

    def __init__(self, status: int, code: str, brief: str, *, details: str = "", resolution: str = "") -> None:
        super().__init__(brief, details=details, resolution=resolution)
        self.status = status
        self.code = code


class CompassClient:
    """Compass' internal interface.

    Args:
        token_file: the hub's projected ServiceAccount token; read at each request, since the kubelet renews it.
        transport: for tests.
    """

    def __init__(self, url: str, token_file: Path, ca: Path | None, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._token_file = token_file
        verify: ssl.SSLContext | bool = True
        if ca is not None:
            try:
                verify = ssl.create_default_context(cafile=str(ca))
            except OSError as error:
                raise CkpError(f"the CA of Compass {ca} does not load: {error}") from error
        limits = httpx.Limits(max_connections=32, max_keepalive_connections=4)
        self._http = httpx.AsyncClient(base_url=url, verify=verify, timeout=10.0, limits=limits, trust_env=False, transport=transport)

    async def take(self, request: EnrolmentRequest, source: str) -> EnrolmentTicket:
        """Hand a request on."""
        body = EnrolmentBody(request=request, source=source).model_dump(mode="json")
        return EnrolmentTicket.model_validate(await self._call("POST", ENROLMENTS_PATH, body=body))

    async def outcome(self, request_id: str, token: str) -> Outcome:
        """What became of a request."""
        return Outcome.model_validate(await self._call("GET", f"{ENROLMENTS_PATH}/{request_id}", token=token))

    async def keep_certificate(self, request_id: str, token: str, certificate: str) -> str:
        """Keep a certificate; the answer is the one that counts (the first)."""
        path, body = f"{ENROLMENTS_PATH}/{request_id}/certificate", CertificateBody(certificate=certificate).model_dump()
        return CertificateBody.model_validate(await self._call("PUT", path, token=token, body=body)).certificate

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def _call(self, method: str, path: str, *, token: str = "", body: Any = None) -> dict[str, Any]:
        try:
            own = (await asyncio.to_thread(self._token_file.read_text)).strip()
            headers = {"Authorization": f"Bearer {own}", **({TOKEN_HEADER: token} if token else {})}
            response = await self._http.request(method, path, headers=headers, json=body)
            answer = response.json()
        except (httpx.HTTPError, ValueError, OSError) as error:
            log.warning("compass does not answer", path=path, error=str(error) or type(error).__name__)
            raise Refused(503, "Unavailable", "enrolment is not possible at the moment", resolution="the agent tries again by itself") from None
        if response.is_success and isinstance(answer, dict):
            return answer
        refusal = _refusal(answer)
        # `Unauthorized` is about our own token, not the agent's key: the agent can do nothing about it.
        if response.status_code in _PASSED_ON and refusal is not None and refusal.code != "Unauthorized":
            raise Refused(response.status_code, refusal.code, refusal.message, details=refusal.details, resolution=refusal.resolution)
        log.error("compass refused us", path=path, status=response.status_code, code=refusal.code if refusal else "")
        raise Refused(503, "Unavailable", "enrolment is not possible at the moment", resolution="the agent tries again by itself")


class Enrolment:
    """The ASGI application of the enrolment port.

    Args:
        server_ca: PEM file that the hub's own certificate chains to; agents get it together with the host CA.
    """

    def __init__(self, compass: CompassClient, kube: Kube, ca: HostCa, server_ca: Path, registry: CollectorRegistry) -> None:
        self._compass = compass
        self._kube = kube
        self._ca = ca
        self._server_ca = server_ca
        self._answers = Counter("ckp_hub_enrolment_answers_total", "Answers on the enrolment port", ["status"], registry=registry)

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        try:
            status, answer = await self._route(scope, receive)
        except Refused as error:
            status, answer = error.status, error_body(error.code, error.brief, error.details, error.resolution)
        except CkpError as error:
            log.error("enrolment failed", error=error.brief, details=error.details)
            status, answer = 503, error_body("Unavailable", "enrolment is not possible at the moment")
        self._answers.labels(str(status)).inc()
        body = json.dumps(answer).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
            *([(b"retry-after", b"60")] if status == 429 else []),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _route(self, scope: Any, receive: Receive) -> tuple[int, dict[str, Any]]:
        method, path = scope["method"], scope["path"]
        if method == "POST" and path == PREFIX:
            client = scope.get("client")
            return 202, (await self._take(await _body(scope, receive), str(client[0]) if client else "unknown")).model_dump()
        if method == "GET" and path.startswith(f"{PREFIX}/"):
            return 200, (await self._outcome(path.removeprefix(f"{PREFIX}/"), _bearer(scope))).model_dump()
        raise Refused(404, "NotFound", f"there is nothing at {method} {path}")

    async def _take(self, body: bytes, source: str) -> EnrolmentTicket:
        try:
            request = EnrolmentRequest.model_validate_json(body)
        except ValidationError as error:
            # Never with the input: it may hold the key.
            problems = [
                f"{'.'.join(str(part) for part in problem['loc']) or 'the body'}: {problem['msg']}"
                for problem in error.errors(include_input=False, include_url=False, include_context=False)
            ]
            raise Refused(422, "InvalidInput", problems[0], details="\n".join(problems[1:10])) from None
        return await self._compass.take(request, source)

    async def _outcome(self, request_id: str, token: str) -> EnrolmentStatus:
        if not request_id.isalnum() or len(request_id) > 64:
            raise Refused(404, "NotFound", "there is no such host request", resolution="send the enrolment again")
        outcome = await self._compass.outcome(request_id, token)
        if outcome.state == "pending":
            return EnrolmentStatus(state="pending")
        if outcome.state != "approved":
            return EnrolmentStatus(state="rejected", reason=outcome.reason)
        host = HostId(outcome.namespace, outcome.host)
        certificate = outcome.certificate
        if not certificate:
            certificate = await self._compass.keep_certificate(request_id, token, self._ca.sign(outcome.csr, host))
            log.info("a host has its certificate", host=str(host))
        await self._write_serial(host, certificate)
        return EnrolmentStatus(
            state="approved", host=outcome.host, certificate=certificate, ca=await asyncio.to_thread(trusted_by_hosts, self._server_ca, self._ca)
        )

    async def _write_serial(self, host: HostId, certificate: str) -> None:
        """From here on, only this certificate opens the channel for this host. A merge patch: see status.py why not apply."""
        serial = serial_text(x509.load_pem_x509_certificate(certificate.encode()).serial_number)

        def newer(found: Obj) -> Obj | None:
            current = certificates.certificate_serial(found)
            if current == serial:
                return None
            # The host has had a newer one since (a renewal), revoked or not: a ticket that was kept must not bring the first one back.
            if certificates.enrolled_serial(found) == serial or (current and current != certificates.revoked_serial(found)):
                raise Refused(404, "NotFound", f"host {host} has another certificate by now", resolution="send the enrolment again")
            return {"status": {"agent": {"certificateSerial": serial, "enrolledSerial": serial, "nextCertificateSerial": None}}}

        if await self._kube.change(kinds.BYO_HOST, host.name, host.namespace, newer, subresource="status") is None:
            raise Refused(404, "NotFound", f"host {host} was removed", resolution="send the enrolment again")


async def _body(scope: Any, receive: Receive) -> bytes:
    parts, size = [], 0
    try:
        async with asyncio.timeout(READ_SECONDS):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    raise Refused(400, "Incomplete", "the request ended early")
                size += len(message.get("body", b""))
                if size > MAX_BODY_BYTES:
                    raise Refused(413, "TooLarge", f"the body is larger than {MAX_BODY_BYTES} bytes")
                parts.append(message.get("body", b""))
                if not message.get("more_body"):
                    return b"".join(parts)
    except TimeoutError:
        raise Refused(408, "TooSlow", f"the body did not arrive within {READ_SECONDS:.0f} s") from None


def _bearer(scope: Any) -> str:
    headers = dict(scope["headers"])
    scheme, _, token = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    if scheme.lower() != "bearer" or not 1 <= len(token) <= 256:
        raise Refused(401, "Unauthorized", "the ticket's token is needed", resolution="send it as: Authorization: Bearer TOKEN")
    return str(token)


def _refusal(answer: object) -> ErrorDetail | None:
    """What Compass answered, unless it was something else in its place."""
    try:
        return ErrorBody.model_validate(answer).error
    except ValidationError:
        return None
