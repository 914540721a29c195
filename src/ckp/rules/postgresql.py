"""The URL of a PostgreSQL database, as people write it into a file. It holds a password: no error and no text form shows it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from ckp.kits.errors import InvalidInput

DEFAULT_PORT = 5432
SSL_MODES = ("disable", "require", "verify-ca", "verify-full")
"""Those of libpq that do not depend on what the server happens to offer: `allow` and `prefer` would send everything in clear where it offers no TLS."""
FORM = "postgresql://USER:PASSWORD@HOST:5432/DATABASE"
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"{_LABEL}(\.{_LABEL})*\.?|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")


@dataclass(frozen=True)
class PostgresqlUrl:
    """One database of one server.

    Args:
        host: a DNS name or an address.
        ssl_mode: of SSL_MODES; empty if the URL does not say.
    """

    host: str
    port: int
    database: str
    user: str
    password: str = field(repr=False)
    ssl_mode: str = ""

    @property
    def place(self) -> str:
        """`host:port/database`, quoted as in the URL: which database it is, without who asks."""
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}/{quote(self.database, safe='')}"

    def ssl_mode_with(self, ca: bool) -> str:
        """What TLS has to prove: with a CA the server's identity; without one, the connection is encrypted at least.

        Args:
            ca: whether there is a CA that the server's certificate has to chain to.

        Raises:
            InvalidInput: the URL asks for what can't be done so.
        """
        mode = self.ssl_mode or ("verify-full" if ca else "require")
        if mode.startswith("verify-") and not ca:
            raise InvalidInput(
                f"the database's URL has sslmode={mode}, and there is no CA to verify the server with", resolution="name the file with the CA (caFile) as well"
            )
        if mode in ("disable", "require") and ca:
            raise InvalidInput(
                f"the database's URL has sslmode={mode}, and there is a CA that would not be used to verify the server",
                resolution="write sslmode=verify-full, or remove the CA (caFile)",
            )
        return mode


def parse(text: str) -> PostgresqlUrl:
    """The URL in the content of a file: one line, blanks around it do not matter.

    Raises:
        InvalidInput: it is something else. The text is not quoted.
    """
    lines = text.strip().splitlines()
    if len(lines) != 1:
        raise _wrong("it is empty" if not lines else f"it has {len(lines)} lines")
    try:
        parts = urlsplit(lines[0])
        port = parts.port
    except ValueError:  # its message may quote a part of the password
        raise _wrong("host and port can't be told: characters such as / : @ # % in user or password are written as %2F, %3A and so on") from None
    if parts.scheme not in ("postgresql", "postgres"):
        raise _wrong("it does not begin with postgresql://")
    if parts.fragment or "#" in lines[0]:
        raise _wrong("it has a #: in a password it is written as %23")
    host, database = parts.hostname or "", unquote(parts.path.removeprefix("/"))
    if not _HOST.fullmatch(host):
        raise _wrong("its host is missing, or is no DNS name or address")
    if not parts.username or parts.password is None:
        raise _wrong("its user or its password is missing")
    if not database or "/" in database:
        raise _wrong("the name of the database after the host is missing, or is no name")
    user, password = unquote(parts.username), unquote(parts.password)
    if "\0" in f"{user}{password}{database}":
        raise _wrong("it has a zero byte")
    return PostgresqlUrl(host, port or DEFAULT_PORT, database, user, password, _ssl_mode(parts.query))


def _ssl_mode(query: str) -> str:
    options = parse_qsl(query, keep_blank_values=True)
    if any(name != "sslmode" for name, _ in options) or len(options) > 1:
        raise _wrong("after the ? it has something else than sslmode=MODE")
    if options and options[0][1] not in SSL_MODES:
        raise _wrong(f"its sslmode is none of {', '.join(SSL_MODES)}")
    return options[0][1] if options else ""


def _wrong(why: str) -> InvalidInput:
    return InvalidInput(f"the database's URL is not well-formed: {why}", resolution=f"write {FORM} on one line, with ?sslmode=MODE after it if need be")
