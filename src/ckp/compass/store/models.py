"""The tables. State of clusters and hosts lives in Kubernetes; here lie keys, requests, groups and the audit log."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, DateTime, Dialect, Index, Integer, LargeBinary, String, Text, TypeDecorator, UniqueConstraint, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class UtcTime(TypeDecorator[datetime]):
    """A moment in UTC, with its zone also where the database (SQLite) keeps none."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.astimezone(UTC) if value else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """All tables of Compass."""


class HostKey(Base):
    """A project's pre-shared key, as a salted hash."""

    __tablename__ = "host_keys"

    domain: Mapped[str] = mapped_column(String(63), primary_key=True)
    project: Mapped[str] = mapped_column(String(63), primary_key=True)
    salt: Mapped[bytes] = mapped_column(LargeBinary(32))
    digest: Mapped[bytes] = mapped_column(LargeBinary(32))
    created_at: Mapped[datetime] = mapped_column(UtcTime())
    use_count: Mapped[int] = mapped_column(Integer, default=0)
    last_used_at: Mapped[datetime | None] = mapped_column(UtcTime())
    expires_at: Mapped[datetime | None] = mapped_column(UtcTime())
    max_uses: Mapped[int | None] = mapped_column(Integer)


class HostRequest(Base):
    """A machine that asks to become a host."""

    __tablename__ = "host_requests"
    __table_args__ = (
        Index("ix_host_requests_project", "domain", "project", "created_at"),
        Index("ix_host_requests_machine", "machine_id"),
        # A host's name is reserved before its object is made, so two approvals at once can never give the same one.
        Index(
            "ux_host_requests_host",
            "domain",
            "project",
            "host",
            unique=True,
            sqlite_where=text("host <> ''"),
            postgresql_where=text("host <> ''"),
        ),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    domain: Mapped[str] = mapped_column(String(63))
    project: Mapped[str] = mapped_column(String(63))
    machine_id: Mapped[str] = mapped_column(String(32))
    key_digest: Mapped[str] = mapped_column(String(64))
    csr: Mapped[str] = mapped_column(Text)
    facts: Mapped[dict[str, Any]] = mapped_column(JSON)
    token_digest: Mapped[str] = mapped_column(String(64))
    source: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16), default="pending")
    reason: Mapped[str] = mapped_column(Text, default="")
    host: Mapped[str] = mapped_column(String(63), default="")
    certificate: Mapped[str] = mapped_column(Text, default="")
    created_at: Mapped[datetime] = mapped_column(UtcTime())
    decided_at: Mapped[datetime | None] = mapped_column(UtcTime())
    decided_by: Mapped[str] = mapped_column(String(128), default="")
    duplicate_of: Mapped[str] = mapped_column(String(63), default="")
    duplicate_why: Mapped[str] = mapped_column(String(16), default="")


class ApprovalRule(Base):
    """Which machines become hosts without a person's decision, and in which groups."""

    __tablename__ = "approval_rules"

    domain: Mapped[str] = mapped_column(String(63), primary_key=True)
    project: Mapped[str] = mapped_column(String(63), primary_key=True)
    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    criteria: Mapped[dict[str, Any]] = mapped_column(JSON)
    groups: Mapped[list[str]] = mapped_column(JSON)
    approved: Mapped[int] = mapped_column(Integer, default=0)
    created_at: Mapped[datetime] = mapped_column(UtcTime())
    created_by: Mapped[str] = mapped_column(String(128))


class HostGroup(Base):
    """A named set of hosts; who is in it stands on the hosts (a label of ByoHost)."""

    __tablename__ = "host_groups"
    __table_args__ = (UniqueConstraint("domain", "project", "name"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    domain: Mapped[str] = mapped_column(String(63))
    project: Mapped[str] = mapped_column(String(63))
    name: Mapped[str] = mapped_column(String(63))
    description: Mapped[str] = mapped_column(Text, default="")
    created_at: Mapped[datetime] = mapped_column(UtcTime())


class AuditEntry(Base):
    """One change, and who asked for it."""

    __tablename__ = "audit_log"
    __table_args__ = (Index("ix_audit_log_at", "at"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    at: Mapped[datetime] = mapped_column(UtcTime())
    actor: Mapped[str] = mapped_column(String(128))
    credential: Mapped[str] = mapped_column(String(32), default="")
    domain: Mapped[str] = mapped_column(String(63))
    project: Mapped[str] = mapped_column(String(63))
    action: Mapped[str] = mapped_column(String(64))
    target: Mapped[str] = mapped_column(String(253))
    detail: Mapped[dict[str, Any]] = mapped_column(JSON)


class WrongKey(Base):
    """A wrong pre-shared key that somebody has shown, for as long as it counts (access.rate)."""

    __tablename__ = "wrong_keys"
    __table_args__ = (Index("ix_wrong_keys_source", "source", "at"), Index("ix_wrong_keys_at", "at"))

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    source: Mapped[str] = mapped_column(String(64))
    at: Mapped[datetime] = mapped_column(UtcTime())


class SessionRow(Base):
    """A session of a person in the console (access.sessions). Whoever reads the table can't take one over: it has no id, only its hash."""

    __tablename__ = "sessions"
    __table_args__ = (Index("ix_sessions_ends_at", "ends_at"),)

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(128))
    credential: Mapped[str] = mapped_column(String(32))
    token_digest: Mapped[str] = mapped_column(String(64))
    source: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(UtcTime())
    used_at: Mapped[datetime] = mapped_column(UtcTime())
    ends_at: Mapped[datetime] = mapped_column(UtcTime())


class SchemaServes(Base):
    """One row: the oldest version of the schema whose Compass works with this one as well (store.schema)."""

    __tablename__ = "schema_serves"

    oldest: Mapped[str] = mapped_column(String(32), primary_key=True)
