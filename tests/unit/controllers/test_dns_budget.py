"""A disruption budget for CoreDNS: there, unless its owner has one, which is never to be the second one of the same pods."""

from __future__ import annotations

import pytest

from ckp.api import kinds
from ckp.clients.kube import KubeError, Obj
from ckp.controllers.workload_health import dns_budget
from tests.simulators.kube import KubeSimulator
from tests.unit.controllers.test_workload_health import Bench

SYSTEM = "kube-system"
DNS = {"matchLabels": {"k8s-app": "kube-dns"}}


@pytest.fixture
def workload() -> KubeSimulator:
    return KubeSimulator(manager="ckp-controllers", namespaces=(SYSTEM, "shop"))


async def owned(workload: KubeSimulator, name: str, selector: Obj, namespace: str = SYSTEM) -> None:
    meta = {"name": name, "namespace": namespace}
    await workload.create({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": meta, "spec": {"minAvailable": 1, "selector": selector}})


async def budgets(workload: KubeSimulator) -> dict[str, Obj]:
    return {item["metadata"]["name"]: item["spec"] for item in await workload.list(kinds.PDB, SYSTEM)}


async def test_it_is_made_once_and_lets_one_pod_go_at_a_time(workload: KubeSimulator) -> None:
    await dns_budget.keep(workload)
    assert await budgets(workload) == {"ckp-coredns": {"maxUnavailable": 1, "selector": DNS}}
    before = workload.stored(kinds.PDB, "ckp-coredns", SYSTEM)["metadata"]["resourceVersion"]
    await dns_budget.keep(workload)
    assert workload.stored(kinds.PDB, "ckp-coredns", SYSTEM)["metadata"]["resourceVersion"] == before, "nothing to do, nothing written"


@pytest.mark.parametrize("selector", [DNS, {}, {"matchExpressions": [{"key": "k8s-app", "operator": "In", "values": ["kube-dns", "x"]}]}])
async def test_it_gives_way_to_one_of_the_owner_s(workload: KubeSimulator, selector: Obj) -> None:
    await dns_budget.keep(workload)
    await owned(workload, "mine", selector)
    await dns_budget.keep(workload)
    assert list(await budgets(workload)) == ["mine"], "two budgets of one pod: the eviction API would refuse it"
    await workload.delete(kinds.PDB, "mine", SYSTEM)
    await dns_budget.keep(workload)
    assert list(await budgets(workload)) == ["ckp-coredns"]


async def test_budgets_of_other_pods_do_not_matter(workload: KubeSimulator) -> None:
    await owned(workload, "other", {"matchLabels": {"k8s-app": "metrics-server"}})
    await owned(workload, "elsewhere", DNS, "shop")
    await dns_budget.keep(workload)
    assert sorted(await budgets(workload)) == ["ckp-coredns", "other"]


async def test_a_cluster_that_refuses_it_is_judged_all_the_same() -> None:
    bench = Bench()
    await bench.start()
    await bench.look()
    await bench.canary()
    await bench.workload.delete(kinds.PDB, "ckp-coredns", SYSTEM)
    bench.workload.on_fault(lambda _verb, kind, _name: KubeError("denied by a webhook", code=403) if kind is kinds.PDB else None)
    assert (await bench.look(60))[0] == "True"
