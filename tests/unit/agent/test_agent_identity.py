"""Enrolment against a small HTTPS hub: a key that stays, a person's approval, and clear words for every refusal."""

from __future__ import annotations

import json
import ssl
import stat
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ckp.agent import messages
from ckp.agent.config import Config, load
from ckp.agent.hub import enrol as enrol_module
from ckp.agent.hub.backoff import Backoff
from ckp.agent.hub.enrol import apply, enrol
from ckp.agent.hub.errors import EnrolmentFailed
from ckp.agent.hub.identity import Identity
from ckp.agent.hub.status import Status
from ckp.hostkit.errors import InvalidInput
from tests.unit.agent.test_agent_channel import FACTS, Authority

PSK = "a-pre-shared-key-of-the-project"


class Hub:
    """Answers enrolments as a test wishes."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority("hub CA")
        self.asked: list[dict[str, Any]] = []
        self.polls = 0
        self.answers: list[tuple[int, dict[str, Any]]] = []
        self.outcomes: list[tuple[int, dict[str, Any]]] = []
        self.csr = ""
        cert, key = self.authority.issue(folder / "server", "hub", "127.0.0.1")
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def reply(self, code: int, data: dict[str, Any]) -> None:
                body = json.dumps(data).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                data = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                hub.asked.append(data)
                hub.csr = data["csr"]
                self.reply(*(hub.answers.pop(0) if hub.answers else (202, {"request_id": "r1", "token": "secret"})))

            def do_GET(self) -> None:
                hub.polls += 1
                if self.headers["Authorization"] != "Bearer secret" or self.path != "/v1/enrolments/r1":
                    self.reply(404, {})
                else:
                    self.reply(*(hub.outcomes.pop(0) if hub.outcomes else (200, hub.approve())))

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.server.server_address[1]}"

    def approve(self) -> dict[str, Any]:
        public = x509.load_pem_x509_csr(self.csr.encode()).public_key()
        certificate = self.authority._build(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "worker-1")]), public, False, [])
        return {
            "state": "approved",
            "host": "worker-1",
            "certificate": certificate.public_bytes(serialization.Encoding.PEM).decode(),
            "ca": self.authority.pem(),
        }


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    found = Hub(tmp_path)
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture
def config(hub: Hub, tmp_path: Path) -> Config:
    ca, psk = tmp_path / "hub-ca.pem", tmp_path / "psk"
    ca.write_text(hub.authority.pem())
    psk.write_text(PSK + "\n")
    psk.chmod(0o600)
    return Config(hub=hub.url, channel="wss://127.0.0.1:1/", ca=str(ca), psk_file=str(psk), state_dir=str(tmp_path / "state"))


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backoff, "delay", lambda self: 0.01)


def run(config: Config, **options: Any) -> tuple[bool, Identity, Status]:
    identity, status = Identity(config.state_dir), Status(config.state_dir)
    return enrol(config, identity, lambda: FACTS, status, threading.Event(), once=True, **options), identity, status


def test_approval_gives_a_certificate_for_our_key_and_the_pre_shared_key_goes(hub: Hub, config: Config) -> None:
    hub.outcomes = [(200, {"state": "pending"}), (200, {"state": "pending"})]
    done, identity, status = run(config)
    assert done and identity.enrolled and identity.host == "worker-1"
    assert hub.asked[0]["psk"] == PSK and hub.asked[0]["facts"]["machine_id"] == "0" * 32
    assert not Path(config.psk_file).exists() and not Path(identity.ticket).exists()
    assert stat.S_IMODE(Path(identity.key).stat().st_mode) == 0o600
    assert status.topics["enrolment"]["state"] == "Approved"


def test_the_key_is_ecdsa_p256_and_signs_the_request(hub: Hub, config: Config) -> None:
    csr = x509.load_pem_x509_csr(Identity(config.state_dir).make_csr().encode())
    key = csr.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == "secp256r1" and csr.is_signature_valid


def test_the_key_is_made_once(config: Config) -> None:
    identity = Identity(config.state_dir)
    identity.make_csr()
    before = Path(identity.key).read_bytes()
    identity.make_csr()
    assert Path(identity.key).read_bytes() == before


def test_after_a_restart_the_outcome_is_asked_for_and_not_a_second_enrolment(hub: Hub, config: Config) -> None:
    identity = Identity(config.state_dir)
    apply(config, identity, FACTS)
    assert stat.S_IMODE(Path(identity.ticket).stat().st_mode) == 0o600
    done, _, _ = run(config)
    assert done and len(hub.asked) == 1


@pytest.mark.parametrize(("kept", "requests"), [({"project": "core"}, 1), ({"domain": "acme"}, 1), ({}, 0)])
def test_a_ticket_is_for_the_project_that_it_was_asked_of(hub: Hub, config: Config, kept: dict[str, str], requests: int) -> None:
    """One that names no project is an earlier agent's, and goes on."""
    identity = Identity(config.state_dir)
    Path(config.state_dir).mkdir(exist_ok=True)
    Path(identity.ticket).write_text(json.dumps({"hub": config.hub, "request_id": "r1", "token": "secret", **kept}))
    hub.csr = identity.make_csr()
    done, _, _ = run(config)
    assert done and len(hub.asked) == requests


