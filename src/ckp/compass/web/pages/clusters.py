"""Clusters: the list, one of them with its timeline, and what can be done with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from ckp.api.compass.clusters import ClusterView, StepView
from ckp.api.compass.features import PAGES
from ckp.api.states import FINISHED_STEPS, StepState
from ckp.compass.identity import ProjectRef
from ckp.compass.services import UseCases
from ckp.compass.web.console import Console, project_of, root_of
from ckp.compass.web.gate import form_of, session_of
from ckp.compass.web.live.response import EventStream
from ckp.compass.web.pages.remedies import remedy
from ckp.compass.web.paging import Paged, UrlFilters, paged
from ckp.kits.clock import human_duration
from ckp.kits.errors import InvalidInput, NotFound

PHASES = ("Pending", "Provisioning", "Provisioned", "Ready", "Failed", "Deleting")
BASE = f"{PAGES}/clusters"


@dataclass(frozen=True)
class Filters(UrlFilters):
    """Which clusters are listed; what is empty does not matter."""

    q: str
    phase: str
    version: str

    def apply(self, clusters: Sequence[ClusterView]) -> list[ClusterView]:
        """Those that match."""
        return [
            cluster for cluster in clusters if self.q.lower() in cluster.name and self.phase in ("", cluster.phase) and self.version in ("", cluster.version)
        ]


@dataclass(frozen=True)
class PhaseOfSteps:
    """One of the four phases on the timeline."""

    name: str
    state: str
    steps: list[StepView]


def timeline(cluster: ClusterView) -> list[PhaseOfSteps]:
    """The steps by phase, and how far each phase is."""
    found: list[PhaseOfSteps] = []
    for phase in dict.fromkeys(step.phase for step in cluster.steps):
        steps = [step for step in cluster.steps if step.phase == phase]
        states = {step.state for step in steps}
        worst = next((state for state in (StepState.FAILED, StepState.RUNNING, StepState.UNKNOWN) if state in states), None)
        state = worst or (StepState.DONE if states <= set(FINISHED_STEPS) else StepState.PENDING)
        found.append(PhaseOfSteps(phase, str(state), steps))
    return found


def progress(cluster: ClusterView) -> str:
    """How far it is, in one sentence: what a screen reader is told when it changes."""
    done = sum(step.state in FINISHED_STEPS for step in cluster.steps)
    if cluster.ready:
        return f"Ready: {done} of {len(cluster.steps)} steps done"
    return f"{cluster.phase}: {done} of {len(cluster.steps)} steps done. {cluster.message}".strip()


def elapsed(cluster: ClusterView) -> str:
    """How long it took from the request to the last step; empty while it is under way."""
    ends = [step.finished_at for step in cluster.steps if step.finished_at]
    return human_duration(max(0.0, (max(ends) - cluster.requested_at).total_seconds())) if cluster.ready and ends else ""


async def shown(cases: UseCases, project: ProjectRef, name: str) -> dict[str, Any]:
    """What the templates of one cluster show."""
    cluster = await cases.clusters.get(project, name)
    try:
        upgrade = await cases.upgrades.get(project, name)
    except NotFound:  # most clusters have none
        upgrade = None
    return {
        "project": project,
        "cluster": cluster,
        "backups": await cases.backups.list(project, name),
        "upgrade": upgrade,
        "phases": timeline(cluster),
        "progress": progress(cluster),
        "elapsed": elapsed(cluster),
        "remedy": remedy,
    }


def routes(console: Console) -> list[Route]:
    """The pages."""

    async def listed(request: Request, project: ProjectRef, filters: Filters) -> tuple[Paged[ClusterView], bool]:
        cases = console.acting(request)
        found = await cases.clusters.list(project)
        return paged(request, filters.apply(found), vars(filters)), not found

    async def show_list(request: Request) -> Response:
        cases = console.acting(request)
        project, filters = project_of(request), Filters.of(request)
        page, nothing = await listed(request, project, filters)
        releases = [release.name for release in cases.list_releases()]
        return console.page(
            request,
            "clusters.html",
            project=project,
            section="clusters",
            page=page,
            filters=filters,
            nothing=nothing,
            phases=PHASES,
            releases=releases,
        )

    async def stream_list(request: Request) -> Response:
        project, filters = project_of(request), Filters.of(request)

        async def render() -> dict[str, str]:
            page, nothing = await listed(request, project, filters)
            return {"cluster-list": console.fragment("parts/cluster_list.html", project=project, page=page, nothing=nothing, filters=filters)}

        page, _ = await listed(request, project, filters)
        return EventStream(console.streams.subscribe(project, f"clusters?{page.query}", session_of(request).digest, render))

    async def show(request: Request) -> Response:
        cases = console.acting(request)
        project = project_of(request)
        return console.page(request, "cluster.html", section="clusters", **await shown(cases, project, request.path_params["name"]))

    async def stream(request: Request) -> Response:
        cases = console.acting(request)
        project, name = project_of(request), request.path_params["name"]
        await cases.clusters.get(project, name)  # what is not there has no stream

        async def render() -> dict[str, str]:
            context = await shown(cases, project, name)
            return {
                "cluster-head": console.fragment("parts/cluster_head.html", **context),
                "cluster-timeline": console.fragment("parts/timeline.html", **context),
                "cluster-parts": console.fragment("parts/cluster_parts.html", **context),
                "announce": context["progress"],
            }

        return EventStream(console.streams.subscribe(project, f"cluster {name}", session_of(request).digest, render))

    async def kubeconfig(request: Request) -> Response:
        cases = console.acting(request)
        project, name = project_of(request), request.path_params["name"]
        content = await cases.clusters.kubeconfig(session_of(request).caller, project, name)
        headers = {"Content-Disposition": f'attachment; filename="{name}.kubeconfig"'}
        return Response(content, media_type="application/yaml", headers=headers)

    async def scale(request: Request) -> Response:
        cases = console.acting(request)
        project, name = project_of(request), request.path_params["name"]
        asked = form_of(request).get("workers")
        if not (asked.isascii() and asked.isdecimal() and len(asked) < 6):
            raise InvalidInput(f"workers: {asked!r} is not a number", resolution="write how many workers the cluster is to have")
        await cases.clusters.scale(session_of(request).caller, project, name, int(asked))
        return RedirectResponse(f"{root_of(project)}/clusters/{name}", status_code=303)

    async def ask_deletion(request: Request) -> Response:
        cases = console.acting(request)
        project = project_of(request)
        cluster = await cases.clusters.get(project, request.path_params["name"])
        return console.page(request, "cluster_delete.html", project=project, section="clusters", cluster=cluster, problem="")

    async def delete(request: Request) -> Response:
        cases = console.acting(request)
        project, form = project_of(request), form_of(request)
        cluster = await cases.clusters.get(project, request.path_params["name"])
        if form.get("confirm") != cluster.name:
            problem = f"Type {cluster.name} to delete it. Nothing was changed."
            context: dict[str, Any] = {"project": project, "section": "clusters", "cluster": cluster, "problem": problem}
            return console.page(request, "cluster_delete.html", status=422, **context)
        await cases.clusters.delete(session_of(request).caller, project, cluster.name, force=form.get("force") == "yes")
        return RedirectResponse(f"{root_of(project)}/clusters/{cluster.name}", status_code=303)

    return [
        Route(BASE, show_list, methods=["GET"]),
        Route(f"{BASE}/-/stream", stream_list, methods=["GET"]),
        Route(f"{BASE}/{{name}}", show, methods=["GET"]),
        Route(f"{BASE}/{{name}}/stream", stream, methods=["GET"]),
        Route(f"{BASE}/{{name}}/kubeconfig", kubeconfig, methods=["POST"]),
        Route(f"{BASE}/{{name}}/scale", scale, methods=["POST"]),
        Route(f"{BASE}/{{name}}/delete", ask_deletion, methods=["GET"]),
        Route(f"{BASE}/{{name}}/delete", delete, methods=["POST"]),
    ]
