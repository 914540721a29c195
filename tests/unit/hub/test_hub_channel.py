"""The hub's channel, over real TLS sockets, against a simulated API server."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from ckp.api import kinds, names
from ckp.api.host_protocol import MAX_FACTS_BYTES, MAX_FRAME_BYTES, Desired, Hello, JournalEntry, Renewal, Report, UpgradeReport
from ckp.api.kinds import Kind
from ckp.clients.kube import KubeError
from ckp.hub import status as shape
from ckp.hub.identity import HostId, credential_of
from ckp.kits.clock import SystemClock, rfc3339
from ckp.kits.errors import VerificationFailed
from ckp.rules import certificates, keys
from tests.simulators.kube import KubeSimulator
from tests.worlds.compass import facts, make_csr
from tests.worlds.hub import (
    CUT_OFF_BY_TLS,
    TENANT,
    Door,
    close_code,
    desired_of,
    eventually,
    hello,
    make_door,
    report,
    with_condition,
    with_phase,
)
from tests.worlds.tls import client_context, make_authority, make_leaf, serial_of, write_pair


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    async with make_door(tmp_path) as made:
        yield made


# Who gets in.


async def test_an_enrolled_host_gets_its_desired_state_at_once(door: Door) -> None:
    context = await door.enrolled()
    await door.desire("one", Desired(generation=7, host="one"))
    async with door.connect(context) as websocket:
        await hello(websocket)
        assert (await desired_of(websocket)).generation == 7


async def test_without_a_desired_state_the_host_is_told_to_be_free(door: Door) -> None:
    async with door.connect(await door.enrolled()) as websocket:
        await hello(websocket)
        assert await desired_of(websocket) == Desired(generation=0, host="one", membership=None)


async def test_without_a_client_certificate_there_is_no_channel(door: Door) -> None:
    with pytest.raises(CUT_OFF_BY_TLS):
        async with door.connect(client_context(door.root.pem)) as websocket:
            await websocket.recv()


@pytest.mark.parametrize("foreign", ["other", "root"])
async def test_a_certificate_of_another_ca_is_refused_even_of_the_same_root(door: Door, foreign: str) -> None:
    authority = door.root if foreign == "root" else make_authority("other", door.root)
    pair, serial = door.credentials(HostId(TENANT, "one").uri, authority=authority)
    await door.add_host("one", serial=serial)
    with pytest.raises(CUT_OFF_BY_TLS):
        async with door.connect(client_context(door.root.pem, pair)) as websocket:
            await websocket.recv()


async def test_an_expired_certificate_is_refused(door: Door) -> None:
    pair, serial = door.credentials(HostId(TENANT, "one").uri, days=-1)
    await door.add_host("one", serial=serial)
    with pytest.raises(CUT_OFF_BY_TLS):
        async with door.connect(client_context(door.root.pem, pair)) as websocket:
            await websocket.recv()


async def test_a_servers_certificate_is_no_clients(door: Door) -> None:
    pem, key = make_leaf(door.host_ca, uris=(HostId(TENANT, "one").uri,), server=True)
    await door.add_host("one", serial=f"{serial_of(pem):x}")
    with pytest.raises(CUT_OFF_BY_TLS):
        async with door.connect(client_context(door.root.pem, write_pair(door.directory, "s", pem, key))) as websocket:
            await websocket.recv()


@pytest.mark.parametrize("uri", ["", "ckp://host/one", f"ckp://host/{TENANT}/one/two", f"https://host/{TENANT}/one", f"ckp://host/{TENANT}/ONE"])
async def test_the_subject_is_no_identity(door: Door, uri: str) -> None:
    pair, serial = door.credentials(uri, common_name="one")
    await door.add_host("one", serial=serial)
    with pytest.raises(InvalidStatus) as refused:
        async with door.connect(client_context(door.root.pem, pair)):
            pass
    assert refused.value.response.status_code == 403


async def test_a_certificate_that_is_not_the_hosts_current_one_is_refused(door: Door) -> None:
    context = await door.enrolled()
    await door.set_serial("one", "abc")
    with pytest.raises(InvalidStatus) as refused:
        async with door.connect(context):
            pass
    assert refused.value.response.status_code == 403
    assert b"revoked" in (refused.value.response.body or b"")


async def test_a_host_that_was_never_given_a_certificate_is_refused(door: Door) -> None:
    pair, _ = door.credentials(HostId(TENANT, "one").uri)
    await door.add_host("one")
    with pytest.raises(InvalidStatus):
        async with door.connect(client_context(door.root.pem, pair)):
            pass


async def test_a_removed_host_is_refused(door: Door) -> None:
    context = await door.enrolled()
    await door.kube.delete(kinds.BYO_HOST, "one", TENANT)
    with pytest.raises(InvalidStatus) as refused:
        async with door.connect(context):
            pass
    assert refused.value.response.status_code == 403


async def test_when_the_api_server_is_away_the_host_is_asked_to_come_again(door: Door) -> None:
    context = await door.enrolled()
    door.kube.on_fault(lambda verb, kind, _: KubeError("away", code=0) if (verb, kind) == ("get", kinds.BYO_HOST) else None)
    with pytest.raises(InvalidStatus) as refused:
        async with door.connect(context):
            pass
    assert refused.value.response.status_code == 503


async def test_other_paths_are_not_there(door: Door) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with door.connect(await door.enrolled(), "/v1/other"):
            pass
    assert refused.value.response.status_code == 404


async def test_two_uris_name_nobody() -> None:
    authority = make_authority("a")
    pem, _ = make_leaf(authority, uris=(HostId(TENANT, "one").uri, HostId(TENANT, "two").uri))
    with pytest.raises(VerificationFailed):
        credential_of(ssl.PEM_cert_to_DER_cert(pem))


# What a host is told.


async def test_a_change_reaches_the_host_and_nobody_else(door: Door) -> None:
    one, two = await door.enrolled("one"), await door.enrolled("two")
    async with door.connect(one) as first, door.connect(two) as second:
        for websocket in (first, second):
            await hello(websocket)
            assert (await desired_of(websocket)).generation == 0
        await door.desire("one", Desired(generation=1, host="one"))
        assert (await desired_of(first)).generation == 1
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(second.recv(), 0.3)
        await door.kube.delete(kinds.SECRET, f"{TENANT}.one", names.HOSTS_NAMESPACE)
        assert (await desired_of(first)).membership is None


@pytest.mark.parametrize(
    "text",
    ["{", "{}", Desired(generation=1, host="two").model_dump_json(), Desired(generation=1, host="one").model_dump_json() + " " * MAX_FRAME_BYTES],
    ids=["broken", "empty", "anothers", "large"],
)
async def test_a_desired_state_that_is_wrong_or_anothers_is_never_sent(door: Door, text: str) -> None:
    context = await door.enrolled()
    await door.desire("one", text)
    await eventually(lambda: _sync(lambda: door.desired._stored))
    async with door.connect(context) as websocket:
        await hello(websocket)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(websocket.recv(), 0.3)
        await door.desire("one", Desired(generation=2, host="one"))
        assert (await desired_of(websocket)).generation == 2


async def test_a_secret_without_a_desired_state_does_not_free_its_host(door: Door) -> None:
    """Whether it comes by list or by watch: only a host without a Secret is told to be free."""
    context = await door.enrolled()
    await door.desire("one", Desired(generation=1, host="one"))
    async with door.connect(context) as websocket:
        await hello(websocket)
        assert (await desired_of(websocket)).generation == 1
        without = {"data": {names.DESIRED_KEY: None}}
        await door.kube.merge(kinds.SECRET, f"{TENANT}.one", names.HOSTS_NAMESPACE, without)
        for _way in range(2):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(websocket.recv(), 0.3)
            door.kube.expire_history()  # and now by list


async def test_before_the_first_list_nobody_is_told_to_be_free(tmp_path: Path) -> None:
    """A hub that starts while the API server is away must not take 'not read yet' for 'not there': it would tear down every node."""
    kube = KubeSimulator(manager="ckp-hub", namespaces=("default", TENANT, names.HOSTS_NAMESPACE))
    kube.on_fault(lambda verb, kind, _: KubeError("away", code=0) if kind == kinds.SECRET and verb == "list" else None)
    async with make_door(tmp_path, kube) as door:
        context = await door.enrolled()
        async with door.connect(context) as websocket:
            await hello(websocket)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(websocket.recv(), 0.5)
            kube.on_fault(None)
            await door.desire("one", Desired(generation=3, host="one"))
            assert (await desired_of(websocket)).generation == 3


async def test_after_a_lost_history_the_source_lists_again(door: Door) -> None:
    async with door.connect(await door.enrolled()) as websocket:
        await hello(websocket)
        await desired_of(websocket)
        lists = len([call for call in door.kube.calls if call[:2] == ("list", "Secret")])
        await door.desire("one", Desired(generation=1, host="one"))
        door.kube.expire_history()  # before the watch could read it
        assert (await desired_of(websocket)).generation == 1
        assert len([call for call in door.kube.calls if call[:2] == ("list", "Secret")]) > lists


async def test_a_change_during_an_outage_arrives_after_it(door: Door) -> None:
    async with door.connect(await door.enrolled()) as websocket:
        await hello(websocket)
        await desired_of(websocket)

        def broken(verb: str, kind: Kind, _: str) -> KubeError | None:
            return KubeError("away", code=0) if kind == kinds.SECRET and verb in ("list", "watch") else None

        door.kube.on_fault(broken)
        await door.desire("one", Desired(generation=4, host="one"))
        await asyncio.sleep(0.2)
        door.kube.on_fault(None)
        assert (await desired_of(websocket)).generation == 4


# What is written down.


async def test_a_report_is_merged_into_the_status_beside_what_others_wrote(door: Door) -> None:
    context = await door.enrolled()
    byo = door.kube.as_manager("ckp-byo")
    await byo.apply(shape.apply_body(HostId(TENANT, "one"), {"conditions": [{"type": "Claimed", "status": "True", "reason": "Test"}]}), subresource="status")
    async with door.connect(context) as websocket:
        await hello(websocket)
        entry = JournalEntry(at="2026-04-01T00:00:00Z", step="pull", outcome="done", seconds=1.23456)
        await websocket.send(report(phase="Pulling", cluster=f"{TENANT}/demo", machine="m", message="pulling", journal=(entry,) * 60))
        status = (await eventually(lambda: with_phase(door, "Pulling")))["status"]
    assert status["observed"] | {"at": ""} == {
        "generation": 1,
        "phase": "Pulling",
        "cluster": f"{TENANT}/demo",
        "machine": "m",
        "release": "",
        "reason": "",
        "message": "pulling",
        "attempts": 0,
        "at": "",
    }
    assert len(status["journal"]) == 50
    assert status["facts"]["machine_id"] == "a" * 32
    assert status["network"] == [{"ipAddrs": ["10.88.0.21"], "isDefault": True}]
    assert status["agent"]["connected"] is True
    assert status["agent"]["version"] == "0.1.0"
    assert status["agent"]["address"] == "127.0.0.1"
    assert status["agent"]["certificateSerial"], "the serial is another writer's and stays"
    assert {entry["type"]: entry["status"] for entry in status["conditions"]} == {
        "Claimed": "True",
        "AgentConnected": "True",
        "IdentityUnique": "True",
    }


async def test_equal_reports_cost_no_write_but_a_new_last_seen_now_and_then(tmp_path: Path) -> None:
    async with make_door(tmp_path, seen_every=2.0) as door:
        async with door.connect(await door.enrolled()) as websocket:
            await hello(websocket)
            await websocket.send(report())
            await eventually(lambda: with_phase(door, "Free"))
            await asyncio.sleep(0.3)
            before = _writes(door)
            for _ in range(5):
                await websocket.send(report())
            await asyncio.sleep(0.25)
            assert _writes(door) == before
            await asyncio.sleep(2.0)
            await websocket.send(report())
            await eventually(lambda: _sync(lambda: _writes(door) == before + 1))


async def test_a_flood_of_reports_is_slowed_down_and_the_last_one_counts(door: Door) -> None:
    async with door.connect(await door.enrolled()) as websocket:
        await hello(websocket)
        started = asyncio.get_running_loop().time()
        for number in range(30):
            await websocket.send(report(generation=number, phase="Joining"))
        host = await eventually(lambda: _with_generation(door, 29), within=8)
        assert asyncio.get_running_loop().time() - started > 1.2, "ten frames more than a burst, at five a second"
        assert host["status"]["observed"]["phase"] == "Joining"
        assert _writes(door) <= 15


async def test_a_write_that_fails_is_done_again(door: Door) -> None:
    async with door.connect(await door.enrolled()) as websocket:
        door.kube.on_fault(lambda verb, kind, _: KubeError("away", code=500) if (verb, kind) == ("apply", kinds.BYO_HOST) else None)
        await hello(websocket)
        await websocket.send(report(phase="Joined"))
        await asyncio.sleep(0.2)
        door.kube.on_fault(None)
        await eventually(lambda: with_phase(door, "Joined"))


# How it ends.


async def test_an_agent_that_says_goodbye_is_offline_at_once(door: Door) -> None:
    async with door.connect(await door.enrolled()) as websocket:
        await hello(websocket)
        await eventually(lambda: with_condition(door, "True"))
    host = await eventually(lambda: with_condition(door, "False"))
    assert shape.condition_of(host)["reason"] == "Disconnected"
    assert host["status"]["agent"]["connected"] is False
    assert host["status"]["facts"]["hostname"] == "worker-1", "what is known stays"


async def test_a_broken_connection_counts_as_offline_only_after_its_time(tmp_path: Path) -> None:
    async with make_door(tmp_path, offline=2.0) as door:
        websocket = await door.connect(await door.enrolled())
        await hello(websocket)
        await eventually(lambda: with_condition(door, "True"))
        websocket.transport.abort()
        await eventually(lambda: _connected_is(door, False))
        assert shape.condition_of(await door.host())["status"] == "True"
        host = await eventually(lambda: with_condition(door, "False"), within=8)
        assert shape.condition_of(host)["reason"] == "Silent"


async def test_a_silent_agent_is_cut_off(tmp_path: Path) -> None:
    async with make_door(tmp_path, offline=0.5) as door, door.connect(await door.enrolled()) as websocket:
        await hello(websocket)
        assert await close_code(websocket) == 1008


async def test_a_host_that_left_while_no_hub_ran_is_noticed_by_the_next(tmp_path: Path) -> None:
    kube = KubeSimulator(manager="ckp-hub", namespaces=("default", TENANT, names.HOSTS_NAMESPACE))
    async with make_door(tmp_path, kube, offline=0.5) as door:
        await door.add_host("one")
        long_ago = SystemClock().now() - timedelta(hours=1)
        status = shape.with_connection({}, hub="hub-0", condition=True, reason="Connected", message="", seen=long_ago, at=long_ago)
        await kube.apply(shape.apply_body(HostId(TENANT, "one"), status), subresource="status")
        await asyncio.sleep(0.2)
        assert shape.condition_of(await door.host())["status"] == "True", "the hosts get time to come back first"
        await eventually(lambda: with_condition(door, "False"))


async def test_a_hub_that_restarts_loses_nothing_and_marks_nobody_offline(tmp_path: Path) -> None:
    kube = KubeSimulator(manager="ckp-hub", namespaces=("default", TENANT, names.HOSTS_NAMESPACE))
    async with make_door(tmp_path, kube) as door:
        websocket = await door.connect(await door.enrolled())
        await hello(websocket)
        await websocket.send(report(phase="Joined", generation=5))
        await eventually(lambda: with_phase(door, "Joined"))
    assert await close_code(websocket) == 1001
    host = await door.host()
    assert shape.condition_of(host)["status"] == "True"
    assert host["status"]["observed"]["generation"] == 5


async def test_the_newer_connection_wins_and_the_older_ones_end_marks_nothing(door: Door) -> None:
    context = await door.enrolled()
    async with door.connect(context) as older:
        await hello(older)
        await desired_of(older)
        async with door.connect(context) as newer:
            await hello(newer)
            await desired_of(newer)
            assert await close_code(older) == 1008
            await asyncio.sleep(0.3)
            assert shape.condition_of(await door.host())["status"] == "True"
            assert door.server.hosts == [HostId(TENANT, "one")]
            await door.desire("one", Desired(generation=9, host="one"))
            assert (await desired_of(newer)).generation == 9


async def test_the_last_word_of_an_old_connection_never_follows_the_first_of_a_new_one(door: Door) -> None:
    context, identity = await door.enrolled(), HostId(TENANT, "one")
    async with door.connect(context) as older:
        await hello(older)
        await eventually(lambda: with_condition(door, "True"))
    # The API server is slow: the old connection's farewell waits for its turn, and meanwhile the agent is back.
    async with door.server.writing(identity):
        await eventually(lambda: _sync(lambda: door.server.is_absent(identity)))
        newer = await door.connect(context)
        await hello(newer)
        await eventually(lambda: _sync(lambda: not door.server.is_absent(identity)))
        events = len(door.kube.events())
    async with newer:
        await newer.send(report(phase="Joined"))
        await eventually(lambda: with_phase(door, "Joined"))
        values = [shape.condition_of(event.obj).get("status") for event in door.kube.events(events)]
        assert values
        assert set(values) == {"True"}


async def test_a_removed_host_is_cut_off_at_its_next_report(door: Door) -> None:
    async with door.connect(await door.enrolled()) as websocket:
        await hello(websocket)
        await eventually(lambda: with_condition(door, "True"))
        await door.kube.delete(kinds.BYO_HOST, "one", TENANT)
        await websocket.send(report(phase="Joined"))
        assert await close_code(websocket) == 1008
    assert await door.kube.get(kinds.BYO_HOST, "one", TENANT) is None, "and it is not made again"


async def test_a_re_enrolled_hosts_old_connection_is_cut_off_at_its_next_report(door: Door) -> None:
    async with door.connect(await door.enrolled()) as websocket:
        await hello(websocket)
        await eventually(lambda: with_condition(door, "True"))
        await door.set_serial("one", "newer")
        await websocket.send(report(phase="Joined"))
        assert await close_code(websocket) == 1008
    assert (await door.host())["status"]["agent"]["certificateSerial"] == "newer"


# Certificates: revoked, renewed, copied.


async def test_a_revoked_certificate_is_cut_off_at_once_and_stays_out(door: Door) -> None:
    context = await door.enrolled()
    await door.desire("one", Desired(generation=1, host="one"))
    async with door.connect(context) as websocket:
        await hello(websocket)
        await desired_of(websocket)
        await eventually(lambda: with_condition(door, "True"))
        serial = (await door.host())["status"]["agent"]["certificateSerial"]
        await door.kube.merge(kinds.BYO_HOST, "one", TENANT, {"spec": {"revokedSerial": serial}})
        await door.announce("one", f"revoked={serial}")
        assert await close_code(websocket) == 1008, "without a report of the host, and without waiting for one"
    assert (await eventually(lambda: with_condition(door, "False")))["status"]["agent"]["connected"] is False, "and everybody sees it at once"
    with pytest.raises(InvalidStatus) as refused:
        async with door.connect(context):
            pass
    assert refused.value.response.status_code == 403


async def test_a_removed_host_is_cut_off_when_its_desired_state_goes(door: Door) -> None:
    context = await door.enrolled()
    await door.desire("one", Desired(generation=1, host="one"))
    await door.announce("one", "current=1")
    async with door.connect(context) as websocket:
        await hello(websocket)
        await desired_of(websocket)
        await door.kube.delete(kinds.BYO_HOST, "one", TENANT)
        await door.kube.delete(kinds.SECRET, f"{TENANT}.one", names.HOSTS_NAMESPACE)
        assert await close_code(websocket) == 1008


async def test_news_of_certificates_that_still_hold_cut_nobody_off(door: Door) -> None:
    await door.desire("one", Desired(generation=1, host="one"))
    async with door.connect(await door.enrolled()) as websocket:
        await hello(websocket)
        await desired_of(websocket)
        await door.announce("one", "next=abc")
        await door.desire("one", Desired(generation=2, host="one"))
        assert (await desired_of(websocket)).generation == 2


async def renewed(door: Door, websocket: ClientConnection) -> tuple[dict[str, Any], ec.EllipticCurvePrivateKey]:
    """Answer the hub's question for a renewal; what it issues, and the new key."""
    await hello(websocket)
    frames = [json.loads(await asyncio.wait_for(websocket.recv(), 5)) for _ in range(2)]
    assert [frame["type"] for frame in frames] == ["desired", "renewal-due"]
    key = ec.generate_private_key(ec.SECP256R1())
    await websocket.send(Renewal(csr=make_csr(key, "somebody-else")).model_dump_json())
    return json.loads(await asyncio.wait_for(websocket.recv(), 5)), key


