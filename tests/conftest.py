"""For all tests: the marks of folders are given, those of tests are held to, and a test that needs root says so where there is none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.marks import Current

# How fast examples are made is the machine's affair: on a busy one, hypothesis' own limits would fail tests that find nothing.
settings.register_profile("ckp", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ckp")

OF_FOLDERS = ("component", "contract", "e2e")
"""Folders below tests whose tests all have the mark of that name."""


def pytest_itemcollected(item: pytest.Item) -> None:
    """Give each test the mark of its folder."""
    folder = item.path.relative_to(Path(__file__).parent).parts[0]
    if folder in OF_FOLDERS:
        item.add_marker(folder)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Let tests.support.marks know which test runs, its fixtures included."""
    Current.item = item
    try:
        return (yield)
    finally:
        Current.item = None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked `root` for other users."""
    if os.geteuid() != 0 and (mark := item.get_closest_marker("root")) is not None:
        pytest.skip(f"needs root: {mark.args[0]}")
