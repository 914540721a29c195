"""REST: clusters."""

from __future__ import annotations

from fastapi import APIRouter, Response

from ckp.api.compass.base import Items
from ckp.api.compass.clusters import BackupsView, CheckView, ClusterChange, ClusterRequest, ClusterView, DeletionView, RestoreRequest
from ckp.compass.rest.plumbing import By, Cases, Project, body_of


def routers() -> tuple[APIRouter, ...]:
    """Below a project."""
    router = APIRouter(prefix="/clusters", tags=["clusters"])

    @router.get("")
    async def list_clusters(cases: Cases, project: Project) -> Items[ClusterView]:
        """List clusters by name."""
        return Items(items=await cases.clusters.list(project))

    @router.post("", status_code=201)
    async def create_cluster(cases: Cases, by: By, project: Project, body: ClusterRequest) -> ClusterView:
        """Create a cluster. The answer comes at once; `ready` and `steps` show how far it is."""
        return await cases.clusters.create(by, project, body)

    @router.post("/check")
    async def check_cluster(cases: Cases, project: Project, body: ClusterRequest) -> CheckView:
        """Say what would be refused of a request for a cluster, and why (a dry run). Nothing is changed."""
        refusals = await cases.clusters.check(project, body)
        return CheckView(ok=not refusals, refusals=[body_of(error).error for error in refusals])

    @router.get("/{name}")
    async def get_cluster(cases: Cases, project: Project, name: str) -> ClusterView:
        """Show a cluster with its steps, machines and conditions."""
        return await cases.clusters.get(project, name)

    @router.patch("/{name}")
    async def change_cluster(cases: Cases, by: By, project: Project, name: str, body: ClusterChange) -> ClusterView:
        """Change the number of workers, timeouts, backups, or the names in the API server's certificate. What is left out stays."""
        return await cases.clusters.change(by, project, name, body)

    @router.post("/{name}/resume-replacement")
    async def resume_replacement(cases: Cases, by: By, project: Project, name: str) -> ClusterView:
        """Let unhealthy workers be replaced again, after a person looked at those that failed again and again."""
        return await cases.clusters.resume_replacement(by, project, name)

    @router.get("/{name}/backups")
    async def list_backups(cases: Cases, project: Project, name: str) -> BackupsView:
        """List a cluster's backups, the newest first, with its schedule and its last restore."""
        return await cases.backups.list(project, name)

    @router.post("/{name}/backups", status_code=202)
    async def request_backup(cases: Cases, by: By, project: Project, name: str) -> BackupsView:
        """Ask for a backup of a cluster now, beside its schedule. It is made after the answer."""
        return await cases.backups.request(by, project, name)

    @router.post("/{name}/restore", status_code=202)
    async def restore_cluster(cases: Cases, by: By, project: Project, name: str, body: RestoreRequest) -> BackupsView:
        """Put a cluster back to one of its backups, in place, after the answer. What was written since is lost, and its API is away meanwhile."""
        return await cases.backups.restore(by, project, name, body.backup)

    @router.delete("/{name}", status_code=202)
    async def delete_cluster(cases: Cases, by: By, project: Project, name: str, force: bool = False) -> DeletionView:
        """Delete a cluster: its workers are drained and cleaned first. It is gone when GET answers 404. Idempotent.

        With `force` nothing is drained, no volume is waited for, and no host that does not answer; also of a deletion that goes on already.
        """
        await cases.clusters.delete(by, project, name, force=force)
        return DeletionView()

    @router.get("/{name}/kubeconfig", response_class=Response, responses={200: {"content": {"application/yaml": {}}}})
    async def get_kubeconfig(cases: Cases, by: By, project: Project, name: str) -> Response:
        """Get the administrator's kubeconfig, as YAML."""
        return Response(await cases.clusters.kubeconfig(by, project, name), media_type="application/yaml")

    return (router,)
