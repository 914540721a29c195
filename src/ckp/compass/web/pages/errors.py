"""Pages of failures: what happened, what it means, what to do, and the request's id."""

from __future__ import annotations

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ckp.compass.errors import status_of
from ckp.compass.web.console import Console
from ckp.compass.web.state import state_of
from ckp.kits.errors import CkpError, NotFound

log = structlog.get_logger("compass.console")

MEANINGS = {
    401: "You are not signed in, or your session has ended. Nothing was changed.",
    403: "Your roles are not enough for this, or it came from no page of this site, so nothing was changed.",
    404: "It does not exist in this project, was removed, or belongs to somebody else.",
    405: "This page can't be used in that way.",
    409: "It does not fit with what is there now. Nothing was changed.",
    422: "What was asked for can't be done as it was written. Nothing was changed.",
    429: "There were too many attempts, so that others could be guessing.",
    500: "This is a fault of Compass. What was asked for may have been done in part; asking again is harmless.",
    503: "Something that Compass needs does not answer. Clusters and hosts run on without it.",
}
"""What a status means for whoever looks at the page."""
TITLES = {401: "Sign in again", 403: "Refused", 404: "Not found", 405: "Not found", 409: "Not now", 422: "Not like this", 429: "Wait a moment", 503: "Away"}


def answer(console: Console, request: Request, error: Exception) -> Response:
    """The page of a failure."""
    shown: CkpError
    if isinstance(error, HTTPException):
        status = error.status_code
        shown = NotFound(f"there is nothing at {request.method} {request.url.path}", resolution="go back, or begin at the start page")
    elif isinstance(error, CkpError):
        shown, (status, _) = error, status_of(error)
    else:
        log.error("unexpected failure", path=request.url.path, request_id=state_of(request).request_id, exc_info=error)
        shown, status = CkpError("an unexpected failure", resolution="tell your administrator the request's id: Compass' log has the rest under it"), 500
    if status >= 500 or status == 403:
        log.warning("request failed", path=request.url.path, request_id=state_of(request).request_id, error=shown.brief, details=shown.details)
    headers = {"Retry-After": "60"} if status == 429 else {}
    meaning = MEANINGS.get(status, MEANINGS[500])
    return console.page(request, "error.html", status=status, headers=headers, error=shown, meaning=meaning, heading=TITLES.get(status, "Failed"))
