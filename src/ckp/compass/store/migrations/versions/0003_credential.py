"""By which credential the actor of a change was recognised."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision: str | None = "0002"


def upgrade() -> None:
    """Entries of before have none."""
    op.add_column("audit_log", sa.Column("credential", sa.String(32), nullable=False, server_default=""))


def downgrade() -> None:
    """Back to entries with an actor alone."""
    op.drop_column("audit_log", "credential")
