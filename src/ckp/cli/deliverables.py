"""Releases that a command works with: built on this machine, or read from files of `ckp dist export`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ckp.catalog.load import Catalog, Profile
from ckp.catalog.models import BundleTarget, Release
from ckp.cli.trust import trusted_keys
from ckp.clients.signing.openpgp import KEYRING
from ckp.distribution.carry.airgap import ImportedRelease
from ckp.distribution.carry.published import PublishedRelease, Source
from ckp.distribution.release import Deliverable, Distribution
from ckp.kits import paths
from ckp.kits.errors import Conflict, InvalidInput
from ckp.kits.steps import Steps
from ckp.site.inventory import Inventory
from ckp.site.plan.wanted import sources


@dataclass(frozen=True)
class Origins:
    """Where a site's releases come from.

    Args:
        profile: what is built here is of it.
        archives: files of `ckp dist export`; releases that none of them holds are built.
        keyring: trusted keys for files and registry; None: this machine's own.
        read: releases that were read and verified from files already.
        registry: has the releases that no file holds, but for that of the management cluster.
        management: the release that the management cluster has or gets, which no registry brings: it needs programs and packages. Empty: none of
            these is it.
    """

    profile: Profile = "release"
    archives: Sequence[Path] = ()
    keyring: Path | None = None
    read: Sequence[ImportedRelease] = ()
    registry: Source | None = None
    management: str = ""

    def builds(self, wanted: Sequence[Release]) -> bool:
        """Whether something is built, as far as that is known before the files are read: more releases are wanted than files are there."""
        files = len(self.archives) + len(self.read)
        if self.registry is None:
            return files < len(wanted)
        return not files and any(release.name == self.management for release in wanted)

    def refuse(self, wanted: Sequence[Release]) -> None:
        """Refuse releases of a registry whose addons the management cluster's release has not: the charts are its own, and no registry proves others.

        Raises:
            Conflict: there is one; nothing was changed.
        """
        main = next((release for release in wanted if release.name == self.management), None)
        if self.registry is None or main is None:
            return
        files = {found.release.name for found in self.read}
        for release in wanted:
            if release.name not in files and release.built_cni != main.built_cni and not self.archives:
                raise Conflict(
                    f"{release.name} has other addons than {main.name}, and a registry does not prove which charts are the release's",
                    resolution="take it from a file (--from), or build it here",
                )

    def titles(self, wanted: Sequence[Release]) -> list[str]:
        """The steps of `take`, as far as they are known before the files are read."""
        there = {found.release.name for found in self.read}
        others = [release for release in wanted if release.name not in there][len(self.archives) :]
        source, here = self.registry, [release for release in others if self.registry is None or release.name == self.management]
        looked = [looking_up(release, source) for release in others if source is not None and release not in here]
        return [*map(reading, self.archives), *looked, *(title for release in here for title in made_titles(release))]

    def take(
        self, catalog: Catalog, wanted: Sequence[Release], inventory: Inventory, offered: Sequence[str], steps: Steps
    ) -> tuple[dict[str, Deliverable], dict[str, str]]:
        """All of the site's releases by name; and of what those were made that were built here (ckp.site.plan.wanted.remember).

        Args:
            wanted: all of them.
            offered: names that releases from files may have, each once.

        Raises:
            InvalidInput, VerificationFailed: as `take_releases`.
            NotFound: the registry has no such release.
            CkpError: a build failed.
        """
        made_of = sources(catalog, wanted, self.profile, inventory)  # as it is before the build: what is changed meanwhile counts as other sources
        dists: dict[str, Deliverable] = {found.release.name: found for found in self.read}
        dists |= take_releases(self.archives, self.keyring, inventory, offered, steps, there=list(dists))
        if self.registry is not None:
            for release in (release for release in wanted if release.name not in dists and release.name != self.management):
                with steps.step(looking_up(release, self.registry)):
                    dists[release.name] = published_release(release, self.registry, self.keyring, inventory, steps)
        built = [release for release in wanted if release.name not in dists]
        for release in built:
            dists[release.name] = make_release(catalog, release, inventory, steps, self.profile)
        return dists, {release.name: made_of[release.name] for release in built if release.name in made_of}


def reading(archive: Path) -> str:
    """The step that reads a release from a file."""
    return f"Reading and verifying {archive.name}"


def looking_up(release: Release, source: Source) -> str:
    """The step that verifies a release in another registry."""
    return f"Verifying {release.stamp} in {source.address}"


def made_titles(release: Release) -> list[str]:
    """The steps of `make_release`."""
    return [f"Building {release.stamp} from source", "Packing and signing packages", "Making images"]


def make_release(catalog: Catalog, release: Release, inventory: Inventory, steps: Steps, profile: Profile) -> Distribution:
    """Source to signed packages, images and the bundle for the site's hosts."""
    dist = Distribution(catalog, release, profile, steps.say)
    building, packing, imaging = made_titles(release)
    with steps.step(building):
        dist.build(steps)
    with steps.step(packing):
        dist.pack(sorted({system.format for system in inventory.systems}))
    with steps.step(imaging):
        dist.make_images()
        dist.make_bundles(inventory.registry.address, inventory.systems)
    return dist