async def test_a_certificate_near_its_end_is_renewed_and_the_old_one_holds_until_the_new_one_is_used(door: Door) -> None:
    old = await door.enrolled(days=0.1)
    async with door.connect(old) as websocket:
        issued, key = await renewed(door, websocket)
    assert issued["type"] == "certificate" and issued["ca"] == door.root.pem
    assert credential_of(ssl.PEM_cert_to_DER_cert(issued["certificate"])).host == HostId(TENANT, "one"), "whatever the request's subject says"
    async with door.connect(old) as websocket:  # the answer may have been lost
        await hello(websocket)
        assert (await desired_of(websocket)).host == "one"
    new = client_context(door.root.pem, write_pair(door.directory, "renewed", issued["certificate"], key))
    async with door.connect(new) as websocket:
        await hello(websocket)
        await desired_of(websocket)
    agent = (await door.host())["status"]["agent"]
    assert agent["certificateSerial"] == f"{serial_of(issued['certificate']):x}" and "nextCertificateSerial" not in agent
    with pytest.raises(InvalidStatus):
        async with door.connect(old):
            pass


@pytest.mark.parametrize(
    "key",
    [rsa.generate_private_key(65537, 1024), ec.generate_private_key(ec.SECP521R1()), ec.generate_private_key(ec.SECP256K1())],
    ids=["RSA 1024", "P-521", "secp256k1"],
)
async def test_a_renewal_with_a_key_that_could_not_enrol_is_refused(door: Door, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
    async with door.connect(await door.enrolled(days=0.1)) as websocket:
        await hello(websocket)
        assert [json.loads(await asyncio.wait_for(websocket.recv(), 5))["type"] for _ in range(2)] == ["desired", "renewal-due"]
        await websocket.send(Renewal(csr=make_csr(key)).model_dump_json())
        with pytest.raises(ConnectionClosed) as closed:
            await asyncio.wait_for(websocket.recv(), 5)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1008, f"csr: the key must be {keys.ACCEPTED}")
    assert "nextCertificateSerial" not in (await door.host())["status"]["agent"]


