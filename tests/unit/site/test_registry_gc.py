"""Garbage collection in the registry of a host: what nothing names goes, pulls go on, and pushes are taken again whatever was killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckp.kits.errors import CkpError
from ckp.site.registries import gc as registry_gc
from ckp.site.registries.gc import UNIT, collect, finish
from ckp.site.registries.hosted import STORAGE
from tests.simulators.site_host import Killed, Service
from tests.unit.site.test_hosted_registry import PULL, PUSH, World

NAMED, UNNAMED = "docker/named", "docker/unnamed"


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A registry that serves, with something in it that nothing names."""
    made = World(tmp_path)
    made.ensure()
    fill(made)
    made.lines.clear()
    return made


def fill(world: World) -> None:
    for name in (NAMED, UNNAMED):
        path = world.host.path(f"{STORAGE}/{name}")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * 3_000_000)
    world.host.unnamed = [UNNAMED]


def there(world: World, name: str) -> bool:
    return world.host.path(f"{STORAGE}/{name}").exists()


def test_what_nothing_names_is_deleted_and_the_space_said(world: World) -> None:
    starts = world.starts
    assert collect(world.registry, world.lines.append) == 3_000_000
    assert there(world, NAMED) and not there(world, UNNAMED)
    assert world.lines == [f"m1: 3 MB freed in {STORAGE}"]
    assert world.starts == (starts[0], starts[1] + 1), "pulls were not interrupted, and pushes are taken again"
    assert collect(world.registry, world.lines.append) == 0
    world.check()


def test_a_registry_that_never_had_content_is_left_alone(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.ensure()
    starts = world.starts
    assert collect(world.registry, world.lines.append) == 0 and world.starts == starts


@pytest.mark.parametrize("after", [False, True])
def test_a_collection_that_is_killed_at_any_command_is_gone_on_with(world: World, after: bool) -> None:
    number = 0
    while True:
        fill(world)
        world.host.calls.clear()
        world.host.kill_at, world.host.kill_after = number, after
        try:
            collect(world.registry, world.lines.append)
            break
        except Killed:
            world.host.kill_at = None
        collect(world.registry, world.lines.append)
        assert there(world, NAMED) and not there(world, UNNAMED) and world.registry.silent() == []
        number += 1
    assert number > 5


def test_pushes_are_taken_again_after_a_collection_that_failed(world: World) -> None:
    world.host.ends_with = 1
    world.host.services[UNIT] = Service(journal=["failed to garbage collect: input/output error"])
    with pytest.raises(CkpError, match=f"{UNIT} on m1 failed") as failed:
        collect(world.registry, world.lines.append)
    assert "input/output error" in failed.value.details and "ckp site registry gc" in failed.value.resolution
    assert world.registry.silent() == []


def test_one_that_is_under_way_is_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever began it was killed; systemd has not stopped for that."""
    world.host.services[UNIT] = Service(active="active")
    world.host.services[PUSH].active, world.host.services[PUSH].pid, world.host.services[PUSH].listens = "inactive", 0, ""
    looks = iter(range(3))

    def state(_: object, unit: str) -> str:
        if unit == UNIT and next(looks, None) is None:
            world.host.services[UNIT].active = "inactive"
        return world.host.services[unit].active

    monkeypatch.setattr(registry_gc, "_state", state)
    monkeypatch.setattr("time.sleep", lambda _: None)
    finish(world.registry, world.lines.append)
    assert world.lines == ["m1: a collection in the registry is under way; waiting for its end"] and world.registry.silent() == []


def test_pulls_go_on_with_what_is_named_while_pushes_are_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def program(words: list[str]) -> tuple[int, str, str]:
        seen.append([unit for unit in (PULL, PUSH) if world.host.services[unit].pid])
        return 0, "", ""

    monkeypatch.setattr(world.host, "program", program)
    collect(world.registry, world.lines.append)
    assert seen == [[PULL]]
