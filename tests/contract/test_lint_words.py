"""The lint of words: it finds a word in any form and case, names its place, and is not fooled by a word inside another."""

from __future__ import annotations

import pytest

from tests.lint_files import ROOT
from tests.lint_words import WORDS, findings, read_words

LIST = "# a comment\n\nwidg(et|ets|eted)\tpart, component\nso far so good\tworks\n"


def test_a_word_is_found_in_any_case_with_its_place_and_what_to_write() -> None:
    words = read_words(LIST)
    assert list(findings("a.py", "x\nit Widgets, so far so good\n", words)) == [
        "a.py:2:4: Widgets: write part, component",
        "a.py:2:13: so far so good: write works",
    ]


@pytest.mark.parametrize("text", ["midwidget", "widgetry", "widget_er", "so far, so good"])
def test_a_word_inside_another_is_none(text: str) -> None:
    assert list(findings("a.py", text, read_words(LIST))) == []


def test_the_glossarys_tables_may_name_them_and_its_prose_may_not() -> None:
    words = read_words(LIST)
    assert list(findings("CONTRIBUTING.md", '| part | a piece of it (not "widget") |', words)) == []
    assert len(list(findings("CONTRIBUTING.md", "widget it", words))) == 1


@pytest.mark.parametrize("line", ["widget", "widget\t", "widget(\tpart"])
def test_a_line_that_is_none_is_named(line: str) -> None:
    with pytest.raises(ValueError, match=rf"{WORDS}:1: "):
        read_words(line)


def test_the_projects_own_list_can_be_read() -> None:
    assert len(read_words((ROOT / WORDS).read_text())) > 5
