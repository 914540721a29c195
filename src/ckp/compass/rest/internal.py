"""What the hub asks: enrolments. On its own port, for one ServiceAccount only."""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Header
from pydantic import BaseModel, Field

from ckp.api.host_protocol import EnrolmentRequest, EnrolmentTicket
from ckp.compass.rest.plumbing import Gate, install_handlers
from ckp.compass.services import UseCases

MAX_BODY_BYTES = 1 << 16
Token = Annotated[str, Header(alias="X-Enrolment-Token", max_length=256)]


class EnrolmentBody(BaseModel):
    """An agent's request, and the address that it came from as the hub saw it."""

    request: EnrolmentRequest
    source: str = Field(min_length=1, max_length=64)


class OutcomeAnswer(BaseModel):
    """What became of a request; csr and certificate only once it is approved."""

    state: str
    reason: str
    namespace: str
    host: str
    csr: str
    certificate: str


class CertificateBody(BaseModel):
    """The certificate that the hub signed."""

    certificate: str = Field(min_length=1, max_length=16384)


def make_internal_app(cases: UseCases) -> Gate:
    """The application of Compass' inner port."""
    app = FastAPI(title="CKP Compass, internal", docs_url=None, redoc_url=None, openapi_url=None)
    install_handlers(app)

    @app.post("/internal/v1/enrolments", status_code=202)
    async def take(body: EnrolmentBody) -> EnrolmentTicket:
        return await cases.enrolments.take(body.request, body.source)

    @app.get("/internal/v1/enrolments/{request_id}")
    async def outcome(request_id: str, token: Token) -> OutcomeAnswer:
        found = await cases.enrolments.outcome(request_id, token)
        return OutcomeAnswer(state=found.state, reason=found.reason, namespace=found.namespace, host=found.host, csr=found.csr, certificate=found.certificate)

    @app.put("/internal/v1/enrolments/{request_id}/certificate")
    async def keep_certificate(request_id: str, token: Token, body: CertificateBody) -> CertificateBody:
        return CertificateBody(certificate=await cases.enrolments.keep_certificate(request_id, token, body.certificate))

    async def authenticate(token: str) -> str:
        await cases.hub.require(token)
        return "hub"

    return Gate(app, authenticate=authenticate, max_bytes=MAX_BODY_BYTES)
