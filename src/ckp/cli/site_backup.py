"""`ckp site backup`: a whole site in one encrypted, signed file, or in the bucket or folder that its file names; and what is done with such a backup."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from ckp.backups import archive
from ckp.backups.members import Member
from ckp.backups.places import Stored, Target
from ckp.backups.scratch import Programs
from ckp.catalog.load import Catalog
from ckp.cli.site import site_file
from ckp.cli.site_changes import KEYRING_OPTION, LOOKING, RELEASE_FILE, changing
from ckp.cli.trust import trusted_keys
from ckp.cli.view.output import Column, describe, echo, gibibytes, show_data, table
from ckp.cli.view.progress import planned
from ckp.clients.signing.encryption import ReaderKey, Readers, is_fingerprint
from ckp.distribution.attest.builtrelease import open_built_release
from ckp.distribution.builder.component import Built
from ckp.distribution.carry.airgap import ImportedRelease
from ckp.hostkit.backup.names import made_at, name_of
from ckp.kits import paths
from ckp.kits.errors import InvalidInput, NotFound
from ckp.kits.files import exclusive
from ckp.site import described, management
from ckp.site.backup import take
from ckp.site.backup.manifest import FORM, Hosted, Manifest
from ckp.site.backup.proof import Seen, prove
from ckp.site.backup.target import target_of
from ckp.site.spec.model import SiteSpec
from ckp.site.spec.read import read_site

FILE = click.Path(dir_okay=False, path_type=Path)
READABLE = click.Path(exists=True, dir_okay=False, path_type=Path)
OPENING, PROVING = "Decrypting the backup, and checking what was signed", "Restoring what is in it, for a look"
STORING = "Storing it where the site keeps its backups, and reading it back"
MEMBER_COLUMNS: tuple[Column[Member], ...] = (
    Column("MEMBER", lambda member: member.name),
    Column("KIND", lambda member: member.kind.value),
    Column("BYTES", lambda member: member.size),
    Column("REVISION", lambda member: member.etcd.revision if member.etcd else ""),
    Column("ABOUT", lambda member: member.about),
    Column("SHA-256", lambda member: member.sha256, wide=True),
)
STORED_COLUMNS: tuple[Column[Stored], ...] = (
    Column("NAME", lambda stored: stored.name),
    Column("MADE", lambda stored: f"{stored.made:%Y-%m-%d %H:%M:%S} UTC"),
    Column("BYTES", lambda stored: stored.size),
)
CLUSTER_COLUMNS: tuple[Column[Hosted], ...] = (
    Column("CLUSTER", lambda cluster: cluster.title),
    Column("VERSION", lambda cluster: cluster.version),
    Column("DATA", lambda cluster: cluster.member or f"missing: {cluster.why}"),
)


@click.command()
@site_file
@click.option("--output", "target", type=FILE, help="Make a backup in this new file; default: where the site's file keeps them.")
@click.option("--if-due", is_flag=True, help="Make it only if the newest one there is older than the site's file allows (`backup.every`).")
@click.option(
    "--recipient",
    "recipients",
    type=READABLE,
    multiple=True,
    help="An OpenPGP certificate (public key) whose owner can read it, beside those of the site's file; may be repeated.",
)
@click.option("--passphrase-file", type=READABLE, help="A file (0600) whose first line is the passphrase: of the backup, or of --key.")
@click.option("--with-signing-keys", is_flag=True, help="Put this machine's keys that sign releases into it.")
@click.option("--without", multiple=True, metavar="NAMESPACE/NAME", help="Make it even if the etcd of this workload cluster can't be read; may be repeated.")
@click.option(
    "--verify", type=FILE, metavar="FILE", help="Prove a backup, a file or one that --list names: signature, digests, and each snapshot restored into an etcd."
)
@click.option("--show", type=FILE, metavar="FILE", help="Show what a backup holds, a file or one that --list names.")
@click.option("--list", "listed", is_flag=True, help="List the backups that are where the site's file keeps them.")
@click.option("--key", type=READABLE, help="OpenPGP secret key to read a backup with; default: your own gpg, with its agent and smart cards.")
@click.option("--signed-by", metavar="FINGERPRINT", default="", help="The key that must have signed it; default: the site's, if this machine has it.")
@click.option("--from", "release", type=RELEASE_FILE, help="Take etcd's programs from a file of `ckp dist export`; default: as they are built on this machine.")
@KEYRING_OPTION
@click.option("-o", "output", type=click.Choice(["table", "wide", "json", "yaml"]), default="table", show_default=True, help="How to print what is in it.")
def backup(
    file: Path,
    target: Path | None,
    if_due: bool,
    recipients: tuple[Path, ...],
    passphrase_file: Path | None,
    with_signing_keys: bool,
    without: tuple[str, ...],
    verify: Path | None,
    show: Path | None,
    listed: bool,
    key: Path | None,
    signed_by: str,
    release: Path | None,
    keyring: Path | None,
    output: str,
) -> None:
    """Back up a whole site: encrypted, signed, and proved by reading it back. Or list (--list), prove (--verify) or show (--show) what was made."""
    chosen = [option for option, value in (("--output", target), ("--verify", verify), ("--show", show), ("--list", listed or None)) if value is not None]
    if len(chosen) > 1:
        raise InvalidInput(f"{' and '.join(chosen)} exclude each other", resolution="see ckp site backup --help")
    if if_due and chosen:
        raise InvalidInput(f"--if-due and {chosen[0]} exclude each other", resolution="see ckp site backup --help")
    if target is not None or not chosen:
        _make(file, target.absolute() if target else None, if_due, recipients, passphrase_file, with_signing_keys, without, (release, keyring), output)
        return
    if listed:
        _list(file, output)
        return
    if signed_by and not is_fingerprint(signed_by := signed_by.replace(" ", "").upper()):
        raise InvalidInput(f"{signed_by!r} is no fingerprint of a key", resolution="write its 40 hex digits")
    reader = ReaderKey(key, passphrase_file)
    if show is not None:
        with reading_scratch() as scratch, named(show, file, scratch) as local:
            with archive.opened(local, FORM, reader, lambda found: signer_of(found, signed_by), scratch, members=False) as found:
                _show(found.manifest, found.signed_by, output)
    elif verify is not None:
        _verify(verify, file, reader, signed_by, (release, keyring), output)


def _make(
    file: Path,
    target: Path | None,
    if_due: bool,
    recipients: Sequence[Path],
    passphrase: Path | None,
    with_keys: bool,
    without: Sequence[str],
    programs_from: tuple[Path | None, Path | None],
    output: str,
) -> None:
    """A backup in `target`; None: where the site keeps them, and for the readers that its file names."""
    keys = paths.keys() if with_keys else None
    if keys is not None and not keys.is_dir():
        raise NotFound(f"there are no signing keys in {keys}", resolution="leave out --with-signing-keys")
    if target is not None:
        Readers(recipients, passphrase)  # before a host is reached
        archive.refuse_target(target)
    with changing(file) as (spec, hosts), ExitStack() as stack:
        take.refuse_site(spec)
        host = hosts.management
        kept = stack.enter_context(target_of(spec, host)) if target is None else None
        readers = Readers([*recipients, *(spec.backup.encrypt_for if kept and spec.backup else ())], passphrase)
        if kept and if_due and spec.backup and (newest := _not_due(kept, spec.backup.every)):
            echo(f"{newest} in {kept.title} is not older than `backup.every`, and no other was made")
            return
        steps = stack.enter_context(planned("site backup", [LOOKING, *take.TITLES, *([STORING] if kept else [])], out=sys.stderr))
        with steps.step(LOOKING):
            if not management.exists(host):
                raise NotFound(f"{host.name} has no management cluster that is complete", resolution=f"ckp site apply -f {file}")
            release = management.installed_release(host)
            programs = find_programs(release, *programs_from)
            steps.say(f"{host.name} ({host.address}) runs {release}")
            if kept is not None:
                steps.say(f"{kept.title} has {len(kept.backups())} backups of {spec.metadata.name}")  # it answers, before anything is taken
        wanted = take.Wanted(spec.metadata.name, file, described.state_folder(spec), release, readers, keys, without, spec.database.postgresql is not None)
        if kept is None:
            assert target is not None
            taken, where, name, size = take.take(hosts, wanted, target, programs, steps), "", str(target), target.stat().st_size
        else:
            sealed = stack.enter_context(take.sealing_folder(wanted.state)) / (name := name_of(spec.metadata.name, datetime.now(UTC)))
            taken = take.take(hosts, wanted, sealed, programs, steps)
            where, size = f" in {kept.title}", sealed.stat().st_size
            with steps.step(STORING):
                kept.store(sealed, name, sealed.parent, steps.say)
    if output in ("json", "yaml"):
        show_data({**_data(taken.manifest, taken.signed_by), "proof": [asdict(seen) for seen in taken.seen]}, output)
        return
    echo(
        f"""
{name}{where} has the whole site {taken.manifest.site}, {gibibytes(size)}.

  signed by    {taken.signed_by}  (keep this fingerprint where the backup is not: it is how a backup is known to be yours)
  clusters     {", ".join(cluster.title + ("" if cluster.member else " (WITHOUT ITS DATA)") for cluster in taken.manifest.clusters) or "none"}

