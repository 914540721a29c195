"""The channel over real mutual TLS: against a small WebSocket server, with certificates that are made here."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import os
import queue
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from ckp.agent import messages
from ckp.agent.hub import channel as channel_module
from ckp.agent.hub import status as status_module
from ckp.agent.hub.channel import Channel
from ckp.agent.hub.identity import Identity
from ckp.agent.hub.status import Status
from ckp.agent.journal import Journal
from ckp.agent.node.engine import Engine
from ckp.agent.node.settings import Settled
from ckp.hostkit.files import atomic_write

FACTS = messages.HostFacts("h", "0" * 32, "debian", "12", "6.1", "amd64", 2, 1, 1, 1)


class Authority:
    """A CA that issues what a test needs; `shift` moves the time that it takes for now."""

    shift = datetime.timedelta()

    def __init__(self, name: str) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = self._build(self.name, self.key.public_key(), True, [])

    def _build(self, subject: x509.Name, public: Any, ca: bool, names: list[x509.GeneralName]) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC) + self.shift
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def issue(self, folder: Path, name: str, address: str = "") -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.IPAddress(ipaddress.ip_address(address))] if address else []
        certificate = self._build(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key.public_key(), False, names)
        folder.mkdir(parents=True, exist_ok=True)
        cert_file, key_file = folder / "cert.pem", folder / "key.pem"
        cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
        return cert_file, key_file


@dataclass
class Hub:
    """A hub of a few lines: keeps what agents say, sends what the test wants."""

    authority: Authority
    folder: Path
    address: str = "127.0.0.1"
    said: queue.Queue[tuple[str, dict[str, Any]]] = field(default_factory=queue.Queue)
    connections: list[ServerConnection] = field(default_factory=list)
    connected: threading.Event = field(default_factory=threading.Event)
    refuse: bool = False
    unknown: set[int] = field(default_factory=set)  # serials of certificates that get 403
    newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
    port: int = 0
    desired: messages.Desired = field(default_factory=lambda: messages.Desired(1, "worker-1", None, None, 20.0))

    def start(self) -> None:
        cert, key = self.authority.issue(self.folder / "server", "hub", self.address)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.maximum_version = self.newest
        context.load_cert_chain(cert, key)
        context.verify_mode = ssl.CERT_REQUIRED
        # As the real hub has it. A ticket comes while the client writes its first bytes: one thread then reads and another writes the same SSL
        # object at the same time, and now and then those bytes are lost.
        context.num_tickets = 0
        context.load_verify_locations(cadata=self.authority.pem())
        self.server = serve(self._serve, "127.0.0.1", self.port, ssl=context, process_request=self._admit)
        self.port = self.server.socket.getsockname()[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        for connection in self.connections:
            connection.socket.close()
        self.server.shutdown()

    def _admit(self, connection: ServerConnection, request: Any) -> Any:
        serial = int(connection.socket.getpeercert()["serialNumber"], 16)  # type: ignore[attr-defined]
        return connection.respond(403, "revoked\n") if self.refuse or serial in self.unknown else None

    def _serve(self, connection: ServerConnection) -> None:
        self.connections.append(connection)
        name = dict(part[0] for part in connection.socket.getpeercert()["subject"])["commonName"]  # type: ignore[attr-defined]
        try:
            hello = json.loads(connection.recv(timeout=10))
            self.said.put((name, hello))
            connection.send(messages.to_json(self.desired))
            self.connected.set()
            for frame in connection:
                self.said.put((name, json.loads(frame)))
        except (ConnectionClosed, TimeoutError, OSError):
            pass

    def next(self, kind: str, timeout: float = 10.0) -> dict[str, Any]:
        """The next message of that type."""
        deadline = time.monotonic() + timeout
        while True:
            _, message = self.said.get(timeout=max(0.01, deadline - time.monotonic()))
            if message["type"] == kind:
                return message


class Nothing:
    """Actions of a host that is never asked for more than to be free."""

    def step(self, name: str, member: messages.Membership, cancelled: Any) -> str:
        raise AssertionError("not in these tests")

    def reset(self, cancelled: Any) -> str:
        return ""

    def settle(self, membership: messages.Membership) -> Settled:
        return Settled()

    def unhealthy(self) -> str:
        return ""

    def upgrade_agent(self, target: messages.AgentTarget | None) -> str:
        raise AssertionError("no test here asks for another agent")


@dataclass
class Agent:
    """An agent's channel and engine in threads."""

    identity: Identity
    ca: str
    port: int
    folder: Path

    def __post_init__(self) -> None:
        self.status = Status(str(self.folder))
        self.engine = Engine(Journal(f"{self.folder}/journal.json", f"{self.folder}/saved"), Nothing())
        self.channel = Channel(
            f"wss://127.0.0.1:{self.port}/v1/agent", self.identity, self.ca, self.engine, self.status, lambda: messages.Hello("boot", FACTS), first_delay=0.05
        )
        self.threads = [threading.Thread(target=self.engine.run, daemon=True), threading.Thread(target=self.channel.run, daemon=True)]

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        self.engine.stop()
        self.channel.close()
        for thread in self.threads:
            thread.join(10)
        assert not any(thread.is_alive() for thread in self.threads), "the agent must end when it is told to"

    def state(self) -> str:
        return str(self.status.topics.get("channel", {}).get("state", ""))

    def until(self, state: str, timeout: float = 10.0) -> str:
        """Wait for the channel's state; returns its sentence."""
        deadline = time.monotonic() + timeout
        while self.state() != state:
            assert time.monotonic() < deadline, f"channel is {self.status.topics.get('channel')}"
            time.sleep(0.02)
        return str(self.status.topics["channel"]["message"])


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    found = Hub(Authority("hub CA"), tmp_path / "hub")
    yield found
    if found.port:
        found.stop()


