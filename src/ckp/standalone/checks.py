"""Preflight of a standalone installation: the host can run a control plane, and its networks don't overlap with the cluster's."""

from __future__ import annotations

import ipaddress
import json
import socket
from typing import Any

from ckp.agent.journal import Journal
from ckp.agent.node import machine_checks, preflight
from ckp.agent.node.preflight import Findings
from ckp.agent.system import facts
from ckp.agent.system.installers.base import Installer
from ckp.hostkit.errors import AgentError
from ckp.hostkit.processes import run
from ckp.standalone.address.network import Link, link_of, taken_by
from ckp.standalone.options import CONTROL_PLANE, FIRST, WORKER, Network, Options, default_node_name, is_node_name, network

MEMORY_MIB = 1700
DISK_GIB = 10
CPUS = 2
PORTS = (6443, 10250, 10257, 10259, 2379, 2380)
LOCAL_PORTS = (10257, 10259)
"""Those of PORTS that are on the loopback: kubeadm's controller-manager and scheduler."""
WORKER_PORTS = (10250,)


def host_routes() -> list[tuple[Network, str]]:
    """(network, link) of this host's routes, without default routes."""
    found: list[tuple[Network, str]] = []
    for family in ("-4", "-6"):
        shown = run(["ip", "-j", family, "route", "show", "table", "all"], timeout=20, check=False)
        try:
            routes: list[dict[str, Any]] = json.loads(shown.stdout or "[]")
        except ValueError:
            continue
        for route in routes:
            target = str(route.get("dst", ""))
            if target in ("", "default") or route.get("type", "unicast") != "unicast":
                continue
            try:
                found.append((ipaddress.ip_network(target, strict=False), str(route.get("dev", "?"))))
            except ValueError:
                continue
    return found


def overlaps(wanted: Network, name: str, routes: list[tuple[Network, str]]) -> list[str]:
    """Sentences about routes of this host that overlap with a cluster network; routes of the cluster's own links don't count."""
    lines = []
    for route, link in routes:
        own = link.startswith(("cilium_", "lxc", "cni", "cali"))
        if not own and route.version == wanted.version and route.prefixlen > 0 and wanted.overlaps(route) and not route.is_link_local:
            lines.append(f"the {name} {wanted} overlaps {route}, which this host reaches over {link}")
    return lines


def node_name(found: Findings, options: Options) -> None:
    """Without --node-name (which is checked with the options), the OS' host name must be one that a node can have."""
    name = socket.gethostname()
    if not options.node_name and not is_node_name(default_node_name(name)):
        found.add(f"the host name {name!r} can't be a node's name", "choose one with --node-name")


def preflight_findings(options: Options, journal: Journal, installer: Installer) -> Findings:
    """All findings about this host as what it is to become in its cluster."""
    found = Findings()
    worker = options.role == WORKER
    preflight.common(found, journal, installer)
    found.items += machine_checks.findings(options.host_json)
    node_name(found, options)
    preflight.names(found)
    preflight.memory(found, preflight.WORKER_MEMORY_MIB if worker else MEMORY_MIB)
    if facts.cpus() < CPUS and not worker:
        found.add(f"this host has {facts.cpus()} processor, {CPUS} are needed", "add processors, or use another host")
    if not journal.packages:  # what an installation has taken already is not asked for again
        preflight.disk(found, preflight.WORKER_DISK_GIB if worker else DISK_GIB)
        preflight.ports(found, WORKER_PORTS if worker else PORTS)
    routes = host_routes()
    for text, name in ((options.pod_cidr, "pod CIDR"), (options.service_cidr, "service CIDR")):
        for line in overlaps(network(text, name), name, routes):
            found.add(line, f"choose another {name}" if options.role == FIRST else f"the cluster has this {name}: use another host, or change that route")
    address = options.advertise_address
    mine = facts.addresses()
    if address and address not in mine:
        found.add(f"the advertise address {address} is not an address of this host ({', '.join(mine) or 'it has none'})", "use one of them")
    default = facts.default_address()
    if not address and not default:
        found.add("this host has no address with a route", "configure its network, or use --advertise-address")
    if not address and ":" in default:
        found.add(
            f"this host's default address {default} is an IPv6 address: a standalone cluster has IPv4 networks", "use an IPv4 one with --advertise-address"
        )
    for text, name in ((options.pod_cidr, "pod CIDR"), (options.service_cidr, "service CIDR")):
        chosen = address or default
        if chosen and ipaddress.ip_address(chosen) in network(text, name):
            found.add(f"the host's address {chosen} is in the {name} {text}", f"choose another {name}")
    if options.virtual_address and options.role in (FIRST, CONTROL_PLANE):
        virtual_address(found, options, address or default, fresh=not journal.packages)
    return found


def virtual_address(found: Findings, options: Options, own: str, *, fresh: bool) -> None:
    """The virtual address can be this host's: it is of the same network, and, for the first master, free.

    Args:
        own: this host's address, "" if it has none, which is another finding.
        fresh: nothing was installed yet, so this host does not hold it itself.
    """
    try:
        link = link_of(own) if own else None
        if link is None:
            return
        for problem, remediation in unfit_address(link, options.virtual_address, own):
            found.add(problem, remediation)
            return
        if options.role == FIRST and fresh and (other := taken_by(link, options.virtual_address)):
            found.add(f"the virtual address {options.virtual_address} is taken: the host with the hardware address {other} answers for it", "choose a free one")
    except AgentError as error:
        found.add(error.brief, error.resolution or "the virtual address needs an Ethernet link")


def unfit_address(link: Link, address: str, own: str) -> list[tuple[str, str]]:
    """(problem, remediation) if the address can't be a virtual one on this link."""
    wanted = ipaddress.IPv4Address(address)
    if address == own:
        return [(f"the virtual address {address} is this host's own", f"choose a free address of {link.network}: it moves between hosts")]
    if wanted not in link.network:
        return [(f"the virtual address {address} is not in {link.network}, the network of {own} ({link.name})", "choose a free address of that network")]
    if link.network.prefixlen < 31 and wanted in (link.network.network_address, link.network.broadcast_address):
        return [(f"the virtual address {address} is the network's own or its broadcast address", f"choose a free address of {link.network}")]
    return []
