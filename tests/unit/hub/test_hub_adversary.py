"""Hosts and strangers that wish the hub ill, over real TLS sockets: what they do harms themselves alone, and ends in a clean close."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from ckp.api import kinds, names
from ckp.api.host_protocol import MAX_FRAME_BYTES, Desired, Hello, Renewal
from ckp.hub import status as shape
from ckp.hub.identity import HostId, credential_of
from ckp.hub.sessions import session as session_module
from ckp.hub.sessions.server import PATH
from ckp.hub.transport import websocket as websocket_module
from ckp.rules import certificates
from tests.simulators.kube import KubeSimulator
from tests.worlds.compass import facts
from tests.worlds.hub import TENANT, Door, close_code, desired_of, eventually, hello, is_so, make_door, report
from tests.worlds.tls import client_context, serial_of, write_pair

CLEAN = {1000, 1002, 1003, 1007, 1008, 1009}
"""Codes that say what the peer did wrong; 1011 would say that the hub did."""
BIG = "x" * 900_000


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    async with make_door(tmp_path) as made:
        yield made


@contextlib.asynccontextmanager
async def raw(door: Door, context: ssl.SSLContext | None, *, upgrade: bool = True) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection without a WebSocket client's good manners: small buffers, and it reads only when told to."""
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    plain.setblocking(False)
    await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", door.port))
    reader, writer = await asyncio.open_connection(sock=plain, ssl=context, server_hostname="localhost" if context else None, limit=4096)
    try:
        if upgrade:
            lines = (f"GET {PATH} HTTP/1.1", "Host: localhost", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13")
            writer.write("\r\n".join((*lines, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "", "")).encode())
            assert b"101" in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        yield reader, writer
    finally:
        writer.transport.abort()


def frame(text: str | bytes, *, opcode: Opcode = Opcode.TEXT, fin: bool = True) -> bytes:
    return Frame(opcode, text.encode() if isinstance(text, str) else text, fin).serialize(mask=True)


def own_hello(**more: Any) -> str:
    return Hello(boot_id="boot", facts=facts(agent_version="0.1.0", **more)).model_dump_json()


async def ended(reader: asyncio.StreamReader, within: float) -> bytes:
    """What came until the hub closed; it must."""
    try:
        return await asyncio.wait_for(reader.read(), within)
    except (ConnectionError, ssl.SSLError):
        return b""


async def serves(door: Door, context: ssl.SSLContext, generation: int, name: str = "good") -> float:
    """A well-behaved host gets in and gets its newest desired state; how long that took."""
    began = asyncio.get_running_loop().time()
    await door.desire(name, Desired(generation=generation, host=name))
    async with door.connect(context) as websocket:
        await hello(websocket)
        while (await desired_of(websocket)).generation != generation:
            pass
    return asyncio.get_running_loop().time() - began


# Those that are slow, or never finish.


async def test_a_host_that_never_reads_is_cut_off_and_holds_no_memory_and_nobody_else(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "SEND_SECONDS", 1.0)
    good, slow = await door.enrolled("good"), await door.enrolled("slow")
    identity = HostId(TENANT, "slow")
    async with door.connect(good) as websocket, raw(door, slow) as (_, writer):
        await hello(websocket)
        await desired_of(websocket)
        writer.write(frame(own_hello()))
        await eventually(lambda: is_so(not door.server.is_absent(identity)))
        transport = door.server._sessions[identity].connection.transport
        for generation in range(1, 12):
            # As a text that the agent would ignore: only its size matters here.
            await door.desire("slow", Desired(generation=generation, host="slow").model_dump_json()[:-1] + f', "more": "{BIG}"}}')
            await door.desire("good", Desired(generation=generation, host="good"))
            assert (await desired_of(websocket)).generation == generation
            assert transport.get_write_buffer_size() < 2 * MAX_FRAME_BYTES, "one frame at a time, whatever is wanted meanwhile"
        await eventually(lambda: is_so(door.server.is_absent(identity)), within=10)
        assert transport.is_closing()
        assert shape.condition_of(await door.host("good"))["status"] == "True"


async def test_half_open_connections_are_closed_and_keep_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket_module, "HANDSHAKE_SECONDS", 1.5)
    monkeypatch.setattr(websocket_module, "OPEN_SECONDS", 2.0)
    monkeypatch.setattr(session_module, "HELLO_SECONDS", 1.0)
    async with make_door(tmp_path) as door:
        good, bad = await door.enrolled("good"), await door.enrolled("bad")
        stuck = [await asyncio.open_connection("127.0.0.1", door.port) for _ in range(100)]
        for _, writer in stuck[:50]:
            writer.write(b"\x16\x03\x01\x02\x00\x01\x00")  # only the beginning of a TLS hello
        async with raw(door, bad, upgrade=False) as (silent, _), raw(door, bad, upgrade=False) as (begun, writer), raw(door, bad) as (upgraded, _):
            writer.write(b"GET /v1/agent HTTP/1.1\r\nHost: localhost\r\n")
            await serves(door, good, 1)
            await asyncio.gather(*(ended(reader, 8) for reader in (*(reader for reader, _ in stuck), silent, begun)))
            assert b"silent for too long" in await ended(upgraded, 8)
        assert door.server.hosts == [] or door.server.hosts == [HostId(TENANT, "good")]
        await serves(door, good, 2)
        for _, writer in stuck:
            writer.close()
    host = await door.host("bad")
    assert "agent" not in host["status"] or "connected" not in host["status"]["agent"], "who never said hello was never connected"