def make_agent(hub: Hub, folder: Path, authority: Authority | None = None) -> Agent:
    """An enrolled agent, with a certificate by `authority` (the hub's own by default)."""
    (authority or hub.authority).issue(folder, "worker-1")
    (folder / "ca.pem").write_text(hub.authority.pem())
    (folder / "identity.json").write_text('{"host": "worker-1"}')
    return Agent(Identity(str(folder)), str(folder / "ca.pem"), hub.port, folder)


@pytest.fixture
def agent(hub: Hub, tmp_path: Path) -> Iterator[Agent]:
    hub.start()
    found = make_agent(hub, tmp_path / "agent")
    found.start()
    yield found
    found.stop()


def test_it_sends_hello_and_reports_and_applies_the_desired_state(hub: Hub, agent: Agent) -> None:
    hello = hub.next("hello")
    assert hello["protocol"] == 1 and hello["facts"]["hostname"] == "h" and hello["boot_id"] == "boot"
    report = hub.next("report")
    while report["generation"] != 1:
        report = hub.next("report")
    assert report["phase"] == "Free"
    assert "connected" in agent.until("Connected")


def test_the_connection_is_tls_1_3_with_our_certificate(hub: Hub, agent: Agent) -> None:
    name, _ = hub.said.get(timeout=10)
    assert name == "worker-1"
    assert hub.connections[0].socket.version() == "TLSv1.3"  # type: ignore[attr-defined]


def test_a_place_in_the_queue_of_a_busy_hub_is_kept(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "CONNECT_SECONDS", 0.5)
    hub.start()
    agent = make_agent(hub, tmp_path / "agent")
    with socket.create_server(("127.0.0.1", 0)) as door:  # the kernel takes connections, and for a while nobody asks it for them
        agent.channel.url = f"wss://127.0.0.1:{door.getsockname()[1]}/v1/agent"
        agent.start()
        time.sleep(1.5)
        taken, _ = door.accept()
        with taken, socket.create_connection(("127.0.0.1", hub.port)) as onward:
            for source, target in ((taken, onward), (onward, taken)):
                threading.Thread(target=_pass_on, args=(source, target), daemon=True).start()
            agent.until("Connected")
            door.setblocking(False)
            with pytest.raises(BlockingIOError):
                door.accept()  # it never came a second time
            agent.stop()


def test_it_ends_at_once_also_while_it_waits_for_a_busy_hub(hub: Hub, tmp_path: Path) -> None:
    hub.start()
    agent = make_agent(hub, tmp_path / "agent")
    with socket.create_server(("127.0.0.1", 0)) as door:
        agent.channel.url = f"wss://127.0.0.1:{door.getsockname()[1]}/v1/agent"
        agent.start()
        taken, _ = door.accept()
        with taken:
            assert taken.recv(1), "it waits for an answer to its first words"
            agent.stop()  # which gives it ten seconds; TLS would have a minute


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)  # the end as well: both sides wait seconds for the other's


