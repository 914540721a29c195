"""`ckp site backup`: a whole site in one encrypted, signed file; and what is done with such a file."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

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
from ckp.kits import paths
from ckp.kits.errors import InvalidInput, NotFound
from ckp.kits.files import exclusive
from ckp.site import described, management
from ckp.site.backup import archive, take
from ckp.site.backup.manifest import Hosted, Manifest, Member
from ckp.site.backup.proof import Programs, Seen, prove

FILE = click.Path(dir_okay=False, path_type=Path)
READABLE = click.Path(exists=True, dir_okay=False, path_type=Path)
OPENING, PROVING = "Decrypting the backup, and checking what was signed", "Restoring what is in it, for a look"
MEMBER_COLUMNS: tuple[Column[Member], ...] = (
    Column("MEMBER", lambda member: member.name),
    Column("KIND", lambda member: member.kind.value),
    Column("BYTES", lambda member: member.size),
    Column("REVISION", lambda member: member.etcd.revision if member.etcd else ""),
    Column("ABOUT", lambda member: member.about),
    Column("SHA-256", lambda member: member.sha256, wide=True),
)
CLUSTER_COLUMNS: tuple[Column[Hosted], ...] = (
    Column("CLUSTER", lambda cluster: cluster.title),
    Column("VERSION", lambda cluster: cluster.version),
    Column("DATA", lambda cluster: cluster.member or f"missing: {cluster.why}"),
)


@click.command()
@site_file
@click.option("--output", "target", type=FILE, help="Make a backup, in this new file.")
@click.option("--recipient", "recipients", type=READABLE, multiple=True, help="An OpenPGP certificate (public key) whose owner can read it; may be repeated.")
@click.option("--passphrase-file", type=READABLE, help="A file (0600) whose first line is the passphrase: of the backup, or of --key.")
@click.option("--with-signing-keys", is_flag=True, help="Put this machine's keys that sign releases into it.")
@click.option("--without", multiple=True, metavar="NAMESPACE/NAME", help="Make it even if the etcd of this workload cluster can't be read; may be repeated.")
@click.option("--verify", type=FILE, metavar="FILE", help="Prove a backup: signature, digests, and each snapshot restored into an etcd of its own.")
@click.option("--show", type=FILE, metavar="FILE", help="Show what a backup holds.")
@click.option("--key", type=READABLE, help="OpenPGP secret key to read a backup with; default: your own gpg, with its agent and smart cards.")
@click.option("--signed-by", metavar="FINGERPRINT", default="", help="The key that must have signed it; default: the site's, if this machine has it.")
@click.option("--from", "release", type=RELEASE_FILE, help="Take etcd's programs from a file of `ckp dist export`; default: as they are built on this machine.")
@KEYRING_OPTION
@click.option("-o", "output", type=click.Choice(["table", "wide", "json", "yaml"]), default="table", show_default=True, help="How to print what is in it.")
def backup(
    file: Path,
    target: Path | None,
    recipients: tuple[Path, ...],
    passphrase_file: Path | None,
    with_signing_keys: bool,
    without: tuple[str, ...],
    verify: Path | None,
    show: Path | None,
    key: Path | None,
    signed_by: str,
    release: Path | None,
    keyring: Path | None,
    output: str,
) -> None:
    """Back up a whole site into one encrypted, signed file; or prove (--verify) or show (--show) such a file."""
    chosen = [option for option, value in (("--output", target), ("--verify", verify), ("--show", show)) if value is not None]
    if len(chosen) != 1:
        said = f"{' and '.join(chosen)} were given" if chosen else "none was given"
        raise InvalidInput(f"one of --output, --verify and --show is needed, and {said}", resolution="see ckp site backup --help")
    if target is not None:
        readers = Readers(recipients, passphrase_file)
        _make(file, target.absolute(), readers, with_signing_keys, without, (release, keyring), output)
        return
    if signed_by and not is_fingerprint(signed_by := signed_by.replace(" ", "").upper()):
        raise InvalidInput(f"{signed_by!r} is no fingerprint of a key", resolution="write its 40 hex digits")
    reader = ReaderKey(key, passphrase_file)
    if show is not None:
        with reading_scratch() as scratch, archive.opened(show, reader, lambda found: signer_of(found, signed_by), scratch, members=False) as found:
            _show(found.manifest, found.signed_by, output)
    elif verify is not None:
        _verify(verify, reader, signed_by, (release, keyring), output)


def _make(
    file: Path, target: Path, readers: Readers, with_keys: bool, without: Sequence[str], programs_from: tuple[Path | None, Path | None], output: str
) -> None:
    keys = paths.keys() if with_keys else None
    if keys is not None and not keys.is_dir():
        raise NotFound(f"there are no signing keys in {keys}", resolution="leave out --with-signing-keys")
    archive.refuse_target(target)
    with changing(file) as (spec, hosts), planned("site backup", [LOOKING, *take.TITLES], out=sys.stderr) as steps:
        host = hosts.management
        if spec.database.postgresql is not None:
            raise InvalidInput(
                f"Compass of {spec.metadata.name} has its data in PostgreSQL, and a backup of it can't be made by this version",
                resolution="back up the database by its own means (pg_dump), and the management cluster's etcd as Kubernetes describes it",
            )
        with steps.step(LOOKING):
            if not management.exists(host):
                raise NotFound(f"{host.name} has no management cluster that is complete", resolution=f"ckp site apply -f {file}")
            release = management.installed_release(host)
            programs = find_programs(release, *programs_from)
            steps.say(f"{host.name} ({host.address}) runs {release}")
        wanted = take.Wanted(spec.metadata.name, file, described.state_folder(spec), release, readers, keys, without)
        taken = take.take(host, wanted, target, programs, steps)
    if output in ("json", "yaml"):
        show_data({**_data(taken.manifest, taken.signed_by), "proof": [asdict(seen) for seen in taken.seen]}, output)
        return
    echo(
        f"""
{target} has the whole site {taken.manifest.site}, {gibibytes(target.stat().st_size)}.

  signed by    {taken.signed_by}  (keep this fingerprint where the backup is not: it is how a backup is known to be yours)
  clusters     {", ".join(cluster.title + ("" if cluster.member else " (WITHOUT ITS DATA)") for cluster in taken.manifest.clusters) or "none"}

