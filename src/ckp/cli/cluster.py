"""`ckp cluster`: creating clusters, watching them come up, using, scaling and deleting them."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from ckp.api.compass.clusters import ClusterChange, ClusterRequest, ClusterView, MachineView, ReplacementView, StepView, Timeouts
from ckp.api.compass.conditions import ConditionView
from ckp.api.compass.hosts import HostView
from ckp.cli.cluster_backup import backup, backup_options, backups, restore
from ckp.cli.cluster_upgrade import upgrade
from ckp.cli.hosts.host import CONDITION_COLUMNS
from ckp.cli.session import say, with_session
from ckp.cli.view.cluster import ClusterProgress, seconds_of
from ckp.cli.view.output import Column, Duration, age, describe, output_option, section, show_data, show_list, show_one, table
from ckp.cli.view.progress import planned, waiting
from ckp.cli.view.waits import POLL_SECONDS, wait_for
from ckp.clients.compass import Session, Unreachable, read
from ckp.kits.clock import exact_duration, human_duration, rfc3339
from ckp.kits.errors import CkpError, NotFound, TimedOut
from ckp.kits.files import atomic_write
from ckp.kits.steps import Steps

DEFAULT_TIMEOUT = 1200.0
SHOWN_REPLACEMENTS = 10
Command = Callable[..., Any]


def took(step: dict[str, Any]) -> str:
    """How long a step took; empty while it is not over."""
    seconds = seconds_of(step)
    return "" if seconds is None else human_duration(seconds)


@click.group()
def cluster() -> None:
    """Kubernetes clusters."""


COLUMNS: tuple[Column[ClusterView], ...] = (
    Column("NAME", lambda row: row.name),
    Column("STATUS", lambda row: row.phase),
    Column("VERSION", lambda row: row.version),
    Column("CONTROL-PLANE", lambda row: "Ready" if row.control_plane_ready else "NotReady"),
    Column("WORKERS", lambda row: f"{row.workers_ready if not row.workers_unknown else '?'}/{row.workers}"),
    Column("AGE", lambda row: age(row.created_at)),
    Column("ENDPOINT", lambda row: row.endpoint, wide=True),
    Column("CNI", lambda row: f"{row.cni} {row.cni_version}".strip(), wide=True),
    Column("GROUP", lambda row: row.host_group, wide=True),
    Column("PODS", lambda row: row.pod_cidr, wide=True),
    Column("SERVICES", lambda row: row.service_cidr, wide=True),
    Column("MESSAGE", lambda row: row.message, wide=True),
)


def timeout_options(*, defaults: bool) -> Callable[[Command], Command]:
    """An option `--<name>-timeout` for each of a cluster's timeouts. They come as `timeouts`: those that were given, by name, in seconds."""

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def called(*arguments: Any, **options: Any) -> Any:
            given = {name: options.pop(f"{name}_timeout") for name in Timeouts.model_fields}
            return command(*arguments, timeouts={name: int(seconds) for name, seconds in given.items() if seconds is not None}, **options)

        decorated: Command = called
        for name, field in reversed(Timeouts.model_fields.items()):
            shown = f" [default: {exact_duration(field.default)}]" if defaults else ""
            option = f"--{name.replace('_', '-')}-timeout"
            decorated = click.option(option, type=Duration(), default=None, metavar="DURATION", help=f"{field.description}{shown}")(decorated)
        return decorated

    return decorate


