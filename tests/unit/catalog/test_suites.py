"""The conformance suites and Debian sources of the catalog: each release has one, and what is malformed is refused with file and key."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ckp.catalog.load import SUITE_COMPONENT, Catalog
from ckp.kits.errors import InvalidInput, NotFound

CATALOG = Catalog()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A catalog that a test may spoil."""
    shutil.copytree(CATALOG.root, tmp_path / "catalog")
    return tmp_path / "catalog"


def test_each_release_has_the_suite_of_its_own_version() -> None:
    assert CATALOG.suites() == CATALOG.names()
    for name in CATALOG.names():
        source = CATALOG.suite_programs(name).source
        assert (source.component, source.version) == (SUITE_COMPONENT, name)
        assert f"k8s.io/kubernetes@{name}" in source.modules
        assert [binary.name for binary in source.binaries if binary.test] == ["e2e.test"]


@pytest.mark.parametrize(("name", "tests"), [("v1.33.7", 419), ("v1.34.3", 424), ("v1.35.1", 441)])
def test_a_suite_has_as_many_tests_as_upstream_counts(name: str, tests: int) -> None:
    assert CATALOG.conformance(name).tests == tests


def test_a_missing_suite_is_said_with_those_that_there_are(copy: Path) -> None:
    with pytest.raises(NotFound, match=r"no conformance suite of v1\.36\.0") as caught:
        Catalog(copy).conformance("v1.36.0")
    assert "v1.33.7, v1.34.3, v1.35.1" in caught.value.render()


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("tests = 441", "tests = 0", "tests: Input should be greater than 0"),
        ("tests = 441", "tests = 441\nserial = 29", "serial: Extra inputs are not permitted"),
        ("tests = 441\n", "", "tests: Field required"),
        ('source = "v1.35.1"', 'source = "1.35"', "source: String should match pattern"),
        ('nonroot = ["1.4"]', "nonroot = []", "images.nonroot: Tuple should have at least 1 item"),
        ('nonroot = ["1.4"]', 'nonroot = ["1 4"]', "images.nonroot.0: String should match pattern"),
        ('nonroot = ["1.4"]', '"../nonroot" = ["1.4"]', "images.../nonroot.[key]: String should match pattern"),
        ('release = "v1.35.1"', 'release = "v1.34.3"', "release is v1.34.3, the file's name says v1.35.1"),
    ],
)
def test_a_malformed_suite_is_refused_by_file_and_key(copy: Path, old: str, new: str, part: str) -> None:
    path = copy / "conformance" / "v1.35.1.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(InvalidInput) as caught:
        Catalog(copy).conformance("v1.35.1")
    assert "conformance/v1.35.1.toml" in caught.value.render()
    assert part in caught.value.render()


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ('sha256 = "', 'sha256 = "0', "sha256: String should match pattern"),
        (".orig.tar.bz2", ".tar.bz2", "archive: String should match pattern"),
        ("busybox_1", "../busybox_1", "archive: String should match pattern"),
        ("license = ", "licence = ", "licence: Extra inputs are not permitted"),
    ],
)
def test_a_malformed_debian_source_is_refused_by_key(copy: Path, old: str, new: str, part: str) -> None:
    path = copy / "debian-sources.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(InvalidInput) as caught:
        Catalog(copy).debian_source("busybox")
    assert part in caught.value.render()


def test_an_unknown_debian_source_is_said_with_those_that_there_are() -> None:
    with pytest.raises(NotFound, match="has no source toybox") as caught:
        CATALOG.debian_source("toybox")
    assert "busybox" in caught.value.render()
