"""Signing in, by name and password or by the bootstrap token, and out."""

from __future__ import annotations

import structlog
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from ckp.compass.errors import TooManyTries, Unauthorized, status_of
from ckp.compass.web.console import Console
from ckp.compass.web.gate import SIGN_IN, form_of, local_path, session_of
from ckp.compass.web.state import COOKIE, state_of

log = structlog.get_logger("compass.console")


def routes(console: Console) -> list[Route]:
    """The pages."""
    sessions = console.sessions

    async def show(request: Request) -> Response:
        target = local_path(request.query_params.get("next", "/"))
        if state_of(request).session is not None:
            return RedirectResponse(target, status_code=303)
        return console.page(request, "sign_in.html", target=target, problem=None, by_token=False)

    async def sign_in(request: Request) -> Response:
        form = form_of(request)
        target = local_path(form.get("next", "/"))
        source = request.client.host if request.client else "unknown"
        by_token = bool(form.get("token"))
        try:
            if by_token:
                raw, session = await sessions.open(form.get("token"), source)
            else:
                raw, session = await sessions.sign_in(form.get("name"), form.text("password"), source, "console")
        except (Unauthorized, TooManyTries) as error:
            log.warning("sign-in refused", source=source, request_id=state_of(request).request_id, error=error.brief)
            return console.page(request, "sign_in.html", status=status_of(error)[0], target=target, problem=error, by_token=by_token)
        if (before := state_of(request).session) is not None:
            await sessions.close(before)
        log.info("signed in", actor=session.caller.name, source=source)
        response = RedirectResponse(target, status_code=303)
        # No lifetime: the browser forgets it when it ends, and the server decides about all else.
        response.set_cookie(COOKIE, raw, path="/", secure=True, httponly=True, samesite="lax")
        return response

    async def sign_out(request: Request) -> Response:
        session = session_of(request)
        await sessions.close(session)
        log.info("signed out", actor=session.caller.name)
        response = RedirectResponse(SIGN_IN, status_code=303)
        response.delete_cookie(COOKIE, path="/", secure=True, httponly=True, samesite="lax")
        return response

    return [
        Route(SIGN_IN, show, methods=["GET"]),
        Route(SIGN_IN, sign_in, methods=["POST"]),
        Route("/sign-out", sign_out, methods=["POST"]),
    ]
