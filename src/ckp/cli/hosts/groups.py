"""`ckp hostgroup`: named sets of hosts."""

from __future__ import annotations

import click

from ckp.api.compass.hosts import GroupRequest, GroupView, MembersRequest
from ckp.cli.session import with_session
from ckp.cli.view.output import Column, age, output_option, show_list, show_one
from ckp.clients.compass import Session

COLUMNS: tuple[Column[GroupView], ...] = (
    Column("NAME", lambda row: row.name),
    Column("HOSTS", lambda row: str(len(row.hosts))),
    Column("FREE", lambda row: str(row.free)),
    Column("CLUSTERS", lambda row: row.clusters),
    Column("AGE", lambda row: age(row.created_at)),
    Column("MEMBERS", lambda row: row.hosts, wide=True),
    Column("DESCRIPTION", lambda row: row.description, wide=True),
)


@click.group()
def hostgroup() -> None:
    """Named sets of hosts that clusters take their workers from."""


@hostgroup.command()
@click.argument("name")
@click.argument("hosts", nargs=-1, metavar="[HOST...]")
@click.option("--description", default="", help="What it is for.")
@with_session
def create(session: Session, name: str, hosts: tuple[str, ...], description: str) -> None:
    """Create a group, with the hosts that are named."""
    session.call("POST", "/host-groups", body=GroupRequest.of(name=name, description=description))
    click.echo(f"hostgroup/{name} created")
    if hosts:
        _members(session, name, hosts, add=True)


@hostgroup.command("list")
@output_option
@with_session
def list_groups(session: Session, output: str) -> None:
    """List groups."""
    show_list(session.get("/host-groups"), GroupView, COLUMNS, output, none=f"No host groups found in {session.where}.")


@hostgroup.command()
@click.argument("name")
@output_option
@with_session
def get(session: Session, name: str, output: str) -> None:
    """Show one group."""
    show_one(session.get(f"/host-groups/{name}"), GroupView, COLUMNS, output)


@hostgroup.command()
@click.argument("name")
@click.argument("hosts", nargs=-1, required=True, metavar="HOST...")
@with_session
def add(session: Session, name: str, hosts: tuple[str, ...]) -> None:
    """Add hosts to a group."""
    _members(session, name, hosts, add=True)


@hostgroup.command()
@click.argument("name")
@click.argument("hosts", nargs=-1, required=True, metavar="HOST...")
@with_session
def remove(session: Session, name: str, hosts: tuple[str, ...]) -> None:
    """Remove hosts from a group. They stay enrolled, and a cluster that has claimed one keeps it."""
    _members(session, name, hosts, add=False)


@hostgroup.command()
@click.argument("name")
@with_session
def delete(session: Session, name: str) -> None:
    """Delete a group that no cluster uses. Its hosts stay."""
    session.call("DELETE", f"/host-groups/{name}")
    click.echo(f"hostgroup/{name} deleted")


def _members(session: Session, name: str, hosts: tuple[str, ...], *, add: bool) -> None:
    session.call("POST", f"/host-groups/{name}/members{'' if add else '/remove'}", body=MembersRequest.of(hosts=hosts))
    for host in hosts:
        click.echo(f"host/{host} {'added to' if add else 'removed from'} {name}")