@cluster.command()
@click.argument("name")
@click.option("--version", required=True, metavar="RELEASE", help="Release, such as v1.35.1 (ckp release list).")
@click.option("--cni", default="cilium", show_default=True, help="Network plugin, or none.")
@click.option("--host-group", required=True, metavar="GROUP", help="Group that its workers come from.")
@click.option("--workers", type=int, default=1, show_default=True, help="How many workers.")
@click.option("--pod-cidr", default="10.42.0.0/16", show_default=True, help="Network of its pods.")
@click.option("--service-cidr", default="10.43.0.0/16", show_default=True, help="Network of its services.")
@click.option("--control-plane-replicas", type=int, default=1, show_default=True, help="API servers; only 1 is supported so far.")
@click.option("--address", default="", help="Address of its API, instead of one from the pool.")
@click.option("--cert-san", "cert_sans", multiple=True, metavar="NAME", help="A further DNS name or IPv4 address in its API's certificate; may be repeated.")
@timeout_options(defaults=True)
@click.option("--wait", is_flag=True, help="Wait until it is ready, and show its steps.")
@click.option("--timeout", type=Duration(), default="20m", show_default=True, help="How long to wait.")
@output_option
@with_session
def create(
    session: Session,
    name: str,
    version: str,
    cni: str,
    host_group: str,
    workers: int,
    pod_cidr: str,
    service_cidr: str,
    control_plane_replicas: int,
    address: str,
    cert_sans: tuple[str, ...],
    timeouts: dict[str, int],
    wait: bool,
    timeout: float,
    output: str,
) -> None:
    """Create a cluster."""
    request = ClusterRequest.of(
        name=name,
        version=version,
        cni=cni,
        host_group=host_group,
        workers=workers,
        pod_cidr=pod_cidr,
        service_cidr=service_cidr,
        control_plane={"replicas": control_plane_replicas},
        address=address,
        **({"cert_sans": cert_sans} if cert_sans else {}),
        **({"timeouts": timeouts} if timeouts else {}),
    )
    row = session.call("POST", "/clusters", body=request)
    (say if output in ("json", "yaml") else click.echo)(f"cluster/{name} created")
    if wait:
        row = wait_until_ready(session, name, timeout)
    if output in ("json", "yaml"):
        show_data(row, output)
    elif output == "wide":
        show_one(row, ClusterView, COLUMNS, output)


@cluster.command("list")
@output_option
@with_session
def list_clusters(session: Session, output: str) -> None:
    """List clusters."""
    show_list(session.get("/clusters"), ClusterView, COLUMNS, output, none=f"No clusters found in {session.where}.")


@cluster.command("describe")
@click.argument("name")
@output_option
@with_session
def describe_cluster(session: Session, name: str, output: str) -> None:
    """Show a cluster with its steps, machines and conditions."""
    answer = session.get(f"/clusters/{name}")
    if output in ("json", "yaml"):
        show_data(answer, output)
        return
    row = read(ClusterView, answer)
    text = describe(
        [
            ("Name", row.name),
            ("Status", row.phase),
            ("Message", row.message),
            ("Version", row.version),
            ("Endpoint", row.endpoint),
            ("Cert SANs", ", ".join(row.cert_sans)),
            ("Control plane", f"{'Ready' if row.control_plane_ready else 'NotReady'}, {row.control_plane_replicas} requested"),
            ("Workers", f"{_workers(row)}, from {row.host_group or 'no group'}"),
            ("CNI", f"{row.cni} {row.cni_version}".strip()),
            ("Pod CIDR", row.pod_cidr),
            ("Service CIDR", row.service_cidr),
            ("Requested", f"{rfc3339(row.requested_at)} ({age(row.requested_at)} ago)"),
        ]
    )
    timeouts: list[tuple[str, object]] = [(name.replace("_", " ").capitalize(), value) for name, value in row.timeouts]
    text += section("Timeouts", describe(timeouts)) if any(value for _, value in timeouts) else ""
    text += section("Steps", table(_STEP_COLUMNS, row.steps) if row.steps else "")
    text += section("Machines", table(_MACHINE_COLUMNS, row.machines) if row.machines else "")
    text += section("Replaced workers", table(_REPLACEMENT_COLUMNS, row.replacements[-SHOWN_REPLACEMENTS:]) if row.replacements else "")
    conditions: tuple[Column[ConditionView], ...] = (Column("OBJECT", lambda entry: entry.object), *CONDITION_COLUMNS)
    text += section("Conditions", table(conditions, row.conditions) if row.conditions else "")
    click.echo(text)


def _workers(row: ClusterView) -> str:
    return f"{row.workers_ready} ready of {row.workers}" if not row.workers_unknown else f"{row.workers} requested, {row.workers_unknown} can't be seen now"


