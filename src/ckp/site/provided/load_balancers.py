"""How Services of type LoadBalancer get an address: from a range by Cilium, from a load balancer that is there, or from addresses of the hosts."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from ckp.api.names import ADDRESSES_ANNOTATION, ON_HOSTS_CLASS, load_balancer
from ckp.site.inventory import SiteNetwork

Obj = dict[str, Any]
CILIUM = ("CiliumLoadBalancerIPPool", "CiliumL2AnnouncementPolicy")
"""Kinds of deploy/30-load-balancer.yaml, which give addresses of a range and announce them."""


def class_of(network: SiteNetwork) -> str:
    """What Services' spec.loadBalancerClass is; empty with a range of Cilium's. It stays as long as a Service exists."""
    return ON_HOSTS_CLASS if network.on_hosts else network.load_balancer_class


def of_site(objects: Sequence[Obj], network: SiteNetwork) -> list[Obj]:
    """Manifests of the management layer as this site has them: its Services' class and address, and Cilium's objects only with a range."""
    name = class_of(network)
    if not name:
        return list(objects)
    return [_classed(each, name) for each in objects if each["kind"] not in CILIUM]


def _classed(each: Obj, name: str) -> Obj:
    if each["kind"] != "Service" or each["spec"].get("type") != "LoadBalancer":
        return each
    found = copy.deepcopy(each)
    found["spec"] |= load_balancer(name, str(found["metadata"]["annotations"][ADDRESSES_ANNOTATION]))
    return found


def described(network: SiteNetwork) -> str:
    """For people."""
    if network.load_balancers:
        return " to ".join(network.load_balancers)
    return of_hosts(network.on_hosts) if network.on_hosts else f"the load balancer of class {network.load_balancer_class}"


def of_hosts(addresses: Sequence[str]) -> str:
    """Addresses of hosts for people."""
    return f"{', '.join(addresses)} of the hosts"


def of_class(name: str, pool: tuple[str, str] | None) -> str:
    """What gives addresses to a Service that is there, for people."""
    if name == ON_HOSTS_CLASS:
        return "addresses of the hosts (`onHosts`)"
    return f"the load balancer of class {name} (`className`)" if name else f"a range of Cilium's (`ciliumPool`{', ' + ' to '.join(pool) if pool else ''})"


def no_address(network: SiteNetwork) -> str:
    """What to do where Compass' Service has no address."""
    if network.load_balancer_class:
        name = network.load_balancer_class
        return f"see that a load balancer of class {name} runs in the management cluster and may give {network.compass}, and run the same command again"
    return f"see that this machine reaches {network.compass}, and run the same command again"
