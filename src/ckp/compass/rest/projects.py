"""REST: a project's pre-shared key and its audit log."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from ckp.api.compass.base import Items
from ckp.api.compass.projects import AuditView, KeyRequest, KeyView
from ckp.compass.rest.plumbing import By, Project
from ckp.compass.services import UseCases


def routers(cases: UseCases) -> tuple[APIRouter, ...]:
    """Below a project."""
    return _keys(cases), _audit(cases)


def _keys(cases: UseCases) -> APIRouter:
    router = APIRouter(prefix="/host-psk", tags=["host-psk"])

    @router.get("")
    async def get_key(by: By, project: Project) -> KeyView:
        """Show the project's pre-shared key: the key itself only if this call made it."""
        return await cases.keys.get(by, project)

    @router.post("/reset")
    async def reset_key(by: By, project: Project, body: KeyRequest | None = None) -> KeyView:
        """Make a new pre-shared key and show it once; the old one is void at once."""
        return await cases.keys.reset(by, project, body or KeyRequest())

    return router


def _audit(cases: UseCases) -> APIRouter:
    router = APIRouter(prefix="/audit", tags=["audit"])

    @router.get("")
    async def list_entries(project: Project, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> Items[AuditView]:
        """List the newest changes of the project, the newest first."""
        return Items(items=await cases.audit(project, limit))

    return router