_STEP_COLUMNS: tuple[Column[StepView], ...] = (
    Column("#", lambda step: step.number),
    Column("PHASE", lambda step: step.phase),
    Column("STEP", lambda step: step.title),
    Column("STATE", lambda step: step.state),
    Column("TOOK", lambda step: "" if step.seconds is None else human_duration(step.seconds)),
    Column("MESSAGE", lambda step: step.message),
)
_REPLACEMENT_COLUMNS: tuple[Column[ReplacementView], ...] = (
    Column("WHEN", lambda made: rfc3339(made.at)),
    Column("HOST", lambda made: made.host),
    Column("MACHINE", lambda made: made.machine),
    Column("CAUSE", lambda made: made.cause),
    Column("NUMBER", lambda made: made.number),
    Column("REASON", lambda made: made.reason),
)
_MACHINE_COLUMNS: tuple[Column[MachineView], ...] = (
    Column("NAME", lambda machine: machine.name),
    Column("PHASE", lambda machine: machine.phase),
    Column("HOST", lambda machine: machine.host),
    Column("NODE", lambda machine: machine.node),
    Column("VERSION", lambda machine: machine.version),
    Column("READY", lambda machine: machine.ready_status or machine.ready),  # Compass of 0.2.0 knows only the latter
    Column("MESSAGE", lambda machine: machine.message),
)


@cluster.command()
@click.argument("name")
@click.option("-o", "--output", "file", type=click.Path(dir_okay=False, path_type=Path), help="Write it there (mode 0600) instead of printing it.")
@with_session
def kubeconfig(session: Session, name: str, file: Path | None) -> None:
    """Get the administrator's kubeconfig."""
    text = session.get(f"/clusters/{name}/kubeconfig")
    if file is None or str(file) == "-":
        click.echo(text, nl=not text.endswith("\n"))
        return
    try:
        atomic_write(file, text, mode=0o600)
    except OSError as error:
        raise CkpError(f"{file} cannot be written: {error.strerror}") from None
    say(f"wrote {file}; try: kubectl --kubeconfig {file} get nodes")


@cluster.command()
@click.argument("name")
@click.option("--workers", type=int, required=True, help="The new number of workers.")
@click.option("--wait", is_flag=True, help="Wait until all of them are ready, and those that leave are gone.")
@click.option("--timeout", type=Duration(), default="20m", show_default=True, help="How long to wait.")
@with_session
def scale(session: Session, name: str, workers: int, wait: bool, timeout: float) -> None:
    """Change the number of workers."""
    session.call("PATCH", f"/clusters/{name}", body=ClusterChange.of(workers=workers))
    click.echo(f"cluster/{name} scaled to {workers}")
    if wait:
        _wait_until_scaled(session, name, workers, timeout)
        click.echo(f"cluster/{name} has {workers} ready workers")


@cluster.command("set")
@click.argument("name")
@timeout_options(defaults=False)
@click.option("--cert-san", "cert_sans", multiple=True, metavar="NAME", help="A DNS name or IPv4 address in its API's certificate; repeat it for all of them.")
@click.option("--no-cert-sans", is_flag=True, help="No further name in its API's certificate.")
@backup_options
@with_session
def set_cluster(session: Session, name: str, timeouts: dict[str, int], cert_sans: tuple[str, ...], no_cert_sans: bool, backup_settings: dict[str, Any]) -> None:
    """Change settings of a cluster.

    Timeouts hold for its present workers too; none is replaced for it. Further names in its API's certificate (--cert-san) take the place of those before;
    the certificate is issued again, and its API goes on meanwhile.
    """
    if cert_sans and no_cert_sans:
        raise click.UsageError("--cert-san and --no-cert-sans exclude each other")
    changes: dict[str, Any] = {"timeouts": timeouts} if timeouts else {}
    changes |= {"cert_sans": cert_sans} if cert_sans or no_cert_sans else {}
    changes |= {"backup": backup_settings} if backup_settings else {}
    if not changes:
        raise click.UsageError("name what to change, such as --drain-timeout 30m or --cert-san api.demo.example")
    session.call("PATCH", f"/clusters/{name}", body=ClusterChange.of(**changes))
    if "cert_sans" in changes:
        click.echo(f"cluster/{name} cert-sans set to {', '.join(cert_sans) or 'none'}")
    if backup_settings:
        click.echo(f"cluster/{name} backups: {'off' if backup_settings.get('off') else 'set'}")
    for field, seconds in timeouts.items():
        click.echo(f"cluster/{name} {field.replace('_', '-')}-timeout set to {exact_duration(seconds)}")


