"""`ckp site release`: the releases that a site offers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import click

from ckp.catalog.load import Catalog, Profile
from ckp.catalog.models import Release
from ckp.cli.deliverables import Origins
from ckp.cli.distribution.release import PROFILE_OPTION
from ckp.cli.site import RELEASE, site_file
from ckp.cli.site_changes import (
    FROM_REGISTRY_OPTION,
    KEYRING_OPTION,
    REGISTRY_CA_OPTION,
    REGISTRY_CREDENTIALS_OPTION,
    RELEASE_FILE,
    changing,
    management,
    other_registry,
    registries_of,
)
from ckp.cli.view.output import Column, echo, output_option, show_data, table
from ckp.cli.view.progress import planned
from ckp.distribution.bundles import PREFIX
from ckp.distribution.registries.mirror import everything
from ckp.kits.errors import CkpError, Conflict, InvalidInput, NotFound
from ckp.site import described
from ckp.site import releases as site_releases
from ckp.site.inventory import SiteHost, SiteHosts
from ckp.site.publish import publish_to, replicate
from ckp.site.registries.existing import ExistingRegistry
from ckp.site.registries.gc import collect, finish
from ckp.site.registries.hosted import HostedRegistry
from ckp.site.releases import Listed, Offered
from ckp.site.settings.read import require_signer
from ckp.site.spec.edit import set_releases
from ckp.site.spec.model import SiteSpec

LOOKING = "Looking at the site"
FREEING = "Freeing the space of what nothing names"
FIRST_PUSHED = "kube-apiserver"
"""Images are pushed by name: what is before it is shared with other releases."""
ANOTHER_GIB = 3.0
"""Free space that the registry needs for a further release: what releases share is there already."""
_COLUMNS: tuple[Column[Listed], ...] = (
    Column("NAME", lambda item: item.name),
    Column("STATE", lambda item: item.state.value),
    Column("MANAGEMENT", lambda item: "yes" if item.management else ""),
    Column("CLUSTERS", lambda item: len(item.clusters)),
    Column("STAMP", lambda item: item.stamp, wide=True),
    Column("USED-BY", lambda item: item.clusters, wide=True),
)


@click.group()
def release() -> None:
    """The releases that a site offers."""


@release.command("list")
@site_file
@output_option
def list_releases(file: Path, output: str) -> None:
    """List the releases that a site offers, what uses them, and what its file says beyond that."""
    with management(file) as (spec, hosts):
        found = site_releases.listed(hosts.management, spec.releases)
    if output in ("json", "yaml"):
        show_data({"items": [{**asdict(item), "state": item.state.value, "clusters": list(item.clusters)} for item in found]}, output)
    else:
        echo(table(_COLUMNS, found, wide=output == "wide"))


@release.command()
@click.argument("name", type=RELEASE)
@site_file
@PROFILE_OPTION
@click.option("--from", "archive", type=RELEASE_FILE, default=None, help="Take the release from a file of `ckp dist export` instead of building it.")
@FROM_REGISTRY_OPTION
@REGISTRY_CA_OPTION
@REGISTRY_CREDENTIALS_OPTION
@KEYRING_OPTION
def add(
    name: str,
    file: Path,
    profile: Profile,
    archive: Path | None,
    address: str,
    registry_ca: Path | None,
    registry_credentials: Path | None,
    keyring: Path | None,
) -> None:
    """Offer a further release, and name it in the site's file.

    It is built here, or taken from a file or another registry, whose signatures are verified by the keys that the site trusts. It is offered once
    all of it is in the site's registry. What clusters run does not change. After a break, the same command goes on.
    """
    source = other_registry(address, registry_ca, registry_credentials)
    if source is not None and archive is not None:
        raise InvalidInput("--from and --from-registry name two places to take the release from", resolution="give one of them")
    with changing(file) as (spec, hosts):
        catalog, host = Catalog(), hosts.management
        wanted, origins = catalog.release(name), Origins(profile, [archive] if archive else [], keyring, registry=source)
        making = origins.titles([wanted])
        with planned("site release add", [LOOKING, *making, f"Filling the registry: {name}", f"Offering {name}"]) as steps:
            with steps.step(LOOKING):
                offered = require_offered(spec, host)
                charts = require_charts(offered, wanted) if source else ""
                registry, *more = serving_registries(spec, hosts, steps.say)
                if registry.client().digest(f"{PREFIX}/{FIRST_PUSHED}", wanted.stamp) is None:  # it is there already if a run before was killed
                    for each in (registry, *more):
                        if isinstance(each, HostedRegistry):
                            each.require_space(ANOTHER_GIB, what=name)
                inventory = described.inventory_for(spec, hosts, [wanted], keyring)
                if origins.builds([wanted]):
                    require_signer(inventory.settings)
            dists, _ = origins.take(catalog, [wanted], inventory, [name], steps)
            dist = dists[name]
            with steps.step(f"Filling the registry: {name}"):
                if set_releases(file, [*spec.releases, name]):
                    steps.say(f"{file} names {name} now")
                published = publish_to(registry, registry.client(), dist, inventory, steps.say)
                selection = everything(registry.client()) if more else []
                for each in more:
                    replicate(registry.client(), each.client(), selection, steps.say)
            with steps.step(f"Offering {name}"):
                installed = published.installed if source is None else published.installed.model_copy(update={"addons": charts})
                site_releases.write(host, require_offered(spec, host).with_releases(installed), inventory.state)
                site_releases.settle(host, steps.say)
    click.echo(f"\n{spec.metadata.name} offers {name}. Try next:\n  ckp cluster create NAME --version {name} --host-group GROUP")


@release.command()
@click.argument("name", metavar="NAME")
@site_file
def remove(name: str, file: Path) -> None:
    """Offer a release no longer, take it out of the site's file, and delete its content from the registry.

    Refused while a cluster or the management cluster uses it. What other releases share stays. After a break, the same command goes on;
    once the release is gone, only its space may be left, which `ckp site registry gc` frees.
    """
    offering, deleting = f"Taking {name} out of the offered releases", f"Deleting the content of {name} from the registry"
    with changing(file) as (spec, hosts), planned("site release remove", [LOOKING, offering, deleting, FREEING]) as steps:
        host = hosts.management
        with steps.step(LOOKING):
            offered = require_offered(spec, host)
            registries = serving_registries(spec, hosts, steps.say)
            rest = [other for other in spec.releases if other != name]
            if name not in {*offered.releases.releases, *offered.withdrawn, *spec.releases}:
                known = ", ".join(offered.releases.releases)
                raise NotFound(f"{spec.metadata.name} does not offer {name}, and {file} does not name it", resolution=f"name one of: {known}")
            if name in offered.releases.releases or name in spec.releases:
                site_releases.require_unused(host, [name], offered, "keep it")
            if not rest or not set(offered.releases.releases) - {name}:
                raise Conflict(f"{name} is the last release of {spec.metadata.name}, and nothing was changed", resolution="add another one before")
        state = described.state_folder(spec)
        with steps.step(offering):
            if set_releases(file, rest):
                steps.say(f"{file} does not name {name} any longer")
            if name not in offered.withdrawn:
                site_releases.write(host, offered.without([name]), state)
        with steps.step(deleting):
            try:
                contents = [registry if isinstance(registry, ExistingRegistry) else registry.client() for registry in registries]
                site_releases.finish_removal(host, contents, state, steps.say)
            except Conflict:
                if name in require_offered(spec, host).releases.releases:
                    set_releases(file, [*rest, name])  # it is offered again
                raise
        with steps.step(FREEING):
            for registry in registries:
                if isinstance(registry, HostedRegistry):  # another's collects its own
                    collect(registry, steps.say)
    click.echo(f"\n{spec.metadata.name} does not offer {name} any longer.")


def require_charts(offered: Offered, release: Release) -> str:
    """The image with the charts of addons that a release from another registry gets: the site's own, of a release with the same versions of them.

    No signed list names that image, since it is CKP's own and not a part of the release.

    Raises:
        Conflict: the site has no such release. Nothing was changed.
    """
    for other in reversed(offered.releases.releases.values()):
        if other.cni == release.built_cni:
            return other.addons
    wanted = ", ".join(f"{name} {version}" for name, version in release.built_cni.items())
    raise Conflict(
        f"no release of this site has the same addons as {release.name} ({wanted}), and a registry does not prove which charts are the release's",
        resolution="take it from a file (--from), or build it here",
    )


def require_offered(spec: SiteSpec, host: SiteHost) -> Offered:
    """What the site offers; Conflict if it was not set up yet."""
    offered = site_releases.read_offered(host)
    if offered is None:
        raise Conflict(
            f"{spec.metadata.name} is not set up yet, and nothing was changed",
            resolution=f"say in `releases` of {spec.file} which releases it is to offer, and run `ckp site apply -f {spec.file}`",
        )
    return offered


def serving_registries(spec: SiteSpec, hosts: SiteHosts, say: Callable[[str], None]) -> list[HostedRegistry | ExistingRegistry]:
    """The site's registry on each of its hosts, that of the host that is acted on first; all of them serve, after a collection that is under way.

    Raises:
        CkpError: one does not serve, or this machine has no password for them.
    """
    registries = registries_of(spec, hosts)
    again = f"run `ckp site apply -f {spec.file}`"
    for registry in registries:
        if isinstance(registry, HostedRegistry):
            if not registry.ca.exists():
                raise NotFound(
                    f"this machine has no CA of {registry.address}: the site was set up from another one", resolution=f"restore {registry.folder}, or {again}"
                )
            finish(registry, say)
        if silent := registry.silent():
            raise CkpError(f"the site's registry does not answer at {' and '.join(silent)}, and nothing was changed", resolution=again)
    return registries
