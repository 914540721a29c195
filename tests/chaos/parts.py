"""The processes of a run: agents (real ones), hubs and controllers (in this process, each with an API client of its own that dies with it)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from ckp.api.host_protocol import BundleRef
from ckp.api.platform import InstalledRelease, Releases
from ckp.controllers.__main__ import build
from ckp.controllers.workload import WorkloadClients
from ckp.hub.desired import KubeDesired
from ckp.hub.identity import HostCa, channel_context
from ckp.hub.offline import OfflineDetector
from ckp.hub.replicas import Replicas
from ckp.hub.sessions.server import AgentServer
from ckp.hub.sessions.session import Issue
from ckp.kits.clock import SystemClock
from tests.chaos.kube import ChaosKube
from tests.chaos.network import Network
from tests.chaos.simhost import Disk

OFFLINE, SEEN_EVERY, SWEEP, RENEW, RESYNC = 5.0, 20.0, 0.5, 0.7, 15.0
REPOSITORY = Path(__file__).resolve().parents[2]
VERSION = "v1.35.1"
RELEASES = Releases(
    releases={
        VERSION: InstalledRelease(
            name=VERSION,
            stamp=f"{VERSION}-ckp",
            registry="registry.example:5000/ckp",
            images={"pause": "v1"},
            bundles={"debian-12": BundleRef(image="registry.example:5000/ckp/bundle@sha256:" + "0" * 64, tag=f"{VERSION}-ckp", release=VERSION)},
        )
    }
)


class Hub:
    """One replica."""

    def __init__(self, kube: ChaosKube, identity: str, server: tuple[Path, Path], ca: HostCa, issue: Issue) -> None:
        self.identity = identity
        self._root, self._server, self._ca, self._issue = kube, server, ca, issue
        self.port = 0
        self._tasks: list[asyncio.Task[Any]] = []

    async def start(self) -> None:
        """Come up, on a port of its own."""
        self._kube = self._root.client("ckp-hub")
        desired = KubeDesired(self._kube)
        clock = SystemClock()
        replicas = Replicas(self._kube, self.identity, clock, renew=RENEW)
        self._sessions = AgentServer(self._kube, desired, clock, CollectorRegistry(), replicas, issue=self._issue, offline=OFFLINE, seen_every=SEEN_EVERY)
        self._listening = self._sessions.listen("127.0.0.1", 0, channel_context(*self._server, self._ca))
        self._sockets = await self._listening.__aenter__()
        self.port = self._sockets.sockets[0].getsockname()[1]
        parts = (desired.run(), replicas.keep(), OfflineDetector(self._sessions, SWEEP).run())
        self._tasks = [asyncio.ensure_future(part) for part in parts]

    async def kill(self) -> None:
        """As SIGKILL: no goodbye to hosts, not a word to the API server."""
        self._kube.die()
        self._sessions.stopping = True
        for connection in list(self._sockets.all_connections):
            connection.transport.abort()
        for task in list(self._sockets.handler_tasks):
            task.cancel()
        await self.stop()

    async def stop(self) -> None:
        """As SIGTERM."""
        self.port = 0
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(6.0):
                await self._listening.__aexit__(None, None, None)
        self._kube.die()


class Controllers:
    """The byo controllers as `python -m ckp.controllers` wires them, without the lease."""

    def __init__(self, kube: ChaosKube) -> None:
        self._root = kube
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """A new process: it knows nothing."""
        self._kube = self._root.client("ckp-controllers")
        manager = build(self._kube, RELEASES, "addons", WorkloadClients())
        controllers = [one for one in manager.controllers if one.name in ("byohost", "byomachine")]
        informers = list(manager._informers.values())

        async def lead() -> None:
            for informer in informers:
                await informer.synced.wait()
            async with asyncio.TaskGroup() as group:
                for controller in controllers:
                    controller.resync = RESYNC
                    group.create_task(controller.run())

        self._tasks = [*(asyncio.ensure_future(informer.run()) for informer in informers), asyncio.ensure_future(lead())]

    async def kill(self) -> None:
        """As SIGKILL."""
        self._kube.die()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Host:
    """A machine with its agent's process, which systemd starts again whenever it ends."""

    def __init__(self, folder: Path, hubs: Callable[[], list[int]], ca: Path, choose: random.Random) -> None:
        self.folder, self.name, self.ca = folder, folder.name, ca
        self.disk = Disk.install(folder)
        (folder / "machine-id").write_text(f"{choose.getrandbits(128):032x}")
        self.network = Network(hubs, choose)
        self.starts = 0
        self._process: asyncio.subprocess.Process | None = None
        self._power = False
        self._run = asyncio.Event()
        self._on_since = 0
        self._boot()

    def _boot(self) -> None:
        (self.folder / "boot-id").write_text(secrets.token_hex(16))

    async def start(self) -> None:
        """Plug it in; the agent runs from `allow` on."""
        await self.network.start()
        self._supervisor = asyncio.ensure_future(self._supervise())

    def allow(self) -> None:
        """The agent may run."""
        self._on_since += 1
        self._run.set()

    async def end(self, *, power: bool = False) -> None:
        """Kill the agent, and keep it from running until `allow`."""
        self._on_since += 1
        self._run.clear()
        self._power = self._power or power
        self._kill()
        while self._process is not None:
            await asyncio.sleep(0.01)

    async def off_for(self, seconds: float, *, power: bool) -> None:
        """Kill the agent or cut the power; after `seconds` it comes back, if nobody has said otherwise meanwhile."""
        running = self._run.is_set()
        await self.end(power=power)
        mine = self._on_since
        await asyncio.sleep(seconds)
        if running and mine == self._on_since:
            self.allow()

    def die_after(self, ticks: int, number: int, *, power: bool) -> None:
        """The agent ends after so many of its instructions."""
        self._power = self._power or power
        (self.folder / "die-after").write_text(f"{ticks} {number}")

    def repair(self) -> None:
        """No fault of this host lasts."""
        for name in ("die-after", "full", "registry"):
            (self.folder / name).unlink(missing_ok=True)
        self._power = False
        self.network.set_mode("ok")

    async def close(self) -> None:
        """End it all."""
        self._supervisor.cancel()
        self._kill()
        if self._process is not None:
            await self._process.wait()
        await asyncio.gather(self._supervisor, return_exceptions=True)
        await self.network.close()

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _supervise(self) -> None:
        environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY / 'src'}:{REPOSITORY}", "PYTHONDONTWRITEBYTECODE": "1"}
        url = f"wss://127.0.0.1:{self.network.port}/v1/agent"
        while True:
            await self._run.wait()
            self.starts += 1
            with (self.folder / "agent.log").open("a") as log:
                self._process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "tests.chaos.host_process", str(self.folder), url, str(self.ca)),
                    env=environment,
                    stdout=log,
                    stderr=log,
                    stdin=asyncio.subprocess.DEVNULL,
                    start_new_session=True,
                )
            code = await self._process.wait()
            (self.folder / "die-after").unlink(missing_ok=True)
            self.disk.happened("agent ended", code=code)
            if self._power:
                self._power = False
                self.disk.happened("power cut", lost=self.disk.power_cut())
                self._boot()
            self._process = None
            await asyncio.sleep(0.2)
