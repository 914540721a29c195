"""Hosts and host groups, and the line by which machines ask to become hosts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from ckp.api.compass.enrolment import HostJoinView
from ckp.api.compass.features import PAGES
from ckp.api.compass.hosts import GroupRequest, HostView
from ckp.compass.errors import Unavailable
from ckp.compass.identity import ProjectRef
from ckp.compass.services import UseCases
from ckp.compass.web.console import Console, project_of, root_of
from ckp.compass.web.gate import form_of, session_of
from ckp.compass.web.live.response import EventStream
from ckp.compass.web.paging import Paged, UrlFilters, paged
from ckp.kits.errors import CkpError, NotFound


@dataclass(frozen=True)
class Filters(UrlFilters):
    """Which hosts are listed; what is empty does not matter."""

    q: str
    state: str
    group: str

    def apply(self, hosts: Sequence[HostView]) -> list[HostView]:
        """Those that match; what is searched for may be a name, an address or a cluster."""
        return [
            host
            for host in hosts
            if self.q.lower() in f"{host.name} {host.address} {host.cluster}"
            and self.state in ("", host.state)
            and (not self.group or self.group in host.groups)
        ]


def routes(console: Console) -> list[Route]:
    """The pages."""

    async def listed(request: Request, project: ProjectRef, filters: Filters) -> tuple[Paged[HostView], list[HostView]]:
        cases = console.acting(request)
        found = await cases.hosts.list(project)
        return paged(request, filters.apply(found), vars(filters)), found

    async def show_list(request: Request) -> Response:
        cases = console.acting(request)
        project, filters = project_of(request), Filters.of(request)
        page, found = await listed(request, project, filters)
        states = sorted({host.state for host in found} | ({filters.state} - {""}))
        groups = sorted({group for host in found for group in host.groups} | ({filters.group} - {""}))
        joining, problem = await _joining(cases, project)
        context: dict[str, Any] = {
            "page": page,
            "nothing": not found,
            "filters": filters,
            "states": states,
            "groups": groups,
            "joining": joining,
            "problem": problem,
        }
        return console.page(request, "hosts.html", project=project, section="hosts", **context)

    async def stream_list(request: Request) -> Response:
        project, filters = project_of(request), Filters.of(request)

        async def render() -> dict[str, str]:
            page, found = await listed(request, project, filters)
            return {"host-list": console.fragment("parts/host_list.html", project=project, page=page, nothing=not found, filters=filters)}

        page, _ = await listed(request, project, filters)
        return EventStream(console.streams.subscribe(project, f"hosts?{page.query}", session_of(request).digest, render))

    async def show(request: Request) -> Response:
        cases = console.acting(request)
        project, name = project_of(request), request.path_params["name"]
        host = await cases.hosts.get(project, name)
        events = list(await cases.hosts.events(project, name))[::-1]
        return console.page(request, "host.html", project=project, section="hosts", host=host, events=events)

    async def stream(request: Request) -> Response:
        cases = console.acting(request)
        project, name = project_of(request), request.path_params["name"]
        await cases.hosts.get(project, name)  # what is not there has no stream

        async def render() -> dict[str, str]:
            host, events = await cases.hosts.get(project, name), list(await cases.hosts.events(project, name))[::-1]
            return {"host-parts": console.fragment("parts/host_parts.html", project=project, host=host, events=events)}

        return EventStream(console.streams.subscribe(project, f"host {name}", session_of(request).digest, render))

    async def show_groups(request: Request) -> Response:
        cases = console.acting(request)
        project = project_of(request)
        context: dict[str, Any] = {"groups": await cases.groups.list(project), "hosts": await cases.hosts.list(project)}
        return console.page(request, "groups.html", project=project, section="groups", **context)

    async def create_group(request: Request) -> Response:
        cases = console.acting(request)
        project, form = project_of(request), form_of(request)
        await cases.groups.create(session_of(request).caller, project, GroupRequest.of(name=form.get("name"), description=form.get("description")))
        return RedirectResponse(f"{root_of(project)}/host-groups", status_code=303)

    async def change_members(request: Request) -> Response:
        cases = console.acting(request)
        project, form, name = project_of(request), form_of(request), request.path_params["name"]
        change = cases.groups.remove if form.get("action") == "remove" else cases.groups.add
        await change(session_of(request).caller, project, name, form.all("host"))
        return RedirectResponse(f"{root_of(project)}/host-groups", status_code=303)

    return [
        Route(f"{PAGES}/hosts", show_list, methods=["GET"]),
        Route(f"{PAGES}/hosts/-/stream", stream_list, methods=["GET"]),
        Route(f"{PAGES}/hosts/{{name}}", show, methods=["GET"]),
        Route(f"{PAGES}/hosts/{{name}}/stream", stream, methods=["GET"]),
        Route(f"{PAGES}/host-groups", show_groups, methods=["GET"]),
        Route(f"{PAGES}/host-groups", create_group, methods=["POST"]),
        Route(f"{PAGES}/host-groups/{{name}}/members", change_members, methods=["POST"]),
    ]


async def _joining(cases: UseCases, project: ProjectRef) -> tuple[HostJoinView | None, CkpError | None]:
    """The line for machines; or why it is not known."""
    try:
        return await cases.joining.get(project, "", ""), None
    except (NotFound, Unavailable) as error:
        return None, error
