"""Rows of people and rights by name, inside a transaction."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from ckp.api.compass.roles import Role
from ckp.compass.identity import LOCAL, ProjectRef, Scope
from ckp.compass.store.models import ApiTokenRow, DomainRow, ProjectRow, RoleBindingRow, ServiceAccountRow, UserRow
from ckp.rules.roles import Grant

DEFAULT = ProjectRef("default", "default")
"""The domain and the project that every platform has. Their rows are made when they are renamed."""


def full_name(user: UserRow) -> str:
    """As they sign in."""
    return f"{user.name}@{user.domain}" if user.domain else user.name


def account_name(account: ServiceAccountRow) -> str:
    """As it is called everywhere."""
    return f"{account.domain}/{account.project}/{account.name}"


async def exists(session: AsyncSession, scope: Scope | ProjectRef) -> bool:
    """Whether a domain or a project is there; the platform is."""
    if scope.project:
        return scope in (DEFAULT, Scope(DEFAULT.domain, DEFAULT.project)) or await session.get(ProjectRow, (scope.domain, scope.project)) is not None
    return scope.domain in ("", DEFAULT.domain) or await session.get(DomainRow, scope.domain) is not None


async def domains(session: AsyncSession) -> list[DomainRow]:
    """All of them, by name."""
    found = list(await session.scalars(select(DomainRow)))
    if all(row.name != DEFAULT.domain for row in found):
        found.append(DomainRow(name=DEFAULT.domain, display_name="", created_by=""))
    return sorted(found, key=lambda row: row.name)


async def projects(session: AsyncSession) -> list[ProjectRow]:
    """All of them, by name."""
    found = list(await session.scalars(select(ProjectRow)))
    if all((row.domain, row.name) != (DEFAULT.domain, DEFAULT.project) for row in found):
        found.append(ProjectRow(domain=DEFAULT.domain, name=DEFAULT.project, display_name="", created_by=""))
    return sorted(found, key=lambda row: (row.domain, row.name))


async def user(session: AsyncSession, domain: str, name: str) -> UserRow | None:
    """A local user by name."""
    query = select(UserRow).where(UserRow.issuer == LOCAL, UserRow.domain == domain, UserRow.name == name)
    return (await session.scalars(query)).one_or_none()


async def users(session: AsyncSession, scope: Scope) -> list[UserRow]:
    """Those of a domain, or all, by name."""
    query = select(UserRow) if not scope.domain else select(UserRow).where(UserRow.domain == scope.domain)
    return sorted(await session.scalars(query), key=lambda row: (row.domain, row.name))


async def account(session: AsyncSession, project: ProjectRef, name: str) -> ServiceAccountRow | None:
    """A service account by name."""
    query = select(ServiceAccountRow).where(
        ServiceAccountRow.domain == project.domain, ServiceAccountRow.project == project.project, ServiceAccountRow.name == name
    )
    return (await session.scalars(query)).one_or_none()


async def accounts(session: AsyncSession, project: ProjectRef) -> list[ServiceAccountRow]:
    """Those of a project, by name."""
    query = select(ServiceAccountRow).where(ServiceAccountRow.domain == project.domain, ServiceAccountRow.project == project.project)
    return sorted(await session.scalars(query), key=lambda row: row.name)


async def tokens(session: AsyncSession, subjects: Sequence[str]) -> list[ApiTokenRow]:
    """Those of some service accounts, the oldest first."""
    query = select(ApiTokenRow).where(ApiTokenRow.subject.in_(subjects)).order_by(ApiTokenRow.created_at, ApiTokenRow.id)
    return list(await session.scalars(query))


async def token(session: AsyncSession, digest: str) -> tuple[ApiTokenRow, ServiceAccountRow] | None:
    """A token by its hash, with whose it is."""
    query = select(ApiTokenRow, ServiceAccountRow).join(ServiceAccountRow, ServiceAccountRow.subject == ApiTokenRow.subject).where(ApiTokenRow.digest == digest)
    found = (await session.execute(query)).one_or_none()
    return (found[0], found[1]) if found is not None else None


async def grants(session: AsyncSession, issuer: str, subject: str) -> tuple[Grant, ...]:
    """The roles of somebody. One that this version does not know is none."""
    query = select(RoleBindingRow).where(RoleBindingRow.issuer == issuer, RoleBindingRow.subject == subject)
    return tuple(Grant(Role(row.role), row.domain, row.project) for row in await session.scalars(query) if row.role in list(Role))


async def bindings(session: AsyncSession, scope: Scope | ProjectRef) -> list[RoleBindingRow]:
    """The roles in a part of the platform and in all below it."""
    query = select(RoleBindingRow)
    if scope.domain:
        query = query.where(RoleBindingRow.domain == scope.domain)
    if scope.project:
        query = query.where(RoleBindingRow.project == scope.project)
    return sorted(await session.scalars(query), key=lambda row: (row.domain, row.project, row.role, row.id))


async def platform_administrators(session: AsyncSession) -> list[UserRow]:
    """People who are, and can sign in."""
    query = (
        select(UserRow)
        .join(RoleBindingRow, (RoleBindingRow.issuer == UserRow.issuer) & (RoleBindingRow.subject == UserRow.subject))
        .where(RoleBindingRow.role == Role.PLATFORM_ADMINISTRATOR.value)
    )
    return [row for row in await session.scalars(query) if not row.disabled]


async def forget(session: AsyncSession, issuer: str, subjects: Sequence[str]) -> None:
    """Delete the roles and tokens of somebody who is deleted."""
    await session.execute(delete(RoleBindingRow).where(RoleBindingRow.issuer == issuer, RoleBindingRow.subject.in_(subjects)))
    await session.execute(delete(ApiTokenRow).where(ApiTokenRow.subject.in_(subjects)))