def test_an_older_tls_is_not_spoken(hub: Hub, tmp_path: Path) -> None:
    hub.newest = ssl.TLSVersion.TLSv1_2
    hub.start()
    agent = make_agent(hub, tmp_path / "agent")
    agent.start()
    agent.until("Refused")
    assert hub.connections == []
    agent.stop()


def test_it_reports_at_the_pace_that_the_hub_asks_for(hub: Hub, tmp_path: Path) -> None:
    hub.desired = messages.Desired(1, "worker-1", None, None, 0.2)
    hub.start()
    agent = make_agent(hub, tmp_path / "agent")
    agent.start()
    hub.next("hello")
    assert hub.connected.wait(10)
    time.sleep(0.5)
    while not hub.said.empty():
        hub.said.get()
    started = time.monotonic()
    for _ in range(5):
        hub.next("report")
    took = time.monotonic() - started
    agent.stop()
    assert 0.6 < took < 20, "by itself it would take 20 s for each"


def test_after_a_lost_connection_it_reconnects_and_sends_the_whole_state(hub: Hub, agent: Agent) -> None:
    hub.next("hello")
    hub.next("report")
    port = hub.port
    hub.stop()
    agent.until("Disconnected")
    hub.port = port
    hub.start()
    hub.next("hello")
    assert hub.next("report")["type"] == "report"
    agent.until("Connected")


def test_frames_that_make_no_sense_are_ignored_and_the_next_one_counts(hub: Hub, agent: Agent) -> None:
    hub.next("hello")
    assert hub.connected.wait(10)
    connection = hub.connections[0]
    for frame in ("{", "[]", '{"type": "desired"}', '{"type": "other", "generation": 2, "host": "worker-1"}', '{"generation": "2", "host": "worker-1"}'):
        connection.send(frame)
    connection.send(json.dumps({"type": "desired", "generation": 9, "host": "worker-1", "new_field": {"x": 1}}))
    for _ in range(10):
        if hub.next("report")["generation"] == 9:
            break
    else:
        raise AssertionError("the good frame was not taken")


def test_a_desired_state_for_another_host_is_ignored(hub: Hub, tmp_path: Path) -> None:
    hub.desired = messages.Desired(5, "worker-2", None)
    hub.start()
    agent = make_agent(hub, tmp_path / "agent")
    agent.start()
    hub.next("hello")
    assert hub.connected.wait(10)
    time.sleep(0.3)
    assert agent.engine.report()[0].generation == 0
    agent.stop()


def test_a_frame_that_is_too_large_closes_the_connection(hub: Hub, agent: Agent) -> None:
    hub.next("hello")
    assert hub.connected.wait(10)
    hub.connections[0].send('{"x": "' + "y" * (messages.MAX_FRAME_BYTES + 1) + '"}')
    hub.next("hello")  # it came back


def test_a_server_of_another_ca_is_not_our_hub(hub: Hub, tmp_path: Path) -> None:
    hub.start()
    agent = make_agent(hub, tmp_path / "agent")
    (tmp_path / "agent/ca.pem").write_text(Authority("another").pem())
    agent.start()
    assert "is not the configured hub" in agent.until("NotTrusted")
    agent.stop()
    assert hub.connections == []


def test_a_server_with_the_right_ca_and_another_name_is_not_our_hub(hub: Hub, tmp_path: Path) -> None:
    hub.address = "127.0.0.9"
    hub.start()
    agent = make_agent(hub, tmp_path / "agent")
    agent.start()
    assert "is not the configured hub" in agent.until("NotTrusted")
    agent.stop()


def test_a_certificate_of_another_ca_gets_nothing(hub: Hub, tmp_path: Path) -> None:
    hub.start()
    agent = make_agent(hub, tmp_path / "agent", Authority("another"))
    agent.start()
    assert "refuses this host's certificate" in agent.until("Refused")
    agent.stop()
    assert hub.connections == [] and hub.said.empty()


def test_a_revoked_certificate_is_reported_with_its_remediation(hub: Hub, tmp_path: Path) -> None:
    hub.refuse = True
    hub.start()
    agent = make_agent(hub, tmp_path / "agent")
    agent.start()
    assert "revoked or replaced" in agent.until("Refused")
    hub.refuse = False
    agent.until("Connected", 20)
    agent.stop()


