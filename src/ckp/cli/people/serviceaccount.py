"""`ckp serviceaccount`: what programs act as."""

from __future__ import annotations

import click

from ckp.api.compass.people import ServiceAccountRequest, ServiceAccountView, TokenRequest, TokenView
from ckp.cli.session import say, with_session
from ckp.cli.view.output import Column, Duration, age, output_option, show_data, show_list
from ckp.clients.compass import Session, read
from ckp.kits.clock import rfc3339

COLUMNS: tuple[Column[ServiceAccountView], ...] = (
    Column("NAME", lambda row: row.name),
    Column("TOKENS", lambda row: str(row.tokens)),
    Column("AGE", lambda row: age(row.created_at)),
    Column("FULL NAME", lambda row: row.full_name, wide=True),
    Column("BY", lambda row: row.created_by, wide=True),
    Column("DESCRIPTION", lambda row: row.description, wide=True),
)
TOKENS: tuple[Column[TokenView], ...] = (
    Column("ID", lambda row: row.id),
    Column("EXPIRES", lambda row: rfc3339(row.expires_at)),
    Column("LAST USED", lambda row: age(row.last_used_at) if row.last_used_at else "never"),
    Column("AGE", lambda row: age(row.created_at)),
    Column("BY", lambda row: row.created_by, wide=True),
    Column("DESCRIPTION", lambda row: row.description, wide=True),
)


@click.group()
def serviceaccount() -> None:
    """Service accounts of a project: what programs act as, by tokens that expire."""


@serviceaccount.command("list")
@output_option
@with_session
def list_accounts(session: Session, output: str) -> None:
    """List service accounts."""
    show_list(session.get("/service-accounts"), ServiceAccountView, COLUMNS, output, none=f"No service accounts found in {session.where}.")


@serviceaccount.command()
@click.argument("name")
@click.option("--description", default="", help="What it is for.")
@with_session
def create(session: Session, name: str, description: str) -> None:
    """Create a service account. Roles are given with `ckp role grant`."""
    session.call("POST", "/service-accounts", body=ServiceAccountRequest.of(name=name, description=description))
    click.echo(f"serviceaccount/{name} created")


@serviceaccount.command()
@click.argument("name")
@with_session
def delete(session: Session, name: str) -> None:
    """Delete a service account with its roles; its tokens are void at once."""
    session.call("DELETE", f"/service-accounts/{name}")
    click.echo(f"serviceaccount/{name} deleted")


@serviceaccount.command()
@click.argument("name")
@output_option
@with_session
def tokens(session: Session, name: str, output: str) -> None:
    """List a service account's tokens."""
    show_list(session.get(f"/service-accounts/{name}/tokens"), TokenView, TOKENS, output, none=f"{name} has no tokens.")


@serviceaccount.command()
@click.argument("name")
@click.option("--expires", type=Duration(), help="How long it is valid (12h, 30m); default: 90 days.")
@click.option("--description", default="", help="What it is for.")
@output_option
@with_session
def token(session: Session, name: str, expires: float | None, description: str, output: str) -> None:
    """Make a token and show it, once. Only the token is printed to standard output."""
    limits = {"lifetime_seconds": int(expires)} if expires else {}
    answer = session.call("POST", f"/service-accounts/{name}/tokens", body=TokenRequest.of(description=description, **limits))
    if output in ("json", "yaml"):
        show_data(answer, output)
        return
    made = read(TokenView, answer)
    say(f"This token is shown only now. It expires at {rfc3339(made.expires_at)}; to revoke it: ckp serviceaccount revoke {name} {made.id}")
    click.echo(made.token)


@serviceaccount.command()
@click.argument("name")
@click.argument("token_id", metavar="ID")
@with_session
def revoke(session: Session, name: str, token_id: str) -> None:
    """Revoke a token, by its id (`ckp serviceaccount tokens`): it is void at once."""
    session.call("DELETE", f"/service-accounts/{name}/tokens/{token_id}")
    click.echo(f"token {token_id} of {name} revoked")
