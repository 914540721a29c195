"""By which address a control plane is reached: the one that its cluster was made with, and what can't be one. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ckp.api.states import Reason

API_PORT = 6443
NAME_PATTERN = r"^(\*\.)?[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$"
"""A DNS name (RFC 1123), perhaps with a wildcard for its first label; an IPv4 address matches as well."""


@dataclass(frozen=True)
class Asked:
    """What the objects say about one control plane's endpoint."""

    host: str = ""
    """spec.controlPlaneEndpoint.host: given by the user, or taken from the load balancer; empty before that."""
    port: int = 0
    cluster_host: str = ""
    """What hosts and users were told: the Cluster's own endpoint, which is set once; empty before that."""
    load_balancer: str = ""
    """spec.loadBalancer.address."""
    names: Sequence[str] = ()
    """spec.certSANs."""
    pinned: str = ""
    """The address that was asked of the load balancer last."""
    given: Sequence[str] = ()
    """Addresses and names that the load balancer has given to the API server's Service."""
    made: bool = False
    """Whether the control plane was up once."""


@dataclass(frozen=True)
class Settled:
    """What follows from it; `host` and `address` are known also while the Service has lost the address."""

    ask: str = ""
    """The address to ask the load balancer for; empty: any."""
    host: str = ""
    """By which users and workers reach the API server: an IPv4 address or a name."""
    address: str = ""
    """The IPv4 address that the API server advertises to pods."""
    reason: Reason | None = None
    message: str = ""


def is_ipv4(text: str) -> bool:
    """Whether it is an IPv4 address."""
    try:
        return ipaddress.ip_address(text).version == 4
    except ValueError:
        return False


def is_name(text: str) -> bool:
    """Whether it is a DNS name, which an address is not, nor anything whose last label is a number."""
    return len(text) <= 253 and bool(re.match(NAME_PATTERN, text)) and not text.rpartition(".")[2].isdigit()


def server_names(cluster: str, namespace: str, domain: str) -> tuple[str, ...]:
    """DNS names that the certificate of every API server has: those by which pods call it (kubeadm's rule), and its Service in the management cluster."""
    service = f"{cluster}-apiserver"
    kubernetes = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", f"kubernetes.default.svc.{domain}")
    return (*kubernetes, "localhost", service, f"{service}.{namespace}", f"{service}.{namespace}.svc")


def server_addresses(service_cidr: str) -> tuple[str, ...]:
    """Addresses that the certificate of every API server has: its own, and the Service `kubernetes`, which has the first of the range."""
    return ("127.0.0.1", str(ipaddress.ip_network(service_cidr)[1]))


def settle(asked: Asked) -> Settled:
    """Settle the endpoint. With a reason, the endpoint is not available, and the message says what to do."""
    if said := _refusal(asked):
        return Settled(reason=Reason.UNUSABLE_ENDPOINT, message=said)
    addresses = [item for item in asked.given if is_ipv4(item)]
    if asked.made and addresses and is_ipv4(asked.host) and asked.host not in addresses and not (asked.pinned or asked.load_balancer):
        return _unexplained(asked, addresses)
    ask = _address_to_ask(asked, addresses)
    host = asked.host or ask or next(iter(addresses), "")
    settled = Settled(ask, host, host if is_ipv4(host) else ask)
    if asked.given and not addresses:
        message = f"the load balancer has given the API server's Service {', '.join(asked.given)}, and pods can be told only an IPv4 address of it"
        return _because(settled, Reason.UNUSABLE_ENDPOINT, f"{message}: use a load balancer that gives one")
    if not addresses and not ask:
        return _because(settled, Reason.WAITING, "no load balancer has given the API server's Service an address yet")
    if ask and ask not in addresses:
        return _without_its_address(asked, settled, addresses)
    if asked.load_balancer and asked.load_balancer != ask:
        message = f"spec.loadBalancer.address is {asked.load_balancer}, and the cluster was made with {ask}, which hosts and kubeconfigs depend on: set it back"
        return _because(settled, Reason.UNUSABLE_ENDPOINT, message)
    return settled


def _unexplained(asked: Asked, addresses: Sequence[str]) -> Settled:
    """Of CKP 0.2.0, which asked for nothing: the address was lost, or it is forwarded to the load balancer's. Asking for it would end the latter."""
    has = ", ".join(addresses)
    message = f"the API server's Service has {has}, and hosts and kubeconfigs know {asked.host}: if that is forwarded to it, set spec.loadBalancer.address to "
    message += f"{addresses[0]}; if it was lost, set spec.loadBalancer.address to {asked.host}"
    return Settled("", asked.host, asked.host, Reason.ADDRESS_LOST, message)


def _without_its_address(asked: Asked, settled: Settled, addresses: Sequence[str]) -> Settled:
    """The Service has no address, or another one than is asked for."""
    ask, has = settled.ask, ", ".join(addresses) or "no address"
    remedy = f"if another Service has {ask}, take it away there; if it is in none of the load balancer's pools, put it there"
    if not asked.made:
        return _because(settled, Reason.WAITING, f"the API server's Service has {has}, and waits for {ask}: {remedy}")
    if is_name(settled.host) and addresses:
        remedy += f"; or, if {settled.host} leads to {has} now, remove the annotation by which the Service asks for {ask}"
    message = f"the API server's Service has {has}, and the cluster was made with {ask}, which hosts and pods depend on; it is asked for again: {remedy}"
    return _because(settled, Reason.ADDRESS_LOST, message)


def _because(settled: Settled, reason: Reason, message: str) -> Settled:
    return Settled(settled.ask, settled.host, settled.address, reason, message)


def _refusal(asked: Asked) -> str:
    host, where = asked.host, "spec.controlPlaneEndpoint"
    if host and not is_ipv4(host) and not (is_name(host) and not host.startswith("*")):
        return f"{where}.host is {host}: give an IPv4 address or a DNS name; IPv6 is not supported"
    if asked.cluster_host and host and asked.cluster_host != host:
        return f"{where}.host is {host}, and the cluster was made with {asked.cluster_host}, which hosts and kubeconfigs depend on: set it back"
    if host and asked.port not in (0, API_PORT):
        return f"{where}.port is {asked.port}, and API servers are reached at {API_PORT}: set it to {API_PORT}"
    if asked.load_balancer and not is_ipv4(asked.load_balancer):
        return f"spec.loadBalancer.address is {asked.load_balancer}: give an IPv4 address"
    wrong = [item for item in asked.names if not is_ipv4(item) and not is_name(item)]
    return f"spec.certSANs has {', '.join(wrong)}: give IPv4 addresses and DNS names" if wrong else ""


def _address_to_ask(asked: Asked, addresses: Sequence[str]) -> str:
    """Once known, the address is always asked for, so that the load balancer gives the same again.

    An IPv4 host is itself the address, unless the user says, from the beginning, that the load balancer's is another one: then the host is forwarded to it.
    """
    if not is_ipv4(asked.host):
        return asked.load_balancer or asked.pinned or next(iter(addresses), "")
    forwarded = asked.load_balancer and asked.pinned != asked.host
    return asked.load_balancer if forwarded else asked.host
