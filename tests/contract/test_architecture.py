"""docs/architecture.md says of the rooms what import-linter enforces and what their docstrings say."""

from __future__ import annotations

import pytest

from tests import architecture


def test_the_page_has_the_table_that_the_contracts_give() -> None:
    assert architecture.PAGE.read_text() == architecture.page(), "run `.venv/bin/python -m tests.architecture`"


def test_every_room_is_in_a_layer_and_says_what_it_holds() -> None:
    named = [room for layer in architecture.rooms() for room in layer]
    folders = {path.parent.name for path in (architecture.ROOT / "src" / "ckp").glob("*/__init__.py")}
    assert sorted(named) == sorted(folders)
    assert [room for room in named if len(architecture.holds(room)) < 15] == []


@pytest.mark.parametrize(
    ("room", "rooms", "parts"),
    [
        ("kits", [], []),
        ("agent", ["verify", "hostkit"], []),
        ("standalone", ["agent", "verify", "hostkit"], []),
        ("lab", ["kits"], []),
        ("hub", ["runtime", "rules", "clients", "api", "kits"], []),
        ("rules", ["api", "kits"], ["kits.processes", "kits.files", "kits.retry"]),
    ],
)
def test_what_a_room_may_import_is_what_the_contracts_leave_it(room: str, rooms: list[str], parts: list[str]) -> None:
    assert architecture.may_import(room) == (rooms, parts)
