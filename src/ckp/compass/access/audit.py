"""The audit log: every change and every sign-in, who, what, from where, through which door, and with which result."""

from __future__ import annotations

import base64
import binascii

from ckp.api.compass.projects import AuditPage, AuditView
from ckp.compass.identity import Caller, ProjectRef, Scope
from ckp.compass.store.database import Database
from ckp.compass.store.models import AuditEntry
from ckp.kits.errors import InvalidInput

MOST = 1000


class AuditLog:
    """Reads the log; the services write it, each change in the transaction of the change itself, and the guard writes what was refused or failed."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list(self, where: ProjectRef | Scope, limit: int, page_token: str = "") -> AuditPage:
        """The newest entries of a part of the platform and of all below it, newest first.

        Args:
            page_token: of the answer before, for those that are older.

        Raises:
            InvalidInput: it is not one that an answer gave.
        """
        before = _decoded(page_token) if page_token else None
        async with self._database.reading() as unit:
            rows = await unit.audit_entries(where, limit=min(limit, MOST) + 1, before=before)
        shown = rows[: min(limit, MOST)]
        return AuditPage(items=[_view(row) for row in shown], next_page_token=_encoded(shown[-1].id) if len(rows) > len(shown) else "")

    async def note(self, caller: Caller, where: ProjectRef | Scope, action: str, target: str, result: str, error: str) -> None:
        """Write down what was refused or failed."""
        async with self._database.unit() as unit:
            unit.audit(caller, where, action, target, {"error": error[:500]}, result=result)


def _encoded(number: int) -> str:
    return base64.urlsafe_b64encode(f"before {number}".encode()).decode().rstrip("=")


def _decoded(token: str) -> int:
    try:
        word, number = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode().split(" ")
        if word == "before":
            return int(number)
    except (binascii.Error, ValueError):
        pass
    raise InvalidInput(f"pageToken: {token[:40]!r} is not one that Compass gave", resolution="take nextPageToken of the page before, or leave it out")


def _view(entry: AuditEntry) -> AuditView:
    return AuditView(
        id=entry.id,
        at=entry.at,
        actor=entry.actor,
        credential=entry.credential,
        action=entry.action,
        target=entry.target,
        detail=entry.detail,
        domain=entry.domain,
        project=entry.project,
        issuer=entry.issuer,
        subject=entry.subject,
        source=entry.source,
        door=entry.door,
        result=entry.result,
    )
