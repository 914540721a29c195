"""`ckp host`: the project's pre-shared key, host requests, and hosts."""

from __future__ import annotations

import click

from ckp.api.compass.base import Items
from ckp.api.compass.conditions import ConditionView
from ckp.api.compass.enrolment import ApproveRequest, BulkAnswer, BulkRequest, HostRequestView
from ckp.api.compass.hosts import EventView, HostView
from ckp.api.compass.projects import KeyView
from ckp.api.errors import ErrorBody
from ckp.api.host_protocol import DiskFacts, Finding, JournalEntry, LinkFacts
from ckp.cli.hosts.joining import join_command, key_limits
from ckp.cli.hosts.operations import COMMANDS
from ckp.cli.hosts.rules import rule
from ckp.cli.session import say, with_session
from ckp.cli.view.output import Column, Duration, age, cell, describe, gibibytes, output_option, section, show_data, show_list, table
from ckp.clients.compass import Session, read
from ckp.kits.clock import rfc3339
from ckp.kits.errors import CkpError, InvalidInput, NotFound

SHORT_ID = 12


@click.group()
def host() -> None:
    """Hosts: the pre-shared key to enrol them, their requests, and what is done with them."""


@host.command()
@click.option("--reset", is_flag=True, help="Make a new key; the old one is void at once.")
@click.option("--expires", type=Duration(), help="With --reset: no machine can enrol with the key after this time (12h, 30m).")
@click.option("--uses", type=click.IntRange(1), help="With --reset: how many machines may enrol with the key.")
@output_option
@with_session
def psk(session: Session, reset: bool, expires: float | None, uses: int | None, output: str) -> None:
    """Make the project's pre-shared key and show it, once.

    Only the key is printed to standard output, so that it can be piped into a file.
    """
    limits = key_limits("--reset", reset, expires, uses)
    answer = session.call("POST", "/host-psk/reset", body=limits) if reset else session.get("/host-psk")
    if output in ("json", "yaml"):
        show_data(answer, output)
        return
    key = read(KeyView, answer)
    if key.key:
        say("This key is shown only now. Put it into /etc/ckp-agent/psk of each new host.")
        click.echo(key.key)
    else:
        raise CkpError(
            f"the key of {session.where} was shown when it was made, {age(key.created_at)} ago; only its hash is kept",
            details=f"used {key.use_count} times" + (f", expires at {rfc3339(key.expires_at)}" if key.expires_at else ""),
            resolution="make a new one with `ckp host psk --reset`; enrolled hosts are not affected",
        )


REQUEST_COLUMNS: tuple[Column[HostRequestView], ...] = (
    Column("ID", lambda row: row.id[:SHORT_ID]),
    Column("HOSTNAME", lambda row: row.facts and row.facts.hostname),
    Column("STATE", lambda row: row.state.capitalize()),
    Column("OS", lambda row: row.facts and f"{row.facts.os_id} {row.facts.os_version}"),
    Column("CPUS", lambda row: row.facts and row.facts.cpus),
    Column("MEMORY", lambda row: gibibytes(row.facts and row.facts.memory_bytes)),
    Column("ADDRESS", lambda row: (row.facts and row.facts.default_address) or row.source),
    Column("LIKE", lambda row: f"{row.duplicate_of} ({row.duplicate_why})" if row.duplicate_of else ""),
    Column("AGE", lambda row: age(row.created_at)),
    Column("HOST", lambda row: row.host, wide=True),
    Column("MACHINE-ID", lambda row: row.machine_id, wide=True),
    Column("KEY", lambda row: row.key_digest[:16], wide=True),
    Column("SOURCE", lambda row: row.source, wide=True),
    Column("REASON", lambda row: row.reason, wide=True),
)


@host.command()
@click.option("--state", type=click.Choice(["pending", "approved", "rejected", "replaced"]), help="Only those in this state.")
@output_option
@with_session
def requests(session: Session, state: str | None, output: str) -> None:
    """List host requests: machines that ask, or asked, to become hosts."""
    answer = session.get("/host-requests", **({"state": state} if state else {}))
    show_list(answer, HostRequestView, REQUEST_COLUMNS, output, none=f"No host requests found in {session.where}.")


