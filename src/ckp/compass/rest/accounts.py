"""REST: service accounts and their tokens."""

from __future__ import annotations

from fastapi import APIRouter

from ckp.api.compass.base import Items
from ckp.api.compass.people import ServiceAccountRequest, ServiceAccountView, TokenRequest, TokenView
from ckp.compass.rest.plumbing import By, Cases, Project


def routers() -> tuple[APIRouter, ...]:
    """Below a project."""
    router = APIRouter(prefix="/service-accounts", tags=["service-accounts"])

    @router.get("")
    async def list_accounts(cases: Cases, project: Project) -> Items[ServiceAccountView]:
        """List service accounts by name."""
        return Items(items=await cases.accounts.list(project))

    @router.post("", status_code=201)
    async def create_account(cases: Cases, by: By, project: Project, body: ServiceAccountRequest) -> ServiceAccountView:
        """Create a service account, without roles and tokens."""
        return await cases.accounts.create(by, project, body)

    @router.delete("/{name}", status_code=204)
    async def delete_account(cases: Cases, by: By, project: Project, name: str) -> None:
        """Delete a service account with its roles and tokens."""
        await cases.accounts.delete(by, project, name)

    @router.get("/{name}/tokens")
    async def list_tokens(cases: Cases, project: Project, name: str) -> Items[TokenView]:
        """List the tokens of a service account, the oldest first. The tokens themselves are in no answer but the one that made them."""
        return Items(items=await cases.accounts.tokens(project, name))

    @router.post("/{name}/tokens", status_code=201)
    async def issue_token(cases: Cases, by: By, project: Project, name: str, body: TokenRequest | None = None) -> TokenView:
        """Make a token and show it once."""
        return await cases.accounts.issue(by, project, name, body or TokenRequest())

    @router.delete("/{name}/tokens/{token_id}", status_code=204)
    async def revoke_token(cases: Cases, by: By, project: Project, name: str, token_id: str) -> None:
        """Revoke a token: it is void at once."""
        await cases.accounts.revoke(by, project, name, token_id)

    return (router,)
