"""Passwords for commands: typed without being seen, or read from standard input. They are in no command line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from ckp.kits.errors import InvalidInput

F = TypeVar("F", bound=Callable[..., Any])


def stdin_option(command: F) -> F:
    """Give a command `--password-stdin`."""
    return click.option("--password-stdin", is_flag=True, help="Read the password from standard input instead of asking for it.")(command)


def ask(prompt: str, from_stdin: bool, *, new: bool = False) -> str:
    """A password; a new one is asked for twice.

    Raises:
        InvalidInput: there is none on standard input.
    """
    if not from_stdin:
        return str(click.prompt(prompt, hide_input=True, confirmation_prompt=new, err=True))
    given = sys.stdin.readline().rstrip("\r\n")
    if not given:
        raise InvalidInput("there is no password on standard input", resolution="write it as one line")
    return given
