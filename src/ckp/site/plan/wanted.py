"""What is known of a site's release before anything is built: from the catalog, the cache, a file, and what this machine remembers of the last applying."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ckp.catalog.load import Catalog, Profile
from ckp.catalog.models import Release
from ckp.clients.signing.openpgp import KEYRING
from ckp.distribution.builder.component import build_component, build_key, is_built
from ckp.distribution.carry.airgap import ImportedRelease
from ckp.distribution.management import Management, as_list
from ckp.distribution.packages.agent import agent_version
from ckp.kits import paths
from ckp.kits.errors import CkpError, NotFound
from ckp.kits.files import atomic_write, sha256_bytes, sha256_file
from ckp.site.clusters.brought import labelled
from ckp.site.clusters.existing import ExistingCluster
from ckp.site.install import APPLIED, CKP_GROUP, Site
from ckp.site.inventory import Inventory
from ckp.site.plan.model import Making, Wanted
from ckp.site.publish import Published, Withdrawn, registry_server

SOURCES = "sources"
"""The file below APPLIED with a digest for each release of what it was made of that was built and applied last."""


def built_here(
    catalog: Catalog, releases: Sequence[Release], management: str, profile: Profile, inventory: Inventory, dists: Mapping[str, ImportedRelease] | None = None
) -> Wanted:
    """What is known of releases of which at least one is, or would be, built on this machine. Nothing is built.

    Args:
        releases: all that the site offers.
        management: the release that the management cluster has or gets.
        dists: those that come from files, by name.
    """
    taken = dists or {}
    keyring, last = paths.keys() / KEYRING, _remembered(inventory.state)
    now = sources(catalog, [release for release in releases if release.name not in taken], profile, inventory)
    making = {name: Making(built=True) for name in taken}
    for release in releases:
        if release.name not in taken:
            built = all(is_built(catalog, catalog.choose(release, role, profile), release.stamp) for role in _roles(release))
            digest, before = now.get(release.name), last.get(release.name)
            making[release.name] = Making(digest == before if digest and before else None, built)
    if management in taken:
        agent = taken[management].agent(inventory.os.format).version
    else:
        agent = agent_version(keyring) if keyring.exists() else ""
    return Wanted(inventory, [release.name for release in releases], management, agent=agent, groups=foundation(inventory), making=making)


def from_files(dists: Mapping[str, ImportedRelease], management: str, inventory: Inventory, withdrawn: Withdrawn | None = None) -> Wanted:
    """What releases from files hold, to the last byte; of the group `ckp` only where the registry answers, which knows the older host tools.

    Args:
        dists: all that the site offers, by name.
        management: the release that the management cluster has or gets.
        withdrawn: releases whose removal is not finished, as of `ckp.site.releases.withdrawing`.
    """
    main = dists[management]
    server = registry_server(main, inventory)
    published = {name: Published(dist, inventory, server, dist.about["digests"]) for name, dist in dists.items()}
    others = [each for name, each in published.items() if name != management]
    groups: dict[str, str] = {}
    for name, render in Site(main, inventory, lambda _line: None).groups(published[management], others, withdrawn).items():
        try:
            groups[name] = as_list(render())
        except (CkpError, OSError):  # there is no registry yet, or it does not answer
            if name != CKP_GROUP:
                raise
    return Wanted(
        inventory, list(dists), management, agent=main.agent(inventory.os.format).version, groups=groups, making={name: Making(built=True) for name in dists}
    )


def foundation(inventory: Inventory) -> dict[str, str]:
    """The group that is the same for all releases."""
    objects = Management({}, "", {}).foundation()
    owners = isinstance(inventory.hosts.management, ExistingCluster)
    return {"foundation": as_list(labelled(objects, inventory.name) if owners else objects)}


def registry_program(catalog: Catalog, release: Release, profile: Profile) -> Path:
    """The program that the site's registry would get; a path where nothing is if it is not in the cache."""
    chosen = catalog.choose(release, "distribution", profile)
    if not is_built(catalog, chosen, release.stamp):
        return Path("/nonexistent")
    return build_component(catalog, chosen, release.stamp, lambda _line: None).binary("registry")


# -- of what it is made


def sources(catalog: Catalog, releases: Sequence[Release], profile: Profile, inventory: Inventory) -> dict[str, str]:
    """For each release a digest of all that decides what building it here gives; none where that can't be said (no signing key yet, no C toolchain).

    Equal sources give equal images: another digest does not mean other images, and the same one means the same.
    """
    keyring = paths.keys() / KEYRING
    if not keyring.exists():
        return {}
    common = [sha256_file(keyring), inventory.registry.address, inventory.os.model_dump_json(), *_own_files()]
    found = {}
    for release in releases:
        parts = [*common, release.model_dump_json()]
        try:
            for role in _roles(release):
                chosen = catalog.choose(release, role, profile)
                parts.append(f"{role} {build_key(catalog, chosen.source, release.stamp)} {chosen.stands_in_for}")
        except NotFound:
            continue
        found[release.name] = sha256_bytes("\n".join(parts).encode())
    return found


def _roles(release: Release) -> list[str]:
    return [*release.tools, *release.pins]


def _own_files() -> list[str]:
    """CKP's own code, recipes and manifests: the platform's image, packages and groups are made of them."""
    roots = [paths.source(), *(paths.data(name) for name in ("catalog", "deploy", "packaging", "requirements"))]
    found = [(root, path) for root in roots for path in sorted(root.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    return [f"{root.name}/{path.relative_to(root)} {sha256_file(path)}" for root, path in found]


def remember(state: Path, digests: Mapping[str, str]) -> None:
    """Keep the digests of what was built and applied, by release; one that came from a file has none."""
    place = state / APPLIED / SOURCES
    if digests:
        atomic_write(place, json.dumps(dict(digests), sort_keys=True))
    else:
        place.unlink(missing_ok=True)


def _remembered(state: Path) -> dict[str, str]:
    try:
        found = json.loads((state / APPLIED / SOURCES).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
