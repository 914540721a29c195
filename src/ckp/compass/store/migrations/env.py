"""Run by Alembic for each command; the URL comes from whoever called it (store.database.migrate)."""

from __future__ import annotations

from typing import Any

from alembic import context
from sqlalchemy import create_engine, event
from sqlalchemy.pool import NullPool

from ckp.compass.store.models import Base

url = context.config.get_main_option("sqlalchemy.url") or ""
engine = create_engine(url, poolclass=NullPool)


# Python's sqlite3 starts no transaction for DDL by itself; with ours, a migration that breaks in the middle leaves nothing behind.
@event.listens_for(engine, "connect")
def _leave_transactions_to_us(connection: Any, _record: Any) -> None:
    connection.isolation_level = None


@event.listens_for(engine, "begin")
def _begin(connection: Any) -> None:
    connection.exec_driver_sql("begin immediate")


with engine.connect() as connection:
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True, transactional_ddl=True)
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