def test_delays_grow_are_jittered_and_bounded() -> None:
    from ckp.agent.hub.backoff import Backoff

    backoff = Backoff(1.0, channel_module.LONGEST_DELAY)
    delays = [backoff.delay() for _ in range(12)]
    assert 0.5 <= delays[0] <= 1.0 and max(delays) <= channel_module.LONGEST_DELAY and min(delays[6:]) >= channel_module.LONGEST_DELAY / 2
    assert len(set(delays)) == len(delays)
    backoff.reset()
    assert backoff.delay() <= 1.0


def test_facts_are_sent_again_only_when_they_change(hub: Hub, tmp_path: Path) -> None:
    hub.start()
    found = make_agent(hub, tmp_path / "agent")
    facts = [FACTS]
    found.channel.hello = lambda: messages.Hello("boot", facts[0])
    found.channel.facts_seconds = 0.05
    hub.desired = messages.Desired(1, "worker-1", None, None, 0.1)
    found.start()
    try:
        hub.next("hello")
        hub.next("report")
        with pytest.raises(queue.Empty):
            hub.next("hello", timeout=0.6)
        facts[0] = messages.HostFacts(**{**vars(FACTS), "swap": True})
        assert hub.next("hello")["facts"]["swap"] is True
    finally:
        found.stop()


