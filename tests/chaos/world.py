"""All parts put together, and what can happen to them."""

from __future__ import annotations

import asyncio
import base64
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

import yaml
from prometheus_client import CollectorRegistry

from ckp.agent.hub.identity import Identity
from ckp.agent.messages import EnrolmentStatus
from ckp.api import kinds, names
from ckp.api.kinds import Kind
from ckp.clients.kube import EventType, KubeError, Obj
from ckp.hub.enrolment import CompassClient, Enrolment
from ckp.hub.identity import VALID_FOR, HostCa, HostId
from ckp.kits.clock import SystemClock
from ckp.rules import certificates
from ckp.rules.conditions import is_true
from tests.chaos.checker import Whole
from tests.chaos.kube import ChaosKube, Weather
from tests.chaos.parts import VERSION, Controllers, Host, Hub
from tests.chaos.schedule import Event, Schedule
from tests.worlds.tls import make_authority, make_leaf, write_pair

TENANT = "ckp-default-default"
GROUP = {names.group_label("chaos"): ""}
JOIN = yaml.safe_dump({"kind": "JoinConfiguration", "apiVersion": "kubeadm.k8s.io/v1beta4"})
CLOUD_CONFIG = yaml.safe_dump({"write_files": [{"path": "/run/kubeadm/kubeadm-join-config.yaml", "content": JOIN}], "runcmd": ["kubeadm join"]})


class _LongAgo(SystemClock):
    """What is signed now by this clock comes to its end within half a day, so that its renewal is due."""

    def now(self) -> datetime:
        return super().now() - VALID_FOR + timedelta(days=0.4)