async def test_with_a_certificate_its_unused_renewal_is_revoked_too(door: Door) -> None:
    async with door.connect(await door.enrolled(days=0.1)) as websocket:
        issued, key = await renewed(door, websocket)
    current = (await door.host())["status"]["agent"]["certificateSerial"]
    await door.kube.merge(kinds.BYO_HOST, "one", TENANT, {"spec": {"revokedSerial": current}})
    new = client_context(door.root.pem, write_pair(door.directory, "renewed", issued["certificate"], key))
    with pytest.raises(InvalidStatus) as refused:
        async with door.connect(new):
            pass
    assert refused.value.response.status_code == 403
    assert (await door.host())["status"]["agent"]["certificateSerial"] == current


@pytest.mark.parametrize("meanwhile", ["revoked", "enrolled again", "reported"])
async def test_certificates_are_changed_only_on_top_of_what_was_read(door: Door, meanwhile: str) -> None:
    """A slow write of an old connection must not bring back a certificate of the machine before."""
    await door.add_host("one", serial="a1")
    read = await door.host()
    if meanwhile == "revoked":
        await door.kube.merge(kinds.BYO_HOST, "one", TENANT, {"spec": {"revokedSerial": "a1"}})
    elif meanwhile == "enrolled again":
        await door.set_serial("one", "b2")
    else:
        await door.kube.merge(kinds.BYO_HOST, "one", TENANT, {"status": {"observed": {"phase": "Free"}}}, subresource="status")
    now = await door.server.change_serials(HostId(TENANT, "one"), read, {"nextCertificateSerial": "a2"}, "a1")
    assert now == await door.host()
    assert certificates.next_serial(now) == ("a2" if meanwhile == "reported" else "")


