"""The main job's cluster is backed up into a volume, loses what it had, and is put back in place: its workers and the pods that the backup knows go on."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.e2e.conftest import World, ckp

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.usefixtures("well")]

TENANT = "ckp-default-default"
CLAIM = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "backups", "namespace": TENANT},
    "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}},
}
PLANE = "managedcontrolplane"


def plane(world: World) -> Any:
    return json.loads(world.management("-n", TENANT, "get", PLANE, world.cluster, "-o", "json").stdout)


def condition(world: World, kind: str) -> dict[str, str]:
    return next((item for item in plane(world)["status"]["conditions"] if item["type"] == kind), {})


def backups(world: World) -> Any:
    return json.loads(ckp("cluster", "backups", world.cluster, "-o", "json").stdout)


def running_pods(world: World) -> dict[str, str]:
    """Pods on the workers, with when their containers started."""
    found = world.get("pods", "--all-namespaces")["items"]
    return {
        f"{item['metadata']['namespace']}/{item['metadata']['name']}": item["status"]["containerStatuses"][0]["state"].get("running", {}).get("startedAt", "")
        for item in found
        if item["status"].get("containerStatuses")
    }


def test_a_cluster_is_backed_up_and_put_back(world: World) -> None:
    name = world.cluster
    assert "names no place for backups" in ckp("cluster", "backup", name, check=False).stderr
    world.site.kubectl("apply", "-f", "-", stdin=json.dumps(CLAIM))
    ckp("cluster", "set", name, "--backup-claim", "backups", "--backup-every", "1h", "--backup-keep", "3")
    world.wait(lambda: condition(world, "BackupFresh").get("status") == "True", "the first backup is made by the schedule", timeout=600)

    world.kubectl("create", "configmap", "before", "--from-literal=a=b")
    began = time.monotonic()
    print(ckp("cluster", "backup", name, "--wait", timeout=1300).stdout, f"{time.monotonic() - began:.1f} s for a backup on request")
    newest = backups(world)["items"][0]
    assert newest["result"] == "Proved" and newest["sizeBytes"] > 0 and newest["revision"] > 0
    pods = running_pods(world)

    world.kubectl("delete", "configmap", "before")
    world.kubectl("create", "configmap", "after", "--from-literal=a=b")
    world.kubectl("create", "deployment", "made-later", f"--image={world.image}", "--", "sleep", "infinity")
    revision = plane(world)["status"]["etcd"]["revision"]

    began = time.monotonic()
    print(ckp("cluster", "restore", name, newest["id"], "--yes", "--wait", timeout=1300).stdout, f"{time.monotonic() - began:.1f} s for a restore")
    world.kubectl("get", "configmap", "before")
    assert world.kubectl("get", "configmap", "after", check=False).code != 0
    assert condition(world, "DataRestored")["status"] == "True" and condition(world, "EtcdReady")["status"] == "True"
    assert plane(world)["status"]["etcd"]["revision"] > revision + 500_000_000, "whoever has seen a revision is told that it is gone"

    # Nodes are Ready, what was there keeps running, and what the backup does not know is ended.
    world.wait(lambda: all(_is_ready(node) for node in world.get("nodes")["items"]), "all nodes are Ready", timeout=180)
    world.wait(lambda: not [pod for pod in running_pods(world) if "/made-later" in pod], "pods of after the backup are gone", timeout=180)
    after = running_pods(world)
    stayed = {pod: at for pod, at in pods.items() if not pod.startswith("default/")}
    assert {pod: after.get(pod) for pod in stayed} == stayed, "no container of a pod that the backup knows was started again"
    pod = next(pod for pod in after if pod.startswith("kube-system/konnectivity-agent"))
    assert world.kubectl("-n", "kube-system", "logs", pod.partition("/")[2], "-c", "konnectivity-agent", "--tail=1").code == 0, "tunnels are there again"
    world.wait(lambda: condition(world, "WorkloadReady").get("status") == "True", "a pod of the cluster works", timeout=180)


def test_etcd_that_lost_its_volume_comes_back_from_a_backup(world: World) -> None:
    name = world.cluster
    identifier = next(item["id"] for item in backups(world)["items"] if item["result"] == "Proved")
    world.management("-n", TENANT, "delete", "pvc", f"data-{name}-etcd-0", "--wait=false")
    world.management("-n", TENANT, "delete", "pod", f"{name}-etcd-0")
    world.wait(lambda: condition(world, "EtcdReady").get("reason") == "DataLost", "the loss is seen", timeout=300)
    print(ckp("cluster", "restore", name, identifier, "--yes", "--wait", timeout=1300).stdout)
    world.kubectl("get", "configmap", "kubeadm-config", "-n", "kube-system")
    assert condition(world, "EtcdReady")["status"] == "True"


def test_backups_that_do_not_fit_are_refused_and_the_cluster_goes_on(world: World) -> None:
    refused = ckp("cluster", "restore", world.cluster, "20200101T000000Z", "--yes", check=False)
    assert refused.code != 0 and "has no backup" in refused.stderr
    ckp("cluster", "set", world.cluster, "--no-backups")
    world.management("-n", TENANT, "delete", "pvc", "backups", "--wait=false")


def _is_ready(node: Any) -> bool:
    return any(item["type"] == "Ready" and item["status"] == "True" for item in node["status"]["conditions"])
