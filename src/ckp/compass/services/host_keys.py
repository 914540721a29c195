"""A project's pre-shared key: what an agent shows to be let in front of a person."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import datetime

from ckp.compass.services.projects import ProjectRef
from ckp.compass.store.database import Database
from ckp.compass.store.models import HostKey
from ckp.compass.store.repositories import Unit
from ckp.kits.clock import Clock

PREFIX = "ckphk_"
"""So that secret scanners, and people, know what they see."""


@dataclass(frozen=True)
class KeyView:
    """What is known of a key; `key` only in the answer that made it."""

    created_at: datetime
    use_count: int
    last_used_at: datetime | None
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
            return KeyView(row.created_at, row.use_count, row.last_used_at)

    async def reset(self, actor: str, project: ProjectRef) -> KeyView:
        """A new key, shown this once; the old one is void at once. Hosts that are enrolled already are not touched."""
        async with self._database.unit() as unit:
            return self._make(unit, actor, project, "host-psk.reset", await unit.host_key(project.domain, project.project))

    async def matches(self, unit: Unit, project: ProjectRef, key: str) -> bool:
        """Whether `key` is the project's key, in the same time whether the project has one or not; counts a use."""
        row = await unit.host_key(project.domain, project.project)
        salt, expected = (row.salt, row.digest) if row else (bytes(32), secrets.token_bytes(32))
        if not hmac.compare_digest(digest(salt, key), expected) or row is None:
            return False
        row.use_count += 1
        row.last_used_at = self._clock.now()
        return True

    def _make(self, unit: Unit, actor: str, project: ProjectRef, action: str, row: HostKey | None = None) -> KeyView:
        key = PREFIX + secrets.token_urlsafe(32)
        if row is None:
            row = HostKey(domain=project.domain, project=project.project)
            unit.session.add(row)
        row.salt = secrets.token_bytes(32)
        row.digest = digest(row.salt, key)
        row.created_at = self._clock.now()
        row.use_count = 0
        row.last_used_at = None
        unit.audit(self._clock.now(), actor, project.domain, project.project, action, "host-psk")
        return KeyView(row.created_at, 0, None, key)