async def test_a_fresh_certificate_is_not_renewed_and_an_unasked_renewal_is_refused(door: Door) -> None:
    async with door.connect(await door.enrolled()) as websocket:
        await hello(websocket)
        await desired_of(websocket)
        await websocket.send(Renewal(csr=make_csr()).model_dump_json())
        assert await close_code(websocket) == 1008


@pytest.mark.parametrize("csr", ["nonsense", "of a weak kind"])
async def test_a_renewal_that_is_no_signing_request_is_refused(door: Door, csr: str) -> None:
    async with door.connect(await door.enrolled(days=0.1)) as websocket:
        await hello(websocket)
        for _ in range(2):
            await websocket.recv()
        await websocket.send(Renewal(csr=csr).model_dump_json())
        assert await close_code(websocket) == 1008
    assert "nextCertificateSerial" not in (await door.host())["status"]["agent"]


async def test_a_renewal_that_cannot_be_written_is_no_renewal(door: Door) -> None:
    async with door.connect(await door.enrolled(days=0.1)) as websocket:
        await hello(websocket)
        for _ in range(2):
            await websocket.recv()
        await eventually(lambda: with_condition(door, "True"))
        door.kube.on_fault(lambda verb, kind, _: KubeError("away", code=0) if (verb, kind) == ("merge", kinds.BYO_HOST) else None)
        await websocket.send(Renewal(csr=make_csr()).model_dump_json())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(websocket.recv(), 0.3)


