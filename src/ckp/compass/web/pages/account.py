"""One's own account: who one is, the password; and how a platform gets its first administrator."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from ckp.api.compass.people import OwnPasswordRequest, UserRequest
from ckp.compass.web.console import Console
from ckp.compass.web.gate import SIGN_IN, form_of, session_of
from ckp.kits.errors import InvalidInput


def routes(console: Console) -> list[Route]:
    """The pages."""

    async def show(request: Request) -> Response:
        me = await console.acting(request).users.me(session_of(request).caller)
        return console.page(request, "account.html", section="account", me=me)

    async def change_password(request: Request) -> Response:
        form = form_of(request)
        _require_same(form.text("password"), form.text("again"))
        body = OwnPasswordRequest.of(current=form.text("current"), password=form.text("password"))
        await console.acting(request).users.change_password(session_of(request).caller, body)
        return RedirectResponse(SIGN_IN, status_code=303)

    async def create_first(request: Request) -> Response:
        form = form_of(request)
        _require_same(form.text("password"), form.text("again"))
        body = UserRequest.of(name=form.get("name"), password=form.text("password"))
        await console.acting(request).users.create_first(session_of(request).caller, body)
        return RedirectResponse(SIGN_IN, status_code=303)

    return [
        Route("/account", show, methods=["GET"]),
        Route("/account/password", change_password, methods=["POST"]),
        Route("/first-administrator", create_first, methods=["POST"]),
    ]


def _require_same(password: str, again: str) -> None:
    if password != again:
        raise InvalidInput("password: the two are not the same", resolution="go back, and type it again")
