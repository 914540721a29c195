"""For all tests: the marks are held to, and a test that needs root says so where there is none."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support.marks import Current


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
