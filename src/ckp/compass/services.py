"""The use cases of Compass. They know Kubernetes (ckp.clients), the store and the rules; they know nothing of HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ckp.clients.kube import Kube
from ckp.compass.access.callers import AdminToken, WorkloadTokens
from ckp.compass.access.projects import Namespaces, ProjectRef
from ckp.compass.clusters.clusters import Clusters
from ckp.compass.hosts.approval import ApprovalRules
from ckp.compass.hosts.enrolments import Enrolments
from ckp.compass.hosts.groups import HostGroups
from ckp.compass.hosts.hosts import Hosts
from ckp.compass.hosts.keys import HostKeys
from ckp.compass.hosts.operations import HostCare
from ckp.compass.hosts.requests import HostRequests
from ckp.compass.releases import Releases
from ckp.compass.settings import Settings
from ckp.compass.store.database import Database
from ckp.compass.store.models import AuditEntry
from ckp.kits.clock import Clock


@dataclass(frozen=True)
class UseCases:
    """All that Compass can do; the skins (REST, later RPC and web) get this and nothing else."""

    database: Database
    releases: Releases
    admin: AdminToken
    hub: WorkloadTokens
    keys: HostKeys
    enrolments: Enrolments
    requests: HostRequests
    approval: ApprovalRules
    hosts: Hosts
    care: HostCare
    groups: HostGroups
    clusters: Clusters

    @classmethod
    def wire(cls, settings: Settings, database: Database, kube: Kube, releases: Releases, admin_token: str, clock: Clock) -> UseCases:
        """Put them together."""
        namespaces = Namespaces(kube, settings.own_account, settings.tenant_role)
        keys = HostKeys(database, clock)
        hosts = Hosts(database, kube, namespaces, clock)
        requests = HostRequests(database, kube, namespaces, clock)
        approval = ApprovalRules(database, requests, clock)
        return cls(
            database=database,
            releases=releases,
            admin=AdminToken(admin_token),
            hub=WorkloadTokens(kube, clock, account=settings.hub_account, audience=settings.audience),
            keys=keys,
            enrolments=Enrolments(database, keys, approval, clock),
            requests=requests,
            approval=approval,
            hosts=hosts,
            care=HostCare(database, kube, namespaces, hosts, releases, clock),
            groups=HostGroups(database, kube, namespaces, hosts, clock),
            clusters=Clusters(database, kube, namespaces, releases, clock, settings.reserved),
        )

    async def audit(self, project: ProjectRef, limit: int) -> Sequence[AuditEntry]:
        """The newest changes of a project, newest first."""
        async with self.database.unit() as unit:
            return await unit.audit_entries(project.domain, project.project, limit=limit)
