"""`ckp site apply|status|remove`: what changes a site, and how it is."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path

import click

from ckp.catalog.load import Catalog, Profile
from ckp.catalog.models import Release
from ckp.cli.distribution.release import PROFILE_OPTION
from ckp.cli.site import site_file
from ckp.cli.up import made_titles, make_release, reading, verified_release
from ckp.cli.view.output import Column, echo, output_option, show_data, table
from ckp.cli.view.progress import planned
from ckp.clients.signing.openpgp import KEYRING
from ckp.distribution.carry.airgap import ImportedRelease
from ckp.distribution.release import Deliverable
from ckp.kits import paths
from ckp.kits.errors import InvalidInput
from ckp.kits.files import exclusive
from ckp.kits.steps import Steps
from ckp.site import apply as site_apply
from ckp.site import described
from ckp.site import releases as site_releases
from ckp.site import status as site_status
from ckp.site.backup.restore import refuse_unfinished
from ckp.site.check import of_spec
from ckp.site.check.rules import IGNORABLE, require_sound
from ckp.site.check.run import check
from ckp.site.install import KUBECONFIG, Site
from ckp.site.inventory import Inventory, SiteHosts, acted_on_first
from ckp.site.plan.gate import require_possible
from ckp.site.plan.wanted import remember, sources
from ckp.site.publish import registry_on
from ckp.site.registry import HostedRegistry
from ckp.site.settings.read import require_signer
from ckp.site.spec.model import SiteSpec
from ckp.site.spec.read import read_site

LOOKING = "Looking at the management hosts"
LOCK_SECONDS = 5.0
"""How long another change of the site is waited for."""
CHECKING = "Checking the management hosts and their network"
RELEASE_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
ARCHIVES_OPTION = click.option(
    "--from",
    "archives",
    type=RELEASE_FILE,
    multiple=True,
    help="Take a release from a file of `ckp dist export` instead of building it; may be repeated. Releases that no file holds are built.",
)
KEYRING_OPTION = click.option("--keyring", type=RELEASE_FILE, default=None, help="Trusted keys for --from; default: this machine's own.")
IGNORED_OPTION = click.option(
    "--ignore-finding",
    "ignored",
    type=click.Choice(IGNORABLE),
    multiple=True,
    help="Go on in spite of the errors of this check, which are only shown then; may be repeated. What the installer itself refuses, it still refuses.",
)


@contextmanager
def management(file: Path) -> Iterator[tuple[SiteSpec, SiteHosts]]:
    """The site of a file with its management hosts, for as long as the block lasts. InvalidInput if this version can't apply it."""
    spec = read_site(file)
    described.require_applicable(spec)
    with described.reached_hosts(spec) as hosts:
        yield spec, hosts


def only_change(spec: SiteSpec) -> AbstractContextManager[None]:
    """No other command changes the site for as long as it lasts. TimedOut if one does."""
    return exclusive(described.state_folder(spec) / "apply.lock", what=f"another change of {spec.metadata.name}", timeout=LOCK_SECONDS)


@contextmanager
def changing(file: Path) -> Iterator[tuple[SiteSpec, SiteHosts]]:
    """The site of a file with its management hosts, as `management`, while no other command changes it: the file is read when that is so."""
    spec = read_site(file)
    described.require_applicable(spec)
    with only_change(spec), management(file) as (found, hosts):
        yield found, hosts


@click.command()
@site_file
@PROFILE_OPTION
@ARCHIVES_OPTION
@KEYRING_OPTION
@IGNORED_OPTION
def apply(file: Path, profile: Profile, archives: tuple[Path, ...], keyring: Path | None, ignored: tuple[str, ...]) -> None:
    """Make the site as its file describes it. What is so already is left alone: after a break, the same command goes on.

    First it checks the hosts as `ckp site check` does, and what would change as `ckp site plan` does: what is refused there ends it before
    anything is changed.
    """
    with changing(file) as (spec, hosts):
        catalog = Catalog()
        wanted = [catalog.release(name) for name in spec.releases]
        with planned("site apply", [CHECKING, LOOKING, *titles_of(archives, wanted), *site_apply.TITLES]) as steps:
            with steps.step(CHECKING):
                require_sound(check(of_spec.describe(spec, hosts.masters)), ignored, steps.say)
            with steps.step(LOOKING):
                inventory, host = described.inventory_for(spec, hosts, wanted, keyring), hosts.management
                if len(archives) < len(wanted):
                    require_signer(inventory.settings)
                for each in hosts.masters:
                    refuse_unfinished(each)
                    described.require_address(each)
                    steps.say(f"{each.name} ({each.address}) runs {inventory.os.os} {inventory.os.os_version}")
                require_possible(inventory, spec.releases, site_releases.of_management(host, spec.releases))
                choice = site_releases.choose(host, spec.releases)
                steps.say(f"releases: {', '.join(choice.names)}; the management cluster is of {choice.management}")
                for name in choice.leaving:
                    steps.say(f"{name} will no longer be offered")
            dists, made_of = take_or_make(catalog, wanted, profile, archives, keyring, inventory, choice.names, steps)
            rest = [dists[name] for name in choice.names if name != choice.management]
            site_apply.apply(Site(dists[choice.management], inventory, steps.say), steps, rest)
            remember(inventory.state, made_of)
    click.echo(
        f"""
The site {spec.metadata.name} is up.

  Compass      https://{inventory.network.compass}  (REST below /api/v1; this machine's ckp is logged in)
  hub          {inventory.network.hub}
  kubeconfig   {inventory.state / KUBECONFIG}  (of the management cluster)
  registry     {inventory.registry.address}

Try next:
  ckp site status -f {file}
  ckp host join-command --new-key   (the line for machines that are to become hosts)"""
    )