Try next:
  ckp site backup --verify {target}"""
    )
    if programs is None:
        echo("\nThe snapshots of etcd were not restored for a look, as this machine has not built the release: --verify with --from does.", err=True)


def _verify(file: Path, reader: ReaderKey, signed_by: str, programs_from: tuple[Path | None, Path | None], output: str) -> None:
    with reading_scratch() as scratch, planned("site backup verify", [OPENING, PROVING], out=sys.stderr) as steps, ExitStack() as stack:
        with steps.step(OPENING):
            backup = stack.enter_context(archive.opened(file, reader, lambda found: signer_of(found, signed_by), scratch))
        with steps.step(PROVING):
            programs = find_programs(backup.manifest.release, *programs_from)
            if programs is None:
                raise NotFound(
                    f"etcd's programs of {backup.manifest.release} are not on this machine, and without them a snapshot can't be restored",
                    resolution=f"name the release's file (--from release.ckp), or build it: ckp dist build {backup.manifest.release}",
                )
            seen = prove(backup, programs, scratch, steps.say)
    _proved(file, backup.manifest, backup.signed_by, seen, output)


def _proved(file: Path, manifest: Manifest, signed_by: str, seen: Sequence[Seen], output: str) -> None:
    if output in ("json", "yaml"):
        show_data({**_data(manifest, signed_by), "proof": [asdict(item) for item in seen]}, output)
    else:
        echo(f"{file} is a backup of {manifest.site} of {manifest.made:%Y-%m-%d %H:%M} UTC, signed by {signed_by}; all that is in it can be restored")


def _show(manifest: Manifest, signed_by: str, output: str) -> None:
    if output in ("json", "yaml"):
        show_data(_data(manifest, signed_by), output)
        return
    pairs: list[tuple[str, Any]] = [
        ("Site", manifest.site),
        ("Made", f"{manifest.made:%Y-%m-%d %H:%M:%S} UTC, by CKP {manifest.ckp}"),
        ("Signed by", signed_by),
        ("Management host", f"{manifest.host} ({manifest.address})"),
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
