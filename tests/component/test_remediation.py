"""Cluster API's own core manager reports unhealthy workers, and ours decides: what v1.7.7 does with external remediation, seen and not read."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ckp.api.kinds import (
    BYO_CLUSTER,
    BYO_HOST,
    BYO_MACHINE,
    BYO_MACHINE_TEMPLATE,
    BYO_REMEDIATION,
    BYO_REMEDIATION_TEMPLATE,
    CLUSTER,
    MACHINE,
    MACHINE_HEALTH_CHECK,
    MACHINE_SET,
    MANAGED_CONTROL_PLANE,
    NODE,
    SECRET,
    Kind,
)
from ckp.api.names import CLUSTER_NAME_LABEL, CLUSTER_SECRET_TYPE, DEPLOYMENT_NAME_LABEL, SKIP_REMEDIATION_ANNOTATION, workers_name
from ckp.clients.kube import Kube, Obj
from ckp.controllers.providers.byo.cluster import ByoClusterReconciler
from ckp.controllers.providers.byo.remediation import Remediation
from ckp.controllers.workload import WorkloadClients
from ckp.kits.clock import SystemClock, rfc3339
from ckp.kits.processes import Daemon
from ckp.kits.retry import wait_until_async
from ckp.runtime.informer import Informer
from tests.support.control_plane import TestControlPlane, built, free_port

pytestmark = pytest.mark.component

LABELS = {CLUSTER_NAME_LABEL: "demo"}
WORKERS = {**LABELS, DEPLOYMENT_NAME_LABEL: "demo-workers"}
HELD = "test/host-is-not-clean"
"""A finalizer in place of ours: a host that died never says that it is clean."""
LONG_AGO = timedelta(days=30)
TIMEOUT = 120.0
"""Of one wait; each takes a second or two."""


@pytest.fixture
def core(plane: TestControlPlane, namespace: str, tmp_path: Path) -> Iterator[Daemon]:
    """The core manager, for one namespace. Its webhooks listen, and nobody calls them."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "webhooks")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(x509.random_serial_number())
    certificate = builder.not_valid_before(now).not_valid_after(now + timedelta(days=1)).sign(key, hashes.SHA256())
    (tmp_path / "tls.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "tls.key").write_bytes(pem)
    (tmp_path / "kubeconfig").write_text(json.dumps(plane.kubeconfig()))
    daemon = Daemon("core", tmp_path / "core.pid", tmp_path / "core.log")
    daemon.start(
        [
            built("cluster-api").binary("cluster-api-manager"),
            f"--kubeconfig={tmp_path}/kubeconfig",
            f"--namespace={namespace}",
            f"--webhook-cert-dir={tmp_path}",
            f"--webhook-port={free_port()}",
            f"--diagnostics-address=127.0.0.1:{free_port()}",
            f"--health-addr=127.0.0.1:{free_port()}",
        ]
    )
    yield daemon
    daemon.stop()


class Bench:
    """A cluster whose workers' hosts and nodes the test plays; all else of Cluster API is real."""

    def __init__(self, kube: Kube, namespace: str, plane: TestControlPlane, core: Daemon) -> None:
        self.kube, self.namespace, self.core = kube, namespace, core
        self.requests, self.machines = Informer(kube, BYO_REMEDIATION, namespace), Informer(kube, MACHINE, namespace)
        self.hosts = Informer(kube, BYO_HOST, namespace)
        remediation = Remediation(kube, SystemClock(), self.requests, self.machines, self.hosts, WorkloadClients(lambda _kubeconfig: plane.kube()))
        self.reconciler = ByoClusterReconciler(kube, SystemClock(), remediation)
        self.nodes: set[str] = set()
        self.beats = 0

    async def create(self, kind: Kind, name: str, spec: Obj, **more: Any) -> None:
        meta = {"name": name, "namespace": self.namespace, "labels": LABELS}
        await self.kube.create({"apiVersion": kind.api_version, "kind": kind.kind, "metadata": meta, "spec": spec, **more})

    def reference(self, kind: Kind, name: str) -> Obj:
        return {"apiVersion": kind.api_version, "kind": kind.kind, "name": name, "namespace": self.namespace}

    async def until(self, probe: Callable[[], Awaitable[Any]], what: str) -> Any:
        """Our controller reconciles all the while, as a change of what it watches would make it."""

        async def look() -> Any:
            await self.heartbeat()
            await self.requests._list()
            await self.machines._list()
            await self.hosts._list()
            await self.reconciler.reconcile(self.namespace, "demo")
            return await probe()

        return await wait_until_async(look, what=what, timeout=TIMEOUT, every=0.3, reason=self.core.tail)

    async def living(self) -> list[str]:
        return [item["metadata"]["name"] for item in await self.kube.list(MACHINE, self.namespace) if "deletionTimestamp" not in item["metadata"]]

    async def join(self, count: int) -> list[str]:
        """So many machines that live, each with a node that was Ready for long."""

        async def enough() -> list[str]:
            found = await self.living()
            made = {item["metadata"]["name"] for item in await self.kube.list(BYO_MACHINE, self.namespace)}
            return found if len(found) == count and made >= set(found) else []

        names: list[str] = await self.until(enough, f"{count} machines")
        for name in set(names) - self.nodes:
            self.nodes.add(name)
            identity = f"byoh://{self.namespace}/{name}/0"
            await self.kube.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": {"providerID": identity}})
            await self.node(name, "True")
            await self.kube.merge(BYO_MACHINE, name, self.namespace, {"metadata": {"finalizers": [HELD]}, "spec": {"providerID": identity}})
            await self.create(BYO_HOST, f"host-{name}", {"machineRef": {"name": name}})
            status = {"ready": True, "hostRef": {"name": f"host-{name}"}, "nodeReadyAt": rfc3339(datetime.now(UTC) - LONG_AGO)}
            await self.kube.merge(BYO_MACHINE, name, self.namespace, {"status": status}, subresource="status")

        async def linked() -> bool:
            found = await self.kube.list(MACHINE, self.namespace)
            return {item["metadata"]["name"] for item in found if (item.get("status") or {}).get("nodeRef")} >= set(names)

        await self.until(linked, "their nodes are known")
        return names

    async def node(self, name: str, ready: str) -> None:
        condition = {"type": "Ready", "status": ready, "lastTransitionTime": rfc3339(datetime.now(UTC) - timedelta(hours=1))}
        await self.kube.merge(NODE, name, None, {"status": {"conditions": [condition]}}, subresource="status")

    async def heartbeat(self) -> None:
        """Something of each node changes now and then. A change that comes before the core manager's cache has the Machine's node says nothing to it."""
        self.beats += 1
        for name in self.nodes:
            await self.kube.merge(NODE, name, None, {"metadata": {"annotations": {"test/beat": str(self.beats)}}})

    async def dies(self, name: str) -> None:
        """Its host loses power."""
        await self.node(name, "Unknown")
        silent = {"type": "AgentConnected", "status": "False", "lastTransitionTime": rfc3339(datetime.now(UTC) - timedelta(hours=1))}
        await self.kube.merge(BYO_HOST, f"host-{name}", self.namespace, {"status": {"conditions": [silent]}}, subresource="status")

    async def reported(self, count: int) -> None:
        """Cluster API's health check reports so many, before our controller looks."""

        async def requests() -> bool:
            await self.heartbeat()
            return len(await self.kube.list(BYO_REMEDIATION, self.namespace)) == count

        await wait_until_async(requests, what=f"{count} workers are reported", timeout=TIMEOUT, every=0.1, reason=self.core.tail)

    async def leaves(self, name: str) -> None:
        async def gone() -> bool:
            return name not in await self.living()

        await self.until(gone, f"{name} is replaced")

    async def status(self) -> Obj:
        found = await self.kube.get(BYO_CLUSTER, "demo", self.namespace)
        assert found is not None
        return dict(found["status"])


async def _initialized(kube: Kube, namespace: str) -> bool:
    found = await kube.get(CLUSTER, "demo", namespace) or {}
    return any(item["type"] == "ControlPlaneInitialized" and item["status"] == "True" for item in (found.get("status") or {}).get("conditions") or ())


async def _connected(core: Daemon) -> bool:
    return 'controllerKind="MachineHealthCheck" source="kind source: *v1.Node"' in core.log.read_text()


@pytest.fixture
async def bench(kube: Kube, namespace: str, plane: TestControlPlane, core: Daemon) -> AsyncIterator[Bench]:
    made = Bench(kube, namespace, plane, core)
    secret = {"apiVersion": SECRET.api_version, "kind": "Secret", "metadata": {"name": "demo-kubeconfig", "namespace": namespace, "labels": LABELS}}
    value = base64.b64encode(json.dumps(plane.kubeconfig()).encode()).decode()
    await kube.create({**secret, "type": CLUSTER_SECRET_TYPE, "data": {"value": value}})
    await made.create(MANAGED_CONTROL_PLANE, "demo", {"version": "v1.35.1"})
    up = {"initialized": True, "ready": True, "version": "v1.35.1", "externalManagedControlPlane": True}
    await kube.merge(MANAGED_CONTROL_PLANE, "demo", namespace, {"status": up}, subresource="status")
    await made.create(BYO_CLUSTER, "demo", {})
    references = {"controlPlaneRef": made.reference(MANAGED_CONTROL_PLANE, "demo"), "infrastructureRef": made.reference(BYO_CLUSTER, "demo")}
    await made.create(CLUSTER, "demo", {"controlPlaneEndpoint": {"host": "127.0.0.1", "port": 6443}, **references})
    workers = workers_name("demo")
    await made.create(BYO_REMEDIATION_TEMPLATE, workers, {"template": {"spec": {}}})
    await made.create(BYO_MACHINE_TEMPLATE, workers, {"template": {"spec": {}}})
    check = {
        "clusterName": "demo",
        "selector": {"matchLabels": WORKERS},
        "unhealthyConditions": [{"type": "Ready", "status": status, "timeout": "5m"} for status in ("Unknown", "False")],
        "maxUnhealthy": "100%",
        "nodeStartupTimeout": "30m",
        "remediationTemplate": made.reference(BYO_REMEDIATION_TEMPLATE, workers),
    }
    # Cluster API's controllers share one connection to the cluster, which one of them makes; another that wants it meanwhile comes again in a minute.
    # So the health check makes it, which looks once at a cluster without Machines, and they come afterwards.
    await wait_until_async(partial(_initialized, kube, namespace), what="the cluster is initialized", timeout=TIMEOUT, every=0.1, reason=core.tail)
    await made.create(MACHINE_HEALTH_CHECK, workers, check)
    await wait_until_async(partial(_connected, core), what="the core manager watches the cluster's nodes", timeout=TIMEOUT, every=0.1, reason=core.tail)
    machine = {
        "clusterName": "demo",
        "bootstrap": {"dataSecretName": "nobody-reads-it"},
        "infrastructureRef": made.reference(BYO_MACHINE_TEMPLATE, workers),
        "nodeDrainTimeout": "1s",
        "nodeVolumeDetachTimeout": "1s",
    }
    template = {"metadata": {"labels": WORKERS}, "spec": machine}
    selector = {"matchLabels": {DEPLOYMENT_NAME_LABEL: "demo-workers"}}
    await made.create(MACHINE_SET, workers, {"clusterName": "demo", "replicas": 2, "selector": selector, "deletePolicy": "Random", "template": template})
    yield made
    for name in made.nodes:
        await kube.delete(NODE, name)


async def test_a_dead_worker_is_replaced_while_an_earlier_one_that_died_never_becomes_clean(bench: Bench) -> None:
    """Contract REM-1, REM-2, REM-3: the health check reports the second one, although the first one's request and Machine are still there."""
    first, second = sorted(await bench.join(2))
    await bench.dies(first)
    await bench.leaves(first)
    await bench.join(2)
    await bench.dies(second)
    await bench.leaves(second)
    left = {item["metadata"]["name"]: item["metadata"] for item in await bench.kube.list(MACHINE, bench.namespace)}
    assert {first, second} <= left.keys(), "neither host said that it is clean"
    assert SKIP_REMEDIATION_ANNOTATION in left[first]["annotations"]
    assert [made["machine"] for made in (await bench.status())["replacements"]] == [first, second]


async def test_a_worker_that_is_ready_again_is_left_and_reported_the_next_time(bench: Bench) -> None:
    """Both at once are too many; one comes back, and the other one is replaced."""
    back, dead = sorted(await bench.join(2))
    for name in (back, dead):
        await bench.dies(name)
    await bench.reported(2)

    async def left_alone() -> bool:
        return [entry["reason"] for entry in (await bench.status()).get("unhealthy") or ()] == ["TooManyUnhealthy"] * 2

    await bench.until(left_alone, "both are reported, and left")
    await bench.node(back, "True")
    await bench.leaves(dead)
    assert back in await bench.living()
    await bench.join(2)
    await bench.dies(back)
    await bench.leaves(back)
