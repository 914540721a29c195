"""`ckp cluster upgrade`: a cluster goes to another version of Kubernetes, in place."""

from __future__ import annotations

from typing import NoReturn

import click

from ckp.api.compass.upgrades import FindingView, UpgradedView, UpgradeRequest, UpgradeView
from ckp.cli.session import with_session
from ckp.cli.view.output import Column, Duration, describe, output_option, section, show_data, table
from ckp.cli.view.waits import wait_for
from ckp.clients.compass import Session, read
from ckp.kits.clock import human_duration
from ckp.kits.errors import CkpError, InvalidInput


def _took(row: UpgradedView) -> str:
    return human_duration((row.finished_at - row.started_at).total_seconds()) if row.started_at and row.finished_at else ""


FINDINGS: tuple[Column[FindingView], ...] = (
    Column("FINDING", lambda row: row.name),
    Column("WHERE", lambda row: row.where),
    Column("ACCEPTED", lambda row: "yes" if row.accepted else "possible" if row.acceptable else "never"),
    Column("MESSAGE", lambda row: f"{row.message}; {row.remedy}"),
)
NODES: tuple[Column[UpgradedView], ...] = (
    Column("NODE", lambda row: row.name),
    Column("POOL", lambda row: row.pool),
    Column("FROM", lambda row: row.before),
    Column("TO", lambda row: row.version),
    Column("STATE", lambda row: row.state),
    Column("TOOK", _took),
    Column("MESSAGE", lambda row: row.message),
)


def _way(row: UpgradeView) -> str:
    way = ", ".join(row.path)
    if not (row.soak and way):
        return way
    until = f"for {human_duration(row.commit_after)}, or until --commit" if row.commit_after else "until --commit"
    return f"{way} (each soaks {until})"


@click.command()
@click.argument("name")
@click.option("--to", "version", metavar="VERSION", help="The release to go to, such as v1.35.1. Without it, the last upgrade is shown.")
@click.option("--plan", is_flag=True, help="Only check, and show the way and the nodes; nothing is changed.")
@click.option("--accept", multiple=True, metavar="FINDING", help="A finding that does not hold it up; repeatable.")
@click.option("--pool", "pools", multiple=True, metavar="POOL", help="Only nodes of this pool; repeatable, in this order.")
@click.option("--node", "nodes", multiple=True, metavar="NODE", help="Only this node; repeatable, in this order.")
@click.option("--at-once", type=click.IntRange(1), default=1, show_default=True, help="How many nodes at the same time.")
@click.option("--after-first", type=click.IntRange(0), default=0, help="Stop once so many nodes are done, until --resume.")
@click.option("--host-timeout", type=Duration(), help="How long a host that is offline is waited for; 1h if it is not given.")
@click.option("--soak", is_flag=True, help="Let the new control plane run as the minor before, at each minor, until --commit or --rollback.")
@click.option("--commit-after", type=Duration(), help="Commit what has soaked so long without an error by itself, such as 24h.")
@click.option("--commit", "verb", flag_value="commit", help="End the soak: the control plane behaves as the new minor, and does not go back.")
@click.option("--rollback", "verb", flag_value="rollback", help="Undo what is not committed, and end; nothing that was written is lost.")
@click.option("--pause", "verb", flag_value="pause", help="Begin nothing further; what has begun is finished.")
@click.option("--resume", "verb", flag_value="resume", help="Go on after a pause, or after the first nodes.")
@click.option("--abort", "verb", flag_value="abort", help="End it; what is upgraded stays so.")
@click.option("--wait/--no-wait", default=True, help="Follow it to its end.")
@click.option("--timeout", type=Duration(), default="6h", show_default=True, help="How long to follow it.")
@output_option
@with_session
def upgrade(
    session: Session,
    name: str,
    version: str | None,
    plan: bool,
    accept: tuple[str, ...],
    pools: tuple[str, ...],
    nodes: tuple[str, ...],
    at_once: int,
    after_first: int,
    host_timeout: float | None,
    soak: bool,
    commit_after: float | None,
    verb: str | None,
    wait: bool,
    timeout: float,
    output: str,
) -> None:
    """Upgrade a cluster in place, or show, pause, resume, commit, roll back or abort its upgrade.

    The control plane goes first, one minor at a time; then nodes, each drained once. No host is replaced. It stops at the first failure; the same command
    then goes on with what is left. Kubernetes does not go back, but for a step of the control plane that soaks (--soak): a backup is made before, where the
    cluster has a place for backups.
    """
    path = f"/clusters/{name}/upgrade"
    if verb and version:
        raise InvalidInput(f"--{verb} and --to exclude each other")
    if plan and not version:
        raise InvalidInput("--plan needs --to VERSION")
    if verb:
        told = read(UpgradeView, session.call("POST", f"{path}/{verb}"))
        click.echo(f"cluster/{name} upgrade: {verb} requested")
        if verb == "commit":
            click.echo(f"The programs of before do not come back after it. Of the data: {told.way_back}")
        return
    if not version:
        _show(session.get(path), output)
        return
    given = {"dry_run": plan, "accept": [*accept], "pools": [*pools], "nodes": [*nodes], "at_once": at_once, "after_first": after_first}
    given |= {"host_timeout": int(host_timeout or 0), "soak": soak, "commit_after": int(commit_after or 0)}
    made = read(UpgradeView, session.call("POST", path, body=UpgradeRequest.of(version=version, **{key: value for key, value in given.items() if value})))
    if not plan:
        click.echo(f"cluster/{name} upgrade to {version} requested", err=output != "table")
    if not wait and not plan:
        return
    _follow(session, name, made, min(timeout, 120.0) if plan else timeout)
    answer = session.get(path, id=made.id)
    _show(answer, output)
    found = read(UpgradeView, answer)
    if plan and any(not finding.accepted for finding in found.findings):
        raise CkpError(
            f"cluster {name} can't be upgraded to {version} as it is", resolution="see the findings; --accept FINDING passes those that may be accepted"
        )


