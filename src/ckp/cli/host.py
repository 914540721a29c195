"""`ckp host`: the project's key, machines that ask, and hosts."""

from __future__ import annotations

import click

from ckp.cli.host_care import COMMANDS
from ckp.cli.output import Column, Duration, age, cell, describe, gibibytes, output_option, section, show_data, show_list, table
from ckp.cli.session import say, with_session
from ckp.clients.compass import Session
from ckp.kits.errors import CkpError, InvalidInput, NotFound

SHORT_ID = 12


@click.group()
def host() -> None:
    """Machines: the key that lets them ask, their requests, and the hosts that they become."""


@host.command()
@click.option("--reset", is_flag=True, help="Make a new key; the old one is void at once.")
@click.option("--expires", type=Duration(), help="With --reset: the key lets nobody in after this time (12h, 30m).")
@click.option("--uses", type=click.IntRange(1), help="With --reset: so many machines may ask with it.")
@output_option
@with_session
def psk(session: Session, reset: bool, expires: float | None, uses: int | None, output: str) -> None:
    """Show the project's pre-shared key, once, when it is made.

    The key goes to standard output and nothing else does, so that it can be piped into a file.
    """
    if (expires or uses) and not reset:
        raise click.UsageError("--expires and --uses are for a new key: say --reset as well")
    limits = {"lifetimeSeconds": int(expires) if expires else None, "maxUses": uses}
    answer = session.call("POST", "/host-psk/reset", body=limits) if reset else session.get("/host-psk")
    if output in ("json", "yaml"):
        show_data(answer, output)
    elif answer.get("key"):
        say("This key is shown only now. Put it into /etc/ckp-agent/psk of each new host.")
        click.echo(answer["key"])
    else:
        raise CkpError(
            f"the key of {session.where} was shown when it was made, {age(answer['createdAt'])} ago; only its hash is kept",
            details=f"used {answer['useCount']} times" + (f", expires at {answer['expiresAt']}" if answer["expiresAt"] else ""),
            resolution="make a new one with `ckp host psk --reset`; hosts that are enrolled already are not touched",
        )


REQUEST_COLUMNS = (
    Column("ID", lambda row: row["id"][:SHORT_ID]),
    Column("HOSTNAME", lambda row: row["facts"].get("hostname")),
    Column("STATE", lambda row: row["state"].capitalize()),
    Column("OS", lambda row: f"{row['facts'].get('os_id', '')} {row['facts'].get('os_version', '')}"),
    Column("CPUS", lambda row: row["facts"].get("cpus")),
    Column("MEMORY", lambda row: gibibytes(row["facts"].get("memory_bytes"))),
    Column("ADDRESS", lambda row: row["facts"].get("default_address") or row["source"]),
    Column("LIKE", lambda row: f"{row['duplicateOf']} ({row['duplicateWhy']})" if row["duplicateOf"] else ""),
    Column("AGE", lambda row: age(row["createdAt"])),
    Column("HOST", lambda row: row["host"], wide=True),
    Column("MACHINE-ID", lambda row: row["machineId"], wide=True),
    Column("KEY", lambda row: row["keyDigest"][:16], wide=True),
    Column("SOURCE", lambda row: row["source"], wide=True),
    Column("REASON", lambda row: row["reason"], wide=True),
)


@host.command()
@click.option("--state", type=click.Choice(["pending", "approved", "rejected", "replaced"]), help="Only those in this state.")
@output_option
@with_session
def requests(session: Session, state: str | None, output: str) -> None:
    """List machines that ask, or asked, to become hosts."""
    items = session.get("/host-requests", **({"state": state} if state else {}))["items"]
    show_list(items, REQUEST_COLUMNS, output, none=f"No host requests found in {session.where}.")


