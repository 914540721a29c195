"""A project's pre-shared key: what an agent shows to be let in front of a person."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta

from ckp.compass.access.projects import ProjectRef
from ckp.compass.errors import WrongKey
from ckp.compass.store.database import Database
from ckp.compass.store.models import HostKey
from ckp.compass.store.unit import Unit
from ckp.kits.clock import Clock, rfc3339

PREFIX = "ckphk_"
"""So that secret scanners, and people, know what they see."""

_ANOTHER = "ask for a new key: `ckp host psk --reset` makes one"


@dataclass(frozen=True)
class KeyView:
    """What is known of a key; `key` only in the answer that made it."""

    created_at: datetime
    use_count: int
    last_used_at: datetime | None
    expires_at: datetime | None = None
    max_uses: int | None = None
    key: str | None = None


def digest(salt: bytes, key: str) -> bytes:
    """The stored form. The key is 256 random bits, so a plain salted SHA-256 cannot be searched, and a wrong try costs the server nothing."""
    return hashlib.sha256(salt + key.encode()).digest()


class HostKeys:
    """Use cases around pre-shared keys."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def get(self, actor: str, project: ProjectRef) -> KeyView:
        """The project's key: made, and shown this once, if there is none; else only what is known about it."""
        async with self._database.unit() as unit:
            row = await unit.host_key(project.domain, project.project)
            if row is None:
                return self._make(unit, actor, project, "host-psk.create")
            return _view(row)

    async def reset(self, actor: str, project: ProjectRef, *, lifetime: timedelta | None = None, max_uses: int | None = None) -> KeyView:
        """A new key, shown this once; the old one is void at once. Hosts that are enrolled already are not touched.

        Args:
            lifetime: after it the key lets nobody in; None: until it is reset.
            max_uses: so many machines may ask with it; None: any number.
        """
        async with self._database.unit() as unit:
            row = await unit.host_key(project.domain, project.project)
            return self._make(unit, actor, project, "host-psk.reset", row, lifetime, max_uses)

    async def matching(self, unit: Unit, project: ProjectRef, key: str) -> HostKey | None:
        """The project's key if `key` is it, in the same time whether the project has one or not."""
        row = await unit.host_key(project.domain, project.project)
        salt, expected = (row.salt, row.digest) if row else (bytes(32), secrets.token_bytes(32))
        return row if hmac.compare_digest(digest(salt, key), expected) else None

    def spend(self, row: HostKey) -> None:
        """Count a machine that asks with this key. WrongKey: the key has ended; said only to those who have it."""
        now = self._clock.now()
        if row.expires_at and now >= row.expires_at:
            raise WrongKey(f"the pre-shared key expired at {rfc3339(row.expires_at)}", resolution=_ANOTHER)
        if row.max_uses is not None and row.use_count >= row.max_uses:
            raise WrongKey(f"the pre-shared key was for {row.max_uses} machines, and that many have asked with it", resolution=_ANOTHER)
        row.use_count += 1
        row.last_used_at = now

    def _make(
        self,
        unit: Unit,
        actor: str,
        project: ProjectRef,
        action: str,
        row: HostKey | None = None,
        lifetime: timedelta | None = None,
        max_uses: int | None = None,
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
        row.expires_at = row.created_at + lifetime if lifetime else None
        row.max_uses = max_uses
        limits = {"expiresAt": rfc3339(row.expires_at) if row.expires_at else None, "maxUses": max_uses}
        unit.audit(self._clock.now(), actor, project.domain, project.project, action, "host-psk", limits if lifetime or max_uses else None)
        return _view(row, key)


def _view(row: HostKey, key: str | None = None) -> KeyView:
    return KeyView(row.created_at, row.use_count, row.last_used_at, row.expires_at, row.max_uses, key)
