"""`ckp site status|remove`, and what commands that change a site have in common."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import click

from ckp.cli.site import site_file
from ckp.cli.view.output import Column, echo, output_option, show_data, table
from ckp.distribution.carry.published import Source
from ckp.kits.errors import InvalidInput
from ckp.kits.files import exclusive
from ckp.site import apply as site_apply
from ckp.site import described
from ckp.site import status as site_status
from ckp.site.backup import timer
from ckp.site.backup.target import target_of
from ckp.site.check.rules import IGNORABLE
from ckp.site.inventory import SiteHosts, acted_on_first
from ckp.site.publish import registry_on
from ckp.site.registries import existing
from ckp.site.registries.existing import ExistingRegistry
from ckp.site.registries.hosted import REGISTRY_STATE, HostedRegistry
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
FROM_REGISTRY_OPTION = click.option(
    "--from-registry", "address", metavar="HOST:PORT", default="", help="Take releases that no file holds from a registry that they were published to."
)
REGISTRY_CA_OPTION = click.option(
    "--registry-ca", type=RELEASE_FILE, default=None, help="The CA of that registry's certificate; default: those that this system trusts."
)
REGISTRY_CREDENTIALS_OPTION = click.option(
    "--registry-credentials",
    type=RELEASE_FILE,
    default=None,
    help="Users and passwords for that registry, in the format of docker's config.json, readable by its owner only.",
)
KEYRING_OPTION = click.option("--keyring", type=RELEASE_FILE, default=None, help="Trusted keys for --from; default: this machine's own.")
IGNORED_OPTION = click.option(
    "--ignore-finding",
    "ignored",
    type=click.Choice(IGNORABLE),
    multiple=True,
    help="Go on in spite of the errors of this check, which are only shown then; may be repeated. What the installer itself refuses, it still refuses.",
)


def other_registry(address: str, ca: Path | None, credentials: Path | None) -> Source | None:
    """The registry that releases are taken from; None if no option names one. InvalidInput if the options do not fit together."""
    if not address:
        if ca or credentials:
            raise InvalidInput("--registry-ca and --registry-credentials are for --from-registry", resolution="name the registry with --from-registry")
        return None
    return Source(address, ca, credentials)


@contextmanager
def management(file: Path) -> Iterator[tuple[SiteSpec, SiteHosts]]:
    """The site of a file with its management hosts, for as long as the block lasts."""
    spec = read_site(file)
    with described.reached_hosts(spec) as hosts:
        yield spec, hosts


def only_change(spec: SiteSpec) -> AbstractContextManager[None]:
    """No other command changes the site for as long as it lasts. TimedOut if one does."""
    return exclusive(described.state_folder(spec) / "apply.lock", what=f"another change of {spec.metadata.name}", timeout=LOCK_SECONDS)


@contextmanager
def changing(file: Path) -> Iterator[tuple[SiteSpec, SiteHosts]]:
    """The site of a file with its management hosts, as `management`, while no other command changes it: the file is read when that is so."""
    spec = read_site(file)
    with only_change(spec), management(file) as (found, hosts):
        yield found, hosts


@click.command()
@site_file
@output_option
def status(file: Path, output: str) -> None:
    """Show what of a site is as it should be. Exit code 1 if something is not."""
    with management(file) as (spec, hosts):
        parts = [*site_status.status(hosts, registries_of(spec, hosts)), site_status.version_of(hosts.management)]
        if spec.backup is not None:
            try:
                with target_of(spec, hosts.management) as target:
                    parts.append(site_status.backups(target, spec.backup.every, datetime.now(UTC)))
                parts += site_status.timers(hosts, timer.of_spec(spec, described.state_folder(spec)))
            except InvalidInput as error:  # of a file that the site names: the other parts are shown all the same
                parts.append(site_status.Part(site_status.BACKUPS, "unknown", error.brief))
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
            folder = described.storage_of(spec).etcd_path
            site_apply.remove(hosts, registries_of(spec, hosts), state, click.echo, force=force, keep_images=keep_images, etcd_path=folder, name=name)


def registries_of(spec: SiteSpec, hosts: SiteHosts) -> list[HostedRegistry | ExistingRegistry]:
    """The site's registry on each of its management hosts, that of the one that is acted on first, to be looked at or removed; or the existing one.

    No program is needed for that, and of the files that the spec names only those about an existing registry.
    """
    if (outside := existing.of_spec(spec)) is not None:
        return [ExistingRegistry(outside, described.state_folder(spec) / REGISTRY_STATE)]
    virtual, state = str(spec.addresses.api.virtual_address or ""), described.state_folder(spec)
    return [registry_on(host, Path("/nonexistent"), described.registry_place(spec, host), hosts.masters, virtual, state) for host in acted_on_first(hosts)]
