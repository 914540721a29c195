"""Sessions of people, in the console and outside of it: opened by a credential, held by the server, ended in one place for all replicas."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from ckp.compass.access import tokens
from ckp.compass.access.callers import AdminToken
from ckp.compass.access.passwords import Passwords, version_of
from ckp.compass.access.rate import FailureLimit
from ckp.compass.errors import TooManyTries, Unauthorized
from ckp.compass.identity import LOCAL, PLATFORM, Caller, Door
from ckp.compass.store import people
from ckp.compass.store.database import Database
from ckp.compass.store.models import SessionRow, UserRow
from ckp.compass.store.unit import Unit
from ckp.kits.clock import Clock

IDLE = timedelta(minutes=30)
"""After which a session in the console that nobody uses ends. An open page that is only updated does not use it."""
LONGEST = timedelta(hours=12)
"""After which any session ends."""
NOTED = timedelta(minutes=1)
"""How much later than it was a session's use may be written down: not every request is a write."""
ID_BYTES = 32
CONSOLE: Door = "console"
REST: Door = "rest"


@dataclass(frozen=True)
class Session:
    """An open session.

    Args:
        digest: SHA-256 of its id, in hex: names it and opens nothing.
        caller: whose it is, with the roles that they have now.
        csrf: what a form of its pages must carry (facts of the session's id, which another site can't know).
        ends_at: the latest end.
    """

    digest: str
    caller: Caller
    csrf: str
    ends_at: datetime


