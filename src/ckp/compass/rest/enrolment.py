"""REST: host requests, decisions about them, and approval rules."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from ckp.api.compass.base import Items
from ckp.api.compass.enrolment import ApproveRequest, BulkAnswer, BulkRequest, Decision, HostJoinView, HostRequestView, RejectRequest, RuleRequest, RuleView
from ckp.api.errors import ErrorBody
from ckp.compass.hosts.requests import MAX_LISTED
from ckp.compass.rest.plumbing import By, Cases, Project, body_of
from ckp.kits.errors import CkpError


def routers() -> tuple[APIRouter, ...]:
    """Below a project."""
    return _requests(), _rules(), _joining()


def _joining() -> APIRouter:
    router = APIRouter(prefix="/host-join", tags=["host-requests"])

    @router.get("")
    async def get_join_command(
        cases: Cases,
        project: Project,
        proxy: Annotated[str, Query(max_length=300)] = "",
        no_proxy: Annotated[str, Query(alias="noProxy", max_length=2000)] = "",
    ) -> HostJoinView:
        """Show the line by which a machine asks to become a host of the project."""
        return await cases.joining.get(project, proxy, no_proxy)

    return router


def _requests() -> APIRouter:
    router = APIRouter(prefix="/host-requests", tags=["host-requests"])

    @router.get("")
    async def list_requests(
        cases: Cases, project: Project, state: str = "", limit: Annotated[int, Query(ge=1, le=MAX_LISTED)] = MAX_LISTED, offset: Annotated[int, Query(ge=0)] = 0
    ) -> Items[HostRequestView]:
        """List machines that ask, or asked, to become hosts: pending ones first, then the oldest first."""
        return Items(items=await cases.requests.list(project, state=state, limit=limit, offset=offset))

    @router.post("/bulk")
    async def decide_many(cases: Cases, by: By, project: Project, body: BulkRequest) -> BulkAnswer:
        """Approve or reject many host requests, each on its own."""
        results: dict[str, Decision | ErrorBody] = {}
        for request_id, result in (await cases.requests.bulk(by, project, body)).items():
            results[request_id] = body_of(result) if isinstance(result, CkpError) else Decision(state=result.state, host=result.host)
        return BulkAnswer(ok=all(isinstance(result, Decision) for result in results.values()), results=results)

    @router.get("/{request_id}")
    async def get_request(cases: Cases, project: Project, request_id: str) -> HostRequestView:
        """Show a host request."""
        return await cases.requests.get(project, request_id)

    @router.post("/{request_id}/approve")
    async def approve(cases: Cases, by: By, project: Project, request_id: str, body: ApproveRequest | None = None) -> HostRequestView:
        """Approve a host request: the machine becomes a host. Idempotent."""
        return await cases.requests.approve(by, project, request_id, body or ApproveRequest())

    @router.post("/{request_id}/reject")
    async def reject(cases: Cases, by: By, project: Project, request_id: str, body: RejectRequest) -> HostRequestView:
        """Reject a host request; the machine's agent shows the reason."""
        return await cases.requests.reject(by, project, request_id, body)

    return router


def _rules() -> APIRouter:
    router = APIRouter(prefix="/host-approval-rules", tags=["host-approval-rules"])

    @router.get("")
    async def list_rules(cases: Cases, project: Project) -> Items[RuleView]:
        """List approval rules by name, the order in which they are applied."""
        return Items(items=await cases.approval.list(project))

    @router.post("", status_code=201)
    async def create_rule(cases: Cases, by: By, project: Project, body: RuleRequest) -> RuleView:
        """Create an approval rule. It also decides about requests that are pending already."""
        return await cases.approval.create(by, project, body)

    @router.get("/{name}")
    async def get_rule(cases: Cases, project: Project, name: str) -> RuleView:
        """Show an approval rule."""
        return await cases.approval.get(project, name)

    @router.delete("/{name}", status_code=204)
    async def delete_rule(cases: Cases, by: By, project: Project, name: str) -> None:
        """Delete an approval rule; hosts that it has approved stay."""
        await cases.approval.delete(by, project, name)

    return router
