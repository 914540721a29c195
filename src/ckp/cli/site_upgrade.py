"""`ckp site upgrade`: from the version of CKP before to this one, and back again if the new one does not become ready."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from ckp import __version__
from ckp.backups import archive
from ckp.catalog.load import Catalog, Profile
from ckp.cli.deliverables import Origins
from ckp.cli.distribution.release import PROFILE_OPTION
from ckp.cli.site import FILE, site_file
from ckp.cli.site_backup import programs_of
from ckp.cli.site_changes import ARCHIVES_OPTION, KEYRING_OPTION, LOCK_SECONDS, LOOKING, changing, management, registries_of
from ckp.cli.site_plan import COLUMNS, exit_code
from ckp.cli.view.output import echo, output_option, show_data, table
from ckp.cli.view.progress import planned
from ckp.clients.signing.encryption import Readers
from ckp.distribution.release import Deliverable
from ckp.kits import paths
from ckp.kits.errors import InvalidInput
from ckp.kits.files import exclusive
from ckp.kits.steps import Steps
from ckp.lab.lab import require_root
from ckp.site import described
from ckp.site import management as management_cluster
from ckp.site import status as site_status
from ckp.site.backup import take
from ckp.site.install import Site
from ckp.site.inventory import Inventory, SiteHosts
from ckp.site.plan.gate import require_possible
from ckp.site.plan.model import Action, Change
from ckp.site.plan.wanted import remember
from ckp.site.releases import choose
from ckp.site.settings.read import require_signer
from ckp.site.spec.model import SiteSpec
from ckp.site.status import Part
from ckp.site.upgrade import plan as upgrade_plan
from ckp.site.upgrade import run
from ckp.site.upgrade.agents import Outcome
from ckp.site.upgrade.first_lab import FirstLab
from ckp.site.upgrade.limits import Limits
from ckp.site.upgrade.plan import Intent, Situation
from ckp.site.upgrade.record import Phase, Record

READABLE = click.Path(exists=True, dir_okay=False, path_type=Path)
AT_ONCE = 10
NO_BACKUP = "a site is backed up before it is upgraded, and nothing was changed"


@dataclass(frozen=True)
class Subject:
    """The site that is upgraded: one that a file describes, or the lab of 0.2.0.

    Args:
        spec: None for the lab.
    """

    name: str
    hosts: SiteHosts
    state: Path
    releases: tuple[str, ...]
    spec: SiteSpec | None = None

    def parts(self) -> Iterator[Part]:
        """What of it is as it should be."""
        registries = registries_of(self.spec, self.hosts) if self.spec else []
        return site_status.status(self.hosts, registries)

    def inventory(self, catalog: Catalog, keyring: Path | None) -> Inventory:
        """Raises InvalidInput as `described.inventory_for`."""
        if self.spec is None:
            return FirstLab().inventory()
        return described.inventory_for(self.spec, self.hosts, [catalog.release(name) for name in self.releases], keyring)


@dataclass(frozen=True)
class Backup:
    """How the backup is made.

    Args:
        target: None: there is to be none.
    """

    target: Path | None
    readers: Readers | None

    @property
    def name(self) -> str:
        """Of the file; "" for none."""
        return str(self.target or "")

    def refuse(self, subject: Subject, record: Record | None) -> None:
        """InvalidInput if it can't be made.

        Args:
            record: of an upgrade that is under way: a file of its name was not there when it began.
        """
        if self.target is None:
            return
        if subject.spec is None:
            raise InvalidInput(
                "a lab that no file describes can't be backed up, and nothing was changed",
                resolution="--without-backup upgrades all the same: what goes wrong can be taken back only as long as the upgrade is not finished",
            )
        take.refuse_site(subject.spec)
        if record is None or record.backup != self.name:
            archive.refuse_target(self.target)


@click.command()
@site_file
@click.option("--lab", is_flag=True, help="The lab that `ckp up` of 0.2.0 has made on this machine, which no file describes.")
@click.option("--plan", "only_plan", is_flag=True, help="Show what would change and what each step interrupts, and change nothing.")
@click.option("--back", is_flag=True, help="Take an upgrade back that is not finished.")
@click.option("--backup", "target", type=click.Path(dir_okay=False, path_type=Path), help="Back the site up first, into this new file.")
@click.option("--recipient", "recipients", type=READABLE, multiple=True, help="An OpenPGP certificate whose owner can read the backup; may be repeated.")
@click.option("--passphrase-file", type=READABLE, help="A file (0600) whose first line is the backup's passphrase.")
@click.option("--without-backup", is_flag=True, help="Make none: what goes wrong can be taken back only as long as the upgrade is not finished.")
@click.option(
    "--agents-at-once", default=AT_ONCE, show_default=True, type=click.IntRange(1, 1000), help="Hosts whose agents are upgraded together; the first is alone."
)
@PROFILE_OPTION
@ARCHIVES_OPTION
@KEYRING_OPTION
@output_option
def upgrade(
    file: Path,
    lab: bool,
    only_plan: bool,
    back: bool,
    target: Path | None,
    recipients: tuple[Path, ...],
    passphrase_file: Path | None,
    without_backup: bool,
    agents_at_once: int,
    profile: Profile,
    archives: tuple[Path, ...],
    keyring: Path | None,
    output: str,
) -> None:
    """Move a site from the version of CKP before to this one.

    The site is backed up first. Compass' database and the kinds of objects come next, then controllers, hub and Compass, one after the other; if one of
    them does not become ready, all of it is put back as it was. The host tool and the agents of hosts follow, in stages; the first that fails ends it.
    After a break, the same command goes on.

    \b
    With --plan, the exit code is 0 if nothing would change, 1 if something would, 2 if the upgrade would be refused.
    """
    if target is not None and without_backup:
        raise InvalidInput("--backup and --without-backup were given", resolution="leave one out")
    readers = Readers(recipients, passphrase_file) if target is not None and not only_plan else None
    backup = Backup(target.absolute() if target is not None else None, readers)
    with subject_of(file, lab=lab, change=not only_plan) as subject:
        host = subject.hosts.management
        if back:
            with planned("site upgrade back", run.titles(Phase.BACK), out=sys.stderr) as steps:
                found = run.give_up(host, subject.state, steps, Limits())
            _answer(output, {"version": found, "upgraded": False}, f"{subject.name} is of CKP {found} again")
            return
        seen = upgrade_plan.look(host, subject.parts())
        single = subject.spec is None or subject.spec.database.postgresql is None
        intent = Intent(subject.releases, [each.name for each in subject.hosts.masters], backup.name, single)
        changes = upgrade_plan.changes(seen, intent)
        if only_plan:
            _show_plan(changes, output)
        if not changes:
            _answer(output, {"version": __version__, "upgraded": False}, f"{subject.name} is of CKP {__version__} already, and nothing was changed")
            return
        upgrade_plan.require_possible(changes)
        if seen.record is None or seen.record.phase is Phase.BACKUP:
            if target is None and not without_backup:
                raise InvalidInput(NO_BACKUP, resolution="name a new file (--backup FILE with --recipient or --passphrase-file), or say --without-backup")
            backup.refuse(subject, seen.record)
        outcome = _upgrade(subject, seen, backup, agents_at_once, Origins(profile, archives, keyring))
    left = f"\n  left alone   {', '.join(outcome.left)}: not connected; later: ckp host upgrade-agent" if outcome.left else ""
    text = f"\n{subject.name} is of CKP {__version__} (before: {seen.version}).\n\n  agents       {len(outcome.upgraded)} upgraded{left}"
    _answer(output, {"version": __version__, "before": seen.version, "upgraded": True, "backup": backup.name, "agents": asdict(outcome)}, text)


@contextmanager
def subject_of(file: Path, *, lab: bool, change: bool) -> Iterator[Subject]:
    """The site, for as long as the block lasts.

    Args:
        change: no other command changes it meanwhile.

    Raises:
        InvalidInput: a file and the lab were named.
        NotFound: there is no such file, or no lab.
    """
    if not lab:
        with (changing if change else management)(file) as (spec, hosts):
            yield Subject(spec.metadata.name, hosts, described.state_folder(spec), tuple(spec.releases), spec)
        return
    if file != FILE:
        raise InvalidInput(f"--lab and the file {file} were named", resolution="leave one out")
    require_root("`ckp site upgrade --lab`")
    with exclusive(paths.state() / "up.lock", what="another `ckp up` or `ckp down`", timeout=LOCK_SECONDS):
        hosts = FirstLab()
        yield Subject("the lab", hosts, paths.state(), (management_cluster.installed_release(hosts.management),))


def _upgrade(subject: Subject, seen: Situation, backup: Backup, at_once: int, origins: Origins) -> Outcome:
    catalog = Catalog()
    wanted = [catalog.release(name) for name in subject.releases]
    phase = seen.record.phase if seen.record is not None else Phase.BACKUP
    if seen.record is not None and phase is Phase.BACK:  # nothing has to be built for that
        with planned("site upgrade back", run.titles(phase), out=sys.stderr) as steps:
            raise run.go_back(subject.hosts.management, subject.state, seen.record, steps, Limits())
    backing_up = take.TITLES if backup.target is not None and phase is Phase.BACKUP else ()
    with planned("site upgrade", [LOOKING, *origins.titles(wanted), *backing_up, *run.titles(phase)], out=sys.stderr) as steps:
        with steps.step(LOOKING):
            inventory = subject.inventory(catalog, origins.keyring)
            if origins.builds(wanted):
                require_signer(inventory.settings)
            if subject.spec is not None and seen.record is None:
                require_possible(inventory, subject.releases, management_cluster.installed_release(subject.hosts.management))
            choice = choose(subject.hosts.management, subject.releases)
            steps.say(f"{subject.name} is of CKP {seen.version}; this is {__version__}")
        dists, made_of = origins.take(catalog, wanted, inventory, choice.names, steps)
        main = dists[choice.management]
        site = Site(main, inventory, steps.say)
        rest = [dists[name] for name in choice.names if name != choice.management]
        found = run.Upgrade(site, rest, steps, backup.name, _backup_by(subject, backup, main, steps), at_once).run(seen.version, seen.schema)
        if subject.spec is not None:
            remember(inventory.state, made_of)
        return found


def _backup_by(subject: Subject, backup: Backup, dist: Deliverable, steps: Steps) -> Callable[[], None] | None:
    if backup.target is None or backup.readers is None or subject.spec is None:
        return None
    spec, target, readers = subject.spec, backup.target, backup.readers

    def take_it() -> None:
        if target.exists():  # a run of this upgrade that was killed has made it: it has its name only once it is proved (Backup.refuse)
            return
        programs = programs_of(dist.built["etcd"]) if "etcd" in dist.built else None
        release = management_cluster.installed_release(subject.hosts.management)
        postgresql = spec.database.postgresql is not None
        wanted = take.Wanted(subject.name, spec.file or FILE, subject.state, release, readers, postgresql=postgresql)
        take.take(subject.hosts, wanted, target, programs, steps)

    return take_it


def _show_plan(changes: Sequence[Change], output: str) -> None:
    if output in ("json", "yaml"):
        show_data({"items": [{**asdict(change), "action": change.action.value} for change in changes]}, output)
    else:
        echo(table(COLUMNS, changes) if changes else f"the site is of CKP {__version__} already")
        for change in changes:
            if change.action is Action.REFUSED:
                echo(f"{change.part} is refused; what to do: {change.remedy}", err=True)
    sys.exit(exit_code(changes))


def _answer(output: str, data: dict[str, object], text: str) -> None:
    if output in ("json", "yaml"):
        show_data(data, output)
    else:
        echo(text)