class World:
    """A management cluster with its hosts."""

    def __init__(self, schedule: Schedule, folder: Path) -> None:
        self.schedule, self.folder = schedule, folder
        self.choose = random.Random(f"run of {schedule.seed}")
        self.weather = Weather(random.Random(f"weather of {schedule.seed}"))
        self.kube = ChaosKube("api", self.weather, namespaces=("default", TENANT, names.HOSTS_NAMESPACE))
        self.calm = self.kube.calm("harness")
        self.weather.observers.append(self._observe)
        root = make_authority("root")
        files = make_authority("host-ca", root).write(folder, "host-ca")
        self._root_file = folder / "root.crt"
        self._root_file.write_text(root.pem)
        self._ca, self._short_ca = HostCa(*files, SystemClock()), HostCa(*files, _LongAgo())
        self._root = root.pem
        server = write_pair(folder, "server", *make_leaf(root, server=True))
        self.hubs = [Hub(self.kube, f"hub-{number}", server, self._ca, self._issue) for number in range(schedule.replicas)]
        self.controllers = Controllers(self.kube)
        self.hosts = {name: Host(folder / name, self._ports, self._root_file, self.choose) for name in schedule.hosts}
        self.seen: list[str] = []
        """Inconsistencies that were seen at the moment of a change."""
        self._taken_away: set[str] = set()
        self._ready: set[str] = set()
        self._failed: set[str] = set()
        self._replaced: dict[str, str] = {}
        self._faults = True
        self._lasting: set[asyncio.Task[Any]] = set()
        self._hub_locks = [asyncio.Lock() for _ in self.hubs]
        self._controllers_lock = asyncio.Lock()
        self._enrolling = {name: asyncio.Lock() for name in self.hosts}

    @property
    def folders(self) -> dict[str, Path]:
        """The hosts' folders."""
        return {name: host.folder for name, host in self.hosts.items()}

    def _ports(self) -> list[int]:
        return [hub.port for hub in self.hubs if hub.port]

    async def whole(self) -> Whole:
        """All that the checker looks at."""
        return await Whole.of(self.calm, TENANT, self.folders)

    def _issue(self, csr: str, host: HostId) -> tuple[str, str]:
        again = self._faults and self.choose.random() < 0.4
        return (self._short_ca if again else self._ca).sign(csr, host), self._root

    # What happens.

    def apply(self, event: Event) -> None:
        """Let an event happen; what lasts goes on beside."""
        work = getattr(self, "_" + event.kind.replace("-", "_"))(event)
        if asyncio.iscoroutine(work):
            task = asyncio.ensure_future(work)
            self._lasting.add(task)
            task.add_done_callback(lambda done: self._over(done, event))

    def _over(self, task: asyncio.Task[Any], event: Event) -> None:
        self._lasting.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self.seen.append(f"the harness itself failed at {event}: {error!r}")

    def _kill(self, event: Event) -> Any:
        return self.hosts[event.target].off_for(event.args["seconds"], power=False)

    def _power_cut(self, event: Event) -> Any:
        return self.hosts[event.target].off_for(event.args["seconds"], power=True)

    def _die_after(self, event: Event) -> None:
        self.hosts[event.target].die_after(event.args["ticks"], round(event.at * 1000), power=event.args["power"])

    async def _mode(self, event: Event, mode: str, delay: float = 0.0) -> None:
        network = self.hosts[event.target].network
        network.set_mode(mode, delay)
        await asyncio.sleep(event.args["seconds"])
        network.set_mode("ok")

    def _cut(self, event: Event) -> Any:
        return self._mode(event, "cut")

    def _hold(self, event: Event) -> Any:
        return self._mode(event, "hold")

    def _slow_net(self, event: Event) -> Any:
        return self._mode(event, "slow", event.args["delay"])

    def _strand(self, event: Event) -> None:
        self.hosts[event.target].network.strand(event.args["seconds"])

    async def _hub(self, event: Event, *, graceful: bool = False) -> None:
        number = int(event.target) % len(self.hubs)
        async with self._hub_locks[number]:
            await (self.hubs[number].stop() if graceful else self.hubs[number].kill())
            await asyncio.sleep(event.args["seconds"])
            await self.hubs[number].start()

    def _hub_restart(self, event: Event) -> Any:
        return self._hub(event, graceful=True)

    async def _controllers(self, event: Event) -> None:
        async with self._controllers_lock:
            await self.controllers.kill()
            await asyncio.sleep(event.args["seconds"])
            await self.controllers.start()

    async def _weather(self, event: Event, **how: Any) -> None:
        for name, value in how.items():
            setattr(self.weather, name, value)
        await asyncio.sleep(event.args["seconds"])
        for name, value in how.items():
            setattr(self.weather, name, type(value)())

    def _api_away(self, event: Event) -> Any:
        return self._weather(event, away=True)

    def _api_slow(self, event: Event) -> Any:
        return self._weather(event, slow=event.args["slow"])

    def _api_lossy(self, event: Event) -> Any:
        return self._weather(event, lossy=event.args["share"])

    def _api_lag(self, event: Event) -> Any:
        return self._weather(event, lag=event.args["lag"])

    def _api_forgets(self, event: Event) -> None:
        self.kube.expire_history()

    async def _file(self, event: Event, name: str, content: str) -> None:
        file = self.hosts[event.target].folder / name
        file.write_text(content)
        await asyncio.sleep(event.args["seconds"])
        file.unlink(missing_ok=True)

    def _registry(self, event: Event) -> Any:
        return self._file(event, "registry", event.args["mode"])

    def _full(self, event: Event) -> Any:
        return self._file(event, "full", "")

    def _clock(self, event: Event) -> None:
        (self.hosts[event.target].folder / "skew").write_text(str(event.args["skew"]))

    async def _machine(self, event: Event) -> None:
        name, labels = event.target, {names.CLUSTER_NAME_LABEL: "demo"}
        reference = {"apiVersion": kinds.BYO_MACHINE.api_version, "kind": "ByoMachine", "name": name, "namespace": TENANT}
        spec = {"clusterName": "demo", "version": VERSION, "bootstrap": {}, "infrastructureRef": reference}
        machine = await self.calm.create(_obj(kinds.MACHINE, name, spec, labels=labels))
        owners = [{"apiVersion": machine["apiVersion"], "kind": "Machine", "name": name, "uid": machine["metadata"]["uid"], "controller": True}]
        await self.calm.create(_obj(kinds.BYO_MACHINE, name, {"selector": {"matchLabels": GROUP}}, labels=labels, ownerReferences=owners))
        if event.args["data"]:
            await self._data(event)

    async def _replace(self, event: Event) -> None:
        """As a MachineHealthCheck and the MachineSet do with a machine that failed for good."""
        await self.calm.delete(kinds.MACHINE, event.target, TENANT)
        self._replaced[event.target] = f"{event.target}-again"
        await self._machine(Event(event.at, "machine", f"{event.target}-again", {"data": True}))

    def _machine_now(self, name: str) -> str:
        while name in self._replaced:
            name = self._replaced[name]
        return name

    async def _data(self, event: Event) -> None:
        if await self.calm.get(kinds.MACHINE, event.target, TENANT) is None:
            return
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": f"{event.target}-data", "namespace": TENANT}}
        with suppress(KubeError):  # it is there already
            await self.calm.create({**secret, "data": {"value": base64.b64encode(CLOUD_CONFIG.encode()).decode()}})
        with suppress(KubeError):  # it was deleted at this very moment
            await self.calm.merge(kinds.MACHINE, event.target, TENANT, {"spec": {"bootstrap": {"dataSecretName": f"{event.target}-data"}}})

    async def _leave(self, event: Event) -> None:
        name = self._machine_now(event.target)
        if event.args["force"]:
            patch = {"metadata": {"annotations": {names.FORCE_RELEASE_ANNOTATION: "true"}}}
            with suppress(KubeError):  # it has gone already
                await self.calm.merge(kinds.BYO_MACHINE, name, TENANT, patch)
        await self.calm.delete(kinds.MACHINE, name, TENANT)

    async def _remove_host(self, event: Event) -> None:
        """As `ckp host delete --force`."""
        host = await self.calm.get(kinds.BYO_HOST, event.target, TENANT)
        if host is not None:
            self._taken_away.add(((host.get("spec") or {}).get("machineRef") or {}).get("uid", ""))
            await self.calm.delete(kinds.BYO_HOST, event.target, TENANT)

    async def _revoke(self, event: Event) -> None:
        """As `ckp host revoke`."""
        host = await self.calm.get(kinds.BYO_HOST, event.target, TENANT)
        if host is not None and (serial := certificates.certificate_serial(host)):
            await self.calm.merge(kinds.BYO_HOST, event.target, TENANT, {"spec": {"revokedSerial": serial}})

    async def _spoil(self, event: Event) -> None:
        """No fault that may be: the host gets a certificate that only the API server knows of. For tests of the checker."""
        patch = {"status": {"agent": {"certificateSerial": "abc", "nextCertificateSerial": None}}}
        await self.calm.merge(kinds.BYO_HOST, event.target, TENANT, patch, subresource="status")

    async def _enrol(self, event: Event) -> None:
        await self.enrol(event.target)

    async def enrol(self, name: str, *, due: bool = False) -> None:
        """As `ckp-agent enrol --again` and an approval: a new key, a new certificate, and the ByoHost if there is none."""
        async with self._enrolling[name]:
            host = self.hosts[name]
            await host.end()
            while (found := await self.calm.get(kinds.BYO_HOST, name, TENANT)) is not None and "deletionTimestamp" in found["metadata"]:
                await asyncio.sleep(0.1)
            identity = Identity(str(host.folder / "state"))
            identity.forget()
            csr = await asyncio.to_thread(identity.make_csr)
            certificate = (self._short_ca if due else self._ca).sign(csr, HostId(TENANT, name))
            if found is None:
                annotations = {f"{names.CKP}/machine-id": host.disk.flag("machine-id")}
                await self.calm.create(_obj(kinds.BYO_HOST, name, {}, labels=GROUP, annotations=annotations))
            elif serial := certificates.certificate_serial(found):
                await self.calm.merge(kinds.BYO_HOST, name, TENANT, {"spec": {"revokedSerial": serial}})
            enrolment = Enrolment(cast(CompassClient, None), self.calm, self._ca, self._root_file, CollectorRegistry())
            await enrolment._write_serial(HostId(TENANT, name), certificate)
            identity.store(EnrolmentStatus("approved", host=name, certificate=certificate, ca=self._root), str(self._root_file))
            host.allow()

    # The end of the schedule.

    async def settle(self) -> None:
        """Faults end; what people began they finish."""
        self._faults = False
        self.weather.clear()
        for host in self.hosts.values():
            host.repair()
        await asyncio.gather(*self._lasting, return_exceptions=True)
        for host in self.hosts.values():
            host.repair()
        self.weather.clear()
        for machine in await self.calm.list(kinds.MACHINE, TENANT):
            await self._data(Event(0, "data", machine["metadata"]["name"]))
        for name in self.hosts:
            found = await self.calm.get(kinds.BYO_HOST, name, TENANT)
            if found is None or "deletionTimestamp" in found["metadata"] or certificates.certificate_serial(found) == certificates.revoked_serial(found):
                await self.enrol(name)
            self.hosts[name].allow()

    # What must hold at the moment of a change.

    def _observe(self, event: EventType, kind: Kind, obj: Obj) -> None:
        if kind == kinds.BYO_MACHINE:
            uid, name = obj["metadata"]["uid"], obj["metadata"]["name"]
            nodes = {host.name: host.disk.node for host in self.hosts.values()}
            mine = [host for host, node in nodes.items() if node.get("provider_id", "").endswith(f"/{uid[:8]}")]
            if event == "DELETED":
                forced = names.FORCE_RELEASE_ANNOTATION in (obj["metadata"].get("annotations") or {})
                if mine and not forced and uid not in self._taken_away:
                    self.seen.append(f"machine {name} was let go while {', '.join(mine)} is still its node")
                return
            if (obj.get("status") or {}).get("failureReason") and uid not in self._failed:
                self._failed.add(uid)
                if uid not in self._taken_away:
                    self.seen.append(f"machine {name} failed for good, and nobody had taken its host away")
                if "deletionTimestamp" not in obj["metadata"]:
                    self.apply(Event(0, "replace", name))
            ready = is_true(obj, "BYOHostReady") and "deletionTimestamp" not in obj["metadata"]
            if ready and uid not in self._ready and ((obj.get("status") or {}).get("hostRef") or {}).get("name") not in mine:
                self.seen.append(f"machine {name} became ready before its host had joined as this machine")
            (self._ready.add if ready else self._ready.discard)(uid)
        elif kind == kinds.BYO_HOST and event != "DELETED":
            claim = (obj.get("spec") or {}).get("machineRef") or {}
            others = [
                other["metadata"]["name"]
                for other in self.kube.all_stored(kinds.BYO_HOST)
                if other["metadata"]["name"] != obj["metadata"]["name"] and ((other.get("spec") or {}).get("machineRef") or {}).get("uid") == claim.get("uid")
            ]
            if claim and others:
                self.seen.append(f"machine {claim['name']} took {obj['metadata']['name']} while it holds {', '.join(others)}")


@asynccontextmanager
async def make_world(schedule: Schedule, folder: Path) -> AsyncIterator[World]:
    """A world that runs, all hosts enrolled and one cluster there; it is ended whatever happens."""
    world = World(schedule, folder)
    try:
        await world.calm.create(_obj(kinds.CLUSTER, "demo", {}))
        await world.calm.merge(kinds.CLUSTER, "demo", TENANT, {"status": {"infrastructureReady": True}}, subresource="status")
        for hub in world.hubs:
            await hub.start()
        await world.controllers.start()
        for host in world.hosts.values():
            await host.start()
        await asyncio.gather(*(world.enrol(name, due=name in schedule.due) for name in world.hosts))
        yield world
    finally:
        for task in list(world._lasting):
            task.cancel()
        await asyncio.gather(*world._lasting, return_exceptions=True)
        for host in world.hosts.values():
            await host.close()
        await world.controllers.kill()
        for hub in world.hubs:
            await hub.kill()


def _obj(kind: Kind, name: str, spec: dict[str, Any], **metadata: Any) -> Obj:
    return {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": {"name": name, "namespace": TENANT, **metadata}, "spec": spec}
