"""`ckp cluster`: asking for clusters, watching them come up, using and deleting them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from ckp.cli.cluster_progress import ClusterProgress, seconds_of
from ckp.cli.host import CONDITION_COLUMNS
from ckp.cli.output import Column, Duration, age, describe, output_option, section, show_data, show_list, show_one, table
from ckp.cli.progress import planned, waiting
from ckp.cli.session import say, with_session
from ckp.clients.compass import Session, Unreachable
from ckp.kits.clock import human_duration
from ckp.kits.errors import CkpError, NotFound, TimedOut
from ckp.kits.files import atomic_write
from ckp.kits.steps import Steps

POLL_SECONDS = 1.0
DEFAULT_TIMEOUT = 1200.0


def took(step: dict[str, Any]) -> str:
    """How long a step took; empty while it is not over."""
    seconds = seconds_of(step)
    return "" if seconds is None else human_duration(seconds)


@click.group()
def cluster() -> None:
    """Kubernetes clusters."""


COLUMNS = (
    Column("NAME", lambda row: row["name"]),
    Column("STATUS", lambda row: row["phase"]),
    Column("VERSION", lambda row: row["version"]),
    Column("CONTROL-PLANE", lambda row: "Ready" if row["controlPlaneReady"] else "NotReady"),
    Column("WORKERS", lambda row: f"{row['workersReady']}/{row['workers']}"),
    Column("AGE", lambda row: age(row["createdAt"])),
    Column("ENDPOINT", lambda row: row["endpoint"], wide=True),
    Column("CNI", lambda row: f"{row['cni']} {row['cniVersion']}".strip(), wide=True),
    Column("GROUP", lambda row: row["hostGroup"], wide=True),
    Column("PODS", lambda row: row["podCIDR"], wide=True),
    Column("SERVICES", lambda row: row["serviceCIDR"], wide=True),
    Column("MESSAGE", lambda row: row["message"], wide=True),
)


@cluster.command()
@click.argument("name")
@click.option("--version", required=True, metavar="RELEASE", help="Release, such as v1.35.1 (ckp release list).")
@click.option("--cni", default="cilium", show_default=True, help="Network plugin, or none.")
@click.option("--host-group", required=True, metavar="GROUP", help="Group that its workers come from.")
@click.option("--workers", type=int, default=1, show_default=True, help="How many.")
@click.option("--pod-cidr", default="10.42.0.0/16", show_default=True, help="Network of its pods.")
@click.option("--service-cidr", default="10.43.0.0/16", show_default=True, help="Network of its services.")
@click.option("--control-plane-replicas", type=int, default=1, show_default=True, help="1, 3 or 5.")
@click.option("--address", default="", help="Address of its API, instead of one from the pool.")
@click.option("--wait", is_flag=True, help="Show the steps until it is ready.")
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
    wait: bool,
    timeout: float,
    output: str,
) -> None:
    """Ask for a cluster."""
    body = {
        "name": name,
        "version": version,
        "cni": cni,
        "hostGroup": host_group,
        "workers": workers,
        "podCIDR": pod_cidr,
        "serviceCIDR": service_cidr,
        "controlPlane": {"replicas": control_plane_replicas},
        "address": address,
    }
    row = session.call("POST", "/clusters", body=body)
    (say if output in ("json", "yaml") else click.echo)(f"cluster/{name} created")
    if wait:
        row = wait_until_ready(session, name, timeout)
    if output in ("json", "yaml"):
        show_data(row, output)
    elif output == "wide":
        show_one(row, COLUMNS, output)


@cluster.command("list")
@output_option
@with_session
def list_clusters(session: Session, output: str) -> None:
    """List clusters."""
    show_list(session.get("/clusters")["items"], COLUMNS, output, none=f"No clusters found in {session.where}.")


@cluster.command("describe")
@click.argument("name")
@output_option
@with_session
def describe_cluster(session: Session, name: str, output: str) -> None:
    """Show a cluster with its steps, machines and conditions."""
    row = session.get(f"/clusters/{name}")
    if output in ("json", "yaml"):
        show_data(row, output)
        return
    text = describe(
        [
            ("Name", row["name"]),
            ("Status", row["phase"]),
            ("Message", row["message"]),
            ("Version", row["version"]),
            ("Endpoint", row["endpoint"]),
            ("Control plane", f"{'Ready' if row['controlPlaneReady'] else 'NotReady'}, {row['controlPlaneReplicas']} asked for"),
            ("Workers", f"{row['workersReady']} ready of {row['workers']}, from {row['hostGroup'] or 'no group'}"),
            ("CNI", f"{row['cni']} {row['cniVersion']}".strip()),
            ("Pod CIDR", row["podCIDR"]),
            ("Service CIDR", row["serviceCIDR"]),
            ("Requested", f"{row['requestedAt']} ({age(row['requestedAt'])} ago)"),
        ]
    )
    text += section("Steps", table(_STEP_COLUMNS, row["steps"]) if row["steps"] else "")
    text += section("Machines", table(_MACHINE_COLUMNS, row["machines"]) if row["machines"] else "")
    conditions = (Column("OBJECT", lambda entry: entry["object"]), *CONDITION_COLUMNS)
    text += section("Conditions", table(conditions, row["conditions"]) if row["conditions"] else "")
    click.echo(text)


_STEP_COLUMNS = (
    Column("#", lambda step: step.get("number")),
    Column("PHASE", lambda step: step.get("phase")),
    Column("STEP", lambda step: step.get("title")),
    Column("STATE", lambda step: step.get("state")),
    Column("TOOK", took),
    Column("MESSAGE", lambda step: step.get("message")),
)
_MACHINE_COLUMNS = (
    Column("NAME", lambda machine: machine["name"]),
    Column("PHASE", lambda machine: machine["phase"]),
    Column("HOST", lambda machine: machine["host"]),
    Column("NODE", lambda machine: machine["node"]),
    Column("VERSION", lambda machine: machine["version"]),
    Column("READY", lambda machine: machine["ready"]),
    Column("MESSAGE", lambda machine: machine["message"]),
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
@click.option("--workers", type=int, required=True, help="How many it shall have.")
@with_session
def scale(session: Session, name: str, workers: int) -> None:
    """Change the number of workers."""
    session.call("PATCH", f"/clusters/{name}", body={"workers": workers})
    click.echo(f"cluster/{name} scaled to {workers}")


@cluster.command()
@click.argument("name")
@click.option("--wait", is_flag=True, help="Until nothing of it is left.")
@click.option("--timeout", type=Duration(), default="20m", show_default=True, help="How long to wait.")
@with_session
def delete(session: Session, name: str, wait: bool, timeout: float) -> None:
    """Delete a cluster; its hosts are cleaned and become free again."""
    session.call("DELETE", f"/clusters/{name}")
    click.echo(f"cluster/{name} deletion begun" if wait else f"cluster/{name} is being deleted")
    if wait:
        seconds = _wait_until_gone(session, name, timeout)
        click.echo(f"cluster/{name} deleted, {human_duration(seconds)}")


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


def _wait_until_gone(session: Session, name: str, timeout: float) -> float:
    started = time.monotonic()
    row: dict[str, Any] = {}
    with waiting("cluster delete", "Cluster removed") as missing:
        while True:
            trouble = ""
            try:
                row = session.get(f"/clusters/{name}")
            except NotFound:
                return time.monotonic() - started
            except Unreachable as error:
                trouble = error.brief
            elapsed = time.monotonic() - started
            if elapsed >= timeout:
                left = ", ".join(machine["name"] for machine in row.get("machines", []))
                reason = trouble or (f"machines left: {left}" if left else row.get("message") or "its control plane is still being removed")
                raise TimedOut(
                    f"cluster {name} was not gone within {human_duration(timeout)}: {reason}",
                    details=_findings(row),
                    resolution=f"it goes on being deleted; see: ckp cluster describe {name}; a host that is away: ckp host delete HOST --force",
                )
            missing(trouble or f"{len(row.get('machines', []))} machines left")
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