async def boots(door: Door, context: ssl.SSLContext, *ids: str) -> dict[str, Any]:
    """Connections of these boots, one after another; the condition afterwards."""
    for boot in ids:
        async with door.connect(context) as websocket:
            await websocket.send(Hello(boot_id=boot, facts=facts(agent_version="0.1.0")).model_dump_json())
            await desired_of(websocket)
            await eventually(lambda: with_condition(door, "True"))
        await eventually(lambda: with_condition(door, "False"))
    return dict(shape.condition_of(await door.host(), shape.UNIQUE))


async def test_a_machine_that_restarts_is_no_clone(door: Door) -> None:
    assert (await boots(door, await door.enrolled(), "a", "a", "b", "c", "c"))["status"] == "True"


async def test_a_boot_that_comes_back_after_another_is_a_clone_until_there_is_a_new_certificate(door: Door) -> None:
    context = await door.enrolled()
    found = await boots(door, context, "a", "b", "a")
    assert (found["status"], found["reason"]) == ("False", "ClonedMachine")
    assert (await boots(door, context, "c"))["status"] == "False", "only people can tell which of the two it is"
    pair, serial = door.credentials(HostId(TENANT, "one").uri, label="again")
    await door.set_serial("one", serial)
    assert (await boots(door, client_context(door.root.pem, pair), "a"))["status"] == "True"


