"""REST: signing in, users, roles, and the audit log of what is above projects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fastapi import APIRouter, Depends, Request

from ckp.api.compass.base import Items
from ckp.api.compass.people import (
    CallerView,
    OwnPasswordRequest,
    PasswordRequest,
    RoleRequest,
    RoleView,
    SignInRequest,
    SignInView,
    UserChange,
    UserRequest,
    UserView,
)
from ckp.api.compass.projects import AuditPage
from ckp.compass.identity import Scope
from ckp.compass.rest.plumbing import By, Cases, Limit, PageToken, of_domain, of_platform, of_project, token_of

IN_DOMAIN, IN_PROJECT = "/domains/{domain}", "/domains/{domain}/projects/{project}"
_SCOPES: tuple[tuple[str, Callable[..., Scope]], ...] = (("", of_platform), (IN_DOMAIN, of_domain))


def routers() -> list[APIRouter]:
    """Of the platform and of domains, and the roles of projects."""
    found = [_own()]
    for prefix, where in _SCOPES:
        found += [_users(prefix, where), _audit(prefix, where)]
    for prefix, where in (*_SCOPES, (IN_PROJECT, of_project)):
        found.append(_roles(prefix, where))
    return found


def _own() -> APIRouter:
    router = APIRouter(tags=["sessions"])

    @router.post("/sessions", status_code=201)
    async def sign_in(request: Request, by: By, body: SignInRequest) -> SignInView:
        """Sign in by name and password: a token for REST, for twelve hours. It needs no token."""
        cases = request.app.state.cases  # nobody is signed in yet
        raw, session = await cases.sessions.sign_in(body.name, body.password, by.source, by.door)
        return SignInView(token=raw, name=session.caller.name, expires_at=session.ends_at)

    @router.delete("/sessions/current", status_code=204)
    async def sign_out(request: Request, cases: Cases, by: By) -> None:
        """End the session whose token is used here. Tokens of service accounts are revoked instead."""
        session = await request.app.state.cases.authentication.session(token_of(request))
        await cases.sessions.close(replace(session, caller=by))

    @router.get("/me")
    async def me(cases: Cases, by: By) -> CallerView:
        """Show who the caller is, and which roles they have."""
        return await cases.users.me(by)

    @router.post("/me/password", status_code=204)
    async def change_password(cases: Cases, by: By, body: OwnPasswordRequest) -> None:
        """Change one's own password. All of one's sessions end."""
        await cases.users.change_password(by, body)

    @router.post("/first-administrator", status_code=201)
    async def create_first(cases: Cases, by: By, body: UserRequest) -> UserView:
        """Make the first platform administrator, by the bootstrap token, which is void from then on."""
        return await cases.users.create_first(by, body)

    return router


def _users(prefix: str, scope: Callable[..., Scope]) -> APIRouter:
    router = APIRouter(prefix=f"{prefix}/users", tags=["users"])
    where: Scope = Depends(scope)

    @router.get("")
    async def list_users(cases: Cases, where: Scope = where) -> Items[UserView]:
        """List users by name: of the domain, or of all."""
        return Items(items=await cases.users.list(where))

    @router.post("", status_code=201)
    async def create_user(cases: Cases, by: By, body: UserRequest, where: Scope = where) -> UserView:
        """Create a local user, without roles."""
        return await cases.users.create(by, where, body)

    @router.get("/{name}")
    async def get_user(cases: Cases, name: str, where: Scope = where) -> UserView:
        """Show a user."""
        return await cases.users.get(where, name)

    @router.patch("/{name}")
    async def change_user(cases: Cases, by: By, name: str, body: UserChange, where: Scope = where) -> UserView:
        """Rename, disable or enable a user. The sessions of one who is disabled end at once."""
        return await cases.users.change(by, where, name, body)

    @router.post("/{name}/password", status_code=204)
    async def set_password(cases: Cases, by: By, name: str, body: PasswordRequest, where: Scope = where) -> None:
        """Set a user's password. All of their sessions end."""
        await cases.users.set_password(by, where, name, body)

    @router.delete("/{name}", status_code=204)
    async def delete_user(cases: Cases, by: By, name: str, where: Scope = where) -> None:
        """Delete a user with their roles and sessions."""
        await cases.users.delete(by, where, name)

    return router


def _roles(prefix: str, scope: Callable[..., Scope]) -> APIRouter:
    router = APIRouter(prefix=f"{prefix}/role-bindings", tags=["role-bindings"])
    where: Scope = Depends(scope)

    @router.get("")
    async def list_roles(cases: Cases, where: Scope = where) -> Items[RoleView]:
        """List who has which role, here and below."""
        return Items(items=await cases.roles.list(where))

    @router.post("", status_code=201)
    async def grant_role(cases: Cases, by: By, body: RoleRequest, where: Scope = where) -> RoleView:
        """Give a user or a service account a role. A user's sessions end. Idempotent."""
        return await cases.roles.grant(by, where, body)

    @router.delete("/{binding}", status_code=204)
    async def revoke_role(cases: Cases, by: By, binding: int, where: Scope = where) -> None:
        """Take a role. A user's sessions end."""
        await cases.roles.revoke(by, where, binding)

    return router


def _audit(prefix: str, scope: Callable[..., Scope]) -> APIRouter:
    router = APIRouter(prefix=f"{prefix}/audit", tags=["audit"])
    where: Scope = Depends(scope)

    @router.get("")
    async def list_entries(cases: Cases, limit: Limit = 100, page_token: PageToken = "", where: Scope = where) -> AuditPage:
        """List changes and sign-ins, here and below, the newest first."""
        return await cases.audit.list(where, limit, page_token)

    return router
