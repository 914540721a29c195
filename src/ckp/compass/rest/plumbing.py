"""What every request passes: size, token, and errors in one shape."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from typing import Annotated

import structlog
from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as AsgiScope

from ckp.api.compass.base import sentences
from ckp.api.errors import ErrorBody, ErrorDetail, error_body
from ckp.compass.access.authentication import Presented
from ckp.compass.errors import Unauthorized, status_of
from ckp.compass.identity import PLATFORM, Caller, Door, ProjectRef, Scope
from ckp.compass.services import UseCases
from ckp.kits.errors import CkpError, InvalidInput

log = structlog.get_logger("compass")

_OPEN_PATHS = ("/healthz", "/readyz")


def body_of(error: CkpError) -> ErrorBody:
    """An error as the caller gets it."""
    return ErrorBody(error=ErrorDetail(code=status_of(error)[1], message=error.brief, details=error.details, resolution=error.resolution))


def error_response(error: CkpError) -> JSONResponse:
    """An expected failure as an answer."""
    status, _ = status_of(error)
    headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, Unauthorized) else {"Retry-After": "60"} if status == 429 else None
    return JSONResponse(body_of(error).model_dump(), status, headers)


def install_handlers(app: FastAPI) -> None:
    """Every failure of `app` becomes JSON in the one shape."""

    @app.exception_handler(CkpError)
    async def expected(request: Request, error: CkpError) -> JSONResponse:
        response = error_response(error)
        if response.status_code >= 500:
            log.warning("request failed", path=request.url.path, error=error.brief, details=error.details)
        return response

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        problems = list(error.errors())
        malformed = any(problem.get("type") == "json_invalid" for problem in problems)
        first, *others = sentences(problems)
        return JSONResponse(error_body("InvalidInput", first, "\n".join(others)), 400 if malformed else 422)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        names = {404: "NotFound", 405: "MethodNotAllowed", 413: "TooLarge"}
        message = f"there is nothing at {request.method} {request.url.path}" if error.status_code in (404, 405) else str(error.detail)
        return JSONResponse(error_body(names.get(error.status_code, "Failed"), message), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        log.error("unexpected failure", path=request.url.path, exc_info=error)
        return JSONResponse(error_body("Internal", "an unexpected failure; see Compass' log"), 500)


class Gate:
    """Before anything of a request is parsed: its token is checked, its size bounded.

    Args:
        authenticate: from the bearer token to the caller; raises the error that is answered.
        max_bytes: largest body.
        open_calls: method and path of what needs no token.
    """

    def __init__(
        self, app: ASGIApp, *, authenticate: Callable[[Presented], Awaitable[Caller]], max_bytes: int, open_calls: Collection[tuple[str, str]] = ()
    ) -> None:
        self._app = app
        self._authenticate = authenticate
        self._max_bytes = max_bytes
        self._open_calls = frozenset(open_calls)

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        scheme, _, token = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        client = scope.get("client")
        source, door = client[0] if client else "unknown", _door(headers.get(b"user-agent", b""))
        try:
            if (scope["method"], scope["path"]) in self._open_calls:
                caller = Caller("", "")
            elif scheme.lower() != "bearer" or not token.strip():
                raise Unauthorized("a token is needed", resolution="send it as: Authorization: Bearer TOKEN")
            else:
                caller = await self._authenticate(Presented(token.strip(), source))
            scope.setdefault("state", {})["caller"] = replace(caller, source=source, door=door)
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


def caller_of(request: Request) -> Caller:
    """The caller, as the gate recognised it."""
    caller = request.scope.get("state", {}).get("caller")
    if not isinstance(caller, Caller):
        raise Unauthorized("the request did not pass the gate")
    return caller


def _door(user_agent: bytes) -> Door:
    """The command line says that it is; whoever says so too is taken for it: it is told apart in the audit log, and for nothing else."""
    return "cli" if user_agent == b"ckp" or user_agent.startswith(b"ckp/") else "rest"


def _project(domain: str, project: str) -> ProjectRef:
    return ProjectRef.of(domain, project)


def of_platform() -> Scope:
    """The whole."""
    return PLATFORM


def of_domain(domain: str) -> Scope:
    """The domain in the path."""
    return Scope.of(domain)


def of_project(domain: str, project: str) -> Scope:
    """The project in the path."""
    return Scope.of(domain, project)


def _cases(request: Request) -> UseCases:
    cases: UseCases = request.app.state.cases
    return cases.acting(caller_of(request))


def token_of(request: Request) -> str:
    """The bearer token of a request that has passed the gate."""
    return request.headers.get("authorization", "").partition(" ")[2].strip()


Project = Annotated[ProjectRef, Depends(_project)]
Domain = Annotated[Scope, Depends(of_domain)]
By = Annotated[Caller, Depends(caller_of)]
Cases = Annotated[UseCases, Depends(_cases)]
"""The use cases for the caller: each asks whether they may."""
Limit = Annotated[int, Query(ge=1, le=1000)]
PageToken = Annotated[str, Query(alias="pageToken", max_length=200)]
