"""An object store with as much of S3's API as backups use, in memory, and with faults that tests ask for. It does not check signatures: versitygw does."""

from __future__ import annotations

import hashlib
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
BUCKET = "backups"


@dataclass
class S3Store:
    """One store with one bucket.

    Args:
        region: requests for another one are refused.
        faults: status codes that the next requests are answered with; 0 closes the connection.
        breaks_off: bytes after which an answer with an object's content breaks off; None: it does not.
        spoils: an object loses a bit when it is stored.
        page: names in a page of a listing.
    """

    region: str = "us-east-1"
    faults: list[int] = field(default_factory=list)
    breaks_off: int | None = None
    spoils: bool = False
    refuses: str = ""
    """A method that is answered with AccessDenied."""
    page: int = 2
    objects: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, tuple[str, dict[int, bytes]]] = field(default_factory=dict)
    began: str = "2020-01-01T00:00:00.000Z"
    asked: list[str] = field(default_factory=list)
    largest: int = 0
    """Bytes of the largest body that came with content."""
    port: int = 0

    @contextmanager
    def serving(self, context: ssl.SSLContext | None = None) -> Iterator[S3Store]:
        """On loopback, for as long as the block lasts."""
        store = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except OSError:
                    self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:
                """Nothing."""

            def do_GET(self) -> None:
                store.handle(self)

            do_PUT = do_POST = do_DELETE = do_HEAD = do_GET

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            if context is not None:
                server.socket = context.wrap_socket(server.socket, server_side=True)
            self.port = server.server_address[1]
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
            try:
                yield self
            finally:
                server.shutdown()

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("content-length", 0)))
        self.largest = max(self.largest, len(body) if request.command == "PUT" else 0)
        parts = urlsplit(request.path)
        query = {key: values[0] for key, values in parse_qs(parts.query, keep_blank_values=True).items()}
        bucket, _, name = unquote(parts.path).lstrip("/").partition("/")
        self.asked.append(f"{request.command} {name or '-'}{'?' + parts.query if parts.query else ''}")
        if self.faults:
            if status := self.faults.pop(0):
                return self._error(request, status, "SlowDown" if status == 503 else "")
            request.close_connection = True  # without a word
            return None
        if request.headers["x-amz-content-sha256"] != hashlib.sha256(body).hexdigest():
            return self._error(request, 400, "XAmzContentSHA256Mismatch")
        if f"/{self.region}/s3/aws4_request" not in request.headers["authorization"]:
            return self._error(request, 400, "AuthorizationHeaderMalformed", f"<Region>{self.region}</Region>")
        if bucket != BUCKET:
            return self._error(request, 404, "NoSuchBucket")
        if request.command == self.refuses:
            return self._error(request, 403, "AccessDenied")
        return self._answer(request, request.command, name, query, body)

    def _answer(self, request: BaseHTTPRequestHandler, method: str, name: str, query: dict[str, str], body: bytes) -> None:
        match method:
            case "GET" if "list-type" in query:
                names = sorted(key for key in self.objects if key.startswith(query["prefix"]) and key > query.get("continuation-token", ""))
                more = f"<NextContinuationToken>{escape(names[self.page - 1])}</NextContinuationToken>" if len(names) > self.page else ""
                rows = "".join(f"<Contents><Key>{escape(key)}</Key><Size>{len(self.objects[key])}</Size></Contents>" for key in names[: self.page])
                self._xml(request, "ListBucketResult", f"<IsTruncated>{str(bool(more)).lower()}</IsTruncated>{more}{rows}")
            case "GET" if "uploads" in query:
                rows = "".join(
                    f"<Upload><Key>{key}</Key><UploadId>{each}</UploadId><Initiated>{self.began}</Initiated></Upload>"
                    for each, (key, _) in self.uploads.items()
                )
                self._xml(request, "ListMultipartUploadsResult", rows)
            case "GET" | "HEAD":
                self._content(request, method, name)
            case "POST" if "uploads" in query:
                upload = f"u{len(self.asked)}"
                self.uploads[upload] = (name, {})
                self._xml(request, "InitiateMultipartUploadResult", f"<UploadId>{upload}</UploadId>")
            case "PUT" if "uploadId" in query:
                self.uploads[query["uploadId"]][1][int(query["partNumber"])] = body
                self._send(request, 200, b"", {"ETag": f'"{query["partNumber"]}"'})
            case "POST" if query["uploadId"] not in self.uploads:
                self._error(request, 404, "NoSuchUpload")
            case "POST":
                _, pieces = self.uploads.pop(query["uploadId"])
                self._store(name, b"".join(pieces[number] for number in sorted(pieces)))
                self._xml(request, "CompleteMultipartUploadResult", "<ETag>e</ETag>")
            case "PUT":
                self._store(name, body)
                self._send(request, 200, b"", {"ETag": '"e"'})
            case "DELETE" if "uploadId" in query:
                self.uploads.pop(query["uploadId"], None)
                self._send(request, 204, b"", {})
            case _:
                self.objects.pop(name, None)
                self._send(request, 204, b"", {})

    def _store(self, name: str, content: bytes) -> None:
        self.objects[name] = bytes([content[0] ^ 1]) + content[1:] if self.spoils else content

    def _content(self, request: BaseHTTPRequestHandler, method: str, name: str) -> None:
        if name not in self.objects:
            self._error(request, 404, "NoSuchKey")
            return
        begin = int(request.headers.get("range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        content = self.objects[name][begin:]
        request.send_response(206 if "range" in request.headers else 200)
        request.send_header("Content-Length", str(len(content)))
        request.send_header("ETag", '"e"')
        request.end_headers()
        if method == "HEAD":
            return
        if self.breaks_off is not None and len(content) > self.breaks_off:
            request.wfile.write(content[: self.breaks_off])
            request.close_connection = True
            return
        request.wfile.write(content)

    def _error(self, request: BaseHTTPRequestHandler, status: int, code: str, more: str = "") -> None:
        text = f"<Error><Code>{code}</Code><Message>the store says so</Message>{more}</Error>".encode() if code and request.command != "HEAD" else b""
        self._send(request, status, text, {})

    def _xml(self, request: BaseHTTPRequestHandler, name: str, inner: str) -> None:
        self._send(request, 200, f'<?xml version="1.0" encoding="UTF-8"?>\n<{name} xmlns="{NAMESPACE}">{inner}</{name}>'.encode(), {})

    @staticmethod
    def _send(request: BaseHTTPRequestHandler, status: int, content: bytes, headers: dict[str, str]) -> None:
        request.send_response(status)
        for key, value in headers.items():
            request.send_header(key, value)
        if status != 204:
            request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)
