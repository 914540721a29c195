"""A registry's file of users: bcrypt, which is the only hash that distribution reads (registry/auth/htpasswd, v3.1).

The hash is made by libxcrypt, which every Linux with glibc has because logins need it; Python has no bcrypt, and its module `crypt` is gone with 3.13.
"""

from __future__ import annotations

import base64
import ctypes
import hmac
import os
import re

from ckp.kits.errors import CkpError

COST = 5
"""2^5 rounds, about a millisecond for each request. More rounds slow down guessing, and nobody guesses 32 random bytes. It is also the cost of the
hash that distribution compares with for a user whom it does not know, so that both take equally long."""
_STRUCT_BYTES = 32768
"""Of `struct crypt_data` (crypt.h of libxcrypt, all versions)."""
_LIBRARIES = ("libcrypt.so.1", "libcrypt.so.2")
"""Debian, Ubuntu; Red Hat."""
_STANDARD = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_BCRYPT = b"./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def entry(user: str, password: str) -> str:
    """The line of a user, with a new salt.

    Raises:
        CkpError: this machine has no libcrypt with bcrypt.
    """
    salt = base64.b64encode(os.urandom(16)).rstrip(b"=").translate(bytes.maketrans(_STANDARD, _BCRYPT)).decode()
    return f"{user}:{_crypt(password, f'$2b${COST:02}${salt}')}\n"


def matches(line: str, user: str, password: str) -> bool:
    """Whether a line is that of this user with this password. Raises CkpError as `entry` does."""
    name, _, known = line.strip().partition(":")
    return name == user and re.fullmatch(rf"\$2b\${COST:02}\$[./A-Za-z0-9]{{53}}", known) is not None and hmac.compare_digest(_crypt(password, known), known)


def _crypt(password: str, setting: str) -> str:
    for name in _LIBRARIES:
        try:
            crypt_rn = ctypes.CDLL(name).crypt_rn
        except (OSError, AttributeError):
            continue
        crypt_rn.restype = ctypes.c_char_p
        crypt_rn.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int]
        found = crypt_rn(password.encode(), setting.encode(), ctypes.create_string_buffer(_STRUCT_BYTES), _STRUCT_BYTES)
        if found is not None and found.startswith(b"$2b$"):
            return bytes(found).decode()
    raise CkpError("this machine has no libcrypt that makes bcrypt hashes", resolution="install libxcrypt (Debian, Ubuntu: libcrypt1; Red Hat: libxcrypt)")