def verified_release(archive: Path, keyring: Path | None, registry: str, systems: Sequence[BundleTarget], place: str, steps: Steps) -> ImportedRelease:
    """A release from a file, made for the registry and the systems of `place`. Stand-ins in it are said.

    Args:
        registry: `host:port` as bundles name it.

    Raises:
        InvalidInput: it was made for another registry, or lacks the bundle for a system.
        VerificationFailed: see ImportedRelease.read.
    """
    found = ImportedRelease.read(archive, trusted_keys(keyring), steps.say)
    if found.registry_name != registry:
        raise InvalidInput(
            f"the bundles in {archive} name the registry {found.registry_name}, and {place}'s is {registry}",
            resolution=f"export it for {place}: ckp dist export --registry-name {registry}",
        )
    require_systems(found, str(archive), systems, place, "export the release again")
    say_stand_ins(found, steps)
    return found


def require_systems(found: Deliverable, where: str, systems: Sequence[BundleTarget], place: str, remedy: str) -> None:
    """Raise InvalidInput if a release lacks the bundle for one of the systems of `place`."""
    if missing := [system.system for system in systems if system not in found.targets]:
        raise InvalidInput(f"{where} has no host bundle for {', '.join(missing)}, which {place} needs", resolution=f"{remedy}, or correct `workers.systems`")


def say_stand_ins(found: Deliverable, steps: Steps) -> None:
    """Say what a release has in place of its pins."""
    for pin in found.stand_ins:
        steps.say(f"STAND-IN: something else takes the place of {pin}")


def published_release(release: Release, source: Source, keyring: Path | None, inventory: Inventory, steps: Steps) -> PublishedRelease:
    """A release that another registry has, made for the site's registry and systems, and signed by keys that the site trusts.

    Raises:
        InvalidInput: it was made for another registry, or lacks the bundle for a system.
        NotFound, VerificationFailed: see PublishedRelease.read.
    """
    with inventory.settings.trusted(keyring or paths.keys() / KEYRING) as trusted:
        found = PublishedRelease.read(source, release, trusted_keys(trusted), steps.say)
    own = inventory.registry.address
    if found.registry_name != own:
        raise InvalidInput(
            f"the signed bundles of {release.name} at {source.address} name the registry {found.registry_name}, and the site's is {own}",
            details="hosts pull from the registry that a signed bundle names, and only who has the maker's key can sign another one",
            resolution=f"publish it there for the site (ckp dist publish {release.name} --registry {source.address} --registry-name {own}), "
            "take it from a file that is made for it (--from), or build it here",
        )
    require_systems(found, f"{release.name} at {source.address}", inventory.systems, "the site", "publish it with that bundle")
    say_stand_ins(found, steps)
    return found


def take_releases(
    archives: Sequence[Path], keyring: Path | None, inventory: Inventory, offered: Sequence[str], steps: Steps, *, there: Sequence[str] = ()
) -> dict[str, ImportedRelease]:
    """Releases from files, by name.

    Args:
        offered: names that they may have, each once.
        there: names of releases that were read already.

    Raises:
        InvalidInput: one is another release, two are the same, or as of `verified_release`.
        VerificationFailed: as of `verified_release`.
    """
    taken: dict[str, ImportedRelease] = {}
    for archive in archives:
        with steps.step(reading(archive)):
            with inventory.settings.trusted(keyring or paths.keys() / KEYRING) as trusted:
                found = verified_release(archive, trusted, inventory.registry.address, inventory.systems, "the site", steps)
            name = found.release.name
            if name not in offered:
                raise InvalidInput(f"{archive} holds {name}, and the site offers {', '.join(offered)}", resolution="name it in `releases`, or leave it out")
            if name in taken or name in there:
                raise InvalidInput(f"{archive} holds {name}, and so does a file before it", resolution="name one file for each release")
            taken[name] = found
    return taken
