"""`ckp keys`: the keys that packages, repositories, bundles and images are signed by."""

from __future__ import annotations

from pathlib import Path

import click

from ckp.cli.output import Column, table
from ckp.clients.openpgp import SIGNING_LIFE, KeyInfo
from ckp.dist.keys import OWNER, REASONS, KeyRing
from ckp.kits import paths
from ckp.kits.errors import Conflict
from ckp.kits.files import atomic_write

PRIMARY_OPTION = click.option(
    "--primary", type=click.Path(path_type=Path), default=None, help="The file with the secret primary key, if it is kept elsewhere (ckp keys detach)."
)


@click.group()
def keys() -> None:
    """Make, rotate, revoke and export signing keys."""


@keys.command("make")
@click.option("--user-id", default=OWNER, show_default=True, help="Whose keys they are: Name <mail>.")
def make(user_id: str) -> None:
    """Make a primary key, a signing key and a key for images. They lie in a folder of yours with mode 0700."""
    ring = KeyRing.make(paths.keys(), user_id)
    click.echo(f"made {ring.key.fingerprint} in {ring.key.folder}\n")
    show(ring)
    click.echo("\nTake the primary key away from this machine: ckp keys detach /media/…/primary.pgp")


@keys.command("list")
def list_keys() -> None:
    """List all keys that are trusted here, and which one signs."""
    show(KeyRing.at(paths.keys()))


def show(ring: KeyRing) -> None:
    """A table of the keys."""
    signing = ring.current()

    def state(info: KeyInfo) -> str:
        return f"{info.state}, signs now" if info.fingerprint == signing else info.state

    columns = [
        Column("ROLE", lambda info: info.role),
        Column("FINGERPRINT", lambda info: info.fingerprint),
        Column("STATE", state),
        Column("CREATED", lambda info: info.created.date()),
        Column("EXPIRES", lambda info: info.expires.date() if info.expires else "never"),
        Column("OWNER", lambda info: info.user_id),
    ]
    click.echo(table(columns, ring.all()))


@keys.command("rotate")
@click.option("--life", default=SIGNING_LIFE, show_default=True, help="How long the new key is valid (90d, 12m, 3y).")
@click.option("--new-primary", is_flag=True, help="A new primary key too; the present one must be detached first.")
@PRIMARY_OPTION
def rotate(life: str, new_primary: bool, primary: Path | None) -> None:
    """Make a new signing key. What the old one signed stays installable until that is revoked."""
    ring = KeyRing.at(paths.keys())
    if new_primary:
        ring.rotate_primary()
    else:
        ring.rotate(primary=primary, life=life)
    click.echo(f"{ring.key.subkey} signs now\n")
    show(ring)
    click.echo("\nThe next `ckp dist build` signs with it, and its ckp-agent package brings hosts the new keyring.")


@keys.command("revoke")
@click.argument("fingerprint")
@click.option("--reason", type=click.Choice(list(REASONS)), default="retired", show_default=True)
@click.option("--yes", is_flag=True, help="Do not ask.")
@PRIMARY_OPTION
def revoke(fingerprint: str, reason: str, yes: bool, primary: Path | None) -> None:
    """Revoke a key for good: nothing that it signed is accepted any more, once hosts have the new keyring."""
    ring = KeyRing.at(paths.keys())
    if not yes:
        click.confirm(f"revoke {fingerprint}? This can't be undone", abort=True)
    info = ring.revoke(fingerprint, reason=reason, primary=primary)
    click.echo(f"{info.fingerprint} is {info.state}\n")
    show(ring)


@keys.command("detach")
@click.argument("file", type=click.Path(path_type=Path))
def detach(file: Path) -> None:
    """Move the secret primary key to FILE (0600): bring that to a safe place. Signing works without it."""
    KeyRing.at(paths.keys()).detach(file)
    click.echo(f"the primary key lies in {file} now, and no longer here; `rotate` and `revoke` want it by --primary")


@keys.command("export")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True), default="-")
@click.option("--armor/--binary", default=True, show_default=True, help="ASCII armour, or the binary keyring that gpgv and apt read.")
@click.option("--images", is_flag=True, help="The public key of images (PEM, for cosign) instead.")
@click.option("--debsig", is_flag=True, help="Into the folder FILE: policy and keyring for debsig-verify, as they lie below /.")
def export(file: Path, armor: bool, images: bool, debsig: bool) -> None:
    """Write the public keys, for those who verify."""
    ring = KeyRing.at(paths.keys())
    if debsig:
        for path, content in ring.debsig().items():
            atomic_write(file / path, content, mode=0o644)
        click.echo(f"{file}: debsig-verify's policy and keyring; copy them to /, or use debsig-verify --root {file}")
        return
    data = ring.key.image_public.read_bytes() if images else ring.export(armor=armor)
    if str(file) == "-":
        click.echo(data, nl=False)
    else:
        if file.exists() and file.read_bytes() != data:
            raise Conflict(f"{file} exists and holds something else", resolution="name another file, or remove it")
        atomic_write(file, data, mode=0o644)
        click.echo(f"{file}: the public keys of {ring.key.fingerprint}")


@keys.command("trust")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def trust(file: Path) -> None:
    """Trust the public keys in FILE too, or take over their revocations."""
    for fingerprint in KeyRing.at(paths.keys()).trust(file.read_bytes()):
        click.echo(f"trusted: {fingerprint}")
