"""REST: hosts and host groups."""

from __future__ import annotations

from fastapi import APIRouter

from ckp.api.compass.base import Items
from ckp.api.compass.hosts import (
    AgentRequest,
    EventView,
    GroupChange,
    GroupRequest,
    GroupView,
    HostChange,
    HostView,
    LeaveRequest,
    MembersRequest,
)
from ckp.compass.rest.plumbing import By, Cases, Project


def routers() -> tuple[APIRouter, ...]:
    """Below a project."""
    return _hosts(), _groups()


def _hosts() -> APIRouter:
    router = APIRouter(prefix="/hosts", tags=["hosts"])

    @router.get("")
    async def list_hosts(cases: Cases, project: Project, group: str = "") -> Items[HostView]:
        """List hosts by name; of one group if it is given."""
        return Items(items=await cases.hosts.list(project, group=group))

    @router.get("/{name}")
    async def get_host(cases: Cases, project: Project, name: str) -> HostView:
        """Show a host."""
        return await cases.hosts.get(project, name)

    @router.get("/{name}/events")
    async def list_events(cases: Cases, project: Project, name: str) -> Items[EventView]:
        """List what happened to a host in the last hour, the oldest first."""
        return Items(items=list(await cases.hosts.events(project, name)))

    @router.patch("/{name}")
    async def change_host(cases: Cases, by: By, project: Project, name: str, body: HostChange) -> HostView:
        """Cordon, drain, label or taint a host; fields that are left out stay."""
        return await cases.operations.change(by, project, name, body)

    @router.post("/{name}/revoke")
    async def revoke_certificate(cases: Cases, by: By, project: Project, name: str) -> HostView:
        """Revoke a host's certificate at once. Its machine comes back by enrolling again."""
        return await cases.operations.revoke(by, project, name)

    @router.put("/{name}/agent")
    async def upgrade_agent(cases: Cases, by: By, project: Project, name: str, body: AgentRequest) -> HostView:
        """Set the version of the agent that a host is to run."""
        return await cases.operations.upgrade_agent(by, project, name, body)

    @router.post("/{name}/leave", status_code=202)
    async def leave_cluster(cases: Cases, by: By, project: Project, name: str, body: LeaveRequest | None = None) -> HostView:
        """Take a host out of its cluster: drained, cleaned and cordoned. It stays enrolled; DELETE removes it from CKP."""
        return await cases.operations.leave(by, project, name, body or LeaveRequest())

    @router.delete("/{name}", status_code=204)
    async def delete_host(cases: Cases, by: By, project: Project, name: str, force: bool = False) -> None:
        """Remove a host from CKP: its certificate is void, and its machine must enrol again. It must have left its cluster, or `force` is set."""
        await cases.hosts.delete(by, project, name, force=force)

    return router


def _groups() -> APIRouter:
    router = APIRouter(prefix="/host-groups", tags=["host-groups"])

    @router.get("")
    async def list_groups(cases: Cases, project: Project) -> Items[GroupView]:
        """List host groups by name."""
        return Items(items=await cases.groups.list(project))

    @router.post("", status_code=201)
    async def create_group(cases: Cases, by: By, project: Project, body: GroupRequest) -> GroupView:
        """Create an empty host group."""
        return await cases.groups.create(by, project, body)

    @router.get("/{name}")
    async def get_group(cases: Cases, project: Project, name: str) -> GroupView:
        """Show a host group with its members."""
        return await cases.groups.get(project, name)

    @router.patch("/{name}")
    async def update_group(cases: Cases, by: By, project: Project, name: str, body: GroupChange) -> GroupView:
        """Change a host group's description."""
        return await cases.groups.update(by, project, name, body)

    @router.delete("/{name}", status_code=204)
    async def delete_group(cases: Cases, by: By, project: Project, name: str) -> None:
        """Delete a host group that no cluster and no approval rule uses; its hosts stay."""
        await cases.groups.delete(by, project, name)

    @router.post("/{name}/members")
    async def add_members(cases: Cases, by: By, project: Project, name: str, body: MembersRequest) -> GroupView:
        """Add hosts to a group: all, or none if one of them does not exist."""
        return await cases.groups.add(by, project, name, body.hosts)

    @router.post("/{name}/members/remove")
    async def remove_members(cases: Cases, by: By, project: Project, name: str, body: MembersRequest) -> GroupView:
        """Remove hosts from a group. A cluster that has claimed one keeps it."""
        return await cases.groups.remove(by, project, name, body.hosts)

    @router.put("/{name}/members/{host}")
    async def add_member(cases: Cases, by: By, project: Project, name: str, host: str) -> GroupView:
        """Add one host to a group."""
        return await cases.groups.add(by, project, name, [host])

    @router.delete("/{name}/members/{host}")
    async def remove_member(cases: Cases, by: By, project: Project, name: str, host: str) -> GroupView:
        """Remove one host from a group. A cluster that has claimed it keeps it."""
        return await cases.groups.remove(by, project, name, [host])

    return router
