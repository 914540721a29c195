"""`ckp site restore`: a site comes back from a backup, onto new management hosts."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import click

from ckp.backups import archive
from ckp.catalog.load import Catalog, Profile
from ckp.cli.deliverables import Origins
from ckp.cli.distribution.release import PROFILE_OPTION
from ckp.cli.site import site_file
from ckp.cli.site_apply import releases_of
from ckp.cli.site_backup import FILE, OPENING, READABLE, named, programs_of, reading_scratch, signer_of
from ckp.cli.site_changes import ARCHIVES_OPTION, CHECKING, IGNORED_OPTION, KEYRING_OPTION, LOOKING, changing
from ckp.cli.view.progress import planned
from ckp.clients.signing.encryption import ReaderKey, is_fingerprint
from ckp.kits import paths
from ckp.kits.errors import InvalidInput
from ckp.site import apply as site_apply
from ckp.site import described
from ckp.site.backup import restore as restoring
from ckp.site.backup.manifest import FORM
from ckp.site.backup.placing import place
from ckp.site.backup.proof import prove
from ckp.site.backup.take import refuse_site
from ckp.site.check import of_spec
from ckp.site.check.rules import require_sound
from ckp.site.check.run import check
from ckp.site.install import Site
from ckp.site.plan.wanted import remember
from ckp.site.settings.read import require_signer

RESTORING, PLACING, FINISHING = "Restoring what this machine kept of the site", "Putting data and CAs onto the new hosts", "Seeing that it is the same cluster"


@click.command()
@site_file
@click.argument("backup_file", metavar="FILE", type=FILE)
@PROFILE_OPTION
@ARCHIVES_OPTION
@KEYRING_OPTION
@click.option("--passphrase-file", type=READABLE, help="A file (0600) whose first line is the passphrase: of the backup, or of --key.")
@click.option("--key", type=READABLE, help="OpenPGP secret key to read the backup with; default: your own gpg, with its agent and smart cards.")
@click.option("--signed-by", metavar="FINGERPRINT", default="", help="The key that must have signed it; default: the site's, if this machine has it.")
@click.option(
    "--database",
    "database",
    type=click.Choice([choice.value for choice in restoring.DatabaseChoice]),
    default=restoring.DatabaseChoice.REFUSE.value,
    show_default=True,
    help="What to do with data that the site's PostgreSQL has already: stop there, keep it instead of the backup's, or replace it by the backup's.",
)
@IGNORED_OPTION
def restore(
    file: Path,
    backup_file: Path,
    profile: Profile,
    archives: tuple[Path, ...],
    keyring: Path | None,
    passphrase_file: Path | None,
    key: Path | None,
    signed_by: str,
    database: str,
    ignored: tuple[str, ...],
) -> None:
    """Bring a site back from FILE onto new management hosts with the names and the addresses of those that are lost.

    FILE is a file, or the name of a backup where the site's file keeps them (ckp site backup --list).

    What is refused is refused before anything is changed. It may be killed at any moment: the same command goes on, from the same backup.
    """
    if signed_by and not is_fingerprint(signed_by := signed_by.replace(" ", "").upper()):
        raise InvalidInput(f"{signed_by!r} is no fingerprint of a key", resolution="write its 40 hex digits")
    with changing(file) as (spec, hosts), ExitStack() as stack:
        refuse_site(spec)
        scratch = stack.enter_context(reading_scratch())
        catalog, host, state = Catalog(), hosts.management, described.state_folder(spec)
        wanted, origins = releases_of(catalog, spec), Origins(profile, archives, keyring)
        making = origins.titles(wanted)
        steps = stack.enter_context(planned("site restore", [OPENING, LOOKING, CHECKING, RESTORING, *making, PLACING, *site_apply.TITLES, FINISHING]))
        with steps.step(OPENING):
            local = stack.enter_context(named(backup_file, file, scratch))
            backup = stack.enter_context(archive.opened(local, FORM, ReaderKey(key, passphrase_file), lambda found: signer_of(found, signed_by), scratch))
            manifest = backup.manifest
            steps.say(f"of {manifest.made:%Y-%m-%d %H:%M} UTC, with {len(manifest.clusters)} workload clusters")
        with steps.step(LOOKING):
            restoring.refuse(manifest, spec, hosts)
            restoring.refuse_content(backup, spec, state)
            inventory = described.inventory_for(spec, hosts, wanted, keyring)
            for each in hosts.masters:
                described.require_address(each)
            if origins.builds(wanted):
                require_signer(inventory.settings)
        with steps.step(CHECKING):
            require_sound(check(of_spec.describe(spec, hosts.masters)), ignored, steps.say)
        with steps.step(RESTORING):
            restoring.restore_keys(backup, paths.keys(), steps.say)
            restoring.restore_state(backup, state, steps.say)
        dists, made_of = origins.take(catalog, wanted, inventory, spec.releases, steps)
        first = dists.pop(manifest.release)
        with steps.step(PLACING):
            if restoring.placed(hosts):
                steps.say("an earlier run has done it")
            else:
                programs = programs_of(first.built["etcd"])
                prove(backup, programs, scratch, steps.say)
                place(backup, hosts, programs, scratch, steps.say)

        def data() -> None:
            if spec.database.postgresql is not None:
                restoring.load_database(backup, host, restoring.DatabaseChoice(database), steps.say)

        absent = [each.name for each in hosts.masters if each.name != host.name]
        site_apply.apply(Site(first, inventory, steps.say, absent=absent), steps, list(dists.values()), data)
        with steps.step(FINISHING):
            restoring.finish(hosts, manifest)
            remember(inventory.state, made_of)
            steps.say(f"{host.name} runs the management cluster {manifest.cluster_uid}")
    click.echo(f"\nThe site {spec.metadata.name} is back, as it was on {manifest.made:%Y-%m-%d %H:%M} UTC. Hosts and nodes come back by themselves.")
    if spec.backup is not None and spec.backup.every is not None and spec.backup.by_hosts:
        click.echo("Its hosts make backups by themselves again after `ckp site apply`.")
