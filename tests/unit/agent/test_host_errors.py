"""Errors of the host tools as a person sees them."""

from __future__ import annotations

import pytest

from ckp.hostkit import text as host_text
from ckp.hostkit.errors import AgentError
from ckp.kits import text as kits_text


def test_control_characters_of_names_do_not_reach_the_terminal() -> None:
    shown = AgentError("a\x1b[31mred.txt is not a package", details="one\ntwo\x07", resolution="remove \u202ereversed").render()
    assert shown.splitlines() == ["error: a\\x1b[31mred.txt is not a package", "  | one", "  | two\\x07", "  what to do: remove \\u202ereversed"]


@pytest.mark.parametrize("text", ["plain", "tab\tand\nline", "\x1b\x7f\x9b", "\u2028\u2066", "\ud800", "caf\u00e9 \u4e2d"])
def test_it_is_escaped_as_everywhere_else(text: str) -> None:
    assert host_text.printable(text) == kits_text.printable(text)
