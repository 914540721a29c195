"""A session with Compass for a command, and messages to its user."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar, cast

import click
import httpx

from ckp.clients.compass import Session, read_config

F = TypeVar("F", bound=Callable[..., Any])


def open_session(context: click.Context, domain: str | None = None, project: str | None = None) -> Session:
    """A session as this machine is configured, until the command ends. NotFound if it is not configured."""
    config = read_config()
    own = replace(config, domain=domain or config.domain, project=project or config.project)
    session = Session(own, transport=context.find_object(httpx.BaseTransport), of_file=config)
    context.call_on_close(session.close)
    return session


def with_session(command: F) -> F:
    """Give a command `--domain` and `--project`, and a Session as its first argument."""

    @click.option("--domain", metavar="NAME", help="Domain, instead of the configured one.")
    @click.option("--project", "-p", metavar="NAME", help="Project, instead of the configured one.")
    @click.pass_context
    @functools.wraps(command)
    def wrapped(context: click.Context, /, *args: Any, domain: str | None, project: str | None, **kwargs: Any) -> Any:
        return context.invoke(command, open_session(context, domain, project), *args, **kwargs)

    return cast(F, wrapped)


def say(text: str) -> None:
    """Print a message to standard error, so that a pipe does not get it."""
    click.echo(text, file=sys.stderr)
