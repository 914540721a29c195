"""Compass: backups of a cluster through REST and the command line: settings, requests, the list, and restores; what can't be is refused by name."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ckp.api import kinds
from ckp.api.names import BACKUP_ANNOTATION, RESTORE_ANNOTATION
from ckp.clients.kube import Obj
from ckp.compass.store.places import Place
from tests.worlds.compass import NAMESPACE, World, cluster_body, make_world

BUCKET: dict[str, Any] = {"endpoint": "https://s3.example", "bucket": "backups", "secret": "bucket-key"}
KEPT = {"id": "20260501T120000Z", "sizeBytes": 1 << 20, "revision": 500, "version": "v1.35.1"}


@pytest.fixture
async def world(tmp_path: Path, place: Place) -> AsyncIterator[World]:
    async with make_world(tmp_path, place=place) as made:
        await made.group_with_hosts()
        await made.call("POST", "/clusters", json=cluster_body(), expect=201)
        yield made


async def plane(world: World) -> Obj:
    found = await world.kube.get(kinds.MANAGED_CONTROL_PLANE, "demo", NAMESPACE)
    assert found is not None
    return found


async def set_backup(world: World, *, expect: int = 200, **settings: Any) -> Any:
    return await world.call("PATCH", "/clusters/demo", json={"backup": settings}, expect=expect)


async def ready(world: World, **status: Any) -> None:
    """A cluster that was up, with one backup."""
    await set_backup(world, **BUCKET)
    found = {"initialized": True, "backup": {"kept": [KEPT], **status}}
    await world.kube.merge(kinds.MANAGED_CONTROL_PLANE, "demo", NAMESPACE, {"status": found}, subresource="status")


async def test_backups_are_set_changed_and_turned_off(world: World) -> None:
    await set_backup(world, every="6h", keep=5, **BUCKET)
    assert (await plane(world))["spec"]["backup"] == {"every": "6h", "keep": 5, "s3": BUCKET}
    await set_backup(world, every="12h")
    assert (await plane(world))["spec"]["backup"] == {"every": "12h", "keep": 5, "s3": BUCKET}
    await set_backup(world, claim="backups")
    assert (await plane(world))["spec"]["backup"] == {"every": "12h", "keep": 5, "claim": "backups"}
    await set_backup(world, off=True)
    assert "backup" not in (await plane(world))["spec"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"every": "6h"}, "no place is named where backups go"),
        ({"bucket": "b"}, "a bucket needs endpoint, secret as well"),
        ({"claim": "c", **BUCKET}, "name one place"),
        ({"off": True, "keep": 3}, "off excludes all other settings"),
        ({"every": "1m", **BUCKET}, "backup.every"),
        ({"keep": 1000, **BUCKET}, "backup.keep"),
        ({"endpoint": "s3.example", "bucket": "b", "secret": "s"}, "backup.endpoint"),
    ],
)
async def test_settings_that_can_not_be_are_refused_and_nothing_is_changed(world: World, settings: dict[str, Any], said: str) -> None:
    assert said in str(await set_backup(world, expect=422, **settings))
    assert "backup" not in (await plane(world))["spec"]


async def test_a_backup_is_requested_and_shown_as_pending_until_it_is_there(world: World) -> None:
    await ready(world)
    shown = await world.call("POST", "/clusters/demo/backups", expect=202)
    assert shown["pending"] is True
    asked = (await plane(world))["metadata"]["annotations"][BACKUP_ANNOTATION]
    status = {"backup": {"handled": asked, "running": "20260501T130000Z"}}
    await world.kube.merge(kinds.MANAGED_CONTROL_PLANE, "demo", NAMESPACE, {"status": status}, subresource="status")
    shown = await world.call("GET", "/clusters/demo/backups")
    assert [(item["id"], item["result"]) for item in shown["items"]] == [("20260501T130000Z", "Running"), ("20260501T120000Z", "Proved")]
    assert (shown["schedule"], shown["place"]) == ("24h", "https://s3.example/backups")


async def test_a_failed_backup_is_listed_with_its_reason(world: World) -> None:
    await ready(world, failed="20260501T130000Z", failures=1, message="the store said no")
    shown = await world.call("GET", "/clusters/demo/backups")
    assert [(item["result"], item["message"]) for item in shown["items"]] == [("Failed", "the store said no"), ("Proved", "")]


async def test_a_restore_is_requested_for_a_backup_that_is_there(world: World) -> None:
    await ready(world)
    shown = await world.call("POST", "/clusters/demo/restore", json={"backup": "20260501T120000Z"}, expect=202)
    assert shown["restore"] == {"backup": "20260501T120000Z", "phase": "Requested", "message": ""}
    assert (await plane(world))["metadata"]["annotations"][RESTORE_ANNOTATION].split()[0] == "20260501T120000Z"


async def test_a_restore_of_what_is_not_there_is_refused_and_lists_what_is(world: World) -> None:
    await ready(world)
    for backup in ("20260101T000000Z", "yesterday", "../else"):
        refused = await world.call("POST", "/clusters/demo/restore", json={"backup": backup}, expect=422)
        assert f"has no backup '{backup}'" in str(refused)
    assert RESTORE_ANNOTATION not in ((await plane(world))["metadata"].get("annotations") or {})


async def test_without_a_place_nothing_is_requested(world: World) -> None:
    for path, body in (("backups", None), ("restore", {"backup": "20260501T120000Z"})):
        assert "names no place for backups" in str(await world.call("POST", f"/clusters/demo/{path}", json=body, expect=409))


async def test_a_cluster_that_is_not_there_is_named(world: World) -> None:
    assert "there is no cluster other" in str(await world.call("GET", "/clusters/other/backups", expect=404))


async def test_no_secret_is_in_any_answer(world: World) -> None:
    await ready(world)
    await world.kube.create(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "ckp-backup-keys", "namespace": NAMESPACE}, "data": {"passphrase": "c2VjcmV0"}}
    )
    shown = await world.call("GET", "/clusters/demo/backups")
    assert "c2VjcmV0" not in str(shown) and "bucket-key" not in str(shown)
