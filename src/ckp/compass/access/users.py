"""Users: people, as Compass knows them. Local ones have a password here."""

from __future__ import annotations

import secrets

from ckp.api.compass.people import (
    CallerView,
    GrantView,
    OwnPasswordRequest,
    PasswordRequest,
    UserChange,
    UserRequest,
    UserView,
)
from ckp.api.compass.roles import Least, Role
from ckp.compass.access.passwords import Passwords
from ckp.compass.access.rate import FailureLimit
from ckp.compass.errors import Forbidden, Unauthorized
from ckp.compass.identity import LOCAL, PLATFORM, Caller, Scope, check_label
from ckp.compass.store import people
from ckp.compass.store.database import Database
from ckp.compass.store.models import RoleBindingRow, UserRow
from ckp.compass.store.unit import Unit
from ckp.kits.clock import Clock
from ckp.kits.errors import Conflict, NotFound
from ckp.rules.roles import Grant, allows


class Users:
    """Use cases around users. Each belongs to a domain, or to the platform, and is managed by its administrators."""

    def __init__(self, database: Database, passwords: Passwords, clock: Clock) -> None:
        self._database = database
        self._passwords = passwords
        self._clock = clock
        self._limit = FailureLimit(clock, tries=5, what="password", hint="")

    async def me(self, caller: Caller) -> CallerView:
        """Who the caller is, and what they may do where."""
        roles = [GrantView(role=grant.role.value, domain=grant.domain, project=grant.project) for grant in caller.grants]
        return CallerView(name=caller.name, credential=caller.credential, issuer=caller.issuer, subject=caller.subject, roles=roles)

    async def list(self, where: Scope) -> list[UserView]:
        """The users of a domain; of the platform: all."""
        async with self._database.reading() as unit:
            return [_view(row) for row in await people.users(unit.session, where)]

    async def get(self, where: Scope, name: str) -> UserView:
        """One of them."""
        async with self._database.reading() as unit:
            return _view(await _required(unit, where, name))

    async def create(self, caller: Caller, where: Scope, request: UserRequest) -> UserView:
        """A new local user, without roles."""
        row = await self._new(caller, where, request)
        async with self._database.unit() as unit:
            await self._add(unit, caller, where, row)
        return _view(row)

    async def create_first(self, caller: Caller, request: UserRequest) -> UserView:
        """The first platform administrator. The bootstrap token, which this is for, is void from then on, and so are sessions that it opened.

        Raises:
            Forbidden: the caller is not the holder of the bootstrap token.
        """
        if caller.credential != "admin-token":
            raise Forbidden("the first administrator is made by the bootstrap token", resolution="ckp user create, then ckp role grant, make further ones")
        row = await self._new(caller, PLATFORM, request)
        async with self._database.unit() as unit:
            if await unit.bootstrap_ended():
                raise Conflict("there is an administrator already", resolution="sign in as a user: ckp login")
            await self._add(unit, caller, PLATFORM, row)
            binding = {"issuer": row.issuer, "subject": row.subject, "role": Role.PLATFORM_ADMINISTRATOR.value, "domain": "", "project": ""}
            unit.session.add(RoleBindingRow(**binding, created_at=row.created_at, created_by=caller.name))
            unit.audit(caller, PLATFORM, "role-binding.grant", row.name, {"role": Role.PLATFORM_ADMINISTRATOR.value})
            await unit.end_bootstrap(row.name)
        return _view(row)

    async def change(self, caller: Caller, where: Scope, name: str, change: UserChange) -> UserView:
        """Rename, disable or enable somebody. Who is disabled is out at once."""
        async with self._database.unit() as unit:
            row = await self._managed(unit, caller, where, name)
            if change.display_name is not None:
                row.display_name = change.display_name
            if change.disabled is not None and change.disabled != row.disabled:
                row.disabled = change.disabled
                await unit.session.flush()
                await _require_an_administrator(unit, row)
                await unit.end_sessions_of(row.issuer, row.subject)
            unit.audit(caller, where, "user.change", people.full_name(row), change.body())
            return _view(row)

    async def set_password(self, caller: Caller, where: Scope, name: str, request: PasswordRequest) -> None:
        """Another password for somebody: their sessions end at once."""
        kept = await self._passwords.hash(request.password, name=name)
        async with self._database.unit() as unit:
            row = await self._managed(unit, caller, where, name)
            await self._set(unit, row, kept)
            unit.audit(caller, where, "user.set-password", people.full_name(row))

    async def change_password(self, caller: Caller, request: OwnPasswordRequest) -> None:
        """Another password for oneself: all sessions end at once, this one too.

        Raises:
            Unauthorized: the current one is wrong; after five of these within a minute, TooManyTries.
        """
        key = f"own password of {caller.subject}"
        async with self._database.reading() as unit:
            await self._limit.check(unit, key)
            row = await unit.session.get(UserRow, (caller.issuer, caller.subject))
            before = row.password_hash if row is not None else ""
        if row is None:
            raise Conflict(f"{caller.name} has no password here")
        if not await self._passwords.matches(before, request.current):
            async with self._database.unit() as unit:
                await self._limit.failed(unit, key)
                unit.audit(caller, PLATFORM, "user.change-password", caller.name, result="Unauthorized")
            raise Unauthorized("the current password is wrong", resolution="type it again, or ask your administrator for a new one")
        kept = await self._passwords.hash(request.password, name=row.name)
        async with self._database.unit() as unit:
            again = await unit.session.get(UserRow, (caller.issuer, caller.subject))
            if again is None or again.password_hash != before:
                raise Conflict("the password was changed meanwhile", resolution="sign in again")
            await self._set(unit, again, kept)
            unit.audit(caller, Scope(again.domain), "user.change-password", caller.name)

    async def delete(self, caller: Caller, where: Scope, name: str) -> None:
        """Delete somebody, with their roles and sessions. Whoever is given the name later is somebody else."""
        async with self._database.unit() as unit:
            row = await self._managed(unit, caller, where, name)
            row.disabled = True
            await unit.session.flush()
            await _require_an_administrator(unit, row)
            await unit.end_sessions_of(row.issuer, row.subject)
            await people.forget(unit.session, row.issuer, [row.subject])
            await unit.session.delete(row)
            unit.audit(caller, where, "user.delete", people.full_name(row))

    async def _new(self, caller: Caller, where: Scope, request: UserRequest) -> UserRow:
        name = check_label("name", request.name)
        kept = await self._passwords.hash(request.password, name=name)
        now = self._clock.now()
        return UserRow(
            issuer=LOCAL,
            subject=secrets.token_hex(16),
            domain=where.domain,
            name=name,
            display_name=request.display_name,
            password_hash=kept,
            disabled=False,
            created_at=now,
            created_by=caller.name,
            password_changed_at=now,
        )

    async def _add(self, unit: Unit, caller: Caller, where: Scope, row: UserRow) -> None:
        if await people.user(unit.session, row.domain, row.name) is not None:
            raise Conflict(f"user {people.full_name(row)} exists already")
        unit.session.add(row)
        unit.audit(caller, where, "user.create", people.full_name(row))

    async def _set(self, unit: Unit, row: UserRow, kept: str) -> None:
        row.password_hash = kept
        row.password_changed_at = self._clock.now()
        await unit.end_sessions_of(row.issuer, row.subject)

    async def _managed(self, unit: Unit, caller: Caller, where: Scope, name: str) -> UserRow:
        """Somebody whom the caller may manage: an administrator of a domain does not become more by way of one of its users who is more."""
        row = await _required(unit, where, name)
        require_above(caller, await people.grants(unit.session, row.issuer, row.subject), people.full_name(row))
        return row