@host.command()
@click.argument("ids", nargs=-1, metavar="[ID...]")
@click.option("--all", "everyone", is_flag=True, help="Approve all that are pending.")
@click.option("--replace", "duplicate", flag_value="replace", help="It is the host that it looks like, reinstalled: it takes that host's place.")
@click.option("--separate", "duplicate", flag_value="separate", help="It is another machine than the host that it looks like: its disk was cloned.")
@click.option("--group", "groups", multiple=True, metavar="GROUP", help="Host groups that the new host is put into.")
@with_session
def approve(session: Session, ids: tuple[str, ...], everyone: bool, duplicate: str | None, groups: tuple[str, ...]) -> None:
    """Let machines in. An ID may be shortened as long as it is unique."""
    if duplicate and len(ids) != 1:
        raise click.UsageError("--replace and --separate decide about one machine: name its request")
    if bool(ids) == everyone:
        raise click.UsageError("name the requests to approve, or say --all")
    if everyone:
        chosen = [row["id"] for row in session.get("/host-requests", state="pending")["items"]]
        if not chosen:
            say(f"No pending host requests in {session.where}.")
            return
    else:
        chosen = _full_ids(session, ids)
    if not duplicate and not groups:
        _decide(session, chosen, "approve", "")
        return
    for request_id in chosen:
        row = session.call("POST", f"/host-requests/{request_id}/approve", body={"duplicate": duplicate or "", "groups": groups})
        click.echo(f"hostrequest/{request_id[:SHORT_ID]} approved: host {row['host']}")


@host.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--reason", required=True, help="The machine's agent shows it.")
@with_session
def reject(session: Session, ids: tuple[str, ...], reason: str) -> None:
    """Turn machines away."""
    _decide(session, _full_ids(session, ids), "reject", reason)


def _full_ids(session: Session, given: tuple[str, ...]) -> list[str]:
    known = [row["id"] for row in session.get("/host-requests")["items"]]
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
    results = session.call("POST", "/host-requests/bulk", body={"ids": ids, "action": action, "reason": reason})["results"]
    failures = []
    for request_id, result in results.items():
        if error := result.get("error"):
            failures.append(f"{request_id[:SHORT_ID]}: {error['message']}" + (f" ({error['resolution']})" if error["resolution"] else ""))
        elif action == "approve":
            click.echo(f"hostrequest/{request_id[:SHORT_ID]} approved: host {result['host']}")
        else:
            click.echo(f"hostrequest/{request_id[:SHORT_ID]} rejected")
    if failures:
        raise CkpError(f"{len(failures)} of {len(results)} host requests could not be decided", details="\n".join(failures))


HOST_COLUMNS = (
    Column("NAME", lambda row: row["name"]),
    Column("STATUS", lambda row: row["state"] + (",Cordoned" if row["cordoned"] and row["state"] != "Cordoned" else "")),
    Column("GROUPS", lambda row: row["groups"]),
    Column("CLUSTER", lambda row: row["cluster"] or row["machine"]),
    Column("VERSION", lambda row: row["release"]),
    Column("ADDRESS", lambda row: row["address"]),
    Column("AGE", lambda row: age(row["createdAt"])),
    Column("MACHINE", lambda row: row["machine"], wide=True),
    Column("OS", lambda row: row["os"], wide=True),
    Column("KERNEL", lambda row: row["facts"].get("kernel"), wide=True),
    Column("CPUS", lambda row: row["facts"].get("cpus"), wide=True),
    Column("MEMORY", lambda row: gibibytes(row["facts"].get("memory_bytes")), wide=True),
    Column("AGENT", lambda row: row["agentVersion"], wide=True),
    Column("LAST-SEEN", lambda row: "now" if row["connected"] else age(row["lastSeen"]), wide=True),
    Column("MESSAGE", lambda row: row["message"], wide=True),
)


@host.command("list")
@click.option("--group", "-g", help="Only hosts of this group.")
@output_option
@with_session
def list_hosts(session: Session, group: str | None, output: str) -> None:
    """List hosts."""
    items = session.get("/hosts", **({"group": group} if group else {}))["items"]
    show_list(items, HOST_COLUMNS, output, none=f"No hosts found in {session.where}.")