for command in (backup, backups, restore, upgrade):
    cluster.add_command(command)


@cluster.command("resume-replacement")
@click.argument("name")
@with_session
def resume_replacement(session: Session, name: str) -> None:
    """Let unhealthy workers be replaced again.

    CKP stops replacing when workers fail alike again and again, and leaves the last one for a person. What failed before does not count afterwards.
    """
    session.call("POST", f"/clusters/{name}/resume-replacement")
    click.echo(f"cluster/{name} goes on with replacing unhealthy workers")


def _wait_until_scaled(session: Session, name: str, workers: int, timeout: float) -> None:
    """Return once the cluster is ready with exactly so many machines.

    Raises:
        TimedOut: it is not, within `timeout` seconds.
        CkpError: it failed for good, is being deleted, or was scaled to another number meanwhile.
    """

    def seen(row: ClusterView) -> str:
        if row.failed or row.phase == "Deleting" or row.workers != workers:
            why = row.message if row.failed else "it is being deleted" if row.phase == "Deleting" else f"it was scaled to {row.workers} meanwhile"
            raise CkpError(f"cluster {name} will not have {workers} ready workers: {why}", resolution=f"see: ckp cluster describe {name}")
        pending = [machine for machine in row.machines if not machine.ready]
        lines = [f"machine {machine.name} ({machine.host or 'no host yet'}): {machine.message or machine.phase}" for machine in pending]
        return "\n".join([f"{row.workers_ready} of {workers} workers are ready, {len(row.machines)} machines exist", *lines])

    wait_for(
        session,
        ClusterView,
        f"/clusters/{name}",
        timeout=timeout,
        command="cluster scale",
        title=f"{workers} workers ready",
        what=f"cluster {name} has {workers} ready workers",
        there=lambda row: row.ready and len(row.machines) == workers,
        seen=seen,
        resolution=f"it goes on being scaled; see: ckp cluster describe {name}",
    )


@cluster.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Do not drain, nor wait for volumes, nor for hosts that do not answer; also if it is being deleted already.")
@click.option("--wait", is_flag=True, help="Wait until nothing of it is left, and list what remains elsewhere.")
@click.option("--timeout", type=Duration(), default="20m", show_default=True, help="How long to wait.")
@with_session
def delete(session: Session, name: str, force: bool, wait: bool, timeout: float) -> None:
    """Delete a cluster. Its hosts are cleaned and become free again."""
    hosts = _hosts_of(session, name) if wait else set()
    session.call("DELETE", f"/clusters/{name}", params={"force": "true"} if force else None)
    click.echo(f"cluster/{name} deletion begun" if wait else f"cluster/{name} is being deleted")
    if wait:
        seconds, row = _wait_until_gone(session, name, timeout)
        click.echo(f"cluster/{name} deleted, {human_duration(seconds)}")
        for line in [*(str(item) for item in row.get("leftBehind") or ()), *_not_clean(session, hosts)]:
            click.echo(f"left behind: {line}")


def _hosts_of(session: Session, name: str) -> set[str]:
    """The hosts that a cluster holds; none if it is gone already."""
    try:
        return {machine["host"] for machine in session.get(f"/clusters/{name}").get("machines", []) if machine["host"]}
    except NotFound:
        return set()


def _not_clean(session: Session, names: set[str]) -> list[str]:
    """What hosts that were released still have of their cluster."""
    rows = [row for row in session.fetch_items(HostView, "/hosts") if row.name in names and row.phase not in ("", "Free")]
    when = {True: "it resets itself now", False: "its agent is not connected; it resets itself when it comes back"}
    return [f"host {row.name} was not cleaned: {when[row.connected]}" for row in rows]