def test_the_status_is_written_when_the_disk_has_space_again(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by chaos, seed 66: connected for long, the agent's status still said that the hub could not be reached."""
    hub.start()
    hub.desired = messages.Desired(1, "worker-1", None, None, 0.1)
    found = make_agent(hub, tmp_path / "agent")
    write, full = atomic_write, [True]

    def written(path: str, content: bytes | str, *, mode: int = 0o644) -> None:
        if full[0]:
            raise OSError(28, "No space left on device")
        write(path, content, mode=mode)

    monkeypatch.setattr(status_module, "atomic_write", written)
    found.start()
    try:
        found.until("Connected")
        assert Status(str(found.folder)).topics == {}
        full[0] = False
        deadline = time.monotonic() + 5
        while Status(str(found.folder)).topics.get("channel", {}).get("state") != "Connected":
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        found.stop()


# Renewal of the certificate.


def renewal(hub: Hub, agent: Agent) -> tuple[str, Any]:
    """Ask the agent for a renewal; the certificate that it gets, and the public key that it is for."""
    hub.next("hello")
    return renewal_now(hub)


def test_a_renewed_certificate_is_used_at_once_with_a_new_key(hub: Hub, agent: Agent) -> None:
    old = Path(agent.identity.key).read_text()
    certificate, public = renewal(hub, agent)
    hub.connections[-1].send(messages.to_json(messages.IssuedCertificate(certificate, hub.authority.pem())))
    hub.next("hello")  # it came back
    assert Path(agent.identity.certificate).read_text() == certificate
    assert Path(agent.identity.key).read_text() != old
    key = serialization.load_pem_private_key(Path(agent.identity.key).read_bytes(), None)
    assert key.public_key() == public
    assert Path(agent.identity.key).stat().st_mode & 0o777 == 0o600
    assert not list(Path(agent.identity.state_dir).glob("*-next.pem"))


def test_a_certificate_for_another_key_changes_nothing(hub: Hub, agent: Agent, tmp_path: Path) -> None:
    before = Path(agent.identity.certificate).read_text(), Path(agent.identity.key).read_text()
    renewal(hub, agent)
    other, _ = hub.authority.issue(tmp_path / "other", "worker-1")
    hub.connections[-1].send(messages.to_json(messages.IssuedCertificate(other.read_text(), hub.authority.pem())))
    hub.connections[-1].send(messages.to_json(messages.Desired(7, "worker-1", None, None, 20.0)))  # still connected, and still at work
    while hub.next("report")["generation"] != 7:
        pass
    assert (Path(agent.identity.certificate).read_text(), Path(agent.identity.key).read_text()) == before
    assert agent.state() == "Connected"


@pytest.mark.parametrize("killed_after", ["certificate written", "key moved", "nothing"])
def test_an_interrupted_renewal_is_completed_at_the_next_start(hub: Hub, tmp_path: Path, killed_after: str) -> None:
    folder = tmp_path / "cut"
    hub.authority.issue(folder, "worker-1")
    cert, key = hub.authority.issue(tmp_path / "new", "worker-1")
    (folder / "key-next.pem").write_bytes(key.read_bytes())
    if killed_after != "nothing":
        (folder / "cert-next.pem").write_bytes(cert.read_bytes())
    if killed_after == "key moved":
        (folder / "key-next.pem").rename(folder / "key.pem")
    identity = Identity(str(folder))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_cert_chain(identity.certificate, identity.key)
    assert (Path(identity.certificate).read_text() == cert.read_text()) == (killed_after != "nothing")


def test_a_renewed_certificate_that_the_hub_does_not_know_gives_way_to_the_one_before(hub: Hub, agent: Agent) -> None:
    """Two renewals that crossed each other: the hub kept another one's serial, and the certificate of before is still good."""
    before = Path(agent.identity.certificate).read_text(), Path(agent.identity.key).read_text()
    certificate, _ = renewal(hub, agent)
    hub.unknown.add(x509.load_pem_x509_certificate(certificate.encode()).serial_number)
    hub.connections[-1].send(messages.to_json(messages.IssuedCertificate(certificate, hub.authority.pem())))
    hub.next("hello", timeout=20)  # it came back
    assert (Path(agent.identity.certificate).read_text(), Path(agent.identity.key).read_text()) == before
    certificate, _ = renewal_now(hub)
    hub.connections[-1].send(messages.to_json(messages.IssuedCertificate(certificate, hub.authority.pem())))
    hub.next("hello", timeout=20)
    while list(Path(agent.identity.state_dir).glob("*-last.pem")):  # they go when the hub has spoken
        time.sleep(0.01)
    assert Path(agent.identity.certificate).read_text() == certificate


def test_when_both_certificates_are_refused_for_a_while_neither_is_lost(tmp_path: Path) -> None:
    authority = Authority("hub")
    folder = tmp_path / "host"
    authority.issue(folder, "worker-1")
    before = (folder / "cert.pem").read_text()
    _begin_renewal(authority, folder, tmp_path)
    identity = Identity(str(folder))
    after = (folder / "cert.pem").read_text()
    assert after != before
    for expected in (before, after, before):
        assert identity.fall_back()
        assert (folder / "cert.pem").read_text() == expected
        _loads(identity)
    identity.confirm()
    assert not identity.fall_back() and (folder / "cert.pem").read_text() == before


@pytest.mark.parametrize("doing", ["renewing", "falling back"])
@pytest.mark.parametrize("cut", range(10))
def test_a_power_cut_while_certificates_change_places_leaves_a_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, doing: str, cut: int) -> None:
    authority = Authority("hub")
    folder = tmp_path / "host"
    authority.issue(folder, "worker-1")
    known = {(folder / "cert.pem").read_text()}
    _begin_renewal(authority, folder, tmp_path)
    known.add((folder / "cert-next.pem").read_text())
    identity = None if doing == "renewing" else Identity(str(folder))
    left = [cut]

    def breaking(name: str) -> Any:
        real = getattr(os, name)

        def call(*arguments: Any) -> Any:
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            return real(*arguments)

        return call

    with monkeypatch.context() as patch:
        for name in ("replace", "link", "unlink"):
            patch.setattr(os, name, breaking(name))
        try:
            identity = identity or Identity(str(folder))
            if doing == "falling back":
                identity.fall_back()
        except KeyboardInterrupt:
            pass
    again = Identity(str(folder))
    _loads(again)
    assert (folder / "cert.pem").read_text() in known
    assert again.fall_back() or doing == "renewing"
    _loads(again)


def renewal_now(hub: Hub) -> tuple[str, Any]:
    """As renewal, with a hello that was read already."""
    hub.connections[-1].send(messages.to_json(messages.RenewalDue()))
    request = x509.load_pem_x509_csr(hub.next("renewal")["csr"].encode())
    certificate = hub.authority._build(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "worker-1")]), request.public_key(), False, [])
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), request.public_key()


def _begin_renewal(authority: Authority, folder: Path, scratch: Path) -> None:
    cert, key = authority.issue(scratch / "new", "worker-1")
    (folder / "key-next.pem").write_bytes(key.read_bytes())
    (folder / "cert-next.pem").write_bytes(cert.read_bytes())


def _loads(identity: Identity) -> None:
    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(identity.certificate, identity.key)
