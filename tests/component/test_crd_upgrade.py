"""The CRDs of 0.2.0 are replaced by today's on a running API server: what is stored is read, and can be written further."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ckp.api.crds import all_crds
from ckp.api.kinds import BYO_HOST, MANAGED_CONTROL_PLANE
from ckp.api.objects.byo_host import ByoHost
from ckp.api.objects.control_plane import ManagedControlPlane
from ckp.clients.kube import Kube, KubeError
from tests.support.control_plane import TestControlPlane

pytestmark = pytest.mark.component

BEFORE: dict[str, Any] = json.loads((Path(__file__).parents[1] / "contract" / "crds-0.2.0.json").read_text())


def apply_crds(plane: TestControlPlane, crds: list[dict[str, Any]]) -> None:
    plane.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": crds}))
    plane.kubectl("wait", "--for=condition=Established", *(f"crd/{crd['metadata']['name']}" for crd in crds))


@pytest.fixture
def old(plane: TestControlPlane) -> Iterator[TestControlPlane]:
    """The API server with the CRDs of 0.2.0; today's are put back in the end."""
    apply_crds(plane, list(BEFORE.values()))
    yield plane
    apply_crds(plane, all_crds())


async def test_stored_objects_outlive_the_upgrade(old: TestControlPlane, kube: Kube, namespace: str) -> None:
    meta = {"name": "one", "namespace": namespace}
    await kube.create({"apiVersion": BYO_HOST.api_version, "kind": "ByoHost", "metadata": meta, "spec": {"taints": ["a=b:NoSchedule"]}})
    await kube.create({"apiVersion": MANAGED_CONTROL_PLANE.api_version, "kind": "ManagedControlPlane", "metadata": meta, "spec": {"version": "v1.35.1"}})
    agent = {"connected": True, "clockOffsetSeconds": 2, "bootIDs": ["b1"]}
    await kube.merge(BYO_HOST, "one", namespace, {"status": {"agent": agent, "facts": {"os_id": "debian"}}}, subresource="status")
    addons = [{"name": "cilium", "version": "v1.19.5", "state": "Installing"}]
    step = {"number": 1, "phase": "Provisioning", "name": "Requested", "title": "t", "state": "Done"}
    await kube.merge(MANAGED_CONTROL_PLANE, "one", namespace, {"status": {"addons": addons, "steps": [step]}}, subresource="status")

    apply_crds(old, all_crds())

    host = ByoHost.of(await kube.get(BYO_HOST, "one", namespace) or {})
    assert (host.status.agent.clock_offset_seconds, host.status.agent.boot_ids, host.status.facts.os_id) == (2.0, ("b1",), "debian")
    plane = ManagedControlPlane.of(await kube.get(MANAGED_CONTROL_PLANE, "one", namespace) or {})
    assert plane.status.addon("cilium").state == "Installing" and plane.status.steps[0].state == "Done"
    assert (plane.spec.etcd.replicas, plane.spec.replicas, plane.spec.addons.cni) == (1, 1, "cilium")

    addons = [{"name": "cilium", "version": "v1.19.5", "state": "Installed"}]
    written = await kube.merge(MANAGED_CONTROL_PLANE, "one", namespace, {"status": {"addons": addons}}, subresource="status")
    assert written["status"]["addons"] == addons and written["status"]["steps"] == [step]


async def test_two_addons_of_one_name_are_refused(plane: TestControlPlane, kube: Kube, namespace: str) -> None:
    meta = {"name": "one", "namespace": namespace}
    await kube.create({"apiVersion": MANAGED_CONTROL_PLANE.api_version, "kind": "ManagedControlPlane", "metadata": meta, "spec": {"version": "v1.35.1"}})
    twice = [{"name": "cilium", "state": "Installing"}, {"name": "cilium", "state": "Installed"}]
    with pytest.raises(KubeError, match=r"(?i)duplicate"):
        await kube.merge(MANAGED_CONTROL_PLANE, "one", namespace, {"status": {"addons": twice}}, subresource="status")


@pytest.mark.parametrize(
    ("backup", "said"),
    [
        ({"claim": "backups"}, ""),
        ({"s3": {"endpoint": "https://s3.example", "bucket": "b", "secret": "s"}, "every": "6h", "keep": 3}, ""),
        ({"every": "6h"}, "name one place for backups"),
        ({"claim": "backups", "s3": {"endpoint": "https://s3.example"}}, "name one place for backups"),
        ({"claim": "backups", "keep": 61}, "spec.backup.keep"),
        ({"claim": "backups", "every": "daily"}, "spec.backup.every"),
        ({"s3": {"endpoint": "s3.example"}}, "spec.backup.s3.endpoint"),
    ],
)
async def test_backups_go_to_one_place(plane: TestControlPlane, kube: Kube, namespace: str, backup: dict[str, Any], said: str) -> None:
    spec = {"version": "v1.35.1", "backup": backup}
    obj = {"apiVersion": MANAGED_CONTROL_PLANE.api_version, "kind": "ManagedControlPlane", "metadata": {"name": "one", "namespace": namespace}, "spec": spec}
    if said:
        with pytest.raises(KubeError, match=said):
            await kube.create(obj)
        return
    made = ManagedControlPlane.of(await kube.create(obj)).spec.backup
    assert made.asked and (made.every, made.keep) == (backup.get("every", "24h"), backup.get("keep", 14))
