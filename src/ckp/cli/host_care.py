"""`ckp host label|cordon|uncordon|revoke|remove` and `ckp host rule`: what is done with hosts between enrolling and deleting them."""

from __future__ import annotations

from typing import Any

import click

from ckp.cli.output import Column, Duration, age, gibibytes, output_option, show_list
from ckp.cli.session import say, with_session
from ckp.clients.compass import Session
from ckp.kits.errors import CkpError, NotFound
from ckp.kits.retry import wait_until

GIVEN_UP = ("AgentUpgradeReturned", "NoWayBack", "AgentPackageMissing")
"""Reasons of a host's report that its agent will not become the wanted one by waiting."""


@click.command()
@click.argument("name")
@click.argument("labels", nargs=-1, required=True, metavar="KEY=VALUE|KEY-...")
@with_session
def label(session: Session, name: str, labels: tuple[str, ...]) -> None:
    """Set labels of a host; `KEY-` removes one. Clusters may ask for them, and a node of the host carries them too."""
    changes: dict[str, str | None] = {}
    for text in labels:
        key, equals, value = text.partition("=")
        if not equals and not text.endswith("-"):
            raise click.UsageError(f"{text!r} is neither KEY=VALUE nor KEY-")
        changes[key if equals else text.removesuffix("-")] = value if equals else None
    session.call("PATCH", f"/hosts/{name}", body={"labels": changes})
    click.echo(f"host/{name} labeled")


@click.command()
@click.argument("name")
@click.argument("taints", nargs=-1, metavar="[KEY=VALUE:EFFECT...]")
@with_session
def taint(session: Session, name: str, taints: tuple[str, ...]) -> None:
    """Set the taints of this host's nodes; none named: none. Those that others put on a node stay."""
    session.call("PATCH", f"/hosts/{name}", body={"taints": taints})
    click.echo(f"host/{name} tainted")


def _cordon(session: Session, names: tuple[str, ...], *, cordoned: bool) -> None:
    for name in names:
        session.call("PATCH", f"/hosts/{name}", body={"cordoned": True} if cordoned else {"cordoned": False, "drained": False})
        click.echo(f"host/{name} {'cordoned' if cordoned else 'uncordoned'}")


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@with_session
def cordon(session: Session, names: tuple[str, ...]) -> None:
    """Hold hosts back: no cluster claims them. One that holds one already keeps it."""
    _cordon(session, names, cordoned=True)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@with_session
def uncordon(session: Session, names: tuple[str, ...]) -> None:
    """Let clusters claim hosts again, and let pods come to their nodes if they were drained."""
    _cordon(session, names, cordoned=False)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--timeout", type=Duration(), default=900.0, show_default=True, help="For each host.")
@with_session
def drain(session: Session, names: tuple[str, ...], timeout: float) -> None:
    """Evict the pods of hosts' nodes, one host after the other, for maintenance. They stay in their cluster; `ckp host uncordon` ends it."""
    for name in names:
        session.call("PATCH", f"/hosts/{name}", body={"drained": True})
        row: dict[str, Any] = {}

        def drained(name: str = name, row: dict[str, Any] = row) -> bool:
            row.update(session.get(f"/hosts/{name}"))
            return any(item["type"] == "Drained" and item["status"] == "True" for item in row["conditions"])

        def seen(row: dict[str, Any] = row) -> str:
            return next((item.get("message", "") for item in row.get("conditions", []) if item["type"] == "Drained"), "nothing was done yet")

        wait_until(drained, what=f"host {name} is drained", timeout=timeout, every=1.0, reason=seen)
        click.echo(f"host/{name} drained")


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@with_session
def revoke(session: Session, names: tuple[str, ...]) -> None:
    """Void hosts' certificates at once. Their machines come back by enrolling anew (`ckp-agent enrol --again`) and an approval with --replace."""
    for name in names:
        session.call("POST", f"/hosts/{name}/revoke")
        click.echo(f"host/{name} revoked")


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--shrink", is_flag=True, help="Make the cluster smaller, instead of letting it take another host.")
@click.option("--force", is_flag=True, help="Do not wait for the drain and the clean-up: for a host that can't be reached.")
@with_session
def remove(session: Session, names: tuple[str, ...], shrink: bool, force: bool) -> None:
    """Take hosts out of their cluster: drained, cleaned, and cordoned. They stay hosts; `ckp host delete` forgets them."""
    for name in names:
        session.call("POST", f"/hosts/{name}/leave", body={"shrink": shrink, "force": force})
        click.echo(f"host/{name} leaves its cluster")
        say(f"It stays cordoned: ckp host uncordon {name} lets clusters claim it again.")


