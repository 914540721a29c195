"""The registry simulator behind TLS on loopback, for clients that are programs; and a relay that cuts connections."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx

from tests.simulators.registry import RegistrySimulator
from tests.worlds.tls import make_authority, make_leaf, write_pair


@contextmanager
def served(simulator: RegistrySimulator, folder: Path) -> Iterator[tuple[str, str]]:
    """`host:port`, and the PEM of the CA of its certificate."""

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer = simulator.handle(httpx.Request("GET", f"https://{self.headers['Host']}{self.path}", headers=dict(self.headers.items())))
            self.send_response(answer.status_code)
            for name, value in answer.headers.items():
                if name.lower() not in ("content-length", "transfer-encoding"):
                    self.send_header(name, value)
            self.send_header("Content-Length", answer.headers["content-length"])
            self.end_headers()
            try:
                for part in answer.iter_raw():
                    self.wfile.write(part)
            except httpx.RemoteProtocolError:
                self.close_connection = True
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)

        def log_message(self, format: str, *args: object) -> None:
            pass

    root = make_authority("registry-root")
    certificate, key = write_pair(folder, "registry", *make_leaf(root, server=True))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.daemon_threads = True
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}", root.pem
    finally:
        server.shutdown()
        server.server_close()


class CuttingRelay:
    """Passes TCP on to `port` of loopback; each connection ends after `limit` bytes towards the client (None: never)."""

    def __init__(self, port: int) -> None:
        self.limit: int | None = None
        self.passed = 0
        """Bytes that went towards clients, all connections together."""
        self._target = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Accept no further connections."""
        self._server.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                upstream = socket.create_connection(("127.0.0.1", self._target))
                threading.Thread(target=self._pump, args=(client, upstream, None), daemon=True).start()
                threading.Thread(target=self._pump, args=(upstream, client, self.limit), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, limit: int | None) -> None:
        left = limit
        with suppress(OSError):
            while left is None or left > 0:
                data = source.recv(65536 if left is None else min(65536, left))
                if not data:
                    break
                target.sendall(data)
                if source.getpeername()[1] == self._target:
                    self.passed += len(data)
                left = None if left is None else left - len(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
