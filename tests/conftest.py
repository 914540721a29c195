"""For all tests: the marks of folders are given, those of tests are held to, and a test that needs root says so where there is none."""

from __future__ import annotations

import os
from collections import Counter
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

BEGIN_FIRST = (
    "component/test_remediation.py",
    "component/test_apt_and_dnf.py",
    "component/test_package_moves.py",
    "component/test_hub_processes.py",
    "component/test_registry.py",
    "component/test_reproduce.py",
    "component/test_command_packages.py",
    "component/test_api_server_end.py",
    "unit/distribution/test_keys.py",
    "unit/distribution/test_release_add.py",
    "contract/test_suite.py",
)
"""Files that take long, whatever their number of tests: where files are handed out to workers, one of them alone at the end would be waited for."""


class Failed:
    """Names each failed test at once: pytest does so in its summary only, which for a suite of half an hour is late, and for one that is killed never."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self.config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal is not None:
            terminal.write_line(f" FAILED {report.nodeid}")


def pytest_configure(config: pytest.Config) -> None:
    """For runs that print dots. Workers of pytest-xdist print nothing."""
    if config.option.verbose <= 0 and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Failed(config), "ckp-failed")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Give each test the mark of its folder."""
    folder = item.path.relative_to(Path(__file__).parent).parts[0]
    if folder in OF_FOLDERS:
        item.add_marker(folder)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """For workers of pytest-xdist, the order in which files begin: those of BEGIN_FIRST, then those with the most tests, as it would have them itself."""
    if not hasattr(config, "workerinput"):
        return
    names = {item.path: item.path.relative_to(Path(__file__).parent).as_posix() for item in items}
    first = {name: number for number, name in enumerate(BEGIN_FIRST)}
    count = Counter(item.path for item in items)
    items.sort(key=lambda item: (first.get(names[item.path], len(first)), -count[item.path], names[item.path]))


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
