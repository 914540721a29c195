"""The programs that only the tests use are built beside a release where that is asked for, and nowhere else."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from ckp.catalog.load import SUITE_COMPONENT, Catalog, Chosen
from ckp.distribution import release as module
from ckp.distribution.builder.component import Built
from ckp.distribution.builder.schedule import AFTER
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
    for name in catalog.names():
        tools = catalog.test_tools(name)
        assert [tool.role for tool in tools] == ["cosign", "versitygw", "kubernetes-e2e"]
        assert [tool.role for tool in catalog.test_tools(name, long=True)] == ["cosign", "versitygw", "metrics-server", "kubernetes-e2e"]
        assert tools[-1].source.version == name
        assert all(catalog.toolchain_sum(tool.source.go) for tool in catalog.test_tools(name, long=True))


def test_the_suite_waits_for_kubernetes_so_that_little_is_left_to_compile() -> None:
    """It has the tags, flags and Go version of the component kubernetes, without which Go's build cache would have nothing for it."""
    catalog = Catalog()
    assert AFTER[SUITE_COMPONENT] == "kubernetes"
    for name in catalog.names():
        suite, kubernetes = catalog.suite_programs(name).source, catalog.choose(catalog.release(name), "kubernetes", "lab").source
        assert (suite.tags, suite.ldflags, suite.go, suite.cgo) == (kubernetes.tags, kubernetes.ldflags, kubernetes.go, kubernetes.cgo)


def test_a_release_without_a_suite_has_the_other_tools(tmp_path: Path) -> None:
    shutil.copytree(Catalog().root, tmp_path / "catalog")
    (tmp_path / "catalog" / "conformance" / "v1.34.3.toml").unlink()
    assert [tool.role for tool in Catalog(tmp_path / "catalog").test_tools("v1.34.3")] == ["cosign", "versitygw"]


def test_they_are_scheduled_with_the_release_and_are_no_part_of_it(scheduled: list[str]) -> None:
    made = distribution()
    made.build(also=made.catalog.test_tools(made.release.name))
    assert {"cosign", "kubernetes-e2e", "kubernetes"} <= set(scheduled)
    assert not {"cosign", "kubernetes-e2e"} & set(made.built) and "kubernetes" in made.built


def test_what_only_long_tests_use_is_not_built_with_a_release(scheduled: list[str]) -> None:
    made = distribution()
    made.build(also=made.catalog.test_tools(made.release.name))
    assert "metrics-server" not in scheduled


def test_a_release_alone_builds_none(scheduled: list[str]) -> None:
    made = distribution()
    made.build()
    assert scheduled == [item.role for item in made.chosen()]
    assert {tool.role for tool in made.catalog.test_tools(made.release.name, long=True)}.isdisjoint(scheduled)
