"""The manifests of a hosted control plane: what they must say, whatever the spec."""

from __future__ import annotations

from typing import Any

import pytest

from ckp.api import kinds
from ckp.api.names import CLUSTER_NAME_LABEL
from ckp.api.platform import Releases
from ckp.clients.kube import Obj
from ckp.controllers.controlplane import apiserver
from ckp.controllers.controlplane.plan import Plan
from tests.worlds.control_plane import TENANT, release


def plan(version: str = "v1.35.1", **spec: Any) -> Plan:
    """Of a control plane with this spec."""
    meta = {"name": "demo", "namespace": TENANT, "uid": "u-1", "labels": {CLUSTER_NAME_LABEL: "demo"}}
    plane = {"apiVersion": kinds.MANAGED_CONTROL_PLANE.api_version, "kind": "ManagedControlPlane", "metadata": meta, "spec": {"version": version, **spec}}
    cluster = {"apiVersion": kinds.CLUSTER.api_version, "kind": "Cluster", "metadata": meta, "spec": {}}
    return Plan.of(plane, cluster, Releases(releases={version: release(version)}), "10.88.0.150")


def flags(workload: Obj) -> dict[str, str]:
    """Of the first container's command."""
    command = workload["spec"]["template"]["spec"]["containers"][0]["command"]
    return dict(item[2:].split("=", 1) for item in command if item.startswith("--"))


@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize("component", [apiserver.controller_manager, apiserver.scheduler])
def test_one_controller_manager_and_one_scheduler_work_at_a_time(component: Any, replicas: int) -> None:
    """A lease decides; and a rollout never starts a second pod beside a single one."""
    made = component(plan(replicas=replicas))
    assert flags(made)["leader-elect"] == "true"
    strategy = made["spec"]["strategy"]
    assert strategy == {"type": "Recreate", "rollingUpdate": None} if replicas == 1 else strategy["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


def api_pod(version: str, **status: str) -> Obj:
    template = apiserver.api_server(plan(version))["spec"]["template"]
    return {"metadata": {"name": f"demo-apiserver-{version}"}, "spec": template["spec"], "status": status}


def test_an_api_server_of_another_version_counts_until_its_pod_is_gone() -> None:
    """Also one that is ending and in no count of the Deployment's; a finished pod serves nothing."""
    wanted = plan("v1.35.1")
    new, old = api_pod("v1.35.1", phase="Running"), api_pod("v1.34.3", phase="Running")
    old["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert apiserver.serves_only(wanted, [new])
    assert not apiserver.serves_only(wanted, [new, old])
    assert apiserver.serves_only(wanted, [new, {**old, "status": {"phase": "Failed"}}])
