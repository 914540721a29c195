"""`ckp dist sign`, `ckp dist mirror` and `ckp dist prune`: commands on the content of registries."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from ckp.catalog.load import Catalog
from ckp.cli.trust import trusted_image_key
from ckp.cli.view.output import echo
from ckp.clients.oci.registry import Registry
from ckp.clients.signing.cosign import TAG, sign_image
from ckp.clients.signing.openpgp import SigningKey
from ckp.distribution.bundles import PLATFORM_IMAGES, PREFIX
from ckp.distribution.registries.mirror import THREADS, belongs_to, everything, release_selection
from ckp.distribution.registries.mirror import mirror as copy_releases
from ckp.distribution.registries.prune import prune as remove_release
from ckp.distribution.registries.prune import release_and_others
from ckp.kits import paths
from ckp.kits.errors import InvalidInput, NotFound

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_credentials = click.option(
    "--credentials", type=_FILE, default=None, help="Users and passwords, in the format of docker's config.json, readable by its owner only."
)


def _ca(name: str = "--ca", whose: str = "the registry's") -> Callable[[Any], Any]:
    return click.option(name, type=_FILE, default=None, help=f"The CA of {whose} certificate; default: those that this system trusts.")


@contextmanager
def _open(address: str, ca: Path | None, credentials: Path | None) -> Iterator[Registry]:
    registry = Registry(address, ca, credentials=credentials)
    try:
        yield registry
    finally:
        registry.close()


@click.command("sign")
@click.argument("image")
@click.option("--key", type=_FILE, default=None, help="Private key, ECDSA P-256 in PEM (PKCS#8); default: this machine's own.")
@click.option(
    "--identity", default="", metavar="HOST/REPOSITORY", help="The name by which clients pull the repository, if it differs from the address given here."
)
@_ca()
@_credentials
def sign(image: str, key: Path | None, identity: str, ca: Path | None, credentials: Path | None) -> None:
    """Sign IMAGE (host:port/repository:tag) in cosign's format. Nothing changes if this key has signed it already."""
    match = re.fullmatch(r"([^/]+)/([^@]+):([^:/@]+)", image)
    if not match:
        raise InvalidInput(f"{image!r} does not name an image", resolution="write it as host:port/repository:tag")
    address, repository, tag = match.groups()
    secret = key or SigningKey(paths.keys()).image_key
    if not secret.exists():
        raise NotFound(f"there is no image key at {secret}", resolution="`ckp keys make` makes one, or give one with --key")
    if secret.stat().st_mode & 0o077:
        raise InvalidInput(f"{secret} is readable by others", resolution=f"chmod 600 {secret}, and consider replacing it (ckp keys rotate --images)")
    with _open(address, ca, credentials) as registry:
        digest = registry.get_manifest(repository, tag).digest
        signatures = sign_image(registry, repository, digest, secret.read_bytes(), {TAG: tag}, identity=identity)
    echo(f"{address}/{repository}@{digest} is signed for the tag {tag}; its signatures are in {signatures.digest}")


@click.command("mirror")
@click.argument("source")
@click.argument("target")
@click.option(
    "--release", "releases", multiple=True, metavar="NAME", help="Copy only this release: its bundles and the images that they name; may be repeated."
)
@click.option("--only", multiple=True, metavar="REPOSITORY[:TAG]", help="Copy this as well; without --release, only this. May be repeated.")
@click.option("--platform/--no-platform", default=True, show_default=True, help="With --release, also copy CKP's own images in all their versions.")
@click.option("--prefix", default=PREFIX, show_default=True, help="Without --release and --only, copy all repositories below this prefix.")
@click.option("--image-key", type=_FILE, default=None, help="Public keys (PEM) that images must be signed by; default: this machine's own.")
@click.option("--insecure-skip-signatures", is_flag=True, help="Copy without verifying the images' signatures.")
@click.option("--replace", is_flag=True, help="Replace tags of the target that name other images.")
@click.option("--threads", type=click.IntRange(1, 16), default=THREADS, show_default=True)
@_ca("--source-ca", "the source's")
@_ca("--target-ca", "the target's")
@_credentials
def mirror(
    source: str,
    target: str,
    releases: tuple[str, ...],
    only: tuple[str, ...],
    platform: bool,
    prefix: str,
    image_key: Path | None,
    insecure_skip_signatures: bool,
    replace: bool,
    threads: int,
    source_ca: Path | None,
    target_ca: Path | None,
    credentials: Path | None,
) -> None:
    """Copy releases from the registry SOURCE to TARGET (host:port each), with signatures, SBOMs and provenance; digests do not change.

    Nothing is copied unless every image is signed by a trusted key. What the target has is not sent again; an interrupted run can be repeated.
    """
    key = None if insecure_skip_signatures else trusted_image_key(image_key)
    catalog = Catalog()
    chosen = [catalog.release(name) for name in releases]
    with _open(source, source_ca, credentials) as origin, _open(target, target_ca, credentials) as destination:
        wanted = [item for release in chosen for item in release_selection(origin, release, image_key=key, prefix=prefix)]
        for name in only:
            wanted += _named(origin, name)
        for repository in [f"{prefix}/{image}" for image in PLATFORM_IMAGES if releases and platform]:
            wanted += [(repository, tag) for tag in origin.tags(repository) if belongs_to(tag) is None]
        if not releases and not only:
            wanted = everything(origin, prefix)
        done = copy_releases(origin, destination, wanted, echo, image_key=key, replace=replace, threads=threads)
    echo(str(done) + ("" if key else "; their signatures were not verified"))


def _named(registry: Registry, name: str) -> list[tuple[str, str]]:
    repository, _, tag = name.partition(":")
    if tag:
        return [(repository, tag)]
    found = [(repository, item) for item in registry.tags(repository) if belongs_to(item) is None]
    if not found:
        raise NotFound(f"{registry.address} has no repository {repository}, or it has no tags")
    return found


@click.command("prune")
@click.argument("address", metavar="REGISTRY")
@click.option("--release", "name", required=True, help="The release to remove.")
@click.option("--prefix", default=PREFIX, show_default=True, help="The prefix of the repositories.")
@click.option("--yes", is_flag=True, help="Remove; without it, the command only lists what it would remove.")
@_ca()
@_credentials
def prune(address: str, name: str, prefix: str, yes: bool, ca: Path | None, credentials: Path | None) -> None:
    """Remove a release from REGISTRY (host:port): its tags, images, signatures, SBOMs and provenance, except those that other releases or tags name.

    What other releases name is read from every bundle in the registry; if one can't be read, nothing is removed.
    """
    catalog = Catalog()
    known = {f"{prefix}/{target.repository}" for item in catalog.names() for target in catalog.release(item).bundles}
    with _open(address, ca, credentials) as registry:
        selection, keep = release_and_others(registry, name, known=known, prefix=prefix)
        done = remove_release(registry, selection, echo, keep=keep, yes=yes)
    if not done:
        echo(f"nothing to remove: other releases or tags name all of {name}")
    elif yes:
        echo(f"{len(done)} removed; the registry's garbage collection frees the space")
    else:
        echo(f"{len(done)} would be removed; nothing was. Add --yes to remove them")
