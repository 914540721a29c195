"""Rules about a site's addresses, for the file that describes a site and for an inventory. All addresses are IPv4."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network
from itertools import combinations

from ckp.site.spec.findings import Finding

OWN_NETWORK = "give each a network of its own"
SMALLEST_SERVICES, LARGEST_SERVICES = 28, 12
"""Prefix lengths: the cluster's own services take the first ten addresses; the API server accepts at most a /12."""


def overlaps(networks: Mapping[str, IPv4Network | None], labels: Mapping[str, str]) -> Iterator[Finding]:
    """Networks that have addresses in common; found at the later one.

    Args:
        networks: key -> network; None is left out.
        labels: key -> how to call that network in an error.
    """
    known = [(key, network) for key, network in networks.items() if network is not None]
    for (one, first), (other, second) in combinations(known, 2):
        if first.overlaps(second):
            yield Finding((other,), f"the site's networks overlap: {labels[one]} {first} and {labels[other]} {second}", OWN_NETWORK)


def service_network(network: IPv4Network) -> Iterator[Finding]:
    """Whether a cluster can have this network for its services."""
    if network.prefixlen > SMALLEST_SERVICES:
        yield Finding((), f"the services' network {network} is too small", f"write at least a /{SMALLEST_SERVICES}, such as 10.96.0.0/16")
    if network.prefixlen < LARGEST_SERVICES:
        yield Finding((), f"the services' network {network} is too large", f"write at most a /{LARGEST_SERVICES}, such as 10.96.0.0/16")


def pool(first: IPv4Address, last: IPv4Address, hosts: IPv4Network | None) -> Iterator[Finding]:
    """The range that load balancers take addresses from: announced by ARP, so it lies in the hosts' network."""
    if first > last:
        yield Finding(("first",), f"the load balancers' range {first} to {last} ends before it begins", "write the lower address as `first`")
    elif hosts is not None and (first not in hosts or last not in hosts):
        where = ("last",) if first in hosts else ("first",)
        yield Finding(where, f"the load balancers' range {first} to {last} is not in the hosts' network {hosts}", "take free addresses of that network")


def services(compass: IPv4Address | None, hub: IPv4Address | None, first: IPv4Address | None, last: IPv4Address | None) -> Iterator[Finding]:
    """The addresses of Compass and the hub: different ones, and of the load balancers' range if there is one."""
    if compass is not None and compass == hub:
        yield Finding(("hub",), f"Compass and the hub have the same address {hub}", "give each an address of the load balancers' range")
    if first is None or last is None or first > last:
        return
    for key, what, address in (("compass", "Compass", compass), ("hub", "the hub", hub)):
        if address is not None and not first <= address <= last:
            yield Finding((key,), f"the address {address} of {what} is not in the load balancers' range {first} to {last}", "take an address of that range")


def host_address(address: IPv4Address, network: IPv4Network | None) -> Iterator[Finding]:
    """Whether an interface in the hosts' network can have this address."""
    if network is None:
        return
    if address not in network:
        yield Finding((), f"the address {address} is not in the hosts' network {network}", "write an address of that network, or correct addresses.hosts")
    elif network.prefixlen < 31 and address in (network.network_address, network.broadcast_address):
        end = "first" if address == network.network_address else "last"
        yield Finding((), f"the address {address} is the {end} one of {network}, which no interface can have", "write another address of that network")
