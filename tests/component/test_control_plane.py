"""What the hosted control plane's reconciler writes, before a real API server: accepted, changed, refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from ckp.api.kinds import CLUSTER, DEPLOYMENT, ENDPOINT_SLICE, ENDPOINTS, MANAGED_CONTROL_PLANE, PDB, SERVICE, STATEFUL_SET
from ckp.clients.kube import Kube, KubeError, Obj
from ckp.controllers.apply import Applier
from ckp.controllers.controlplane import apiserver, etcd, tunnels
from ckp.controllers.controlplane.plan import Plan, disruption_budget
from ckp.controllers.controlplane.service_endpoints import publish
from ckp.kits.clock import SystemClock
from ckp.rules.etcd import quota_for
from tests.component.test_controllers import RELEASES, make_control_plane
from tests.support.control_plane import TestControlPlane

pytestmark = pytest.mark.component


async def plan_of(kube: Kube, namespace: str, **spec: object) -> Plan:
    plane = await kube.get(MANAGED_CONTROL_PLANE, "demo", namespace)
    cluster = await kube.get(CLUSTER, "demo", namespace)
    assert plane and cluster
    plane["spec"] |= spec
    return Plan.of(plane, cluster, RELEASES, "10.88.0.150")


def everything(plan: Plan) -> list[Obj]:
    budget = disruption_budget(plan, "apiserver")
    workloads = [apiserver.api_server(plan), apiserver.controller_manager(plan), apiserver.scheduler(plan)]
    return [etcd.config_map(plan, etcd.NEW), *etcd.etcd_objects(plan), apiserver.service(plan), apiserver.config_map(plan), budget, *workloads]


@pytest.mark.parametrize("replicas", [1, 3])
async def test_all_manifests_are_taken_and_nothing_in_them_is_unknown(kube: Kube, namespace: str, replicas: int) -> None:
    await make_control_plane(kube, namespace)
    made = await plan_of(kube, namespace, replicas=replicas, etcd={"replicas": replicas})
    for obj in everything(made):
        await kube.apply(obj)
    service = apiserver.service(replace(made, routed=True))
    await kube.apply(service)
    pod = {"metadata": {}, "status": {"podIP": "10.244.0.7", "initContainerStatuses": [{"name": tunnels.SERVER, "state": {"running": {}}}]}}
    assert await tunnels.route(kube, Applier(kube, SystemClock()), made, [pod])
    found = await kube.get(ENDPOINT_SLICE, "demo-apiserver-agents", namespace)
    assert found and found["endpoints"][0]["conditions"] == {"ready": True, "serving": True, "terminating": False}
    assert tunnels.is_routed(await kube.get(SERVICE, "demo-apiserver", namespace))
    assert await kube.get(PDB, "demo-etcd", namespace)
    server = await kube.get(DEPLOYMENT, "demo-apiserver", namespace)
    assert server and server["spec"]["template"]["spec"]["initContainers"][0]["restartPolicy"] == "Always"


async def test_deployments_of_0_2_0_are_taken_over(kube: Kube, namespace: str) -> None:
    """They surged by one; beside Recreate the API server accepts nothing of that, so it must go in the same write."""
    await make_control_plane(kube, namespace)
    new = apiserver.controller_manager(await plan_of(kube, namespace))
    surge = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    await kube.apply({**new, "spec": {**new["spec"], "strategy": surge}})
    await kube.apply(new)
    found = await kube.get(DEPLOYMENT, "demo-controller-manager", namespace)
    assert found and found["spec"]["strategy"] == {"type": "Recreate"}
    await kube.apply(new)
    wider = apiserver.controller_manager(await plan_of(kube, namespace, replicas=3))
    await kube.apply(wider)
    found = await kube.get(DEPLOYMENT, "demo-controller-manager", namespace)
    assert found and found["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 1


async def test_etcds_stateful_set_is_applied_again_though_the_spec_asks_for_other_volumes(kube: Kube, namespace: str) -> None:
    await make_control_plane(kube, namespace)
    plan = await plan_of(kube, namespace)
    for obj in etcd.etcd_objects(plan):
        await kube.apply(obj)
    found = await kube.get(STATEFUL_SET, "demo-etcd", namespace)
    other = await plan_of(kube, namespace, etcd={"size": "20Gi", "storageClass": "other"})
    for obj in etcd.etcd_objects(other, etcd.sizing(other, found, [], 0)):
        await kube.apply(obj)
    found = await kube.get(STATEFUL_SET, "demo-etcd", namespace)
    assert etcd.quota_of(found) == quota_for(2 << 30)


async def test_a_change_of_etcds_members_or_volumes_is_refused_with_a_sentence(kube: Kube, namespace: str) -> None:
    await make_control_plane(kube, namespace)
    with pytest.raises(KubeError, match="number of etcd's members can't be changed"):
        await kube.merge(MANAGED_CONTROL_PLANE, "demo", namespace, {"spec": {"etcd": {"replicas": 3}}})
    with pytest.raises(KubeError, match="enlarge the PersistentVolumeClaims"):
        await kube.merge(MANAGED_CONTROL_PLANE, "demo", namespace, {"spec": {"etcd": {"size": "8Gi"}}})
    # What stands for the defaults is no change, and neither is anything else.
    await kube.merge(MANAGED_CONTROL_PLANE, "demo", namespace, {"spec": {"replicas": 3, "etcd": {"replicas": 1}}})
    with pytest.raises(KubeError, match="number of etcd's members can't be changed"):
        await kube.merge(MANAGED_CONTROL_PLANE, "demo", namespace, {"spec": {"etcd": {"replicas": 3}}})
    await kube.merge(MANAGED_CONTROL_PLANE, "demo", namespace, {"spec": {"etcd": None}})


@pytest.fixture
async def as_workload(plane: TestControlPlane) -> AsyncIterator[Kube]:
    """The same API server in the part of a workload cluster's, for a client with our name."""
    client = plane.kube("ckp-controllers")
    yield client
    await client.close()


async def test_the_service_kubernetes_gets_the_load_balancers_address(as_workload: Kube) -> None:
    """The test's API server writes its own address there too, every ten seconds: ours must be taken at once, and taken back the same way."""
    before = await as_workload.get(ENDPOINT_SLICE, "kubernetes", "default")
    assert await publish(as_workload, ["10.88.0.150"], 6443)
    found = await as_workload.get(ENDPOINT_SLICE, "kubernetes", "default")
    assert found and [point["addresses"] for point in found["endpoints"]] == [["10.88.0.150"]]
    assert found["ports"][0]["port"] == 6443
    points = await as_workload.get(ENDPOINTS, "kubernetes", "default")
    assert points and points["subsets"][0]["addresses"] == [{"ip": "10.88.0.150"}]
    assert before is None or before["metadata"]["uid"] == found["metadata"]["uid"], "changed in place: there is no moment without it"