async def test_another_machine_with_this_hosts_key_is_noticed(door: Door) -> None:
    context = await door.enrolled()
    await door.kube.merge(kinds.BYO_HOST, "one", TENANT, {"metadata": {"annotations": {"ckp.coredge.io/machine-id": "f" * 32}}})
    found = await boots(door, context, "a")
    assert (found["status"], found["reason"]) == ("False", "OtherMachine")


# Bad frames.


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ("{", 1007),
        ("nonsense", 1007),
        ("[]", 1008),
        ("{}", 1008),
        ('{"type": "desired", "generation": 1, "host": "one"}', 1008),
        ('{"type": "report", "generation": "many"}', 1008),
        ('{"type": "report", "generation": 1, "phase": "Sleeping"}', 1008),
        (b"\x00\x01", 1003),
        ("x" * (MAX_FRAME_BYTES + 1), 1009),
    ],
)
@pytest.mark.parametrize("after_hello", [False, True])
async def test_a_bad_frame_ends_the_connection_with_its_code(door: Door, frame: str | bytes, code: int, after_hello: bool) -> None:
    async with door.connect(await door.enrolled()) as websocket:
        if after_hello:
            await hello(websocket)
            await desired_of(websocket)
        await websocket.send(frame)
        assert await close_code(websocket) == code


