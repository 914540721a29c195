"""`ckp site apply|status|remove`: what changes a site, and how it is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import click

from ckp.catalog.load import Catalog, Profile
from ckp.catalog.models import Release
from ckp.cli.distribution.release import PROFILE_OPTION
from ckp.cli.site import site_file
from ckp.cli.up import make_release, verified_release
from ckp.cli.view.output import Column, echo, output_option, show_data, table
from ckp.cli.view.progress import planned
from ckp.distribution.carry.airgap import ImportedRelease
from ckp.kits.errors import InvalidInput
from ckp.kits.files import exclusive
from ckp.kits.steps import Steps
from ckp.site import apply as site_apply
from ckp.site import described
from ckp.site.install import KUBECONFIG, Site
from ckp.site.inventory import Inventory, SiteHost
from ckp.site.registry import REGISTRY_STATE, HostedRegistry
from ckp.site.spec.model import SiteSpec
from ckp.site.spec.read import read_site

LOOKING = "Looking at the management host"
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@contextmanager
def management(file: Path) -> Iterator[tuple[SiteSpec, SiteHost]]:
    """The site of a file with its management host, for as long as the block lasts. InvalidInput if this version can't apply it."""
    spec = read_site(file)
    described.require_applicable(spec)
    [host] = spec.management.hosts or ()
    with described.reached(host) as found:
        yield spec, found


@click.command()
@site_file
@PROFILE_OPTION
@click.option("--from", "archive", type=_FILE, default=None, help="Take the release from a file of `ckp dist export` instead of building it.")
@click.option("--keyring", type=_FILE, default=None, help="Trusted keys for --from; default: this machine's own.")
def apply(file: Path, profile: Profile, archive: Path | None, keyring: Path | None) -> None:
    """Make the site as its file describes it. What is so already is left alone: after a break, the same command goes on."""
    with management(file) as (spec, host), exclusive(described.state_folder(spec) / "apply.lock", what=f"another change of {spec.metadata.name}", timeout=5):
        catalog = Catalog()
        release = catalog.release(spec.releases[0])
        made = (
            [f"Reading and verifying {archive.name}"] if archive else [f"Building {release.stamp} from source", "Packing and signing packages", "Making images"]
        )
        with planned("site apply", [LOOKING, *made, *site_apply.TITLES]) as steps:
            with steps.step(LOOKING):
                system = described.operating_system(host, release)
                described.require_address(host)
                inventory = described.inventory(spec, host, system, described.worker_systems(spec, release))
                steps.say(f"{host.name} ({host.address}) runs {system.os} {system.os_version}")
            dist = take_release(archive, keyring, inventory, release, steps) if archive else make_release(catalog, release, inventory, steps, profile)
            site_apply.apply(Site(dist, inventory, steps.say), steps)
    click.echo(
        f"""
The site {spec.metadata.name} is up.

  Compass      https://{inventory.network.compass}  (REST below /api/v1; this machine's ckp is logged in)
  hub          {inventory.network.hub}
  kubeconfig   {inventory.state / KUBECONFIG}  (of the management cluster)
  registry     {inventory.registry.address}

Try next:
  ckp site status -f {file}
  ckp host --help"""
    )


@click.command()
@site_file
@output_option
def status(file: Path, output: str) -> None:
    """Show what of a site is as it should be. Exit code 1 if something is not."""
    with management(file) as (spec, host):
        parts = list(site_apply.status(host, _registry(spec, host)))
    if output not in ("json", "yaml"):
        echo(table([Column("PART", lambda part: part.name), Column("STATE", lambda part: part.state), Column("DETAIL", lambda part: part.detail)], parts))
    else:
        show_data([asdict(part) for part in parts], output)
    if any(part.state != "ok" for part in parts):
        sys.exit(1)


@click.command()
@site_file
@click.option("--confirm", metavar="NAME", default="", help="The site's name, to say that it is this one.")
@click.option("--force", is_flag=True, help="Also while it carries workload clusters: they are lost.")
@click.option("--keep-images", is_flag=True, help="Leave the registry's content on its host.")
def remove(file: Path, confirm: str, force: bool, keep_images: bool) -> None:
    """Take everything of a site from its management host, which is then as it was before."""
    with management(file) as (spec, host):
        name = spec.metadata.name
        if confirm != name:
            raise InvalidInput("removing a site has to be confirmed, and nothing was changed", resolution=f"--confirm {name}")
        state = described.state_folder(spec)
        with exclusive(state / "apply.lock", what=f"another change of {name}", timeout=5):
            site_apply.remove(host, _registry(spec, host), state, click.echo, force=force, keep_images=keep_images)


def _registry(spec: SiteSpec, host: SiteHost) -> HostedRegistry:
    """The site's registry, to be looked at or removed: no program is needed for that."""
    own = spec.registry.own
    assert own is not None
    state = described.state_folder(spec) / REGISTRY_STATE
    return HostedRegistry(host, Path("/nonexistent"), own.name, host.address, own.port, own.push_port, str(own.storage), state)


def take_release(archive: Path, keyring: Path | None, inventory: Inventory, release: Release, steps: Steps) -> ImportedRelease:
    """A release from a file.

    Raises:
        InvalidInput: it is another release, or as of `verified_release`.
        VerificationFailed: as of `verified_release`.
    """
    with steps.step(f"Reading and verifying {archive.name}"):
        found = verified_release(archive, keyring, inventory, "the site", steps)
        if found.release.name != release.name:
            raise InvalidInput(f"{archive} holds {found.release.name}, and the site offers {release.name}", resolution="name the other one in `releases`")
    return found