async def test_a_message_that_never_ends_is_cut_off_at_the_limit_of_a_frame(door: Door) -> None:
    good = await door.enrolled("good")
    async with raw(door, await door.enrolled("bad")) as (reader, writer):
        writer.write(frame(own_hello()))
        writer.write(frame("{", fin=False))
        with pytest.raises(ConnectionError):
            for _ in range(40):  # more than what the hub takes, in pieces that each are small enough
                writer.write(frame("x" * 65_536, opcode=Opcode.CONT, fin=False))
                await writer.drain()
                await asyncio.sleep(0.01)
            raise ConnectionError if (1009).to_bytes(2, "big") in await ended(reader, 10) else AssertionError("it was not told 1009")
    await serves(door, good, 1)


# Those that lie.


async def test_what_another_host_said_changes_only_the_one_that_repeats_it(door: Door) -> None:
    one, two = await door.enrolled("one"), await door.enrolled("two")
    await door.kube.merge(kinds.BYO_HOST, "two", TENANT, {"metadata": {"annotations": {names.MACHINE_ID_ANNOTATION: "f" * 32}}})
    said = (own_hello(hostname="the-first", machine_id="a" * 32), report(phase="Joined", cluster=f"{TENANT}/prod", machine="m-1", message="of one"))
    async with door.connect(one) as websocket:
        for text in said:
            await websocket.send(text)
        await eventually(lambda: _observed(door, "one", "Joined"))
        before = await door.host("one")
        async with door.connect(two) as replay:
            for text in said:
                await replay.send(text)
            await replay.send(json.dumps(json.loads(report(phase="Failed", message="of two")) | {"host": "one", "name": "one", "namespace": TENANT}))
            assert (await desired_of(replay)).host == "two"
            await eventually(lambda: _observed(door, "two", "Failed"))
            after = await door.host("one")
            assert after["status"] == before["status"]
            assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
            assert door.server.hosts == [HostId(TENANT, "one"), HostId(TENANT, "two")], "nobody took the other's place"
            unique = shape.condition_of(await door.host("two"), shape.UNIQUE)
            assert (unique["status"], unique["reason"]) == ("False", "OtherMachine"), "and the operator sees it"


async def test_a_stolen_key_cannot_be_renewed_into_another_hosts_certificate(door: Door) -> None:
    stolen = await door.enrolled("one", days=0.1)
    await door.enrolled("two")
    async with door.connect(stolen) as websocket:
        await hello(websocket)
        assert [json.loads(await asyncio.wait_for(websocket.recv(), 5))["type"] for _ in range(2)] == ["desired", "renewal-due"]
        key = ec.generate_private_key(ec.SECP256R1())
        await websocket.send(Renewal(csr=_forged(key, HostId(TENANT, "two"))).model_dump_json())
        issued = json.loads(await asyncio.wait_for(websocket.recv(), 5))["certificate"]
    certificate = x509.load_pem_x509_certificate(issued.encode())
    assert credential_of(ssl.PEM_cert_to_DER_cert(issued)).host == HostId(TENANT, "one")
    assert "two" not in certificate.subject.rfc4514_string()
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    names_in = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert len(names_in) == 1
    async with door.connect(client_context(door.root.pem, write_pair(door.directory, "forged", issued, key))) as websocket:
        await hello(websocket)
        assert (await desired_of(websocket)).host == "one"
        await eventually(lambda: is_so(door.server.hosts == [HostId(TENANT, "one")]))
    assert (await door.host("two"))["status"]["agent"]["certificateSerial"] != f"{serial_of(issued):x}"


