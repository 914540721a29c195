"""`ckp site plan`: what applying would change, and what each change interrupts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from ckp.catalog.load import Catalog, Profile
from ckp.cli.deliverables import reading, take_releases
from ckp.cli.distribution.release import PROFILE_OPTION
from ckp.cli.site import site_file
from ckp.cli.site_changes import ARCHIVES_OPTION, KEYRING_OPTION, LOOKING, management
from ckp.cli.view.output import Column, echo, output_option, show_data, table
from ckp.cli.view.progress import planned
from ckp.kits.errors import CkpError
from ckp.site import described
from ckp.site.backup import timer
from ckp.site.plan import backups as plan_backups
from ckp.site.plan import rules, wanted
from ckp.site.plan.look import look
from ckp.site.plan.model import Action, Change
from ckp.site.publish import hosted_if_own
from ckp.site.releases import of_management

COLUMNS: tuple[Column[Change], ...] = (
    Column("PART", lambda change: change.part),
    Column("ACTION", lambda change: change.action.value),
    Column("DETAIL", lambda change: change.detail),
    Column("INTERRUPTS", lambda change: change.interrupts),
)
CHANGED, REFUSED = 1, 2


class NotSeen(CkpError):
    """It could not be told what would change: the exit code 1 says something else here."""

    exit_code = 5


@click.command()
@site_file
@PROFILE_OPTION
@ARCHIVES_OPTION
@KEYRING_OPTION
@output_option
def plan(file: Path, profile: Profile, archives: tuple[Path, ...], keyring: Path | None, output: str) -> None:
    """Show what applying the site's file would change, and what each change interrupts.

    Nothing is changed, and nothing is built. What depends on the build of a release (whether images change) is `unknown`, unless the releases
    come from files (--from), or are made of the same sources as what this machine applied last.

    \b
    The exit code is
      0  if nothing would change
      1  if something would change, or that is unknown
      2  if the file is wrong, or applying would refuse a change
      3  if a signature or digest of the file of --from is wrong
      4  if something was waited for in vain
      5  if it can't be told, as when the host is not reached
    """
    try:
        found = _changes(file, profile, archives, keyring)
    except CkpError as error:
        if error.exit_code == CHANGED:
            raise NotSeen(error.brief, details=error.details, resolution=error.resolution) from error
        raise
    if output in ("json", "yaml"):
        show_data({"items": [{**asdict(change), "action": change.action.value} for change in found]}, output)
    else:
        echo(table(COLUMNS, found))
        for change in found:
            if change.action is Action.REFUSED:
                echo(f"{change.part} is refused; what to do: {change.remedy}", err=True)
    sys.exit(exit_code(found))


def exit_code(found: Sequence[Change]) -> int:
    """REFUSED if a change is, CHANGED if there is any, otherwise 0."""
    actions = {change.action for change in found}
    return REFUSED if Action.REFUSED in actions else CHANGED if actions - {Action.NONE} else 0


def _changes(file: Path, profile: Profile, archives: Sequence[Path], keyring: Path | None) -> list[Change]:
    with management(file) as (spec, hosts):
        catalog = Catalog()
        releases = [catalog.release(name) for name in spec.releases]
        with planned("site plan", [LOOKING, *map(reading, archives)], sys.stderr) as steps:
            with steps.step(LOOKING):
                inventory = described.inventory_for(spec, hosts, releases, keyring)
                for host in hosts.masters:
                    described.require_address(host)
                chosen = of_management(hosts.management, spec.releases)
                named = [release for release in releases if release.name == chosen]
                program = wanted.registry_program(catalog, named[0], profile) if named else Path("/nonexistent")
            dists = take_releases(archives, keyring, inventory, spec.releases, steps)
            if chosen in dists:
                program = dists[chosen].built["distribution"].binary("registry")
            seen = look(inventory, lambda host: hosted_if_own(inventory, host, program))
            if dists.keys() == set(spec.releases) and chosen in dists:
                offered = seen.layer.offered if seen.layer else None
                what = wanted.from_files(dists, chosen, inventory, offered.withdrawing(spec.releases) if offered else {})
            else:
                what = wanted.built_here(catalog, releases, chosen, profile, inventory, dists)
            schedule = timer.of_spec(spec, inventory.state)
            backups = {host.name: timer.pending(host, hosts, schedule) for host in hosts.masters}
            return [*rules.changes(what, seen), *plan_backups.changes(schedule, backups)]
