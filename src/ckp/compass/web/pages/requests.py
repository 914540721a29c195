"""Machines that ask to become hosts, and decisions about them."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from ckp.api.compass.enrolment import ApproveRequest, HostRequestView, RejectRequest
from ckp.api.compass.features import PAGES
from ckp.compass.errors import Forbidden
from ckp.compass.hosts.requests import MAX_LISTED
from ckp.compass.identity import Caller, ProjectRef
from ckp.compass.services import UseCases
from ckp.compass.web.console import Console, project_of, root_of
from ckp.compass.web.forms.reading import Form
from ckp.compass.web.gate import form_of, session_of
from ckp.compass.web.live.response import EventStream
from ckp.compass.web.paging import Paged, paged, parameter
from ckp.kits.errors import CkpError, InvalidInput

BASE = f"{PAGES}/requests"
STATES = ("pending", "approved", "rejected", "replaced")


def routes(console: Console) -> list[Route]:
    """The pages."""

    async def listed(request: Request, project: ProjectRef, state: str, q: str) -> Paged[HostRequestView]:
        cases = console.acting(request)
        found = [one for one in await cases.requests.list(project, state=state, limit=MAX_LISTED) if q.lower() in _words(one)]
        return paged(request, found, {"state": "" if state == "pending" else state or "all", "q": q})

    def filters(request: Request) -> tuple[str, str]:
        state = parameter(request, "state") or "pending"
        if state not in (*STATES, "all"):
            raise InvalidInput(f"state: {state!r} is not a state of requests", resolution=f"take one of: {', '.join(STATES)}, all")
        return "" if state == "all" else state, parameter(request, "q")

    async def show_list(request: Request) -> Response:
        cases = console.acting(request)
        project, (state, q) = project_of(request), filters(request)
        page = await listed(request, project, state, q)
        context: dict[str, Any] = {"page": page, "state": state, "q": q, "states": STATES, "groups": await cases.groups.list(project), "refused": {}}
        return console.page(request, "requests.html", project=project, section="requests", **context)

    async def stream(request: Request) -> Response:
        project, (state, q) = project_of(request), filters(request)

        async def render() -> dict[str, str]:
            page = await listed(request, project, state, q)
            return {"request-list": console.fragment("parts/request_list.html", project=project, page=page, state=state, refused={})}

        page = await listed(request, project, state, q)
        return EventStream(console.streams.subscribe(project, f"requests?{page.query}", session_of(request).digest, render))

    async def decide(request: Request) -> Response:
        cases = console.acting(request)
        project, form, caller = project_of(request), form_of(request), session_of(request).caller
        chosen = list(dict.fromkeys(form.all("id")))
        if form.get("action") not in ("approve", "reject"):
            raise InvalidInput("it was not said whether to approve or to reject")
        if not chosen:
            raise InvalidInput("no request was chosen", resolution="go back and mark those that are meant")
        refused: dict[str, CkpError] = {}
        for request_id in chosen:
            try:
                await _decide(cases, caller, project, request_id, form)
            except Forbidden:
                raise
            except CkpError as error:
                refused[request_id] = error
        if not refused:
            return RedirectResponse(f"{root_of(project)}/requests", status_code=303)
        page = await listed(request, project, "pending", "")
        context: dict[str, Any] = {"page": page, "state": "pending", "q": "", "states": STATES, "groups": await cases.groups.list(project), "refused": refused}
        return console.page(request, "requests.html", status=409, project=project, section="requests", **context)

    async def _decide(cases: UseCases, caller: Caller, project: ProjectRef, request_id: str, form: Form) -> None:
        if form.get("action") == "approve":
            values = {"duplicate": form.get(f"duplicate-{request_id}"), "groups": form.all("group")}
            await cases.requests.approve(caller, project, request_id, ApproveRequest.of(**values))
        else:
            await cases.requests.reject(caller, project, request_id, RejectRequest.of(reason=form.get("reason")))

    return [
        Route(BASE, show_list, methods=["GET"]),
        Route(f"{BASE}/-/stream", stream, methods=["GET"]),
        Route(f"{BASE}/decide", decide, methods=["POST"]),
    ]


def _words(request: HostRequestView) -> str:
    """What a request is found by."""
    facts = request.facts
    return f"{facts.hostname if facts else ''} {request.source} {request.machine_id} {request.host}".lower()
