"""Rows by name, inside one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from ckp.compass.store.models import ApprovalRule, AuditEntry, HostGroup, HostKey, HostRequest


class Unit:
    """One transaction's view of all tables."""

    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    # Keys.

    async def host_key(self, domain: str, project: str) -> HostKey | None:
        """The project's key, or None if it has none yet."""
        return await self.session.get(HostKey, (domain, project))

    # Requests.

    async def host_request(self, domain: str, project: str, request_id: str) -> HostRequest | None:
        """A request of this project; one of another project does not exist for it."""
        row = await self.session.get(HostRequest, request_id)
        return row if row and (row.domain, row.project) == (domain, project) else None

    async def host_request_by_id(self, request_id: str) -> HostRequest | None:
        """A request by its id alone, for the machine that holds its token."""
        return await self.session.get(HostRequest, request_id)

    async def host_requests(self, domain: str, project: str, *, limit: int, offset: int = 0, state: str = "") -> Sequence[HostRequest]:
        """So many of a project's requests: those that wait for a decision first, then oldest first."""
        query = select(HostRequest).where(HostRequest.domain == domain, HostRequest.project == project)
        if state:
            query = query.where(HostRequest.state == state)
        order = (HostRequest.state != "pending", HostRequest.created_at, HostRequest.id)
        return (await self.session.scalars(query.order_by(*order).limit(limit).offset(offset))).all()

    async def reserved_names(self, domain: str, project: str) -> set[str]:
        """The names that a project's requests have for their hosts. Names alone: there may be thousands of requests."""
        query = select(HostRequest.host).where(HostRequest.domain == domain, HostRequest.project == project, HostRequest.host != "")
        return set(await self.session.scalars(query))

    async def pending_count(self, domain: str, project: str) -> int:
        """How many requests wait for a decision."""
        query = select(func.count()).where(HostRequest.domain == domain, HostRequest.project == project, HostRequest.state == "pending")
        return int(await self.session.scalar(query) or 0)

    async def requests_like(self, machine_id: str, key_digest: str) -> Sequence[HostRequest]:
        """Requests of any project with the same machine or the same key: they may be the same machine, or a clone of it."""
        query = select(HostRequest).where((HostRequest.machine_id == machine_id) | (HostRequest.key_digest == key_digest))
        return (await self.session.scalars(query.order_by(HostRequest.created_at))).all()

    async def requests_of_host(self, domain: str, project: str, host: str) -> Sequence[HostRequest]:
        """The requests (one, in practice) that a host came from."""
        query = select(HostRequest).where(HostRequest.domain == domain, HostRequest.project == project, HostRequest.host == host)
        return (await self.session.scalars(query)).all()

    # Rules of approval.

    async def approval_rule(self, domain: str, project: str, name: str) -> ApprovalRule | None:
        """A rule by name."""
        return await self.session.get(ApprovalRule, (domain, project, name))

    async def approval_rules(self, domain: str, project: str) -> Sequence[ApprovalRule]:
        """A project's rules by name."""
        query = select(ApprovalRule).where(ApprovalRule.domain == domain, ApprovalRule.project == project).order_by(ApprovalRule.name)
        return (await self.session.scalars(query)).all()

    # Groups.

    async def host_group(self, domain: str, project: str, name: str) -> HostGroup | None:
        """A group by name."""
        query = select(HostGroup).where(HostGroup.domain == domain, HostGroup.project == project, HostGroup.name == name)
        return (await self.session.scalars(query)).one_or_none()

    async def host_groups(self, domain: str, project: str) -> Sequence[HostGroup]:
        """A project's groups by name."""
        query = select(HostGroup).where(HostGroup.domain == domain, HostGroup.project == project).order_by(HostGroup.name)
        return (await self.session.scalars(query)).all()

    # The audit log.

    def audit(self, at: datetime, actor: str, domain: str, project: str, action: str, target: str, detail: dict[str, Any] | None = None) -> None:
        """Write down a change, in the same transaction as the change itself."""
        self.session.add(AuditEntry(at=at, actor=actor, domain=domain, project=project, action=action, target=target, detail=detail or {}))

    async def audit_entries(self, domain: str, project: str, *, limit: int) -> Sequence[AuditEntry]:
        """The newest entries of a project, newest first."""
        query = select(AuditEntry).where(AuditEntry.domain == domain, AuditEntry.project == project)
        return (await self.session.scalars(query.order_by(AuditEntry.id.desc()).limit(limit))).all()
