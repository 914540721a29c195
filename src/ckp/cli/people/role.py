"""`ckp role`: who may do what where."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from ckp.api.compass.people import RoleRequest, RoleView
from ckp.api.compass.roles import Role
from ckp.cli.session import with_session
from ckp.cli.view.output import Column, age, output_option, show_list
from ckp.clients.compass import Session

F = TypeVar("F", bound=Callable[..., Any])

COLUMNS: tuple[Column[RoleView], ...] = (
    Column("ID", lambda row: str(row.id)),
    Column("WHO", lambda row: row.user or f"serviceaccount/{row.service_account}"),
    Column("ROLE", lambda row: row.role),
    Column("IN", lambda row: "/".join(filter(None, (row.domain, row.project))) or "the platform"),
    Column("AGE", lambda row: age(row.created_at)),
    Column("BY", lambda row: row.created_by, wide=True),
)


def scope_option(command: F) -> F:
    """Give a command `--in`."""
    text = "DOMAIN, DOMAIN/PROJECT, or `platform`; default: the configured project."
    return click.option("--in", "where", metavar="WHERE", default="", help=text)(command)


def path_of(session: Session, where: str) -> str:
    """Where the roles of a part of the platform are."""
    if where == "platform":
        return "/api/v1/role-bindings"
    domain, _, project = (where or session.where).partition("/")
    return f"/api/v1/domains/{domain}/projects/{project}/role-bindings" if project else f"/api/v1/domains/{domain}/role-bindings"


@click.group()
def role() -> None:
    """Roles of people and service accounts: in the platform, a domain or a project."""


@role.command("list")
@scope_option
@output_option
@with_session
def list_roles(session: Session, where: str, output: str) -> None:
    """List who has which role, there and below."""
    show_list(session.get(path_of(session, where)), RoleView, COLUMNS, output, none="No roles found.")


@role.command()
@click.argument("name", metavar="ROLE", type=click.Choice([one.value for one in Role]))
@click.argument("who", metavar="NAME[@DOMAIN]|DOMAIN/PROJECT/SERVICEACCOUNT")
@scope_option
@with_session
def grant(session: Session, name: str, who: str, where: str) -> None:
    """Give a user or a service account a role. A user signs in again for it."""
    whose = {"service_account": who} if "/" in who else {"user": who}
    session.call("POST", path_of(session, where), body=RoleRequest.of(role=name, **whose))
    click.echo(f"{who} is {name} in {where or session.where}")


@role.command()
@click.argument("binding", metavar="ID", type=int)
@scope_option
@with_session
def revoke(session: Session, binding: int, where: str) -> None:
    """Take a role, by its id (`ckp role list`). It is in effect at once."""
    session.call("DELETE", f"{path_of(session, where)}/{binding}")
    click.echo(f"role/{binding} revoked")