@click.command("upgrade-agent")
@click.argument("names", nargs=-1, metavar="[NAME...]")
@click.option("--version", default="", help="The version of ckp-agent; the newest that the registry holds if not said.")
@click.option("--group", "-g", default="", help="All hosts of this group.")
@click.option("--all", "everyone", is_flag=True, help="All hosts of the project.")
@click.option("--at-once", type=click.IntRange(1), default=1, show_default=True, help="How many hosts may change at the same time.")
@click.option("--confirm", type=Duration(), default=180.0, show_default=True, help="What does not report within this time is taken back by the host.")
@click.option("--timeout", type=Duration(), default=900.0, show_default=True, help="For each stage.")
@with_session
def upgrade_agent(session: Session, names: tuple[str, ...], version: str, group: str, everyone: bool, at_once: int, confirm: float, timeout: float) -> None:
    """Give hosts another version of the agent: some at once, the next when those report, and stop at the first that returns to its old one.

    A host whose new agent does not report brings the old one back by itself. Run again, it goes on with the hosts that are left.
    """
    if sum((bool(names), bool(group), everyone)) != 1:
        raise click.UsageError("name hosts, or say --group or --all")
    version = version or next(reversed(session.get("/api/v1/agents")["versions"]), "")
    if not version:
        raise NotFound("the registry holds no agent", resolution="publish one: ckp dist publish")
    hosts = [row["name"] for row in session.get("/hosts", **({"group": group} if group else {}))["items"]] if not names else list(names)
    todo = [name for name in hosts if session.get(f"/hosts/{name}")["agentVersion"] != version]
    say(f"{len(hosts) - len(todo)} of {len(hosts)} hosts run {version} already")
    for first in range(0, len(todo), at_once):
        stage = todo[first : first + at_once]
        for name in stage:
            session.call("PUT", f"/hosts/{name}/agent", body={"version": version, "confirmSeconds": int(confirm)})
        for name in stage:
            _wait_for_agent(session, name, version, timeout)
            click.echo(f"host/{name} runs ckp-agent {version}")


def _wait_for_agent(session: Session, name: str, version: str, timeout: float) -> None:
    """Until the host reports with this version. CkpError if it went back, TimedOut if it does neither."""
    row: dict[str, Any] = {}

    def there() -> bool:
        row.update(session.get(f"/hosts/{name}"))
        if row["reason"] in GIVEN_UP:
            # Taken back, so that the others of a group are not asked to follow by a controller that starts anew.
            session.call("PUT", f"/hosts/{name}/agent", body={"version": ""})
            raise CkpError(
                f"host {name} stays with {row['agentVersion']}: {row['message']}", resolution=f"ckp host describe {name}; the hosts before it are done"
            )
        return bool(row["connected"]) and row["agentVersion"] == version

    def seen() -> str:
        return f"it runs {row.get('agentVersion', '')}: {row.get('reason', '')} {row.get('message', '')}".strip()

    wait_until(there, what=f"host {name} reports with ckp-agent {version}", timeout=timeout, every=1.0, reason=seen)


@click.group()
def rule() -> None:
    """Rules that approve machines without a person's decision."""


COLUMNS = (
    Column("NAME", lambda row: row["name"]),
    Column("ASKS FOR", lambda row: asks_for(row["criteria"])),
    Column("GROUPS", lambda row: row["groups"]),
    Column("APPROVED", lambda row: str(row["approved"])),
    Column("AGE", lambda row: age(row["createdAt"])),
    Column("BY", lambda row: row["createdBy"], wide=True),
)


def asks_for(criteria: dict[str, Any]) -> str:
    """A rule's criteria in a line."""
    parts = [f"{name} {' or '.join(criteria[key])}" for name, key in (("name", "hostnames"), ("from", "networks"), ("system", "systems")) if criteria[key]]
    parts += [f"{criteria['minCpus']} CPUs"] if criteria["minCpus"] else []
    parts += [f"{gibibytes(criteria['minMemoryBytes'])} memory"] if criteria["minMemoryBytes"] else []
    return ", ".join(parts)


@rule.command("list")
@output_option
@with_session
def list_rules(session: Session, output: str) -> None:
    """List rules, in the order in which they are asked."""
    show_list(session.get("/host-approval-rules")["items"], COLUMNS, output, none=f"No approval rules found in {session.where}.")


@rule.command()
@click.argument("name")
@click.option("--hostname", "hostnames", multiple=True, metavar="PATTERN", help="The machine's name, with * and ?; any of several.")
@click.option("--network", "networks", multiple=True, metavar="CIDR", help="The network that it asks from, as the hub sees it; any of several.")
@click.option("--system", "systems", multiple=True, metavar="OS-VERSION", help="Its system, such as debian-12; any of several.")
@click.option("--min-cpus", type=click.IntRange(0), default=0)
@click.option("--min-memory-gib", type=click.FloatRange(0), default=0.0)
@click.option("--group", "groups", multiple=True, metavar="GROUP", help="Host groups that it is put into.")
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
    """Make a rule: a machine with the project's key for which all of this holds becomes a host by itself."""
    criteria = {"hostnames": hostnames, "networks": networks, "systems": systems, "minCpus": min_cpus, "minMemoryBytes": int(min_memory_gib * (1 << 30))}
    session.call("POST", "/host-approval-rules", body={"name": name, "criteria": criteria, "groups": groups})
    click.echo(f"rule/{name} created")


@rule.command()
@click.argument("name")
@with_session
def delete(session: Session, name: str) -> None:
    """Forget a rule; hosts that it has let in stay."""
    session.call("DELETE", f"/host-approval-rules/{name}")
    click.echo(f"rule/{name} deleted")


COMMANDS = (label, taint, cordon, uncordon, drain, revoke, remove, upgrade_agent, rule)
