"""Services of type LoadBalancer where a site gives addresses that its hosts have, against a simulated API server."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ckp.api import kinds
from ckp.api.names import ADDRESSES_ANNOTATION, ON_HOSTS_CLASS
from ckp.controllers.controlplane import apiserver
from ckp.controllers.host_addresses import HostAddressesReconciler, waits
from tests.simulators.kube import KubeSimulator
from tests.unit.controllers.test_control_plane_manifests import plan

A, B = "192.0.2.61", "192.0.2.62"
NAMESPACE = "ckp-a-b"


class Bench:
    """A management cluster in which hosts have A and B."""

    def __init__(self) -> None:
        self.kube = KubeSimulator(manager="ckp-controllers", namespaces=(NAMESPACE,))
        self.reconciler = HostAddressesReconciler(self.kube, (A, B))

    async def service(self, name: str, *, asks: str = "", of_class: str = ON_HOSTS_CLASS) -> None:
        spec: dict[str, Any] = {"type": "LoadBalancer", **({"loadBalancerClass": of_class} if of_class else {})}
        meta = {"name": name, "namespace": NAMESPACE, "annotations": {ADDRESSES_ANNOTATION: asks} if asks else {}}
        await self.kube.create({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec})

    async def reconcile(self, *names: str) -> list[str]:
        """What these Services have afterwards, one reconciled after the other."""
        for name in names:
            await self.reconciler.reconcile(NAMESPACE, name)
        found = [await self.kube.get(kinds.SERVICE, name, NAMESPACE) or {} for name in names]
        return [",".join(item["ip"] for item in ((each.get("status") or {}).get("loadBalancer") or {}).get("ingress") or []) for each in found]


async def test_each_service_gets_another_address_and_keeps_it() -> None:
    bench = Bench()
    for name in ("one", "two", "three"):
        await bench.service(name)
    assert await bench.reconcile("one", "two", "three") == [A, B, ""]
    assert await bench.reconcile("two", "three", "one") == [B, "", A]
    third = await bench.kube.get(kinds.SERVICE, "three", NAMESPACE)
    assert third is not None and waits(third)
    await bench.kube.delete(kinds.SERVICE, "one", NAMESPACE)
    assert await bench.reconcile("three") == [A]


async def test_an_address_that_is_asked_for_is_left_to_whom_asks_for_it() -> None:
    bench = Bench()
    await bench.service("any")
    await bench.service("compass", asks=A)
    assert await bench.reconcile("any", "compass") == [B, A], "whoever comes first"
    await bench.service("hub", asks=B)
    assert await bench.reconcile("any", "hub") == ["", B], "it had taken what was free; nobody has one that another has"


@pytest.mark.parametrize("of_class", ["", "metallb.example/lb"])
async def test_services_of_others_are_left_alone(of_class: str) -> None:
    bench = Bench()
    await bench.service("theirs", of_class=of_class)
    assert await bench.reconcile("theirs", "gone") == ["", ""]


@pytest.mark.parametrize(
    ("of_class", "asks", "expected"),
    [
        ("", A, {}),
        ("metallb.example/lb", A, {"loadBalancerClass": "metallb.example/lb", "loadBalancerIP": A}),
        (ON_HOSTS_CLASS, "", {"loadBalancerClass": ON_HOSTS_CLASS}),
    ],
)
def test_a_control_planes_service_is_of_the_sites_class(of_class: str, asks: str, expected: dict[str, str]) -> None:
    service = apiserver.service(replace(plan(loadBalancer={"address": asks} if asks else {}), load_balancer_class=of_class))
    assert {key: value for key, value in service["spec"].items() if key.startswith("loadBalancer")} == expected
    assert service["metadata"]["annotations"] == ({ADDRESSES_ANNOTATION: asks} if asks else {})
