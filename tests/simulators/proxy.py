"""An HTTP proxy that only opens tunnels (CONNECT, RFC 9110 §9.3.6), and remembers to where."""

from __future__ import annotations

import base64
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

HEADER_LIMIT = 16 << 10
IDLE_SECONDS = 30.0


@dataclass
class ProxySimulator:
    """One proxy.

    Args:
        credentials: `user:password` that it requires; "" for none.
        routes: where it connects to for a target it is asked for, `host:port` each: names that no resolver has.
        status: the status line's rest that every request is answered with instead of a tunnel.
    """

    credentials: str = ""
    routes: dict[str, str] = field(default_factory=dict)
    status: str = ""
    asked: list[str] = field(default_factory=list)
    """The targets of all requests, in order, also of those that were refused."""
    address: str = ""

    def serve(self, listener: socket.socket) -> None:
        """Accept until the listener is closed."""
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._client, args=(client,), daemon=True).start()

    def _client(self, client: socket.socket) -> None:
        client.settimeout(IDLE_SECONDS)
        with client:
            try:
                head = b""
                while b"\r\n\r\n" not in head and len(head) < HEADER_LIMIT:
                    part = client.recv(1)
                    if not part:
                        return
                    head += part
                lines = head.decode("latin-1").split("\r\n")
                method, target, _ = lines[0].split(" ", 2)
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)}
                self.asked.append(f"{target}" if method == "CONNECT" else f"{method} {target}")
                refusal = self._refusal(method, headers)
                if refusal:
                    client.sendall(f"HTTP/1.1 {refusal}\r\nContent-Length: 0\r\n\r\n".encode())
                    return
                host, _, port = self.routes.get(target, target).rpartition(":")
                with socket.create_connection((host.strip("[]"), int(port)), timeout=IDLE_SECONDS) as server:
                    client.sendall(b"HTTP/1.1 200 Connection established\r\nVia: 1.1 simulator\r\n\r\n")
                    back = threading.Thread(target=_copy, args=(server, client), daemon=True)
                    back.start()
                    _copy(client, server)
                    back.join(IDLE_SECONDS)
            except (OSError, ValueError):
                return

    def _refusal(self, method: str, headers: dict[str, str]) -> str:
        if self.credentials and headers.get("proxy-authorization") != "Basic " + base64.b64encode(self.credentials.encode()).decode():
            return "407 Proxy Authentication Required"
        return self.status or ("" if method == "CONNECT" else "405 Method Not Allowed")


def _copy(source: socket.socket, target: socket.socket) -> None:
    """Copy until one side ends; then end the other's writing."""
    try:
        while data := source.recv(64 << 10):
            target.sendall(data)
    except OSError:
        pass
    for end in (source, target):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


@contextmanager
def running(simulator: ProxySimulator, address: str = "127.0.0.1") -> Iterator[str]:
    """Run it on an address of this machine; gives its URL, without credentials."""
    with socket.create_server((address, 0)) as listener:
        threading.Thread(target=simulator.serve, args=(listener,), daemon=True).start()
        simulator.address = f"{address}:{listener.getsockname()[1]}"
        try:
            yield f"http://{simulator.address}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
