"""Failures that only Compass has."""

from __future__ import annotations

from ckp.kits.errors import CkpError


class WrongKey(CkpError):
    """The pre-shared key is not the project's."""


class TooManyTries(CkpError):
    """Too many failed attempts from one source, or a queue is full; it can be tried again later."""


class Unauthorized(CkpError):
    """No token, or not the right one."""


class Unavailable(CkpError):
    """The management cluster does not answer; it can be tried again."""
