"""The client of etcd's JSON gateway; `tests/component/test_etcd.py` has the real one at the other end."""

from __future__ import annotations

import json
import ssl
from pathlib import Path

import httpx
import pytest

from ckp.clients.etcd import Alarm, Credentials, EtcdError, EtcdMember, client_context
from tests.simulators.etcd import EtcdSimulator
from tests.worlds.tls import key_pem, make_authority, make_leaf


def member_that(answer: httpx.Response) -> EtcdMember:
    return EtcdMember("https://demo-etcd-0.demo-etcd-peer.t.svc:2379", transport=httpx.MockTransport(lambda request: answer))


async def test_numbers_come_as_text_and_zeros_not_at_all() -> None:
    status = await member_that(httpx.Response(200, json={"header": {"cluster_id": "14841639068965178418", "member_id": "10276657743932975437"}})).status()
    assert (status.cluster_id, status.member_id, status.leader) == ("cdf818194e3a8c32", "8e9e05c52164694d", "")
    assert (status.revision, status.size, status.in_use) == (0, 0, 0)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (httpx.Response(503, json={"error": "etcdserver: no leader", "code": 14}), "no leader"),
        (httpx.Response(200, text="<html>"), "Expecting value"),
        (httpx.Response(200, json=["?"]), "answered 200"),
    ],
)
async def test_every_other_answer_is_an_error_that_names_the_member(answer: httpx.Response, said: str) -> None:
    with pytest.raises(EtcdError, match=said) as caught:
        await member_that(answer).status()
    assert "demo-etcd-0" in caught.value.brief


async def test_a_compaction_that_has_happened_is_no_error_and_any_other_refusal_is() -> None:
    await member_that(httpx.Response(400, json={"error": "etcdserver: mvcc: required revision has been compacted"})).compact(5)
    with pytest.raises(EtcdError, match="future revision"):
        await EtcdSimulator().connect("https://demo-etcd-0.x", Credentials(b"", b"", b"")).compact(10**9)


async def test_an_alarm_is_ended_in_the_name_of_the_member_that_raised_it() -> None:
    sent: list[dict[str, object]] = []

    def handle(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.content))
        return httpx.Response(200, json={"alarms": [{"memberID": "10276657743932975437", "alarm": "NOSPACE"}]})

    member = EtcdMember("https://m", transport=httpx.MockTransport(handle))
    [alarm] = await member.alarms()
    assert alarm == Alarm("8e9e05c52164694d", "NOSPACE")
    await member.disarm(alarm)
    assert sent[1] == {"action": "DEACTIVATE", "memberID": "10276657743932975437", "alarm": "NOSPACE"}


def test_credentials_are_taken_from_memory_and_never_shown(tmp_path: Path) -> None:
    authority = make_authority("etcd-ca")
    pem, key = make_leaf(authority, common_name="client")
    credentials = Credentials(authority.pem.encode(), pem.encode(), key_pem(key).encode())
    context = client_context(credentials)
    assert context.verify_mode is ssl.CERT_REQUIRED and context.check_hostname
    assert [item["subject"] for item in context.get_ca_certs()] == [((("commonName", "etcd-ca"),),)], "this CA and no other"
    assert "PRIVATE" not in repr(credentials)
    with pytest.raises(EtcdError, match="can't be read"):
        client_context(Credentials(authority.pem.encode(), pem.encode(), b"no key"))