def _follow(session: Session, name: str, made: UpgradeView, timeout: float) -> None:
    def seen(row: UpgradeView) -> str:
        if row.phase in ("Failed", "Aborted", "RolledBack"):
            _failed(name, row)
        done = sum(node.state == "Done" for node in row.nodes)
        return f"{row.phase} ({done} of {len(row.nodes)} nodes): {row.message}"

    wait_for(
        session,
        UpgradeView,
        f"/clusters/{name}/upgrade",
        params={"id": made.id},
        timeout=timeout,
        command="cluster upgrade",
        title="checked" if made.dry_run else "upgraded",
        what=f"the upgrade of cluster {name} to {made.version} is {'planned' if made.dry_run else 'done'}",
        there=lambda row: row.over,
        seen=seen,
        resolution=f"it goes on; see: ckp cluster upgrade {name}",
    )


def _failed(name: str, row: UpgradeView) -> NoReturn:
    raise CkpError(f"the upgrade of cluster {name} to {row.version} ended ({row.phase}): {row.message}", resolution=f"see: ckp cluster upgrade {name}")


def _show(answer: object, output: str) -> None:
    if output in ("json", "yaml"):
        show_data(answer, output)
        return
    row = read(UpgradeView, answer)
    plane = f"{row.control_plane.version} {row.control_plane.state} {row.control_plane.message}".strip()
    told = [("Upgrade", row.id), ("From", row.before), ("To", row.version), ("Way", _way(row)), ("Phase", row.phase)]
    told += [("Message", row.message), ("Control plane", plane), ("Way back", row.way_back)]
    click.echo(describe([(key, value) for key, value in told if value]), nl=False)
    if row.findings:
        click.echo(section("Findings", table(FINDINGS, row.findings)))
    if row.nodes:
        click.echo(section("Nodes", table(NODES, row.nodes)))
