"""A console for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.worlds.console import Browser, ConsoleWorld, console_world


@pytest.fixture
async def console(tmp_path: Path) -> AsyncIterator[ConsoleWorld]:
    """A console with nothing in it."""
    async with console_world(tmp_path) as made:
        yield made


@pytest.fixture
async def browser(console: ConsoleWorld) -> AsyncIterator[Browser]:
    """A browser of somebody who is signed in."""
    async with console.browser() as made:
        yield made
