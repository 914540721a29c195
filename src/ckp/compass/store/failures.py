"""Failures of the database as Compass' own errors. Statements, parameters and passwords are in none of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from psycopg.errors import DeadlockDetected, SerializationFailure, UniqueViolation
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, InterfaceError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from ckp.compass.errors import Unavailable
from ckp.kits.errors import Conflict, InvalidInput


class Taken(Conflict):
    """Another request made the same thing at the same moment, as the database's own constraints say."""


def reason(error: BaseException) -> str:
    """What the database said, without what it was asked."""
    said = str(error.orig) if isinstance(error, DBAPIError) and error.orig is not None else str(error)
    return re.sub(r"\s+", " ", said.split("\nDETAIL:")[0]).strip()[:500] or type(error).__name__


def is_passing(error: BaseException) -> bool:
    """Whether the same transaction may go well a moment later: the server restarts, a connection broke, two transactions were in each other's way."""
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated or isinstance(error.orig, (SerializationFailure, DeadlockDetected)):
        return True
    state = getattr(error.orig, "sqlstate", None)
    # No SQLSTATE: there was no connection. 08: connection failures; 53: too many connections; 57P: the server shuts down or starts.
    return isinstance(error, (OperationalError, InterfaceError)) and (state is None or state.startswith(("08", "53", "57P")))


@contextmanager
def translated() -> Iterator[None]:
    """Raises what a service may raise in place of what SQLAlchemy raises.

    Raises:
        Taken: a unique constraint was violated.
        InvalidInput: a value can't be stored, such as a zero byte in a text.
        Unavailable: the database does not answer. What was asked may have been done, if it broke in the moment of the commit.
    """
    try:
        yield
    except IntegrityError as error:
        if isinstance(error.orig, UniqueViolation) or "UNIQUE constraint" in str(error.orig):
            raise Taken("the same was made by another request at the same moment", resolution="see what is there now, and try again if need be") from error
        raise
    except (DataError, UnicodeEncodeError, OverflowError) as error:
        raise InvalidInput("the request has a text or a number that can't be stored", details=reason(error)) from None
    except (OperationalError, InterfaceError, PoolTimeout) as error:
        raise unavailable(error) from error
    except DBAPIError as error:
        if isinstance(error, ProgrammingError) and not error.connection_invalidated:
            raise
        raise unavailable(error) from error


def unavailable(error: BaseException) -> Unavailable:
    """What a caller is told of a database that does not answer."""
    return Unavailable("the database does not answer", details=reason(error), resolution="try again in a moment; if it stays so, see Compass' log")