@host.command()
@click.argument("ids", nargs=-1, metavar="[ID...]")
@click.option("--all", "everyone", is_flag=True, help="Approve all pending requests.")
@click.option("--replace", "duplicate", flag_value="replace", help="The machine is the host that it looks like, reinstalled: it takes that host's place.")
@click.option("--separate", "duplicate", flag_value="separate", help="The machine is not the host that it looks like: its disk was cloned.")
@click.option("--group", "groups", multiple=True, metavar="GROUP", help="Host group that the new host is put into; repeat for more.")
@with_session
def approve(session: Session, ids: tuple[str, ...], everyone: bool, duplicate: str | None, groups: tuple[str, ...]) -> None:
    """Approve host requests: the machines become hosts. An ID may be shortened as long as it is unique."""
    if duplicate and len(ids) != 1:
        raise click.UsageError("--replace and --separate are for one machine: name its request")
    if bool(ids) == everyone:
        raise click.UsageError("name the requests to approve, or use --all")
    if everyone:
        chosen = [row.id for row in session.fetch_items(HostRequestView, "/host-requests", state="pending")]
        if not chosen:
            say(f"No pending host requests in {session.where}.")
            return
    else:
        chosen = _full_ids(session, ids)
    if not duplicate and not groups:
        _decide(session, chosen, "approve", "")
        return
    for request_id in chosen:
        request = ApproveRequest.of(duplicate=duplicate or "", groups=groups)
        row = read(HostRequestView, session.call("POST", f"/host-requests/{request_id}/approve", body=request))
        click.echo(f"hostrequest/{request_id[:SHORT_ID]} approved: host {row.host}")


@host.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--reason", required=True, help="The machine's agent shows it.")
@with_session
def reject(session: Session, ids: tuple[str, ...], reason: str) -> None:
    """Reject host requests. An ID may be shortened as long as it is unique."""
    _decide(session, _full_ids(session, ids), "reject", reason)


def _full_ids(session: Session, given: tuple[str, ...]) -> list[str]:
    known = [row.id for row in session.fetch_items(HostRequestView, "/host-requests")]
    found = []
    for short in given:
        matches = [full for full in known if full.startswith(short)]
        if not matches:
            raise NotFound(f"there is no host request {short} in {session.where}", resolution="list them: ckp host requests")
        if len(matches) > 1:
            raise InvalidInput(f"{short} is the beginning of {len(matches)} host requests", resolution="write more of the ID")
        found += matches
    return found


def _decide(session: Session, ids: list[str], action: str, reason: str) -> None:
    request = BulkRequest.of(ids=ids, action=action, reason=reason)
    results = read(BulkAnswer, session.call("POST", "/host-requests/bulk", body=request)).results
    failures = []
    for request_id, result in results.items():
        if isinstance(result, ErrorBody):
            error = result.error
            failures.append(f"{request_id[:SHORT_ID]}: {error.message}" + (f" ({error.resolution})" if error.resolution else ""))
        elif action == "approve":
            click.echo(f"hostrequest/{request_id[:SHORT_ID]} approved: host {result.host}")
        else:
            click.echo(f"hostrequest/{request_id[:SHORT_ID]} rejected")
    if failures:
        raise CkpError(f"{len(failures)} of {len(results)} host requests could not be decided", details="\n".join(failures))


HOST_COLUMNS: tuple[Column[HostView], ...] = (
    Column("NAME", lambda row: row.name),
    Column("STATUS", lambda row: row.state + (",Cordoned" if row.cordoned and row.state != "Cordoned" else "")),
    Column("GROUPS", lambda row: row.groups),
    Column("CLUSTER", lambda row: row.cluster or row.machine),
    Column("VERSION", lambda row: row.release),
    Column("ADDRESS", lambda row: row.address),
    Column("AGE", lambda row: age(row.created_at)),
    Column("MACHINE", lambda row: row.machine, wide=True),
    Column("OS", lambda row: row.os, wide=True),
    Column("KERNEL", lambda row: row.facts and row.facts.kernel, wide=True),
    Column("CPUS", lambda row: row.facts and row.facts.cpus, wide=True),
    Column("MEMORY", lambda row: gibibytes(row.facts and row.facts.memory_bytes), wide=True),
    Column("AGENT", lambda row: row.agent_version, wide=True),
    Column("LAST-SEEN", lambda row: "now" if row.connected else age(row.last_seen), wide=True),
    Column("MESSAGE", lambda row: row.message, wide=True),
)


@host.command("list")
@click.option("--group", "-g", help="Only hosts of this group.")
@output_option
@with_session
def list_hosts(session: Session, group: str | None, output: str) -> None:
    """List hosts."""
    answer = session.get("/hosts", **({"group": group} if group else {}))
    show_list(answer, HostView, HOST_COLUMNS, output, none=f"No hosts found in {session.where}.")


