"""A nameserver that refuses every query at once: the lab's own, since no name outside of a lab is to be resolved from it.

A program of its own, run by the path of this file with the standard library alone: `python -I -S refuse_dns.py ADDRESS [PORT]`. It keeps
at most CONNECTIONS connections with a few KiB each, and nothing of a datagram.

If nothing listened, lookups would time out: the kernel sends a host six "port unreachable" messages, then one a second
(net.ipv4.icmp_ratelimit; XRLIM_BURST_FACTOR in net/ipv4/inetpeer.c), and a CoreDNS whose upstream fails checks it twice a second.
"""

from __future__ import annotations

import os
import selectors
import socket
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

HEADER = struct.Struct(">6H")
"""ID, flags, and the numbers of questions, answers, authorities and additional records (RFC 1035, section 4.1.1)."""

QR, OPCODE, RD, CD = 0x8000, 0x7800, 0x0100, 0x0010
"""Of the flags: a response; the kind of query; and two wishes of the client that a response repeats (RFC 1035 4.1.1, RFC 4035 3.2.2)."""

REFUSED = 5
NAME_LIMIT, LABEL_LIMIT = 255, 63
"""Bytes of a name with its length bytes, and of one of its labels (RFC 1035, section 2.3.4)."""

QUERY_LIMIT = 4096
"""Bytes of a query: the rest of a longer datagram is not read, and a connection with a longer one is closed."""

CONNECTIONS = 64
"""Open at a time; for one more, the one without a query for the longest is closed."""

IDLE_SECONDS = 3.0
"""After which a connection without a whole query is closed."""

NOBODY = 65534

LISTENING = "refusing every query"
"""What its first line of output begins with, once it listens. Another program's answers would not show that it does."""


def refusal(query: bytes) -> bytes | None:
    """The answer REFUSED to a query. It is never longer than the query.

    Returns None for what is no query: less than a header, or itself a response, so that two servers can't keep answering each other.
    The question is repeated if there is exactly one and it is well-formed; clients ignore an answer to another question.
    """
    if len(query) < HEADER.size:
        return None
    number, flags, questions, *_ = HEADER.unpack_from(query)
    if flags & QR:
        return None
    question = _question(query) if questions == 1 else b""
    return HEADER.pack(number, QR | flags & (OPCODE | RD | CD) | REFUSED, 1 if question else 0, 0, 0, 0) + question


def _question(query: bytes) -> bytes:
    """The first question: name, type and class (RFC 1035, section 4.1.2); empty if it is malformed.

    A label's first two bits are 0. A pointer to an earlier name has them set, but no name comes before this one.
    """
    end = HEADER.size
    while end < len(query) and query[end]:
        if query[end] > LABEL_LIMIT:
            return b""
        end += 1 + query[end]
    end += 1  # the root's empty label
    if end - HEADER.size > NAME_LIMIT or end + 4 > len(query):
        return b""
    return query[HEADER.size : end + 4]


@dataclass
class _Connection:
    socket: socket.socket
    received: bytearray = field(default_factory=bytearray)
    expires: float = 0.0


class Refuser:
    """Listens on one address for UDP and TCP (RFC 7766), and serves in one thread, without ever waiting for one client.

    Raises OSError if the address or port can't be had.
    """

    def __init__(self, address: str, port: int) -> None:
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind((address, port))
        self._tcp = socket.create_server((address, port), backlog=256)
        self._selector = selectors.DefaultSelector()
        self._connections: dict[int, _Connection] = {}
        """By file descriptor, the first to expire first."""
        for listener, ready in ((self._udp, self._datagram), (self._tcp, self._accept)):
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ, ready)

    def serve(self) -> None:
        """Answer until the process is killed."""
        while True:
            for key, _ in self._selector.select(timeout=1.0 if self._connections else None):
                ready: Callable[[], None] = key.data
                ready()
            now = time.monotonic()
            for connection in [connection for connection in self._connections.values() if connection.expires <= now]:
                self._close(connection)

    def _datagram(self) -> None:
        try:
            query, client = self._udp.recvfrom(QUERY_LIMIT)
            if answer := refusal(query):
                self._udp.sendto(answer, client)
        except OSError:  # a broken datagram, a forged sender that can't be reached, or no room to send: a client asks again
            pass

    def _accept(self) -> None:
        try:
            made, _ = self._tcp.accept()
        except OSError:  # the client has gone
            return
        made.setblocking(False)
        if len(self._connections) >= CONNECTIONS:
            self._close(next(iter(self._connections.values())))
        connection = _Connection(made)
        self._selector.register(made, selectors.EVENT_READ, lambda: self._read(connection))
        self._renew(connection)

    def _read(self, connection: _Connection) -> None:
        if self._connections.get(connection.socket.fileno()) is not connection:
            return  # closed for another one since it was ready
        try:
            chunk = connection.socket.recv(QUERY_LIMIT)
            connection.received += chunk
            answers, whole = _answers(connection.received)
            # A client that does not read its answers loses them and its connection: nothing is kept for it.
            if not chunk or not whole or connection.socket.send(answers) < len(answers):
                self._close(connection)
            elif answers:
                self._renew(connection)
        except OSError:
            self._close(connection)

    def _renew(self, connection: _Connection) -> None:
        descriptor = connection.socket.fileno()
        self._connections.pop(descriptor, None)
        self._connections[descriptor] = connection
        connection.expires = time.monotonic() + IDLE_SECONDS

    def _close(self, connection: _Connection) -> None:
        self._connections.pop(connection.socket.fileno(), None)
        self._selector.unregister(connection.socket)
        connection.socket.close()


def _answers(received: bytearray) -> tuple[bytes, bool]:
    """Take all whole queries from what was received, each behind its length of two bytes; their answers, and whether all can be answered."""
    answers = b""
    while len(received) >= 2:
        size = int.from_bytes(received[:2], "big")
        if size > QUERY_LIMIT:
            return answers, False
        if len(received) < 2 + size:
            break
        answer = refusal(bytes(received[2 : 2 + size]))
        del received[: 2 + size]
        if answer is None:
            return answers, False
        answers += len(answer).to_bytes(2, "big") + answer
    return answers, True


def main(argv: list[str]) -> None:
    """Listen on the address and port of the command line, as nobody once they are bound, and serve."""
    address, port = argv[1], int(argv[2]) if len(argv) > 2 else 53
    os.chdir("/")  # keeps no folder of the caller in use
    try:
        refuser = Refuser(address, port)
    except OSError as error:
        sys.exit(f"cannot listen on {address}:{port}: {error.strerror}")
    if os.geteuid() == 0:  # it was needed for the port alone
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    print(f"{LISTENING} at {address}:{port}", flush=True)
    refuser.serve()


if __name__ == "__main__":
    main(sys.argv)
