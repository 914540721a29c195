"""The console as an ASGI application, and the front door that leads to it or to REST."""

from __future__ import annotations

from collections.abc import Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ckp.compass.services import UseCases
from ckp.compass.web.assets import PREFIX as STATIC
from ckp.compass.web.console import Console
from ckp.compass.web.gate import Gate
from ckp.compass.web.pages import account, clusters, create, errors, home, hosts, people, requests, sign_in, upgrades
from ckp.compass.web.state import state_of
from ckp.kits.errors import CkpError

OF_REST = ("/api/", "/healthz", "/readyz")


class WebApp:
    """The console.

    Args:
        cases: all that Compass can do.
    """

    def __init__(self, cases: UseCases) -> None:
        self.console = Console(cases)
        self._gate = Gate(_pages(self.console), cases.sessions)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        await self._gate(scope, receive, send)

    def close(self) -> None:
        """End the open streams: this replica ends."""
        self.console.streams.close()


def routes_of(console: Console) -> list[Route]:
    """All pages."""
    found = [Route(f"{STATIC}{{version}}/{{name:path}}", console.assets.serve, methods=["GET"])]
    for subject in (sign_in, account, home, clusters, upgrades, create, hosts, requests, people):
        found += subject.routes(console)
    return found


def _pages(console: Console) -> ASGIApp:
    async def failed(request: Request, error: Exception) -> Response:
        return errors.answer(console, request, error)

    handlers: dict[type[Exception] | int, Callable[[Request, Exception], object]] = {HTTPException: failed, CkpError: failed, Exception: failed}
    inner = Starlette(routes=routes_of(console), exception_handlers=handlers)  # type: ignore[arg-type]
    inner.router.redirect_slashes = False  # an address has one form

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        failure = state_of(request).failure
        if failure is not None:
            await errors.answer(console, request, failure)(scope, receive, send)
        else:
            await inner(scope, receive, send)

    return app


class FrontDoor:
    """The outer port: REST below /api, the console everywhere else."""

    def __init__(self, rest: ASGIApp, web: WebApp) -> None:
        self._rest = rest
        self._web = web

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        rest = scope["type"] != "http" or scope["path"].startswith(OF_REST)
        await (self._rest if rest else self._web)(scope, receive, send)
