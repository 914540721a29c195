"""The start page, a project's overview, releases, and the audit log."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ckp.api.compass.features import PAGES
from ckp.compass.identity import PLATFORM, ProjectRef
from ckp.compass.web.console import Console, project_of, root_of
from ckp.compass.web.gate import session_of
from ckp.compass.web.paging import paged, parameter

AUDIT_ENTRIES = 1000


def routes(console: Console) -> list[Route]:
    """The pages."""

    async def start(request: Request) -> Response:
        cases = console.acting(request)
        caller = session_of(request).caller
        projects = [(one, root_of(ProjectRef(one.domain, one.name))) for one in await cases.projects.list(caller)]
        return console.page(request, "start.html", section="start", domains=await cases.domains.list(caller), projects=projects)

    async def overview(request: Request) -> Response:
        cases = console.acting(request)
        project = project_of(request)
        clusters, hosts, groups = await cases.clusters.list(project), await cases.hosts.list(project), await cases.groups.list(project)
        pending = await cases.requests.list(project, state="pending")
        return console.page(request, "overview.html", project=project, section="overview", clusters=clusters, hosts=hosts, groups=groups, pending=pending)

    async def releases(request: Request) -> Response:
        cases = console.acting(request)
        return console.page(request, "releases.html", section="releases", releases=cases.list_releases()[::-1], agents=cases.releases.agents()[::-1])

    async def audit(request: Request) -> Response:
        cases = console.acting(request)
        q = parameter(request, "q")
        project = project_of(request) if "project" in request.path_params else None
        entries = [
            entry
            for entry in (await cases.audit.list(project or PLATFORM, AUDIT_ENTRIES)).items
            if q.lower() in f"{entry.action} {entry.target} {entry.actor}".lower()
        ]
        page = paged(request, entries, {"q": q})
        return console.page(request, "audit.html", project=project, section="audit", page=page, q=q, most=AUDIT_ENTRIES)

    return [
        Route("/", start, methods=["GET"]),
        Route("/releases", releases, methods=["GET"]),
        Route(PAGES, overview, methods=["GET"]),
        Route("/audit", audit, methods=["GET"]),
        Route(f"{PAGES}/audit", audit, methods=["GET"]),
    ]
