"""Sessions of people in the console: opened by a credential, held by the server, ended in one place for all replicas."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import cast

from ckp.compass.access.callers import AdminToken
from ckp.compass.access.rate import FailureLimit
from ckp.compass.errors import Unauthorized
from ckp.compass.identity import Caller, Credential
from ckp.compass.store.database import Database
from ckp.compass.store.models import SessionRow
from ckp.kits.clock import Clock

IDLE = timedelta(minutes=30)
"""After which a session that nobody uses ends. An open page that is only updated does not use it."""
LONGEST = timedelta(hours=12)
"""After which any session ends."""
NOTED = timedelta(minutes=1)
"""How much later than it was a session's use may be written down: not every request is a write."""
ID_BYTES = 32


@dataclass(frozen=True)
class Session:
    """An open session.

    Args:
        digest: SHA-256 of its id, in hex: names it and opens nothing.
        csrf: what a form of its pages must carry (facts of the session's id, which another site can't know).
        ends_at: the latest end.
    """

    digest: str
    caller: Caller
    csrf: str
    ends_at: datetime


class Sessions:
    """The use cases of signing in and out.

    A session's id is 256 random bits that only the browser has; the database has its hash. Each request looks it up there, so that an end holds
    for all replicas at once. It names the version of the token that opened it: with another token, all sessions of the one before are void.
    """

    def __init__(self, database: Database, admin: AdminToken, clock: Clock, limit: FailureLimit | None = None) -> None:
        self._database = database
        self._admin = admin
        self._clock = clock
        self._limit = limit or FailureLimit(clock, tries=10, what="token", hint="")

    async def open(self, token: str, source: str) -> tuple[str, Session]:
        """A new session for the holder of an access token: its id, which is told nobody else, and the session.

        Always a new id, whatever the browser had before (session fixation).

        Args:
            source: the address that the request came from; wrong tokens count for it.

        Raises:
            Unauthorized: the token is not valid.
            TooManyTries: too many wrong ones came from `source`.
        """
        key = f"sign-in from {source}"
        refused: Unauthorized | None = None
        raw = secrets.token_urlsafe(ID_BYTES)
        now = self._clock.now()
        async with self._database.reading() as unit:  # whoever must wait does not keep others from writing
            await self._limit.check(unit, key)
        async with self._database.unit() as unit:
            await self._limit.check(unit, key)
            try:
                caller = self._admin.caller(token)
            except Unauthorized as error:
                refused = error
                await self._limit.failed(unit, key)
            else:
                await unit.end_sessions(before=now, idle_since=now - IDLE)
                row = SessionRow(
                    digest=_digest(raw),
                    name=caller.name,
                    credential=caller.credential,
                    token_digest=self._admin.version,
                    source=source[:64],
                    created_at=now,
                    used_at=now,
                    ends_at=now + LONGEST,
                )
                unit.session.add(row)
        if refused is not None:  # only now: the failure is counted if the transaction ends well
            raise refused
        return raw, _session(raw, row)

    async def find(self, raw: str) -> Session | None:
        """The session with this id, if it is open; its use is noted."""
        async with self._database.reading() as unit:
            row = await unit.open_session(_digest(raw))
            if row is None or not self._is_open(row):
                return None
        if self._clock.now() - row.used_at >= NOTED:
            async with self._database.unit() as unit:
                again = await unit.open_session(row.digest)
                if again is None:
                    return None  # it was ended in between
                again.used_at = self._clock.now()
        return _session(raw, row)

    async def still_open(self, digests: Collection[str]) -> set[str]:
        """Those of these sessions that are open, by the hashes of their ids. Nothing is noted."""
        if not digests:
            return set()
        async with self._database.reading() as unit:
            return {row.digest for row in await unit.open_sessions(digests) if self._is_open(row)}

    async def close(self, session: Session) -> None:
        """End it, for all replicas."""
        async with self._database.unit() as unit:
            await unit.end_sessions(digest=session.digest)

    def _is_open(self, row: SessionRow) -> bool:
        now = self._clock.now()
        return now < row.ends_at and now < row.used_at + IDLE and hmac.compare_digest(row.token_digest, self._admin.version)


def _digest(raw: str) -> str:
    return hashlib.sha256(raw.encode()).hexdigest()


def _session(raw: str, row: SessionRow) -> Session:
    csrf = hmac.new(raw.encode(), b"ckp-compass forms", hashlib.sha256).hexdigest()
    return Session(row.digest, Caller(row.name, cast(Credential, row.credential)), csrf, row.ends_at)
