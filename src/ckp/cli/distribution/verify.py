"""`ckp dist verify`: checks signatures and content of packages, bundles, repositories and images."""

from __future__ import annotations

from pathlib import Path

import click

from ckp.cli.trust import trusted_image_key, trusted_keys
from ckp.cli.view.output import echo
from ckp.clients.oci.registry import Registry
from ckp.distribution.registries.verification import Reference, against_catalog, verify_reference
from ckp.hostkit.errors import VerificationFailed as Refused
from ckp.kits.errors import VerificationFailed
from ckp.kits.text import printable
from ckp.verify.path import verify_path

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("verify")
@click.argument("targets", nargs=-1, required=True, metavar="PATH|IMAGE...")
@click.option("--keyring", type=_FILE, default=None, help="Trusted OpenPGP keys (binary); default: this machine's own.")
@click.option("--release", default=None, metavar="NAME", help="The release that bundles must belong to (v1.35.1).")
@click.option("--image-key", type=_FILE, default=None, help="Trusted image keys (PEM); default: this machine's own.")
@click.option("--registry-ca", type=_FILE, default=None, help="The CA of the registry's certificate; default: those that this system trusts.")
@click.option("--credentials", type=_FILE, default=None, help="Users and passwords, in the format of docker's config.json, readable by its owner only.")
def verify(
    targets: tuple[str, ...], keyring: Path | None, release: str | None, image_key: Path | None, registry_ca: Path | None, credentials: Path | None
) -> None:
    """Verify packages (.deb, .rpm), folders and images.

    A folder may be a bundle, an apt or dnf repository, the root of both, or a plain folder of packages. An image is host:port/repository:tag,
    with or without @digest; a bundle's content is verified too. The packages of a bundle must have the versions that its release's file in
    the catalog names, if the catalog has it. All targets are checked; exit code 3 if one of them fails.
    """
    ring = trusted_keys(keyring)
    refused: list[str] = []
    for target in targets:
        try:
            if Path(target).exists():
                lines = verify_path(target, str(ring), release, against_catalog)
            else:
                reference = Reference.parse(target)
                pem = trusted_image_key(image_key)
                registry = Registry(reference.address, registry_ca, credentials=credentials)
                try:
                    lines = verify_reference(reference, registry, pem, ring, release)
                finally:
                    registry.close()
        except (Refused, VerificationFailed) as error:
            refused.append(printable(target))
            echo(f"{printable(target)}: REFUSED\n{error.render()}", err=True)
            continue
        echo(f"{printable(target)}: good\n" + "\n".join(f"  {printable(line)}" for line in lines))
    if refused:
        raise VerificationFailed(
            f"{len(refused)} of {len(targets)} failed verification",
            details="\n".join(refused),
            resolution="do not use what was refused; see the reasons above",
        )
