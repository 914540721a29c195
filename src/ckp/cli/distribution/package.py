"""`ckp dist package`: `ckp` itself, as people install it."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from ckp.catalog.load import Catalog
from ckp.cli.distribution.repository import repository_options
from ckp.cli.view.progress import planned
from ckp.clients.signing.openpgp import SigningKey
from ckp.clients.signing.sequoia import sequoia
from ckp.distribution.builder.schedule import build_all
from ckp.distribution.keys.signing import OWNER
from ckp.distribution.packages.command import build_wheel, environment, pack_command
from ckp.distribution.release import FORMATS
from ckp.distribution.repositories.publish import COMMAND, Repositories
from ckp.kits import paths
from ckp.kits.errors import InvalidInput

TOOL = "nfpm"
MAKING, BUILDING, PACKING = "Making the wheel and the Python environment", "Building nFPM from source", "Packing and signing"


@click.command("package")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), default=None, help="The folder to write the wheel, the deb and the rpm into.")
@click.option(
    "--repositories",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help=f"The folder of the apt and dnf repositories whose component `{COMMAND}` takes the deb and the rpm.",
)
@repository_options
def dist_package(output: Path | None, repositories: Path | None, url: str, valid_days: int | None) -> None:
    """Make the packages of `ckp` itself: a wheel, and a signed deb and rpm. What has not changed is not made again.

    It needs a checkout. The packages bring `ckp` without the extra `build`: they run sites, and make no releases.
    """
    if not output and not repositories:
        raise InvalidInput("there is no place for the packages", resolution="give --output, --repositories, or both")
    sequoia()
    writing, filling = f"Writing into {output}", f"Filling the package repositories in {repositories}"
    with planned("dist package", [MAKING, BUILDING, PACKING, *([writing] if output else []), *([filling] if repositories else [])]) as steps:
        with steps.step(MAKING):
            wheel = build_wheel()
            place = environment(wheel)
        with steps.step(BUILDING):
            catalog = Catalog()
            release = catalog.release(catalog.latest())
            built = build_all(catalog, [catalog.choose(release, TOOL, "release")], release.stamp, steps.say, steps)
        with steps.step(PACKING):
            key = SigningKey.ensure(paths.keys(), user_id=OWNER)
            packages = pack_command(place, built[TOOL].binary(TOOL), key, FORMATS)
            steps.say(f"{packages[0].name} {packages[0].version}, signed by {key.subkey}")
        if output:
            with steps.step(writing):
                output.mkdir(parents=True, exist_ok=True)
                for source, name in ((wheel, wheel.name), *((package.path, package.file_name) for package in packages)):
                    shutil.copyfile(source, output / name)
                    steps.say(name)
        if repositories:
            with steps.step(filling):
                Repositories(repositories, key, url=url, valid_days=valid_days).publish(packages, COMMAND, steps.say)
