"""A registry in memory that enforces what a real one does, and breaks on demand.

It follows the distribution specification 1.1 and, where that leaves things open, the project distribution v3: a manifest is taken only when
all that it names is there; deleting a manifest takes its tags away too.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from ckp.clients.oci.store import INDEX, MANIFESTS, canonical, sha256

Handler = Callable[[httpx.Request], None]


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose `METHOD /path` the pattern finds.

    Args:
        status: answer with this status.
        cut: cut the connection; with `after` bytes of the body of an answer, or before any answer.
        alter: flip a bit of the body's last byte.
        hook: called before the request is served, to do what somebody else does at that moment.
    """

    pattern: str
    times: int = 1
    status: int = 0
    cut: bool = False
    after: int | None = None
    alter: bool = False
    hook: Callable[[], object] | None = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class _Repository:
    blobs: set[str] = field(default_factory=set)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


class _Body(httpx.SyncByteStream):
    def __init__(self, data: bytes, cut_after: int | None) -> None:
        self._data, self._cut_after = data, cut_after

    def __iter__(self) -> Iterator[bytes]:
        step = 1 << 16
        data = self._data if self._cut_after is None else self._data[: self._cut_after]
        for start in range(0, len(data), step):
            yield data[start : start + step]
        if self._cut_after is not None:
            raise httpx.RemoteProtocolError("peer closed connection without sending complete message body")


def as_stream(answer: httpx.Response, cut_after: int | None = None) -> httpx.Response:
    """An answer whose body comes as from a network; after `cut_after` bytes the connection breaks."""
    return httpx.Response(answer.status_code, headers=answer.headers, stream=_Body(answer.read(), cut_after))


