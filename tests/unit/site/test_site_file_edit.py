"""`releases` of a site's file is changed in place: nothing else of it changes, and what can't be changed is refused with what to write."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ckp.kits.errors import CkpError, InvalidInput
from ckp.site.spec.edit import set_releases
from ckp.site.spec.read import read_site
from tests.unit.site.test_site_file import ONE

OLD, MIDDLE, NEW = "v1.33.7", "v1.34.3", "v1.35.1"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "site.yaml"


def site(releases: str) -> str:
    """A file that says this of releases, with something before and after it."""
    return f"# A site of ours.\n{ONE}{releases}workers:\n  group: {{name: racks}}  # all of them\n"


@pytest.mark.parametrize(
    ("before", "names", "after"),
    [
        ("releases: [v1.35.1]\n", [NEW, OLD], "releases: [v1.35.1, v1.33.7]\n"),
        ("releases: [ v1.35.1,v1.34.3 ]  # those\n", [MIDDLE], "releases: [v1.34.3]  # those\n"),
        ('releases: ["v1.35.1"]\n', [NEW, MIDDLE], "releases: [v1.35.1, v1.34.3]\n"),
        ("releases:\n  - v1.35.1\n", [NEW, OLD], "releases:\n  - v1.35.1\n  - v1.33.7\n"),
        ("releases:\n- v1.35.1  # new\n\n# soon to go\n- v1.33.7\n", [NEW], "releases:\n- v1.35.1  # new\n\n# soon to go\n"),
        ("releases:\n   -   v1.33.7 # old\n   -   'v1.34.3'\n", [MIDDLE, NEW], "releases:\n   -   'v1.34.3'\n   -   v1.35.1\n"),
        ("releases:\n  # none is left of these\n  - v1.33.7\n  - v1.34.3\n", [NEW], "releases:\n  # none is left of these\n  - v1.35.1\n"),
        ("releases:\r\n  - v1.35.1\r\n", [NEW, OLD], "releases:\r\n  - v1.35.1\r\n  - v1.33.7\r\n"),
    ],
)
def test_only_the_names_change(file: Path, before: str, names: list[str], after: str) -> None:
    file.write_bytes(site(before).encode())
    assert set_releases(file, names)
    assert file.read_bytes().decode() == site(after)
    assert sorted(read_site(file).releases) == sorted(names)
    assert not set_releases(file, list(reversed(names))), "the same again changes nothing"
    assert file.read_bytes().decode() == site(after)


@pytest.mark.parametrize("end", ["\n", ""])
def test_a_file_that_names_none_names_them_at_its_end(file: Path, end: str) -> None:
    text = site("").rstrip("\n") + end
    file.write_text(text)
    assert set_releases(file, [*read_site(file).releases, OLD])
    assert re.fullmatch(re.escape(text) + r"\n?releases:\n  - v\S+\n  - v1\.33\.7\n", file.read_text())


def test_a_list_at_the_end_of_a_file_without_a_last_line_break_grows(file: Path) -> None:
    file.write_text(f"{ONE}releases:\n  - v1.35.1")
    set_releases(file, [NEW, OLD])
    assert file.read_text() == f"{ONE}releases:\n  - v1.35.1\n  - v1.33.7\n"


@pytest.mark.parametrize(
    "releases",
    ["releases: [v1.35.1,\n  v1.34.3]\n", "releases: [v1.35.1]  # [v1.33.7]\n", "? releases\n: - v1.35.1\n", 'releases:\n  - "v1.35\\\n    .1"\n'],
    ids=["lines", "comment", "complex key", "folded"],
)
def test_what_cannot_be_changed_is_refused_or_comes_out_right(file: Path, releases: str) -> None:
    file.write_text(site(releases))
    before = read_site(file)
    names = [*before.releases, OLD]
    try:
        set_releases(file, names)
    except InvalidInput as error:
        assert error.resolution == f"write there: releases: [{', '.join(names)}]" and "was not changed" in error.brief
        assert file.read_text() == site(releases)
    else:
        assert read_site(file) == before.model_copy(update={"releases": tuple(names)})


def test_a_file_in_brackets_without_releases_is_refused(file: Path) -> None:
    import json

    import yaml

    text = json.dumps(yaml.safe_load(ONE))
    file.write_text(text)
    with pytest.raises(InvalidInput, match=r"`releases` of .* can't be changed by this command"):
        set_releases(file, [*read_site(file).releases, OLD])
    assert file.read_text() == text


def test_a_link_stays_one_and_the_files_access_is_kept(tmp_path: Path, file: Path) -> None:
    real = tmp_path / "real.yaml"
    real.write_text(site("releases: [v1.35.1]\n"))
    real.chmod(0o640)
    file.symlink_to(real)
    set_releases(file, [NEW, OLD])
    assert file.is_symlink() and real.stat().st_mode & 0o777 == 0o640 and read_site(file).releases == (NEW, OLD)


def test_a_file_that_is_none_is_not_changed(file: Path) -> None:
    with pytest.raises(InvalidInput, match="can't be read"):
        set_releases(file, [NEW])
    file.write_text("releases: [v9]\n")
    with pytest.raises(CkpError, match="does not describe a site"):
        set_releases(file, [NEW])
    assert file.read_text() == "releases: [v9]\n"
