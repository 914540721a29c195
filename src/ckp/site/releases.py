"""Which releases a site offers: what its file names, what its management layer knows, and what its clusters use.

A release is offered once all of its content is in the registry. One that is removed is withdrawn first: nothing new can be made of it. Its content
goes when the management layer's pods have followed and no cluster uses it; until then the management cluster keeps it among those that are
withdrawn, so that a run that was killed is gone on with, and so that it can be offered again if a cluster was made of it meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ckp.api.kinds import MACHINE, MACHINE_DEPLOYMENT, MACHINE_SET, MANAGED_CONTROL_PLANE
from ckp.api.names import CLUSTER_NAME_LABEL
from ckp.api.platform import InstalledRelease, Releases, release_order
from ckp.catalog.load import Catalog
from ckp.clients.oci.registry import Registry
from ckp.distribution.bundles import PREFIX
from ckp.distribution.registries.prune import NoBundle, prune, release_and_others
from ckp.kits.errors import CkpError, Conflict
from ckp.site import management
from ckp.site.install import APPLY, CKP_GROUP, FIELD_MANAGER, forget_applied
from ckp.site.inventory import SiteHost
from ckp.site.publish import CONFIG, DIGEST_ANNOTATION, NAMESPACE, OFFERED, WITHDRAWN, Withdrawn, releases_config
from ckp.site.registries.existing import ExistingRegistry

USERS = (MANAGED_CONTROL_PLANE, MACHINE_DEPLOYMENT, MACHINE_SET, MACHINE)
"""Kinds whose objects name a release."""
ROLLOUT_SECONDS = 300

Say = Callable[[str], None]


class State(StrEnum):
    """How a release stands at a site."""

    OFFERED = "offered"
    NOT_APPLIED = "not applied yet"
    """The file names it, and the site does not offer it."""
    NOT_IN_FILE = "not in the file"
    """The site offers it, and the file does not name it."""
    BEING_REMOVED = "being removed"


@dataclass(frozen=True)
class Offered:
    """What the management layer of a site knows of releases.

    Args:
        releases: those that clusters can be made of.
        withdrawn: those whose removal is not finished.
    """

    releases: Releases
    withdrawn: Withdrawn = field(default_factory=dict)

    def withdrawing(self, names: Collection[str]) -> Withdrawn:
        """What is withdrawn once exactly these are offered: what is now, and what is offered beyond them."""
        leaving = [name for name in self.releases.releases if name not in names]
        return {name: entry for name, entry in self.without(leaving).withdrawn.items() if name not in names}

    def without(self, names: Collection[str]) -> Offered:
        """These releases withdrawn, also those that were not offered: some of their content may be in the registry."""
        gone = {name: self.releases.releases.get(name) for name in names}
        return Offered(self.releases.without(names), {**self.withdrawn, **gone})

    def with_releases(self, *more: InstalledRelease) -> Offered:
        """These releases offered, whether they were withdrawn or not."""
        names = {release.name for release in more}
        return Offered(self.releases.with_releases(more), {name: entry for name, entry in self.withdrawn.items() if name not in names})


@dataclass(frozen=True)
class Choice:
    """The releases that a site gets.

    Args:
        management: the one that the management cluster and its layer are of.
        names: all, the oldest first.
        leaving: those that the site offers and will not, and those whose removal is not finished.
    """

    management: str
    names: tuple[str, ...]
    leaving: tuple[str, ...] = ()


@dataclass(frozen=True)
class Listed:
    """A release of a site, for people.

    Args:
        clusters: those that use it, as `namespace/name`.
        management: whether the management cluster or its layer is of it.
    """

    name: str
    stamp: str
    state: State
    clusters: tuple[str, ...]
    management: bool


# -- looking


def read_offered(host: SiteHost) -> Offered | None:
    """What the management layer knows; None if there is no such layer yet.

    Raises:
        CkpError: the management cluster does not answer, or its table can't be read.
    """
    if not management.exists(host):
        return None
    text = management.kubectl(host, "get", "configmap", CONFIG, f"--namespace={NAMESPACE}", "--ignore-not-found", "--output=json")
    if not text.strip():
        return None
    try:
        data = json.loads(text)["data"]
        withdrawn = {name: entry and InstalledRelease.model_validate(entry) for name, entry in json.loads(data.get(WITHDRAWN, "{}")).items()}
        return Offered(Releases.model_validate_json(data[OFFERED]), withdrawn)
    except (KeyError, ValueError, ValidationError) as error:
        raise CkpError(
            f"the ConfigMap {CONFIG} of the management cluster can't be read: {error}", resolution="run `ckp site apply`: it writes it again"
        ) from None


def clusters_by_release(host: SiteHost) -> dict[str, list[str]]:
    """Release -> clusters that use it, as `namespace/name`: by their control plane, or by a machine of theirs.

    Raises:
        CkpError: the management cluster does not answer.
    """
    if not management.exists(host):
        return {}
    names = [f"{kind.plural}.{kind.group}" for kind in USERS]
    there = management.kubectl(host, "get", "customresourcedefinitions", *names, "--ignore-not-found", "--output=name").split()
    kinds = [name for name in names if f"customresourcedefinition.apiextensions.k8s.io/{name}" in there]
    if not kinds:
        return {}
    found: dict[str, set[str]] = {}
    for item in json.loads(management.kubectl(host, "get", ",".join(kinds), "--all-namespaces", "--output=json"))["items"]:
        meta = item["metadata"]
        cluster = (meta.get("labels") or {}).get(CLUSTER_NAME_LABEL) or (item.get("spec") or {}).get("clusterName") or meta["name"]
        for version in _versions(item):
            found.setdefault(version, set()).add(f"{meta['namespace']}/{cluster}")
    return {version: sorted(clusters) for version, clusters in found.items()}


def _versions(item: Mapping[str, Any]) -> set[str]:
    """Releases that an object of USERS names: wanted, and still running."""
    spec, status = item.get("spec") or {}, item.get("status") or {}
    template = ((spec.get("template") or {}).get("spec") or {}).get("version")
    step = status.get("upgrade") or {}  # that of before is needed until the step is finished, also where another one is asked for by then
    return {str(version) for version in (spec.get("version"), status.get("version"), step.get("version"), template) if version}


def of_management(host: SiteHost, names: Sequence[str]) -> str:
    """The release that the management cluster has, or would get of these: the newest. CkpError if the host's record can't be read."""
    return management.installed_release(host) or max(names, key=release_order)


def choose(host: SiteHost, names: Sequence[str]) -> Choice:
    """Which releases a site gets whose file names these. An existing management cluster keeps its release; a new one gets the newest.

    Raises:
        Conflict: the file leaves out one that the management cluster or a workload cluster uses. Nothing was changed.
        CkpError: the management cluster does not answer.
    """
    offered = read_offered(host)
    wanted = tuple(sorted(names, key=release_order))
    leaving = {name for name in offered.releases.releases if name not in wanted} if offered else set()
    installed = management.installed_release(host)
    if installed and installed not in wanted:
        leaving.add(installed)
    require_unused(host, sorted(leaving, key=release_order), offered, f"name it in `releases` of the site's file: {_as_list({*names, *leaving})}")
    pending = [name for name in offered.withdrawn if name not in wanted] if offered else []
    return Choice(installed or wanted[-1], wanted, tuple(sorted({*leaving, *pending}, key=release_order)))


def _as_list(names: Collection[str]) -> str:
    return f"[{', '.join(sorted(names, key=release_order))}]"


def require_unused(host: SiteHost, names: Sequence[str], offered: Offered | None, remedy: str) -> None:
    """Raise Conflict if one of these releases is used.

    Args:
        remedy: what to do instead of removing it.
    """
    if not names:
        return
    of_management = {management.installed_release(host), offered.releases.management if offered else ""}
    used = clusters_by_release(host)
    for name in names:
        if name in of_management:
            raise Conflict(f"the management cluster runs {name}, so the site has to offer it, and nothing was changed", resolution=remedy)
        if clusters := used.get(name):
            raise Conflict(
                f"{name} is used by {_count(clusters)}, and nothing was changed",
                details="\n".join(clusters),
                resolution=f"delete them first (ckp cluster delete NAME --wait), or {remedy}",
            )


def _count(clusters: Sequence[str]) -> str:
    return "1 cluster" if len(clusters) == 1 else f"{len(clusters)} clusters"


def listed(host: SiteHost, names: Sequence[str]) -> list[Listed]:
    """All releases that a site offers, is to offer by its file, or has not finished to remove; the oldest first.

    Args:
        names: those that its file names.

    Raises:
        CkpError: the management cluster does not answer.
    """
    offered, used = read_offered(host), clusters_by_release(host)
    of_management = {management.installed_release(host), offered.releases.management if offered else ""}
    known = offered.releases.releases if offered else {}
    withdrawn = offered.withdrawn if offered else {}
    found = []
    for name in sorted({*names, *known, *withdrawn}, key=release_order):
        entry = known.get(name) or withdrawn.get(name)
        if name in known:
            state = State.OFFERED if name in names else State.NOT_IN_FILE
        else:
            state = State.NOT_APPLIED if name in names else State.BEING_REMOVED
        found.append(Listed(name, entry.stamp if entry else f"{name}-ckp", state, tuple(used.get(name, ())), name in of_management))
    return found


# -- changing


def withdrawing(host: SiteHost, names: Sequence[str]) -> Withdrawn:
    """What will be withdrawn when the site offers exactly these: what it offers beyond them now, and what is withdrawn already.

    Raises:
        Conflict: a cluster uses one of them (by now). Nothing was changed.
    """
    offered = read_offered(host)
    if offered is None:
        return {}
    leaving = [name for name in offered.releases.releases if name not in names]
    require_unused(host, leaving, offered, f"name it in `releases` of the site's file: {_as_list({*names, *leaving})}")
    return offered.withdrawing(names)


def write(host: SiteHost, offered: Offered, state: Path) -> None:
    """Let the management layer know, and let its pods follow; `settle` waits for them.

    Args:
        state: what this machine keeps of the site.

    Raises:
        CkpError: the management cluster does not answer; the same again goes on.
    """
    config, digest = releases_config(offered.releases, offered.withdrawn)
    forget_applied(state, CKP_GROUP)  # what was applied last is no longer what is there
    management.kubectl(host, *APPLY, stdin=json.dumps(config), timeout=120)
    patch = json.dumps({"spec": {"template": {"metadata": {"annotations": {DIGEST_ANNOTATION: digest}}}}})
    for name in _followers(host):
        management.kubectl(host, "patch", "deployment", name, f"--namespace={NAMESPACE}", FIELD_MANAGER, "--type=merge", f"--patch={patch}")


def settle(host: SiteHost, say: Say) -> None:
    """Wait until all pods that read the table have the present one.

    Raises:
        CkpError: they do not become available in time.
    """
    for name in _followers(host):
        management.kubectl(
            host, "rollout", "status", f"deployment/{name}", f"--namespace={NAMESPACE}", f"--timeout={ROLLOUT_SECONDS}s", timeout=2 * ROLLOUT_SECONDS
        )
        say(f"{name}: knows the releases")


def _followers(host: SiteHost) -> list[str]:
    """Deployments whose pods read the table."""
    items = json.loads(management.kubectl(host, "get", "deployments", f"--namespace={NAMESPACE}", "--output=json"))["items"]
    return [str(item["metadata"]["name"]) for item in items if DIGEST_ANNOTATION in (item["spec"]["template"].get("metadata") or {}).get("annotations", {})]


def finish_removal(host: SiteHost, registries: Sequence[Registry | ExistingRegistry], state: Path, say: Say) -> list[str]:
    """Delete the content of the releases that are withdrawn, once no pod and no cluster knows them; returns their names.

    Args:
        registries: all that have it.

    Raises:
        Conflict: a cluster was made of one meanwhile. It is offered again, or has to be published again; the others are removed.
        CkpError: something does not answer; the same again goes on.
    """
    offered = read_offered(host)
    if offered is None or not offered.withdrawn:
        return []
    write(host, offered, state)
    settle(host, say)
    used = {name: clusters for name, clusters in clusters_by_release(host).items() if name in offered.withdrawn}
    if back := [entry for name in used if (entry := offered.withdrawn[name])]:
        offered = offered.with_releases(*back)
        write(host, offered, state)
    unused = [name for name in offered.withdrawn if name not in used]
    if unused:
        offered = replace(offered, withdrawn={name: None if name in unused else entry for name, entry in offered.withdrawn.items()})
        write(host, offered, state)
        for name in unused:
            for registry in registries:
                remove_content(registry, name, say)
        write(host, replace(offered, withdrawn={name: entry for name, entry in offered.withdrawn.items() if name not in unused}), state)
    if used:
        settle(host, say)
        names = {release.name for release in back}
        gone = [name for name in used if name not in names]
        raise Conflict(
            "; ".join(f"{name} is used by {_count(clusters)} and was not removed" for name, clusters in used.items()),
            details="\n".join(cluster for clusters in used.values() for cluster in clusters),
            resolution=f"publish it again: ckp site release add {gone[0]}"
            if gone
            else f"the site offers it again: name it in `releases` of the site's file ({_as_list(offered.releases.releases)}), or delete these clusters",
        )
    return unused


def remove_content(registry: Registry | ExistingRegistry, name: str, say: Say) -> None:
    """Delete a release from a registry, but for what others name; nothing there is fine. Its space is freed by garbage collection only.

    Raises:
        CkpError: as of `ckp.distribution.registries.prune`.
    """
    if isinstance(registry, ExistingRegistry):
        with closing(registry.client()) as client:
            registry.remove_content(client, name, say)
        return
    catalog = Catalog()
    known = {f"{PREFIX}/{target.repository}" for item in catalog.names() for target in catalog.release(item).bundles}
    try:
        selection, keep = release_and_others(registry, name, known=known)
    except NoBundle:  # bundles come last, and go last: what has the release's own tag is of a push that was killed
        stamp = f"{name}-ckp"
        selection, keep = [(item, stamp) for item in registry.catalog() if item.startswith(f"{PREFIX}/") and stamp in registry.tags(item)], []
    done = prune(registry, selection, say, keep=keep, yes=True)
    say(f"{name}: {len(done)} removed from {registry.address}")
