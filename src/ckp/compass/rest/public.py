"""The REST interface, below /api/v1."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Response

from ckp import __version__
from ckp.api.errors import error_body
from ckp.compass.access.projects import ProjectRef
from ckp.compass.clusters.clusters import ClusterRequest
from ckp.compass.hosts.requests import MAX_LISTED
from ckp.compass.rest.plumbing import Gate, actor_of, install_handlers, status_of
from ckp.compass.rest.schemas import (
    AgentBody,
    ApproveBody,
    AuditAnswer,
    BulkAnswer,
    BulkBody,
    ClusterAnswer,
    ClusterBody,
    EventAnswer,
    GroupAnswer,
    GroupBody,
    GroupChange,
    HostAnswer,
    HostChange,
    HostRequestAnswer,
    Items,
    KeyAnswer,
    KeyBody,
    LeaveBody,
    MembersBody,
    RejectBody,
    RuleAnswer,
    RuleBody,
    ScaleBody,
)
from ckp.compass.services import UseCases
from ckp.kits.errors import CkpError
from ckp.rules.approval import Criteria

MAX_BODY_BYTES = 1 << 20


def _project(domain: str, project: str) -> ProjectRef:
    return ProjectRef.of(domain, project)


Project = Annotated[ProjectRef, Depends(_project)]
Actor = Annotated[str, Depends(actor_of)]


def make_public_app(cases: UseCases) -> Gate:
    """The application of Compass' outer port."""
    app = FastAPI(title="CKP Compass", version=__version__, docs_url=None, redoc_url=None, openapi_url="/api/v1/openapi.json")
    install_handlers(app)
    app.include_router(_releases(cases), prefix="/api/v1")
    prefix = "/api/v1/domains/{domain}/projects/{project}"
    for router in (_keys(cases), _requests(cases), _rules(cases), _hosts(cases), _groups(cases), _clusters(cases), _audit(cases)):
        app.include_router(router, prefix=prefix)

    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    async def authenticate(token: str) -> str:
        return cases.admin.actor(token)

    return Gate(app, authenticate=authenticate, max_bytes=MAX_BODY_BYTES)


def _releases(cases: UseCases) -> APIRouter:
    router = APIRouter(tags=["releases"])

    @router.get("/releases")
    async def list_releases() -> dict[str, Any]:
        return {"items": [{"name": name, **cases.releases.get(name)} for name in cases.releases.names()]}

    @router.get("/releases/{name}")
    async def get_release(name: str) -> dict[str, Any]:
        return {"name": name, **cases.releases.get(name)}

    @router.get("/agents")
    async def list_agents() -> dict[str, list[str]]:
        return {"versions": cases.releases.agents()}

    return router


def _keys(cases: UseCases) -> APIRouter:
    router = APIRouter(tags=["host-psk"])

    @router.get("/host-psk")
    async def get_key(project: Project, actor: Actor) -> KeyAnswer:
        answer = KeyAnswer.model_validate(await cases.keys.get(actor, project))
        answer.message = _KEY_ONCE if answer.key else "the key is shown once, when it is made; reset it to get a new one (POST host-psk/reset)"
        return answer

    @router.post("/host-psk/reset")
    async def reset_key(project: Project, actor: Actor, body: KeyBody | None = None) -> KeyAnswer:
        wanted = body or KeyBody()
        lifetime = timedelta(seconds=wanted.lifetime_seconds) if wanted.lifetime_seconds else None
        answer = KeyAnswer.model_validate(await cases.keys.reset(actor, project, lifetime=lifetime, max_uses=wanted.max_uses))
        answer.message = _KEY_ONCE
        return answer

    return router


_KEY_ONCE = "keep this key now: only its hash is stored"


