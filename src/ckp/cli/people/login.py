"""`ckp login`, `ckp logout`, `ckp whoami`."""

from __future__ import annotations

import sys
from dataclasses import replace

import click
import httpx

from ckp.api.compass.people import CallerView, SignInRequest, SignInView
from ckp.cli.people.passwords import ask, stdin_option
from ckp.cli.session import open_session, say, with_session
from ckp.cli.view.output import describe, output_option, show_data
from ckp.clients.compass import Session, config_path, read, read_config, write_config
from ckp.kits.errors import InvalidInput


@click.command()
@click.argument("user", metavar="NAME[@DOMAIN]", required=False, default="")
@click.option("--token-stdin", is_flag=True, help="Use a service account's token, which is read from standard input.")
@stdin_option
@click.pass_context
def login(context: click.Context, user: str, token_stdin: bool, password_stdin: bool) -> None:
    """Sign in to Compass, for twelve hours. This machine's `ckp` command acts for you from then on."""
    if token_stdin:
        token = sys.stdin.readline().strip()
        if not token or user:
            raise InvalidInput("a token is read from standard input, and it says whose it is", resolution="ckp login --token-stdin < FILE")
        config = replace(read_config(), token=token)
        session = Session(config, transport=context.find_object(httpx.BaseTransport))
        context.call_on_close(session.close)
        found = session.fetch(CallerView, "/api/v1/me")  # before it takes the place of the one that is there
        write_config(config)
        say(f"logged in as {found.name}")
        return
    if not user:
        raise InvalidInput("it was not said who signs in", resolution="ckp login NAME, or NAME@DOMAIN for people of a domain")
    sign_in(open_session(context), user, ask("Password", password_stdin))


def sign_in(session: Session, user: str, password: str) -> None:
    """Open a session for somebody, and keep its token for this machine's `ckp` command."""
    opened = read(SignInView, session.call("POST", "/api/v1/sessions", body=SignInRequest.of(name=user, password=password)))
    path = write_config(replace(session.config_of_file, token=opened.token))
    say(f"logged in as {opened.name} until {opened.expires_at:%Y-%m-%d %H:%M} UTC ({path})")


@click.command()
@with_session
def logout(session: Session) -> None:
    """End the session; its token is void at once."""
    session.call("DELETE", "/api/v1/sessions/current")
    write_config(replace(session.config_of_file, token=""))
    say(f"logged out ({config_path()})")


@click.command()
@output_option
@with_session
def whoami(session: Session, output: str) -> None:
    """Show who this machine's `ckp` command acts for, and which roles they have."""
    answer = session.get("/api/v1/me")
    if output in ("json", "yaml"):
        show_data(answer, output)
        return
    found = read(CallerView, answer)
    click.echo(describe([("Name", found.name), ("Recognised by", found.credential), ("Identity", f"{found.issuer} {found.subject}".strip())]))
    for role in found.roles:
        click.echo(f"  {role.role} in {'/'.join(filter(None, (role.domain, role.project))) or 'the platform'}")
