"""`ckp dist build`, `publish`, `export` and `import`: make a release, publish it, and carry it to a site without a network."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from ckp.catalog.load import Catalog, Profile
from ckp.cli.deliverables import reading
from ckp.cli.distribution.release import PROFILE_OPTION, default_release
from ckp.cli.distribution.repository import repository_options
from ckp.cli.trust import trusted_keys
from ckp.cli.view.progress import planned
from ckp.clients.oci.registry import Registry
from ckp.distribution.bundles import PREFIX
from ckp.distribution.carry.airgap import ImportedRelease, export_release
from ckp.distribution.carry.repositories import take_repositories
from ckp.distribution.release import Deliverable, Distribution
from ckp.distribution.repositories.publish import Repositories
from ckp.kits import paths
from ckp.kits.errors import InvalidInput
from ckp.kits.steps import Steps
from ckp.lab import base
from ckp.site.lab import REGISTRY_ADDRESS

AGENT_COMPONENT = "agent"
MADE = ("Building components from source", "Packing and signing", "Making images", "Making bundles")
"""The steps of `made`."""

KEYRING_OPTION = click.option(
    "--keyring",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=None,
    help="OpenPGP keys to trust (binary); default: this machine's own signing keys.",
)
NAME_OPTION = click.option(
    "--registry-name",
    default=REGISTRY_ADDRESS,
    show_default=True,
    help="host:port of the registry that hosts pull from; it is written into the signed bundles.",
)


def made(name: str, profile: Profile, registry_name: str, steps: Steps, *, test_tools: bool = False) -> Distribution:
    """A release, made or found in the cache: the steps of MADE.

    Args:
        registry_name: `host:port` that hosts pull from.
        test_tools: build the tests' own tools as well.
    """
    catalog = Catalog()
    release = Distribution(catalog, catalog.release(name), profile, steps.say)
    building, packing, images, bundles = MADE
    with steps.step(building):
        release.build(steps, also=catalog.test_tools(name) if test_tools else ())
    with steps.step(packing):
        release.pack()
    with steps.step(images):
        release.make_images()
    with steps.step(bundles):
        release.make_bundles(registry_name)
        steps.say(f"{len(release.bundles)} bundles for the registry {registry_name}")
    return release


@click.command("build")
@click.argument("name", default=default_release)
@PROFILE_OPTION
@NAME_OPTION
@click.option(
    "--test-tools", is_flag=True, help="Build the programs that only the tests use as well (catalog/test-tools.toml), and those of the conformance suite."
)
def dist_build(name: str, profile: Profile, registry_name: str, test_tools: bool) -> None:
    """Build release NAME: programs, signed packages, images, bundles. What has not changed is not built again.

    Without NAME, the newest supported release is built.
    """
    with planned("dist build", MADE) as steps:
        release = made(name, profile, registry_name, steps, test_tools=test_tools)
    click.echo(f"\n{release.release.stamp}: {len(release.packages)} packages signed by {release.key.fingerprint}, {len(release.images)} images")


@click.command("publish")
@click.argument("name", default=default_release)
@PROFILE_OPTION
@NAME_OPTION
@click.option(
    "--from",
    "archive",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=None,
    help="Publish a file that `ckp dist export` wrote, instead of building the release.",
)
@KEYRING_OPTION
@click.option("--registry", default=None, help="host:port to push images and bundles to.")
@click.option(
    "--registry-ca",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=None,
    help="The CA of the registry's certificate; default: the system's.",
)
@click.option(
    "--credentials",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=None,
    help="Users and passwords, in the format of docker's config.json, readable by its owner only.",
)
@click.option(
    "--repositories",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="The folder of the apt and dnf repositories to fill; with --from, a folder below it with the release's name.",
)
@click.option("--replace", is_flag=True, help="Replace what exists under the same name: tags of other content, and with --from the release's repositories.")
@repository_options
def dist_publish(
    name: str,
    profile: Profile,
    registry_name: str,
    archive: Path | None,
    keyring: Path | None,
    registry: str | None,
    registry_ca: Path | None,
    credentials: Path | None,
    repositories: Path | None,
    replace: bool,
    url: str,
    valid_days: int | None,
) -> None:
    """Publish release NAME to a registry, to package repositories, or both. What exists is kept; an interrupted run can be repeated.

    Without NAME, the newest supported release is published.
    """
    if not registry and not repositories:
        raise InvalidInput("no target to publish to is given", resolution="give --registry, --repositories, or both")
    filling, pushing = f"Filling the package repositories in {repositories}", f"Pushing images and bundles to {registry}"
    titles = [*([reading(archive)] if archive else MADE), *([filling] if repositories else []), *([pushing] if registry else [])]
    with planned("dist publish", titles) as steps:
        release: Distribution | ImportedRelease
        if archive:
            with steps.step(reading(archive)):
                release = ImportedRelease.read(archive, trusted_keys(keyring), steps.say)
        else:
            release = made(name, profile, registry_name, steps)
        if repositories:
            with steps.step(filling):
                if isinstance(release, Distribution):
                    publish_packages(release, Repositories(repositories, release.key, url=url, valid_days=valid_days))
                else:
                    take_repositories(release, repositories, replace=replace)
        if registry:
            with steps.step(pushing):
                push(release, registry, registry_ca, credentials, replace=replace)


def publish_packages(release: Distribution, repositories: Repositories) -> None:
    """Publish a release's packages in the component of its minor version, and the agent's in a component of its own."""
    repositories.publish(release.packages, component(release.release.name), release.say)
    repositories.publish(release.agents, AGENT_COMPONENT, release.say)


def component(release: str) -> str:
    """The component of the package repositories that a release belongs to: its minor version, such as v1.35."""
    return release.rpartition(".")[0]


def push(release: Deliverable, address: str, ca: Path | None, credentials: Path | None, *, replace: bool = False) -> None:
    """Push a release to a registry, and print the reference of each bundle."""
    client = Registry(address, ca, credentials=credentials)
    try:
        digests = release.push(client, address, ca, credentials, replace=replace)
    finally:
        client.close()
    for target in release.targets:
        click.echo(f"{address}/{PREFIX}/{target.repository}:{release.release.stamp}@{digests[target.repository]}")


@click.command("export")
@click.argument("name")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@PROFILE_OPTION
@NAME_OPTION
@click.option("--lab/--no-lab", default=True, show_default=True, help="Include the lab hosts' root file system, for `ckp up --from`.")
def dist_export(name: str, file: Path, profile: Profile, registry_name: str, lab: bool) -> None:
    """Write release NAME into FILE: one signed file with everything that a site without a network needs."""
    filling, writing = "Filling package repositories", f"Writing {file}"
    with planned("dist export", [*MADE, filling, writing]) as steps:
        release = made(name, profile, registry_name, steps)
        with tempfile.TemporaryDirectory(dir=paths.cache(), prefix=".repositories-") as folder:
            root = Path(folder) / "repositories"
            with steps.step(filling):
                publish_packages(release, Repositories(root, release.key))
            with steps.step(writing):
                export_release(release, root, base.ensure(steps.say) if lab else None, file, registry_name, steps.say)
    click.echo(f"\n{file}: {release.release.stamp}, {file.stat().st_size >> 20} MiB, signed by {release.key.fingerprint}")


@click.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@KEYRING_OPTION
def dist_import(file: Path, keyring: Path | None) -> None:
    """Verify FILE and unpack it into the cache, for `ckp up --from` and `ckp dist publish --from`."""
    with planned("dist import", [reading(file)]) as steps, steps.step(reading(file)):
        found = ImportedRelease.read(file, trusted_keys(keyring), steps.say)
    click.echo(f"\n{found.release.stamp} in {found.folder}\n  package repositories  {found.repositories}")
    click.echo(f"  next                  ckp up --from {file}, or ckp dist publish --from {file} --registry HOST:PORT")
