"""What several replicas have to share: wrong keys that were shown lately, and which older versions of Compass this schema still serves."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision: str | None = "0003"


def upgrade() -> None:
    """Add two tables. Versions that know the third schema go on working beside it."""
    op.create_table(
        "wrong_keys",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("source", sa.String(64), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_wrong_keys_source", "wrong_keys", ["source", "at"])
    op.create_index("ix_wrong_keys_at", "wrong_keys", ["at"])
    served = op.create_table("schema_serves", sa.Column("oldest", sa.String(32), primary_key=True))
    op.bulk_insert(served, [{"oldest": "0003"}])


def downgrade() -> None:
    """Back to the third schema; of what it knows, nothing is lost."""
    op.drop_table("schema_serves")
    op.drop_table("wrong_keys")
