"""The versions of Compass' database: what is lost when one is taken back, and which can't be. The steps themselves are ckp.compass.store.migrations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ckp.kits.errors import Conflict


@dataclass(frozen=True)
class Schema:
    """One version.

    Args:
        loses: what is lost when it is taken back to the version before.
        irreversible: why it can't be taken back; empty if it can.
    """

    name: str
    loses: str = ""
    irreversible: str = ""


SCHEMAS = (
    Schema("0001", irreversible="it is the first one"),
    Schema("0002", "expiries and counts of enrolment keys, what is known of duplicates, and approval rules"),
    Schema("0003", "by which credential changes in the audit log were made"),
    Schema("0004", "wrong keys that were shown lately"),
    Schema("0005", "sessions in the console: people sign in again"),
    Schema("0006", "users, roles, service accounts and the names of projects: people sign in by the bootstrap token again, which is good again"),
)
HEAD = SCHEMAS[-1].name


def way_back(newest: str, target: str, known: Sequence[Schema] = SCHEMAS) -> list[Schema]:
    """The versions that are taken back, the newest first; none if `newest` is the target.

    Raises:
        Conflict: one of them can't be taken back, or one is not known, or the target is the newer one.
    """
    names = [schema.name for schema in known]
    for name in (newest, target):
        if name not in names:
            raise Conflict(f"the schema {name} of Compass' database is not one that this version of CKP knows (up to {names[-1]})")
    if names.index(target) > names.index(newest):
        raise Conflict(f"Compass' database has schema {newest}, and can't be taken back to {target}, which is newer")
    taken = [schema for schema in reversed(known) if names.index(target) < names.index(schema.name) <= names.index(newest)]
    if stuck := next((schema for schema in taken if schema.irreversible), None):
        raise Conflict(f"schema {stuck.name} of Compass' database can't be taken back: {stuck.irreversible}")
    return taken