class RegistrySimulator:
    """One registry; give its `transport` to ckp.clients.oci.registry.Registry.

    Args:
        referrers_api: whether it lists referrers itself (specification 1.1) or leaves that to its clients.
        delete_tags: whether a tag can be deleted alone.
        ranges: whether it serves parts of blobs.
        page: the most entries of a listing in one answer.
        password: if set, requests need a token, had from its own `/token` with these basic credentials (base64).
    """

    def __init__(self, *, referrers_api: bool = False, delete_tags: bool = True, ranges: bool = True, page: int = 1000, password: str = "") -> None:
        self.referrers_api, self.delete_tags, self.ranges, self.page, self.password = referrers_api, delete_tags, ranges, page, password
        self.content: dict[str, bytes] = {}
        self.repositories: dict[str, _Repository] = {}
        self.faults: list[Fault] = []
        self.log: list[str] = []
        self._uploads = 0
        self._lock = threading.RLock()
        self.transport = httpx.MockTransport(self.handle)

    def requests(self, pattern: str) -> list[str]:
        """The requests so far (`METHOD /path`, and what range of a blob) that a pattern finds."""
        return [line for line in self.log if re.search(pattern, line)]

    def tags(self, repository: str) -> dict[str, str]:
        """Tags and what they name."""
        return dict(self.repositories.get(repository, _Repository()).tags)

    def handle(self, request: httpx.Request) -> httpx.Response:
        """Serve a request."""
        body = request.read()
        line = f"{request.method} {request.url.raw_path.decode()} {request.headers.get('Range', '')}".rstrip()
        with self._lock:
            self.log.append(line)
            fault = next((item for item in self.faults if item.times and re.search(item.pattern, line)), None)
            if fault:
                fault.times -= 1
        if fault and fault.hook:
            fault.hook()
        if fault and fault.status:
            return as_stream(_error(fault.status, "UNAVAILABLE", "as it was told to", fault.headers))
        if fault and fault.cut and fault.after is None:
            raise httpx.ReadError("connection reset by peer")
        with self._lock:
            answer = self._serve(request, body)
        if fault and fault.alter:
            data = answer.read()
            answer = httpx.Response(answer.status_code, headers=answer.headers, content=data[:-1] + bytes([data[-1] ^ 1]))
        return as_stream(answer, fault.after if fault else None)

    def _serve(self, request: httpx.Request, body: bytes) -> httpx.Response:
        path, query, method = request.url.path, request.url.params, request.method
        if path == "/token":
            good = request.headers.get("Authorization", "") == f"Basic {self.password}"
            return httpx.Response(200, json={"token": f"for-{query['scope']}"}) if good else _error(401, "UNAUTHORIZED", "wrong password")
        if self.password and (challenge := self._challenge(request)):
            return challenge
        if path == "/v2/":
            return httpx.Response(200, json={})
        if path == "/v2/_catalog":
            return self._page(request, "repositories", sorted(self.repositories))
        match = re.fullmatch(r"/v2/(.+)/(blobs/uploads|blobs|manifests|tags|referrers)/(.*)", path)
        if not match:
            return _error(404, "NOT_FOUND", path)
        name, kind, rest = match.groups()
        repository = self.repositories.get(name) or (self.repositories.setdefault(name, _Repository()) if method in ("POST", "PUT") else _Repository())
        if kind == "tags":
            return self._page(request, "tags", sorted(repository.tags)) if repository.tags else _error(404, "NAME_UNKNOWN", name)
        if kind == "referrers":
            return self._referrers(repository, rest, query.get("artifactType"))
        if kind == "blobs/uploads":
            return self._upload(request, name, repository, rest, body)
        if kind == "blobs":
            return self._blob(request, repository, rest)
        return {"PUT": self._put, "DELETE": self._delete}.get(method, self._get)(request, repository, rest, body)

    def _challenge(self, request: httpx.Request) -> httpx.Response | None:
        match = re.match(r"/v2/(.+)/(?:blobs|manifests|tags|referrers)/", request.url.path)
        action = "pull" if request.method in ("GET", "HEAD") else "pull,push"
        scope = f"repository:{match.group(1)}:{action}" if match else "registry:catalog:*"
        if request.headers.get("Authorization") == f"Bearer for-{scope}":
            return None
        realm = f'Bearer realm="https://{request.url.netloc.decode()}/token",service="simulator",scope="{scope}"'
        return _error(401, "UNAUTHORIZED", "authentication required", {"WWW-Authenticate": realm})

    def _page(self, request: httpx.Request, name: str, items: list[str]) -> httpx.Response:
        asked = min(self.page, int(request.url.params.get("n", self.page)))
        after = request.url.params.get("last", "")
        rest = [item for item in items if item > after]
        headers = {}
        if len(rest) > asked:
            headers["Link"] = f'<{request.url.path}?last={rest[asked - 1]}&n={asked}>; rel="next"'
        return httpx.Response(200, json={name: rest[:asked]}, headers=headers)

    def _upload(self, request: httpx.Request, name: str, repository: _Repository, rest: str, body: bytes) -> httpx.Response:
        if request.method == "POST":
            mount, origin = request.url.params.get("mount", ""), request.url.params.get("from", "")
            if mount and mount in self.repositories.get(origin, _Repository()).blobs:
                repository.blobs.add(mount)
                return httpx.Response(201, headers={"Location": f"/v2/{name}/blobs/{mount}"})
            self._uploads += 1
            return httpx.Response(202, headers={"Location": f"/v2/{name}/blobs/uploads/{self._uploads}?_state=x"})
        if request.method == "DELETE":  # an upload is cancelled
            return httpx.Response(204)
        digest = request.url.params["digest"]
        if sha256(body) != digest:
            return _error(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
        self.content[digest] = body
        repository.blobs.add(digest)
        return httpx.Response(201)

    def _blob(self, request: httpx.Request, repository: _Repository, digest: str) -> httpx.Response:
        if digest not in repository.blobs:
            return _error(404, "BLOB_UNKNOWN", "blob unknown to registry")
        data, match = self.content[digest], re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        if match and self.ranges:
            start = int(match.group(1))
            return httpx.Response(206, content=data[start:]) if start < len(data) else _error(416, "RANGE_INVALID", "")
        return httpx.Response(200, content=data if request.method == "GET" else b"")

    def _get(self, request: httpx.Request, repository: _Repository, reference: str, _: bytes) -> httpx.Response:
        digest = repository.tags.get(reference, reference)
        if digest not in repository.manifests:
            return _error(404, "MANIFEST_UNKNOWN", "manifest unknown")
        media_type, body = repository.manifests[digest]
        headers = {"Content-Type": media_type, "Docker-Content-Digest": digest}
        return httpx.Response(200, headers=headers, content=body if request.method == "GET" else b"")

    def _put(self, request: httpx.Request, repository: _Repository, reference: str, body: bytes) -> httpx.Response:
        content: dict[str, Any] = json.loads(body)
        digest, media_type = sha256(body), request.headers["Content-Type"]
        if media_type not in MANIFESTS:
            return _error(400, "MANIFEST_INVALID", media_type)
        if reference.startswith("sha256:") and reference != digest:
            return _error(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
        named = [*([content["config"]] if "config" in content else []), *content.get("layers", [])]
        if missing := [item["digest"] for item in named if item["digest"] not in repository.blobs]:
            return _error(400, "MANIFEST_BLOB_UNKNOWN", f"blob unknown to registry: {missing[0]}")
        if absent := [item["digest"] for item in content.get("manifests", []) if item["digest"] not in repository.manifests]:
            return _error(400, "MANIFEST_BLOB_UNKNOWN", f"manifest unknown to registry: {absent[0]}")
        repository.manifests[digest] = (media_type, body)
        if reference != digest:
            repository.tags[reference] = digest
        headers = {"Docker-Content-Digest": digest}
        if self.referrers_api and "subject" in content:
            headers["OCI-Subject"] = content["subject"]["digest"]
        return httpx.Response(201, headers=headers)

    def _delete(self, _: httpx.Request, repository: _Repository, reference: str, __: bytes) -> httpx.Response:
        if reference in repository.tags:
            if not self.delete_tags:
                return _error(405, "UNSUPPORTED", "The operation is unsupported.")
            del repository.tags[reference]
            return httpx.Response(202)
        if repository.manifests.pop(reference, None) is None:
            return _error(404, "MANIFEST_UNKNOWN", "manifest unknown")
        repository.tags = {tag: digest for tag, digest in repository.tags.items() if digest != reference}
        return httpx.Response(202)

    def _referrers(self, repository: _Repository, digest: str, artifact_type: str | None) -> httpx.Response:
        if not self.referrers_api:
            return httpx.Response(404, text="404 page not found\n")
        items = []
        for name, (media_type, body) in sorted(repository.manifests.items()):
            content = json.loads(body)
            kind = content.get("artifactType") or content.get("config", {}).get("mediaType", "")
            if content.get("subject", {}).get("digest") == digest and artifact_type in (None, kind):
                item = {"mediaType": media_type, "digest": name, "size": len(body), "artifactType": kind, "annotations": content.get("annotations") or {}}
                items.append(item)
        return httpx.Response(200, headers={"Content-Type": INDEX}, content=canonical({"schemaVersion": 2, "mediaType": INDEX, "manifests": items}))


def _error(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> httpx.Response:
    return httpx.Response(status, json={"errors": [{"code": code, "message": message}]}, headers=headers)
