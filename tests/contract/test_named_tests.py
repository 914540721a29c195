"""What a page names as proof is there: every `test_…` in docs/ is the name of a test."""

from __future__ import annotations

import re

import pytest

from tests.support.checkout import REPO

pytestmark = pytest.mark.contract
PAGES = sorted((REPO / "docs").rglob("*.md"))


@pytest.mark.parametrize("page", [page for page in PAGES if re.search(r"`test_\w+`", page.read_text())], ids=lambda page: page.name)
def test_every_test_that_a_page_names_exists(page: object) -> None:
    known = {name for path in (REPO / "tests").rglob("*.py") for name in re.findall(r"def (test_\w+)\(", path.read_text())}
    named = set(re.findall(r"`(test_\w+)`", page.read_text()))  # type: ignore[attr-defined]
    assert named - known == set()
