"""`ckp host label|taint|cordon|uncordon|drain|revoke|remove|upgrade-agent`: what is done with hosts between enrolling and deleting them."""

from __future__ import annotations

from collections.abc import Callable

import click

from ckp.api.compass.clusters import ClusterView
from ckp.api.compass.hosts import AgentRequest, HostChange, HostView, LeaveRequest
from ckp.api.compass.releases import AgentVersions
from ckp.api.states import AGENT_STAYS
from ckp.cli.session import say, with_session
from ckp.cli.view.output import Duration
from ckp.cli.view.waits import wait_for
from ckp.clients.compass import Session
from ckp.kits.errors import CkpError, NotFound


@click.command()
@click.argument("name")
@click.argument("labels", nargs=-1, required=True, metavar="KEY=VALUE|KEY-...")
@with_session
def label(session: Session, name: str, labels: tuple[str, ...]) -> None:
    """Set labels of a host; `KEY-` removes one. Clusters can select hosts by them, and a node of the host carries them too."""
    changes: dict[str, str | None] = {}
    for text in labels:
        key, equals, value = text.partition("=")
        if not equals and not text.endswith("-"):
            raise click.UsageError(f"{text!r} is neither KEY=VALUE nor KEY-")
        changes[key if equals else text.removesuffix("-")] = value if equals else None
    session.call("PATCH", f"/hosts/{name}", body=HostChange.of(labels=changes))
    click.echo(f"host/{name} labeled")


@click.command()
@click.argument("name")
@click.argument("taints", nargs=-1, metavar="[KEY=VALUE:EFFECT...]")
@with_session
def taint(session: Session, name: str, taints: tuple[str, ...]) -> None:
    """Set the taints of this host's nodes; without any, all are removed. Taints that others put on a node stay."""
    session.call("PATCH", f"/hosts/{name}", body=HostChange.of(taints=taints))
    click.echo(f"host/{name} tainted")


def _cordon(session: Session, names: tuple[str, ...], *, cordoned: bool) -> None:
    for name in names:
        session.call("PATCH", f"/hosts/{name}", body=HostChange.of(cordoned=True) if cordoned else HostChange.of(cordoned=False, drained=False))
        click.echo(f"host/{name} {'cordoned' if cordoned else 'uncordoned'}")


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@with_session
def cordon(session: Session, names: tuple[str, ...]) -> None:
    """Keep clusters from claiming hosts. A cluster that has claimed one already keeps it."""
    _cordon(session, names, cordoned=True)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@with_session
def uncordon(session: Session, names: tuple[str, ...]) -> None:
    """Allow clusters to claim hosts again, and pods to run on their nodes if they were drained."""
    _cordon(session, names, cordoned=False)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait for each host before the next one is drained.")
@click.option("--timeout", type=Duration(), default="15m", show_default=True, help="How long to wait for each host.")
@with_session
def drain(session: Session, names: tuple[str, ...], wait: bool, timeout: float) -> None:
    """Evict the pods of hosts' nodes for maintenance, one host after the other.

    The hosts stay in their cluster; `ckp host uncordon` ends the maintenance.
    """
    for name in names:
        session.call("PATCH", f"/hosts/{name}", body=HostChange.of(drained=True))
        if wait:
            _wait_for_host(session, name, timeout, command="host drain", what=f"host {name} is drained", there=_is_drained, seen=_drain_message)
        click.echo(f"host/{name} {'drained' if wait else 'is being drained'}")


def _is_drained(row: HostView) -> bool:
    return any(condition.type == "Drained" and condition.status == "True" for condition in row.conditions)


def _drain_message(row: HostView) -> str:
    return next((condition.message for condition in row.conditions if condition.type == "Drained"), "nothing was done yet")


def _wait_for_host(
    session: Session, name: str, timeout: float, *, command: str, what: str, there: Callable[[HostView], bool], seen: Callable[[HostView], str]
) -> None:
    """Return once `there` is true of a host (`view.waits.wait_for`)."""
    title, resolution = what[:1].upper() + what[1:], f"see: ckp host describe {name}"
    wait_for(session, HostView, f"/hosts/{name}", timeout=timeout, command=command, title=title, what=what, there=there, seen=seen, resolution=resolution)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@with_session
def revoke(session: Session, names: tuple[str, ...]) -> None:
    """Revoke hosts' certificates at once.

    Their machines come back by enrolling again (`ckp-agent enrol --again`) and an approval with --replace.
    """
    for name in names:
        session.call("POST", f"/hosts/{name}/revoke")
        click.echo(f"host/{name} revoked")


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--shrink", is_flag=True, help="Make the cluster smaller by one, instead of replacing the host by another one.")
@click.option("--force", is_flag=True, help="Release it without drain and clean-up: for a host that cannot be reached.")
@click.option("--wait", is_flag=True, help="Wait until they have left and, without --force, are clean.")
@click.option("--timeout", type=Duration(), default="20m", show_default=True, help="How long to wait for each host.")
@with_session
def remove(session: Session, names: tuple[str, ...], shrink: bool, force: bool, wait: bool, timeout: float) -> None:
    """Take hosts out of their cluster, and keep them in CKP.

    They are drained, cleaned, and cordoned until `ckp host uncordon`. To remove hosts from CKP altogether, use `ckp host delete`.
    """
    for name in names:
        session.call("POST", f"/hosts/{name}/leave", body=LeaveRequest.of(shrink=shrink, force=force))
        click.echo(f"host/{name} leaves its cluster")
        say(f"It stays cordoned: ckp host uncordon {name} allows clusters to claim it again.")

    def has_left(row: HostView) -> bool:
        return not row.machine and (force or row.phase == "Free")

    def why_still_there(row: HostView) -> str:
        return _waits_for(session, row) or _why_still_there(row)

    for name in names if wait else ():
        _wait_for_host(session, name, timeout, command="host remove", what=f"host {name} has left its cluster", there=has_left, seen=why_still_there)
        click.echo(f"host/{name} has left its cluster")
        if force and session.fetch(HostView, f"/hosts/{name}").phase not in ("", "Free"):
            say(f"It was not cleaned: host {name} resets itself, at the latest when it comes back.")


