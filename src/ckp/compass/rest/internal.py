"""What the hub asks: enrolments. On its own port, for one ServiceAccount only."""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Header

from ckp.api.host_protocol import EnrolmentTicket
from ckp.api.internal import ENROLMENTS_PATH, TOKEN_HEADER, CertificateBody, EnrolmentBody, Outcome
from ckp.compass.access.authentication import Presented
from ckp.compass.identity import Caller
from ckp.compass.rest.plumbing import By, Gate, install_handlers
from ckp.compass.services import UseCases

MAX_BODY_BYTES = 1 << 16
Token = Annotated[str, Header(alias=TOKEN_HEADER, max_length=256)]


def make_internal_app(cases: UseCases) -> Gate:
    """The application of Compass' inner port."""
    app = FastAPI(title="CKP Compass, internal", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    install_handlers(app)

    @app.post(ENROLMENTS_PATH, status_code=202)
    async def submit(body: EnrolmentBody) -> EnrolmentTicket:
        return await cases.enrolments.submit(body.request, body.source)

    @app.get(ENROLMENTS_PATH + "/{request_id}")
    async def outcome(request_id: str, token: Token) -> Outcome:
        return await cases.enrolments.outcome(request_id, token)

    @app.put(ENROLMENTS_PATH + "/{request_id}/certificate")
    async def keep_certificate(by: By, request_id: str, token: Token, body: CertificateBody) -> CertificateBody:
        return CertificateBody(certificate=await cases.enrolments.keep_certificate(by, request_id, token, body.certificate))

    async def authenticate(presented: Presented) -> Caller:
        return await cases.hub.caller(presented.token)

    return Gate(app, authenticate=authenticate, max_bytes=MAX_BODY_BYTES)
