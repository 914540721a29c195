"""`ckp audit`: who did what."""

from __future__ import annotations

import json

import click

from ckp.api.compass.projects import AuditPage, AuditView
from ckp.cli.people.role import scope_option
from ckp.cli.session import with_session
from ckp.cli.view.output import Column, output_option, show_data, table
from ckp.clients.compass import Session, read
from ckp.kits.clock import rfc3339

COLUMNS: tuple[Column[AuditView], ...] = (
    Column("AT", lambda row: rfc3339(row.at)),
    Column("WHO", lambda row: row.actor),
    Column("ACTION", lambda row: row.action),
    Column("ON", lambda row: row.target),
    Column("IN", lambda row: "/".join(filter(None, (row.domain, row.project))) or "the platform"),
    Column("DOOR", lambda row: row.door),
    Column("FROM", lambda row: row.source),
    Column("RESULT", lambda row: row.result),
    Column("ID", lambda row: str(row.id), wide=True),
    Column("CREDENTIAL", lambda row: row.credential, wide=True),
    Column("DETAIL", lambda row: json.dumps(row.detail) if row.detail else "", wide=True),
)
AT_ONCE = 500


@click.group()
def audit() -> None:
    """The audit log: every change and every sign-in."""


@audit.command("list")
@scope_option
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1), help="How many entries.")
@output_option
@with_session
def list_entries(session: Session, where: str, limit: int, output: str) -> None:
    """List the newest entries, the newest first, of a project, a domain or the platform and of what is below."""
    domain, _, project = (where or session.where).partition("/")
    path = "/api/v1/audit" if where == "platform" else f"/api/v1/domains/{domain}/projects/{project}/audit" if project else f"/api/v1/domains/{domain}/audit"
    items: list[object] = []
    following = ""
    while len(items) < limit:
        more = {"pageToken": following} if following else {}
        answer = session.get(path, limit=str(min(AT_ONCE, limit - len(items))), **more)
        items += answer["items"]
        following = str(answer.get("nextPageToken", ""))
        if not following:
            break
    if output in ("json", "yaml"):
        show_data({"items": items, "nextPageToken": following}, output)
    elif found := read(AuditPage, {"items": items}).items:
        click.echo(table(COLUMNS, found, wide=output == "wide"))
    else:
        click.echo("No entries found.", err=True)