Try next:
  ckp site backup --verify {name}"""
    )
    if programs is None:
        echo("\nThe snapshots of etcd were not restored for a look, as this machine has not built the release: --verify with --from does.", err=True)


def _not_due(target: Target, every: timedelta | None) -> str:
    """The newest backup if it is as new as it should be; otherwise "". Raises CkpError if the target can't be read."""
    found = target.backups()
    return found[-1].name if every and found and datetime.now(UTC) - found[-1].made < every else ""


def _list(file: Path, output: str) -> None:
    with kept_by(read_site(file)) as target:
        found = target.backups()
    if output in ("json", "yaml"):
        show_data([{"name": each.name, "made": each.made.isoformat(), "bytes": each.size} for each in found], output)
    else:
        echo(table(STORED_COLUMNS, found) if found else f"{target.title} has no backup of {target.of}")


@contextmanager
def kept_by(spec: SiteSpec) -> Iterator[Target]:
    """Where a site's file keeps its backups. A host is reached only if it is a folder of one. Raises as `target_of`."""
    with ExitStack() as stack:
        folder = spec.backup is not None and spec.backup.to.s3 is None
        hosts = stack.enter_context(described.reached_hosts(spec)) if folder and spec.management.hosts else None
        yield stack.enter_context(target_of(spec, hosts.management if hosts else None))


