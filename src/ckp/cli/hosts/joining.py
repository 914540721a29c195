"""`ckp host join-command`: the line by which a machine becomes a host."""

from __future__ import annotations

from pathlib import Path

import click

from ckp.api.compass.enrolment import HostJoinView
from ckp.api.compass.projects import KeyRequest, KeyView
from ckp.cli.session import say, with_session
from ckp.cli.view.output import Duration, output_option, show_data
from ckp.clients.compass import Session, read
from ckp.kits.errors import InvalidInput, NotFound
from ckp.rules import joining


@click.command("join-command")
@click.option("--new-key", is_flag=True, help="Make a new pre-shared key and put it into the line; the old one is void at once.")
@click.option("--expires", type=Duration(), help="With --new-key: no machine can enrol with the key after this time (12h, 30m).")
@click.option("--uses", type=click.IntRange(1), help="With --new-key: how many machines may enrol with the key.")
@click.option(
    "--key-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Put the key of this file into the line, as `ckp host psk` has shown it."
)
@click.option("--proxy", default="", metavar="URL", help="The machine reaches the hub by this proxy: http://HOST:PORT.")
@click.option("--no-proxy", default="", metavar="LIST", help="With --proxy: what the machine reaches directly (10.0.0.0/8,.example.org).")
@output_option
@with_session
def join_command(
    session: Session, new_key: bool, expires: float | None, uses: int | None, key_file: Path | None, proxy: str, no_proxy: str, output: str
) -> None:
    """Print the line that makes a machine with Debian, Ubuntu or RHEL 9 ask to become a host.

    It pins the site's CA by its fingerprint. On the machine it verifies the agent's package, installs it, and sends the request, which
    `ckp host approve` accepts. Without a key in it, it asks for the project's pre-shared key. Only the line is printed to standard output.
    """
    limits = key_limits("--new-key", new_key, expires, uses)
    if new_key and key_file:
        raise click.UsageError("--new-key and --key-file exclude each other")
    if no_proxy and not proxy:
        raise click.UsageError("--no-proxy is for --proxy")
    view = read(HostJoinView, session.get("/host-join", proxy=proxy, noProxy=no_proxy))
    command = view.command
    if new_key:
        command = joining.with_key(command, read(KeyView, session.call("POST", "/host-psk/reset", body=limits)).key or "")
    elif key_file:
        command = joining.with_key(command, _key(key_file))
    if output in ("json", "yaml"):
        show_data({**view.model_dump(by_alias=True, mode="json"), "command": command}, output)
        return
    if new_key or key_file:
        say("The line has the project's key in it: give it to those who may add machines, and to nobody else.")
    click.echo(command)


def key_limits(flag: str, made: bool, expires: float | None, uses: int | None) -> KeyRequest:
    """The limits of a key that a command makes if it has `flag`. UsageError if they are given without it."""
    if (expires or uses) and not made:
        raise click.UsageError(f"--expires and --uses are for a new key: add {flag}")
    return KeyRequest.of(lifetime_seconds=int(expires) if expires else None, max_uses=uses)


def _key(file: Path) -> str:
    try:
        text = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise NotFound(f"{file} can't be read: {error}") from None
    if not text:
        raise InvalidInput(f"{file} is empty", resolution="write the key into it, as `ckp host psk` has shown it")
    return text