def _waits_for(session: Session, row: HostView) -> str:
    """What its machine waits for, as its cluster tells it; "" if that is not known."""
    try:
        machines = session.fetch(ClusterView, f"/clusters/{row.cluster}").machines if row.cluster and row.machine else []
    except CkpError:
        return ""
    return next((f"machine {machine.name}: {machine.message}" for machine in machines if machine.host == row.name and machine.message), "")


def _why_still_there(row: HostView) -> str:
    holder = f"machine {row.machine} still holds it" if row.machine else f"it is {row.phase or 'not reported yet'}"
    return ", ".join(part for part in (holder, row.message, "" if row.connected else "its agent is not connected") if part)


@click.command("upgrade-agent")
@click.argument("names", nargs=-1, metavar="[NAME...]")
@click.option("--version", default="", help="The version of ckp-agent; default: the newest in the registry.")
@click.option("--group", "-g", default="", help="All hosts of this group.")
@click.option("--all", "everyone", is_flag=True, help="All hosts of the project.")
@click.option("--at-once", type=click.IntRange(1), default=1, show_default=True, help="How many hosts are upgraded at the same time.")
@click.option(
    "--confirm", type=Duration(), default=180.0, show_default=True, help="A host whose new agent does not report in this time returns to the old one."
)
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait for each stage; --no-wait is for one stage only.")
@click.option("--timeout", type=Duration(), default="15m", show_default=True, help="How long to wait for each host of a stage.")
@with_session
def upgrade_agent(
    session: Session, names: tuple[str, ...], version: str, group: str, everyone: bool, at_once: int, confirm: float, wait: bool, timeout: float
) -> None:
    """Upgrade the agent of hosts, in stages.

    The next stage begins when all hosts of the one before report with the new version. The first host that returns to its old version stops the rollout.
    A host returns by itself if its new agent does not report. The same command again continues with the hosts that are left.
    """
    if sum((bool(names), bool(group), everyone)) != 1:
        raise click.UsageError("name hosts, or use --group or --all")
    version = version or next(reversed(session.fetch(AgentVersions, "/api/v1/agents").versions), "")
    if not version:
        raise NotFound("the registry holds no agent", resolution="publish one: ckp dist publish")
    hosts = list(names) or [row.name for row in session.fetch_items(HostView, "/hosts", **({"group": group} if group else {}))]
    todo = [name for name in hosts if session.fetch(HostView, f"/hosts/{name}").agent_version != version]
    if not wait and len(todo) > at_once:
        raise click.UsageError(f"{len(todo)} hosts are to be upgraded, {at_once} at once: a rollout in stages waits for each stage (leave out --no-wait)")
    say(f"{len(hosts) - len(todo)} of {len(hosts)} hosts run {version} already")
    for first in range(0, len(todo), at_once):
        stage = todo[first : first + at_once]
        for name in stage:
            session.call("PUT", f"/hosts/{name}/agent", body=AgentRequest.of(version=version, confirm_seconds=int(confirm)))
        for name in stage:
            if wait:
                _wait_for_agent(session, name, version, timeout)
            click.echo(f"host/{name} {'runs' if wait else 'is being upgraded to'} ckp-agent {version}")


def _wait_for_agent(session: Session, name: str, version: str, timeout: float) -> None:
    """Return once the host reports with this version.

    Raises:
        CkpError: it returned to its old version.
        TimedOut: it did neither within `timeout` seconds.
    """

    def there(row: HostView) -> bool:
        if row.reason in AGENT_STAYS:
            # Withdrawn, so that a controller that restarts does not ask the other hosts of a group to follow.
            session.call("PUT", f"/hosts/{name}/agent", body=AgentRequest.of(version=""))
            raise CkpError(f"host {name} stays with {row.agent_version}: {row.message}", resolution=f"ckp host describe {name}; the hosts before it are done")
        return row.connected and row.agent_version == version

    def seen(row: HostView) -> str:
        return f"it runs {row.agent_version}: {row.reason} {row.message}".strip()

    _wait_for_host(session, name, timeout, command="host upgrade-agent", what=f"host {name} reports with ckp-agent {version}", there=there, seen=seen)


COMMANDS = (label, taint, cordon, uncordon, drain, revoke, remove, upgrade_agent)
