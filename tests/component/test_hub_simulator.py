"""The API server in memory and the real one are held to the same sentences: what unit tests believe is true."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from typing import Any, Protocol

import pytest

from ckp.api import kinds
from ckp.clients.kube import Kube, KubeError, Obj
from tests.simulators.kube import KubeSimulator

pytestmark = pytest.mark.component


class Server(Protocol):
    """Gives clients of one cluster under different field managers."""

    def client(self, manager: str) -> Kube: ...


class _Simulated:
    def __init__(self) -> None:
        self._kube = KubeSimulator()

    def client(self, manager: str) -> Kube:
        return self._kube.as_manager(manager)


class _Real:
    def __init__(self, plane: Any) -> None:
        self._plane = plane
        self.made: list[Kube] = []

    def client(self, manager: str) -> Kube:
        self.made.append(self._plane.kube(manager))
        return self.made[-1]


@pytest.fixture(params=["simulated", "real"])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    if request.param == "simulated":
        yield _Simulated()
        return
    real = _Real(request.getfixturevalue("plane"))
    yield real
    for client in real.made:
        await client.close()


@pytest.fixture
async def one(server: Server) -> Kube:
    return server.client("one")


@pytest.fixture
async def space(one: Kube) -> str:
    name = f"ckp-test-{secrets.token_hex(3)}"
    await one.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    return name


def host(space: str, **more: Any) -> Obj:
    meta = {"name": "h", "namespace": space, **more.pop("metadata", {})}
    return {"apiVersion": kinds.BYO_HOST.api_version, "kind": "ByoHost", "metadata": meta, **more}


def condition(kind: str, value: str = "True") -> Obj:
    return {"type": kind, "status": value, "reason": "R", "message": "", "lastTransitionTime": "2026-04-01T12:00:00Z"}


async def got(kube: Kube, space: str) -> Obj:
    found = await kube.get(kinds.BYO_HOST, "h", space)
    assert found
    return found


async def code_of(work: Any) -> tuple[int, str]:
    with pytest.raises(KubeError) as told:
        await work
    return told.value.code, told.value.reason


async def test_what_is_there_cannot_be_made_again(one: Kube, space: str) -> None:
    await one.create(host(space, spec={}))
    assert await code_of(one.create(host(space, spec={}))) == (409, "AlreadyExists")


async def test_without_its_namespace_nothing_is_made(one: Kube, space: str) -> None:
    assert await code_of(one.create(host("nowhere-at-all", spec={}))) == (404, "NotFound")


async def test_a_replacement_needs_the_newest_version(one: Kube, space: str) -> None:
    old = await one.create(host(space, spec={}))
    await one.merge(kinds.BYO_HOST, "h", space, {"spec": {"cordoned": True}})
    assert await code_of(one.replace(old)) == (409, "Conflict")
    stale = {"metadata": {"resourceVersion": old["metadata"]["resourceVersion"]}, "spec": {"cordoned": False}}
    assert await code_of(one.merge(kinds.BYO_HOST, "h", space, stale)) == (409, "Conflict")


async def test_status_is_written_through_its_subresource_only(one: Kube, space: str) -> None:
    made = await one.create(host(space, spec={}, status={"agent": {"version": "0"}}))
    assert "status" not in made
    await one.merge(kinds.BYO_HOST, "h", space, {"status": {"agent": {"version": "1"}}, "spec": {"cordoned": True}}, subresource="status")
    now = await got(one, space)
    assert (now["status"]["agent"]["version"], now["spec"].get("cordoned")) == ("1", None)
    replaced = await one.replace(now | {"status": {}, "spec": {"cordoned": True}})
    assert replaced["status"]["agent"]["version"] == "1"
    assert await code_of(one.apply(host(space, metadata={"name": "other"}, status={}), subresource="status")) == (404, "NotFound")


async def test_generation_counts_changes_of_the_spec(one: Kube, space: str) -> None:
    assert (await one.create(host(space, spec={})))["metadata"]["generation"] == 1
    await one.merge(kinds.BYO_HOST, "h", space, {"metadata": {"labels": {"a": "b"}}})
    await one.merge(kinds.BYO_HOST, "h", space, {"status": {"agent": {"version": "1"}}}, subresource="status")
    assert (await got(one, space))["metadata"]["generation"] == 1
    assert (await one.merge(kinds.BYO_HOST, "h", space, {"spec": {"cordoned": True}}))["metadata"]["generation"] == 2


async def test_a_patch_that_changes_nothing_makes_no_new_version(one: Kube, space: str) -> None:
    first = await one.create(host(space, spec={"cordoned": True}))
    again = await one.merge(kinds.BYO_HOST, "h", space, {"spec": {"cordoned": True}})
    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]


async def test_what_its_only_applier_stops_naming_goes_away(one: Kube, space: str) -> None:
    await one.create(host(space, spec={}))
    await one.apply(host(space, status={"agent": {"version": "1"}, "facts": {"cpus": 2}}), subresource="status")
    await one.apply(host(space, status={"facts": {"cpus": 4}}), subresource="status")
    status = (await got(one, space))["status"]
    assert not (status.get("agent") or {}).get("version")
    assert status["facts"] == {"cpus": 4}


async def test_what_another_named_too_stays(server: Server, one: Kube, space: str) -> None:
    two = server.client("two")
    await one.create(host(space, spec={}))
    for client in (one, two):
        await client.apply(host(space, status={"agent": {"version": "1"}}), subresource="status")
    await one.apply(host(space, status={"facts": {"cpus": 4}}), subresource="status")
    assert (await got(one, space))["status"]["agent"]["version"] == "1"


async def test_what_was_merged_by_patch_is_not_the_appliers_to_lose(one: Kube, space: str) -> None:
    """Why the hub writes a certificate's serial by merge patch and all else by apply."""
    await one.create(host(space, spec={}))
    await one.merge(kinds.BYO_HOST, "h", space, {"status": {"agent": {"certificateSerial": "ab"}}}, subresource="status")
    await one.apply(host(space, status={"agent": {"version": "1"}}), subresource="status")
    await one.apply(host(space, status={"facts": {"cpus": 1}}), subresource="status")
    assert (await got(one, space))["status"]["agent"] == {"certificateSerial": "ab"}