def _forged(key: ec.EllipticCurvePrivateKey, victim: HostId) -> str:
    """A signing request that asks for all that there is: the other host's name everywhere, a server's and a CA's rights."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, victim.name), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "system:masters")])
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(name)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(victim.uri), x509.DNSName(victim.name)]), critical=True)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
        .decode()
    )


# Those that send anything at all.

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
_HELLO, _REPORT = json.loads(own_hello()), json.loads(report(journal=({"at": "x", "step": "pull", "outcome": "done"},)))


@st.composite
def _mutated(draw: st.DrawFn) -> str:
    """A good message of which one value, at any depth, is something else."""
    message = json.loads(json.dumps(draw(st.sampled_from([_HELLO, _REPORT, {"type": "renewal", "csr": "x"}]))))
    at = message
    while True:
        name = draw(st.sampled_from(sorted(at)))
        if isinstance(at[name], dict) and draw(st.booleans()):
            at = at[name]
            continue
        at[name] = draw(_JSON)
        return json.dumps(message)


_FRAMES = st.lists(st.one_of(_mutated(), _JSON.map(json.dumps), st.text(max_size=200), st.binary(max_size=200)), min_size=1, max_size=3)
_BYTES = st.one_of(
    st.binary(min_size=1, max_size=400),
    st.builds(lambda text, tail: frame(text) + tail, _mutated(), st.binary(max_size=40)),
    st.builds(
        lambda first, body: bytes([first, 0x80 | len(body)]) + b"\0\0\0\0" + body,
        st.integers(0, 255),
        st.binary(max_size=125),
    ),
)


def test_whatever_a_host_sends_it_is_closed_cleanly_and_others_are_served(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames of all kinds before and after hello; bytes that are no frames; bytes that are no request."""
    monkeypatch.setattr(websocket_module, "CLOSE_SECONDS", 0.1)
    caplog.set_level(logging.ERROR, logger="websockets")
    with asyncio.Runner() as runner:
        loop, wrong = runner.get_loop(), []
        loop.set_exception_handler(lambda _loop, context: wrong.append(context))
        world = make_door(tmp_path)
        door = runner.run(_enter(world))
        good, bad = runner.run(door.enrolled("good")), runner.run(door.enrolled("bad"))
        limits = settings(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])

        @settings(limits, max_examples=50)
        @given(_FRAMES, st.booleans())
        def frames(sent: list[str | bytes], after_hello: bool) -> None:
            code = runner.run(_send_frames(door, bad, sent, after_hello))
            assert code in CLEAN, (code, sent)

        @settings(limits, max_examples=25)
        @given(_BYTES, st.booleans())
        def octets(sent: bytes, upgrade: bool) -> None:
            runner.run(_send_octets(door, bad, sent, upgrade))

        try:
            frames()
            octets()
            runner.run(serves(door, good, 1))
            assert runner.run(_observed_serial(door)), "the rude host's own object stands"
            assert not wrong
            assert not [record for record in caplog.records if "handler failed" in record.getMessage()], caplog.text
        finally:
            runner.run(world.__aexit__(None, None, None))


async def _enter(world: Any) -> Door:
    found: Door = await world.__aenter__()
    return found


async def _send_frames(door: Door, context: ssl.SSLContext, sent: list[str | bytes], after_hello: bool) -> int:
    """The code that the connection ended with: the hub's, or ours (1000) if it took all that."""
    async with door.connect(context) as websocket:
        try:
            if after_hello:
                await hello(websocket)
            for one in sent:
                await websocket.send(one)
            await asyncio.wait_for((await websocket.ping()), 10)
            await asyncio.sleep(0.02)
            await websocket.close()
        except (ConnectionClosed, UnicodeEncodeError):
            await websocket.close()
        await websocket.wait_closed()
    return websocket.close_code or 0


