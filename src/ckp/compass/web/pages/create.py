"""A new cluster: as a form or as YAML, with a dry run that says what would be refused, and as a command to take along."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from ckp.api.compass.features import PAGES
from ckp.api.compass.hosts import GroupView
from ckp.compass.errors import status_of
from ckp.compass.identity import ProjectRef
from ckp.compass.web.console import Console, project_of, root_of
from ckp.compass.web.forms.cluster import TIMEOUTS, Draft, field_of, of_form, of_yaml, to_yaml, values_of
from ckp.compass.web.forms.commands import of_ckp, of_curl
from ckp.compass.web.gate import form_of, session_of
from ckp.kits.errors import Conflict, InvalidInput

PATH = f"{PAGES}/new-cluster"
POD_CIDR, SERVICE_CIDR = "10.42.0.0/16", "10.43.0.0/16"


def routes(console: Console) -> list[Route]:
    """The pages."""

    async def page(request: Request, draft: Draft, *, view: str, checked: bool, status: int = 200) -> Response:
        cases = console.acting(request)
        project = project_of(request)
        refusals = list(draft.problems)
        if checked and draft.request is not None and not refusals:
            refusals = await cases.clusters.check(project, draft.request)
        releases = cases.list_releases()[::-1]
        context: dict[str, Any] = {
            "draft": draft,
            "view": view,
            "checked": checked,
            "refusals": [(field_of(error), error) for error in refusals],
            "wrong": {field_of(error) for error in refusals},
            "wrong_timeouts": any(field_of(error).startswith("timeouts") for error in refusals),
            "groups": await cases.groups.list(project),
            "releases": releases,
            "cnis": [*sorted({name for release in releases for name in release.cni}), "none"],
            "timeouts": TIMEOUTS,
            "commands": _commands(request, project, draft),
        }
        return console.page(request, "create.html", status=status, project=project, section="clusters", **context)

    async def show(request: Request) -> Response:
        cases = console.acting(request)
        project = project_of(request)
        values = _defaults([release.name for release in cases.list_releases()], await cases.groups.list(project))
        return await page(request, Draft(values), view="form", checked=False)

    async def send(request: Request) -> Response:
        cases = console.acting(request)
        project, form = project_of(request), form_of(request)
        view = "yaml" if form.get("view") == "yaml" else "form"
        draft = of_yaml(form.text("text")) if view == "yaml" else of_form(form)
        do = form.get("do")
        if do == "check":
            return await page(request, draft, view=view, checked=True)
        if do in ("yaml", "form"):
            if draft.request is None:  # what can't be read is shown as it was written, so that nothing of it is lost
                return await page(request, draft, view=view, checked=True, status=422)
            other = Draft(values_of(draft.request), to_yaml(draft.request) if do == "yaml" else "", draft.request)
            return await page(request, other, view=do, checked=True)
        if do != "create":
            raise InvalidInput("it was not said what to do with the form")
        if draft.request is None:
            return await page(request, draft, view=view, checked=True, status=422)
        try:
            made = await cases.clusters.create(session_of(request).caller, project, draft.request)
        except (InvalidInput, Conflict) as error:
            others = [other for other in await cases.clusters.check(project, draft.request) if other.brief != error.brief]
            refused = Draft(draft.values, draft.text, draft.request, [error, *others])
            return await page(request, refused, view=view, checked=True, status=status_of(error)[0])
        return RedirectResponse(f"{root_of(project)}/clusters/{made.name}", status_code=303)

    return [Route(PATH, show, methods=["GET"]), Route(PATH, send, methods=["POST"])]


def _defaults(releases: list[str], groups: list[GroupView]) -> dict[str, str]:
    """What a new form begins with: the newest release, the group with the most free hosts."""
    group = max(groups, key=lambda one: one.free, default=None)
    empty = dict.fromkeys(("name", "address", "certSANs", *(f"timeouts.{name}" for name in TIMEOUTS)), "")
    return empty | {
        "version": releases[-1] if releases else "",
        "cni": "cilium",
        "hostGroup": group.name if group else "",
        "workers": str(max(1, group.free if group else 1)),
        "podCIDR": POD_CIDR,
        "serviceCIDR": SERVICE_CIDR,
        "replicas": "1",
    }


def _commands(request: Request, project: ProjectRef, draft: Draft) -> list[tuple[str, str, str]]:
    """(id, title, command line) of each; none while the request has not the right shape."""
    if draft.request is None:
        return []
    server = f"https://{request.url.netloc}"
    return [
        ("as-ckp", "ckp", of_ckp(project, draft.request)),
        ("as-curl", "curl", of_curl(server, project, draft.request)),
    ]
