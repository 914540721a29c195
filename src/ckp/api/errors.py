"""The one shape of an error over HTTP: of Compass' both ports and of the hub's."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class ErrorDetail(BaseModel):
    """One error: what is wrong and where, what was seen, what to do about it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    code: str = ""
    """For programs, such as `NotFound`."""
    message: str = ""
    details: str = ""
    resolution: str = ""


class ErrorBody(BaseModel):
    """The body of an answer with an HTTP status of 400 or more."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    error: ErrorDetail


def error_body(code: str, message: str, details: str = "", resolution: str = "") -> dict[str, dict[str, str]]:
    """An `ErrorBody` as JSON."""
    return ErrorBody(error=ErrorDetail(code=code, message=message, details=details, resolution=resolution)).model_dump()
