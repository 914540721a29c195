"""`ckp cluster backup|backups|restore`: a cluster's data, kept and put back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from ckp.api.compass.clusters import BackupsView, BackupView, RestoreRequest
from ckp.cli.session import say, with_session
from ckp.cli.view.output import Column, Duration, age, describe, gibibytes, output_option, section, show_data, table
from ckp.cli.view.waits import wait_for
from ckp.clients.compass import Session, read
from ckp.kits.errors import CkpError

COLUMNS: tuple[Column[BackupView], ...] = (
    Column("BACKUP", lambda row: row.id),
    Column("RESULT", lambda row: row.result),
    Column("AGE", lambda row: age(row.made_at)),
    Column("SIZE", lambda row: gibibytes(row.size_bytes) if row.size_bytes else ""),
    Column("VERSION", lambda row: row.version),
    Column("REVISION", lambda row: row.revision or ""),
    Column("MESSAGE", lambda row: row.message),
)


def backup_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of when a cluster is backed up, and to where. They come as `backup_settings`: those that were given."""

    @functools.wraps(command)
    def called(*arguments: Any, **options: Any) -> Any:
        given = {name: options.pop(f"backup_{name}") for name in _SETTINGS}
        settings = {name: int(value) if name == "every" else value for name, value in given.items() if value is not None}
        if options.pop("no_backups"):
            settings["off"] = True
        return command(*arguments, backup_settings=settings, **options)

    decorated: Callable[..., Any] = click.option("--no-backups", is_flag=True, help="End backups; those that are there stay.")(called)
    for name, (kind, metavar, text) in reversed(_SETTINGS.items()):
        decorated = click.option(f"--backup-{name}", type=kind, default=None, metavar=metavar, help=text)(decorated)
    return decorated


_SETTINGS: dict[str, tuple[Any, str, str]] = {
    "every": (Duration(), "DURATION", "How often it is backed up, such as 6h."),
    "keep": (int, "NUMBER", "How many backups stay."),
    "endpoint": (str, "URL", "Backups go to the object store there."),
    "bucket": (str, "NAME", "The bucket for backups."),
    "prefix": (str, "TEXT", "What names of backups begin with in the bucket."),
    "region": (str, "NAME", "The bucket's region."),
    "secret": (str, "NAME", "The Secret of the project's namespace with the access key to the bucket."),
    "claim": (str, "NAME", "A PersistentVolumeClaim of the project's namespace for backups, instead of a bucket."),
}


@click.command()
@click.argument("name")
@click.option("--wait", is_flag=True, help="Wait until it is made and proved.")
@click.option("--timeout", type=Duration(), default="20m", show_default=True, help="How long to wait.")
@with_session
def backup(session: Session, name: str, wait: bool, timeout: float) -> None:
    """Back a cluster up now, beside its schedule.

    The backup counts once it was read back and its etcd was restored on trial. Say where backups go before: ckp cluster set NAME --backup-bucket ….
    """
    before = {entry.id for entry in read(BackupsView, session.get(f"/clusters/{name}/backups")).items}
    session.call("POST", f"/clusters/{name}/backups")
    click.echo(f"cluster/{name} backup requested")
    if not wait:
        return

    def made(row: BackupsView) -> BackupView | None:
        return next((entry for entry in row.items if entry.id not in before and entry.result != "Running"), None)

    def seen(row: BackupsView) -> str:
        found = made(row)
        if found is not None and found.result == "Failed":
            raise CkpError(f"the backup {found.id} of cluster {name} failed: {found.message}", resolution="it is tried again by itself; correct what it names")
        return "it is being made and proved" if any(entry.result == "Running" for entry in row.items) else "it is not begun yet"

    _wait(session, name, timeout, "cluster backup", "backed up", f"a backup of cluster {name} is made", lambda row: _is_proved(made(row)), seen)
    row = read(BackupsView, session.get(f"/clusters/{name}/backups"))
    found = made(row)
    click.echo(f"cluster/{name} backed up: {found.id if found else ''}")


def _is_proved(found: BackupView | None) -> bool:
    return found is not None and found.result == "Proved"


@click.command()
@click.argument("name")
@output_option
@with_session
def backups(session: Session, name: str, output: str) -> None:
    """List a cluster's backups, the newest first."""
    answer = session.get(f"/clusters/{name}/backups")
    if output in ("json", "yaml"):
        show_data(answer, output)
        return
    row = read(BackupsView, answer)
    if not row.schedule:
        say(f"cluster/{name} is not backed up: it names no place for backups (ckp cluster set {name} --backup-bucket …, or --backup-claim)")
    else:
        fresh = {"True": "fresh", "False": f"not fresh: {row.message}"}.get(row.fresh, "not known yet")
        click.echo(describe([("Every", row.schedule), ("Kept", row.keep), ("Place", row.place), ("Newest", fresh)]), nl=False)
    if row.restore.phase:
        said = f"{row.restore.backup}: {row.restore.phase}" + (f", {row.restore.message}" if row.restore.message else "")
        click.echo(describe([("Last restore", said)]), nl=False)
    click.echo(section("Backups", table(COLUMNS, row.items)) if row.items else "No backups.")


@click.command()
@click.argument("name")
@click.argument("backup_id", metavar="BACKUP")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--wait", is_flag=True, help="Wait until the cluster goes on with it.")
@click.option("--timeout", type=Duration(), default="20m", show_default=True, help="How long to wait.")
@with_session
def restore(session: Session, name: str, backup_id: str, yes: bool, wait: bool, timeout: float) -> None:
    """Put a cluster back to one of its backups, in place.

    What was written after the backup is lost. The backup is checked first, and the cluster goes on meanwhile; then its API is away for a minute or two.
    Pods that were made after the backup are ended by their nodes, since the cluster no longer knows them; all others keep running.
    """
    if not yes:
        click.confirm(f"All that was written to cluster {name} after {backup_id} will be lost. Restore it?", abort=True, err=True)
    session.call("POST", f"/clusters/{name}/restore", body=RestoreRequest.of(backup=backup_id))
    click.echo(f"cluster/{name} restore to {backup_id} requested")
    if not wait:
        return

    def seen(row: BackupsView) -> str:
        if row.restore.phase == "Failed":
            raise CkpError(f"cluster {name} was not restored, and nothing was changed: {row.restore.message}", resolution=f"see: ckp cluster backups {name}")
        return f"{row.restore.phase}: {row.restore.message}".rstrip(": ")

    def there(row: BackupsView) -> bool:
        return row.restore.phase == "Done" and row.restore.backup == backup_id

    _wait(session, name, timeout, "cluster restore", "restored", f"cluster {name} goes on with the backup {backup_id}", there, seen)
    click.echo(f"cluster/{name} restored to {backup_id}")


def _wait(
    session: Session, name: str, timeout: float, command: str, title: str, what: str, there: Callable[[BackupsView], bool], seen: Callable[[BackupsView], str]
) -> None:
    wait_for(
        session,
        BackupsView,
        f"/clusters/{name}/backups",
        timeout=timeout,
        command=command,
        title=title,
        what=what,
        there=there,
        seen=seen,
        resolution=f"it goes on; see: ckp cluster backups {name}",
    )