def wait_until_ready(session: Session, name: str, timeout: float, steps: Steps | None = None, *, sleep: Callable[[float], None] = time.sleep) -> dict[str, Any]:
    """Show the steps as they complete, until the cluster is ready.

    Args:
        steps: the steps of the command, whose current one the cluster's belong to; None: there are no others.

    Raises:
        TimedOut: it was not, within `timeout` seconds; with the reason as far as it is known.
        CkpError: it failed for good, or was deleted meanwhile.
    """
    started = time.monotonic()
    with ExitStack() as stack:
        row = _poll_until_ready(session, name, timeout, ClusterProgress(steps or stack.enter_context(planned("cluster create", out=sys.stderr))), sleep)
    (steps.say if steps else say)(f"cluster/{name} is ready, {human_duration(time.monotonic() - started)}")
    return row


def _poll_until_ready(session: Session, name: str, timeout: float, shown: ClusterProgress, sleep: Callable[[float], None]) -> dict[str, Any]:
    started = time.monotonic()
    row: dict[str, Any] = {}
    trouble = ""
    while True:
        try:
            row, trouble = session.get(f"/clusters/{name}"), ""
        except Unreachable as error:  # Compass may be restarting; the cluster goes on without it
            trouble = error.brief
        if row:
            shown.update(row)
        elapsed = time.monotonic() - started
        if row.get("ready"):
            return row
        if row.get("failed"):
            raise CkpError(f"cluster {name} failed: {row['message']}", details=_findings(row), resolution=f"see: ckp cluster describe {name}")
        if row.get("phase") == "Deleting":
            raise CkpError(f"cluster {name} is being deleted, so it will not become ready")
        if elapsed >= timeout:
            reason = trouble or row.get("message") or "nothing is known of why"
            raise TimedOut(
                f"cluster {name} was not ready within {human_duration(timeout)}: {reason}",
                details=_findings(row),
                resolution=f"it goes on being built; see: ckp cluster describe {name}",
            )
        shown.heartbeat(trouble or str(row.get("message", "")))
        sleep(POLL_SECONDS)


def _wait_until_gone(session: Session, name: str, timeout: float) -> tuple[float, dict[str, Any]]:
    """Return once it is gone: after how many seconds, and how it was last seen.

    Raises:
        TimedOut: it is not, within `timeout` seconds; with what it waits for.
    """
    started = time.monotonic()
    row: dict[str, Any] = {}
    with waiting("cluster delete", "Cluster removed") as missing:
        while True:
            trouble = ""
            try:
                row = session.get(f"/clusters/{name}")
            except NotFound:
                return time.monotonic() - started, row
            except Unreachable as error:
                trouble = error.brief
            elapsed = time.monotonic() - started
            if elapsed >= timeout:
                reason = trouble or row.get("message") or "its control plane is still being removed"
                raise TimedOut(
                    f"cluster {name} was not gone within {human_duration(timeout)}: {reason}",
                    details=_findings(row),
                    resolution=f"it goes on being deleted; see: ckp cluster describe {name}; without waiting: ckp cluster delete {name} --force",
                )
            missing(trouble or str(row.get("message") or f"{len(row.get('machines', []))} machines left"))
            time.sleep(POLL_SECONDS)


def _findings(row: dict[str, Any]) -> str:
    """What could be the matter, line by line: unfinished steps with a message, machines that are not ready."""
    lines = [
        f"step {step.get('number')} {step.get('title')}: {step.get('state')}" + (f", {step['message']}" if step.get("message") else "")
        for step in row.get("steps", [])
        if step.get("state") in ("Running", "Failed")
    ]
    lines += [
        f"machine {machine['name']} ({machine['host'] or 'no host yet'}): {machine['message'] or machine['phase']}"
        for machine in row.get("machines", [])
        if not machine["ready"]
    ]
    return "\n".join(lines)
