"""The start page, a project's overview, releases, and the audit log."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from ckp.api.compass.features import PAGES
from ckp.compass.identity import ProjectRef
from ckp.compass.web.console import Console, project_of, root_of
from ckp.compass.web.paging import paged, parameter

AUDIT_ENTRIES = 1000


def routes(console: Console) -> list[Route]:
    """The pages."""
    cases = console.cases

    async def start(request: Request) -> Response:
        return console.page(request, "start.html", projects=await cases.known_projects(), section="start", root_of=root_of)

    async def open_project(request: Request) -> Response:
        project = ProjectRef.of(parameter(request, "domain"), parameter(request, "project"))
        return RedirectResponse(root_of(project), status_code=303)

    async def overview(request: Request) -> Response:
        project = project_of(request)
        clusters, hosts, groups = await cases.clusters.list(project), await cases.hosts.list(project), await cases.groups.list(project)
        pending = await cases.requests.list(project, state="pending")
        return console.page(request, "overview.html", project=project, section="overview", clusters=clusters, hosts=hosts, groups=groups, pending=pending)

    async def releases(request: Request) -> Response:
        return console.page(request, "releases.html", section="releases", releases=cases.list_releases()[::-1], agents=cases.releases.agents()[::-1])

    async def audit(request: Request) -> Response:
        project, q = project_of(request), parameter(request, "q")
        entries = [entry for entry in await cases.audit(project, AUDIT_ENTRIES) if q.lower() in f"{entry.action} {entry.target} {entry.actor}".lower()]
        page = paged(request, entries, {"q": q})
        return console.page(request, "audit.html", project=project, section="audit", page=page, q=q, most=AUDIT_ENTRIES)

    return [
        Route("/", start, methods=["GET"]),
        Route("/open", open_project, methods=["GET"]),
        Route("/releases", releases, methods=["GET"]),
        Route(PAGES, overview, methods=["GET"]),
        Route(f"{PAGES}/audit", audit, methods=["GET"]),
    ]
