"""A workload cluster with nodes that is upgraded; its control plane, its hosts and Cluster API's core are played, each no faster than it really is."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from ckp.api import kinds
from ckp.api.host_protocol import UPGRADE_NODE, BundleRef
from ckp.api.kinds import Kind
from ckp.api.names import BACKUP_ANNOTATION, CLUSTER_NAME_LABEL, DEPLOYMENT_NAME_LABEL, PAUSED_ANNOTATION, RETRY_UPGRADE_ANNOTATION
from ckp.api.platform import InstalledRelease, Releases
from ckp.catalog.load import Catalog
from ckp.clients.kube import KubeError, Obj
from ckp.controllers.upgrades.reconciler import ClusterUpgradeReconciler
from ckp.controllers.workload import WorkloadClients
from ckp.kits.clock import rfc3339
from ckp.rules.cluster_backups import backup_id
from ckp.rules.upgrades import Version, step_refusal
from ckp.site.publish import options_of
from tests.simulators.clock import ManualClock
from tests.simulators.kube import KubeSimulator

TENANT = "ckp-default-default"
FACTS = {"os_id": "debian", "os_version": "12", "features": [UPGRADE_NODE]}
OLD, NEW, NEXT = "v1.33.7", "v1.34.3", "v1.35.1"


def release(version: str) -> InstalledRelease:
    bundle = BundleRef(image="r.example/bundle@sha256:" + "0" * 64, tag=version, release=version)
    options = options_of(Catalog(), version)
    return InstalledRelease(
        name=version, stamp=f"{version}-ckp", registry="r.example/ckp", images={}, bundles={"debian-12": bundle}, options=options, cni={"cilium": "v1.19.5"}
    )


def condition(kind: str, status: str = "True", **more: str) -> Obj:
    return {"type": kind, "status": status, "lastTransitionTime": "2026-05-01T12:00:00Z", **more}


class UpgradeWorld:
    """Cluster `demo`: its control plane and two pools, `demo-a` of two nodes and `demo-b` of one."""

    def __init__(self) -> None:
        self.kube, self.workload = KubeSimulator(namespaces=(TENANT, "default")), KubeSimulator()
        self.workload.on_text("/metrics", "")
        for node in ("n1", "n2", "n3"):
            self.kubelet_has(node)
        self.clock = ManualClock(datetime(2026, 5, 1, 12, tzinfo=UTC))
        self.releases = Releases(releases={version: release(version) for version in (OLD, NEW, NEXT)})
        self.failing: set[str] = set()
        """Hosts on which the installation fails."""
        self.unreachable: set[str] = set()
        """Hosts that can't pull."""
        self.offline: set[str] = set()
        """Hosts whose agent is not connected."""
        self.backups = "made"
        """What becomes of a backup that is asked for: made, failed, or slow (it has no end)."""
        self.busy_at_most = 0
        self.committed: list[str] = []
        """Steps of the control plane that soaked and were committed."""
        self.restarted()

    def restarted(self) -> None:
        """The controllers' process is another one."""
        self.reconciler = ClusterUpgradeReconciler(self.kube, self.clock, self.releases, WorkloadClients(lambda kubeconfig: self.workload))

    async def made(self) -> None:
        label = {CLUSTER_NAME_LABEL: "demo"}
        await self._make(kinds.CLUSTER, "demo", {})
        await self._make(kinds.MANAGED_CONTROL_PLANE, "demo", {"version": OLD}, {"version": OLD, "ready": True}, labels=label)
        await self._plane(OLD, "True")
        await self._make(kinds.SECRET, "demo-kubeconfig", None, data={"value": "e30="}, labels=label)
        for pool, nodes in (("demo-a", ("n1", "n2")), ("demo-b", ("n3",))):
            template = {"template": {"spec": {"version": OLD}}, "replicas": len(nodes)}
            made = await self._make(kinds.MACHINE_DEPLOYMENT, pool, template, labels=label)
            owner = {"apiVersion": made["apiVersion"], "kind": made["kind"], "name": pool, "uid": made["metadata"]["uid"], "controller": True}
            await self._make(kinds.MACHINE_SET, f"{pool}-x", template, labels=label, ownerReferences=[owner])
            for node in nodes:
                await self.add_worker(node, pool)
                await self.joined(node, OLD)

    async def add_worker(self, node: str, pool: str) -> None:
        """A Machine that holds a host and is no node yet."""
        label = {CLUSTER_NAME_LABEL: "demo"}
        await self._make(kinds.BYO_HOST, node, {}, {"agent": {"connected": True}, "facts": FACTS})
        await self._make(kinds.BYO_MACHINE, node, {}, {"hostRef": {"name": node}}, labels=label)
        spec = {"version": OLD, "infrastructureRef": {"name": node}}
        await self._make(kinds.MACHINE, node, spec, labels={**label, DEPLOYMENT_NAME_LABEL: pool})

    def kubelet_has(self, node: str, **gates: bool) -> None:
        """What a node's kubelet says at /configz."""
        configured = {"kubeletconfig": {"kind": "KubeletConfiguration", **({"featureGates": gates} if gates else {})}}
        self.workload.on_text(f"/api/v1/nodes/{node}/proxy/configz", json.dumps(configured))

    async def connected(self, node: str, connected: bool) -> None:
        """Its agent comes, or goes."""
        (self.offline.discard if connected else self.offline.add)(node)
        await self.kube.merge(kinds.BYO_HOST, node, TENANT, {"status": {"agent": {"connected": connected}}}, subresource="status")

    async def joined(self, node: str, version: str) -> None:
        """It is a node."""
        status = {"nodeRef": {"name": node}, "nodeInfo": {"kubeletVersion": f"{version}-ckp"}, "conditions": [condition("NodeHealthy")]}
        await self.kube.merge(kinds.MACHINE, node, TENANT, {"status": status}, subresource="status")

    async def _make(self, kind: Kind, name: str, spec: Obj | None, status: Obj | None = None, *, data: Obj | None = None, **meta: Any) -> Obj:
        obj: Obj = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": {"name": name, "namespace": TENANT, **meta}}
        obj |= {key: value for key, value in (("spec", spec), ("data", data)) if value is not None}
        made = await self.kube.create(obj)
        return await self.kube.merge(kind, name, TENANT, {"status": status}, subresource="status") if status else made

    async def _plane(self, version: str, upgraded: str, **status: Any) -> None:
        conditions = [condition("Ready", upgraded), condition("EtcdReady"), condition("Upgraded", upgraded, message="", reason="UpgradingEtcd")]
        patch = {"version": version, "conditions": conditions, **status}
        await self.kube.merge(kinds.MANAGED_CONTROL_PLANE, "demo", TENANT, {"status": patch}, subresource="status")

    async def ask(self, version: str = NEXT, name: str = "up", **spec: Any) -> None:
        await self._make(kinds.CLUSTER_UPGRADE, name, {"clusterName": "demo", "version": version, **spec})

    async def change(self, name: str = "up", **spec: Any) -> None:
        await self.kube.merge(kinds.CLUSTER_UPGRADE, name, TENANT, {"spec": spec})

    def status(self, name: str = "up") -> Obj:
        return dict(self.kube.stored(kinds.CLUSTER_UPGRADE, name, TENANT).get("status") or {})

    def spec_of(self, kind: Kind, name: str) -> Obj:
        return dict(self.kube.stored(kind, name, TENANT)["spec"])

    def kubelets(self) -> dict[str, str]:
        found = {item["metadata"]["name"]: (item.get("status") or {}).get("nodeInfo") or {} for item in self.kube.all_stored(kinds.MACHINE)}
        return {name: str(info.get("kubeletVersion", "")).removesuffix("-ckp") for name, info in found.items()}

    async def pass_once(self, name: str = "up") -> None:
        await self.reconciler.reconcile(TENANT, name)

    async def step(self) -> None:
        """Everybody else does one thing."""
        self.clock.advance(10)
        await self._step_of_control_plane()
        busy = 0
        for item in self.kube.all_stored(kinds.BYO_MACHINE):
            busy += await self._step_of_host(item)
        self.busy_at_most = max(self.busy_at_most, busy)
        for item in self.kube.all_stored(kinds.MACHINE_DEPLOYMENT):
            await self._step_of_pool(item)

    async def _step_of_control_plane(self) -> None:
        plane = self.kube.stored(kinds.MANAGED_CONTROL_PLANE, "demo", TENANT)
        await self._step_of_backups(plane)
        reached, wanted = plane["status"]["version"], plane["spec"]["version"]
        record = plane["status"].get("upgrade") or {}
        asked = plane["spec"].get("upgrade") or {}
        if record.get("emulated") and not record.get("finishedAt"):
            await self._soaking(plane["status"]["version"], wanted, record, soak=bool(asked.get("soak")))
        elif record.get("version") and not record.get("finishedAt"):
            await self._plane(record["version"], "True", upgrade={**record, "finishedAt": rfc3339(self.clock.now())})
        elif wanted != reached:
            assert not step_refusal(reached, wanted), "one minor at a time"
            begun = {"from": reached, "version": wanted, "startedAt": rfc3339(self.clock.now()), "finishedAt": None, "rolledBack": None}
            await self._plane(reached, "False", upgrade={**begun, "emulated": Version.parse(reached).line if asked.get("soak") else None})

    async def _soaking(self, reached: str, wanted: str, record: Obj, *, soak: bool) -> None:
        """A step that is not committed: it goes back, is committed, or waits."""
        if wanted == reached:
            back = {"version": reached, "rolledBack": record["version"], "emulated": None}
            await self._plane(reached, "False", upgrade={**record, **back})
        elif not soak:
            self.committed.append(record["version"])
            await self._plane(reached, "False", upgrade={**record, "emulated": None, "committedAt": rfc3339(self.clock.now())})
        else:
            await self._plane(reached, "True", upgrade={**record, "soakingSince": rfc3339(self.clock.now())})
            soaks = [condition("Ready"), condition("EtcdReady"), condition("Upgraded", "False", message="it soaks", reason="Soaking")]
            await self.kube.merge(kinds.MANAGED_CONTROL_PLANE, "demo", TENANT, {"status": {"conditions": soaks}}, subresource="status")

    async def backs_up(self, *kept: datetime) -> None:
        """The cluster has a place for backups, and these in it."""
        await self.kube.merge(kinds.MANAGED_CONTROL_PLANE, "demo", TENANT, {"spec": {"backup": {"claim": "backups", "every": "24h"}}})
        entries = [{"id": backup_id(moment)} for moment in kept]
        await self.kube.merge(kinds.MANAGED_CONTROL_PLANE, "demo", TENANT, {"status": {"backup": {"kept": entries}}}, subresource="status")

    async def _step_of_backups(self, plane: Obj) -> None:
        """As the control plane's controller (controlplane/backups.py): a request is taken up once."""
        status = dict(plane["status"].get("backup") or {})
        asked = (plane["metadata"].get("annotations") or {}).get(BACKUP_ANNOTATION, "")
        if status.get("running") and self.backups != "slow":
            made = self.backups == "made"
            done = {"kept": [*status.get("kept", []), {"id": status["running"]}]} if made else {"failed": status["running"], "failures": 1, "message": "full"}
            status |= {**done, "running": ""}
        elif asked and asked != status.get("handled"):
            status |= {"handled": asked, "running": backup_id(self.clock.now())}
        else:
            return
        await self.kube.merge(kinds.MANAGED_CONTROL_PLANE, "demo", TENANT, {"status": {"backup": status}}, subresource="status")

    async def _step_of_host(self, item: Obj) -> bool:
        """As the ByoMachine's controller and the agent; whether the node is out of service."""
        name, spec = item["metadata"]["name"], item["spec"]
        seen = dict((item.get("status") or {}).get("upgrade") or {})
        prepare, wanted = spec.get("prepareVersion") or "", spec.get("kubernetesVersion") or ""
        wanted = wanted or (seen.get("version", "") if seen.get("state") == "Installing" else "")  # the host ends what it has begun
        if not wanted and seen.get("state") == "Draining":
            await self.kube.merge(kinds.BYO_MACHINE, name, TENANT, {"status": {"upgrade": None}}, subresource="status")
            return False
        if name in self.offline and seen.get("state") != "Draining":
            return seen.get("state") == "Installing"
        if prepare and seen.get("preparedVersion") != prepare and not wanted and seen.get("state") != "Failed":
            if name in self.unreachable:
                seen |= {"version": prepare, "state": "Failed", "message": "the registry is away", "finishedAt": rfc3339(self.clock.now())}
            else:
                seen |= {"preparedVersion": prepare, "version": prepare, "state": "Prepared"}
        elif seen.get("state") == "Failed":
            if (retry := (item["metadata"].get("annotations") or {}).get(RETRY_UPGRADE_ANNOTATION, "")) == seen.get("retry", ""):
                return False  # it is tried once
            seen |= {"version": "", "state": "Prepared" if seen.get("preparedVersion") else "", "retry": retry, "message": "", "finishedAt": None}
        elif wanted and (seen.get("version") != wanted or seen.get("state") == "Prepared"):
            plane = self.kube.stored(kinds.MANAGED_CONTROL_PLANE, "demo", TENANT)["status"]["version"]
            assert wanted <= plane, "no kubelet is newer than the API server"
            assert seen.get("preparedVersion") == wanted, "nothing is drained before its host is prepared"
            seen |= {"version": wanted, "state": "Draining", "startedAt": rfc3339(self.clock.now()), "finishedAt": None}
        elif wanted and seen["state"] == "Draining":
            failed = name in self.failing
            seen |= {"state": "Failed" if failed else "Installing", "message": "dpkg: no space left on device" if failed else ""}
            seen |= {"finishedAt": rfc3339(self.clock.now())} if failed else {}
        elif wanted and seen["state"] == "Installing":
            seen |= {"state": "Done", "finishedAt": rfc3339(self.clock.now())}
            await self.kube.merge(kinds.MACHINE, name, TENANT, {"status": {"nodeInfo": {"kubeletVersion": f"{wanted}-ckp"}}}, subresource="status")
        if seen:
            await self.kube.merge(kinds.BYO_MACHINE, name, TENANT, {"status": {"upgrade": seen}}, subresource="status")
        return seen.get("state") in ("Draining", "Installing")

    async def _step_of_pool(self, item: Obj) -> None:
        """Cluster API's core: Machines follow their MachineSet."""
        name = item["metadata"]["name"]
        self.judge_pools()
        machine_set = self.kube.stored(kinds.MACHINE_SET, f"{name}-x", TENANT)
        version = machine_set["spec"]["template"]["spec"]["version"]
        for machine in self.kube.all_stored(kinds.MACHINE):
            if machine["metadata"]["labels"][DEPLOYMENT_NAME_LABEL] == name and machine["spec"]["version"] != version:
                assert self.kubelets()[machine["metadata"]["name"]] == version, "a Machine claims a version that its node does not have"
                await self.kube.merge(kinds.MACHINE, machine["metadata"]["name"], TENANT, {"spec": {"version": version}})

    def judge_pools(self) -> None:
        """Cluster API's core may look at any moment: a template that no MachineSet has makes a new one, unless the MachineDeployment is paused."""
        for item in self.kube.all_stored(kinds.MACHINE_DEPLOYMENT):
            machine_set = self.kube.stored(kinds.MACHINE_SET, f"{item['metadata']['name']}-x", TENANT)
            if PAUSED_ANNOTATION not in (item["metadata"].get("annotations") or {}):
                assert item["spec"]["template"] == machine_set["spec"]["template"], "a new MachineSet: its Machines are replaced"

    async def until(self, *phases: str, name: str = "up", passes: int = 80) -> Obj:
        for _ in range(passes):
            await self.pass_once(name)
            if self.status(name).get("phase") in phases:
                return self.status(name)
            await self.step()
        raise AssertionError(f"not {' or '.join(phases)}: {self.status(name)}")

    def cut_off(self) -> None:
        self.workload.on_fault(lambda verb, kind, name: KubeError(f"{verb} {kind.kind}: timed out", code=0))
