"""People and rights of a part of the platform: its projects, users, roles and service accounts. One page for the platform, each domain, each project."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from ckp.api.compass.features import PAGES
from ckp.api.compass.people import (
    DisplayNameChange,
    DomainRequest,
    ProjectRequest,
    RoleRequest,
    ServiceAccountRequest,
    TokenRequest,
    TokenView,
    UserRequest,
)
from ckp.compass.identity import ProjectRef, Scope
from ckp.compass.services import UseCases
from ckp.compass.web.console import Console, root_of
from ckp.compass.web.gate import form_of, session_of
from ckp.kits.errors import InvalidInput
from ckp.rules.roles import SCOPES, scope_of

PLATFORM_PAGE, DOMAIN_PAGE, PROJECT_PAGE = "/people", "/domains/{domain}", f"{PAGES}/access"
DAYS = 86400

Page = Callable[[Request], Awaitable[Response]]


def where_of(request: Request) -> Scope:
    """The part of the platform in the page's address. InvalidInput if a name is none."""
    return Scope.of(request.path_params.get("domain", ""), request.path_params.get("project", ""))


def page_of(where: Scope) -> str:
    """Where its people are."""
    if where.project:
        return f"{root_of(ProjectRef(where.domain, where.project))}/access"
    return f"/domains/{where.domain}" if where.domain else PLATFORM_PAGE