async def _send_octets(door: Door, context: ssl.SSLContext, sent: bytes, upgrade: bool) -> None:
    async with raw(door, context, upgrade=upgrade) as (reader, writer):
        writer.write(sent)
        try:
            async with asyncio.timeout(0.05):
                await reader.read()
        except (TimeoutError, ConnectionError, ssl.SSLError):
            pass


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(_HELLO | {"facts": _HELLO["facts"] | {"clock": float("nan")}}),
        json.dumps(_HELLO | {"facts": _HELLO["facts"] | {"clock": float("inf")}}),
        json.dumps(_REPORT | {"journal": [{"at": "", "step": "", "outcome": "done", "seconds": float("nan")}]}),
        json.dumps(_REPORT | {"type": "\u65e5\u672c\u8a9e" * 60}, ensure_ascii=False),
        json.dumps(_REPORT | {"generation": 1 << 80}),
        json.dumps(_HELLO | {"facts": _HELLO["facts"] | {"memory_bytes": 1 << 80}}),
        "[" * 100_000,
    ],
    ids=["clock not a number", "clock endless", "seconds not a number", "long reason", "large generation", "large memory", "deep"],
)
async def test_numbers_and_texts_that_no_object_can_hold_are_refused(door: Door, text: str) -> None:
    async with door.connect(await door.enrolled()) as websocket:
        await hello(websocket)
        await desired_of(websocket)
        await websocket.send(text)
        assert await close_code(websocket) in CLEAN
    await eventually(lambda: is_so(door.server.hosts == []))
    assert "connected" in (await door.host())["status"]["agent"], "and its leaving is written"


# All of them at once.


async def test_five_hundred_come_back_at_once_after_a_restart_and_nobody_is_marked_offline(tmp_path: Path) -> None:
    count = 500
    kube = KubeSimulator(manager="ckp-hub", namespaces=("default", TENANT, names.HOSTS_NAMESPACE))
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    async with make_door(tmp_path / "first", kube) as first:
        contexts = [await first.enrolled(f"h{number}") for number in range(count)]
    long_enough = datetime.now(UTC)
    for number in range(count):  # as the hub before left them
        status = shape.with_connection({}, hub="hub-0", condition=True, reason="Connected", message="", seen=long_enough, at=long_enough)
        await kube.apply(shape.apply_body(HostId(TENANT, f"h{number}"), status), subresource="status")
    events = len(kube.events())
    offline = 12.0
    async with make_door(tmp_path / "second", kube, authorities=(first.root, first.host_ca), offline=offline, sweep_every=1.0) as door:
        began = asyncio.get_running_loop().time()
        done = asyncio.Event()
        back: list[Desired] = []

        async def come_back(context: ssl.SSLContext) -> None:
            websocket = await asyncio.wait_for(door.connect(context, open_timeout=60).__aenter__(), 60)
            await hello(websocket)
            back.append(Desired.model_validate_json(await asyncio.wait_for(websocket.recv(), 60)))
            while not done.is_set():  # as an agent does: whoever is silent for too long is offline indeed
                await websocket.send(report())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(3):
                        await done.wait()
            websocket.transport.abort()

        hosts = [asyncio.ensure_future(come_back(context)) for context in contexts]
        await eventually(lambda: is_so(len(back) == count), within=60)
        assert len(door.server.hosts) == count
        assert len({one.host for one in back}) == count
        await asyncio.sleep(max(0.0, began + offline + 1.5 - asyncio.get_running_loop().time()))  # and the sweep has looked at all of them
        marked = [event.obj["metadata"]["name"] for event in kube.events(events) if shape.condition_of(event.obj).get("status") == "False"]
        assert marked == []
        done.set()
        await asyncio.gather(*hosts)


async def _observed(door: Door, name: str, phase: str) -> bool:
    return bool(((await door.host(name)).get("status") or {}).get("observed", {}).get("phase") == phase)


async def _observed_serial(door: Door) -> str:
    return certificates.certificate_serial(await door.host("bad"))
