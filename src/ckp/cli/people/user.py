"""`ckp user`: people."""

from __future__ import annotations

import click

from ckp.api.compass.people import CallerView, OwnPasswordRequest, PasswordRequest, UserChange, UserRequest, UserView
from ckp.cli.people.login import sign_in
from ckp.cli.people.passwords import ask, stdin_option
from ckp.cli.session import say, with_session
from ckp.cli.view.output import Column, age, output_option, show_list, show_one
from ckp.clients.compass import Session
from ckp.kits.errors import InvalidInput

COLUMNS: tuple[Column[UserView], ...] = (
    Column("NAME", lambda row: row.name),
    Column("DISPLAY NAME", lambda row: row.display_name),
    Column("STATE", lambda row: "Disabled" if row.disabled else "Active"),
    Column("AGE", lambda row: age(row.created_at)),
    Column("PASSWORD AGE", lambda row: age(row.password_changed_at), wide=True),
    Column("BY", lambda row: row.created_by, wide=True),
    Column("IDENTITY", lambda row: f"{row.issuer} {row.subject}", wide=True),
)


def path_of(user: str) -> str:
    """Where a user is: `ann` of the platform, `ann@acme` of a domain."""
    name, _, domain = user.partition("@")
    return f"{collection_of(domain)}/{name}"


def collection_of(domain: str) -> str:
    """Where the users of a domain are; empty: of the platform."""
    return f"/api/v1/domains/{domain}/users" if domain else "/api/v1/users"


@click.group()
def user() -> None:
    """People: local users, of the platform (NAME) or of a domain (NAME@DOMAIN)."""


@user.command("list")
@click.option("--of", "of_domain", metavar="DOMAIN", default="", help="Those of one domain.")
@output_option
@with_session
def list_users(session: Session, of_domain: str, output: str) -> None:
    """List users."""
    show_list(session.get(collection_of(of_domain)), UserView, COLUMNS, output, none="No users found.")


@user.command()
@click.argument("name", metavar="NAME[@DOMAIN]")
@output_option
@with_session
def get(session: Session, name: str, output: str) -> None:
    """Show one user."""
    show_one(session.get(path_of(name)), UserView, COLUMNS, output)


@user.command()
@click.argument("name", metavar="NAME[@DOMAIN]")
@click.option("--display-name", default="", help="What people call them.")
@click.option("--first", is_flag=True, help="Make the first administrator of the platform, by the bootstrap token, which is void from then on. Logs you in.")
@stdin_option
@with_session
def create(session: Session, name: str, display_name: str, first: bool, password_stdin: bool) -> None:
    """Create a user. Roles are given with `ckp role grant`."""
    local, _, domain = name.partition("@")
    if first and domain:
        raise InvalidInput("the first administrator is one of the platform, and of no domain", resolution=f"ckp user create --first {local}")
    password = ask(f"Password of {name}", password_stdin, new=True)
    body = UserRequest.of(name=local, password=password, display_name=display_name)
    session.call("POST", "/api/v1/first-administrator" if first else collection_of(domain), body=body)
    click.echo(f"user/{name} created")
    if first:
        say("The bootstrap token is void now; `ckp site apply` uses a short-lived one of its own.")
        sign_in(session, name, password)


@user.command()
@click.argument("name", metavar="NAME[@DOMAIN]")
@with_session
def disable(session: Session, name: str) -> None:
    """Keep a user from signing in. Their sessions end at once."""
    session.call("PATCH", path_of(name), body=UserChange.of(disabled=True))
    click.echo(f"user/{name} disabled")


@user.command()
@click.argument("name", metavar="NAME[@DOMAIN]")
@with_session
def enable(session: Session, name: str) -> None:
    """Let a user sign in again."""
    session.call("PATCH", path_of(name), body=UserChange.of(disabled=False))
    click.echo(f"user/{name} enabled")


@user.command()
@click.argument("name", metavar="[NAME[@DOMAIN]]", default="")
@stdin_option
@with_session
def passwd(session: Session, name: str, password_stdin: bool) -> None:
    """Change your own password, or set somebody else's. All sessions of whose it is end.

    From standard input, one's own takes two lines: the current one and the new one.
    """
    if not name:
        own = session.fetch(CallerView, "/api/v1/me").name
        current = ask("Current password", password_stdin)
        password = ask("New password", password_stdin, new=True)
        session.call("POST", "/api/v1/me/password", body=OwnPasswordRequest.of(current=current, password=password))
        sign_in(session, own, password)
        return
    session.call("POST", f"{path_of(name)}/password", body=PasswordRequest.of(password=ask(f"New password of {name}", password_stdin, new=True)))
    click.echo(f"user/{name} has another password")


@user.command()
@click.argument("name", metavar="NAME[@DOMAIN]")
@with_session
def delete(session: Session, name: str) -> None:
    """Delete a user with their roles and sessions."""
    session.call("DELETE", path_of(name))
    click.echo(f"user/{name} deleted")
