"""Rows by name, inside one transaction."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from ckp.compass.identity import Caller, ProjectRef, Scope
from ckp.compass.store.models import ApprovalRule, AuditEntry, BootstrapEnd, HostGroup, HostKey, HostRequest, SessionRow, WrongKey
from ckp.kits.clock import Clock


class Unit:
    """One transaction's view of all tables."""

    def __init__(self, session: AsyncSession, clock: Clock) -> None:
        self.session = session
        self._clock = clock

    # Keys.

    async def host_key(self, project: ProjectRef) -> HostKey | None:
        """The project's key, or None if it has none yet."""
        return await self.session.get(HostKey, (project.domain, project.project))

    async def wrong_keys(self, source: str, since: datetime) -> Sequence[datetime]:
        """When a source showed wrong keys since then, oldest first."""
        query = select(WrongKey.at).where(WrongKey.source == source[:64], WrongKey.at > since).order_by(WrongKey.at)
        return (await self.session.scalars(query)).all()

    async def add_wrong_key(self, source: str, at: datetime, *, forget_before: datetime) -> None:
        """Write one down, and delete those that no longer count."""
        await self.session.execute(delete(WrongKey).where(WrongKey.at <= forget_before))
        self.session.add(WrongKey(source=source[:64], at=at))

    # Sessions.

    async def open_session(self, digest: str) -> SessionRow | None:
        """A session by the hash of its id."""
        return await self.session.get(SessionRow, digest)

    async def open_sessions(self, digests: Collection[str]) -> Sequence[SessionRow]:
        """Those of these sessions that are there."""
        return (await self.session.scalars(select(SessionRow).where(SessionRow.digest.in_(digests)))).all()

    async def end_sessions_of(self, issuer: str, subject: str) -> None:
        """Delete all sessions of somebody."""
        await self.session.execute(delete(SessionRow).where(SessionRow.issuer == issuer, SessionRow.subject == subject))

    async def end_bootstrap(self, administrator: str) -> None:
        """From now on the bootstrap token is void, and so are the sessions that it has opened. Idempotent."""
        if await self.session.get(BootstrapEnd, 1) is None:
            self.session.add(BootstrapEnd(id=1, at=self._clock.now(), administrator=administrator))
            await self.session.execute(delete(SessionRow).where(SessionRow.credential == "admin-token"))

    async def bootstrap_ended(self) -> bool:
        """Whether there is a first administrator, so that the bootstrap token is void."""
        return await self.session.get(BootstrapEnd, 1) is not None

    async def end_sessions(self, *, digest: str = "", before: datetime | None = None, idle_since: datetime | None = None) -> None:
        """Delete one session, or those whose end came before a moment or that nobody has used in the console since one."""
        if digest:
            await self.session.execute(delete(SessionRow).where(SessionRow.digest == digest))
        if before is not None:
            await self.session.execute(delete(SessionRow).where(SessionRow.ends_at <= before))
        if idle_since is not None:
            await self.session.execute(delete(SessionRow).where(SessionRow.used_at <= idle_since, SessionRow.door != "rest"))

    # Requests.

    async def host_request(self, project: ProjectRef, request_id: str) -> HostRequest | None:
        """A request of this project; one of another project does not exist for it."""
        row = await self.session.get(HostRequest, request_id)
        return row if row and (row.domain, row.project) == (project.domain, project.project) else None

    async def host_request_by_id(self, request_id: str) -> HostRequest | None:
        """A request by its id alone, for the machine that holds its token."""
        return await self.session.get(HostRequest, request_id)

    async def host_requests(self, project: ProjectRef, *, limit: int, offset: int = 0, state: str = "") -> Sequence[HostRequest]:
        """So many of a project's requests: those that wait for a decision first, then oldest first."""
        query = select(HostRequest).where(*_of(HostRequest, project))
        if state:
            query = query.where(HostRequest.state == state)
        order = (HostRequest.state != "pending", HostRequest.created_at, HostRequest.id)
        return (await self.session.scalars(query.order_by(*order).limit(limit).offset(offset))).all()

    async def reserved_names(self, project: ProjectRef) -> set[str]:
        """The names that a project's requests have for their hosts. Names alone: there may be thousands of requests."""
        query = select(HostRequest.host).where(*_of(HostRequest, project), HostRequest.host != "")
        return set(await self.session.scalars(query))

    async def pending_count(self, project: ProjectRef) -> int:
        """How many requests wait for a decision."""
        query = select(func.count()).where(*_of(HostRequest, project), HostRequest.state == "pending")
        return int(await self.session.scalar(query) or 0)

    async def requests_state(self, project: ProjectRef) -> tuple[Any, ...]:
        """Something that differs once a project's requests have changed: how many there are in which state, and the times of the last."""
        query = select(HostRequest.state, func.count(), func.max(HostRequest.created_at), func.max(HostRequest.decided_at), func.max(HostRequest.host))
        rows = await self.session.execute(query.where(*_of(HostRequest, project)).group_by(HostRequest.state))
        return tuple(sorted(tuple(str(value) for value in row) for row in rows))

    async def requests_like(self, machine_id: str, key_digest: str) -> Sequence[HostRequest]:
        """Requests of any project with the same machine or the same key: they may be the same machine, or a clone of it."""
        query = select(HostRequest).where((HostRequest.machine_id == machine_id) | (HostRequest.key_digest == key_digest))
        return (await self.session.scalars(query.order_by(HostRequest.created_at))).all()

    async def requests_of_host(self, project: ProjectRef, host: str) -> Sequence[HostRequest]:
        """The requests (one, in practice) that a host came from."""
        query = select(HostRequest).where(*_of(HostRequest, project), HostRequest.host == host)
        return (await self.session.scalars(query)).all()

    # Rules of approval.

    async def approval_rule(self, project: ProjectRef, name: str) -> ApprovalRule | None:
        """A rule by name."""
        return await self.session.get(ApprovalRule, (project.domain, project.project, name))

    async def approval_rules(self, project: ProjectRef) -> Sequence[ApprovalRule]:
        """A project's rules by name."""
        found = await self.session.scalars(select(ApprovalRule).where(*_of(ApprovalRule, project)))
        return sorted(found, key=lambda row: row.name)  # not by the database: PostgreSQL's order depends on how it was set up

    # Groups.

    async def host_group(self, project: ProjectRef, name: str) -> HostGroup | None:
        """A group by name."""
        query = select(HostGroup).where(*_of(HostGroup, project), HostGroup.name == name)
        return (await self.session.scalars(query)).one_or_none()

    async def host_groups(self, project: ProjectRef) -> Sequence[HostGroup]:
        """A project's groups by name."""
        found = await self.session.scalars(select(HostGroup).where(*_of(HostGroup, project)))
        return sorted(found, key=lambda row: row.name)

    # The audit log.

    def audit(
        self, caller: Caller, where: ProjectRef | Scope, action: str, target: str, detail: Mapping[str, Any] | None = None, *, result: str = "Done"
    ) -> None:
        """Write down a change or a sign-in, in the same transaction as the change itself.

        Args:
            action: subject and verb, such as `host-group.create`.
            target: the name of what was changed.
            result: `Done`, or the code of the error that it ended with.
        """
        self.session.add(
            AuditEntry(
                at=self._clock.now(),
                actor=caller.name,
                credential=caller.credential,
                domain=where.domain,
                project=where.project,
                action=action,
                target=target[:253],
                detail=dict(detail or {}),
                issuer=caller.issuer,
                subject=caller.subject,
                source=caller.source[:64],
                door=caller.door,
                result=result,
            )
        )

    async def has_signed_in(self, subject: str, source: str) -> bool:
        """Whether somebody has signed in from that address before."""
        query = select(AuditEntry.id).where(AuditEntry.subject == subject, AuditEntry.source == source[:64])
        return await self.session.scalar(query.where(AuditEntry.action == "session.open", AuditEntry.result == "Done").limit(1)) is not None

    async def audit_entries(self, where: ProjectRef | Scope, *, limit: int, before: int | None = None) -> Sequence[AuditEntry]:
        """The newest entries of a part of the platform and of all below it, newest first; with `before`, those older than the entry of that id."""
        query = select(AuditEntry)
        if where.domain:
            query = query.where(AuditEntry.domain == where.domain)
        if where.project:
            query = query.where(AuditEntry.project == where.project)
        if before is not None:
            query = query.where(AuditEntry.id < before)
        return (await self.session.scalars(query.order_by(AuditEntry.id.desc()).limit(limit))).all()


def _of(table: type[HostRequest | ApprovalRule | HostGroup], project: ProjectRef) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """The two conditions that a row is this project's."""
    return table.domain == project.domain, table.project == project.project
