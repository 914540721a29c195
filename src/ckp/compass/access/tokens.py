"""Tokens that Compass makes: recognised by people and secret scanners, checked before anything is looked up, kept as hashes."""

from __future__ import annotations

import hashlib
import secrets
import string
import zlib

ACCOUNT, SESSION = "ckpsa_", "ckpse_"
"""Of service accounts; of people's sessions outside of browsers."""
_ALPHABET = string.digits + string.ascii_letters
_SECRET, _CHECK = 43, 6
"""Characters of base 62: 256 random bits, and a CRC-32 of all before it."""


def make(prefix: str) -> str:
    """A new token."""
    body = prefix + "".join(secrets.choice(_ALPHABET) for _ in range(_SECRET))
    return body + _check(body)


def is_whole(token: str) -> bool:
    """Whether it can be one that `make` gave: one that was cut or mistyped needs no look-up, and a scanner no server."""
    prefix = next((known for known in (ACCOUNT, SESSION) if token.startswith(known)), "")
    if not prefix or len(token) != len(prefix) + _SECRET + _CHECK or not token.isascii():
        return False
    return _check(token[:-_CHECK]) == token[-_CHECK:]


def digest(token: str) -> str:
    """As it is kept. The token is 256 random bits, so a plain SHA-256 can't be searched."""
    return hashlib.sha256(token.encode()).hexdigest()


def _check(body: str) -> str:
    number, found = zlib.crc32(body.encode()), ""
    for _ in range(_CHECK):
        number, rest = divmod(number, len(_ALPHABET))
        found = _ALPHABET[rest] + found
    return found
