"""The schema's versions: brought up to date when Compass starts, once, however many replicas start; and taken one version back.

Migrations run in one transaction, under a lock: PostgreSQL's advisory lock, or SQLite's own of the file. One that breaks leaves all as it was.
Rules for a new one: it adds; what it replaces is removed by a later version, when none that needs it is left; `schema_serves` says which the oldest
version is that still works with it. So the replicas before a roll work on, and one of them that starts again does, too.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, inspect, text

from ckp import __version__
from ckp.compass.store.places import MIGRATIONS, Place
from ckp.kits.errors import CkpError, Conflict
from ckp.rules.schemas import way_back

log = structlog.get_logger("compass.schema")

FOLDER = Path(__file__).with_name("migrations")
TURN_SECONDS = 60
"""How long a replica waits while another one migrates."""
TABLE_SECONDS = 10
"""How long a migration waits for requests that use a table: those after it would wait behind it."""
_ALEMBIC = threading.Lock()  # its context is one for the process


def head() -> str:
    """The newest version that this Compass knows."""
    found = ScriptDirectory(str(FOLDER)).get_current_head()
    assert found is not None
    return found


def bring_up(place: Place) -> None:
    """Bring the schema up to date; nothing is done where it is.

    Raises:
        Conflict: it is of a newer version that no longer serves this one; nothing was changed.
        CkpError: a migration could not be read.
        SQLAlchemyError: the database does not answer, or a migration failed; nothing was changed.
    """
    with migrating(place) as (connection, config):
        found = version_of(connection)
        if found is None and (adopted := _without_version(connection)):
            log.info("the schema has no version and is adopted", schema=adopted)
            command.stamp(config, adopted)
        elif found is not None and not is_known(found):
            _require_served(place, connection, found)
            return
        command.upgrade(config, "head")
        if found != head():
            log.info("the schema is up to date", before=found or "none", schema=head(), database=place.dialect)


def take_back(place: Place, to: str = "") -> tuple[str, str]:
    """Take the schema back, for a version of Compass before this one: (from, to).

    Args:
        to: the schema that it is to have; the one before if empty. Nothing is done where it has that one.

    Raises:
        Conflict: there is no version before, one of those between can't be taken back (ckp.rules.schemas), or the schema is not one that this
            Compass knows; nothing was changed.
    """
    with migrating(place) as (connection, config):
        found = version_of(connection)
        before = ScriptDirectory(str(FOLDER)).get_revision(found).down_revision if found and is_known(found) else None
        target = to or before
        if found is None or not isinstance(target, str):
            raise Conflict(
                f"the database {place} has schema {found or 'none'}, and this Compass ({__version__}, schema {head()}) can't take that back",
                resolution="take it back with the version that made it",
            )
        if way_back(found, target):
            command.downgrade(config, target)
        return found, target


@contextmanager
def migrating(place: Place) -> Iterator[tuple[Connection, Config]]:
    """A transaction in which nobody else changes the schema, and Alembic's settings for it; committed when the block ends well.

    Raises:
        CkpError: Alembic can't do what it was asked for.
        SQLAlchemyError: the database does not answer, or refuses.
    """
    engine = place.migration_engine()
    try:
        with _ALEMBIC, engine.connect() as connection, connection.begin():
            if place.dialect == "postgresql":
                connection.execute(text(f"set local lock_timeout = '{TURN_SECONDS}s'"))
                connection.execute(text(f"select pg_advisory_xact_lock({MIGRATIONS})"))
                connection.execute(text(f"set local lock_timeout = '{TABLE_SECONDS}s'"))
            config = Config()
            config.set_main_option("script_location", str(FOLDER))
            config.attributes["connection"] = connection
            try:
                yield connection, config
            except CommandError as error:
                raise CkpError(f"the schema of {place} can't be migrated: {error}", resolution="the database is unchanged; report this") from error
    finally:
        engine.dispose()


def version_of(connection: Connection) -> str | None:
    """The schema's version, as the migrations name it; None if it has none."""
    return MigrationContext.configure(connection).get_current_revision()


def is_known(version: str) -> bool:
    """Whether this Compass has the migration that makes this version."""
    return any(script.revision == version for script in ScriptDirectory(str(FOLDER)).walk_revisions())


def _without_version(connection: Connection) -> str:
    """The version of tables that were made from the models, without Alembic; empty if there are none."""
    seen = inspect(connection)
    tables = set(seen.get_table_names())
    if "host_keys" not in tables:
        return ""
    if "approval_rules" not in tables:
        return "0001"
    return "0003" if any(column["name"] == "credential" for column in seen.get_columns("audit_log")) else "0002"


def _require_served(place: Place, connection: Connection, found: str) -> None:
    oldest = ""
    if "schema_serves" in inspect(connection).get_table_names():
        oldest = str(connection.execute(text("select oldest from schema_serves")).scalar() or "")
    if oldest and oldest <= head():
        log.warning("the schema is of a newer Compass, and serves this one as well", schema=found, own=head())
        return
    serves = f"serves versions from schema {oldest} on" if oldest else "does not say that it serves older versions"
    raise Conflict(
        f"the database {place} is of a newer Compass: it has schema {found}, which {serves}; this one ({__version__}) knows schemas up to {head()}",
        resolution="run the version that made it, or one that is newer; or let that version take the schema back first "
        "(python -m ckp.compass --schema-back), or restore a backup that this version made; the database is unchanged",
    )
