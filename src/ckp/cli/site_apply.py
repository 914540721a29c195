"""`ckp site apply`: the site becomes what its file describes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import click

from ckp.catalog.load import Catalog, Profile
from ckp.catalog.models import Release
from ckp.cli.deliverables import Origins
from ckp.cli.distribution.release import PROFILE_OPTION
from ckp.cli.site import site_file
from ckp.cli.site_changes import (
    ARCHIVES_OPTION,
    CHECKING,
    FROM_REGISTRY_OPTION,
    IGNORED_OPTION,
    KEYRING_OPTION,
    LOOKING,
    REGISTRY_CA_OPTION,
    REGISTRY_CREDENTIALS_OPTION,
    changing,
    other_registry,
)
from ckp.cli.view.progress import planned
from ckp.distribution.carry.published import Source
from ckp.kits.steps import Steps
from ckp.site import apply as site_apply
from ckp.site import described
from ckp.site import releases as site_releases
from ckp.site.backup import timer
from ckp.site.backup.restore import refuse_unfinished
from ckp.site.check import clusters, of_spec
from ckp.site.check.rules import require_sound
from ckp.site.check.run import check
from ckp.site.hosts.sidebyside import each
from ckp.site.install import KUBECONFIG, Site
from ckp.site.inventory import SiteHost, SiteHosts
from ckp.site.plan.gate import require_possible
from ckp.site.plan.wanted import remember
from ckp.site.settings.read import require_signer
from ckp.site.spec.model import SiteSpec
from ckp.site.version import require_own


@click.command()
@site_file
@PROFILE_OPTION
@ARCHIVES_OPTION
@FROM_REGISTRY_OPTION
@REGISTRY_CA_OPTION
@REGISTRY_CREDENTIALS_OPTION
@KEYRING_OPTION
@IGNORED_OPTION
def apply(
    file: Path,
    profile: Profile,
    archives: tuple[Path, ...],
    address: str,
    registry_ca: Path | None,
    registry_credentials: Path | None,
    keyring: Path | None,
    ignored: tuple[str, ...],
) -> None:
    """Make the site as its file describes it. What is so already is left alone: after a break, the same command goes on.

    First it checks the hosts as `ckp site check` does, and what would change as `ckp site plan` does: what is refused there ends it before
    anything is changed.

    With --from-registry, or `releasesFrom` in the file, releases that no file holds come from that registry, verified by the keys that the site trusts;
    but for the one that the management cluster is of, which is built or comes from a file.
    """
    source = other_registry(address, registry_ca, registry_credentials)
    with changing(file) as (spec, hosts):
        catalog = Catalog()
        source = source or source_of(spec)
        management = site_releases.of_management(hosts.management, spec.releases) if source is not None else ""
        origins = Origins(profile, archives, keyring, registry=source, management=management)
        with planned("site apply", titles(origins, releases_of(catalog, spec), site_apply.titles(hosts))) as steps:
            inventory = bring_about(catalog, spec, hosts, origins, ignored, steps).inventory
    click.echo(
        f"""
The site {spec.metadata.name} is up.

  Compass      https://{inventory.network.compass}  (REST below /api/v1; this machine's ckp is logged in)
  hub          {inventory.network.hub}
  kubeconfig   {spec.management.kubeconfig or inventory.state / KUBECONFIG}  (of the management cluster)
  registry     {inventory.registry.address}

Try next:
  ckp site status -f {file}
  ckp host join-command --new-key   (the line for machines that are to become hosts)"""
    )


def releases_of(catalog: Catalog, spec: SiteSpec) -> list[Release]:
    """The releases that the site offers."""
    return [catalog.release(name) for name in spec.releases]


def source_of(spec: SiteSpec) -> Source | None:
    """The registry that the site's file names for releases; None if it names none."""
    found = spec.releases_from
    if found is None:
        return None
    address = found.registry if ":" in found.registry else f"{found.registry}:{described.HTTPS}"
    return Source(address, found.ca_file, found.credentials_file)


def titles(origins: Origins, wanted: Sequence[Release], applying: Sequence[str] = site_apply.TITLES) -> list[str]:
    """The steps of `bring_about` in their order, as far as they are known before files are read.

    Args:
        applying: those of `ckp.site.apply.apply`.
    """
    return [CHECKING, LOOKING, *origins.titles(wanted), *applying]


def refuse_host(host: SiteHost) -> None:
    """Refuse a management host that is being restored, or has not its address. Nothing is changed."""
    refuse_unfinished(host)
    described.require_address(host)


def bring_about(catalog: Catalog, spec: SiteSpec, hosts: SiteHosts, origins: Origins, ignored: Collection[str], steps: Steps) -> Site:
    """Make the site as its file describes it. Nothing else changes it meanwhile (`changing`).

    Args:
        ignored: checks whose errors are only shown.

    Raises:
        InvalidInput, Conflict: the check finds an error, or a change is refused; nothing was changed.
        CkpError: a step failed; running it again goes on.
    """
    wanted = releases_of(catalog, spec)
    with steps.step(CHECKING):
        require_sound([*clusters.check(spec), *check(of_spec.describe(spec, hosts.masters))], ignored, steps.say)
    with steps.step(LOOKING):
        inventory, host = described.inventory_for(spec, hosts, wanted, origins.keyring), hosts.management
        schedule = timer.of_spec(spec, inventory.state)
        timer.require_able(hosts, schedule)
        origins.refuse(wanted)
        if origins.builds(wanted):
            require_signer(inventory.settings)
        each(hosts.masters, refuse_host)
        for master in hosts.masters:
            steps.say(f"{master.name} ({master.address}) runs {inventory.os.os} {inventory.os.os_version}")
        require_own(host)
        require_possible(inventory, spec.releases, site_releases.of_management(host, spec.releases))
        choice = site_releases.choose(host, spec.releases)
        steps.say(f"releases: {', '.join(choice.names)}; the management cluster is of {choice.management}")
        for name in choice.leaving:
            steps.say(f"{name} will no longer be offered")
    dists, made_of = origins.take(catalog, wanted, inventory, choice.names, steps)
    rest = [dists[name] for name in choice.names if name != choice.management]
    site = Site(dists[choice.management], inventory, steps.say)
    site_apply.apply(site, steps, rest, schedule=schedule)
    remember(inventory.state, made_of)
    return site