def test_a_request_that_the_hub_no_longer_knows_is_made_again(hub: Hub, config: Config) -> None:
    hub.outcomes = [(404, {})]
    done, _, _ = run(config)
    assert done and len(hub.asked) == 2


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [
        (401, "WrongKey", "does not accept the pre-shared key"),
        (409, "IdentityTaken", "another host already has this machine's identity"),
        (422, "RequestRefused", "can't read the request"),
    ],
)
def test_a_refusal_is_a_sentence_with_the_hubs_own_words(hub: Hub, config: Config, code: int, reason: str, words: str) -> None:
    hub.answers = [(code, {"error": {"code": "X", "message": "the hub's words", "details": "", "resolution": ""}})]
    with pytest.raises(EnrolmentFailed) as caught:
        run(config)
    assert caught.value.reason == reason and words in caught.value.brief and "the hub's words" in caught.value.details
    assert PSK not in caught.value.render()
    topic = Status(config.state_dir).topics["enrolment"]
    assert topic["state"] == reason and words in topic["message"]
    assert Path(config.psk_file).exists()


def test_a_rejection_is_reported_with_its_reason(hub: Hub, config: Config) -> None:
    hub.outcomes = [(200, {"state": "rejected", "reason": "not one of ours"})]
    with pytest.raises(EnrolmentFailed) as caught:
        run(config)
    assert caught.value.reason == "Rejected" and "not one of ours" in caught.value.details


def test_trouble_of_the_hub_is_waited_out(hub: Hub, config: Config) -> None:
    hub.answers = [(500, {}), (429, {}), (503, {}), (202, {"request_id": "r1"})]
    done, _, _ = run(config)
    assert done and len(hub.asked) == 5


def test_the_pre_shared_key_is_not_sent_to_a_server_of_another_ca(hub: Hub, config: Config, tmp_path: Path) -> None:
    Path(config.ca).write_text(Authority("another").pem())
    hub.answers = [(202, {"request_id": "r1", "token": "secret"})]
    identity = Identity(config.state_dir)
    with pytest.raises(EnrolmentFailed) as caught:
        apply(config, identity, FACTS)
    assert caught.value.reason == "HubNotTrusted" and hub.asked == []


def test_a_certificate_for_another_key_is_not_stored(hub: Hub, config: Config) -> None:
    hub.outcomes = []
    identity = Identity(config.state_dir)
    identity.make_csr()
    stranger = ec.generate_private_key(ec.SECP256R1()).public_key()
    certificate = hub.authority._build(hub.authority.name, stranger, False, []).public_bytes(serialization.Encoding.PEM).decode()
    with pytest.raises(EnrolmentFailed, match="can't be used"):
        identity.store(messages.EnrolmentStatus("approved", host="worker-1", certificate=certificate, ca=hub.authority.pem()), config.ca)
    assert not identity.enrolled


@pytest.mark.parametrize(("content", "mode", "reason"), [("short", 0o600, "NoKey"), (PSK, 0o644, "KeyExposed"), (None, 0, "NoKey")])
def test_an_invalid_key_file_is_reported(config: Config, content: str | None, mode: int, reason: str) -> None:
    path = Path(config.psk_file)
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
        path.chmod(mode)
    with pytest.raises(EnrolmentFailed) as caught:
        run(config)
    assert caught.value.reason == reason


def test_after_a_refusal_the_service_tries_again_only_when_the_key_file_changes(hub: Hub, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.answers = [(401, {})]
    changes = []

    def changed(*_: Any) -> None:
        changes.append(len(hub.asked))

    monkeypatch.setattr(enrol_module, "_wait_for_change", changed)
    identity, status = Identity(config.state_dir), Status(config.state_dir)
    assert enrol(config, identity, lambda: FACTS, status, threading.Event())
    assert changes == [1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hub": "http://h"}, "must be an https"),
        ({"channel": "ws://h"}, "must be a wss"),
        ({"ca": "/nowhere"}, "CA /nowhere is missing"),
        ({"hub": None}, "hub must be a non-empty string"),
    ],
)
def test_settings_that_can_not_be_are_refused(tmp_path: Path, config: Config, change: dict[str, Any], words: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"hub": config.hub, "channel": config.channel, "ca": config.ca, "new": 1, **change}))
    with pytest.raises(InvalidInput) as caught:
        load(str(path))
    assert words in caught.value.brief


def test_missing_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="is not set up"):
        load(str(tmp_path / "none.json"))
