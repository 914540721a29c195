"""Roles of people and service accounts, bound to the platform, a domain or a project."""

from __future__ import annotations

from ckp.api.compass.people import RoleRequest, RoleView
from ckp.api.compass.roles import Least, Role
from ckp.compass.access.users import require_above
from ckp.compass.identity import LOCAL, Caller, ProjectRef, Scope
from ckp.compass.store import people
from ckp.compass.store.database import Database
from ckp.compass.store.models import RoleBindingRow, ServiceAccountRow, UserRow
from ckp.compass.store.unit import Unit
from ckp.kits.clock import Clock
from ckp.kits.errors import Conflict, InvalidInput, NotFound
from ckp.rules.roles import SCOPES, Grant, allows, scope_of


class RoleBindings:
    """Use cases around roles. Whoever administers a part of the platform gives roles in it, up to their own."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def list(self, where: Scope) -> list[RoleView]:
        """The roles in a part of the platform and in all below it."""
        async with self._database.reading() as unit:
            return [await _view(unit, row) for row in await people.bindings(unit.session, where)]

    async def grant(self, caller: Caller, where: Scope, request: RoleRequest) -> RoleView:
        """Give somebody a role. Their sessions end: they sign in again. Tokens of service accounts have it at once. Idempotent.

        Raises:
            InvalidInput: the role is not one for such a part of the platform.
            NotFound: there is nobody of that name whom the caller may give a role here: somebody of the domain, or its service accounts.
        """
        if scope_of(where.domain, where.project) not in SCOPES[request.role]:
            kinds = " or ".join(f"a {kind}" if kind != "platform" else "the platform" for kind in SCOPES[request.role])
            raise InvalidInput(f"role: {request.role.value} is bound to {kinds}, not to {where}")
        if bool(request.user) == bool(request.service_account):
            raise InvalidInput("user: a role is for one user, or for one service account", resolution="give one of the two")
        async with self._database.unit() as unit:
            subject, name = await self._somebody(unit, caller, where, request)
            there = [row for row in await people.bindings(unit.session, where) if (row.subject, row.issuer) == (subject, LOCAL)]
            same = [row for row in there if (row.role, row.domain, row.project) == (request.role.value, where.domain, where.project)]
            if same:
                return await _view(unit, same[0])
            row = RoleBindingRow(issuer=LOCAL, subject=subject, role=request.role.value, domain=where.domain, project=where.project)
            row.created_at, row.created_by = self._clock.now(), caller.name
            unit.session.add(row)
            await unit.session.flush()
            await unit.end_sessions_of(LOCAL, subject)
            if request.role is Role.PLATFORM_ADMINISTRATOR and request.user:
                await unit.end_bootstrap(name)
            unit.audit(caller, where, "role-binding.grant", name, {"role": request.role.value})
            return await _view(unit, row)

    async def revoke(self, caller: Caller, where: Scope, binding: int) -> None:
        """Take a role from somebody: in effect at once, and their sessions end.

        Raises:
            Conflict: it is the last platform administrator's.
        """
        async with self._database.unit() as unit:
            row = next((row for row in await people.bindings(unit.session, where) if row.id == binding), None)
            if row is None:
                raise NotFound(f"there is no role with the id {binding} in {where}", resolution="list them: ckp role list")
            view = await _view(unit, row)
            if row.role in list(Role):
                require_above(caller, (Grant(Role(row.role), row.domain, row.project),), view.user or view.service_account)
            await unit.session.delete(row)
            await unit.session.flush()
            if row.role == Role.PLATFORM_ADMINISTRATOR and await unit.bootstrap_ended() and not await people.platform_administrators(unit.session):
                raise Conflict(f"{view.user} is the last platform administrator", resolution="make another one first: ckp role grant")
            await unit.end_sessions_of(row.issuer, row.subject)
            unit.audit(caller, Scope(row.domain, row.project), "role-binding.revoke", view.user or view.service_account, {"role": row.role})

    async def _somebody(self, unit: Unit, caller: Caller, where: Scope, request: RoleRequest) -> tuple[str, str]:
        """Subject and name. What is of another domain is not there, but for the platform's administrators."""
        everywhere = allows(caller.grants, Least.PLATFORM_ADMINISTRATOR)
        if request.user:
            local, _, domain = request.user.partition("@")
            user = await people.user(unit.session, domain, local) if everywhere or domain == where.domain else None
            if user is None:
                raise NotFound(f"there is no user {request.user} for {where}", resolution="write NAME@DOMAIN for people of a domain: ckp user list")
            return user.subject, people.full_name(user)
        parts = request.service_account.split("/")
        if len(parts) != 3:
            raise InvalidInput(f"serviceAccount: {request.service_account!r} is not DOMAIN/PROJECT/NAME")
        near = parts[0] == where.domain and where.project in ("", parts[1])
        account = await people.account(unit.session, ProjectRef(parts[0], parts[1]), parts[2]) if everywhere or near else None
        if account is None:
            raise NotFound(f"there is no service account {request.service_account} for {where}", resolution="list them: ckp serviceaccount list")
        return account.subject, people.account_name(account)


async def _view(unit: Unit, row: RoleBindingRow) -> RoleView:
    user = await unit.session.get(UserRow, (row.issuer, row.subject))
    account = await unit.session.get(ServiceAccountRow, row.subject) if user is None else None
    return RoleView(
        id=row.id,
        role=row.role,
        user=people.full_name(user) if user is not None else "",
        service_account=people.account_name(account) if account is not None else "",
        domain=row.domain,
        project=row.project,
        created_at=row.created_at,
        created_by=row.created_by,
    )
