"""Stylesheets, scripts, fonts and icons: read once, served from memory, kept by browsers for as long as their address is the same."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from ckp.kits.errors import NotFound

FOLDER = Path(__file__).with_name("static")
PREFIX = "/static/"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
"""Files of other kinds, such as licences, are not served."""
_YEAR = "public, max-age=31536000, immutable"


@dataclass(frozen=True)
class _File:
    content: bytes
    packed: bytes
    """By gzip; empty where that saves nothing."""
    kind: str


class Assets:
    """All of them, under an address that changes when any of them does."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._files: dict[str, _File] = {}
        digest = hashlib.sha256()
        for path in sorted(folder.rglob("*")):
            if path.suffix in _TYPES:
                name, content = path.relative_to(folder).as_posix(), path.read_bytes()
                packed = b"" if path.suffix == ".woff2" else gzip.compress(content, mtime=0)
                self._files[name] = _File(content, packed, _TYPES[path.suffix])
                digest.update(f"{name} {hashlib.sha256(content).hexdigest()}\n".encode())
        self.version = digest.hexdigest()[:16]

    def url(self, name: str) -> str:
        """The address of a file. NotFound if there is none of that name: a page must not name one."""
        if name not in self._files:
            raise NotFound(f"the console has no file {name}")
        return f"{PREFIX}{self.version}/{name}"

    async def serve(self, request: Request) -> Response:
        """Answer for one file. Of another version than ours it is served, too, and not kept: during a roll, a page may come from another replica."""
        found = self._files.get(request.path_params["name"])
        if found is None:
            raise NotFound(f"there is nothing at {request.url.path}")
        headers = {"Cache-Control": _YEAR if request.path_params["version"] == self.version else "no-store", "Vary": "Accept-Encoding"}
        if found.packed and "gzip" in request.headers.get("accept-encoding", ""):
            return Response(found.packed, media_type=found.kind, headers={**headers, "Content-Encoding": "gzip"})
        return Response(found.content, media_type=found.kind, headers=headers)
