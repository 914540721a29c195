"""Enrolment from the agent's request to its certificate: the hub's ASGI application over a whole Compass, one API server under both."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from prometheus_client import CollectorRegistry

from ckp.api import kinds
from ckp.api.host_protocol import EnrolmentRequest, EnrolmentStatus
from ckp.clients.kube import KubeError
from ckp.compass.rest.internal import make_internal_app
from ckp.hub.enrolment import CompassClient, Enrolment, Refused
from ckp.hub.identity import HostCa, HostId, credential_of
from ckp.kits.clock import SystemClock
from ckp.kits.errors import CkpError, InvalidInput
from tests.simulators.clock import ManualClock
from tests.worlds.compass import MACHINE_B, NAMESPACE, World, facts, make_csr, make_world
from tests.worlds.tls import Authority, make_authority, serial_of


@dataclass
class Desk:
    world: World
    agent: httpx.AsyncClient
    host_ca: Authority
    root: Authority
    token_file: Path

    async def ask(self, psk: str, /, **changes: Any) -> httpx.Response:
        request = EnrolmentRequest(psk=psk, facts=facts(), csr=make_csr(common_name="root"))
        body = json.loads(request.model_dump_json()) | changes
        return await self.agent.post("/v1/enrolments", json=body)

    async def outcome(self, ticket: dict[str, str]) -> EnrolmentStatus:
        path = f"/v1/enrolments/{ticket['request_id']}"
        answer = await self.agent.get(path, headers={"Authorization": f"Bearer {ticket['token']}"})
        assert answer.status_code == 200, answer.text
        return EnrolmentStatus.model_validate(answer.json())


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    root = make_authority("root")
    host_ca = make_authority("host-ca", root)
    cert, key = host_ca.write(tmp_path, "host-ca")
    server_ca = tmp_path / "ca.crt"
    server_ca.write_text(root.pem)
    token_file = tmp_path / "token"
    token_file.write_text("token-of-the-hub\n")
    async with make_world(tmp_path) as world:
        compass = CompassClient("https://compass", token_file, None, transport=httpx.ASGITransport(make_internal_app(world.cases)))
        app = Enrolment(compass, world.kube.as_manager("ckp-hub"), HostCa(cert, key, SystemClock()), server_ca, CollectorRegistry())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app, client=("10.88.0.21", 40000)), base_url="https://hub") as agent:
            yield Desk(world, agent, host_ca, root, token_file)
        await compass.close()


async def approved(desk: Desk) -> dict[str, str]:
    ticket = dict((await desk.ask(await desk.world.psk())).json())
    await desk.world.call("POST", f"/host-requests/{ticket['request_id']}/approve", expect=200)
    return ticket


async def test_from_the_key_to_the_certificate(desk: Desk) -> None:
    answer = await desk.ask(await desk.world.psk())
    assert answer.status_code == 202
    ticket = answer.json()
    assert (await desk.outcome(ticket)).state == "pending"
    assert (await desk.world.call("GET", f"/host-requests/{ticket['request_id']}"))["source"] == "10.88.0.21"
    await desk.world.call("POST", f"/host-requests/{ticket['request_id']}/approve", expect=200)
    status = await desk.outcome(ticket)
    assert (status.state, status.host) == ("approved", "worker-1")
    assert desk.root.pem.strip() in status.ca
    assert desk.host_ca.pem.strip() in status.ca
    host = await desk.world.kube.get(kinds.BYO_HOST, "worker-1", NAMESPACE)
    assert host is not None
    assert host["status"]["agent"]["certificateSerial"] == f"{serial_of(status.certificate):x}"


async def test_asking_twice_gives_the_same_certificate(desk: Desk) -> None:
    """The agent may lose the answer; another serial would lock out the certificate that it has perhaps stored."""
    ticket = await approved(desk)
    assert (await desk.outcome(ticket)).certificate == (await desk.outcome(ticket)).certificate


async def test_a_serial_that_could_not_be_written_is_written_by_the_next_question(desk: Desk) -> None:
    ticket = await approved(desk)
    desk.world.kube.on_fault(lambda verb, kind, _: KubeError("away", code=0) if (verb, kind) == ("merge", kinds.BYO_HOST) else None)
    path = f"/v1/enrolments/{ticket['request_id']}"
    assert (await desk.agent.get(path, headers={"Authorization": f"Bearer {ticket['token']}"})).status_code == 503
    desk.world.kube.on_fault(None)
    certificate = (await desk.outcome(ticket)).certificate
    host = await desk.world.kube.get(kinds.BYO_HOST, "worker-1", NAMESPACE)
    assert host is not None
    assert host["status"]["agent"]["certificateSerial"] == f"{serial_of(certificate):x}"


async def test_a_wrong_key_reaches_the_agent_as_401_and_guessing_as_429(desk: Desk) -> None:
    await desk.world.psk()
    for _ in range(5):
        answer = await desk.ask("wrong" * 8)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "WrongKey")
    answer = await desk.ask("wrong" * 8)
    assert answer.status_code == 429
    assert answer.headers["retry-after"]


async def test_a_reinstalled_machine_gets_a_new_certificate_once_people_say_that_it_is_the_same(desk: Desk) -> None:
    first = await desk.outcome(await approved(desk))
    ticket = (await desk.ask(await desk.world.psk())).json()
    assert (await desk.outcome(ticket)).state == "pending"
    await desk.world.call("POST", f"/host-requests/{ticket['request_id']}/approve", json={"duplicate": "replace"}, expect=200)
    second = await desk.outcome(ticket)
    assert (second.state, second.host) == ("approved", "worker-1")
    host = await desk.world.kube.get(kinds.BYO_HOST, "worker-1", NAMESPACE)
    assert host is not None and host["spec"]["revokedSerial"] == f"{serial_of(first.certificate):x}"
    assert host["status"]["agent"]["certificateSerial"] == f"{serial_of(second.certificate):x}"


async def test_a_machine_of_another_project_reaches_the_agent_as_409(desk: Desk) -> None:
    await approved(desk)
    await desk.world.project("default", "other")
    psk = (await desk.world.call("POST", "/api/v1/domains/default/projects/other/host-psk/reset"))["key"]
    assert (await desk.ask(psk, project="other")).status_code == 409


async def test_a_rejection_reaches_the_agent_with_its_reason(desk: Desk) -> None:
    ticket = (await desk.ask(await desk.world.psk())).json()
    await desk.world.call("POST", f"/host-requests/{ticket['request_id']}/reject", json={"reason": "not ours"}, expect=200)
    assert await desk.outcome(ticket) == EnrolmentStatus(state="rejected", reason="not ours")


async def test_our_own_bad_token_is_not_told_as_the_agents_wrong_key(desk: Desk) -> None:
    psk = await desk.world.psk()
    desk.token_file.write_text("expired")
    answer = await desk.ask(psk)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "Unavailable")
    desk.token_file.write_text("token-of-the-hub")  # the kubelet renewed it
    assert (await desk.ask(psk)).status_code == 202


async def test_without_the_tickets_token_nothing_is_told(desk: Desk) -> None:
    ticket = await approved(desk)
    path = f"/v1/enrolments/{ticket['request_id']}"
    assert (await desk.agent.get(path)).status_code == 401
    assert (await desk.agent.get(path, headers={"Authorization": "Bearer wrong"})).status_code == 404
    assert (await desk.agent.get("/v1/enrolments/../../hosts", headers={"Authorization": "Bearer wrong"})).status_code == 404


@pytest.mark.parametrize("changes", [{"psk": "short"}, {"facts": {}}, {"csr": "c" * 9000}, {"csr": None}])
async def test_a_malformed_request_is_told_without_its_secrets(desk: Desk, changes: dict[str, Any]) -> None:
    answer = await desk.ask("k" * 40, **changes)
    assert answer.status_code == 422
    assert next(iter(changes)) in answer.json()["error"]["message"]
    assert "k" * 40 not in answer.text
    assert "short" not in answer.text.replace("shorter", "")


async def test_a_large_body_is_refused(desk: Desk) -> None:
    assert (await desk.agent.post("/v1/enrolments", content=b" " * 40_000)).status_code == 413


async def test_a_removed_hosts_ticket_is_void(desk: Desk) -> None:
    ticket = await approved(desk)
    await desk.outcome(ticket)
    await desk.world.kube.delete(kinds.BYO_HOST, "worker-1", NAMESPACE)  # by kubectl, past Compass
    answer = await desk.agent.get(f"/v1/enrolments/{ticket['request_id']}", headers={"Authorization": f"Bearer {ticket['token']}"})
    assert answer.status_code == 404
    assert await desk.world.kube.get(kinds.BYO_HOST, "worker-1", NAMESPACE) is None


async def test_two_machines_get_two_identities(desk: Desk) -> None:
    psk = await desk.world.psk()
    names = set()
    for machine in ("1" * 32, MACHINE_B):
        request = EnrolmentRequest(psk=psk, facts=facts(machine_id=machine), csr=make_csr())
        ticket = (await desk.agent.post("/v1/enrolments", content=request.model_dump_json())).json()
        await desk.world.call("POST", f"/host-requests/{ticket['request_id']}/approve", expect=200)
        names.add((await desk.outcome(ticket)).host)
    assert names == {"worker-1", "worker-1-2"}


# The certificate itself.


def signed(tmp_path: Path, *, days: int, csr: str = "") -> tuple[x509.Certificate, Authority]:
    authority = make_authority("host-ca", days=days)
    ca = HostCa(*authority.write(tmp_path, "ca"), SystemClock())
    return x509.load_pem_x509_certificate(ca.sign(csr or make_csr(common_name="system:masters"), HostId("ns", "one")).encode()), authority


def test_everything_but_the_key_is_decided_by_the_hub(tmp_path: Path) -> None:
    certificate, authority = signed(tmp_path, days=5000)
    assert certificate.subject.rfc4514_string() == "CN=one,O=ckp:hosts"
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == ["ckp://host/ns/one"]
    assert list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    certificate.verify_directly_issued_by(authority.certificate)
    assert credential_of(certificate.public_bytes(Encoding.DER)).host == HostId("ns", "one")


def test_it_is_good_for_ten_years_but_never_longer_than_its_ca(tmp_path: Path) -> None:
    certificate, _ = signed(tmp_path, days=5000)
    assert certificate.not_valid_after_utc - datetime.now(UTC) > timedelta(days=3650)
    certificate, authority = signed(tmp_path, days=10)
    assert certificate.not_valid_after_utc == authority.certificate.not_valid_after_utc


def test_a_ca_that_has_expired_or_does_not_fit_signs_nothing(tmp_path: Path) -> None:
    authority = make_authority("host-ca", days=10)
    cert, key = authority.write(tmp_path, "ca")
    late = ManualClock(datetime.now(UTC) + timedelta(days=11))
    with pytest.raises(CkpError, match="expired"):
        HostCa(cert, key, late).sign(make_csr(), HostId("ns", "one"))
    make_authority("other").write(tmp_path, "other")
    with pytest.raises(CkpError, match="belong together"):
        HostCa(cert, tmp_path / "other.key", SystemClock()).sign(make_csr(), HostId("ns", "one"))
    with pytest.raises(CkpError, match="cannot be read"):
        HostCa(tmp_path / "none", key, SystemClock()).sign(make_csr(), HostId("ns", "one"))


def test_a_request_that_cannot_be_read_is_not_signed(tmp_path: Path) -> None:
    ca = HostCa(*make_authority("host-ca").write(tmp_path, "ca"), SystemClock())
    with pytest.raises(InvalidInput):
        ca.sign("nonsense", HostId("ns", "one"))


def test_rsa_and_elliptic_keys_are_signed_alike(tmp_path: Path) -> None:
    for key in (rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())):
        certificate, _ = signed(tmp_path, days=100, csr=make_csr(key))
        assert certificate.public_key() == key.public_key()


async def test_a_kept_ticket_does_not_bring_an_old_certificate_back(desk: Desk) -> None:
    """After a renewal the first certificate is void, also for whoever has kept the enrolment's ticket."""
    ticket = await approved(desk)
    await desk.outcome(ticket)
    await desk.world.kube.merge(kinds.BYO_HOST, "worker-1", NAMESPACE, {"status": {"agent": {"certificateSerial": "renewed"}}}, subresource="status")
    answer = await desk.agent.get(f"/v1/enrolments/{ticket['request_id']}", headers={"Authorization": f"Bearer {ticket['token']}"})
    assert answer.status_code == 404
    host = await desk.world.kube.get(kinds.BYO_HOST, "worker-1", NAMESPACE)
    assert host is not None and host["status"]["agent"]["certificateSerial"] == "renewed"


