"""The use cases of Compass. They know Kubernetes (ckp.clients), the store and the rules, and nothing of HTTP."""

from __future__ import annotations

from dataclasses import dataclass

from ckp.api.compass.projects import AuditView
from ckp.api.compass.releases import ReleaseView
from ckp.clients.kube import Kube
from ckp.compass.access.callers import AdminToken, WorkloadTokens
from ckp.compass.access.changes import Changes
from ckp.compass.access.projects import Namespaces
from ckp.compass.access.sessions import Sessions
from ckp.compass.clusters.backups import ClusterBackups
from ckp.compass.clusters.clusters import Clusters
from ckp.compass.hosts.approval import ApprovalRules
from ckp.compass.hosts.enrolments import Enrolments
from ckp.compass.hosts.groups import HostGroups
from ckp.compass.hosts.hosts import Hosts
from ckp.compass.hosts.joining import Joining
from ckp.compass.hosts.keys import HostKeys
from ckp.compass.hosts.operations import HostOperations
from ckp.compass.hosts.requests import HostRequests
from ckp.compass.identity import ProjectRef
from ckp.compass.releases import Releases
from ckp.compass.settings import Settings
from ckp.compass.store.database import Database
from ckp.compass.store.models import AuditEntry
from ckp.kits.clock import Clock


@dataclass(frozen=True)
class UseCases:
    """All that Compass can do. The skins (REST, console, later RPC) get this and nothing else."""

    database: Database
    releases: Releases
    clock: Clock
    admin: AdminToken
    sessions: Sessions
    changes: Changes
    hub: WorkloadTokens
    keys: HostKeys
    joining: Joining
    enrolments: Enrolments
    requests: HostRequests
    approval: ApprovalRules
    hosts: Hosts
    operations: HostOperations
    groups: HostGroups
    clusters: Clusters
    backups: ClusterBackups

    @classmethod
    def wire(cls, settings: Settings, database: Database, kube: Kube, releases: Releases, admin_token: str, clock: Clock) -> UseCases:
        """Put them together."""
        namespaces = Namespaces(kube, settings.own_account, settings.tenant_role)
        keys = HostKeys(database, clock)
        admin = AdminToken(admin_token)
        hosts = Hosts(database, kube, namespaces)
        requests = HostRequests(database, kube, namespaces, clock)
        approval = ApprovalRules(database, requests, clock)
        backups = ClusterBackups(database, kube, namespaces, clock)
        return cls(
            database=database,
            releases=releases,
            clock=clock,
            admin=admin,
            sessions=Sessions(database, admin, clock),
            changes=Changes(database, kube, namespaces),
            hub=WorkloadTokens(kube, clock, account=settings.hub_account, audience=settings.audience),
            keys=keys,
            joining=Joining(settings.hub_address, settings.site_ca),
            enrolments=Enrolments(database, keys, approval, clock),
            requests=requests,
            approval=approval,
            hosts=hosts,
            operations=HostOperations(database, kube, namespaces, hosts, releases, clock),
            groups=HostGroups(database, kube, namespaces, hosts, clock),
            clusters=Clusters(database, kube, namespaces, releases, clock, settings.reserved, backups),
            backups=backups,
        )

    async def known_projects(self) -> list[ProjectRef]:
        """Projects that have a pre-shared key, a host group or a host request, by name: a project begins with one of them."""
        async with self.database.reading() as unit:
            return await unit.known_projects()

    async def audit(self, project: ProjectRef, limit: int) -> list[AuditView]:
        """The newest changes of a project, newest first."""
        async with self.database.reading() as unit:
            return [_audit_view(entry) for entry in await unit.audit_entries(project, limit=limit)]

    def list_releases(self) -> list[ReleaseView]:
        """All releases, the oldest first."""
        return [self.get_release(name) for name in self.releases.names()]

    def get_release(self, name: str) -> ReleaseView:
        """One release; NotFound names the known ones."""
        return ReleaseView.model_validate({"name": name, **self.releases.get(name)})


def _audit_view(entry: AuditEntry) -> AuditView:
    return AuditView(
        id=entry.id,
        at=entry.at,
        actor=entry.actor,
        credential=entry.credential,
        action=entry.action,
        target=entry.target,
        detail=entry.detail,
    )