@contextmanager
def named(backup: Path, file: Path, scratch: Path) -> Iterator[Path]:
    """A backup as a file of this machine: it is one, or one by that name is fetched from where the site's file keeps them.

    Raises:
        NotFound: there is neither.
        CkpError: it can't be fetched.
    """
    if backup.exists() or len(backup.parts) != 1 or not file.exists():
        yield backup
        return
    spec = read_site(file)
    if spec.backup is None or made_at(spec.metadata.name, backup.name) is None:
        yield backup
        return
    with kept_by(spec) as target, target.fetched(backup.name, scratch) as local:
        yield local


def _verify(backup_file: Path, file: Path, reader: ReaderKey, signed_by: str, programs_from: tuple[Path | None, Path | None], output: str) -> None:
    with reading_scratch() as scratch, planned("site backup verify", [OPENING, PROVING], out=sys.stderr) as steps, ExitStack() as stack:
        with steps.step(OPENING):
            local = stack.enter_context(named(backup_file, file, scratch))
            backup = stack.enter_context(archive.opened(local, FORM, reader, lambda found: signer_of(found, signed_by), scratch))
        with steps.step(PROVING):
            programs = find_programs(backup.manifest.release, *programs_from)
            if programs is None:
                raise NotFound(
                    f"etcd's programs of {backup.manifest.release} are not on this machine, and without them a snapshot can't be restored",
                    resolution=f"name the release's file (--from release.ckp), or build it: ckp dist build {backup.manifest.release}",
                )
            seen = prove(backup, programs, scratch, steps.say)
    _proved(backup_file, backup.manifest, backup.signed_by, seen, output)


