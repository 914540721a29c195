"""A project's pre-shared key: what an agent shows so that its request reaches a person."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from datetime import timedelta

from ckp.api.compass.projects import KeyRequest, KeyView
from ckp.compass.errors import WrongKey
from ckp.compass.identity import Caller, ProjectRef
from ckp.compass.store.database import Database
from ckp.compass.store.models import HostKey
from ckp.compass.store.unit import Unit
from ckp.kits.clock import Clock, rfc3339

PREFIX = "ckphk_"
"""So that secret scanners and people recognise it."""

_SHOWN_NOW = "store this key now: Compass keeps only its hash"
_SHOWN_BEFORE = "the key was shown when it was made; reset it to get a new one (POST host-psk/reset)"
_ANOTHER = "ask for a new key: `ckp host psk --reset` makes one"


def digest(salt: bytes, key: str) -> bytes:
    """The stored form. The key is 256 random bits, so a plain salted SHA-256 cannot be searched, and a wrong try costs the server nothing."""
    return hashlib.sha256(salt + key.encode()).digest()


class HostKeys:
    """Use cases around pre-shared keys."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def get(self, caller: Caller, project: ProjectRef) -> KeyView:
        """The project's key: made, and shown this once, if there is none; else only what is known about it."""
        async with self._database.unit() as unit:
            row = await unit.host_key(project)
            if row is None:
                return self._make(unit, caller, project, "host-psk.create", None, KeyRequest())
            return _view(row)

    async def reset(self, caller: Caller, project: ProjectRef, request: KeyRequest) -> KeyView:
        """A new key, shown this once; the old one is void at once. Hosts that are enrolled already are not touched."""
        async with self._database.unit() as unit:
            row = await unit.host_key(project)
            return self._make(unit, caller, project, "host-psk.reset", row, request)

    async def matching(self, unit: Unit, project: ProjectRef, key: str) -> HostKey | None:
        """The project's key if `key` is it, in the same time whether the project has one or not."""
        row = await unit.host_key(project)
        salt, expected = (row.salt, row.digest) if row else (bytes(32), secrets.token_bytes(32))
        return row if hmac.compare_digest(digest(salt, key), expected) else None

    def spend(self, row: HostKey) -> None:
        """Count a machine that asks with this key.

        Raises:
            WrongKey: it has expired or was used up. Only those who have the key learn that.
        """
        now = self._clock.now()
        if row.expires_at and now >= row.expires_at:
            raise WrongKey(f"the pre-shared key expired at {rfc3339(row.expires_at)}", resolution=_ANOTHER)
        if row.max_uses is not None and row.use_count >= row.max_uses:
            raise WrongKey(f"the pre-shared key was for {row.max_uses} machines, and that many have used it", resolution=_ANOTHER)
        row.use_count += 1
        row.last_used_at = now

    def _make(
        self,
        unit: Unit,
        caller: Caller,
        project: ProjectRef,
        action: str,
        row: HostKey | None,
        request: KeyRequest,
    ) -> KeyView:
        key = PREFIX + secrets.token_urlsafe(32)
        if row is None:
            row = HostKey(domain=project.domain, project=project.project)
            unit.session.add(row)
        row.salt = secrets.token_bytes(32)
        row.digest = digest(row.salt, key)
        row.created_at = self._clock.now()
        row.use_count = 0
        row.last_used_at = None
        row.expires_at = row.created_at + timedelta(seconds=request.lifetime_seconds) if request.lifetime_seconds else None
        row.max_uses = request.max_uses
        limits = {"expiresAt": rfc3339(row.expires_at) if row.expires_at else None, "maxUses": row.max_uses}
        unit.audit(caller, project, action, "host-psk", limits if row.expires_at or row.max_uses else None)
        return _view(row, key)


def _view(row: HostKey, key: str | None = None) -> KeyView:
    return KeyView(
        created_at=row.created_at,
        use_count=row.use_count,
        last_used_at=row.last_used_at,
        expires_at=row.expires_at,
        max_uses=row.max_uses,
        key=key,
        message=_SHOWN_NOW if key else _SHOWN_BEFORE,
    )
