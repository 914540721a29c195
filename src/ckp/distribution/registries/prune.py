"""Removing a release from a registry: everything that belongs to it and to nothing that stays.

It goes from the outside in: what is attached to an image first, the image and its tag last, bundles after the images that they name, so that
a run that was killed can be run again.
The space is freed by the registry's own garbage collection (`registry garbage-collect`), which only its operator can start.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from ckp.clients.oci.registry import Registry
from ckp.clients.oci.store import Manifest, fallback_tag
from ckp.distribution.bundles import PREFIX, tag_of
from ckp.distribution.registries.mirror import DEPTH, SUFFIXES, Selection, belongs_to, bundle_list
from ckp.distribution.registries.verification import BUNDLE
from ckp.kits.errors import CkpError, NotFound, VerificationFailed

Say = Callable[[str], None]
_STAMP = re.compile(r"v\d+\.\d+\.\d+-ckp")


class NoBundle(NotFound):
    """A registry has no bundle of a release (any longer)."""


@dataclass(frozen=True)
class Removal:
    """One thing that goes: a manifest with its tags, or only a tag whose manifest stays."""

    repository: str
    reference: str
    """A digest, or a tag."""
    why: str

    def __str__(self) -> str:
        return f"{self.repository}{'@' if self.reference.startswith('sha256:') else ':'}{self.reference}  {self.why}"


def release_and_others(registry: Registry, name: str, *, known: Iterable[str] = (), prefix: str = PREFIX) -> tuple[Selection, Selection]:
    """What the bundles of a release name, themselves among it, and what all other bundles in the registry name.

    The registry is asked, not the catalog: it may hold releases that this catalog has no longer, or not yet.

    Args:
        name: the release.
        known: repositories of bundles that are looked for in any case.

    Raises:
        VerificationFailed: a bundle can't be read, so that what it needs is not known.
        NoBundle: there is no bundle of the release.
        NotFound: the registry does not say what it holds.
    """
    held = set(registry.catalog())
    repositories = sorted({item for item in held if item.startswith(f"{prefix}/{BUNDLE}")} | set(known))
    own: set[tuple[str, str]] = set()
    others: set[tuple[str, str]] = set()
    for repository in repositories:
        for tag in registry.tags(repository):
            if belongs_to(tag) is not None:
                continue
            if repository not in held:
                raise NotFound(
                    f"{registry.address} does not list its repositories, so it is not known what other releases need: nothing was removed",
                    resolution="use credentials that may list them (GET /v2/_catalog)",
                )
            release, images = _read(registry, repository, tag)
            named = own if release == name else others
            named.add((repository, tag))
            named.update((f"{prefix}/{image}", version) for image, version in images.items())
    if not own:
        raise NoBundle(
            f"{registry.address} has no bundle of {name}",
            resolution="check the release's name, and whether it was published to this registry (ckp dist publish)",
        )
    return sorted(own), sorted(others)


def _read(registry: Registry, repository: str, tag: str) -> tuple[str, dict[str, str]]:
    """The release of a bundle, and the images that it names."""
    where = f"{registry.address}/{repository}:{tag}"
    try:
        listed = bundle_list(registry, repository, registry.get_manifest(repository, tag))
    except CkpError as error:
        raise VerificationFailed(
            f"{where} can't be read, so it is not known which images it needs: nothing was removed",
            details=str(error),
            resolution="push that bundle again, or remove it from the registry, and then run this again",
        ) from error
    release = str(listed.get("release"))
    if _STAMP.fullmatch(tag) and tag != f"{release}-ckp":
        raise VerificationFailed(
            f"{where} is the bundle of {release}: nothing was removed",
            resolution="push the right bundle again (ckp dist publish), and find out who can write there",
        )
    return release, {str(image): tag_of(str(pinned)) for image, pinned in listed["images"].items()}


def plan_prune(registry: Registry, selection: Selection, *, keep: Selection = ()) -> list[Removal]:
    """What would be removed, in the order in which it would be.

    Args:
        selection: the repositories and tags of what shall go; those that are not there are passed over.
        keep: repositories and tags that stay though they are selected: releases share images, such as one of etcd.
    """
    doomed: dict[str, set[str]] = {}
    stay = set(keep)
    for repository, tag in selection:
        if (repository, tag) not in stay and belongs_to(tag) is None:
            doomed.setdefault(repository, set()).add(tag)
    return [removal for repository in sorted(doomed, key=_bundles_last) for removal in _Repository(registry, repository).plan(doomed[repository])]


def prune(registry: Registry, selection: Selection, say: Say, *, keep: Selection = (), yes: bool = False) -> list[Removal]:
    """Remove a release; without `yes` only say what would go. Returns what went, or would go.

    What others push meanwhile is read once more just before each repository is changed, and not after that: don't publish the same
    release at the same time.

    Raises:
        CkpError: the registry does not let things be deleted, or does not answer; run again to continue.
    """
    selected, stay = sorted(set(selection)), sorted(set(keep))
    if not yes:
        removals = plan_prune(registry, selected, keep=stay)
        for removal in removals:
            say(f"would remove {removal}")
        return removals
    done: list[Removal] = []
    # Bundles say what belongs to a release, so they go last: a run that was killed finds the rest by them.
    for repository in sorted({name for name, _ in selected}, key=_bundles_last):
        for removal in plan_prune(registry, [item for item in selected if item[0] == repository], keep=stay):
            registry.delete(removal.repository, removal.reference)
            say(f"removed {removal}")
            done.append(removal)
    return done


def _bundles_last(repository: str) -> tuple[bool, str]:
    return repository.rpartition("/")[2].startswith(BUNDLE), repository


@dataclass
class _Repository:
    registry: Registry
    name: str
    _manifests: dict[str, Manifest | None] = field(default_factory=dict)
    _named: dict[str, str] = field(default_factory=dict)

    def plan(self, doomed: set[str]) -> list[Removal]:
        self._named = {tag: digest for tag in self.registry.tags(self.name) if (digest := self.registry.digest(self.name, tag))}
        going = {tag: digest for tag, digest in self._named.items() if tag in doomed}
        # A tag of signatures or referrers lives with its manifest; one whose manifest is unknown here is not removed, and keeps what it names.
        stays = {digest for tag, digest in self._named.items() if tag not in going and belongs_to(tag) is None}
        kept = {digest for root in stays for digest in self._reach(root, DEPTH)}
        reached = {digest for root in going.values() for digest in self._reach(root, DEPTH)}
        orphans = {tag: digest for tag, digest in self._named.items() if (owner := belongs_to(tag)) and owner not in kept | reached}
        kept |= {digest for root in orphans.values() for digest in self._reach(root, DEPTH)}

        removals: dict[str, Removal] = {}
        for tag, digest in sorted(going.items()):
            if digest in kept:
                removals[tag] = Removal(self.name, tag, "the tag only: its manifest stays, as something else names it")
                continue
            for reached_digest in self._reach(digest, DEPTH):
                if reached_digest not in kept and reached_digest not in removals:
                    why = f"tag {tag}" if reached_digest == digest else f"belongs to {tag}"
                    removals[reached_digest] = Removal(self.name, reached_digest, why)
        return list(removals.values())

    def _reach(self, digest: str, depth: int) -> Iterator[str]:
        """Everything that lives and dies with a manifest, itself last: what is attached to it, and the manifests that an index lists."""
        if depth == 0:
            raise VerificationFailed(f"{self.registry.address}/{self.name}@{digest} is nested deeper than {DEPTH} levels: nothing of {self.name} was removed")
        manifest = self._manifest(digest)
        if manifest is None:
            return
        for referrer in self.registry.referrers(self.name, digest):
            yield from self._reach(referrer.digest, depth - 1)
        for suffix in SUFFIXES:
            if (tagged := self._named.get(fallback_tag(digest) + suffix)) and tagged != digest:
                # The index under the fallback tag lists the referrers that were just seen; it goes without looking into it again.
                yield tagged
        for child in manifest.children:
            yield from self._reach(child.digest, depth - 1)
        yield digest

    def _manifest(self, digest: str) -> Manifest | None:
        if digest not in self._manifests:
            self._manifests[digest] = self.registry.find_manifest(self.name, digest)
        return self._manifests[digest]
