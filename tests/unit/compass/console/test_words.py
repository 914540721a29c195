"""Every word that people read on a page is given to gettext, so that it can be translated."""

from __future__ import annotations

import re

import pytest
from jinja2 import Environment

from ckp.compass.web.console import TEMPLATES

NAMES = {"CKP", "SHA", "ckp", "host", "psk", "reset", "domain", "project"}
"""Names and commands, which are the same in all languages."""


@pytest.mark.parametrize("template", sorted(path.relative_to(TEMPLATES).as_posix() for path in TEMPLATES.rglob("*.html")))
def test_no_words_stand_on_a_page_by_themselves(template: str) -> None:
    text = (TEMPLATES / template).read_text()
    text = re.sub(r"\{% block stream %\}.*?\{% endblock %\}", " ", text, flags=re.S)  # an attribute of the frame
    text = re.sub(r"\{%-?\s*trans\b.*?endtrans\s*-?%\}", " ", text, flags=re.S)
    text = re.sub(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", " ", text, flags=re.S)
    bare = {word for piece in re.sub(r"<[^>]*>", " \n ", text).splitlines() for word in re.findall(r"[A-Za-z]{2,}", piece)}
    assert bare <= NAMES, f"wrap them in _(): {sorted(bare - NAMES)}"


def test_messages_can_be_taken_out_of_the_templates() -> None:
    environment = Environment(extensions=["jinja2.ext.i18n"], autoescape=True)
    found = {
        message if isinstance(message, str) else next(part for part in message if part)
        for path in TEMPLATES.rglob("*.html")
        for _, _, message in environment.extract_translations(path.read_text())  # type: ignore[attr-defined]
    }
    assert {"Create a cluster", "Hosts", "Sign in to Compass"} <= found and len(found) > 150
