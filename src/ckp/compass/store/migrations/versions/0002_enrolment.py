"""Keys that end, requests of machines that look like a host that is there, rules that approve."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision: str | None = "0001"


def upgrade() -> None:
    """Add what enrolment came to need."""
    op.add_column("host_keys", sa.Column("expires_at", sa.DateTime(timezone=True)))
    op.add_column("host_keys", sa.Column("max_uses", sa.Integer))
    op.add_column("host_requests", sa.Column("duplicate_of", sa.String(63), nullable=False, server_default=""))
    op.add_column("host_requests", sa.Column("duplicate_why", sa.String(16), nullable=False, server_default=""))
    op.create_table(
        "approval_rules",
        sa.Column("domain", sa.String(63), primary_key=True),
        sa.Column("project", sa.String(63), primary_key=True),
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("criteria", sa.JSON, nullable=False),
        sa.Column("groups", sa.JSON, nullable=False),
        sa.Column("approved", sa.Integer, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.String(128), nullable=False),
    )


def downgrade() -> None:
    """Back to the first tables."""
    op.drop_table("approval_rules")
    for table, column in (("host_requests", "duplicate_why"), ("host_requests", "duplicate_of"), ("host_keys", "max_uses"), ("host_keys", "expires_at")):
        op.drop_column(table, column)
