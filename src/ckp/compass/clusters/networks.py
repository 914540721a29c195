"""Which networks a cluster may have. Pure: no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import AddressValueError, IPv4Address, IPv4Network, NetmaskValueError

from ckp.compass.settings import Reserved
from ckp.kits.errors import InvalidInput
from ckp.rules import pod_network

SERVICE_LARGEST = 12
"""kube-apiserver refuses a larger service network than /12."""
SERVICE_SMALLEST = 28
"""kubeadm wants room for ten services: the tenth address is DNS'."""
POD_LARGEST = 8
"""kube-controller-manager refuses a node mask that is more than sixteen bits longer than the cluster's."""
SPARE = 1
"""Nodes that the pod network has room for beside the workers: a node that replaces another comes before that one has given its network back."""


def parse_cidr(field: str, text: str) -> IPv4Network:
    """A network in canonical form.

    Raises:
        InvalidInput: malformed, with host bits, IPv6, or of a range that cannot be used for pods (loopback, link-local, multicast, 0.0.0.0/8).
    """
    address, slash, mask = text.partition("/")
    try:
        if not slash or not mask.isdecimal() or not mask.isascii() or mask != str(int(mask)):
            raise AddressValueError("a prefix length is missing" if not slash else f"{mask!r} is not a prefix length")
        network = IPv4Network((IPv4Address(address), int(mask)), strict=False)
    except (AddressValueError, NetmaskValueError, ValueError) as error:
        hint = "IPv6 is not supported yet; use an IPv4 network like 10.42.0.0/16" if ":" in text else "write it like 10.42.0.0/16"
        raise InvalidInput(f"{field}: {text!r} is not a network: {error}", resolution=hint) from None
    if str(network) != text:
        raise InvalidInput(f"{field}: {text!r} has bits set beyond its prefix", resolution=f"write {network}")
    for bad, what in _UNUSABLE:
        if network.overlaps(bad):
            raise InvalidInput(f"{field}: {text} lies in {bad} ({what})", resolution="use a private network like 10.42.0.0/16")
    return network


_UNUSABLE = (
    (IPv4Network("0.0.0.0/8"), "this network"),
    (IPv4Network("127.0.0.0/8"), "loopback"),
    (IPv4Network("169.254.0.0/16"), "link-local"),
    (IPv4Network("224.0.0.0/4"), "multicast"),
    (IPv4Network("240.0.0.0/4"), "reserved"),
)


def check_networks(
    pod_cidr: str, service_cidr: str, *, workers: int, reserved: Sequence[Reserved], host_addresses: Iterable[tuple[str, str]]
) -> tuple[IPv4Network, IPv4Network]:
    """The two networks of a cluster, once they are checked.

    Args:
        workers: nodes that each need a /24 of the pod network; SPARE more are needed.
        reserved: networks that are taken, with their names (the hosts' network, the management cluster's).
        host_addresses: (host, address) of the machines that will be its nodes.

    Raises:
        InvalidInput: names the field, what is wrong, and what it collides with.
    """
    pods, services = parse_cidr("podCIDR", pod_cidr), parse_cidr("serviceCIDR", service_cidr)
    if pods.overlaps(services):
        raise InvalidInput(f"podCIDR {pods} and serviceCIDR {services} overlap", resolution="choose two networks that share no address")
    if pods.prefixlen < POD_LARGEST:
        raise InvalidInput(f"podCIDR: {pods} is larger than /{POD_LARGEST}")
    room = pod_network.room(pods)
    if room < workers + SPARE:
        raise InvalidInput(
            f"podCIDR: {pods} has room for {room} {'node' if room == 1 else 'nodes'} (a /{pod_network.NODE_MASK} each), and {workers + SPARE} are needed",
            details=f"{workers} for the workers, and {SPARE} for a node that replaces one of them before that one's network is given back",
            resolution=f"use a /{max(POD_LARGEST, pod_network.NODE_MASK - (workers + SPARE - 1).bit_length())} or larger",
        )
    if not SERVICE_LARGEST <= services.prefixlen <= SERVICE_SMALLEST:
        raise InvalidInput(
            f"serviceCIDR: {services} must be between /{SERVICE_LARGEST} and /{SERVICE_SMALLEST}",
            resolution="a /16 like 10.43.0.0/16 is usual",
        )
    for field, network in (("podCIDR", pods), ("serviceCIDR", services)):
        for taken in reserved:
            if network.overlaps(taken.network):
                raise InvalidInput(f"{field}: {network} overlaps {taken.network} ({taken.name})", resolution="choose a network that nothing else uses")
        for host, address in host_addresses:
            if _holds(network, address):
                raise InvalidInput(f"{field}: {network} holds the address {address} of host {host}", resolution="choose a network that nothing else uses")
    return pods, services


def check_address(address: str, networks: Iterable[tuple[str, IPv4Network]]) -> str:
    """The control plane's address: an IPv4 address outside the cluster's own networks."""
    try:
        parsed = IPv4Address(address)
    except AddressValueError as error:
        raise InvalidInput(f"address: {address!r} is not an IPv4 address: {error}") from None
    for bad, what in _UNUSABLE:
        if parsed in bad:
            raise InvalidInput(f"address: {address} lies in {bad} ({what})")
    for field, network in networks:
        if parsed in network:
            raise InvalidInput(f"address: {address} lies in {field} {network}", resolution="take one that the hosts can reach, outside the cluster's networks")
    return str(parsed)


def _holds(network: IPv4Network, address: str) -> bool:
    try:
        return IPv4Address(address.partition("/")[0]) in network
    except AddressValueError:
        return False  # an IPv6 address of a host cannot collide