@host.command("describe")
@click.argument("name")
@output_option
@with_session
def describe_host(session: Session, name: str, output: str) -> None:
    """Show a host: its state, facts, preflight findings, events and journal."""
    answer, listed = session.get(f"/hosts/{name}"), session.get(f"/hosts/{name}/events")
    if output in ("json", "yaml"):
        show_data({**answer, "events": listed["items"]}, output)
        return
    row, events = read(HostView, answer), read(Items[EventView], listed).items
    facts = row.facts
    text = describe(
        [
            ("Name", row.name),
            ("Status", row.state),
            ("Connected", row.connected),
            ("Last seen", "now" if row.connected else f"{age(row.last_seen)} ago" if row.last_seen else "never"),
            ("Groups", row.groups),
            ("Labels", [f"{key}={value}" for key, value in sorted(row.labels.items())]),
            ("Taints", row.taints),
            ("Cluster", row.cluster),
            ("Machine", row.machine),
            ("Release", row.release),
            ("Phase", row.phase),
            ("Creation", row.creation),
            ("Reason", row.reason),
            ("Message", row.message),
            ("Address", row.address),
            ("Agent", row.agent_version + (f" (wanted: {row.agent_wanted})" if row.agent_wanted not in ("", row.agent_version) else "")),
            ("OS", row.os),
            ("Kernel", facts and facts.kernel),
            ("CPUs", facts and facts.cpus),
            ("Memory", gibibytes(facts and facts.memory_bytes)),
            ("Disk free", gibibytes(facts and facts.disk_free_bytes)),
            ("Cgroup", facts and facts.cgroup),
            ("Swap", facts and ("on" if facts.swap else "off")),
            ("Clock", clock(row.clock_offset_seconds)),
            ("Installed", facts and facts.installed),
            ("Machine ID", facts and facts.machine_id),
        ]
    )
    text += section("Preflight", table(FINDING_COLUMNS, facts.findings) if facts and facts.findings else "")
    text += section("Disks", table(DISK_COLUMNS, facts.disks) if facts and facts.disks else "")
    text += section("Links", table(LINK_COLUMNS, facts.links) if facts and facts.links else "")
    text += section("Conditions", table(CONDITION_COLUMNS, row.conditions) if row.conditions else "")
    text += section("Events", table(EVENT_COLUMNS, events) if events else "")
    text += section("Journal", table(_JOURNAL_COLUMNS, row.journal) if row.journal else "")
    click.echo(text)


def clock(offset: float | None) -> str:
    """How far a host's clock is from the hub's, for people."""
    if offset is None:
        return "not known"
    return "in time" if abs(offset) < 2 else f"{abs(offset):.0f} s {'ahead' if offset > 0 else 'behind'}"


FINDING_COLUMNS: tuple[Column[Finding], ...] = (
    Column("FINDING", lambda row: row.problem),
    Column("BLOCKS", lambda row: row.blocking),
    Column("WHAT TO DO", lambda row: row.remediation),
)
DISK_COLUMNS: tuple[Column[DiskFacts], ...] = (
    Column("NAME", lambda row: row.name),
    Column("SIZE", lambda row: gibibytes(row.size_bytes)),
    Column("KIND", lambda row: "HDD" if row.rotational else "SSD"),
)
LINK_COLUMNS: tuple[Column[LinkFacts], ...] = (
    Column("NAME", lambda row: row.name),
    Column("UP", lambda row: row.up),
    Column("MAC", lambda row: row.mac),
    Column("MTU", lambda row: str(row.mtu)),
    Column("MBIT/S", lambda row: str(row.speed_mbps or "")),
)
CONDITION_COLUMNS: tuple[Column[ConditionView], ...] = (
    Column("TYPE", lambda row: row.type),
    Column("STATUS", lambda row: row.status),
    Column("REASON", lambda row: row.reason),
    Column("AGE", lambda row: age(row.last_transition_time)),
    Column("MESSAGE", lambda row: row.message),
)
EVENT_COLUMNS: tuple[Column[EventView], ...] = (
    Column("AGE", lambda row: age(row.at)),
    Column("TYPE", lambda row: row.type),
    Column("REASON", lambda row: row.reason),
    Column("MESSAGE", lambda row: cell(row.message)[:160]),
)
_JOURNAL_COLUMNS: tuple[Column[JournalEntry], ...] = (
    Column("AT", lambda row: row.at),
    Column("STEP", lambda row: row.step),
    Column("OUTCOME", lambda row: row.outcome),
    Column("SECONDS", lambda row: f"{row.seconds:.1f}"),
    Column("MESSAGE", lambda row: cell(row.message)[:120]),
)


@host.command("delete")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--force", is_flag=True, help="Also if a cluster has claimed it: it is deleted without being drained or cleaned.")
@with_session
def delete_hosts(session: Session, names: tuple[str, ...], force: bool) -> None:
    """Remove hosts from CKP altogether.

    Their certificates are void at once, and the machines must enrol again to come back. A host that a cluster has claimed must leave it first:
    `ckp host remove`.
    """
    for name in names:
        session.call("DELETE", f"/hosts/{name}", params={"force": "true"} if force else {})
        click.echo(f"host/{name} deleted")


for _command in (*COMMANDS, join_command, rule):
    host.add_command(_command)
