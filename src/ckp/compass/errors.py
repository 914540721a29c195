"""Failures that only Compass has."""

from __future__ import annotations

from ckp.kits.errors import CkpError, Conflict, InvalidInput, NotFound


class WrongKey(CkpError):
    """The pre-shared key is not the project's."""


class TooManyTries(CkpError):
    """Too many failed attempts from one source, or a queue is full; it can be tried again later."""


class Unauthorized(CkpError):
    """No token, or not the right one."""


class Unavailable(CkpError):
    """The management cluster does not answer; it can be tried again."""


class Forbidden(CkpError):
    """The caller's roles are not enough for it; or it came from no page of ours, so that it is not known whether its sender wants it."""


_CODES: tuple[tuple[type[CkpError], int], ...] = (
    (InvalidInput, 422),
    (NotFound, 404),
    (Conflict, 409),
    (WrongKey, 401),
    (Unauthorized, 401),
    (Forbidden, 403),
    (TooManyTries, 429),
    (Unavailable, 503),
)


def status_of(error: CkpError) -> tuple[int, str]:
    """The HTTP status by which REST and console answer an error, and its code for machines."""
    for kind, status in _CODES:
        if isinstance(error, kind):
            return status, kind.__name__
    return 500, "Failed"