async def test_the_first_frame_must_be_hello_in_a_protocol_that_is_spoken(door: Door) -> None:
    context = await door.enrolled()
    async with door.connect(context) as websocket:
        await websocket.send(report())
        assert await close_code(websocket) == 1008
    async with door.connect(context) as websocket:
        await hello(websocket, protocol=99)
        assert await close_code(websocket) == 1008


async def test_facts_that_would_bloat_the_object_are_refused(door: Door) -> None:
    async with door.connect(await door.enrolled()) as websocket:
        big = facts().model_copy(update={"kernel": "k" * MAX_FACTS_BYTES})
        await websocket.send(Hello(boot_id="b", facts=big).model_dump_json())
        assert await close_code(websocket) == 1008


async def test_a_hosts_clock_is_compared_with_ours(door: Door) -> None:
    async with door.connect(await door.enrolled()) as websocket:
        late = facts().model_copy(update={"clock": time.time() - 90})
        await websocket.send(Hello(boot_id="boot", facts=late).model_dump_json())
        await eventually(lambda: with_condition(door, "True"))
    status = (await door.host())["status"]
    assert -92 < status["agent"]["clockOffsetSeconds"] < -88
    assert "clock" not in status["facts"], "it would make every report new"


async def test_a_stranger_with_bad_frames_does_not_disturb_the_others(door: Door) -> None:
    good, bad = await door.enrolled("good"), await door.enrolled("bad")
    async with door.connect(good) as websocket:
        await hello(websocket)
        await desired_of(websocket)
        for _ in range(5):
            async with door.connect(bad) as rude:
                await rude.send("{")
                assert await close_code(rude) == 1007
        await door.desire("good", Desired(generation=1, host="good"))
        assert (await desired_of(websocket)).generation == 1


