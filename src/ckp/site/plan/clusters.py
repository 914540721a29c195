"""What applying does on an existing cluster. Pure, as ckp.site.plan.rules, of which it is a part."""

from __future__ import annotations

from collections.abc import Iterator

from ckp.site.clusters.look import problems
from ckp.site.plan.model import Action, Change, Seen, SeenOwners, Wanted

PART = "management cluster"


def changes(wanted: Wanted, seen: Seen, found: SeenOwners) -> Iterator[Change]:
    """The cluster itself, which stays as it is, and the registry, which was there before."""
    network, place = wanted.inventory.network, wanted.inventory.registry
    yield Change("registry", Action.NONE, f"{place.address}, which was there already")
    refused = list(_refused(wanted, seen, found))
    refused += [
        Change(PART, Action.REFUSED, each.what, remedy=each.remedy) for each in problems(found.cluster, {"Compass": network.compass, "the hub": network.hub})
    ]
    yield from refused
    if not refused:
        yield Change(PART, Action.NONE, f"an existing cluster, Kubernetes {found.cluster.version}: only CKP's layer is installed")


def _refused(wanted: Wanted, seen: Seen, found: SeenOwners) -> Iterator[Change]:
    """What is not the cluster's fault: another site in it, or what the site's own layer keeps."""
    if found.other_site:
        yield Change(PART, Action.REFUSED, f"it carries the site {found.other_site}", remedy="take another cluster: one carries one site")
        return
    place, table = wanted.inventory.registry, seen.layer.releases if seen.layer is not None else None
    if table is None or not table.releases:
        return
    old = next(iter(table.releases.values())).registry
    if not old.startswith(f"{place.address}/"):
        what = f"all that runs in it is pulled from {old}: {place.address} is another registry"
        yield Change(PART, Action.REFUSED, what, remedy="write the registry's address and prefix back")
    if table.management not in wanted.releases:
        what = f"its layer is of {table.management}, which `releases` does not name, and is not upgraded that way"
        yield Change(PART, Action.REFUSED, what, remedy=f"name {table.management} in `releases`")
