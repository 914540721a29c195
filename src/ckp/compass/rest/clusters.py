"""REST: clusters."""

from __future__ import annotations

from fastapi import APIRouter, Response

from ckp.api.compass.base import Items
from ckp.api.compass.clusters import BackupsView, CheckView, ClusterChange, ClusterRequest, ClusterView, DeletionView, RestoreRequest
from ckp.api.compass.upgrades import UpgradeRequest, UpgradeView
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

    @router.get("/{name}/upgrade")
    async def get_upgrade(cases: Cases, project: Project, name: str, id: str = "") -> UpgradeView:
        """Show a cluster's upgrade: the newest, or the one that is named by `id`."""
        return await cases.upgrades.get(project, name, id)

    @router.post("/{name}/upgrade", status_code=202)
    async def start_upgrade(cases: Cases, by: By, project: Project, name: str, body: UpgradeRequest) -> UpgradeView:
        """Upgrade a cluster in place, after the answer; with `dryRun` only check, and show the way and the nodes."""
        return await cases.upgrades.start(by, project, name, body)

    @router.post("/{name}/upgrade/pause", status_code=202)
    async def pause_upgrade(cases: Cases, by: By, project: Project, name: str) -> UpgradeView:
        """Pause a cluster's upgrade: what has begun is finished, and nothing further begins."""
        return await cases.upgrades.pause(by, project, name)

    @router.post("/{name}/upgrade/resume", status_code=202)
    async def resume_upgrade(cases: Cases, by: By, project: Project, name: str) -> UpgradeView:
        """Go on with a cluster's upgrade after a pause, or after its first nodes."""
        return await cases.upgrades.resume(by, project, name)

    @router.post("/{name}/upgrade/abort", status_code=202)
    async def abort_upgrade(cases: Cases, by: By, project: Project, name: str) -> UpgradeView:
        """End a cluster's upgrade. What is upgraded stays so."""
        return await cases.upgrades.abort(by, project, name)

    @router.post("/{name}/upgrade/commit", status_code=202)
    async def commit_upgrade(cases: Cases, by: By, project: Project, name: str) -> UpgradeView:
        """Commit the step of a cluster's control plane that soaks: its programs behave as the new minor from then on, and do not go back."""
        return await cases.upgrades.commit(by, project, name)

    @router.post("/{name}/upgrade/rollback", status_code=202)
    async def roll_back_upgrade(cases: Cases, by: By, project: Project, name: str) -> UpgradeView:
        """Undo the step of a cluster's control plane that was not committed, and end the upgrade. Nothing that was written is lost."""
        return await cases.upgrades.rollback(by, project, name)

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
