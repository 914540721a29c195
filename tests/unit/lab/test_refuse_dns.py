"""The lab's nameserver: what it answers to any bytes, and its process on a loopback address."""

from __future__ import annotations

import os
import random
import signal
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ckp.kits.errors import CkpError
from ckp.kits.retry import wait_until
from ckp.lab.cgroups import HostCgroup
from ckp.lab.nameserver import Nameserver
from ckp.lab.refuse_dns import CONNECTIONS, IDLE_SECONDS, QUERY_LIMIT, refusal

ADDRESS = "127.0.0.1"
RESPONSE, TRUNCATED, RECURSION = 0x8000, 0x0200, 0x0100


def header(number: int, flags: int, questions: int = 1, additional: int = 0) -> bytes:
    return struct.pack(">6H", number, flags, questions, 0, 0, additional)


def question(*labels: bytes, kind: int = 1) -> bytes:
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0" + struct.pack(">2H", kind, 1)


ASKED = question(b"Registry", b"example")
QUERY = header(0x1234, RECURSION) + ASKED
EDNS = b"\0" + struct.pack(">2HIH", 41, 1232, 0, 0)

labels = st.lists(st.binary(min_size=1, max_size=63), max_size=5)
headers = st.builds(header, st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.integers(0, 3), st.integers(0, 2))
queries = st.builds(lambda head, names, kind, rest: head + question(*names, kind=kind) + rest, headers, labels, st.integers(0, 0xFFFF), st.binary(max_size=40))
broken = st.builds(lambda head, rest: head + rest, headers, st.binary(max_size=600))


def names_end(message: bytes, at: int) -> int | None:
    """Where the name that begins at `at` ends, if it is one of at most 255 bytes (RFC 1035, section 3.1)."""
    begin = at
    while at < len(message) and message[at] < 64 and at - begin < 255:
        if message[at] == 0:
            return at + 1
        at += 1 + message[at]
    return None


@given(st.one_of(queries, broken, st.binary(max_size=600)))
@example(b"")
@example(QUERY)
@example(header(7, 0) + b"\xc0\x0c\0\1\0\1")  # a name that points to itself
@example(header(7, 0) + b"\xc0" + b"x" * 0xC0 + b"\0\0\1\0\1")  # a pointer is no length
@example(header(7, 0) + question(*[b"x" * 63] * 3, b"x" * 61))  # the longest name
@example(header(7, 0) + question(*[b"x" * 63] * 3, b"x" * 62))  # and one that is too long
@example(header(7, 0) + b"\x3f" * 600)
@example(header(7, 0) + ASKED[:-1])
def test_any_bytes_get_no_answer_or_a_well_formed_refusal(query: bytes) -> None:
    answer = refusal(query)
    if len(query) < 12 or query[2] & 0x80:
        assert answer is None, "a response, or less than a header, gets no answer"
        return
    assert answer is not None
    number, flags, questions, *others = struct.unpack_from(">6H", answer)
    asked, flags_asked, questions_asked, *_ = struct.unpack_from(">6H", query)
    assert number == asked
    assert flags & RESPONSE and flags & 0xF == 5
    assert not flags & TRUNCATED
    assert flags >> 11 & 0xF == flags_asked >> 11 & 0xF, "the kind of query"
    assert others == [0, 0, 0]
    end = names_end(query, 12)
    if questions_asked == 1 and end is not None and end + 4 <= len(query):
        assert (questions, answer[12:]) == (1, query[12 : end + 4])
    else:
        assert (questions, answer[12:]) == (0, b"")
    assert len(answer) <= len(query), "nobody is flooded by it under a forged address"
    assert refusal(answer) is None, "two of them do not keep answering each other"


def test_a_question_is_repeated_as_it_was_written_and_a_clients_wishes_too() -> None:
    """Resolvers compare the letters' case with their own (draft-vixie-dnsext-dns0x20)."""
    assert refusal(QUERY) == header(0x1234, RESPONSE | RECURSION | 5) + ASKED
    assert refusal(header(1, 0x0010, additional=1) + ASKED + EDNS) == header(1, RESPONSE | 0x0010 | 5) + ASKED


# -- the process


