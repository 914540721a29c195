"""Compass' PostgreSQL, as the site's file names it: read and checked here, and brought to the management cluster as a Secret."""

from __future__ import annotations

import base64
import json
import ssl
import stat

from ckp.kits.errors import InvalidInput
from ckp.rules import postgresql
from ckp.site.inventory import SiteDatabase
from ckp.site.spec.model import SiteSpec

SECRET = "ckp-compass-database"
ANNOTATION = "ckp.coredge.io/database"
"""Of Compass' pods: which database they have (deploy/compass-database)."""
MAX_BYTES = 1 << 16


def of_spec(spec: SiteSpec) -> SiteDatabase | None:
    """The site's PostgreSQL; None if Compass has SQLite.

    Raises:
        InvalidInput: a file can't be read, is open to others, or does not hold what it has to. No secret is quoted.
    """
    described = spec.database.postgresql
    if described is None:
        return None
    where = f"{spec.file or 'site'}:{spec.line('database', 'postgresql', 'urlFile')}: database.postgresql.urlFile"
    path = described.url_file
    try:
        mode = path.stat().st_mode
        text = path.read_text()[:MAX_BYTES]
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise InvalidInput(f"{where}: {path} can't be read: {why}", resolution=f"write {postgresql.FORM} into it, and let only its owner read it") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise InvalidInput(f"{where}: {path} holds a password, and others than its owner may read or change it", resolution=f"chmod 600 {path}")
    ca = _ca(spec)
    try:
        url = postgresql.parse(text)
        url.ssl_mode_with(bool(ca))
    except InvalidInput as error:
        raise InvalidInput(f"{where}: {path}: {error.brief}", resolution=error.resolution) from None
    return SiteDatabase(text.strip(), url.place, ca)


def _ca(spec: SiteSpec) -> bytes:
    described = spec.database.postgresql
    if described is None or described.ca_file is None:
        return b""
    where = f"{spec.file or 'site'}:{spec.line('database', 'postgresql', 'caFile')}: database.postgresql.caFile"
    try:
        pem = described.ca_file.read_bytes()
        ssl.create_default_context(cadata=pem.decode("ascii"))
    except (ssl.SSLError, UnicodeDecodeError):
        raise InvalidInput(
            f"{where}: {described.ca_file} holds no certificate", resolution="write the CA of the database's certificate into it, as PEM"
        ) from None
    except OSError as error:
        raise InvalidInput(f"{where}: {described.ca_file} can't be read: {error.strerror}", resolution="write the path of the CA, as PEM") from None
    return pem


def endpoint(database: SiteDatabase) -> tuple[str, int]:
    """Host and port that it is reached at."""
    url = postgresql.parse(database.url)
    return url.host, url.port


def secret(database: SiteDatabase) -> str:
    """The Secret's manifest, as JSON. It goes to kubectl's standard input, and into no file."""
    data = {"url": database.url.encode(), **({"ca.crt": database.ca} if database.ca else {})}
    encoded = {name: base64.b64encode(value).decode() for name, value in data.items()}
    return json.dumps({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET, "namespace": "ckp-system"}, "data": encoded})