def _proved(file: Path, manifest: Manifest, signed_by: str, seen: Sequence[Seen], output: str) -> None:
    if output in ("json", "yaml"):
        show_data({**_data(manifest, signed_by), "proof": [asdict(item) for item in seen]}, output)
    else:
        echo(f"{file} is a backup of {manifest.site} of {manifest.made:%Y-%m-%d %H:%M} UTC, signed by {signed_by}; all that is in it can be restored")


def _show(manifest: Manifest, signed_by: str, output: str) -> None:
    if output in ("json", "yaml"):
        show_data(_data(manifest, signed_by), output)
        return
    hosts = manifest.hosts or {manifest.host: manifest.address}
    pairs: list[tuple[str, Any]] = [
        ("Site", manifest.site),
        ("Made", f"{manifest.made:%Y-%m-%d %H:%M:%S} UTC, by CKP {manifest.ckp}"),
        ("Signed by", signed_by),
        (f"Management host{'s' if manifest.hosts else ''}", ", ".join(f"{name} ({address})" for name, address in hosts.items())),
        ("Release", manifest.release),
        ("Signing keys", manifest.signing_keys),
    ]
    echo(describe(pairs))
    echo(f"\n{table(MEMBER_COLUMNS, manifest.members, wide=output == 'wide')}")
    if manifest.clusters:
        echo(f"\n{table(CLUSTER_COLUMNS, manifest.clusters)}")


def _data(manifest: Manifest, signed_by: str) -> dict[str, Any]:
    return {**manifest.model_dump(mode="json", by_alias=True), "signedBy": signed_by}


def signer_of(manifest: Manifest, named: str) -> str:
    """The fingerprint that a backup must be signed by: as named, or that of the site's key on this machine. NotFound if there is neither."""
    certificate = paths.state() / "sites" / manifest.site / take.BACKUP / take.SIGNER / "signer.pgp"
    if named:
        return named
    if not certificate.is_file():
        raise NotFound(
            f"this machine has not the key that signs backups of {manifest.site}, so it can't be told whether this one is genuine",
            resolution="name the fingerprint that `ckp site backup` showed as it made it: --signed-by FINGERPRINT",
        )
    return archive.fingerprint_of(certificate)


@contextmanager
def reading_scratch() -> Iterator[Path]:
    """A folder for what is decrypted, of this user alone; one command at a time."""
    parent = paths.cache() / "backups"
    with exclusive(parent / ".lock", what="reading another backup", timeout=5), take.scratch_folder(parent) as folder:
        yield folder


def find_programs(name: str, archive_file: Path | None, keyring: Path | None) -> Programs | None:
    """etcd's programs of a release, from its file or as this machine has built them. None if it has not.

    Raises:
        InvalidInput: the file is of another release.
        NotFound: the file holds none.
        VerificationFailed: the file is not as it was signed.
    """
    if archive_file is not None:
        imported = ImportedRelease.read(archive_file, trusted_keys(keyring), lambda _: None)
        if imported.release.name != name:
            raise InvalidInput(f"{archive_file} holds {imported.release.name}, and the backup is of {name}", resolution=f"name the file of {name}")
        built = imported.built.get("etcd")
        if built is None:
            raise NotFound(f"{archive_file} holds no programs of etcd", resolution="export the release with this version of CKP, or build it here")
        return programs_of(built)
    catalog = Catalog()
    try:
        release = catalog.release(name)
    except NotFound:
        return None
    found = open_built_release(catalog, release, "lab", ("etcd",), partial=True).components.get("etcd")
    return programs_of(found) if found else None


def programs_of(built: Built) -> Programs:
    """etcd's, of what the component was built into."""
    return Programs(built.binary("etcd"), built.binary("etcdutl"))