def port_for_both() -> int:
    """A port that is free for UDP and TCP."""
    for _ in range(50):
        with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            tcp.bind((ADDRESS, 0))
            port = int(tcp.getsockname()[1])
            try:
                udp.bind((ADDRESS, port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free for both")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Nameserver]:
    made = Nameserver(tmp_path / "nameserver", ADDRESS, HostCgroup("test", "_nameserver", ()), port_for_both())
    try:
        made.ensure()
        yield made
    finally:
        made.stop()


def connect(server: Nameserver) -> socket.socket:
    return socket.create_connection((server.address, server.port), timeout=5)


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


def over_tcp(client: socket.socket, message: bytes) -> bytes:
    """Send one query, and read to the end of its answer; b"" if the connection is closed instead."""
    client.sendall(framed(message))
    received = b""
    while len(received) < 2 or len(received) < 2 + int.from_bytes(received[:2], "big"):
        if not (chunk := client.recv(4096)):
            return b""
        received += chunk
    return received[2:]


def over_udp(server: Nameserver, message: bytes) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.sendto(message, (server.address, server.port))
        return client.recv(4096)


def test_it_refuses_by_udp_and_tcp_and_nothing_else_changes_that(server: Nameserver) -> None:
    generator = random.Random(7)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as noise:
        for size in (0, 1, 11, 12, 13, 100, 512, 4000, 60000):
            noise.sendto(generator.randbytes(size), (server.address, server.port))
    assert over_udp(server, QUERY) == refusal(QUERY)
    with connect(server) as client:
        assert [over_tcp(client, QUERY) for _ in range(3)] == [refusal(QUERY)] * 3, "also more than once on a connection"
        client.sendall(framed(QUERY)[:1])
        time.sleep(0.05)
        client.sendall(framed(QUERY)[1:])
        assert client.recv(100) == framed(refusal(QUERY) or b""), "also in two pieces"


@pytest.mark.parametrize("message", [b"", b"\0" * 11, header(1, RESPONSE) + ASKED, b"\0" * (QUERY_LIMIT + 1)], ids=["empty", "short", "response", "long"])
def test_a_connection_with_what_is_no_query_is_closed(server: Nameserver, message: bytes) -> None:
    with connect(server) as client:
        client.settimeout(IDLE_SECONDS / 2)
        try:
            assert over_tcp(client, message) == b""
        except ConnectionResetError:
            pass  # closed as well, while some of it was unread
    assert over_udp(server, QUERY) == refusal(QUERY)


def test_connections_that_are_held_open_keep_nobody_out_and_cost_little(server: Nameserver) -> None:
    pid = server.pid()
    assert pid is not None

    def memory() -> int:
        return next(int(line.split()[1]) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))

    before = memory()
    held = []
    try:
        for _ in range(3 * CONNECTIONS):
            held.append(connect(server))
            held[-1].sendall(QUERY_LIMIT.to_bytes(2, "big") + b"x" * (QUERY_LIMIT - 1))
        with connect(server) as client:
            assert over_tcp(client, QUERY) == refusal(QUERY)
        assert len(list(Path(f"/proc/{pid}/fd").iterdir())) <= CONNECTIONS + 10
        assert memory() - before < 8 << 10, "KiB"
    finally:
        for client in held:
            client.close()


def test_a_client_that_never_reads_is_dropped_and_others_are_answered_meanwhile(server: Nameserver) -> None:
    with connect(server) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        deaf.settimeout(1)
        with pytest.raises(OSError):  # reset, or full for a second
            while True:
                deaf.sendall(framed(QUERY) * 100)
        assert over_udp(server, QUERY) == refusal(QUERY)


def test_a_connection_without_a_query_is_closed_after_a_while(server: Nameserver) -> None:
    with connect(server) as client:
        client.settimeout(IDLE_SECONDS + 5)
        client.sendall(b"\0")
        started = time.monotonic()
        assert client.recv(1) == b""
        assert time.monotonic() - started > IDLE_SECONDS - 1


def test_it_runs_in_a_session_of_its_own_and_not_as_root(server: Nameserver) -> None:
    pid = server.pid()
    assert pid is not None
    assert os.getsid(pid) == pid != os.getsid(0)
    assert Path(f"/proc/{pid}").stat().st_uid != 0
    assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")


def test_it_is_started_once_and_again_when_it_has_died_or_hangs(server: Nameserver) -> None:
    first = server.pid()
    assert first is not None
    server.ensure()
    assert server.pid() == first
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: server.pid() is None, what="it has died", timeout=60, every=0.01)
    server.ensure()
    second = server.pid()
    assert second not in (None, first) and server.answers()
    assert second is not None
    os.kill(second, signal.SIGSTOP)
    server.ensure()
    assert server.pid() != second and server.answers()


def test_stopped_it_leaves_no_process_and_no_file_and_can_be_stopped_again(server: Nameserver) -> None:
    pid = server.pid()
    server.stop()
    assert pid is not None and server.pid() is None and not server.answers()
    assert not server.directory.exists()
    server.stop()


def test_a_port_that_another_program_has_is_an_error_that_says_so(server: Nameserver, tmp_path: Path) -> None:
    second = Nameserver(tmp_path / "second", ADDRESS, HostCgroup("test", "_nameserver", ()), server.port)
    try:
        with pytest.raises(CkpError, match=f"could not be started at {ADDRESS}:{server.port}") as caught:
            second.ensure()
    finally:
        second.stop()
    assert "Address already in use" in caught.value.details
    assert f"ss -lnp sport = :{server.port}" in caught.value.resolution
    assert server.answers()
