"""People and rights: domains and projects as objects, users, service accounts and their tokens, roles; an audit log that only grows."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision: str | None = "0005"

AUDIT_COLUMNS = {"issuer": 255, "subject": 255, "source": 64, "door": 16, "result": 32}
SESSION_COLUMNS = {"issuer": 255, "subject": 255, "door": 16}
TABLES = ("domains", "projects", "users", "service_accounts", "api_tokens", "role_bindings", "bootstrap_end")
KNOWN_PROJECTS = """
insert into projects (domain, name, display_name, created_at, created_by)
select domain, project, '', current_timestamp, '' from (
  select domain, project from host_keys union select domain, project from host_groups
  union select domain, project from host_requests union select domain, project from approval_rules
) as known
"""


def _moment(name: str, *, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def _word(name: str, size: int = 63, **more: Any) -> sa.Column[Any]:
    return sa.Column(name, sa.String(size), nullable=False, **more)


def upgrade() -> None:
    """Add tables and columns. Versions that know the third schema go on working beside it."""
    for column, size in AUDIT_COLUMNS.items():
        op.add_column("audit_log", _word(column, size, server_default=""))
    op.create_index("ix_audit_log_subject", "audit_log", ["subject", "source"])
    for column, size in SESSION_COLUMNS.items():
        op.add_column("sessions", _word(column, size, server_default=""))
    op.create_table("domains", _word("name", primary_key=True), _word("display_name", 200), _moment("created_at"), _word("created_by", 128))
    op.create_table(
        "projects",
        _word("domain", primary_key=True),
        _word("name", primary_key=True),
        _word("display_name", 200),
        _moment("created_at"),
        _word("created_by", 128),
    )
    op.create_table(
        "users",
        _word("issuer", 255, primary_key=True),
        _word("subject", 255, primary_key=True),
        _word("domain"),
        _word("name"),
        _word("display_name", 200),
        _word("password_hash", 255),
        sa.Column("disabled", sa.Boolean, nullable=False),
        _moment("created_at"),
        _word("created_by", 128),
        _moment("password_changed_at"),
        sa.UniqueConstraint("issuer", "domain", "name"),
    )
    op.create_table(
        "service_accounts",
        _word("subject", 255, primary_key=True),
        _word("domain"),
        _word("project"),
        _word("name"),
        sa.Column("description", sa.Text, nullable=False),
        _moment("created_at"),
        _word("created_by", 128),
        sa.UniqueConstraint("domain", "project", "name"),
    )
    op.create_table(
        "api_tokens",
        _word("id", 32, primary_key=True),
        _word("subject", 255),
        _word("digest", 64),
        sa.Column("description", sa.Text, nullable=False),
        _moment("created_at"),
        _word("created_by", 128),
        _moment("expires_at"),
        _moment("last_used_at", nullable=True),
        sa.UniqueConstraint("digest"),
    )
    op.create_index("ix_api_tokens_subject", "api_tokens", ["subject"])
    op.create_table(
        "role_bindings",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        _word("issuer", 255),
        _word("subject", 255),
        _word("role", 32),
        _word("domain"),
        _word("project"),
        _moment("created_at"),
        _word("created_by", 128),
        sa.UniqueConstraint("issuer", "subject", "role", "domain", "project"),
    )
    op.create_table("bootstrap_end", sa.Column("id", sa.Integer, primary_key=True, autoincrement=False), _moment("at"), _word("administrator", 128))
    _known_projects()
    _append_only()


def _known_projects() -> None:
    """Projects began with their first key, group or request until now."""
    op.execute(KNOWN_PROJECTS)
    op.execute("insert into domains (name, display_name, created_at, created_by) select distinct domain, '', current_timestamp, '' from projects")


def _append_only() -> None:
    refused = "entries of the audit log are neither changed nor deleted"
    if op.get_bind().dialect.name == "postgresql":
        op.execute(f"create or replace function audit_log_only_grows() returns trigger language plpgsql as $$ begin raise exception '{refused}'; end $$")
        op.execute("create trigger audit_log_only_grows before update or delete on audit_log for each row execute function audit_log_only_grows()")
        return
    for verb in ("update", "delete"):
        op.execute(f"create trigger audit_log_no_{verb} before {verb} on audit_log begin select raise(abort, '{refused}'); end")


def downgrade() -> None:
    """Back to the fifth schema: whoever signed in by a password is out, and the bootstrap token is good again."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute("drop trigger audit_log_only_grows on audit_log")
        op.execute("drop function audit_log_only_grows()")
    else:
        for verb in ("update", "delete"):
            op.execute(f"drop trigger audit_log_no_{verb}")
    op.execute("delete from sessions where subject <> ''")
    for table in TABLES:
        op.drop_table(table)
    for column in SESSION_COLUMNS:
        op.drop_column("sessions", column)
    op.drop_index("ix_audit_log_subject", "audit_log")
    for column in AUDIT_COLUMNS:
        op.drop_column("audit_log", column)
