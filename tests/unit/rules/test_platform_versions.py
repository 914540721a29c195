"""From which versions of CKP a site is upgraded, and how its database goes back."""

from __future__ import annotations

import re

import pytest

from ckp import __version__
from ckp.kits.errors import Conflict
from ckp.rules import platform_versions
from ckp.rules.platform_versions import NOTES, VERSIONS, before, require_next
from ckp.rules.schemas import HEAD, SCHEMAS, Schema, way_back
from tests.support.checkout import REPO


def test_versions_are_those_of_the_changelog_and_the_last_is_this_one() -> None:
    released = re.findall(r"(?m)^## (\d+\.\d+\.\d+)", (REPO / "CHANGELOG.md").read_text())
    assert VERSIONS[-1] == __version__ and set(NOTES) <= set(VERSIONS)
    assert released[::-1] in (list(VERSIONS), list(VERSIONS[:-1])), "the last one is `Unreleased` there until it is released"


@pytest.fixture
def four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform_versions, "VERSIONS", ("1.0.0", "1.1.0", "1.2.0", "2.0.0"))


def test_a_site_of_the_version_before_is_upgraded_and_one_of_the_same_is_not_refused(four: None) -> None:
    require_next("1.2.0", "2.0.0")
    require_next("2.0.0", "2.0.0")
    assert before("2.0.0") == "1.2.0" and before("1.0.0") == ""


@pytest.mark.parametrize(
    ("site", "own", "says", "resolution"),
    [
        ("2.0.0", "1.2.0", "is of CKP 2.0.0, which is newer than this CKP (1.2.0)", "use CKP 2.0.0"),
        ("1.0.0", "2.0.0", "is of CKP 1.0.0, and 2.0.0 upgrades sites of 1.2.0 only", "upgrade it to 1.1.0, then to 1.2.0 first"),
        ("1.1.0", "2.0.0", "is of CKP 1.1.0, and 2.0.0 upgrades sites of 1.2.0 only", "upgrade it to 1.2.0 first"),
        ("3.0.0", "2.0.0", "is of CKP 3.0.0, which this CKP (2.0.0) does not know", "use CKP 3.0.0, or one that is newer"),
        ("0.1.0", "2.0.0", "is of CKP 0.1.0, which this CKP (2.0.0) does not know", "this CKP upgrades sites of 1.2.0"),
    ],
)
def test_any_other_version_is_refused_with_what_to_do(four: None, site: str, own: str, says: str, resolution: str) -> None:
    with pytest.raises(Conflict) as refused:
        require_next(site, own)
    assert says in refused.value.brief and "nothing was changed" in refused.value.brief
    assert resolution in refused.value.resolution


def test_the_way_back_names_the_schemas_that_are_taken_back() -> None:
    assert [schema.name for schema in way_back("0004", "0002")] == ["0004", "0003"]
    assert way_back(HEAD, HEAD) == []
    for newest, target, says in (("0004", "0009", "0009"), ("0002", "0004", "newer"), (HEAD, "", "schema  of")):
        with pytest.raises(Conflict, match=says):
            way_back(newest, target)


def test_a_schema_without_a_way_back_is_refused_with_its_reason() -> None:
    known = (*SCHEMAS[:4], Schema("0005", irreversible="names were made lower-case"), Schema("0006"))
    with pytest.raises(Conflict, match=r"schema 0005 .* can't be taken back: names were made lower-case"):
        way_back("0006", "0004", known)
    assert [schema.name for schema in way_back("0006", "0005", known)] == ["0006"]
