"""What each request of the console passes: its id, its session, whether a page of ours sent it; and the headers of each answer."""

from __future__ import annotations

import hmac
import re
import secrets
from dataclasses import replace
from urllib.parse import quote, urlsplit

import structlog
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ckp.compass.access.sessions import Session, Sessions
from ckp.compass.errors import Forbidden, Unauthorized
from ckp.compass.web.assets import PREFIX as STATIC
from ckp.compass.web.forms.reading import CSRF_FIELD, Form, read
from ckp.compass.web.state import COOKIE, State, state_of

log = structlog.get_logger("compass.console")

SIGN_IN = "/sign-in"
OPEN_PATHS = (SIGN_IN,)
"""What is there without a session, beside the files of the pages."""

HEADERS = {
    # No inline script or style, and nothing of anybody else's: so that what a name or a message holds can't run.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Strict-Transport-Security": "max-age=31536000",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
_LOCAL = re.compile(r"/(?![/\\])[A-Za-z0-9\-._~/?&=%+:,@]{0,500}")


def local_path(text: str) -> str:
    """`text` if it is a path of this site, else `/`: nobody is sent elsewhere by a link to us."""
    parts = urlsplit(text) if _LOCAL.fullmatch(text) else None
    return text if parts is not None and not parts.scheme and not parts.netloc and not parts.path.startswith(SIGN_IN) else "/"


class Gate:
    """Before any page.

    Args:
        app: the pages. Their failures are answered there (`pages.errors`), and so are the gate's own: it hands them over in the state.
    """

    def __init__(self, app: ASGIApp, sessions: Sessions) -> None:
        self._app = app
        self._sessions = sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        state = State(request_id=secrets.token_hex(8))
        scope.setdefault("state", {})["console"] = state

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers["X-Request-Id"] = state.request_id
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        if scope["path"].startswith(STATIC):
            await self._app(scope, receive, with_headers)
            return
        early: Response | None = None
        try:
            state.session = await self._session(request)
            if request.method not in ("GET", "HEAD"):
                _require_own_page(request)
                state.form = await read(request.headers.get("content-type", ""), receive)
                if state.session is not None and scope["path"] not in OPEN_PATHS:
                    _require_csrf(state.form, state.session)
            if state.session is None and scope["path"] not in OPEN_PATHS:
                early = _to_sign_in(request)
        except Exception as error:
            state.failure = error
        if early is not None:
            await early(scope, receive, with_headers)
        else:
            await self._app(scope, receive, with_headers)

    async def _session(self, request: Request) -> Session | None:
        raw = request.cookies.get(COOKIE, "")
        found = await self._sessions.find(raw) if raw and len(raw) < 100 else None
        if found is None or request.client is None:
            return found
        return replace(found, caller=replace(found.caller, source=request.client.host))  # it may have moved since it signed in


def _require_own_page(request: Request) -> None:
    """A change comes from a page of ours: browsers say so themselves, in one header or the other."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    ours = f"{request.url.scheme}://{request.headers.get('host', '')}"
    if site not in (None, "same-origin") or origin not in (None, ours) or (site is None and origin is None):
        raise Forbidden(
            "the request came from another site",
            details=f"origin: {origin or 'not said'}; site: {site or 'not said'}",
            resolution="open the page here and try again; programs use the REST interface below /api/v1",
        )


def _require_csrf(form: Form, session: Session) -> None:
    if not hmac.compare_digest(form.get(CSRF_FIELD).encode(), session.csrf.encode()):
        raise Forbidden("the form is of another session", resolution="go back, reload the page, and send it again")


def _to_sign_in(request: Request) -> Response:
    """People are sent to the form and come back to the page; scripts are told."""
    if request.headers.get("hx-request"):
        return Response(status_code=401, headers={"HX-Redirect": SIGN_IN})
    if request.method not in ("GET", "HEAD"):
        raise Unauthorized("your session has ended, and nothing was changed", resolution="sign in again, and send the form once more")
    path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    target = f"{SIGN_IN}?next={quote(path, safe='')}" if path != "/" else SIGN_IN
    if "text/event-stream" in request.headers.get("accept", ""):
        return Response("the session has ended", status_code=401)
    return RedirectResponse(target, status_code=303)


def form_of(request: Request) -> Form:
    """The request's form. The gate has read and checked it."""
    form = state_of(request).form
    if form is None:
        raise Forbidden("the request did not pass the gate")
    return form


def session_of(request: Request) -> Session:
    """Whose request it is."""
    session = state_of(request).session
    if session is None:
        raise Unauthorized("your session has ended", resolution="sign in again")
    return session
