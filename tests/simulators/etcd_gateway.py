"""An etcd member's JSON gateway with as much as a backup asks it: a read, the list of members, and a snapshot in pieces with its digest behind it."""

from __future__ import annotations

import base64
import hashlib
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BLOB = 32 << 10


@dataclass
class EtcdGateway:
    """A member.

    Args:
        database: what a snapshot is of.
        breaks_off: after this many pieces of a snapshot; None: it does not.
    """

    database: bytes
    revision: int = 7
    breaks_off: int | None = None
    asked: list[str] = field(default_factory=list)
    port: int = 0

    @property
    def snapshot(self) -> bytes:
        """As it is in a backup."""
        return self.database + hashlib.sha256(self.database).digest()

    def answer(self, path: str) -> Iterator[dict[str, Any]]:
        """The JSON documents of an answer."""
        header = {"cluster_id": str(0xABC), "revision": str(self.revision)}
        match path:
            case "/v3/kv/range":
                yield {"header": header}
            case "/v3/cluster/member/list":
                yield {"header": header, "members": [{"name": "m0", "peerURLs": ["https://m0:2380"]}]}
            case "/v3/maintenance/status":
                yield {"header": header, "version": "3.5.15"}
            case "/v3/maintenance/snapshot":
                whole = self.database
                pieces = [whole[start : start + BLOB] for start in range(0, len(whole), BLOB)]
                for piece in [*pieces, hashlib.sha256(whole).digest()][: self.breaks_off]:
                    yield {"result": {"blob": base64.b64encode(piece).decode()}}

    @contextmanager
    def serving(self, context: ssl.SSLContext | None = None) -> Iterator[EtcdGateway]:
        """It listens on `port` of the loopback."""
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                gateway.asked.append(self.path)
                self.send_response(200)
                self.end_headers()
                for document in gateway.answer(self.path):
                    self.wfile.write(json.dumps(document).encode() + b"\n")

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                pass

        server = Server(("127.0.0.1", 0), Handler)
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        self.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
