"""The catalog: what is in it holds together, and what does not is refused with the file and field."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ckp.catalog.load import Catalog
from ckp.catalog.models import version_key
from ckp.kits.errors import InvalidInput, NotFound

CATALOG = Catalog()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A catalog that a test may spoil."""
    shutil.copytree(CATALOG.root, tmp_path / "catalog")
    return tmp_path / "catalog"


@pytest.mark.parametrize("name", CATALOG.names())
def test_every_choice_of_a_release_is_locked_in_the_lab_profile(name: str) -> None:
    release = CATALOG.release(name)
    for role in (*release.tools, *release.pins):
        chosen = CATALOG.choose(release, role, "lab")
        assert (chosen.source.folder / "go.sum").exists()
        assert CATALOG.toolchain_sum(chosen.source.go).startswith("h1:")


def test_the_release_profile_never_takes_a_stand_in() -> None:
    release = CATALOG.release("v1.35.1")
    for role in release.pins:
        try:
            chosen = CATALOG.choose(release, role, "release")
        except NotFound:
            continue  # a pin whose lock is not there stops a release build, which is the point
        assert chosen.stands_in_for == ""
        assert chosen.source.version == release.pins[role]


def test_a_stand_in_says_what_it_stands_in_for() -> None:
    chosen = CATALOG.choose(CATALOG.release("v1.35.1"), "cert-manager", "lab")
    assert chosen.stands_in_for == "cert-manager v1.15.3"
    assert chosen.source.version == "v1.11.5"


def test_the_white_papers_matrix_is_what_is_pinned() -> None:
    """White paper §5.4, §11.1, §11.2."""
    release = CATALOG.release("v1.35.1")
    assert (release.pins["etcd"], release.pins["coredns"], release.pins["cluster-api"], release.pins["cert-manager"]) == (
        "v3.5.15",
        "v1.11.3",
        "v1.7.7",
        "v1.15.3",
    )
    assert release.image_tags == {"etcd": "3.5.15-0", "pause": "3.10"}
    assert version_key("v1.1.3") <= version_key(release.pins["runc"]) <= version_key("v1.1.10")


def test_an_unknown_release_is_named_together_with_the_known_ones() -> None:
    with pytest.raises(NotFound, match=r"no release v9\.9\.9") as caught:
        CATALOG.release("v9.9.9")
    assert "v1.35.1" in caught.value.resolution


def test_a_version_outside_the_allowed_range_is_refused(copy: Path) -> None:
    file = copy / "releases" / "v1.35.1.toml"
    file.write_text(file.read_text().replace('runc = "v1.1.10"', 'runc = "v1.2.0"'))
    with pytest.raises(InvalidInput) as caught:
        Catalog(copy).release("v1.35.1")
    assert "runc v1.2.0 is outside v1.1.3 to v1.1.10" in caught.value.details


def test_an_unknown_field_is_refused_by_name(copy: Path) -> None:
    file = copy / "releases" / "v1.35.1.toml"
    file.write_text('colour = "blue"\n' + file.read_text())
    with pytest.raises(InvalidInput) as caught:
        Catalog(copy).release("v1.35.1")
    assert "colour" in caught.value.details


def test_a_file_that_is_not_toml_is_refused_by_path(copy: Path) -> None:
    (copy / "releases" / "v1.35.1.toml").write_text("name = ")
    with pytest.raises(InvalidInput, match=r"releases/v1\.35\.1\.toml is not TOML"):
        Catalog(copy).release("v1.35.1")


def test_a_lock_under_another_components_folder_is_refused(copy: Path) -> None:
    shutil.copytree(copy / "sources/helm/v3.19.2", copy / "sources/helm/v3.0.0")
    with pytest.raises(InvalidInput, match=r"is the lock of helm v3\.19\.2, not of helm v3\.0\.0"):
        Catalog(copy).source("helm", "v3.0.0")
