"""Who presents a token to REST. What they may do is asked elsewhere (access.guard). Another way to sign in, such as OIDC, is a branch here and a way
to open a session: all else knows people by issuer and subject."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from ckp.compass.access import tokens
from ckp.compass.access.callers import AdminToken, WorkloadTokens
from ckp.compass.access.rate import FailureLimit
from ckp.compass.access.sessions import REST, Session, Sessions, bootstrap_caller
from ckp.compass.errors import Unauthorized
from ckp.compass.identity import LOCAL, Caller
from ckp.compass.store import people
from ckp.compass.store.database import Database
from ckp.compass.store.models import ApiTokenRow
from ckp.kits.clock import Clock

_REFUSED = "the token is not valid"
_RESOLUTION = "log in again (ckp login), or ask your administrator for a token"


@dataclass(frozen=True)
class Presented:
    """A token, and where it came from."""

    token: str
    source: str


class Authentication:
    """Recognises callers. Everything is looked up for each request: what was ended is ended at once, at every replica."""

    def __init__(self, database: Database, admin: AdminToken, site: WorkloadTokens, sessions: Sessions, clock: Clock) -> None:
        self._database = database
        self._admin = admin
        self._site = site
        self._sessions = sessions
        self._clock = clock
        self._limit = FailureLimit(clock, tries=10, what="token", hint="")

    async def caller(self, presented: Presented) -> Caller:
        """Whose token it is.

        Raises:
            Unauthorized: it is nobody's, expired, or was revoked.
            TooManyTries: too many wrong ServiceAccount tokens came from this address: each is a question to the management cluster.
            Unavailable: the database or the management cluster does not answer.
        """
        token = presented.token
        if token.startswith(tokens.SESSION):
            return (await self.session(token)).caller
        if token.startswith(tokens.ACCOUNT):
            return await self._account(token)
        if token.startswith("eyJ") and token.count(".") == 2:
            return await self._workload(presented)
        async with self._database.reading() as unit:
            return await bootstrap_caller(unit, self._admin, token)

    async def session(self, token: str) -> Session:
        """A person's session outside of the console, by its token; Unauthorized if it is not open."""
        found = await self._sessions.find(token, REST) if tokens.is_whole(token) else None
        if found is None:
            raise Unauthorized(_REFUSED, resolution=_RESOLUTION)
        return found

    async def _account(self, token: str) -> Caller:
        now = self._clock.now()
        async with self._database.reading() as unit:
            found = await people.token(unit.session, tokens.digest(token)) if tokens.is_whole(token) else None
            if found is None or now >= found[0].expires_at:
                raise Unauthorized(_REFUSED, resolution=_RESOLUTION)
            row, account = found
            caller = Caller(people.account_name(account), "api-token", LOCAL, account.subject, await people.grants(unit.session, LOCAL, account.subject))
        if row.last_used_at is None or now - row.last_used_at >= timedelta(minutes=1):
            async with self._database.unit() as unit:
                again = await unit.session.get(ApiTokenRow, row.id)
                if again is None:
                    raise Unauthorized(_REFUSED, resolution=_RESOLUTION)  # it was revoked in between
                again.last_used_at = now
        return caller

    async def _workload(self, presented: Presented) -> Caller:
        key = f"workload from {presented.source}"
        async with self._database.reading() as unit:
            await self._limit.check(unit, key)
        try:
            return await self._site.caller(presented.token)
        except Unauthorized:
            async with self._database.unit() as unit:
                await self._limit.failed(unit, key)
            raise
