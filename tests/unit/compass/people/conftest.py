"""A Compass with two tenants: acme, whose project web has one of everything, and other, whose people have every role there is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.worlds.compass import World, make_world
from tests.worlds.people import make_user


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A Compass without people."""
    async with make_world(tmp_path) as made:
        yield made


@pytest.fixture
async def tenants(world: World) -> World:
    """The same with people in two domains."""
    await world.project("acme", "web")
    await world.project("acme", "shop")
    await world.project("other", "web")
    await make_user(world, "ann@acme", ("domain-administrator", "acme"))
    await make_user(world, "pat@acme", ("project-administrator", "acme/web"))
    await make_user(world, "uma@acme", ("user", "acme/web"))
    await make_user(world, "aud@acme", ("auditor", "acme/web"))
    await make_user(world, "olga@other", ("domain-administrator", "other"))
    return world
