"""The programs that only the tests use are built beside a release where that is asked for, and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from ckp.catalog.load import Catalog, Chosen
from ckp.distribution import release as module
from ckp.distribution.builder.component import Built
from ckp.distribution.release import Distribution


@pytest.fixture
def scheduled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The roles that were handed to the schedule."""
    roles: list[str] = []

    def build_all(catalog: Catalog, components: Sequence[Chosen], stamp: str, say: object, steps: object) -> dict[str, Built]:
        roles.extend(item.role for item in components)
        return {item.role: Built(item, Path("/nowhere"), "key", fresh=False) for item in components}

    monkeypatch.setattr(module, "build_all", build_all)
    return roles


def distribution() -> Distribution:
    catalog = Catalog()
    return Distribution(catalog, catalog.release("v1.35.1"), "lab", lambda _line: None)


def test_each_has_a_lock_and_a_toolchain() -> None:
    catalog = Catalog()
    tools = catalog.test_tools()
    assert [tool.role for tool in tools] == ["cosign"]
    assert all(catalog.toolchain_sum(tool.source.go) for tool in tools)


def test_they_are_scheduled_with_the_release_and_are_no_part_of_it(scheduled: list[str]) -> None:
    made = distribution()
    made.build(also=made.catalog.test_tools())
    assert "cosign" in scheduled and "kubernetes" in scheduled
    assert "cosign" not in made.built and "kubernetes" in made.built


def test_a_release_alone_builds_none(scheduled: list[str]) -> None:
    made = distribution()
    made.build()
    assert scheduled == [item.role for item in made.chosen()]
    assert "cosign" not in scheduled
