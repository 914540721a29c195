"""Marks that are held to: what a test needs of its machine is on the test, so that `-m "not release"` leaves out all that would wait for a build.

pyproject.toml declares them; docs/how-to/tests.md says which command runs what.
"""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

IMPLY = {"release": ("release", "component", "e2e")}
"""Marks of which any will do."""


class Current:
    """The test that runs now, its fixtures included. tests/conftest.py sets it."""

    item: pytest.Item | None = None


def not_built(what: str) -> NoReturn:
    """Skips the test that needs it; where the release has just been built (tests.suite), fails it."""
    text = f"needs the built release (make build): {what} is not built"
    if os.environ.get("CKP_TESTS_BUILT"):
        pytest.fail(text, pytrace=False)
    pytest.skip(text)


def needs(mark: str) -> None:
    """Called by what needs it: fails a test that does not say so by its mark.

    Raises:
        pytest.fail.Exception: the test lacks the mark.
    """
    item = Current.item
    if item is not None and not any(item.get_closest_marker(name) for name in IMPLY.get(mark, (mark,))):
        pytest.fail(f"{item.nodeid} needs the mark `{mark}`: without it, it would also run where there is none", pytrace=False)
