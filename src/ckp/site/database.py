"""Compass' PostgreSQL, as the site's file names it: read and checked here, and brought to the management cluster as a Secret."""

from __future__ import annotations

import base64
import json

from ckp.kits.errors import InvalidInput
from ckp.rules import postgresql
from ckp.site.inventory import SiteDatabase
from ckp.site.spec.model import SiteSpec
from ckp.site.spec.named_files import read_ca, read_text

SECRET = "ckp-compass-database"
ANNOTATION = "ckp.coredge.io/database"
"""Of Compass' pods: which database they have (deploy/compass-database)."""


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
    text, ca = read_text(path, where, secret=True), _ca(spec)
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
    return read_ca(described.ca_file, f"{spec.file or 'site'}:{spec.line('database', 'postgresql', 'caFile')}: database.postgresql.caFile")


def endpoint(database: SiteDatabase) -> tuple[str, int]:
    """Host and port that it is reached at."""
    url = postgresql.parse(database.url)
    return url.host, url.port


def secret(database: SiteDatabase) -> str:
    """The Secret's manifest, as JSON. It goes to kubectl's standard input, and into no file."""
    data = {"url": database.url.encode(), **({"ca.crt": database.ca} if database.ca else {})}
    encoded = {name: base64.b64encode(value).decode() for name, value in data.items()}
    return json.dumps({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET, "namespace": "ckp-system"}, "data": encoded})
