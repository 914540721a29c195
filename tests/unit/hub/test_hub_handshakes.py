"""Admission control: no work is done for a host that has given up while it waited."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from pathlib import Path
from typing import Any

from ckp.hub.transport import handshakes as gate
from tests.worlds.tls import make_authority, make_leaf, write_pair


class Door(asyncio.Protocol):
    """A connection that is open as soon as TLS is done."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()

    def connection_made(self, transport: Any) -> None:
        self.opened.set()

    def connection_lost(self, error: Exception | None) -> None:
        self.opened.set()


async def test_a_client_that_left_while_waiting_costs_nothing_and_one_that_stayed_is_served(tmp_path: Path) -> None:
    authority = make_authority("root")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*write_pair(tmp_path, "server", *make_leaf(authority, server=True)))
    trust = ssl.create_default_context(cadata=authority.pem)
    door = gate.listening("127.0.0.1", 0)
    port = door.getsockname()[1]
    for number in range(20):  # they send what they would send, and leave: half of them with a reset
        gone = socket.create_connection(("127.0.0.1", port))
        gone.sendall(b"\x16\x03\x01\x02\x00\x01" + bytes(100))
        if number % 2:
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        gone.close()
    made: list[Door] = []

    def connection() -> Any:
        made.append(Door())
        return made[-1]

    door.setblocking(False)
    asyncio.get_running_loop().add_reader(door.fileno(), lambda: None)
    async with gate.limit_handshakes(door, context, connection, lambda one: one.opened, 5.0):
        async with asyncio.timeout(10):
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust, server_hostname="localhost")
        assert len(made) == 1, "one protocol, one handshake: for the one who stayed"
        writer.close()
    door.close()