@host.command("describe")
@click.argument("name")
@output_option
@with_session
def describe_host(session: Session, name: str, output: str) -> None:
    """Show a host: what it is, what it does, and what was done on it."""
    row = session.get(f"/hosts/{name}")
    events = session.get(f"/hosts/{name}/events")["items"]
    if output in ("json", "yaml"):
        show_data({**row, "events": events}, output)
        return
    facts = row["facts"]
    text = describe(
        [
            ("Name", row["name"]),
            ("Status", row["state"]),
            ("Connected", row["connected"]),
            ("Last seen", "now" if row["connected"] else f"{age(row['lastSeen'])} ago" if row["lastSeen"] else "never"),
            ("Groups", row["groups"]),
            ("Labels", [f"{key}={value}" for key, value in sorted(row["labels"].items())]),
            ("Taints", row["taints"]),
            ("Cluster", row["cluster"]),
            ("Machine", row["machine"]),
            ("Release", row["release"]),
            ("Phase", row["phase"]),
            ("Creation", row["creation"]),
            ("Reason", row["reason"]),
            ("Message", row["message"]),
            ("Address", row["address"]),
            ("Agent", row["agentVersion"] + (f" (wanted: {row['agentWanted']})" if row["agentWanted"] not in ("", row["agentVersion"]) else "")),
            ("OS", row["os"]),
            ("Kernel", facts.get("kernel")),
            ("CPUs", facts.get("cpus")),
            ("Memory", gibibytes(facts.get("memory_bytes"))),
            ("Disk free", gibibytes(facts.get("disk_free_bytes"))),
            ("Cgroup", facts.get("cgroup")),
            ("Swap", "on" if facts.get("swap") else "off"),
            ("Clock", clock(row["clockOffsetSeconds"])),
            ("Installed", facts.get("installed")),
            ("Machine ID", facts.get("machine_id")),
        ]
    )
    text += section("Preflight", table(FINDING_COLUMNS, facts["findings"]) if facts.get("findings") else "")
    text += section("Disks", table(DISK_COLUMNS, facts["disks"]) if facts.get("disks") else "")
    text += section("Links", table(LINK_COLUMNS, facts["links"]) if facts.get("links") else "")
    text += section("Conditions", table(CONDITION_COLUMNS, row["conditions"]) if row["conditions"] else "")
    text += section("Events", table(EVENT_COLUMNS, events) if events else "")
    text += section("Journal", table(_JOURNAL_COLUMNS, row["journal"]) if row["journal"] else "")
    click.echo(text)


def clock(offset: float | None) -> str:
    """How far a host's clock is from the hub's, in words."""
    if offset is None:
        return "not known"
    return "in time" if abs(offset) < 2 else f"{abs(offset):.0f} s {'ahead' if offset > 0 else 'behind'}"


FINDING_COLUMNS = (
    Column("FINDING", lambda row: row.get("problem")),
    Column("BLOCKS", lambda row: bool(row.get("blocking"))),
    Column("WHAT TO DO", lambda row: row.get("remediation") or row.get("mend")),  # `mend`: as 0.2.0 wrote it
)
DISK_COLUMNS = (
    Column("NAME", lambda row: row.get("name")),
    Column("SIZE", lambda row: gibibytes(row.get("size_bytes"))),
    Column("KIND", lambda row: "HDD" if row.get("rotational") else "SSD"),
)
LINK_COLUMNS = (
    Column("NAME", lambda row: row.get("name")),
    Column("UP", lambda row: bool(row.get("up"))),
    Column("MAC", lambda row: row.get("mac")),
    Column("MTU", lambda row: str(row.get("mtu"))),
    Column("MBIT/S", lambda row: str(row["speed_mbps"]) if row.get("speed_mbps") else ""),
)
CONDITION_COLUMNS = (
    Column("TYPE", lambda row: row.get("type")),
    Column("STATUS", lambda row: row.get("status")),
    Column("REASON", lambda row: row.get("reason")),
    Column("AGE", lambda row: age(row.get("lastTransitionTime"))),
    Column("MESSAGE", lambda row: row.get("message")),
)
EVENT_COLUMNS = (
    Column("AGE", lambda row: age(row.get("at"))),
    Column("TYPE", lambda row: row.get("type")),
    Column("REASON", lambda row: row.get("reason")),
    Column("MESSAGE", lambda row: cell(row.get("message"))[:160]),
)
_JOURNAL_COLUMNS = (
    Column("AT", lambda row: row.get("at")),
    Column("STEP", lambda row: row.get("step")),
    Column("OUTCOME", lambda row: row.get("outcome")),
    Column("SECONDS", lambda row: f"{float(row.get('seconds') or 0):.1f}"),
    Column("MESSAGE", lambda row: cell(row.get("message"))[:120]),
)


@host.command("delete")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--force", is_flag=True, help="Also if a cluster uses it: it is taken away without being cleaned.")
@with_session
def delete_hosts(session: Session, names: tuple[str, ...], force: bool) -> None:
    """Take hosts out of CKP. Their certificates are void from then on."""
    for name in names:
        session.call("DELETE", f"/hosts/{name}", params={"force": "true"} if force else {})
        click.echo(f"host/{name} deleted")


for _command in COMMANDS:
    host.add_command(_command)