async def test_a_revoked_renewal_does_not_make_the_first_certificate_good_again(desk: Desk) -> None:
    """A revocation is of the machine that holds the certificate: whoever has kept its ticket gets in by a new enrolment, with people's approval, or not."""
    ticket = await approved(desk)
    await desk.outcome(ticket)
    kube = desk.world.kube
    await kube.merge(kinds.BYO_HOST, "worker-1", NAMESPACE, {"status": {"agent": {"certificateSerial": "renewed"}}}, subresource="status")
    await desk.world.call("POST", "/hosts/worker-1/revoke", expect=200)
    answer = await desk.agent.get(f"/v1/enrolments/{ticket['request_id']}", headers={"Authorization": f"Bearer {ticket['token']}"})
    assert answer.status_code == 404
    host = await kube.get(kinds.BYO_HOST, "worker-1", NAMESPACE)
    assert host is not None and host["status"]["agent"]["certificateSerial"] == "renewed"


async def test_a_serial_is_written_on_top_of_what_was_read(desk: Desk) -> None:
    ticket = await approved(desk)
    kube, once = desk.world.kube, list[str]()

    def meanwhile(verb: str, kind: kinds.Kind, name: str) -> None:
        if (verb, kind) == ("merge", kinds.BYO_HOST) and not once:
            once.append(name)
            kube.stored(kinds.BYO_HOST, name, NAMESPACE)["metadata"]["resourceVersion"] += "1"

    kube.on_fault(meanwhile)
    outcome = await desk.outcome(ticket)
    host = await kube.get(kinds.BYO_HOST, "worker-1", NAMESPACE)
    assert once and host is not None
    agent = host["status"]["agent"]
    assert agent["certificateSerial"] == agent["enrolledSerial"] == f"{serial_of(outcome.certificate):x}"


@pytest.mark.parametrize("body", [{"detail": "Not Found"}, {"error": "no"}, {"error": {"code": 7}}, [], "text"])
async def test_a_refusal_in_another_shape_than_ours_is_not_passed_on(tmp_path: Path, body: Any) -> None:
    """A proxy in Compass' place may answer 404 as well; the agent must not take it for Compass' word on its request."""
    token = tmp_path / "token"
    token.write_text("token")
    compass = CompassClient("https://compass", token, None, transport=httpx.MockTransport(lambda _: httpx.Response(404, json=body)))
    with pytest.raises(Refused) as refused:
        await compass.outcome("a" * 32, "token")
    await compass.close()
    assert (refused.value.status, refused.value.code) == (503, "Unavailable")
