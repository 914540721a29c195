"""What applying does with what the site's owner provides (ckp.site.provided). Pure, as ckp.site.plan.rules, of which it is a part."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address

from ckp.api.names import ON_HOSTS_CLASS
from ckp.site.inventory import SiteNetwork
from ckp.site.plan.model import Action, Address, Change, Seen, SeenLayer, Wanted, is_own, some
from ckp.site.provided import load_balancers as balancers
from ckp.site.provided import storage

ETCD, BALANCERS = "etcd volumes", "load balancers"


def changes(wanted: Wanted, seen: Seen) -> Iterator[Change]:
    """The rows of this module; none for what the site neither has nor had."""
    yield from _api_name(wanted, seen)
    yield from _etcd_volumes(wanted, seen)


def _api_name(wanted: Wanted, seen: Seen) -> Iterator[Change]:
    """The certificate has the name already, or is refused (ckp.site.plan.hosts): what is left is the kubeconfig that people get."""
    if seen.existing is not None:
        return  # its owner's kubeconfig stays as it is
    network, part = wanted.inventory.network, "API name"
    address = network.virtual_address or wanted.inventory.hosts.management.address
    old, new = seen.server, network.api_name or address
    if not network.api_name and old in ("", address):
        return
    if not old:
        yield Change(part, Action.CREATE, f"kubeconfigs name {new}")
    elif old == new:
        yield Change(part, Action.NONE, new)
    else:
        yield Change(part, Action.CHANGE, f"the kubeconfig that this machine keeps names {new} in place of {old}; nodes go on with the address {address}")


def _etcd_volumes(wanted: Wanted, seen: Seen) -> Iterator[Change]:
    """A volume keeps its class, so nothing changes for clusters that are there."""
    new, layer = wanted.inventory.storage, seen.layer
    name, folder = storage.class_of(new), new.etcd_path
    old = layer.releases.etcd_storage_class if layer is not None and layer.releases is not None else None
    if not name and not old:
        return
    for problem in storage.problems(new, layer.classes if layer is not None else None):
        if problem.certain:
            yield Change(ETCD, Action.REFUSED, problem.what, remedy=problem.remedy)
            return
    old_folder = layer.classes.folder(old or "") if layer is not None else ""
    if old is None:
        yield Change(ETCD, Action.CREATE, storage.named(name, folder))
    elif (old, old_folder) == (name, folder):
        yield Change(ETCD, Action.NONE, storage.named(name, folder))
    else:
        count = len(layer.clusters) if layer is not None else 0
        kept = f"; {'the cluster that is there keeps its' if count == 1 else f'the {count} clusters that are there keep their'} volumes" if count else ""
        yield Change(ETCD, Action.CHANGE, f"{storage.named(old, old_folder)} becomes {storage.named(name, folder)}{kept}")


def load_balancers(wanted: Wanted, seen: Seen) -> Iterator[Change]:
    """Where Services of type LoadBalancer get their addresses from. The API server takes no other class for a Service that is there."""
    network, layer = wanted.inventory.network, seen.layer
    new, name = balancers.described(network), balancers.class_of(network)
    own = [each for each in layer.addresses if is_own(each.service)] if layer is not None else []
    if layer is None or not (own or layer.pool):
        yield Change(BALANCERS, Action.CREATE, new)
    elif other := next((each for each in own if each.of_class != name), None):
        old = balancers.of_class(other.of_class, layer.pool)
        yield Change(
            BALANCERS,
            Action.REFUSED,
            f"{other.service} has its address from {old}, and a Service keeps what it was made with: {new} would give it none",
            remedy=f"write back that addresses come from {old}; for another way, remove the site and apply it again",
        )
    elif lost := _lost(network, layer):
        what = f"the range {new}" if network.load_balancers else "`onHosts`"
        yield Change(
            BALANCERS,
            Action.REFUSED,
            f"{what} leaves out {some([f'{each.address} of {each.service}' for each in lost])}: users and nodes would not find it any more",
            remedy="write a range that has these addresses, or delete those clusters first",
        )
    else:
        yield _addresses_change(network, layer, new)


def _lost(network: SiteNetwork, layer: SeenLayer) -> list[Address]:
    """Addresses in use that could not be given any more. CKP's own Services get other ones; what another load balancer can give is not known."""
    if network.load_balancers:
        first, last = map(IPv4Address, network.load_balancers)
        return [each for each in layer.addresses if not is_own(each.service) and not first <= IPv4Address(each.address) <= last]
    if network.on_hosts:
        return [each for each in layer.addresses if not is_own(each.service) and each.of_class == ON_HOSTS_CLASS and each.address not in network.on_hosts]
    return []


def _addresses_change(network: SiteNetwork, layer: SeenLayer, new: str) -> Change:
    if network.load_balancers and layer.pool is None:
        return Change(BALANCERS, Action.CREATE, new)
    if network.load_balancers and layer.pool is not None and layer.pool != network.load_balancers:
        return Change(BALANCERS, Action.CHANGE, f"{' to '.join(layer.pool)} becomes {new}")
    before = layer.releases.load_balancer_addresses if layer.releases is not None else ()
    if network.on_hosts and before != network.on_hosts:
        return Change(BALANCERS, Action.CHANGE, f"{balancers.of_hosts(before)} becomes {new}")
    return Change(BALANCERS, Action.NONE, new)
