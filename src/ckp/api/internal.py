"""What the hub asks of Compass, on Compass' internal port: enrolments. Both sides use these definitions."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from ckp.api.host_protocol import EnrolmentRequest

ENROLMENTS_PATH = "/internal/v1/enrolments"
TOKEN_HEADER = "X-Enrolment-Token"
"""Holds the token of an agent's ticket, beside the hub's own in Authorization."""


class EnrolmentBody(BaseModel):
    """POST ENROLMENTS_PATH: an agent's request, and the address that it came from as the hub saw it. Answered with an EnrolmentTicket."""

    request: EnrolmentRequest
    source: str = Field(min_length=1, max_length=64)


class Outcome(BaseModel):
    """GET ENROLMENTS_PATH/{id}: what became of a request. Namespace, host, CSR (PEM) and certificate (PEM) only once it is approved."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    state: str
    """pending, approved or rejected."""
    reason: str = ""
    namespace: str = ""
    host: str = ""
    csr: str = ""
    certificate: str = ""


class CertificateBody(BaseModel):
    """PUT ENROLMENTS_PATH/{id}/certificate: the certificate (PEM) that the hub signed. The answer has the one that counts: the first."""

    certificate: str = Field(min_length=1, max_length=16384)
