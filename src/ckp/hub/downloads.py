"""What a machine fetches before it has any credential: the site's CA, the script that makes it a host, and the agent's signed packages."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections import Counter
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client import Counter as Metric
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.staticfiles import StaticFiles

from ckp.hub.enrolment import Receive, Send
from ckp.kits.errors import CkpError
from ckp.rules.joining import CA_PATH, PACKAGES_PATH, SCRIPT_PATH, SITE_PATH, anchor

log = structlog.get_logger("hub.downloads")

KEYRING_PATH, RPM_KEYS_PATH = f"{PACKAGES_PATH}keys/ckp.gpg", f"{PACKAGES_PATH}keys/ckp.asc"
"""What the repositories are verified with, for apt and for rpm: the site's own keys take their place, if it names some."""
RPM_KEYS = "ckp.asc"
"""The site's own keys as rpm takes them: a file beside that of the site's settings (ckp.site.settings.model)."""
SCRIPT = Path(__file__).with_name("join.sh")
AT_ONCE, AT_ONCE_FROM_ONE = 64, 16
"""Downloads of packages at the same time, in all and from one address; more are told to come again."""
LONGEST_PATH = 512
"""Characters. Resolving a path costs time for each of its parts, and the event loop is that of all agents' channels."""
SECONDS = 900.0
"""For one of them: 20 MB by a line of 256 kbit/s."""
_CONDITIONS = (b"if-modified-since", b"if-none-match", b"if-range", b"range")
NO_PACKAGES = "this hub has no packages: install the agent by hand, as the guide to bringing your own hosts says"


class Downloads:
    """The ASGI application of the paths that `serves` names. It reads files, and nothing else; what is in them is verified by who fetches it.

    Args:
        packages: the repositories (ckp.distribution.repositories); a hub without them answers 404.
        server_ca: PEM file that the hub's own certificate chains to.
        site: JSON file with what the site gives to machines that join (ckp.site.settings); a hub without it gives them nothing.
    """

    def __init__(self, packages: Path, server_ca: Path, registry: CollectorRegistry, site: Path | None = None) -> None:
        self._server_ca = server_ca
        self._files = StaticFiles(directory=packages, check_dir=False)
        self._packages = packages
        self._site = site
        self._downloading: Counter[str] = Counter()
        self._answers = Metric("ckp_hub_download_answers_total", "Answers to downloads on the enrolment port", ["status"], registry=registry)

    @staticmethod
    def serves(path: str) -> bool:
        """Whether a request's path is one of ours."""
        return path in (CA_PATH, SCRIPT_PATH, SITE_PATH) or path.startswith(PACKAGES_PATH)

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answer one request."""
        client = scope.get("client")
        peer = str(client[0]) if client else ""
        counted = scope["path"].startswith(PACKAGES_PATH)
        if counted and (self._downloading.total() >= AT_ONCE or self._downloading[peer] >= AT_ONCE_FROM_ONE):
            await self._answer(PlainTextResponse("too many downloads at once\n", 503, {"retry-after": "10"}), scope, receive, send)
            return
        self._downloading[peer] += counted
        try:
            await self._answer(await self._judged(scope), scope, receive, send)
        finally:
            self._downloading -= Counter({peer: int(counted)})  # keeps no zeros

    async def _judged(self, scope: Any) -> Response:
        try:
            return await self._response(scope)
        except HTTPException as error:
            return PlainTextResponse(f"{error.detail}\n", error.status_code)
        except CkpError as error:
            log.error("a download failed", path=scope["path"], error=error.brief)
            return PlainTextResponse("it is not there at the moment\n", 503)

    async def _answer(self, response: Response, scope: Any, receive: Receive, send: Send) -> None:
        self._answers.labels(str(response.status_code)).inc()
        try:
            async with asyncio.timeout(SECONDS):
                await response(scope, receive, send)
        except TimeoutError:  # a reader that is too slow, or that has gone: its connection ends with the answer unfinished
            log.info("a download was given up", path=scope["path"], seconds=SECONDS)

    async def _response(self, scope: Any) -> Response:
        if scope["method"] not in ("GET", "HEAD"):
            raise HTTPException(405, "only GET and HEAD are answered here")
        path: str = scope["path"]
        if len(path) > LONGEST_PATH:
            raise HTTPException(404, "Not Found")
        if path == CA_PATH:
            return Response(await asyncio.to_thread(self._ca), media_type="application/x-pem-file")
        if path == SCRIPT_PATH:
            return FileResponse(SCRIPT, media_type="text/x-shellscript")
        if path == SITE_PATH:
            return Response(await asyncio.to_thread(self._settings), media_type="application/json")
        if path in (KEYRING_PATH, RPM_KEYS_PATH) and (keyring := await asyncio.to_thread(self._keyring)):
            found = keyring if path == KEYRING_PATH else await asyncio.to_thread(self._rpm_keys)
            return Response(found, media_type="application/octet-stream")
        if not self._packages.is_dir():
            raise HTTPException(404, NO_PACKAGES)
        # In an image all files have the same time, and a new index has that of the old one: nothing may be answered by comparing times.
        scope["headers"] = [(name, value) for name, value in scope["headers"] if name not in _CONDITIONS]
        name = self._files.get_path({**scope, "path": path.removeprefix(PACKAGES_PATH.rstrip("/")), "root_path": ""})
        if any(part.startswith(".") for part in Path(name).parts if part != "."):
            raise HTTPException(404, "Not Found")  # locks and scratch folders
        response = await self._files.get_response(name, scope)
        for header in ("last-modified", "etag"):
            del response.headers[header]
        return response

    def _settings(self) -> bytes:
        try:
            found = self._site.read_bytes() if self._site else b""
        except FileNotFoundError:
            found = b""
        except OSError as error:
            raise CkpError(f"{self._site} can't be read: {error.strerror}") from error
        return found or b"{}\n"

    def _keyring(self) -> bytes:
        """The site's trusted keys; empty if it names none. Settings that can't be read give no keys at all, not those of the packages."""
        try:
            return base64.b64decode(json.loads(self._settings()).get("keyring", ""), validate=True)
        except (ValueError, TypeError, AttributeError, binascii.Error) as error:
            raise CkpError(f"{self._site} is malformed: {error}") from error

    def _rpm_keys(self) -> bytes:
        """The site's trusted keys as rpm takes them. If an older `ckp` has applied the site, there are none, and not those of the packages instead."""
        assert self._site is not None
        try:
            return self._site.with_name(RPM_KEYS).read_bytes()
        except OSError as error:
            raise CkpError(f"{self._site.with_name(RPM_KEYS)} can't be read: {error.strerror}") from error

    def _ca(self) -> bytes:
        try:
            return anchor(self._server_ca.read_bytes())
        except OSError as error:
            raise CkpError(f"{self._server_ca} can't be read: {error.strerror}") from error


class EnrolmentPort:
    """The ASGI application of the enrolment port: downloads, and enrolment for all other paths."""

    def __init__(self, downloads: Downloads, enrolment: Any) -> None:
        self._downloads = downloads
        self._enrolment = enrolment

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answer one request."""
        chosen = self._downloads if scope["type"] == "http" and Downloads.serves(scope["path"]) else self._enrolment
        await chosen(scope, receive, send)
