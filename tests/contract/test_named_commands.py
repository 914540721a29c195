"""Every `ckp …` command that a message, a help text or a page names exists, so that nobody is sent to a command that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from ckp.agent.main import parser
from ckp.cli.main import root
from ckp.kits import paths

pytestmark = pytest.mark.contract
NAMED = re.compile(r"[`(](ckp|ckp-agent) ([a-z][a-z-]*(?: [a-z][a-z-]*)*)")
"""A command in backticks or at the beginning of parentheses, up to its first option or placeholder."""
FILES = sorted([*(paths.REPO / "src").rglob("*.py"), *(paths.REPO / "docs").rglob("*.md"), *paths.REPO.glob("*.md")])


def named(file: Path) -> set[tuple[str, str]]:
    return set(NAMED.findall(file.read_text()))


def problem(words: list[str]) -> str:
    """Which word names no command below the one before it, or is an argument of a command that takes none; "" if all is well."""
    command: click.Command = root
    for word in words:
        if isinstance(command, click.Group):
            found = command.get_command(click.Context(command), word)
            if found is None:
                return word
            command = found
        elif not any(isinstance(parameter, click.Argument) for parameter in command.params):
            return word
    return ""


@pytest.mark.parametrize("file", [file for file in FILES if named(file)], ids=lambda file: str(file.relative_to(paths.REPO)))
def test_every_command_that_is_named_exists(file: Path) -> None:
    agent = set(next(action.choices for action in parser()._actions if action.dest == "command"))  # argparse has no other way to read them
    wrong = [f"ckp {words}" for program, words in named(file) if program == "ckp" and problem(words.split())]
    wrong += [f"ckp-agent {words}" for program, words in named(file) if program == "ckp-agent" and words.split()[0] not in agent]
    assert wrong == []


def test_a_command_that_does_not_exist_is_found() -> None:
    assert problem(["host", "psk"]) == problem(["host", "describe", "worker-one"]) == ""
    assert problem(["host", "psk", "get"]) == "get"
    assert problem(["host", "invite"]) == "invite"