# The shape of a status.


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=3000), st.text(max_size=3000), st.integers(0, 80))
def test_a_status_stays_small_whatever_a_host_reports(message: str, machine: str, entries: int) -> None:
    entry = JournalEntry(at="x" * 99, step=message, outcome="failed", message=message)
    told = Report(generation=1, phase="Failed", message=message, machine=machine, journal=(entry,) * entries)
    status = shape.with_report({}, told, at=SystemClock().now())
    assert len(json.dumps(status, ensure_ascii=False)) < 60_000


def test_how_far_an_upgrade_is_stands_in_the_status_and_stays_small() -> None:
    told = Report(generation=1, phase="Joined", upgrade=UpgradeReport(request="1", release="v1.36.0", state="Failed", message="x" * 5000, restored=True))
    now = SystemClock().now()
    seen = shape.with_report({}, told, at=now)["observed"]["upgrade"]
    assert (seen["state"], seen["restored"], len(seen["message"])) == ("Failed", True, 1000)
    assert "upgrade" not in shape.with_report({}, Report(generation=1, phase="Joined"), at=now)["observed"]


def test_the_time_of_an_observation_stands_while_nothing_changes() -> None:
    first, later = SystemClock().now() - timedelta(minutes=5), SystemClock().now()
    told = Report(generation=1, phase="Joined")
    status = shape.with_report({}, told, at=first)
    assert shape.with_report(status, told, at=later)["observed"]["at"] == rfc3339(first)
    assert shape.with_report(status, told.model_copy(update={"attempts": 1}), at=later)["observed"]["at"] == rfc3339(later)


async def _sync(probe: Callable[[], Any]) -> Any:
    return probe()


async def _with_generation(door: Door, generation: int) -> dict[str, Any] | None:
    host = await door.host()
    return host if ((host.get("status") or {}).get("observed") or {}).get("generation") == generation else None


async def _connected_is(door: Door, value: bool) -> bool:
    return ((await door.host())["status"].get("agent") or {}).get("connected") is value


def _writes(door: Door) -> int:
    return len([call for call in door.kube.calls if call[:2] == ("apply", "ByoHost")])
