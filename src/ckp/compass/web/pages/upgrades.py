"""A cluster's upgrade: what it would be, asking for it, and pausing, resuming or aborting it."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlencode

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from ckp.api.compass.base import sentences
from ckp.api.compass.clusters import ClusterView
from ckp.api.compass.features import PAGES
from ckp.api.compass.upgrades import UpgradeRequest, UpgradeView
from ckp.compass.identity import ProjectRef
from ckp.compass.services import UseCases
from ckp.compass.web.console import Console, project_of, root_of
from ckp.compass.web.forms.commands import upgrade_of_ckp
from ckp.compass.web.forms.reading import Form
from ckp.compass.web.gate import form_of, session_of
from ckp.compass.web.live.response import EventStream
from ckp.compass.web.paging import parameter
from ckp.kits.errors import InvalidInput
from ckp.rules.upgrades import Version

BASE = f"{PAGES}/clusters/{{name}}/upgrade"
PLAN = re.compile(r"[a-z0-9.-]{1,253}")
SHOWN = ("version", "atOnce", "afterFirst", "soak")
"""Fields that stand in the page's address, so that they are there after a check."""


def newer(releases: list[str], reached: str) -> list[str]:
    """The releases that a cluster can go to, the newest first; the one that it has is among them, for nodes that are left behind."""
    return sorted((name for name in releases if not reached or Version.parse(name) >= Version.parse(reached)), key=Version.parse, reverse=True)


def asked(form: Form, *, dry_run: bool) -> UpgradeRequest:
    """The request in a form. InvalidInput names the field that is wrong."""
    body: dict[str, Any] = {"version": form.get("version"), "dryRun": dry_run}
    body |= {name: form.all(name) for name in ("accept", "nodes") if form.all(name)}
    body |= {name: form.get(name) for name in ("atOnce", "afterFirst") if form.get(name)}
    body |= {"soak": True} if form.get("soak") == "yes" else {}
    try:
        return UpgradeRequest.model_validate(body)
    except ValidationError as error:
        raise InvalidInput("; ".join(sentences(error.errors())), resolution="correct it; nothing was changed") from None


def routes(console: Console) -> list[Route]:
    """The pages."""

    async def plan_of(cases: UseCases, project: ProjectRef, name: str, identifier: str) -> UpgradeView | None:
        if not identifier:
            return None
        if not PLAN.fullmatch(identifier):
            raise InvalidInput("plan: this is the name of no plan", resolution="check again")
        return await cases.upgrades.get(project, name, identifier)

    async def context(request: Request) -> dict[str, Any]:
        cases, project, name = console.acting(request), project_of(request), request.path_params["name"]
        cluster: ClusterView = await cases.clusters.get(project, name)
        plan = await plan_of(cases, project, name, parameter(request, "plan", limit=253))
        given = {key: parameter(request, key) for key in SHOWN}
        releases = newer([release.name for release in cases.list_releases()], cluster.version)
        hosts = [machine.host for machine in cluster.machines if machine.host]
        chosen = [host for host in request.query_params.getlist("nodes") if host in hosts]
        values = given | {"version": given["version"] or (plan.version if plan else next(iter(releases), ""))}
        accept = [finding.name for finding in plan.findings if finding.accepted] if plan else []
        command = upgrade_of_ckp(project, name, values, chosen, accept)
        more = {"releases": releases, "hosts": hosts, "chosen": chosen, "values": values, "command": command}
        return {"project": project, "section": "clusters", "cluster": cluster, "plan": plan, **more}

    async def show(request: Request) -> Response:
        return console.page(request, "upgrade.html", **await context(request))

    async def stream(request: Request) -> Response:
        cases, project, name = console.acting(request), project_of(request), request.path_params["name"]
        identifier = parameter(request, "plan", limit=253)
        await cases.clusters.get(project, name)  # what is not there, or not for whoever asks, has no stream
        await plan_of(cases, project, name, identifier)

        async def render() -> dict[str, str]:
            plan = await plan_of(cases, project, name, identifier)
            return {"upgrade-plan": console.fragment("parts/upgrade_plan.html", project=project, plan=plan)}

        return EventStream(console.streams.subscribe(project, f"upgrade {name} {identifier}", session_of(request).digest, render))

    async def start(request: Request) -> Response:
        cases, project, name = console.acting(request), project_of(request), request.path_params["name"]
        form = form_of(request)
        planned = form.get("action") != "upgrade"
        made = await cases.upgrades.start(session_of(request).caller, project, name, asked(form, dry_run=planned))
        place = f"{root_of(project)}/clusters/{name}"
        if not planned:
            return RedirectResponse(f"{place}#upgrade", status_code=303)
        kept = [("plan", made.id), *((key, form.get(key)) for key in SHOWN if form.get(key)), *(("nodes", host) for host in form.all("nodes"))]
        return RedirectResponse(f"{place}/upgrade?{urlencode(kept)}", status_code=303)

    def change(verb: str) -> Route:
        async def changed(request: Request) -> Response:
            cases, project, name = console.acting(request), project_of(request), request.path_params["name"]
            upgrades = cases.upgrades
            verbs = {
                "pause": upgrades.pause,
                "resume": upgrades.resume,
                "commit": upgrades.commit,
                "rollback": upgrades.rollback,
                "abort": upgrades.abort,
            }
            await verbs[verb](session_of(request).caller, project, name)
            return RedirectResponse(f"{root_of(project)}/clusters/{name}#upgrade", status_code=303)

        return Route(f"{BASE}/{verb}", changed, methods=["POST"])

    return [
        Route(BASE, show, methods=["GET"]),
        Route(f"{BASE}/stream", stream, methods=["GET"]),
        Route(BASE, start, methods=["POST"]),
        *(change(verb) for verb in ("pause", "resume", "commit", "rollback", "abort")),
    ]
