"""REST: releases of Kubernetes and versions of the agent."""

from __future__ import annotations

from fastapi import APIRouter

from ckp.api.compass.base import Items
from ckp.api.compass.releases import AgentVersions, ReleaseView
from ckp.compass.rest.plumbing import Cases


def router() -> APIRouter:
    """What belongs to no project."""
    router = APIRouter(tags=["releases"])

    @router.get("/releases")
    async def list_releases(cases: Cases) -> Items[ReleaseView]:
        """List the releases that clusters can be made of, the oldest first."""
        return Items(items=cases.list_releases())

    @router.get("/releases/{name}")
    async def get_release(cases: Cases, name: str) -> ReleaseView:
        """Show a release."""
        return cases.get_release(name)

    @router.get("/agents")
    async def list_agents(cases: Cases) -> AgentVersions:
        """List the versions of the agent that hosts can be given, the newest last."""
        return AgentVersions(versions=cases.releases.agents())

    return router
