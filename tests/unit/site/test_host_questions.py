"""Several questions to a host in one round trip, by this machine's own shell."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckp.kits.errors import CkpError
from ckp.site.hosts.questions import Asked
from tests.worlds.backup import ThisMachine


class Counted(ThisMachine):
    """This machine, whose answers break off."""

    breaks_off: int | None = None

    def run(self, argv, **more):  # type: ignore[no-untyped-def]
        done = super().run(argv, **more)
        return done if self.breaks_off is None else type(done)(done.argv, done.code, done.stdout[: self.breaks_off], "", 0.0)


def test_all_are_asked_at_once_with_output_and_code_of_each(tmp_path: Path) -> None:
    (tmp_path / "it's a file").write_text("two\nlines\n")
    host = Counted()
    questions = [["cat", "--", str(tmp_path / "it's a file")], ["test", "-e", "/nonexistent"], ["printf", "no newline"], ["cat", "/nonexistent"]]
    asked = Asked(host, questions, timeout=30)
    found = [asked.run(argv, timeout=30, check=False) for argv in questions]
    assert [(done.code, done.stdout) for done in found] == [(0, "two\nlines\n"), (1, ""), (0, "no newline"), (1, "")]
    assert host.calls == 1 and (asked.name, asked.address) == (host.name, host.address)


def test_what_was_not_asked_and_what_fails_goes_to_the_host() -> None:
    host = Counted()
    asked = Asked(host, [["cat", "/nonexistent"]], timeout=30)
    assert asked.run(["printf", "x"], timeout=30).stdout == "x" and host.calls == 2
    with pytest.raises(CkpError, match="failed"):
        asked.run(["cat", "/nonexistent"], timeout=30)
    assert host.calls == 3, "for what it says of the error"


def test_what_broke_off_is_asked_again() -> None:
    host = Counted()
    host.breaks_off = 4
    asked = Asked(host, [["printf", "first"], ["printf", "second"]], timeout=30)
    host.breaks_off = None
    assert [asked.run(["printf", word], timeout=30).stdout for word in ("first", "second")] == ["first", "second"] and host.calls == 3
