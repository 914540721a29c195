"""`ckp host rule`: rules that approve host requests."""

from __future__ import annotations

import click

from ckp.api.compass.enrolment import CriteriaRequest, CriteriaView, RuleRequest, RuleView
from ckp.cli.session import with_session
from ckp.cli.view.output import Column, age, gibibytes, output_option, show_list
from ckp.clients.compass import Session


@click.group()
def rule() -> None:
    """Rules that approve host requests without a person's decision."""


COLUMNS: tuple[Column[RuleView], ...] = (
    Column("NAME", lambda row: row.name),
    Column("ASKS FOR", lambda row: asks_for(row.criteria)),
    Column("GROUPS", lambda row: row.groups),
    Column("APPROVED", lambda row: str(row.approved)),
    Column("AGE", lambda row: age(row.created_at)),
    Column("BY", lambda row: row.created_by, wide=True),
)


def asks_for(criteria: CriteriaView) -> str:
    """A rule's criteria on one line."""
    lists = (("name", criteria.hostnames), ("from", criteria.networks), ("system", criteria.systems))
    parts = [f"{name} {' or '.join(values)}" for name, values in lists if values]
    parts += [f"{criteria.min_cpus} CPUs"] if criteria.min_cpus else []
    parts += [f"{gibibytes(criteria.min_memory_bytes)} memory"] if criteria.min_memory_bytes else []
    return ", ".join(parts)


@rule.command("list")
@output_option
@with_session
def list_rules(session: Session, output: str) -> None:
    """List rules in the order in which they are applied."""
    show_list(session.get("/host-approval-rules"), RuleView, COLUMNS, output, none=f"No approval rules found in {session.where}.")


@rule.command()
@click.argument("name")
@click.option("--hostname", "hostnames", multiple=True, metavar="PATTERN", help="The machine's name, with * and ?; repeat for alternatives.")
@click.option("--network", "networks", multiple=True, metavar="CIDR", help="The network that it asks from, as the hub sees it; repeat for alternatives.")
@click.option("--system", "systems", multiple=True, metavar="OS-VERSION", help="Its operating system, such as debian-12; repeat for alternatives.")
@click.option("--min-cpus", type=click.IntRange(0), default=0, help="CPUs that it has at least.")
@click.option("--min-memory-gib", type=click.FloatRange(0), default=0.0, help="Memory that it has at least, in GiB.")
@click.option("--group", "groups", multiple=True, metavar="GROUP", help="Host group that it is put into; repeat for more.")
@with_session
def create(
    session: Session,
    name: str,
    hostnames: tuple[str, ...],
    networks: tuple[str, ...],
    systems: tuple[str, ...],
    min_cpus: int,
    min_memory_gib: float,
    groups: tuple[str, ...],
) -> None:
    """Create a rule: a machine with the project's key that meets all criteria becomes a host without a decision."""
    criteria = CriteriaRequest.of(hostnames=hostnames, networks=networks, systems=systems, min_cpus=min_cpus, min_memory_bytes=int(min_memory_gib * (1 << 30)))
    session.call("POST", "/host-approval-rules", body=RuleRequest.of(name=name, criteria=criteria, groups=groups))
    click.echo(f"rule/{name} created")


@rule.command()
@click.argument("name")
@with_session
def delete(session: Session, name: str) -> None:
    """Delete a rule. Hosts that it has approved stay."""
    session.call("DELETE", f"/host-approval-rules/{name}")
    click.echo(f"rule/{name} deleted")
