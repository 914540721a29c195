"""Two replicas of Compass over one PostgreSQL: what both are asked at the same moment, one of them does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from ckp.api import kinds
from ckp.compass.store.places import PostgresqlServer
from tests.simulators.kube import KubeSimulator
from tests.support.postgresql_server import PostgresqlTestServer
from tests.worlds.compass import NAMESPACE, World, cluster_body, make_world

ROUNDS = 6
"""Of what two do at once: which comes first is chance."""


@pytest.fixture
async def both(tmp_path: Path, shared: PostgresqlServer) -> AsyncIterator[tuple[World, World]]:
    """Two replicas over one database and one management cluster, with one clock."""
    kube = KubeSimulator(manager="ckp-compass")
    async with make_world(tmp_path, kube, place=shared) as one, make_world(tmp_path, kube, place=shared, clock=one.clock) as other:
        yield one, other


async def statuses(*asked: Awaitable[Any]) -> list[int]:
    return sorted(answer.status_code for answer in await asyncio.gather(*asked))


def post(world: World, path: str, body: Any = None) -> Awaitable[Any]:
    return world.rest.post(f"/api/v1/domains/default/projects/default{path}", json=body)


async def actions(world: World, action: str) -> int:
    entries = (await world.call("GET", "/audit?limit=500", expect=200))["items"]
    return sum(entry["action"] == action for entry in entries)


async def test_a_request_that_both_approve_becomes_one_host_and_is_written_down_once(both: tuple[World, World]) -> None:
    one, other = both
    psk = await one.psk()
    for number in range(ROUNDS):
        ticket = (await one.enrol(psk, hostname=f"w{number}", machine_id=f"{number:032x}")).json()
        path = f"/host-requests/{ticket['request_id']}/approve"
        assert await statuses(post(one, path), post(other, path)) == [200, 200]
    assert len(await one.kube.list(kinds.BYO_HOST, NAMESPACE)) == ROUNDS
    assert await actions(one, "host-request.approve") == ROUNDS


async def test_requests_of_one_hostname_that_two_approve_at_once_get_names_of_their_own(both: tuple[World, World]) -> None:
    one, other = both
    psk = await one.psk()
    tickets = [(await one.enrol(psk, hostname="twin", machine_id=f"{number:032x}")).json() for number in range(2 * ROUNDS)]
    asked = [post(world, f"/host-requests/{ticket['request_id']}/approve") for world, ticket in zip((one, other) * ROUNDS, tickets, strict=True)]
    assert await statuses(*asked) == [200] * (2 * ROUNDS)
    hosts = {host["metadata"]["name"] for host in await one.kube.list(kinds.BYO_HOST, NAMESPACE)}
    assert hosts == {"twin", *(f"twin-{number}" for number in range(2, 2 * ROUNDS + 1))}


async def test_of_two_resets_of_a_key_at_once_one_key_is_good_afterwards(both: tuple[World, World]) -> None:
    one, other = both
    for number in range(3):
        answers = await asyncio.gather(post(one, "/host-psk/reset"), post(other, "/host-psk/reset"))
        tries = [await one.enrol(answer.json()["key"], machine_id=f"{number:031x}{index}", source=f"192.0.2.{number}") for index, answer in enumerate(answers)]
        assert sorted(each.status_code for each in tries) == [202, 401]


async def test_the_first_key_of_a_project_is_made_and_shown_once(both: tuple[World, World]) -> None:
    one, other = both
    answers = await asyncio.gather(*(world.call("GET", "/host-psk", expect=200) for world in (one, other, one, other)))
    assert sum(answer["key"] is not None for answer in answers) == 1


async def test_a_key_for_one_machine_lets_one_in_whichever_replica_they_ask(both: tuple[World, World]) -> None:
    one, other = both
    for number in range(3):
        key = (await one.call("POST", "/host-psk/reset", json={"maxUses": 1}, expect=200))["key"]
        asked = [world.enrol(key, machine_id=f"{number:031x}{index}", source=f"192.0.2.{number}") for index, world in enumerate((one, other))]
        assert await statuses(*asked) == [202, 401]
        assert (await other.call("GET", "/host-psk", expect=200))["useCount"] == 1


async def test_wrong_keys_count_for_all_replicas_together(both: tuple[World, World]) -> None:
    one, other = both
    psk = await one.psk()
    assert [(await world.enrol("wrong-key-of-somebody", source="192.0.2.9")).status_code for world in (one, other, one, other, one)] == [401] * 5
    assert [(await world.enrol(psk, source="192.0.2.9")).status_code for world in (one, other)] == [429, 429]
    assert (await other.enrol(psk, source="192.0.2.10")).status_code == 202
    one.clock.advance(61)
    assert (await other.enrol(psk, source="192.0.2.9")).status_code == 202


@pytest.mark.parametrize("subject", ["/host-groups", "/host-approval-rules"])
async def test_of_a_name_that_both_create_at_once_there_is_one(both: tuple[World, World], subject: str) -> None:
    one, other = both
    for number in range(ROUNDS):
        body = {"name": f"n{number}", **({"criteria": {"hostnames": ["*"]}} if "rules" in subject else {})}
        assert await statuses(post(one, subject, body), post(other, subject, body)) == [201, 409]


async def test_what_a_rule_approves_at_both_counts_once(both: tuple[World, World]) -> None:
    one, other = both
    psk = await one.psk()
    tickets = [(await one.enrol(psk, hostname=f"w{number}", machine_id=f"{number:032x}")).json() for number in range(ROUNDS)]
    await one.call("POST", "/host-approval-rules", json={"name": "all", "criteria": {"hostnames": ["*"]}}, expect=201)

    async def ask(world: World, ticket: dict[str, str]) -> None:
        answer = await world.internal.get(f"/internal/v1/enrolments/{ticket['request_id']}", headers={"X-Enrolment-Token": ticket["token"]})
        assert answer.status_code == 200, answer.text

    await asyncio.gather(*(ask(world, ticket) for ticket in tickets for world in (one, other)))
    assert (await one.call("GET", "/host-approval-rules/all", expect=200))["approved"] == ROUNDS


async def test_a_cluster_that_both_create_with_other_settings_is_made_by_one(both: tuple[World, World]) -> None:
    one, other = both
    await one.group_with_hosts(count=2 * ROUNDS)
    for number in range(ROUNDS):
        bodies = [cluster_body(name=f"c{number}", workers=1, podCIDR=cidr) for cidr in ("10.42.0.0/16", "10.45.0.0/16")]
        assert await statuses(post(one, "/clusters", bodies[0]), post(other, "/clusters", bodies[1])) == [201, 409]
    assert len(await one.kube.list(kinds.CLUSTER, NAMESPACE)) == ROUNDS


async def test_two_clusters_at_once_do_not_get_the_same_hosts(both: tuple[World, World]) -> None:
    one, other = both
    await one.group_with_hosts(count=3)
    bodies = [cluster_body(name=name, workers=2) for name in ("a", "b")]
    assert await statuses(post(one, "/clusters", bodies[0]), post(other, "/clusters", bodies[1])) == [201, 422]


async def test_locks_that_were_lost_before_anything_is_made_end_the_request(both: tuple[World, World], server: PostgresqlTestServer, prepared: str) -> None:
    """A replica whose connection broke does not know whether another one decides about the same hosts now."""
    one, _ = both
    await one.group_with_hosts(count=2)
    holders = "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and granted"

    def fault(verb: str, kind: kinds.Kind, _name: str) -> None:
        if (verb, kind) == ("apply", kinds.NAMESPACE):
            server.execute(holders, prepared)

    one.kube.on_fault(fault)
    answer = await post(one, "/clusters", cluster_body())
    one.kube.on_fault(None)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "Unavailable")
    assert await one.kube.list(kinds.CLUSTER, NAMESPACE) == []
    assert (await post(one, "/clusters", cluster_body())).status_code == 201


async def test_those_who_only_read_wait_for_no_writer(both: tuple[World, World]) -> None:
    one, other = both
    async with one.database.unit() as unit:
        await unit.session.execute(text("select 1"))
        async with asyncio.timeout(3):
            await other.call("GET", "/audit", expect=200)
            await other.call("GET", "/host-approval-rules", expect=200)


async def test_audit_entries_are_numbered_in_the_order_in_which_they_are_seen(both: tuple[World, World]) -> None:
    """Whoever has read up to a number misses nothing: a smaller one never comes later."""
    one, other = both
    seen: list[int] = []

    async def write(world: World, name: str) -> None:
        for number in range(12):
            await world.call("POST", "/host-groups", json={"name": f"{name}{number}"}, expect=201)

    async def follow() -> None:
        while True:
            ids = [entry["id"] for entry in (await other.call("GET", "/audit?limit=500", expect=200))["items"]]
            assert not [number for number in ids if seen and number < max(seen) and number not in seen]
            seen.extend(number for number in ids if number not in seen)
            await asyncio.sleep(0)

    following = asyncio.ensure_future(follow())
    await asyncio.gather(write(one, "a"), write(other, "b"))
    following.cancel()
    results = await asyncio.gather(following, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError), results
