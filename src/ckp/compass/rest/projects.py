"""REST: a project's pre-shared key and its audit log."""

from __future__ import annotations

from fastapi import APIRouter

from ckp.api.compass.projects import AuditPage, KeyRequest, KeyView
from ckp.compass.rest.plumbing import By, Cases, Limit, PageToken, Project


def routers() -> tuple[APIRouter, ...]:
    """Below a project."""
    return _keys(), _audit()


def _keys() -> APIRouter:
    router = APIRouter(prefix="/host-psk", tags=["host-psk"])

    @router.get("")
    async def get_key(cases: Cases, by: By, project: Project) -> KeyView:
        """Show the project's pre-shared key: the key itself only if this call made it."""
        return await cases.keys.get(by, project)

    @router.post("/reset")
    async def reset_key(cases: Cases, by: By, project: Project, body: KeyRequest | None = None) -> KeyView:
        """Make a new pre-shared key and show it once; the old one is void at once."""
        return await cases.keys.reset(by, project, body or KeyRequest())

    return router


def _audit() -> APIRouter:
    router = APIRouter(prefix="/audit", tags=["audit"])

    @router.get("")
    async def list_entries(cases: Cases, project: Project, limit: Limit = 100, page_token: PageToken = "") -> AuditPage:
        """List changes of the project, the newest first."""
        return await cases.audit.list(project, limit, page_token)

    return router
