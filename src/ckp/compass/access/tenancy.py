"""Domains and projects: created, listed, renamed, deleted when they are empty."""

from __future__ import annotations

from sqlalchemy import delete

from ckp.api import kinds
from ckp.api.compass.people import DisplayNameChange, DomainRequest, DomainView, ProjectRequest, ProjectView
from ckp.compass.access.kube_errors import translate_kube_errors
from ckp.compass.access.projects import Namespaces
from ckp.compass.identity import LOCAL, Caller, ProjectRef, Scope, check_domain
from ckp.compass.store import people
from ckp.compass.store.database import Database
from ckp.compass.store.models import ApprovalRule, DomainRow, HostKey, HostRequest, ProjectRow, RoleBindingRow
from ckp.compass.store.unit import Unit
from ckp.kits.clock import Clock
from ckp.kits.errors import Conflict, NotFound
from ckp.rules.roles import knows


def absent(where: Scope | ProjectRef) -> NotFound:
    """What is said of a domain or a project that is not there, and of one that the caller may not know of: the same."""
    what = f"project {where.domain}/{where.project}" if where.project else f"domain {where.domain}"
    return NotFound(f"there is no {what}", resolution=f"see what there is: ckp {'project' if where.project else 'domain'} list")


class Domains:
    """Use cases around domains."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def list(self, caller: Caller) -> list[DomainView]:
        """Those that the caller may know of, by name."""
        async with self._database.reading() as unit:
            rows = await people.domains(unit.session)
            return [await _domain_view(unit, caller, row) for row in rows if knows(caller.grants, row.name)]

    async def get(self, caller: Caller, where: Scope) -> DomainView:
        """One of them."""
        async with self._database.reading() as unit:
            row = next((row for row in await people.domains(unit.session) if row.name == where.domain), None)
            if row is None:
                raise absent(where)
            return await _domain_view(unit, caller, row)

    async def create(self, caller: Caller, request: DomainRequest) -> DomainView:
        """A new domain, without projects."""
        name = check_domain(request.name)
        async with self._database.unit() as unit:
            if await people.exists(unit.session, Scope(name)):
                raise Conflict(f"domain {name} exists already")
            row = DomainRow(name=name, display_name=request.display_name, created_at=self._clock.now(), created_by=caller.name)
            unit.session.add(row)
            unit.audit(caller, Scope(name), "domain.create", name)
            return await _domain_view(unit, caller, row)

    async def rename(self, caller: Caller, where: Scope, change: DisplayNameChange) -> DomainView:
        """Another name for people."""
        async with self._database.unit() as unit:
            if not await people.exists(unit.session, where):
                raise absent(where)
            row = await unit.session.get(DomainRow, where.domain)
            if row is None:
                row = DomainRow(name=where.domain, created_at=self._clock.now(), created_by=caller.name)
                unit.session.add(row)
            detail = {"from": row.display_name or "", "to": change.display_name}
            row.display_name = change.display_name
            unit.audit(caller, where, "domain.rename", where.domain, detail)
            return await _domain_view(unit, caller, row)

    async def delete(self, caller: Caller, where: Scope) -> None:
        """Delete a domain that has no projects and no people."""
        if where.domain == people.DEFAULT.domain:
            raise Conflict("the domain default stays", resolution="every platform has it; leave it empty if nobody needs it")
        async with self._database.unit() as unit:
            row = await unit.session.get(DomainRow, where.domain)
            if row is None:
                raise absent(where)
            left = [f"project {row.name}" for row in await people.projects(unit.session) if row.domain == where.domain]
            left += [f"user {people.full_name(row)}" for row in await people.users(unit.session, where)]
            if left:
                raise Conflict(f"domain {where.domain} is not empty: {', '.join(left[:5])}{', …' if len(left) > 5 else ''}", resolution="delete these first")
            await unit.session.execute(delete(RoleBindingRow).where(RoleBindingRow.domain == where.domain))
            await unit.session.delete(row)
            unit.audit(caller, where, "domain.delete", where.domain)


@translate_kube_errors
class Projects:
    """Use cases around projects."""

    def __init__(self, database: Database, namespaces: Namespaces, clock: Clock) -> None:
        self._database = database
        self._namespaces = namespaces
        self._clock = clock

    async def require(self, where: Scope | ProjectRef) -> None:
        """NotFound unless the domain or the project is there."""
        async with self._database.reading() as unit:
            if not await people.exists(unit.session, where):
                raise absent(where)

    async def of_domain(self, caller: Caller, where: Scope) -> list[ProjectView]:
        """Those of a domain that the caller may see, by name."""
        return [view for view in await self.list(caller) if view.domain == where.domain]

    async def list(self, caller: Caller) -> list[ProjectView]:
        """Those that the caller may see, by domain and name."""
        async with self._database.reading() as unit:
            return [_project_view(row) for row in await people.projects(unit.session) if knows(caller.grants, row.domain, row.name)]

    async def get(self, project: ProjectRef) -> ProjectView:
        """One of them."""
        async with self._database.reading() as unit:
            rows = await people.projects(unit.session)
        row = next((row for row in rows if (row.domain, row.name) == (project.domain, project.project)), None)
        if row is None:
            raise absent(project)
        return _project_view(row)

    async def create(self, caller: Caller, where: Scope, request: ProjectRequest) -> ProjectView:
        """A new project of a domain. Its namespace is made when it is first needed."""
        project = ProjectRef.of(where.domain, request.name)
        async with self._database.unit() as unit:
            if not await people.exists(unit.session, where):
                raise absent(where)
            if await people.exists(unit.session, project):
                raise Conflict(f"project {project} exists already")
            row = ProjectRow(
                domain=project.domain, name=project.project, display_name=request.display_name, created_at=self._clock.now(), created_by=caller.name
            )
            unit.session.add(row)
            unit.audit(caller, project, "project.create", project.project)
            return _project_view(row)

    async def rename(self, caller: Caller, project: ProjectRef, change: DisplayNameChange) -> ProjectView:
        """Another name for people."""
        async with self._database.unit() as unit:
            if not await people.exists(unit.session, project):
                raise absent(project)
            row = await unit.session.get(ProjectRow, (project.domain, project.project))
            if row is None:
                row = ProjectRow(domain=project.domain, name=project.project, created_at=self._clock.now(), created_by=caller.name)
                unit.session.add(row)
            detail = {"from": row.display_name or "", "to": change.display_name}
            row.display_name = change.display_name
            unit.audit(caller, project, "project.rename", project.project, detail)
            return _project_view(row)

    async def delete(self, caller: Caller, project: ProjectRef) -> None:
        """Delete a project without clusters, hosts, host groups and pending host requests, with its key, rules, service accounts and roles.

        Its namespace stays, empty: Compass may not delete any.
        """
        if project == people.DEFAULT:
            raise Conflict("the project default/default stays", resolution="every platform has it; leave it empty if nobody needs it")
        # The lock of those who create clusters in it.
        async with self._database.exclusive(f"hosts of {project.namespace}") as held:
            found = {kind: await self._namespaces.list(kind, project) for kind in (kinds.CLUSTER, kinds.BYO_HOST)}
            await held.require()
            left = [f"{'cluster' if kind is kinds.CLUSTER else 'host'} {obj['metadata']['name']}" for kind, objs in found.items() for obj in objs]
            async with self._database.unit() as unit:
                left += [f"host group {row.name}" for row in await unit.host_groups(project)]
                if pending := await unit.pending_count(project):
                    left.append(f"{pending} pending host request{'s' if pending > 1 else ''}")
                if left:
                    raise Conflict(f"project {project} is not empty: {', '.join(left[:5])}{', …' if len(left) > 5 else ''}", resolution="delete these first")
                row = await unit.session.get(ProjectRow, (project.domain, project.project))
                if row is None:
                    raise absent(project)
                accounts = await people.accounts(unit.session, project)
                await people.forget(unit.session, LOCAL, [account.subject for account in accounts])
                for account in accounts:
                    await unit.session.delete(account)
                for table in (HostKey, HostRequest, ApprovalRule, RoleBindingRow):
                    await unit.session.execute(delete(table).where(table.domain == project.domain, table.project == project.project))
                await unit.session.delete(row)
                unit.audit(caller, project, "project.delete", project.project)


async def _domain_view(unit: Unit, caller: Caller, row: DomainRow) -> DomainView:
    seen = [project for project in await people.projects(unit.session) if project.domain == row.name and knows(caller.grants, row.name, project.name)]
    return DomainView(name=row.name, display_name=row.display_name or "", projects=len(seen), created_at=row.created_at, created_by=row.created_by or "")


def _project_view(row: ProjectRow) -> ProjectView:
    return ProjectView(domain=row.domain, name=row.name, display_name=row.display_name or "", created_at=row.created_at, created_by=row.created_by or "")