def require_above(caller: Caller, grants: tuple[Grant, ...], name: str) -> None:
    """Forbidden unless the caller administers all that somebody has a role in."""
    for grant in grants:
        least = Least.PLATFORM_ADMINISTRATOR if not grant.domain else Least.DOMAIN_ADMINISTRATOR if not grant.project else Least.PROJECT_ADMINISTRATOR
        if not allows(caller.grants, least, grant.domain, grant.project):
            raise Forbidden(f"{name} has a role beyond what you administer", resolution="ask an administrator who has all of it")


async def _require_an_administrator(unit: Unit, changed: UserRow) -> None:
    """The last one is neither disabled nor deleted: nobody could make another."""
    if await unit.bootstrap_ended() and not await people.platform_administrators(unit.session):
        raise Conflict(f"{people.full_name(changed)} is the last platform administrator", resolution="make another one first: ckp role grant")


async def _required(unit: Unit, where: Scope, name: str) -> UserRow:
    row = await people.user(unit.session, where.domain, name)
    if row is None:
        raise NotFound(f"there is no user {name}{'@' + where.domain if where.domain else ''}", resolution="list them: ckp user list")
    return row


def _view(row: UserRow) -> UserView:
    return UserView(
        name=people.full_name(row),
        display_name=row.display_name,
        issuer=row.issuer,
        subject=row.subject,
        disabled=row.disabled,
        created_at=row.created_at,
        created_by=row.created_by,
        password_changed_at=row.password_changed_at,
    )
