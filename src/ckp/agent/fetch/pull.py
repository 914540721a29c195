"""`ckp-agent pull`: pulls an image from a registry into a folder, in a process of its own. Resumable: what was fetched before is not fetched again.

    manifest ▶ blobs, each resumed where an earlier attempt ended ▶ digests ▶ imgpkg, from a registry on 127.0.0.1 that serves only these

imgpkg by itself starts from zero with every attempt. So the blobs are fetched here, and imgpkg unpacks the image from the local registry.
If the registry requires credentials that this host has not been given, or serves something other than a single image, imgpkg does everything.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import http.client
import json
import os
import re
import shutil
import ssl
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Iterator, Optional
from urllib.parse import urlsplit

from ckp.agent.fetch import tokens
from ckp.agent.system import registry_login
from ckp.hostkit import proxies
from ckp.hostkit.errors import AgentError, InvalidInput
from ckp.hostkit.files import remove
from ckp.hostkit.logs import log
from ckp.hostkit.processes import run
from ckp.verify.packagefile import sha256_of

FULL = (errno.ENOSPC, errno.EDQUOT)
MANIFESTS = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
MANIFEST_LIMIT = 4 << 20
BLOB_LIMIT = 8 << 30
BLOCK = 256 << 10
IDLE_SECONDS = 30.0
UNPACK_SECONDS = 900.0
MAX_FRUITLESS = 3
"""Consecutive attempts without a single byte, after which the pull fails: the caller has a longer backoff."""
PROGRESS_SECONDS = 10.0


class NeedsImgpkg(Exception):
    """Only imgpkg can pull this: the registry requires credentials, or the manifest is not that of a single image."""


@dataclass(frozen=True)
class Reference:
    """An image by digest."""

    registry: str
    repository: str
    digest: str

    @classmethod
    def parse(cls, image: str) -> Reference:
        """`host[:port]/repository@sha256:…`; InvalidInput for anything else."""
        match = re.fullmatch(r"((?:[A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\])(?::\d+)?)/([a-z0-9._/-]+?)(?::[\w.-]+)?@(sha256:[0-9a-f]{64})", image)
        if match is None:
            raise InvalidInput(f"{image!r} is not an image with a digest (host/repository@sha256:…)", permanent=True)
        return cls(*match.groups())

    def url(self, kind: str, digest: str) -> str:
        """The URL of a manifest or a blob (OCI distribution specification 1.1, "Pull")."""
        return f"https://{self.registry}/v2/{self.repository}/{kind}/{digest}"


@dataclass(frozen=True)
class Blob:
    """A blob as the manifest describes it."""

    digest: str
    size: int


class Puller:
    """Fetches one image into a folder of blobs.

    Args:
        image: by digest.
        ca_file: the CA of the registry; "" for the system's CAs.
        folder: for blobs: complete ones are named by their digest, partial ones `….part`.
    """

    def __init__(self, image: str, ca_file: str, folder: str) -> None:
        self.reference = Reference.parse(image)
        self.folder = folder
        self.resumed = 0
        self._basic = registry_login.basic_for(self.reference.registry)
        self._token = ""
        self._context = ssl.create_default_context(cafile=ca_file or None)
        self._opener = urllib.request.build_opener(
            urllib.request.HTTPSHandler(context=self._context),
            urllib.request.ProxyHandler(self._proxy()),  # without it urllib would read the environment by rules of its own
        )

    def _proxy(self) -> dict[str, str]:
        """urllib's proxies for the registry. InvalidInput if HTTPS_PROXY is not a proxy's URL."""
        parts = urlsplit(f"https://{self.reference.registry}")
        used = proxies.proxy_for(parts.hostname or "", parts.port or 443)
        return {"https": used.url()} if used else {}

    def fetch(self) -> tuple[bytes, str, list[Blob]]:
        """Fetch everything into the folder; returns the manifest, its media type, and its blobs.

        Raises:
            NeedsImgpkg: only imgpkg can pull it.
            AgentError: the registry can't be reached or lacks the image, or a digest does not match.
        """
        manifest, kind = self._manifest()
        blobs = list(_blobs(manifest))
        all_of_it = sum(blob.size for blob in blobs)
        done = 0
        for blob in blobs:
            self._blob(blob, done, all_of_it)
            done += blob.size
        return manifest, kind, blobs

    def path(self, blob: Blob) -> str:
        """The path of a complete blob."""
        return os.path.join(self.folder, blob.digest.partition(":")[2])

    def _manifest(self) -> tuple[bytes, str]:
        problem: Exception = OSError("no answer")
        for attempt in range(MAX_FRUITLESS):
            time.sleep(attempt)
            try:
                with self._open("manifests", self.reference.digest, {"Accept": ", ".join(MANIFESTS)}) as answer:
                    data, kind = answer.read(MANIFEST_LIMIT + 1), answer.headers.get_content_type()
                break
            except urllib.error.HTTPError as error:
                if error.code in (401, 403) and self._basic:
                    raise self._failed("it does not take the password that this host has for it") from None
                if error.code in (401, 403):
                    raise NeedsImgpkg from None
                if error.code == 404:
                    raise self._failed("it does not have this image") from None
                problem = error
            except (OSError, http.client.HTTPException) as error:
                problem = error
        else:
            raise self._failed(_reason(problem))
        if len(data) > MANIFEST_LIMIT or f"sha256:{hashlib.sha256(data).hexdigest()}" != self.reference.digest:
            raise self._failed("the manifest that it sent has another digest")
        if kind not in MANIFESTS:
            raise NeedsImgpkg
        return data, kind

    def _blob(self, blob: Blob, done: int, all_of_it: int) -> None:
        final = self.path(blob)
        if os.path.exists(final):
            self.resumed += blob.size
            return
        part = final + ".part"
        fruitless, before = 0, _size(part)
        self.resumed += min(before, blob.size)
        while _size(part) < blob.size or not os.path.exists(part):
            start = _size(part)
            try:
                self._append(blob, part, start, done, all_of_it)
                problem = "the connection ended early"
            except urllib.error.HTTPError as error:
                if error.code in (401, 403):
                    raise NeedsImgpkg from None
                if error.code == 416:  # our part is longer than its blob: one of the two is wrong
                    remove(part)
                problem = _reason(error)
            except OSError as error:
                if error.errno in FULL:  # retrying does not help
                    raise
                problem = _reason(error)
            except http.client.HTTPException as error:
                problem = _reason(error)
            if _size(part) < blob.size:
                fruitless = 0 if _size(part) > start else fruitless + 1
                if fruitless == MAX_FRUITLESS:
                    raise self._failed(f"{problem}; the next attempt resumes after {_size(part) / 1e6:.1f} of {blob.size / 1e6:.1f} MB")
                time.sleep(1.0 + fruitless)
        if f"sha256:{sha256_of(part)}" != blob.digest:
            remove(part)
            raise self._failed(f"the blob that it sent as {blob.digest[:19]}… has another digest, and was deleted")
        os.replace(part, final)

    def _append(self, blob: Blob, part: str, start: int, done: int, all_of_it: int) -> None:
        headers = {"Range": f"bytes={start}-"} if start else {}
        with self._open("blobs", blob.digest, headers) as answer:
            if start and not (answer.status == 206 and re.match(rf"bytes {start}-", answer.headers.get("Content-Range", f"bytes {start}-"))):
                start = 0  # a registry without range requests sends the whole blob
            with open(part, "r+b" if os.path.exists(part) else "wb") as stream:
                stream.truncate(start)
                stream.seek(start)
                logged = time.monotonic()
                while stream.tell() < blob.size:
                    data = answer.read(min(BLOCK, blob.size - stream.tell()))
                    if not data:
                        return
                    stream.write(data)
                    if time.monotonic() - logged > PROGRESS_SECONDS:
                        logged = time.monotonic()
                        log(f"pulling {self.reference.repository}: {(done + stream.tell()) / 1e6:.0f} of {all_of_it / 1e6:.0f} MB")

    def _open(self, kind: str, digest: str, headers: dict[str, str]) -> Any:
        """The answer to a request, with a token where the registry asks for one. Tokens are short-lived: another one is had when it no longer counts."""
        try:
            return self._opener.open(self._request(kind, digest, headers), timeout=IDLE_SECONDS)
        except urllib.error.HTTPError as error:
            if error.code != 401 or not self._log_in(error):
                raise
            error.close()
        return self._opener.open(self._request(kind, digest, headers), timeout=IDLE_SECONDS)

    def _log_in(self, refused: urllib.error.HTTPError) -> bool:
        """Get a token if the registry itself asks for one: a server that it redirects to could name a realm of its own. Whether there is another one now."""
        challenge = tokens.challenge_of(refused.headers.get("WWW-Authenticate", ""))
        if challenge is None or urlsplit(refused.url).netloc != self.reference.registry:
            return False
        before, self._token = self._token, tokens.fetch(challenge, self._basic, self._context)
        if self._token and self._basic:
            registry_login.note_tokens(self.reference.registry)
        return bool(self._token) and self._token != before

    def _request(self, kind: str, digest: str, headers: dict[str, str]) -> urllib.request.Request:
        request = urllib.request.Request(self.reference.url(kind, digest), headers=headers)
        if self._token:
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")
        elif self._basic:
            request.add_unredirected_header("Authorization", f"Basic {self._basic}")  # urllib sends other headers to wherever it is redirected
        return request

    def _failed(self, why: str) -> AgentError:
        return AgentError(f"{self.reference.repository} can't be pulled from {self.reference.registry}: {why}", reason="PullFailed")


def _blobs(manifest: bytes) -> Iterator[Blob]:
    """The blobs that a manifest names, each once. NeedsImgpkg if it is not the manifest of an image."""
    try:
        content: Any = json.loads(manifest)
        found = {str(item["digest"]): int(item["size"]) for item in [content["config"], *content["layers"]]}
    except (ValueError, KeyError, TypeError):
        raise NeedsImgpkg from None
    for digest, size in found.items():
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest) or not 0 <= size <= BLOB_LIMIT:
            raise NeedsImgpkg
        yield Blob(digest, size)


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except FileNotFoundError:
        return 0


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"it answered {error.code} {error.reason}"
    reason = getattr(error, "reason", None)
    return str(reason if isinstance(reason, (str, OSError)) else error) or type(error).__name__


class _Loopback(ThreadingHTTPServer):
    """A registry on 127.0.0.1 with one image. Every user of this host can read it: it is not secret."""

    daemon_threads = True

    def __init__(self, puller: Puller, manifest: bytes, kind: str, blobs: list[Blob]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        base = f"/v2/{puller.reference.repository}"
        self.manifest, self.kind = manifest, kind
        self.manifest_path = f"{base}/manifests/{puller.reference.digest}"
        self.files = {f"{base}/blobs/{blob.digest}": puller.path(blob) for blob in blobs}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Loopback

    def do_GET(self) -> None:
        self._serve(body=True)

    def do_HEAD(self) -> None:
        self._serve(body=False)

    def _serve(self, *, body: bool) -> None:
        file = self.server.files.get(self.path)
        if self.path == "/v2/":
            self._head(200, 2, "application/json")
            data = b"{}"
        elif self.path == self.server.manifest_path:
            self._head(200, len(self.server.manifest), self.server.kind)
            data = self.server.manifest
        elif file is not None:
            self._head(200, _size(file), "application/octet-stream")
            if body:
                with open(file, "rb") as stream:
                    shutil.copyfileobj(stream, self.wfile, BLOCK)
            return
        else:
            self._head(404, 0, "text/plain")
            return
        if body:
            self.wfile.write(data)

    def _head(self, status: int, length: int, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


def pull(imgpkg: str, image: str, ca_file: str, blobs_folder: str, output: str) -> str:
    """Fetch an image and unpack it into `output`, which must not exist yet; returns how much was fetched now and how much before.

    Raises:
        AgentError: it can't be pulled or unpacked, the disk is full, or another process is pulling it.
    """
    os.makedirs(blobs_folder, mode=0o700, exist_ok=True)
    with open(os.path.join(blobs_folder, "lock"), "w", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AgentError(
                f"{image} is being pulled by another process", resolution="wait until it has finished, and try again", reason="PullFailed"
            ) from None
        puller = Puller(image, ca_file, blobs_folder)
        try:
            manifest, kind, blobs = puller.fetch()
        except NeedsImgpkg:
            _unpack(imgpkg, image, ca_file, output)
            return "pulled by imgpkg"
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise AgentError(f"{blobs_folder} can't be written: {error.strerror}", resolution="free some space there", reason="DiskFull") from None
        server = _Loopback(puller, manifest, kind, blobs)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            here = puller.reference
            _unpack(imgpkg, f"127.0.0.1:{server.server_address[1]}/{here.repository}@{here.digest}", None, output)
        finally:
            server.shutdown()
            server.server_close()
    megabytes = sum(blob.size for blob in blobs) / 1e6
    return f"{megabytes:.1f} MB" + (f", {puller.resumed / 1e6:.1f} of them from an earlier attempt" if puller.resumed else "")


def _unpack(imgpkg: str, image: str, ca_file: Optional[str], output: str) -> None:
    """Run imgpkg, which checks the digest in `image`. It trusts only the given CA, and uses only the registry in `image`. Raises ProcessFailed."""
    argv = [imgpkg, "pull", "--tty=false", "--image", image, "--image-is-bundle-check=false", "--output", output]
    if ca_file:
        argv += ["--registry-ca-cert-path", ca_file]
    run(argv, timeout=UNPACK_SECONDS, proxied=True, what=f"imgpkg pull of {image}", reason="PullFailed")
