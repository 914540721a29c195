"""Run by Alembic for each command, in the transaction of whoever called it (ckp.compass.store.schema)."""

from __future__ import annotations

from alembic import context

from ckp.compass.store.models import Base

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
