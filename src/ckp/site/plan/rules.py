"""From what a site is to be and what was seen of it to what applying would change. Pure: each case is a row of a test's table.

`ckp site plan` shows it, and `ckp site apply` refuses by it before it changes anything: one set of rules for both. Refused is what applying would do
wrongly or by half, since a cluster that runs keeps what it was made with.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence

from ckp.api.platform import release_order
from ckp.kits.errors import InvalidInput
from ckp.site.install import CKP_GROUP, applied_digest, reserved_cidrs
from ckp.site.plan import clusters, database, hosts, provided
from ckp.site.plan.model import COMPASS, CONTROLLERS, HUB, Action, Change, Deployment, Seen, SeenLayer, Wanted, is_own, some
from ckp.site.plan.settings import PARTS
from ckp.site.publish import CONFIG, NAMESPACE, OFFERED

GROUPS = ("foundation", "cert-manager", "cluster-api", CKP_GROUP)
"""The management layer's groups, in the order in which they are applied (ckp.site.install)."""
RESERVED = "env compass COMPASS_RESERVED_CIDRS"
HOSTED = {"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "konnectivity-server"}
"""Images of hosted control planes."""


def changes(wanted: Wanted, seen: Seen) -> list[Change]:
    """What applying does to each part of the site, in the order in which it comes to them."""
    found = [
        *(hosts.first(wanted, seen) if seen.existing is None else clusters.changes(wanted, seen, seen.existing)),
        *_releases(wanted, seen),
        *_addresses(wanted, seen),
        *_names(wanted, seen),
        *_addons(wanted, seen),
        *database.changes(wanted, seen),
        *provided.changes(wanted, seen),
        *(hosts.others(wanted, seen) if seen.existing is None else ()),
    ]
    return [*found, *_groups(wanted, seen, found), *_session(wanted, seen)]


def require_allowed(found: Iterable[Change]) -> None:
    """Refuse to apply what can't be applied.

    Raises:
        InvalidInput: there are such changes; each is in the details, with its remedy.
    """
    refused = [each for each in found if each.action is Action.REFUSED]
    if refused:
        raise InvalidInput(
            "the site can't be changed to what its file says, and nothing was changed",
            details="\n".join(f"{each.part}: {each.detail} (what to do: {each.remedy})" for each in refused),
            resolution="`ckp site plan` shows this with all that would change",
        )


def drifted(found: Iterable[Change]) -> bool:
    """Whether a setting of the group `ckp` is another one in the cluster than in the file, so that it has to be applied whatever was applied last."""
    return bool(_causes(found))


# -- releases


def _releases(wanted: Wanted, seen: Seen) -> Iterator[Change]:
    layer = seen.layer
    offered = layer.releases.releases if layer is not None and layer.releases is not None else {}
    systems = [target.system for target in wanted.inventory.systems]
    for name in sorted(wanted.releases, key=release_order):
        if name in offered:
            old = offered[name].bundles
            if differ := [
                *(f"{each} comes" for each in systems if each not in old),
                *(f"{each} is not offered any longer" for each in old if each not in systems),
            ]:
                yield Change(f"release {name}", Action.CHANGE, f"is offered; host bundles: {', '.join(differ)}")
            else:
                yield Change(f"release {name}", Action.NONE, "is offered")
        else:
            yield Change(f"release {name}", Action.CREATE, "its images and host bundles come into the registry, and clusters may ask for it")
    if layer is None or layer.offered is None:
        return
    for name in sorted(set(offered) - set(wanted.releases), key=release_order):
        part = f"release {name}"
        if name == layer.offered.releases.management:
            yield Change(part, Action.REFUSED, "the management layer is of it, so the site has to offer it", remedy=f"name {name} in `releases`")
        elif users := layer.users.get(name):
            yield Change(
                part,
                Action.REFUSED,
                f"{some(users)} {'runs' if len(users) == 1 else 'run'} it: without it in `releases`, they could not be changed or repaired",
                remedy=f"keep {name} in `releases` until no cluster runs it",
            )
        else:
            yield Change(part, Action.CHANGE, "is not offered any longer, and its content is deleted from the registry", "no new cluster can ask for it")
    for name in sorted(set(layer.offered.withdrawn) - set(wanted.releases), key=release_order):
        yield Change(f"release {name}", Action.CHANGE, "its removal, which was not finished, goes on")


# -- addresses


def _addresses(wanted: Wanted, seen: Seen) -> Iterator[Change]:
    network, layer = wanted.inventory.network, seen.layer
    yield from provided.load_balancers(wanted, seen)
    yield from _service("Compass address", COMPASS, network.compass, layer)
    yield from _service("hub address", HUB, network.hub, layer)
    if layer is not None and COMPASS in layer.deployments:
        before, after = layer.deployments[COMPASS].template.get(RESERVED, ""), reserved_cidrs(network)
        if before != after:
            yield Change("reserved networks", Action.CHANGE, f"{before or 'none'} becomes {after}", _replaced(COMPASS, layer.deployments[COMPASS]))
        else:
            yield Change("reserved networks", Action.NONE, after)


def _service(part: str, name: str, new: str, layer: SeenLayer | None) -> Iterator[Change]:
    old = next((each.address for each in layer.addresses if each.service == f"{NAMESPACE}/{name}"), "") if layer is not None else ""
    taken = [each.service for each in layer.addresses if each.address == new and not is_own(each.service)] if layer is not None else []
    if old == new:
        yield Change(part, Action.NONE, new)
    elif taken:
        yield Change(part, Action.REFUSED, f"{taken[0]} has the address {new}", remedy="write an address that nothing has")
    elif not old:
        yield Change(part, Action.CREATE, new)
    elif name == HUB and layer is not None and layer.hosts:
        hosts = "1 enrolled host has" if layer.hosts == 1 else f"{layer.hosts} enrolled hosts have"
        yield Change(
            part,
            Action.REFUSED,
            f"{hosts} the hub's address {old} in the agent's configuration, and would not find it at {new}",
            remedy=f"write {old} back; or let the hosts go first (`ckp host delete`), and enrol them again afterwards",
        )
    elif name == HUB:
        yield Change(part, Action.CHANGE, f"{old} becomes {new}; no host is enrolled")
    else:
        yield Change(
            part,
            Action.CHANGE,
            f"{old} becomes {new}",
            "Compass is not found at the old address any more: other command lines and consoles need the new one; its certificate is issued again, "
            "and served up to two minutes later",
        )


def _names(wanted: Wanted, seen: Seen) -> Iterator[Change]:
    """The site's own names in certificates; no row where there are none, and none are wanted."""
    network, known = wanted.inventory.network, seen.layer.names if seen.layer is not None else {}
    for part, name, new in (("Compass names", COMPASS, network.compass_names), ("hub names", HUB, network.hub_names)):
        old = known.get(name, ())
        if not old and not new:
            continue
        if list(old) == list(new):
            yield Change(part, Action.NONE, ", ".join(new))
        elif name not in known:
            yield Change(part, Action.CREATE, ", ".join(new))
        else:
            detail = f"{', '.join(old) or 'none'} becomes {', '.join(new) or 'none'}: its certificate is issued again, and served up to two minutes later"
            yield Change(part, Action.CHANGE, detail)


# -- the management layer


def _addons(wanted: Wanted, seen: Seen) -> Iterator[Change]:
    layer, part = seen.layer, "addon values"
    new = json.loads(json.dumps(dict(wanted.inventory.addon_values)))
    if layer is None or layer.releases is None:
        if new:
            yield Change(part, Action.CREATE, f"of {', '.join(sorted(new))}")
        return
    old = layer.releases.addon_values
    differ = sorted(chart for chart in {*old, *new} if old.get(chart, {}) != new.get(chart, {}))
    if not differ:
        yield Change(part, Action.NONE, f"of {', '.join(sorted(new))}" if new else "none")
        return
    count = len(layer.clusters)
    where = f"the {count} workload clusters" if count > 1 else "the workload cluster"
    yield Change(part, Action.CHANGE, f"of {', '.join(differ)}", f"helm upgrades {' and '.join(differ)} in {where}, where it is installed" if count else "")


def _groups(wanted: Wanted, seen: Seen, before: Sequence[Change]) -> Iterator[Change]:
    """The management layer's groups. `before`: the changes of parts that are settings of the group `ckp`."""
    layer = seen.layer
    for name in GROUPS:
        text = wanted.groups.get(name)
        if seen.existing is not None and name in seen.existing.cluster.foreign:
            yield Change(name, Action.NONE, f"that of the cluster's owner is used: {seen.existing.cluster.foreign[name].version}")
        elif layer is None or (seen.existing is not None and not layer.deployments and name not in seen.applied):
            yield Change(name, Action.CREATE, "is installed")
        elif name not in seen.applied:
            yield Change(name, Action.CHANGE, "is applied: this machine has no record that it was before", _interrupts(name, wanted, layer, before))
        elif text is not None and applied_digest(layer.uid, text) == seen.applied[name]:
            yield Change(name, Action.NONE, "as it was applied last")
        elif text is not None:
            yield Change(name, Action.CHANGE, "its objects are others than those applied last", _interrupts(name, wanted, layer, before))
        elif causes := _causes(before) if name == CKP_GROUP else []:
            why = hosts.why_unknown(wanted, _made_of(name, wanted, layer))
            more = f"; whether its images change is known after the build ({why})" if why else ""
            yield Change(name, Action.CHANGE, f"because of {', '.join(causes)}{more}", _interrupts(name, wanted, layer, before))
        elif why := hosts.why_unknown(wanted, _made_of(name, wanted, layer)):
            yield Change(name, Action.UNKNOWN, f"{why}: whether images change is known after the build", _if_replaced(name, layer))
        else:
            yield Change(name, Action.NONE, "made of the same sources as what was applied last")


CAUSES = {
    provided.BALANCERS,
    "Compass address",
    "hub address",
    "Compass names",
    "hub names",
    "reserved networks",
    "addon values",
    "database",
    provided.ETCD,
    *PARTS,
}


def _causes(before: Iterable[Change]) -> list[str]:
    return [each.part for each in before if (each.part in CAUSES or each.part.startswith("release ")) and each.action not in (Action.NONE, Action.REFUSED)]


def _made_of(group: str, wanted: Wanted, layer: SeenLayer) -> list[str]:
    """The releases that decide what is in a group: CKP's own has the table of all, in which one that is not offered yet is a change anyway."""
    offered = layer.releases.releases if layer.releases is not None else {}
    return [name for name in wanted.releases if name == wanted.management or (group == CKP_GROUP and name in offered)]


def _interrupts(name: str, wanted: Wanted, layer: SeenLayer, before: Sequence[Change]) -> str:
    if name != CKP_GROUP:
        return _if_replaced(name, layer)
    rolled = _rolled(wanted, layer, before)
    sentences = [_replaced(each, layer.deployments[each]) for each in (COMPASS, HUB, CONTROLLERS) if each in rolled and each in layer.deployments]
    return "; ".join([*sentences, *_workloads(wanted, layer)])


def _if_replaced(name: str, layer: SeenLayer) -> str:
    """What users notice if the pods of a group are replaced, where it is not known whether they are."""
    if name == "foundation":
        return ""
    if name == "cert-manager":
        return "if its pods are replaced, certificates are issued some seconds later"
    if name == "cluster-api":
        return "if its controllers are replaced, changes to clusters wait for some seconds"
    return "if they do, " + "; ".join(_replaced(each, layer.deployments[each]) for each in (COMPASS, HUB, CONTROLLERS) if each in layer.deployments)


def _rolled(wanted: Wanted, layer: SeenLayer, before: Sequence[Change]) -> Collection[str]:
    """CKP's own Deployments whose pods are replaced."""
    if CKP_GROUP in wanted.groups:
        objects = json.loads(wanted.groups[CKP_GROUP])["items"]
        new = {str(each["metadata"]["name"]): Deployment.of(each) for each in objects if each["kind"] == "Deployment"}
        return [name for name, each in new.items() if name in layer.deployments and each.template != layer.deployments[name].template]
    causes = set(_causes(before))
    listed = ("addon values", provided.ETCD, *((provided.BALANCERS,) if wanted.inventory.network.on_hosts else ()))
    table = any(cause in listed or cause.startswith("release ") for cause in causes)  # Compass and the controllers read it as they start
    settings = causes & {"reserved networks", "hub address", "database"}  # Compass has them in its environment
    return {*([COMPASS, CONTROLLERS] if table else []), *([COMPASS] if settings else [])}


def _replaced(name: str, deployment: Deployment) -> str:
    """What users notice while a Deployment's pods are replaced, by how it replaces them."""
    if name == CONTROLLERS:
        return "the controllers are replaced: changes to clusters wait for some seconds"
    if name == HUB:
        if deployment.replicas > 1 and not deployment.recreate:
            return "the hub's replicas are replaced one after the other: agents connect to another one within seconds"
        return "the hub is replaced: agents connect again some seconds later"
    if deployment.recreate:
        return "Compass does not answer for some seconds: its pod ends before the next one starts"
    return "Compass' pods are replaced one after the other"


def _workloads(wanted: Wanted, layer: SeenLayer) -> Iterator[str]:
    """Workload clusters run their release's images by digest: hosted control planes (ckp.controllers.controlplane) and the network's chart."""
    if CKP_GROUP not in wanted.groups or layer.releases is None:
        return
    objects = json.loads(wanted.groups[CKP_GROUP])["items"]
    [table] = [each["data"][OFFERED] for each in objects if each["kind"] == "ConfigMap" and each["metadata"]["name"] == CONFIG]
    new: dict[str, dict[str, str]] = {name: release["images"] for name, release in json.loads(table)["releases"].items()}
    moved = {
        name: {repository for repository in {*old.images, *new[name]} if old.images.get(repository) != new[name].get(repository)}
        for name, old in layer.releases.releases.items()
        if name in new
    }
    if planes := [each.name for each in layer.clusters if moved.get(each.release, set()) & HOSTED]:
        yield f"the control planes of {some(planes)} get other images: their pods are replaced, and an API with one etcd member is away meanwhile"
    if networks := [each.name for each in layer.clusters if any(repository.startswith("cilium") for repository in moved.get(each.release, ()))]:
        yield f"helm upgrades cilium in {some(networks)}"


# -- this machine, and Compass


def _session(wanted: Wanted, seen: Seen) -> Iterator[Change]:
    server, group = f"https://{wanted.inventory.network.compass}", wanted.inventory.group
    there = seen.session
    if not there.asked:
        missing = seen.layer is None or COMPASS not in seen.layer.deployments
        yield Change(
            "host group",
            Action.CREATE if missing else Action.UNKNOWN,
            group.name if missing else f"{group.name}: Compass can't be asked with this machine's session",
        )
    elif there.group is None:
        yield Change("host group", Action.CREATE, f"{group.name}; hosts stay in the groups that they are in")
    else:
        kept = "" if there.group == group.description else f"; its description stays {there.group!r}, which applying does not change"
        yield Change("host group", Action.NONE, f"{group.name}{kept}")
    if there.server == server:
        yield Change("command line", Action.NONE, f"this machine's ckp is logged in to {server}")
    elif there.server:
        yield Change(
            "command line",
            Action.CHANGE,
            f"this machine's ckp is logged in to {server}, in place of {there.server}",
            f"commands here do not go to {there.server} any more",
        )
    else:
        yield Change("command line", Action.CREATE, f"this machine's ckp is logged in to {server}")
