"""Whether an address that a cluster asks for is free in the management cluster, and one that its load balancer can give."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import AddressValueError, IPv4Address, IPv4Network

from ckp.api import kinds
from ckp.api.names import ADDRESSES_ANNOTATION, OLDER_ADDRESSES_ANNOTATION
from ckp.api.objects.control_plane import ManagedControlPlane
from ckp.clients.kube import Kube, KubeError, Obj
from ckp.kits.errors import InvalidInput

FREE = "take one of these, or leave it out: a free one is given"


async def check_free(kube: Kube, address: str, *, namespace: str, cluster: str, among: Sequence[str] = ()) -> None:
    """Pass if nothing but this cluster itself has the address or asks for it, and a pool of the load balancer has it.

    Args:
        among: addresses of the management hosts, where the site gives those; empty: there is a load balancer.

    Where the management cluster has no pools of Cilium's, another load balancer gives addresses; which it can give is not known then.

    Raises:
        InvalidInput: says who has it, or which pools there are. What belongs to another project is not named.
        KubeError: the management cluster can't be asked.
    """
    wanted = IPv4Address(address)
    for plane in await kube.list(kinds.MANAGED_CONTROL_PLANE):
        found = ManagedControlPlane.of(plane)
        if (found.namespace, found.name) != (namespace, cluster) and address in (found.spec.load_balancer.address, found.spec.control_plane_endpoint.host):
            raise _taken(address, f"cluster {found.name}" if found.namespace == namespace else "a cluster of another project")
    for service in await kube.list(kinds.SERVICE):
        meta = service["metadata"]
        if address in _addresses(service) and (meta["namespace"], meta["name"]) != (namespace, f"{cluster}-apiserver"):
            raise _taken(address, f"Service {meta['namespace']}/{meta['name']} of the management cluster")
    if among:
        if address not in among:
            known = ", ".join(among)
            raise InvalidInput(f"address: {address} is not one that this site gives to clusters", details=f"it gives: {known}", resolution=FREE)
        return
    pools = await _pools(kube)
    if pools and not any(_in_block(wanted, block) for pool in pools for block in (pool.get("spec") or {}).get("blocks") or []):
        ranges = [text for pool in pools for block in (pool.get("spec") or {}).get("blocks") or [] if (text := _text(block))]
        raise InvalidInput(
            f"address: {address} is in no pool of the management cluster's load balancer",
            details=f"its pools have: {', '.join(ranges) or 'no address'}",
            resolution=FREE,
        )


def _taken(address: str, owner: str) -> InvalidInput:
    return InvalidInput(f"address: {address} is taken by {owner}", resolution="take another one, or leave it out: the load balancer gives a free one")


async def _pools(kube: Kube) -> list[Obj]:
    try:
        found = await kube.list(kinds.LB_POOL)
    except KubeError as error:
        if error.code == 404:
            return []
        raise
    return [pool for pool in found if not (pool.get("spec") or {}).get("disabled")]


def _addresses(service: Obj) -> set[str]:
    """All addresses that a Service has or asks for."""
    spec, annotations = service.get("spec") or {}, service["metadata"].get("annotations") or {}
    asked = [item.strip() for name in (ADDRESSES_ANNOTATION, OLDER_ADDRESSES_ANNOTATION) for item in str(annotations.get(name, "")).split(",")]
    given = [str(item.get("ip", "")) for item in ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or []]
    own = [str(spec.get("loadBalancerIP", "")), *spec.get("clusterIPs", ()), str(spec.get("clusterIP", "")), *spec.get("externalIPs", ())]
    return {item for item in (*asked, *given, *own) if item}


def _text(block: Obj) -> str:
    return str(block.get("cidr") or "-".join(dict.fromkeys(item for item in (block.get("start"), block.get("stop")) if item)))


def _in_block(address: IPv4Address, block: Obj) -> bool:
    """Whether a pool's block (cidr, or start and perhaps stop) has the address; what is not IPv4 has none."""
    try:
        if block.get("cidr"):
            return address in IPv4Network(str(block["cidr"]), strict=False)
        first = IPv4Address(str(block.get("start")))
        return first <= address <= IPv4Address(str(block.get("stop") or first))
    except (AddressValueError, ValueError):
        return False