def _requests(cases: UseCases) -> APIRouter:
    router = APIRouter(prefix="/host-requests", tags=["host-requests"])

    @router.get("")
    async def list_requests(
        project: Project, state: str = "", limit: Annotated[int, Query(ge=1, le=MAX_LISTED)] = MAX_LISTED, offset: Annotated[int, Query(ge=0)] = 0
    ) -> Items[HostRequestAnswer]:
        rows = await cases.requests.list(project, state=state, limit=limit, offset=offset)
        return Items(items=[HostRequestAnswer.model_validate(row) for row in rows])

    @router.post("/bulk")
    async def decide_many(project: Project, actor: Actor, body: BulkBody) -> BulkAnswer:
        results = await cases.requests.bulk(actor, project, body.ids, body.action, body.reason)
        told: dict[str, dict[str, Any]] = {}
        for request_id, result in results.items():
            if isinstance(result, CkpError):
                told[request_id] = error_body(status_of(result)[1], result.brief, result.details, result.resolution)
            else:
                told[request_id] = {"state": result.state, "host": result.host}
        return BulkAnswer(ok=all("error" not in entry for entry in told.values()), results=told)

    @router.get("/{request_id}")
    async def get_request(project: Project, request_id: str) -> HostRequestAnswer:
        return HostRequestAnswer.model_validate(await cases.requests.get(project, request_id))

    @router.post("/{request_id}/approve")
    async def approve(project: Project, actor: Actor, request_id: str, body: ApproveBody | None = None) -> HostRequestAnswer:
        how = body or ApproveBody()
        row = await cases.requests.approve(actor, project, request_id, duplicate=how.duplicate, groups=how.groups)
        return HostRequestAnswer.model_validate(row)

    @router.post("/{request_id}/reject")
    async def reject(project: Project, actor: Actor, request_id: str, body: RejectBody) -> HostRequestAnswer:
        return HostRequestAnswer.model_validate(await cases.requests.reject(actor, project, request_id, body.reason))

    return router


def _rules(cases: UseCases) -> APIRouter:
    router = APIRouter(prefix="/host-approval-rules", tags=["host-approval-rules"])

    @router.get("")
    async def list_rules(project: Project) -> Items[RuleAnswer]:
        return Items(items=[RuleAnswer.model_validate(rule) for rule in await cases.approval.list(project)])

    @router.post("", status_code=201)
    async def create_rule(project: Project, actor: Actor, body: RuleBody) -> RuleAnswer:
        criteria = Criteria.of(body.criteria.model_dump())
        return RuleAnswer.model_validate(await cases.approval.create(actor, project, body.name, criteria, body.groups))

    @router.get("/{name}")
    async def get_rule(project: Project, name: str) -> RuleAnswer:
        return RuleAnswer.model_validate(await cases.approval.get(project, name))

    @router.delete("/{name}", status_code=204)
    async def delete_rule(project: Project, actor: Actor, name: str) -> None:
        await cases.approval.delete(actor, project, name)

    return router


def _hosts(cases: UseCases) -> APIRouter:
    router = APIRouter(prefix="/hosts", tags=["hosts"])

    @router.get("")
    async def list_hosts(project: Project, group: str = "") -> Items[HostAnswer]:
        return Items(items=[HostAnswer.model_validate(host) for host in await cases.hosts.list(project, group=group)])

    @router.get("/{name}")
    async def get_host(project: Project, name: str) -> HostAnswer:
        return HostAnswer.model_validate(await cases.hosts.get(project, name))

    @router.get("/{name}/events")
    async def list_events(project: Project, name: str) -> Items[EventAnswer]:
        return Items(items=[EventAnswer.model_validate(event) for event in await cases.hosts.events(project, name)])

    @router.patch("/{name}")
    async def change_host(project: Project, actor: Actor, name: str, body: HostChange) -> HostAnswer:
        if body.labels is not None:
            await cases.care.label(actor, project, name, body.labels)
        if body.taints is not None:
            await cases.care.taint(actor, project, name, body.taints)
        if body.cordoned is not None:
            await cases.care.cordon(actor, project, name, cordoned=body.cordoned)
        if body.drained is not None:
            await cases.care.drain(actor, project, name, drained=body.drained)
        return HostAnswer.model_validate(await cases.hosts.get(project, name))

    @router.post("/{name}/revoke")
    async def revoke_certificate(project: Project, actor: Actor, name: str) -> HostAnswer:
        return HostAnswer.model_validate(await cases.care.revoke(actor, project, name))

    @router.put("/{name}/agent")
    async def upgrade_agent(project: Project, actor: Actor, name: str, body: AgentBody) -> HostAnswer:
        return HostAnswer.model_validate(await cases.care.upgrade_agent(actor, project, name, body.version, body.confirm_seconds))

    @router.post("/{name}/leave", status_code=202)
    async def leave_cluster(project: Project, actor: Actor, name: str, body: LeaveBody | None = None) -> HostAnswer:
        how = body or LeaveBody()
        return HostAnswer.model_validate(await cases.care.leave(actor, project, name, shrink=how.shrink, force=how.force))

    @router.delete("/{name}", status_code=204)
    async def delete_host(project: Project, actor: Actor, name: str, force: bool = False) -> None:
        await cases.hosts.delete(actor, project, name, force=force)

    return router


