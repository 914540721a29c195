"""The use cases of Compass. They know Kubernetes (ckp.clients), the store and the rules, and nothing of HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from ckp.api.compass.releases import ReleaseView
from ckp.clients.kube import Kube
from ckp.compass.access.accounts import ServiceAccounts
from ckp.compass.access.audit import AuditLog
from ckp.compass.access.authentication import Authentication
from ckp.compass.access.bindings import RoleBindings
from ckp.compass.access.callers import SITE, AdminToken, WorkloadTokens
from ckp.compass.access.changes import Changes
from ckp.compass.access.guard import Guard, Guarded
from ckp.compass.access.passwords import Passwords
from ckp.compass.access.projects import Namespaces
from ckp.compass.access.sessions import Sessions
from ckp.compass.access.tenancy import Domains, Projects
from ckp.compass.access.users import Users
from ckp.compass.clusters.backups import ClusterBackups
from ckp.compass.clusters.clusters import Clusters
from ckp.compass.clusters.upgrades import ClusterUpgrades
from ckp.compass.hosts.approval import ApprovalRules
from ckp.compass.hosts.enrolments import Enrolments
from ckp.compass.hosts.groups import HostGroups
from ckp.compass.hosts.hosts import Hosts
from ckp.compass.hosts.joining import Joining
from ckp.compass.hosts.keys import HostKeys
from ckp.compass.hosts.operations import HostOperations
from ckp.compass.hosts.requests import HostRequests
from ckp.compass.identity import Caller
from ckp.compass.releases import Releases
from ckp.compass.settings import Settings
from ckp.compass.store.database import Database
from ckp.kits.clock import Clock

SITE_SECONDS = 5.0
"""For how long a good answer about the site's own token holds."""


@dataclass(frozen=True)
class UseCases:
    """All that Compass can do. The skins (REST, console, later RPC) get this and nothing else, and for what a caller asks for, `acting`."""

    database: Database
    releases: Releases
    clock: Clock
    admin: AdminToken
    authentication: Authentication
    guard: Guard
    sessions: Sessions
    users: Users
    roles: RoleBindings
    accounts: ServiceAccounts
    domains: Domains
    projects: Projects
    audit: AuditLog
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
    upgrades: ClusterUpgrades

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
        passwords = Passwords()
        sessions = Sessions(database, admin, passwords, clock)
        site = WorkloadTokens(kube, clock, account=settings.site_account, audience=settings.audience, caller=SITE, seconds=SITE_SECONDS)
        projects = Projects(database, namespaces, clock)
        audit = AuditLog(database)
        return cls(
            database=database,
            releases=releases,
            clock=clock,
            admin=admin,
            authentication=Authentication(database, admin, site, sessions, clock),
            guard=Guard(projects, audit),
            sessions=sessions,
            users=Users(database, passwords, clock),
            roles=RoleBindings(database, clock),
            accounts=ServiceAccounts(database, clock),
            domains=Domains(database, clock),
            projects=projects,
            audit=audit,
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
            upgrades=ClusterUpgrades(database, kube, namespaces, clock),
        )

    def acting(self, caller: Caller) -> UseCases:
        """The same, for a caller: each call asks first whether they may (ckp.compass.access.guard). What doors have."""
        return cast(UseCases, Guarded(self, self.guard, caller))

    def list_releases(self) -> list[ReleaseView]:
        """All releases, the oldest first."""
        return [self.get_release(name) for name in self.releases.names()]

    def get_release(self, name: str) -> ReleaseView:
        """One release; NotFound names the known ones."""
        return ReleaseView.model_validate({"name": name, **self.releases.get(name)})