def routes(console: Console) -> list[Route]:
    """The pages."""

    def may(request: Request, service: str) -> bool:
        return console.may(request, service, where_of(request))

    async def show(request: Request, made: TokenView | None = None) -> Response:
        where, cases, by = where_of(request), console.acting(request), session_of(request).caller
        if not where.domain:
            await cases.users.list(where)  # whoever may not read it is told so
        context: dict[str, Any] = {
            "where": where,
            "page": page_of(where),
            "own_root": page_of(where).removesuffix("/access"),
            "may_here": lambda service: may(request, service),
            "roles": await cases.roles.list(where) if may(request, "roles.list") else None,
            "users": await cases.users.list(where) if not where.project and may(request, "users.list") else None,
            "choices": [role.value for role, kinds in SCOPES.items() if scope_of(where.domain, where.project) in kinds],
            "own": lambda role: (role.domain, role.project) == (where.domain, where.project),
            "made": made,
            "accounts": None,
            "object": None,
            "projects": None,
        }
        if where.project:
            project = ProjectRef(where.domain, where.project)
            context |= {"project": project, "object": await cases.projects.get(project), "accounts": await _accounts(cases, request, project)}
        elif where.domain:
            context |= {
                "object": await cases.domains.get(by, where),
                "projects": [(one, root_of(ProjectRef(one.domain, one.name))) for one in await cases.projects.of_domain(by, where)],
            }
        return console.page(request, "people.html", section="access", **context)

    async def _accounts(cases: UseCases, request: Request, project: ProjectRef) -> list[tuple[Any, list[TokenView]]] | None:
        if not may(request, "accounts.list"):
            return None
        return [(account, await cases.accounts.tokens(project, account.name)) for account in await cases.accounts.list(project)]

    def done(change: Callable[[UseCases, Request, Scope], Awaitable[None]]) -> Page:
        """A form's target: it changes something and leads back to the page."""

        async def handle(request: Request) -> Response:
            where = where_of(request)
            await change(console.acting(request), request, where)
            return RedirectResponse(page_of(where), status_code=303)

        return handle

    async def create_domain(request: Request) -> Response:
        form = form_of(request)
        made = await console.acting(request).domains.create(
            session_of(request).caller, DomainRequest.of(name=form.get("name"), display_name=form.get("displayName"))
        )
        return RedirectResponse(f"/domains/{made.name}", status_code=303)

    async def create_project(request: Request) -> Response:
        form, where = form_of(request), where_of(request)
        body = ProjectRequest.of(name=form.get("name"), display_name=form.get("displayName"))
        made = await console.acting(request).projects.create(session_of(request).caller, where, body)
        return RedirectResponse(root_of(ProjectRef(made.domain, made.name)), status_code=303)

    async def rename(cases: UseCases, request: Request, where: Scope) -> None:
        by, change = session_of(request).caller, DisplayNameChange.of(display_name=form_of(request).get("displayName"))
        if where.project:
            await cases.projects.rename(by, ProjectRef(where.domain, where.project), change)
        else:
            await cases.domains.rename(by, where, change)

    async def delete(request: Request) -> Response:
        where, cases, by = where_of(request), console.acting(request), session_of(request).caller
        if where.project:
            await cases.projects.delete(by, ProjectRef(where.domain, where.project))
        else:
            await cases.domains.delete(by, where)
        return RedirectResponse("/", status_code=303)

    async def create_user(cases: UseCases, request: Request, where: Scope) -> None:
        form = form_of(request)
        body = UserRequest.of(name=form.get("name"), password=form.text("password"), display_name=form.get("displayName"))
        await cases.users.create(session_of(request).caller, where, body)

    async def delete_user(cases: UseCases, request: Request, where: Scope) -> None:
        await cases.users.delete(session_of(request).caller, where, request.path_params["name"])

    async def grant(cases: UseCases, request: Request, where: Scope) -> None:
        form = form_of(request)
        who = form.get("who")
        whose = {"service_account": who} if "/" in who else {"user": who}
        await cases.roles.grant(session_of(request).caller, where, RoleRequest.of(role=form.get("role"), **whose))

    async def revoke(cases: UseCases, request: Request, where: Scope) -> None:
        asked = request.path_params["binding"]
        binding = int(asked) if asked.isascii() and asked.isdecimal() and len(asked) < 10 else 0  # there is none of that id
        await cases.roles.revoke(session_of(request).caller, where, binding)

    async def create_account(cases: UseCases, request: Request, where: Scope) -> None:
        form = form_of(request)
        body = ServiceAccountRequest.of(name=form.get("name"), description=form.get("description"))
        await cases.accounts.create(session_of(request).caller, ProjectRef(where.domain, where.project), body)

    async def delete_account(cases: UseCases, request: Request, where: Scope) -> None:
        await cases.accounts.delete(session_of(request).caller, ProjectRef(where.domain, where.project), request.path_params["name"])

    async def issue(request: Request) -> Response:
        where, asked = where_of(request), form_of(request).get("days", "90")
        if not (asked.isascii() and asked.isdecimal() and 0 < int(asked[:4]) <= 366):
            raise InvalidInput(f"days: {asked[:40]!r} is not a number from 1 to 366")
        body = TokenRequest.of(lifetime_seconds=int(asked[:4]) * DAYS, description=form_of(request).get("description"))
        project = ProjectRef(where.domain, where.project)
        made = await console.acting(request).accounts.issue(session_of(request).caller, project, request.path_params["name"], body)
        return await show(request, made)  # no redirect: it is shown this once

    async def revoke_token(cases: UseCases, request: Request, where: Scope) -> None:
        names = request.path_params
        await cases.accounts.revoke(session_of(request).caller, ProjectRef(where.domain, where.project), names["name"], names["token_id"])

    async def page(request: Request) -> Response:
        return await show(request)

    found = [
        Route("/domains", create_domain, methods=["POST"]),
        Route(f"{DOMAIN_PAGE}/projects", create_project, methods=["POST"]),
    ]
    for prefix in (PLATFORM_PAGE, DOMAIN_PAGE):
        found += [
            Route(f"{prefix}/users", done(create_user), methods=["POST"]),
            Route(f"{prefix}/users/{{name}}/delete", done(delete_user), methods=["POST"]),
        ]
    for prefix in (PLATFORM_PAGE, DOMAIN_PAGE, PROJECT_PAGE):
        found += [
            Route(prefix, page, methods=["GET"]),
            Route(f"{prefix}/roles", done(grant), methods=["POST"]),
            Route(f"{prefix}/roles/{{binding}}/delete", done(revoke), methods=["POST"]),
        ]
    for prefix in (DOMAIN_PAGE, PAGES):
        found += [
            Route(f"{prefix}/rename", done(rename), methods=["POST"]),
            Route(f"{prefix}/delete", delete, methods=["POST"]),
        ]
    accounts = f"{PROJECT_PAGE}/service-accounts"
    return [
        *found,
        Route(accounts, done(create_account), methods=["POST"]),
        Route(f"{accounts}/{{name}}/delete", done(delete_account), methods=["POST"]),
        Route(f"{accounts}/{{name}}/tokens", issue, methods=["POST"]),
        Route(f"{accounts}/{{name}}/tokens/{{token_id}}/delete", done(revoke_token), methods=["POST"]),
    ]