def _groups(cases: UseCases) -> APIRouter:
    router = APIRouter(prefix="/host-groups", tags=["host-groups"])

    @router.get("")
    async def list_groups(project: Project) -> Items[GroupAnswer]:
        return Items(items=[GroupAnswer.model_validate(group) for group in await cases.groups.list(project)])

    @router.post("", status_code=201)
    async def create_group(project: Project, actor: Actor, body: GroupBody) -> GroupAnswer:
        return GroupAnswer.model_validate(await cases.groups.create(actor, project, body.name, body.description))

    @router.get("/{name}")
    async def get_group(project: Project, name: str) -> GroupAnswer:
        return GroupAnswer.model_validate(await cases.groups.get(project, name))

    @router.patch("/{name}")
    async def update_group(project: Project, actor: Actor, name: str, body: GroupChange) -> GroupAnswer:
        return GroupAnswer.model_validate(await cases.groups.update(actor, project, name, body.description))

    @router.delete("/{name}", status_code=204)
    async def delete_group(project: Project, actor: Actor, name: str) -> None:
        await cases.groups.delete(actor, project, name)

    @router.post("/{name}/members")
    async def add_members(project: Project, actor: Actor, name: str, body: MembersBody) -> GroupAnswer:
        return GroupAnswer.model_validate(await cases.groups.add(actor, project, name, body.hosts))

    @router.post("/{name}/members/remove")
    async def remove_members(project: Project, actor: Actor, name: str, body: MembersBody) -> GroupAnswer:
        return GroupAnswer.model_validate(await cases.groups.remove(actor, project, name, body.hosts))

    @router.put("/{name}/members/{host}")
    async def add_member(project: Project, actor: Actor, name: str, host: str) -> GroupAnswer:
        return GroupAnswer.model_validate(await cases.groups.add(actor, project, name, [host]))

    @router.delete("/{name}/members/{host}")
    async def remove_member(project: Project, actor: Actor, name: str, host: str) -> GroupAnswer:
        return GroupAnswer.model_validate(await cases.groups.remove(actor, project, name, [host]))

    return router


def _clusters(cases: UseCases) -> APIRouter:
    router = APIRouter(prefix="/clusters", tags=["clusters"])

    @router.get("")
    async def list_clusters(project: Project) -> Items[ClusterAnswer]:
        return Items(items=[ClusterAnswer.model_validate(cluster) for cluster in await cases.clusters.list(project)])

    @router.post("", status_code=201)
    async def create_cluster(project: Project, actor: Actor, body: ClusterBody) -> ClusterAnswer:
        request = ClusterRequest(
            name=body.name,
            version=body.version,
            cni=body.cni,
            host_group=body.host_group,
            workers=body.workers,
            pod_cidr=body.pod_cidr,
            service_cidr=body.service_cidr,
            control_plane_replicas=body.control_plane.replicas,
            address=body.address,
        )
        return ClusterAnswer.model_validate(await cases.clusters.create(actor, project, request))

    @router.get("/{name}")
    async def get_cluster(project: Project, name: str) -> ClusterAnswer:
        return ClusterAnswer.model_validate(await cases.clusters.get(project, name))

    @router.patch("/{name}")
    async def scale_cluster(project: Project, actor: Actor, name: str, body: ScaleBody) -> ClusterAnswer:
        return ClusterAnswer.model_validate(await cases.clusters.scale(actor, project, name, body.workers))

    @router.delete("/{name}", status_code=202)
    async def delete_cluster(project: Project, actor: Actor, name: str) -> dict[str, str]:
        await cases.clusters.delete(actor, project, name)
        return {"status": "deleting"}

    @router.get("/{name}/kubeconfig", response_class=Response, responses={200: {"content": {"application/yaml": {}}}})
    async def get_kubeconfig(project: Project, actor: Actor, name: str) -> Response:
        return Response(await cases.clusters.kubeconfig(actor, project, name), media_type="application/yaml")

    return router


def _audit(cases: UseCases) -> APIRouter:
    router = APIRouter(prefix="/audit", tags=["audit"])

    @router.get("")
    async def list_entries(project: Project, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> Items[AuditAnswer]:
        return Items(items=[AuditAnswer.model_validate(row) for row in await cases.audit(project, limit)])

    return router
