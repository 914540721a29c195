"""The endpoints behind the Service `default/kubernetes` of a workload cluster: the load balancer's address, written by these controllers.

API servers can do it themselves, but each one that stops takes its address away; behind one load balancer all have the same address, so pods lost the API
server with every replacement. So they run with `--endpoint-reconciler-type=none`. The objects' form is upstream's (pkg/controlplane/reconcilers).
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from typing import Any

from ckp.api.kinds import ENDPOINT_SLICE, ENDPOINTS
from ckp.clients.kube import Kube, Obj

SERVICE = "kubernetes"
NAMESPACE = "default"
SERVICE_LABEL = "kubernetes.io/service-name"
MANAGER_LABEL = "endpointslice.kubernetes.io/managed-by"
MANAGER = "ckp-controllers"
SKIP_MIRROR_LABEL = "endpointslice.kubernetes.io/skip-mirror"


def endpoints(addresses: Sequence[str], port: int) -> Obj:
    """The Endpoints; Kubernetes makes no slice of its own from them."""
    return {
        "apiVersion": ENDPOINTS.api_version,
        "kind": ENDPOINTS.kind,
        "metadata": {"name": SERVICE, "namespace": NAMESPACE, "labels": {SKIP_MIRROR_LABEL: "true"}},
        "subsets": [{"addresses": [{"ip": address} for address in addresses], "ports": [_port(port)]}],
    }


def endpoint_slice(addresses: Sequence[str], port: int) -> Obj:
    """The EndpointSlice, which is what nodes read."""
    return {
        "apiVersion": ENDPOINT_SLICE.api_version,
        "kind": ENDPOINT_SLICE.kind,
        "metadata": {"name": SERVICE, "namespace": NAMESPACE, "labels": {SERVICE_LABEL: SERVICE, MANAGER_LABEL: MANAGER}},
        "addressType": f"IPv{ipaddress.ip_address(addresses[0]).version}",
        "endpoints": [{"addresses": [address], "conditions": {"ready": True}} for address in addresses],
        "ports": [_port(port)],
    }


def _port(port: int) -> Obj:
    return {"name": "https", "port": port, "protocol": "TCP"}


async def addresses_of(host: str) -> list[str]:
    """The addresses of an endpoint that is an address or a name: of one family, IPv4 if there is any, sorted.

    Raises:
        OSError: the name can't be resolved.
    """
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        found = {str(item[4][0]) for item in await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    parsed = sorted(map(ipaddress.ip_address, found), key=lambda address: (address.version, int(address)))
    return [str(address) for address in parsed if address.version == parsed[0].version]


async def publish(workload: Kube, addresses: Sequence[str], port: int) -> bool:
    """Make the endpoints be so, and the only ones; what is right already is not written.

    Args:
        workload: the workload cluster, as one who may write there.
        addresses: of one family, in the order of addresses_of.

    Returns:
        Whether anything had to be written.

    Raises:
        KubeError: the cluster refuses, or can't be reached.
    """
    wanted_slice, wanted = endpoint_slice(addresses, port), endpoints(addresses, port)
    written = False
    kept, others = None, []
    for found in await workload.list(ENDPOINT_SLICE, NAMESPACE, labels={SERVICE_LABEL: SERVICE}):
        if found["metadata"]["name"] == SERVICE and found.get("addressType") == wanted_slice["addressType"]:
            kept = found
        elif found["metadata"]["name"] == SERVICE:  # of the other family, which can't be changed
            await workload.delete(ENDPOINT_SLICE, SERVICE, NAMESPACE)
        else:
            others.append(str(found["metadata"]["name"]))
    if kept is None or not _holds(kept, _untyped(wanted_slice)):
        await workload.apply(wanted_slice)
        written = True
    present = await workload.get(ENDPOINTS, SERVICE, NAMESPACE)
    if present is None or not _holds(present, _untyped(wanted)):
        await workload.apply(wanted)
        written = True
    # Only once the right one is there, so that there is always one.
    for name in others:
        await workload.delete(ENDPOINT_SLICE, name, NAMESPACE)
        written = True
    return written


def _untyped(obj: Obj) -> Obj:
    """Without what the items of a list do not say of themselves."""
    return {key: value for key, value in obj.items() if key not in ("apiVersion", "kind")}


def _holds(found: Any, wanted: Any) -> bool:
    """Whether `found` says all that `wanted` does; lists must be equal in length."""
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(_holds(found.get(key), value) for key, value in wanted.items())
    if isinstance(wanted, list):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(_holds, found, wanted))
    return bool(found == wanted)
