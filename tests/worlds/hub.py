"""A hub's channel that listens on real TLS sockets over a simulated API server, and hosts that speak to it."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidMessage

from ckp.api import kinds, names
from ckp.api.host_protocol import Desired, Hello, Report
from ckp.hub import status as shape
from ckp.hub.desired import KubeDesired
from ckp.hub.identity import HostCa, HostId, channel_context
from ckp.hub.offline import OfflineDetector
from ckp.hub.replicas import Replicas
from ckp.hub.sessions.server import PATH, AgentServer
from ckp.kits.clock import SystemClock
from tests.simulators.kube import KubeSimulator
from tests.worlds.compass import facts
from tests.worlds.tls import Authority, client_context, make_authority, make_leaf, serial_of, write_pair

TENANT = "ckp-default-default"
CUT_OFF_BY_TLS = (ssl.SSLError, ConnectionError, InvalidMessage)
"""What a client sees whose certificate is refused; under TLS 1.3 it learns that only when it reads."""


@dataclass
class Door:
    """A hub's channel that listens, and what belongs to it."""

    kube: KubeSimulator
    server: AgentServer
    desired: KubeDesired
    port: int
    root: Authority
    host_ca: Authority
    directory: Path

    async def add_host(self, name: str = "one", *, serial: str = "") -> None:
        await self.kube.create({"apiVersion": kinds.BYO_HOST.api_version, "kind": "ByoHost", "metadata": {"name": name, "namespace": TENANT}, "spec": {}})
        if serial:
            await self.set_serial(name, serial)

    async def set_serial(self, name: str, serial: str) -> None:
        await self.kube.merge(kinds.BYO_HOST, name, TENANT, {"status": {"agent": {"certificateSerial": serial}}}, subresource="status")

    def credentials(self, uri: str, *, authority: Authority | None = None, label: str = "c", **more: Any) -> tuple[tuple[Path, Path], str]:
        pem, key = make_leaf(authority or self.host_ca, uris=(uri,) if uri else (), **more)
        return write_pair(self.directory, label, pem, key), f"{serial_of(pem):x}"

    async def enrolled(self, name: str = "one", **more: Any) -> ssl.SSLContext:
        """A host with its certificate; the TLS context of its agent."""
        pair, serial = self.credentials(HostId(TENANT, name).uri, label=name, **more)
        await self.add_host(name, serial=serial)
        return client_context(self.root.pem, pair)

    def connect(self, context: ssl.SSLContext, path: str = PATH, **more: Any) -> connect:
        return connect(f"wss://localhost:{self.port}{path}", ssl=context, compression=None, max_size=None, proxy=None, **more)

    async def host(self, name: str = "one") -> dict[str, Any]:
        found = await self.kube.get(kinds.BYO_HOST, name, TENANT)
        assert found is not None
        return found

    async def desire(self, name: str, desired: Desired | str) -> None:
        text = desired if isinstance(desired, str) else desired.model_dump_json()
        await self.kube.apply(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": f"{TENANT}.{name}", "namespace": names.HOSTS_NAMESPACE, "labels": {"ckp.coredge.io/host": name}},
                "data": {"desired.json": base64.b64encode(text.encode()).decode()},
            }
        )

    async def announce(self, name: str, certificates: str) -> None:
        """As the byo controller does when a host's certificates change."""
        patch = {"metadata": {"annotations": {names.CERTIFICATES_ANNOTATION: certificates}}}
        await self.kube.merge(kinds.SECRET, f"{TENANT}.{name}", names.HOSTS_NAMESPACE, patch)


@asynccontextmanager
async def make_door(
    directory: Path,
    kube: KubeSimulator | None = None,
    *,
    authorities: tuple[Authority, Authority] | None = None,
    offline: float = 60.0,
    seen_every: float = 20.0,
    sweep_every: float = 0.1,
    identity: str = "hub-1",
) -> AsyncIterator[Door]:
    """A hub for the block. `authorities` (its root, and the host CA) are another hub's, whose hosts come to this one."""
    root, host_ca = authorities or (root := make_authority("root"), make_authority("host-ca", root))
    ca_files = host_ca.write(directory, "host-ca")
    pair = write_pair(directory, "server", *make_leaf(root, server=True))
    kube = kube or KubeSimulator(manager="ckp-hub", namespaces=("default", TENANT, names.HOSTS_NAMESPACE))
    clock = SystemClock()
    desired = KubeDesired(kube)
    ca = HostCa(*ca_files, clock)

    def issue(csr: str, host: HostId) -> tuple[str, str]:
        return ca.sign(csr, host), root.pem

    replicas = Replicas(kube, identity, clock, renew=min(1.0, offline / 8))
    server = AgentServer(kube, desired, clock, CollectorRegistry(), replicas, issue=issue, offline=offline, seen_every=seen_every)
    context = channel_context(*pair, ca)
    following = asyncio.ensure_future(desired.run())
    sweeping = asyncio.ensure_future(OfflineDetector(server, sweep_every).run())
    renewing = asyncio.ensure_future(replicas.keep())
    try:
        async with server.listen("127.0.0.1", 0, context) as listening:
            yield Door(kube, server, desired, listening.sockets[0].getsockname()[1], root, host_ca, directory)
    finally:
        for task in (following, sweeping, renewing):
            task.cancel()
        await asyncio.gather(following, sweeping, renewing, return_exceptions=True)


async def eventually(probe: Callable[[], Awaitable[Any]], *, within: float = 5.0) -> Any:
    """The first truthy answer, or a failure that shows the last."""
    deadline = asyncio.get_running_loop().time() + within
    while not (answer := await probe()):
        assert asyncio.get_running_loop().time() < deadline, f"not within {within} s: {answer!r}"
        await asyncio.sleep(0.02)
    return answer


async def is_so(value: bool) -> bool:
    """For `eventually`, of what needs no waiting itself."""
    return value


async def with_phase(door: Door, phase: str) -> dict[str, Any] | None:
    """The host, if it has reported this phase."""
    host = await door.host()
    return host if ((host.get("status") or {}).get("observed") or {}).get("phase") == phase else None


async def with_condition(door: Door, value: str, name: str = "one") -> dict[str, Any] | None:
    """The host, if AgentConnected has this value."""
    host = await door.host(name)
    return host if shape.condition_of(host).get("status") == value else None


async def hello(websocket: ClientConnection, boot_id: str = "boot", **more: Any) -> None:
    await websocket.send(Hello(boot_id=boot_id, facts=facts(agent_version="0.1.0"), **more).model_dump_json())


async def desired_of(websocket: ClientConnection) -> Desired:
    return Desired.model_validate_json(await asyncio.wait_for(websocket.recv(), 5))


def report(**more: Any) -> str:
    return Report(**({"generation": 1, "phase": "Free"} | more)).model_dump_json()


async def close_code(websocket: ClientConnection) -> int:
    with pytest.raises(ConnectionClosed) as closed:
        while True:
            await asyncio.wait_for(websocket.recv(), 5)
    return closed.value.rcvd.code if closed.value.rcvd else 0
