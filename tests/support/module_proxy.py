"""A Go module proxy for tests, over plain HTTP on loopback: it serves small modules, refuses what it is told to, and can lie."""

from __future__ import annotations

import base64
import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TIME = "2026-01-01T00:00:00Z"


@dataclass
class Module:
    """One version of one module."""

    path: str
    version: str
    files: dict[str, str]

    @property
    def mod(self) -> bytes:
        return self.files["go.mod"].encode()

    def zip(self) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for name, text in sorted(self.files.items()):
                archive.writestr(zipfile.ZipInfo(f"{self.path}@{self.version}/{name}"), text)
        return out.getvalue()

    def sums(self) -> str:
        """Its two lines of go.sum (golang.org/x/mod/sumdb/dirhash: Hash1)."""
        named = {f"{self.path}@{self.version}/{name}": text.encode() for name, text in self.files.items()}
        return f"{self.path} {self.version} {h1(named)}\n{self.path} {self.version}/go.mod {h1({'go.mod': self.mod})}\n"


def h1(files: dict[str, bytes]) -> str:
    """The directory hash of the go command."""
    listing = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files.items()))
    return "h1:" + base64.b64encode(hashlib.sha256(listing.encode()).digest()).decode()


@dataclass
class ModuleProxy:
    """What it serves; `refused` are modules that it answers with 403, `forged` those whose zip it changes."""

    modules: list[Module]
    refused: set[str] = field(default_factory=set)
    forged: set[str] = field(default_factory=set)
    delay: float = 0.0
    url: str = ""
    asked: list[str] = field(default_factory=list)

    def answer(self, path: str) -> tuple[int, bytes]:
        self.asked.append(path)
        for module in self.modules:
            prefix = f"/{module.path}/@v/{module.version}"
            if not path.startswith(prefix):
                continue
            if module.path in self.refused:
                return 403, b"not available here"
            if path == f"{prefix}.info":
                return 200, f'{{"Version":"{module.version}","Time":"{TIME}"}}'.encode()
            if path == f"{prefix}.mod":
                return 200, module.mod
            if path == f"{prefix}.zip":
                changed = Module(module.path, module.version, {**module.files, "added.go": "package added\n"})
                return 200, (changed if module.path in self.forged else module).zip()
        return 404, b"not found"


@contextmanager
def serving(proxy: ModuleProxy) -> Iterator[ModuleProxy]:
    """Serve on a free port of loopback for the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if proxy.delay:
                threading.Event().wait(proxy.delay)
            code, body = proxy.answer(self.path)
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    proxy.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
