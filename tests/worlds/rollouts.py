"""Kubernetes' part of a rollout, step by step: Deployments and StatefulSets follow their manifests, and each step is judged by what must never be.

Honest about: a Deployment with a surge starts the new pod first, one that is recreated ends the old pod first; a StatefulSet with parallel pods stops the
highest member below which nothing is asked (partition), whether or not the others run, and waits for that one alone; `observedGeneration` and revisions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from ckp.api import kinds
from ckp.clients.kube import Obj
from ckp.controllers.controlplane import apiserver
from ckp.rules.upgrades import Version
from tests.worlds.control_plane import TENANT, ControlPlaneWorld

COMPONENTS = {"apiserver": "kube-apiserver", "controller-manager": "kube-controller-manager", "scheduler": "kube-scheduler"}


def identity(template: Obj, program: str) -> str:
    """What a pod of it runs: `v1.35.1-ckp`, or `v1.35.1-ckp@1.34` of one that behaves as another minor."""
    emulated = apiserver.emulation_of(template["spec"], program)
    return image(template, program) + (f"@{emulated}" if emulated else "")


def binary(of: str) -> Version:
    """The version of what runs."""
    return Version.parse(of.partition("@")[0])


def behaviour(of: str) -> Version:
    """The version as which it behaves; of one that behaves as another minor, the first of that."""
    return Version.parse(f"v{of.partition('@')[2]}.0") if "@" in of else binary(of)


def image(template: Obj, program: str) -> str:
    return next(str(item["image"]).rpartition(":")[2] for item in template["spec"]["containers"] if item["name"] == program)


class Rollouts:
    """Plays the controllers of the management cluster.

    Args:
        broken: whether a pod of this component and version never becomes ready.
    """

    def __init__(self, world: ControlPlaneWorld, broken: Callable[[str, str], bool] = lambda part, version: False) -> None:
        self.world, self.broken = world, broken
        self.members: dict[str, tuple[str, bool]] = {}
        """Version and readiness of each member of etcd."""
        self.revisions: dict[str, str] = {}
        self.current = ""
        self.pods: dict[str, list[tuple[str, bool]]] = {part: [] for part in COMPONENTS}
        self.down: set[str] = set()
        """Members that do not start."""
        self.history: list[str] = []

    async def step(self) -> None:
        """One pod of each workload gets on."""
        for part, program in COMPONENTS.items():
            found = await self.world.kube.get(kinds.DEPLOYMENT, f"demo-{part}", TENANT)
            if found is not None:
                await self._deployment(part, program, found)
        found = await self.world.kube.get(kinds.STATEFUL_SET, "demo-etcd", TENANT)
        if found is not None:
            await self._stateful_set(found)
        for job in await self.world.kube.list(kinds.JOB, TENANT):
            name = job["metadata"]["name"]
            if not (job.get("status") or {}).get("succeeded") and not self.broken("kubeadm", image(job["spec"]["template"], "coredns")):
                self._log(f"kubeadm {image(job['spec']['template'], 'coredns')}")
                await self.world.kube.merge(kinds.JOB, name, TENANT, {"status": {"succeeded": 1}}, subresource="status")
        self.world.clock.advance(5)

    def _log(self, what: str) -> None:
        if what not in self.history:
            self.history.append(what)

    async def _deployment(self, part: str, program: str, found: Obj) -> None:
        wanted, version = int(found["spec"]["replicas"]), identity(found["spec"]["template"], program)
        pods = [(of, not self.broken(part, of)) for of, _ in self.pods[part]]
        old = [pod for pod in pods if pod[0] != version]
        surge = found["spec"]["strategy"].get("rollingUpdate") and found["spec"]["strategy"]["rollingUpdate"].get("maxSurge")
        if old and (not surge or (len(pods) > wanted and all(ready for of, ready in pods if of == version))):
            pods.remove(old[0])
        elif len(pods) < wanted + (1 if old else 0):
            pods.append((version, False))
            self._log(f"{part} {version}")
        self.pods[part] = pods[: wanted + 1] if wanted else []
        await self._pods(part, found)
        new = [pod for pod in self.pods[part] if pod[0] == version]
        status = {"replicas": len(self.pods[part]), "updatedReplicas": len(new), "observedGeneration": found["metadata"]["generation"]}
        ready = sum(ready for _, ready in self.pods[part])
        status |= {"readyReplicas": ready, "availableReplicas": ready}
        await self.world.kube.merge(kinds.DEPLOYMENT, f"demo-{part}", TENANT, {"status": status}, subresource="status")

    async def _pods(self, part: str, found: Obj) -> None:
        """Pods are looked at one by one."""
        kube, wanted = self.world.kube, {f"{part}-{number}": of for number, (of, _) in enumerate(self.pods[part])}
        for pod in await kube.list(kinds.POD, TENANT, labels=found["spec"]["selector"]["matchLabels"]):
            await kube.delete(kinds.POD, pod["metadata"]["name"], TENANT)
        for name, of in wanted.items():
            template = found["spec"]["template"]
            version, _, emulated = of.partition("@")
            containers = [self._container(item, version, emulated) for item in template["spec"]["containers"]]
            meta = {"name": name, "namespace": TENANT, "labels": template["metadata"]["labels"]}
            await kube.create({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"containers": containers}})

    @staticmethod
    def _container(item: Obj, version: str, emulated: str) -> Obj:
        """As the ReplicaSet of that pod has it."""
        command = [argument for argument in item["command"] if not argument.startswith("--emulated-version")]
        command += [f"--emulated-version={emulated}"] if emulated else []
        return {**item, "image": f"{item['image'].rpartition(':')[0]}:{version}", "command": command}

    async def _stateful_set(self, found: Obj) -> None:
        version = image(found["spec"]["template"], "etcd")
        update = hashlib.sha256(json.dumps(found["spec"]["template"], sort_keys=True).encode()).hexdigest()[:8]
        self.current = self.current or update
        partition = int(found["spec"]["updateStrategy"]["rollingUpdate"]["partition"])
        names = [f"demo-etcd-{number}" for number in range(int(found["spec"]["replicas"]))]
        for name in names:
            if name not in self.members:
                self.members[name], self.revisions[name] = (version, False), update
        # What started gets ready; and only then, or in the next step, one is stopped.
        starting = [name for name, (_, ready) in self.members.items() if not ready and name not in self.down]
        self.members = {name: (of, name not in self.down) for name, (of, _) in self.members.items()}
        if not starting:
            for number, name in reversed([*enumerate(names)]):
                if number < partition:
                    break
                if self.revisions[name] != update:
                    self.members[name], self.revisions[name] = (version, False), update
                    self._log(f"etcd {version}")
                    break
                if not self.members[name][1]:
                    break
        ready = sum(ready for _, ready in self.members.values())
        updated = sum(revision == update for revision in self.revisions.values())
        if updated == ready == len(names):
            self.current = update
        status: dict[str, Any] = {"replicas": len(names), "readyReplicas": ready, "updatedReplicas": updated, "availableReplicas": ready}
        status |= {"currentRevision": self.current, "updateRevision": update, "observedGeneration": found["metadata"]["generation"]}
        await self.world.kube.merge(kinds.STATEFUL_SET, "demo-etcd", TENANT, {"status": status}, subresource="status")

    # -- what must never be

    @property
    def quorum(self) -> bool:
        """Whether etcd answers."""
        return sum(ready for _, ready in self.members.values()) >= len(self.members) // 2 + 1

    def judge(self) -> None:
        """Kubernetes' version skew policy, at this moment; and that nothing of a step that is not committed behaves as its minor."""
        api = {of for of, _ in self.pods["apiserver"]}
        etcd = {of for of, _ in self.members.values()}
        record = self.world.status.get("upgrade") or {}
        uncommitted = bool(record.get("emulated")) and not record.get("finishedAt")
        soaked = uncommitted or record.get("committedAt") or record.get("rolledBack")
        assert not api or max(behaviour(of).line for of in api) <= min(binary(of).line for of in etcd), "etcd is first"
        assert not api or soaked or max(map(binary, api)) <= min(map(binary, etcd)), "etcd is first"
        for part in ("controller-manager", "scheduler"):
            found = {of for of, _ in self.pods[part]}
            assert not found or max(map(binary, found)) <= min(map(binary, api)), f"{part} is newer than an API server"
            assert not found or max(behaviour(of).line for of in found) <= min(behaviour(of).line for of in api), f"{part} behaves newer than an API server"
        assert sum(ready for _, ready in self.pods["apiserver"]) >= 1, "no API server"
        status = self.world.status
        running = {of for pods in self.pods.values() for of, _ in pods} | etcd
        if uncommitted or record.get("rolledBack"):
            reached = Version.parse(record["from"])
            assert all(behaviour(of).line == reached.line for of in running), "something behaves as what is not committed"
            assert etcd == {f"{record['from']}-ckp"}, "etcd is not touched"
            new = record.get("rolledBack") or record["version"]
            assert new == record["from"] or f"kubeadm {new}-ckp" not in self.history, "kubeadm's phases of what is not committed"
        if any(item["type"] == "Upgraded" and item["status"] == "True" for item in status.get("conditions", ())):
            spec = self.world.kube.stored(kinds.MANAGED_CONTROL_PLANE, "demo", TENANT)["spec"]["version"]
            assert running == {f"{spec}-ckp"} and status["version"] == spec, "Upgraded is said of what is not so"
