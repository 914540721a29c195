"""`ckp release` and `ckp dist`: what there is, and making it."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from ckp.agent import verify
from ckp.agent.kit import AgentError
from ckp.catalog.load import Catalog, Profile
from ckp.dist.release import Distribution
from ckp.kits import paths
from ckp.kits.errors import InvalidInput, VerificationFailed
from ckp.kits.steps import Steps

DEFAULT_RELEASE = "v1.35.1"


@click.group()
def release() -> None:
    """The releases that CKP can build."""


@release.command("list")
def release_list() -> None:
    """List the releases of the catalog."""
    catalog = Catalog()
    click.echo(f"{'NAME':<10} {'PACKAGES':<14} {'ETCD':<9} {'COREDNS':<9} {'CONTAINERD':<11} STATUS")
    for name in catalog.names():
        item = catalog.release(name)
        pins = item.pins
        click.echo(f"{name:<10} {item.package_version:<14} {pins['etcd']:<9} {pins['coredns']:<9} {pins['containerd']:<11} {item.status}")


@release.command("show")
@click.argument("name")
def release_show(name: str) -> None:
    """Show one release: each pin, and what stands in for it in the profile `lab`."""
    item = Catalog().release(name)
    click.echo(f"{item.name}  {item.status}\n")
    click.echo(f"{'COMPONENT':<14} {'PIN':<10} STAND-IN (profile lab)")
    for component, version in item.pins.items():
        stand_in = item.stand_ins.get(component)
        click.echo(f"{component:<14} {version:<10} {f'{stand_in.component} {stand_in.version}' if stand_in else ''}".rstrip())


@click.group()
def dist() -> None:
    """Build and verify the distribution."""


@dist.command("build")
@click.argument("name", default=DEFAULT_RELEASE)
@click.option(
    "--profile", type=click.Choice(list(get_args(Profile))), default="release", show_default=True, help="`lab` may use the release's named stand-ins."
)
def dist_build(name: str, profile: Profile) -> None:
    """Build a release: programs, signed packages, images. What has not changed is not built again."""
    steps = Steps(3)
    catalog = Catalog()
    made = Distribution(catalog, catalog.release(name), profile, steps.say)
    with steps.step("Building components from source"):
        made.build()
    with steps.step("Packing and signing"):
        made.pack()
    with steps.step("Making images"):
        made.make_images()
    click.echo(f"\n{made.release.stamp}: {len(made.packages)} packages signed by {made.key.fingerprint}, {len(made.images)} images")


@dist.command("verify")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--keyring", type=click.Path(exists=True, path_type=Path), default=None, help="Trusted keys; default: this machine's own signing key.")
@click.option("--release", "wanted", default=None, help="The release that a bundle must be of.")
def dist_verify(path: Path, keyring: Path | None, wanted: str | None) -> None:
    """Verify a package, or a bundle's folder: signature, maintainer, digests. Anything wrong ends with code 3."""
    ring = keyring or paths.keys() / "trusted.gpg"
    if not ring.exists():
        raise InvalidInput(f"there is no keyring at {ring}", resolution="name one with --keyring")
    try:
        if path.is_dir():
            manifest = verify.verify_bundle(str(path), str(ring), wanted)
            click.echo(f"{path}: bundle of {manifest.release} is good, {len(manifest.packages)} packages")
        else:
            package = verify.verify_package(str(path), str(ring))
            click.echo(f"{path}: {package.name} {package.version} is good")
    except AgentError as error:
        raise VerificationFailed(error.brief, details=error.details, resolution=error.resolution) from error
