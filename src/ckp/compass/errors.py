"""Failures that only Compass has."""

from __future__ import annotations

from ckp.kits.errors import CkpError


class WrongKey(CkpError):
    """The pre-shared key is not the project's."""


class TooManyTries(CkpError):
    """A source tried too often, or a queue is full; later it may go."""


class Unauthorized(CkpError):
    """No token, or not the right one."""