async def test_conditions_of_two_appliers_stand_side_by_side(server: Server, one: Kube, space: str) -> None:
    two = server.client("two")
    await one.create(host(space, spec={}))
    await one.apply(host(space, status={"conditions": [condition("A")]}), subresource="status")
    await two.apply(host(space, status={"conditions": [condition("B")]}), subresource="status")
    await one.apply(host(space, status={"conditions": [condition("A", "False")]}), subresource="status")
    assert {item["type"]: item["status"] for item in (await got(one, space))["status"]["conditions"]} == {"A": "False", "B": "True"}
    await two.apply(host(space, status={"facts": {"cpus": 1}}), subresource="status")
    assert [item["type"] for item in (await got(one, space))["status"]["conditions"]] == ["A"]


async def test_none_in_a_merge_patch_removes(one: Kube, space: str) -> None:
    await one.create(host(space, metadata={"labels": {"a": "1", "b": "2"}}, spec={}))
    patched = await one.merge(kinds.BYO_HOST, "h", space, {"metadata": {"labels": {"a": None}}})
    assert patched["metadata"]["labels"] == {"b": "2"}


async def test_a_finalizer_holds_a_deletion_until_it_is_taken_off(one: Kube, space: str) -> None:
    await one.create(host(space, metadata={"finalizers": ["ckp.coredge.io/test"]}, spec={}))
    assert await one.delete(kinds.BYO_HOST, "h", space)
    assert (await got(one, space))["metadata"]["deletionTimestamp"]
    await one.merge(kinds.BYO_HOST, "h", space, {"metadata": {"finalizers": None}})
    assert await one.get(kinds.BYO_HOST, "h", space) is None
    assert await one.delete(kinds.BYO_HOST, "h", space) is False


async def test_a_label_is_selected_by_value_or_by_being_there(one: Kube, space: str) -> None:
    for name, labels in (("a", {"x": "1"}), ("b", {"x": "2"}), ("c", {})):
        await one.create(host(space, metadata={"name": name, "labels": labels}, spec={}))
    assert [item["metadata"]["name"] for item in await one.list(kinds.BYO_HOST, space, labels={"x": None})] == ["a", "b"]
    assert [item["metadata"]["name"] for item in await one.list(kinds.BYO_HOST, space, labels={"x": "2"})] == ["b"]


async def test_a_watch_tells_all_changes_since_a_list_in_order(one: Kube, space: str) -> None:
    await one.create(host(space, spec={}))
    items, version = await one.list_with_version(kinds.BYO_HOST, space)
    assert len(items) == 1
    await one.merge(kinds.BYO_HOST, "h", space, {"spec": {"cordoned": True}})
    await one.delete(kinds.BYO_HOST, "h", space)
    await one.create(host(space, metadata={"name": "later"}, spec={}))
    seen: list[tuple[str, str]] = []

    async def collect() -> None:
        async for event, obj in one.watch(kinds.BYO_HOST, space, version):
            if event != "BOOKMARK":
                seen.append((event, obj["metadata"]["name"]))
            if len(seen) == 3:
                return

    await asyncio.wait_for(collect(), 20)
    assert seen == [("MODIFIED", "h"), ("DELETED", "h"), ("ADDED", "later")]
