"""The tables. State of clusters and hosts lives in Kubernetes; here lie keys, requests, groups and the audit log."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, Boolean, DateTime, Dialect, Index, Integer, LargeBinary, String, Text, TypeDecorator, UniqueConstraint, text
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
    """One change or sign-in: who asked for it, from where, through which door, and what came of it. Triggers refuse to change or delete a row."""

    __tablename__ = "audit_log"
    __table_args__ = (Index("ix_audit_log_at", "at"), Index("ix_audit_log_subject", "subject", "source"))

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    at: Mapped[datetime] = mapped_column(UtcTime())
    actor: Mapped[str] = mapped_column(String(128))
    credential: Mapped[str] = mapped_column(String(32), default="")
    domain: Mapped[str] = mapped_column(String(63))
    project: Mapped[str] = mapped_column(String(63))
    action: Mapped[str] = mapped_column(String(64))
    target: Mapped[str] = mapped_column(String(253))
    detail: Mapped[dict[str, Any]] = mapped_column(JSON)
    issuer: Mapped[str] = mapped_column(String(255), default="", server_default="")
    subject: Mapped[str] = mapped_column(String(255), default="", server_default="")
    source: Mapped[str] = mapped_column(String(64), default="", server_default="")
    door: Mapped[str] = mapped_column(String(16), default="", server_default="")
    result: Mapped[str] = mapped_column(String(32), default="", server_default="")


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
    issuer: Mapped[str] = mapped_column(String(255), default="", server_default="")
    subject: Mapped[str] = mapped_column(String(255), default="", server_default="")
    door: Mapped[str] = mapped_column(String(16), default="", server_default="")


class DomainRow(Base):
    """A domain: the first level of tenancy."""

    __tablename__ = "domains"

    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    display_name: Mapped[str] = mapped_column(String(200), default="")
    created_at: Mapped[datetime] = mapped_column(UtcTime())
    created_by: Mapped[str] = mapped_column(String(128), default="")


class ProjectRow(Base):
    """A project of a domain. Its hosts and clusters are in its namespace."""

    __tablename__ = "projects"

    domain: Mapped[str] = mapped_column(String(63), primary_key=True)
    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    display_name: Mapped[str] = mapped_column(String(200), default="")
    created_at: Mapped[datetime] = mapped_column(UtcTime())
    created_by: Mapped[str] = mapped_column(String(128), default="")


class UserRow(Base):
    """A person. Issuer and subject are the identity: of local users the issuer is Compass, and the subject a random id, so that a name that is given
    again is somebody else. The name is what they sign in by; it is unique in its domain (empty: the platform's own people)."""

    __tablename__ = "users"
    __table_args__ = (UniqueConstraint("issuer", "domain", "name"),)

    issuer: Mapped[str] = mapped_column(String(255), primary_key=True)
    subject: Mapped[str] = mapped_column(String(255), primary_key=True)
    domain: Mapped[str] = mapped_column(String(63))
    name: Mapped[str] = mapped_column(String(63))
    display_name: Mapped[str] = mapped_column(String(200), default="")
    password_hash: Mapped[str] = mapped_column(String(255), default="")
    disabled: Mapped[bool] = mapped_column(Boolean, default=False)
    created_at: Mapped[datetime] = mapped_column(UtcTime())
    created_by: Mapped[str] = mapped_column(String(128))
    password_changed_at: Mapped[datetime] = mapped_column(UtcTime())


class ServiceAccountRow(Base):
    """What a program of a project acts as."""

    __tablename__ = "service_accounts"
    __table_args__ = (UniqueConstraint("domain", "project", "name"),)

    subject: Mapped[str] = mapped_column(String(255), primary_key=True)
    domain: Mapped[str] = mapped_column(String(63))
    project: Mapped[str] = mapped_column(String(63))
    name: Mapped[str] = mapped_column(String(63))
    description: Mapped[str] = mapped_column(Text, default="")
    created_at: Mapped[datetime] = mapped_column(UtcTime())
    created_by: Mapped[str] = mapped_column(String(128))


class ApiTokenRow(Base):
    """A token of a service account. It was shown once; here is its hash."""

    __tablename__ = "api_tokens"
    __table_args__ = (UniqueConstraint("digest"), Index("ix_api_tokens_subject", "subject"))

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    subject: Mapped[str] = mapped_column(String(255))
    digest: Mapped[str] = mapped_column(String(64))
    description: Mapped[str] = mapped_column(Text, default="")
    created_at: Mapped[datetime] = mapped_column(UtcTime())
    created_by: Mapped[str] = mapped_column(String(128))
    expires_at: Mapped[datetime] = mapped_column(UtcTime())
    last_used_at: Mapped[datetime | None] = mapped_column(UtcTime())


class RoleBindingRow(Base):
    """A role of somebody in a part of the platform: all of it if both names are empty, a domain if the project is."""

    __tablename__ = "role_bindings"
    __table_args__ = (UniqueConstraint("issuer", "subject", "role", "domain", "project"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    issuer: Mapped[str] = mapped_column(String(255))
    subject: Mapped[str] = mapped_column(String(255))
    role: Mapped[str] = mapped_column(String(32))
    domain: Mapped[str] = mapped_column(String(63))
    project: Mapped[str] = mapped_column(String(63))
    created_at: Mapped[datetime] = mapped_column(UtcTime())
    created_by: Mapped[str] = mapped_column(String(128))


class BootstrapEnd(Base):
    """One row once the bootstrap token is void: since when, and who became the first administrator."""

    __tablename__ = "bootstrap_end"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    at: Mapped[datetime] = mapped_column(UtcTime())
    administrator: Mapped[str] = mapped_column(String(128))


class SchemaServes(Base):
    """One row: the oldest version of the schema whose Compass works with this one as well (store.schema)."""

    __tablename__ = "schema_serves"

    oldest: Mapped[str] = mapped_column(String(32), primary_key=True)
