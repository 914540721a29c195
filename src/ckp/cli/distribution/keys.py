"""`ckp keys`: the keys that sign packages, repositories, bundles and images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import click

from ckp.cli.view.output import Column, table
from ckp.clients.signing.openpgp import SIGNING_LIFE, KeyInfo
from ckp.distribution.keys.images import ImageKeyInfo, ImageKeys
from ckp.distribution.keys.signing import OWNER, REASONS, KeyRing, debsig_paths
from ckp.kits import paths
from ckp.kits.errors import Conflict, InvalidInput
from ckp.kits.files import atomic_write

F = TypeVar("F", bound=Callable[..., Any])
PRIMARY_OPTION = click.option(
    "--primary", type=click.Path(path_type=Path), default=None, help="The file with the secret primary key, if it was detached (ckp keys detach)."
)


def _images(help: str) -> Callable[[F], F]:
    return click.option("--images", is_flag=True, help=help)


@click.group()
def keys() -> None:
    """Make, rotate, revoke and export signing keys."""


@keys.command("make")
@click.option("--user-id", default=OWNER, show_default=True, help="The owner of the keys: Name <mail>.")
def make(user_id: str) -> None:
    """Make a primary key, a signing key and an image key, in a folder with mode 0700 below your home folder."""
    ring = KeyRing.make(paths.keys(), user_id)
    click.echo(f"made {ring.key.fingerprint} in {ring.key.folder}\n")
    show(ring)
    click.echo()
    show_images(ImageKeys(ring.key))
    click.echo("\nMove the primary key to another medium: ckp keys detach /media/…/primary.pgp")


@keys.command("list")
@_images("List only the image keys.")
def list_keys(images: bool) -> None:
    """List the keys that are trusted on this machine, and show which of them signs."""
    ring = KeyRing.at(paths.keys())
    if not images:
        show(ring)
        click.echo()
    show_images(ImageKeys(ring.key))


def show_images(images: ImageKeys) -> None:
    """Print a table of the image keys."""
    signing = images.current()

    def state(info: ImageKeyInfo) -> str:
        return f"{info.state} ({info.reason})" if info.reason else f"{info.state}, signs now" if info.fingerprint == signing else info.state

    columns = [Column("ROLE", lambda info: "image"), Column("FINGERPRINT", lambda info: info.fingerprint), Column("STATE", state)]
    click.echo(table(columns, images.all()))


def show(ring: KeyRing) -> None:
    """Print a table of the OpenPGP keys."""
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
@click.option("--life", default=None, help=f"How long the new key is valid (90d, 12m, 3y); default: {SIGNING_LIFE}.")
@click.option("--new-primary", is_flag=True, help="Make a new primary key too; the current one must be detached first.")
@_images("Make a new image key instead.")
@PRIMARY_OPTION
def rotate(life: str | None, new_primary: bool, images: bool, primary: Path | None) -> None:
    """Make a new signing key. What the old key signed stays valid until the old key is revoked."""
    ring = KeyRing.at(paths.keys())
    if images:
        _only_openpgp({"--life": life, "--new-primary": new_primary, "--primary": primary})
        click.echo(f"{ImageKeys(ring.key).rotate()} signs now\n")
        show_images(ImageKeys(ring.key))
        click.echo(
            "\nGive the public keys (ckp keys export --images) to those who verify images before the next `ckp dist publish`, which signs with the new key."
        )
        return
    if new_primary:
        ring.rotate_primary()
    else:
        ring.rotate(primary=primary, life=life or SIGNING_LIFE)
    click.echo(f"{ring.key.subkey} signs now\n")
    show(ring)
    click.echo("\nThe next `ckp dist build` signs with it, and its ckp-agent package brings the new keyring to hosts.")


def _only_openpgp(options: Mapping[str, object]) -> None:
    for name, value in options.items():
        if value:
            raise InvalidInput(f"{name} does not apply to image keys", resolution="leave it out, or leave out --images")


@keys.command("revoke")
@click.argument("fingerprint")
@click.option("--reason", type=click.Choice(list(REASONS)), default="retired", show_default=True)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@_images("Revoke an image key.")
@PRIMARY_OPTION
def revoke(fingerprint: str, reason: str, yes: bool, images: bool, primary: Path | None) -> None:
    """Revoke the key FINGERPRINT permanently: what it signed is rejected as soon as verifiers have the new public keys."""
    ring = KeyRing.at(paths.keys())
    if images:
        _only_openpgp({"--primary": primary})
    if not yes:
        click.confirm(f"revoke {fingerprint}? This can't be undone", abort=True)
    if images:
        done = ImageKeys(ring.key).revoke(fingerprint, reason=reason)
        click.echo(f"{done.fingerprint} is {done.state}\n")
        show_images(ImageKeys(ring.key))
        click.echo(
            "\nImages that only this key signed are rejected until they are published again; verifiers need the new public keys (ckp keys export --images)."
        )
        return
    info = ring.revoke(fingerprint, reason=reason, primary=primary)
    click.echo(f"{info.fingerprint} is {info.state}\n")
    show(ring)


@keys.command("detach")
@click.argument("file", type=click.Path(path_type=Path))
def detach(file: Path) -> None:
    """Move the secret primary key to FILE (mode 0600), to be kept in a safe place. Signing works without it."""
    KeyRing.at(paths.keys()).detach(file)
    click.echo(f"moved the primary key to {file}; give it to `ckp keys rotate` and `ckp keys revoke` with --primary")


@keys.command("export")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True), default="-")
@click.option("--armor/--binary", default=True, show_default=True, help="ASCII armour, or the binary keyring that gpgv and apt read.")
@_images("Write the trusted image public keys instead (PEM, the newest first).")
@click.option("--debsig", is_flag=True, help="Write policies and keyrings for debsig-verify into the folder FILE, with the paths that they have below /.")
def export(file: Path, armor: bool, images: bool, debsig: bool) -> None:
    """Write the public keys to FILE (default: standard output), for those who verify."""
    ring = KeyRing.at(paths.keys())
    if debsig:
        _export_debsig(ring, file)
        return
    data = ring.key.image_public.read_bytes() if images else ring.export(armor=armor)
    if str(file) == "-":
        click.echo(data, nl=False)
    else:
        if file.exists() and file.read_bytes() != data:
            raise Conflict(f"{file} exists with other content", resolution="give another file, or remove it")
        atomic_write(file, data, mode=0o644)
        click.echo(f"{file}: the public keys of {ring.key.fingerprint}")


def _export_debsig(ring: KeyRing, folder: Path) -> None:
    """Write what debsig-verify needs, and remove what an earlier export wrote for keys that are no longer valid."""
    files, live = ring.debsig(), ring.live()
    for info in ring.all():
        if info.fingerprint not in live:
            for path in debsig_paths(info.fingerprint):
                (folder / path).unlink(missing_ok=True)
                with suppress(OSError):  # it does not exist, or holds files of another origin
                    (folder / path).parent.rmdir()
    for path, content in files.items():
        atomic_write(folder / path, content, mode=0o644)
    for fingerprint in live:
        written = debsig_paths(fingerprint)[0] in files
        click.echo(f"{fingerprint}: policy and keyring" if written else f"not {fingerprint}: its secret key is not here, and debsig-verify knows no subkeys")
    click.echo(f"{folder}: for debsig-verify; copy it to /, or use debsig-verify --root {folder}")


@keys.command("trust")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def trust(file: Path) -> None:
    """Trust the public keys in FILE in addition, and import their revocations."""
    for fingerprint in KeyRing.at(paths.keys()).trust(file.read_bytes()):
        click.echo(f"trusted: {fingerprint}")
