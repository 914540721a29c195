"""What every request goes through: size, token, and errors told in one shape."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ckp.api.errors import error_body
from ckp.clients.kube import KubeError
from ckp.compass.errors import TooManyTries, Unauthorized, WrongKey
from ckp.kits.errors import CkpError, Conflict, InvalidInput, NotFound

log = structlog.get_logger("compass")

_CODES: tuple[tuple[type[CkpError], int], ...] = (
    (InvalidInput, 422),
    (NotFound, 404),
    (Conflict, 409),
    (WrongKey, 401),
    (Unauthorized, 401),
    (TooManyTries, 429),
)
_OPEN_PATHS = ("/healthz", "/readyz")


def status_of(error: CkpError) -> tuple[int, str]:
    """The HTTP status of an error and its code for machines."""
    for kind, status in _CODES:
        if isinstance(error, kind):
            return status, kind.__name__
    if isinstance(error, KubeError):
        if error.code == 409:
            return 409, "Conflict"
        if error.code == 404:  # it was removed between our look and our change
            return 404, "NotFound"
        if error.code in (400, 422):
            return 422, "InvalidInput"
        if error.code in (0, 429) or error.code >= 500:
            return 503, "Unavailable"
    return 500, "Failed"


def error_response(error: CkpError) -> JSONResponse:
    """An expected failure as an answer."""
    status, code = status_of(error)
    headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, Unauthorized) else {"Retry-After": "60"} if status == 429 else None
    resolution = error.resolution or ("try again in a moment: the management cluster does not answer" if status == 503 else "")
    return JSONResponse(error_body(code, error.brief, error.details, resolution), status, headers)


def _sentence(problem: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in problem.get("loc", ()) if part not in ("body", "query", "path"))
    kind, said = problem.get("type", ""), str(problem.get("msg", ""))
    if kind == "missing":
        said = "is missing"
    elif kind == "extra_forbidden":
        said = "is not a field that is known here"
    elif kind == "json_invalid":
        return "the body is not valid JSON"
    else:
        said = said[:1].lower() + said[1:]
    return f"{where or 'the body'}: {said}"


def install_handlers(app: FastAPI) -> None:
    """Every failure of `app` becomes JSON in the one shape."""

    @app.exception_handler(CkpError)
    async def told(request: Request, error: CkpError) -> JSONResponse:
        response = error_response(error)
        if response.status_code >= 500:
            log.warning("request failed", path=request.url.path, error=error.brief, details=error.details)
        return response

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        problems = list(error.errors())
        malformed = any(problem.get("type") == "json_invalid" for problem in problems)
        sentences = [_sentence(problem) for problem in problems]
        return JSONResponse(error_body("InvalidInput", sentences[0], "\n".join(sentences[1:])), 400 if malformed else 422)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        names = {404: "NotFound", 405: "MethodNotAllowed", 413: "TooLarge"}
        message = f"there is nothing at {request.method} {request.url.path}" if error.status_code in (404, 405) else str(error.detail)
        return JSONResponse(error_body(names.get(error.status_code, "Failed"), message), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        log.error("unexpected failure", path=request.url.path, exc_info=error)
        return JSONResponse(error_body("Internal", "an unexpected failure; it is in Compass' log"), 500)


class Gate:
    """Before anything of a request is parsed: its token is checked, its size bounded.

    Args:
        authenticate: from the bearer token to the caller's name; raises what the caller is told.
        max_bytes: largest body.
    """

    def __init__(self, app: ASGIApp, *, authenticate: Callable[[str], Awaitable[str]], max_bytes: int) -> None:
        self._app = app
        self._authenticate = authenticate
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        scheme, _, token = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        try:
            if scheme.lower() != "bearer" or not token.strip():
                raise Unauthorized("a token is needed", resolution="send it as: Authorization: Bearer TOKEN")
            scope.setdefault("state", {})["actor"] = await self._authenticate(token.strip())
            if int(headers.get(b"content-length", b"0") or b"0") > self._max_bytes:
                response = JSONResponse(error_body("TooLarge", self._too_large().detail), 413)
                await response(scope, receive, send)
                return
        except (CkpError, ValueError) as error:
            failure = error if isinstance(error, CkpError) else InvalidInput("content-length is not a number")
            await error_response(failure)(scope, receive, send)
            return
        seen = 0

        async def bounded() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._max_bytes:
                raise self._too_large()
            return message

        async def never_stored(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"cache-control", b"no-store")]
            await send(message)

        await self._app(scope, bounded, never_stored)

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"the body is larger than {self._max_bytes} bytes")


def actor_of(request: Request) -> str:
    """The caller, as the gate found out."""
    return str(request.scope.get("state", {}).get("actor", ""))
