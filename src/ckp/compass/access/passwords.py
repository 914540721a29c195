"""Passwords of local users: what may be one, and how it is kept and compared (argon2id)."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import unicodedata

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from ckp.api.compass.people import LONGEST_PASSWORD
from ckp.kits.errors import InvalidInput

SHORTEST = 15
"""NIST SP 800-63B-4, 3.1.1.2, of a password that is used alone. No composition rules (the same; OWASP ASVS 5.0, 6.2.5)."""
_AT_ONCE = 2
"""Each takes 19 MiB for some 30 ms: more at once would be a way to take a replica's memory."""


class Passwords:
    """Hashes and compares. The parameters are OWASP's for argon2id; they stand in each hash, so that they can change."""

    def __init__(self) -> None:
        self._hasher = PasswordHasher(time_cost=2, memory_cost=19456, parallelism=1)
        self._turn = asyncio.Semaphore(_AT_ONCE)
        self._nobody = self._hasher.hash(secrets.token_urlsafe())

    async def hash(self, password: str, *, name: str) -> str:
        """A new password as it is kept.

        Raises:
            InvalidInput: it is too short, too long, or could be guessed from the user's name.
        """
        text = _normal(password)
        if len(text) < SHORTEST:
            raise InvalidInput(
                f"password: it has {len(text)} characters, and {SHORTEST} are the least", resolution="several words make a good one; any characters will do"
            )
        if len(text) > LONGEST_PASSWORD:
            raise InvalidInput(f"password: it has more than {LONGEST_PASSWORD} characters")
        if len(set(text)) < 5 or text.casefold().replace(name.casefold(), "") == "":
            raise InvalidInput("password: it can be guessed at once", resolution="take several words that have nothing to do with each other")
        async with self._turn:
            return await asyncio.to_thread(self._hasher.hash, text)

    async def matches(self, kept: str, password: str) -> bool:
        """Whether it is the password. Where there is none (empty), it takes as long as where there is one."""
        async with self._turn:
            same = await asyncio.to_thread(self._same, kept or self._nobody, _normal(password)[: LONGEST_PASSWORD + 1])
        return same and bool(kept)

    def _same(self, kept: str, password: str) -> bool:
        try:
            return self._hasher.verify(kept, password)
        except (VerificationError, InvalidHashError):
            return False


def version_of(kept: str) -> str:
    """What becomes another once a password does: a session that an earlier one has opened is void. Nothing can be learnt from it."""
    return hashlib.sha256(b"ckp-compass password version " + kept.encode()).hexdigest()


def _normal(password: str) -> str:
    """One form of what can be typed in several ways (NIST SP 800-63B-4, 3.1.1.2)."""
    return unicodedata.normalize("NFKC", password)