@click.command()
@site_file
@output_option
def status(file: Path, output: str) -> None:
    """Show what of a site is as it should be. Exit code 1 if something is not."""
    with management(file) as (spec, hosts):
        parts = list(site_status.status(hosts, registries_of(spec, hosts)))
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
@click.option("--keep-images", is_flag=True, help="Leave the registry's content on its hosts.")
def remove(file: Path, confirm: str, force: bool, keep_images: bool) -> None:
    """Take everything of a site from its management hosts, which are then as they were before."""
    with management(file) as (spec, hosts):
        name = spec.metadata.name
        if confirm != name:
            raise InvalidInput("removing a site has to be confirmed, and nothing was changed", resolution=f"--confirm {name}")
        state = described.state_folder(spec)
        with only_change(spec):
            site_apply.remove(hosts, registries_of(spec, hosts), state, click.echo, force=force, keep_images=keep_images)


def registries_of(spec: SiteSpec, hosts: SiteHosts) -> list[HostedRegistry]:
    """The site's registry on each of its management hosts, that of the one that is acted on first, to be looked at or removed.

    No program is needed for that, and no file that the spec names.
    """
    virtual, state = str(spec.addresses.api.virtual_address or ""), described.state_folder(spec)
    return [registry_on(host, Path("/nonexistent"), described.registry_place(spec, host), hosts.masters, virtual, state) for host in acted_on_first(hosts)]


def titles_of(archives: Sequence[Path], wanted: Sequence[Release]) -> list[str]:
    """The steps of `take_or_make`, as far as they are known before the files are read."""
    return [*map(reading, archives), *(title for release in wanted[len(archives) :] for title in made_titles(release))]


def take_or_make(
    catalog: Catalog,
    wanted: Sequence[Release],
    profile: Profile,
    archives: Sequence[Path],
    keyring: Path | None,
    inventory: Inventory,
    offered: Sequence[str],
    steps: Steps,
) -> tuple[dict[str, Deliverable], dict[str, str]]:
    """All of the site's releases by name, from files or built here; and of what those were made that were built here (ckp.site.plan.wanted.remember).

    Args:
        wanted: all of them.
        offered: as of `take_releases`.

    Raises:
        InvalidInput, VerificationFailed: as `take_releases`.
        CkpError: a build failed.
    """
    made_of = sources(catalog, wanted, profile, inventory)  # as it is before the build: what is changed meanwhile counts as other sources
    dists: dict[str, Deliverable] = dict(take_releases(archives, keyring, inventory, offered, steps))
    built = [release for release in wanted if release.name not in dists]
    for release in built:
        dists[release.name] = make_release(catalog, release, inventory, steps, profile)
    return dists, {release.name: made_of[release.name] for release in built if release.name in made_of}


def take_releases(archives: Sequence[Path], keyring: Path | None, inventory: Inventory, offered: Sequence[str], steps: Steps) -> dict[str, ImportedRelease]:
    """Releases from files, by name.

    Args:
        offered: names that they may have, each once.

    Raises:
        InvalidInput: one is another release, two are the same, or as of `verified_release`.
        VerificationFailed: as of `verified_release`.
    """
    taken: dict[str, ImportedRelease] = {}
    for archive in archives:
        with steps.step(reading(archive)):
            with inventory.settings.trusted(keyring or paths.keys() / KEYRING) as trusted:
                found = verified_release(archive, trusted, inventory, "the site", steps)
            name = found.release.name
            if name not in offered:
                raise InvalidInput(f"{archive} holds {name}, and the site offers {', '.join(offered)}", resolution="name it in `releases`, or leave it out")
            if name in taken:
                raise InvalidInput(f"{archive} holds {name}, and so does a file before it", resolution="name one file for each release")
            taken[name] = found
    return taken
