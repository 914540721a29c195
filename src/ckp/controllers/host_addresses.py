"""Gives Services of the class ON_HOSTS an address that a management host has, where a site names such addresses in place of a load balancer.

The node's network takes a Service's address from its status, whoever has written it, and does not announce it: the host that has it answers ARP.
With the class, Cilium neither gives the Service an address of a pool, nor drops what comes to other ports of that address, which are the host's own
(v1.19.5, pkg/loadbalancer/reconciler/bpf_reconciler.go: isWildcardClass).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ckp.api.kinds import SERVICE
from ckp.api.names import ADDRESSES_ANNOTATION, ON_HOSTS_CLASS
from ckp.clients.kube import Kube, Obj
from ckp.controllers.scope import deleting
from ckp.rules.host_addresses import choose
from ckp.runtime.controller import Result


def of_class(service: Obj) -> bool:
    """Whether a Service gets its address here."""
    spec = service.get("spec") or {}
    return spec.get("type") == "LoadBalancer" and spec.get("loadBalancerClass") == ON_HOSTS_CLASS


def waits(service: Obj) -> bool:
    """Whether it is to get an address and has none."""
    return of_class(service) and not _has(service)


def _has(service: Obj) -> str:
    ingress = ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or [{}]
    return str(ingress[0].get("ip") or "")


def _asked(service: Obj) -> str:
    annotations = service["metadata"].get("annotations") or {}
    return str(annotations.get(ADDRESSES_ANNOTATION) or service["spec"].get("loadBalancerIP") or "")


@dataclass
class HostAddressesReconciler:
    """One Service after the other, so that no two are given the same address.

    Args:
        addresses: those that may be given.
    """

    kube: Kube
    addresses: Sequence[str]

    async def reconcile(self, namespace: str, name: str) -> Result:
        """Give the Service its address; one that has it is left alone, one for which there is none loses what it may not have."""
        service = await self.kube.get(SERVICE, name, namespace)
        if service is None or deleting(service) or not of_class(service):
            return Result()
        others = [item for item in await self.kube.list(SERVICE) if of_class(item) and item["metadata"].get("uid") != service["metadata"].get("uid")]
        taken = {address for item in others for address in (_has(item), _asked(item)) if address}
        has = _has(service)
        address = choose(self.addresses, asked=_asked(service), has=has, taken=taken)
        if address != has:
            ingress = [{"ip": address}] if address else []
            await self.kube.merge(SERVICE, name, namespace, {"status": {"loadBalancer": {"ingress": ingress}}}, subresource="status")
        return Result()