class Sessions:
    """The use cases of signing in and out.

    A session's id is 256 random bits that only its holder has; the database has its hash. Each request looks it up there, so that an end holds
    for all replicas at once. It names the version of the token or of the password that opened it: with another one, it is void. Who is disabled or
    has other roles than before signs in again: their sessions are deleted with the change.

    Wrong passwords count for a name from an address (five a minute), and for an address (thirty a minute, whatever the names). Nothing counts
    for a name alone: so nobody can keep somebody else out by guessing at their name. Whoever has signed in from an address before is not kept
    out by what others who share that address do.
    """

    def __init__(self, database: Database, admin: AdminToken, passwords: Passwords, clock: Clock) -> None:
        self._database = database
        self._admin = admin
        self._passwords = passwords
        self._clock = clock
        self._token_limit = FailureLimit(clock, tries=10, what="token", hint="")
        self._own_limit = FailureLimit(clock, tries=5, what="password", hint="")
        self._address_limit = FailureLimit(clock, tries=30, what="password", hint="")

    async def open(self, token: str, source: str) -> tuple[str, Session]:
        """A new session in the console for the holder of the bootstrap token: its id, which is told nobody else, and the session.

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
        async with self._database.reading() as unit:  # whoever must wait does not keep others from writing
            await self._token_limit.check(unit, key)
        async with self._database.unit() as unit:
            await self._token_limit.check(unit, key)
            try:
                caller = replace(await bootstrap_caller(unit, self._admin, token), source=source, door=CONSOLE)
            except Unauthorized as error:
                refused = error
                await self._token_limit.failed(unit, key)
                unit.audit(Caller("", "admin-token", source=source, door=CONSOLE), PLATFORM, "session.open", "", result="Unauthorized")
            else:
                session = await self._opened(unit, raw, caller, self._admin.version)
        if refused is not None:  # only now: the failure is counted if the transaction ends well
            raise refused
        return raw, session

    async def sign_in(self, name: str, password: str, source: str, door: Door) -> tuple[str, Session]:
        """A new session for a local user: its id, which is told nobody else, and the session.

        Args:
            name: NAME, or NAME@DOMAIN.
            door: where it is good: in the console, or as a token for REST.

        Raises:
            Unauthorized: there is no such user, they are disabled, or it is not their password; which of these, is not said.
            TooManyTries: see above.
        """
        where = CONSOLE if door == CONSOLE else REST
        name, domain = _split(name)
        own = f"password {hashlib.sha256(f'{name}@{domain}'.encode()).hexdigest()[:14]} {source}"
        async with self._database.reading() as unit:
            user = await people.user(unit.session, domain, name)
            await self._check_tries(unit, own, source, user)
        right = await self._passwords.matches(user.password_hash if user is not None else "", password)
        seen = Caller(people.full_name(user) if user is not None else "", "password", LOCAL, user.subject if user is not None else "", (), source, door)
        raw = secrets.token_urlsafe(ID_BYTES) if where == CONSOLE else tokens.make(tokens.SESSION)
        session: Session | None = None
        async with self._database.unit() as unit:
            await self._check_tries(unit, own, source, user)  # many tries at once are not more than one after the other
            if right and user is not None and not user.disabled:
                session = await self._opened(unit, raw, seen, version_of(user.password_hash), where)
            else:
                for limit, key in ((self._own_limit, own), (self._address_limit, f"passwords from {source}")):
                    await limit.failed(unit, key)
                # What was typed as a name may be a password.
                unit.audit(seen, PLATFORM, "session.open", seen.name, result="Unauthorized")
        if session is None:
            raise Unauthorized("this is not the name and the password of a user", resolution="people of a domain sign in as NAME@DOMAIN")
        return raw, session

    async def find(self, raw: str, door: Door = CONSOLE) -> Session | None:
        """The session with this id, if it is open and good at this door; its use is noted."""
        async with self._database.reading() as unit:
            row = await unit.open_session(_digest(raw))
            if row is None or (row.door or CONSOLE) != door:
                return None
            caller = (await self._alive(unit, [row])).get(row.digest)
            if caller is None:
                return None
        if self._clock.now() - row.used_at >= NOTED:
            async with self._database.unit() as unit:
                again = await unit.open_session(row.digest)
                if again is None:
                    return None  # it was ended in between
                again.used_at = self._clock.now()
        return _session(raw, row, caller)

    async def still_open(self, digests: Collection[str]) -> set[str]:
        """Those of these sessions that are open, by the hashes of their ids. Nothing is noted."""
        if not digests:
            return set()
        async with self._database.reading() as unit:
            return set(await self._alive(unit, await unit.open_sessions(digests)))

    async def close(self, session: Session) -> None:
        """End it, for all replicas."""
        async with self._database.unit() as unit:
            await unit.end_sessions(digest=session.digest)
            unit.audit(session.caller, PLATFORM, "session.close", session.caller.name)

    async def _check_tries(self, unit: Unit, own: str, source: str, user: UserRow | None) -> None:
        await self._own_limit.check(unit, own)
        try:
            await self._address_limit.check(unit, f"passwords from {source}")
        except TooManyTries:
            if user is None or not await unit.has_signed_in(user.subject, source):
                raise

    async def _opened(self, unit: Unit, raw: str, caller: Caller, version: str, door: Door = CONSOLE) -> Session:
        now = self._clock.now()
        await unit.end_sessions(before=now, idle_since=now - IDLE)
        row = SessionRow(
            digest=_digest(raw),
            name=caller.name,
            credential=caller.credential,
            token_digest=version,
            source=caller.source[:64],
            created_at=now,
            used_at=now,
            ends_at=now + LONGEST,
            issuer=caller.issuer,
            subject=caller.subject,
            door=door,
        )
        unit.session.add(row)
        unit.audit(caller, PLATFORM, "session.open", caller.name)
        return _session(raw, row, caller)

    async def _alive(self, unit: Unit, rows: Sequence[SessionRow]) -> dict[str, Caller]:
        """The callers of those sessions that are open, by hash."""
        now = self._clock.now()
        found: dict[str, Caller] = {}
        for row in rows:
            if now >= row.ends_at or (row.door != REST and now >= row.used_at + IDLE):
                continue
            if row.credential == "admin-token":
                if hmac.compare_digest(row.token_digest, self._admin.version) and not await unit.bootstrap_ended():
                    found[row.digest] = replace(self._admin.holder, source=row.source, door=CONSOLE)
                continue
            user = await unit.session.get(UserRow, (row.issuer, row.subject))
            if user is not None and not user.disabled and hmac.compare_digest(row.token_digest, version_of(user.password_hash)):
                grants = await people.grants(unit.session, row.issuer, row.subject)
                found[row.digest] = Caller(people.full_name(user), "password", row.issuer, row.subject, grants, row.source, row.door or CONSOLE)  # type: ignore[arg-type]
        return found


async def bootstrap_caller(unit: Unit, admin: AdminToken, token: str) -> Caller:
    """The holder of the bootstrap token.

    Raises:
        Unauthorized: it is not the right one, or there is an administrator by now. Only those who have it learn that.
    """
    caller = admin.caller(token)
    if await unit.bootstrap_ended():
        raise Unauthorized("the bootstrap token is void: there is an administrator", resolution="sign in as a user: ckp login")
    return caller


def _split(name: str) -> tuple[str, str]:
    local, _, domain = name.strip().lower().partition("@")
    return local, domain


def _digest(raw: str) -> str:
    return hashlib.sha256(raw.encode()).hexdigest()


def _session(raw: str, row: SessionRow, caller: Caller) -> Session:
    csrf = hmac.new(raw.encode(), b"ckp-compass forms", hashlib.sha256).hexdigest()
    return Session(row.digest, caller, csrf, row.ends_at)
