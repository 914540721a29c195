"""Secrets that were written into the file itself. They are refused; what names a file with the secret is offered instead."""

from __future__ import annotations

import re
from difflib import get_close_matches

from ckp.site.spec.part import Part, key_of

HOLDERS = ("credentialsFile", "urlFile", "identityFile")
"""Keys that name a file with a secret."""
_KEY = re.compile(r"(password|passwd|passphrase|token|secretkey|accesskey|accesskeyid|apikey|privatekey|clientsecret|credentials|secret)$")
_PASSWORD = re.compile(r"://[^/\s:@]*:[^/\s@]+@")
_QUERY = re.compile(r"[?&](?:password|passwd|token|secret|sig|signature|api_?key|access_?key|access_?token)=[^&\s]", re.IGNORECASE)
_PEM = re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY")


def secret_key(key: str) -> bool:
    """Whether a key's name says that its value is a secret."""
    return _KEY.search(re.sub(r"[-_.]", "", key).lower()) is not None


def secret_text(text: str) -> str:
    """Which secret a value holds; empty if none. The answer never quotes it."""
    if _PASSWORD.search(text):
        return "this URL holds a password"
    if "://" in text and _QUERY.search(text):
        return "this URL holds a token"
    return "this is a private key" if _PEM.search(text) else ""


def remedy(model: type[Part], key: str) -> str:
    """What to write into a part instead of a secret below `key`."""
    holders = [name for name in (key_of(model, field) for field in model.model_fields) if name in HOLDERS]
    if key in holders:
        return f"write it into a file of its own (mode 0600), and write that file's path as `{key}`"
    nearest = get_close_matches(f"{key}File", holders, 1, 0) or holders[:1]
    if not nearest:
        return "remove it: no secret is needed here"
    return f"write it into a file of its own (mode 0600), and write `{nearest[0]}: <path of that file>`"
