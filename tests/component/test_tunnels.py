"""Real konnectivity servers and a real agent with the flags that the hosted ones get, behind one address that leads to any of the servers."""

from __future__ import annotations

import json
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from ckp.clients.kube import Obj
from ckp.controllers.controlplane import apiserver, bootstrap
from ckp.kits.errors import TimedOut
from ckp.kits.processes import Daemon
from ckp.kits.retry import wait_until
from tests.support.control_plane import TestControlPlane, built
from tests.unit.controllers.test_control_plane_manifests import plan
from tests.worlds.tls import make_authority, make_leaf, write_pair

pytestmark = pytest.mark.component

START = 90.0
FOUND = 45.0
REPLICAS = 2


@dataclass
class AnyOf:
    """One address in front of several ports of this machine: each connection goes to one of them, by chance."""

    ports: list[int] = field(default_factory=list)
    connections: int = 0

    def __post_init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.chance = random.Random(7)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                self.connections += 1
                with suppress(OSError):
                    server = socket.create_connection(("127.0.0.1", self.chance.choice(self.ports)))
                    for ends in ((client, server), (server, client)):
                        threading.Thread(target=self._copy, args=ends, daemon=True).start()

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def low_port() -> int:
    """A port that nobody listens on right now, of those that a server takes: it refuses what a system may give to any connection (above 49151)."""
    while True:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", random.randint(20000, 32000)))
            return int(probe.getsockname()[1])


def options(command: list[str]) -> dict[str, str]:
    return dict(item[2:].split("=", 1) for item in command if item.startswith("--"))


@dataclass
class Konnectivity:
    """What is common to servers and agent."""

    plane: TestControlPlane
    folder: Path
    front: AnyOf = field(default_factory=AnyOf)

    def __post_init__(self) -> None:
        authority = make_authority("kubernetes")
        (self.folder / "ca.crt").write_text(authority.pem)
        leaf, key = make_leaf(authority, common_name="kube-apiserver", server=True)
        self.pair = write_pair(self.folder, "server", leaf, key)
        self.made = bootstrap.bootstrap_objects(plan(replicas=REPLICAS))[0]
        # What the Job applies, but for the pods: there is no node.
        items = [item for item in json.loads(self.made["data"]["manifests.json"])["items"] if item["kind"] != "DaemonSet"]
        self.plane.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
        audience = ("--audience=system:konnectivity-server", "--duration=1h")
        account = ("create", "token", "konnectivity-agent", "-n", "kube-system")
        (self.folder / "token").write_text(self.plane.kubectl(*account, *audience).strip())
        self._kubeconfig("server", {"token": self.plane.token, "as": "system:konnectivity-server"})
        self._kubeconfig("agent", {"token": self.plane.kubectl(*account).strip()})

    def _kubeconfig(self, name: str, user: dict[str, str]) -> None:
        config = {**self.plane.kubeconfig(), "users": [{"name": "u", "user": user}]}
        (self.folder / f"{name}.kubeconfig").write_text(json.dumps(config))

    @contextmanager
    def running(self, name: str, program: str, flags: dict[str, str]) -> Iterator[Daemon]:
        daemon = Daemon(name, self.folder / f"{name}.pid", self.folder / f"{name}.log")
        daemon.start([built("konnectivity").binary(program), *(f"--{flag}={value}" for flag, value in flags.items())])
        try:
            yield daemon
        finally:
            daemon.stop()

    @contextmanager
    def server(self, name: str) -> Iterator[int]:
        """A server that agents can reach; its health port."""
        agents, health = low_port(), low_port()
        container: Obj = apiserver.api_server(plan(replicas=REPLICAS))["spec"]["template"]["spec"]["initContainers"][0]
        own = {
            "uds-name": f"{self.folder}/{name}.sock",
            "agent-port": str(agents),
            "admin-port": str(low_port()),
            "health-port": str(health),
            "cluster-cert": str(self.pair[0]),
            "cluster-key": str(self.pair[1]),
            "kubeconfig": f"{self.folder}/server.kubeconfig",
        }
        with self.running(name, "proxy-server", options(container["command"]) | own) as daemon:
            wait_until(lambda: get(health, "/healthz") == 200, what=f"{name} runs", timeout=START, every=0.2, reason=daemon.tail)
            self.front.ports.append(agents)
            yield health
        self.front.ports.remove(agents)

    @contextmanager
    def agent(self) -> Iterator[Daemon]:
        sets = [item for item in json.loads(self.made["data"]["manifests.json"])["items"] if item["kind"] == "DaemonSet"]
        own = {
            "ca-cert": f"{self.folder}/ca.crt",
            "proxy-server-host": "127.0.0.1",
            "proxy-server-port": str(self.front.port),
            "service-account-token-path": f"{self.folder}/token",
            "admin-server-port": str(low_port()),
            "health-server-port": str(low_port()),
            "agent-identifiers": "ipv4=127.0.0.1",
            "kubeconfig": f"{self.folder}/agent.kubeconfig",  # in a pod that is the service account's
        }
        command = sets[0]["spec"]["template"]["spec"]["containers"][0]["command"]
        with self.running("agent", "proxy-agent", options(command) | own) as daemon:
            yield daemon


def get(port: int, path: str) -> int:
    """The status of an answer; 0 if nobody answers."""
    try:
        return httpx.get(f"http://127.0.0.1:{port}{path}", trust_env=False, timeout=10).status_code
    except httpx.HTTPError:
        return 0


def tunnels(servers: list[int]) -> bool:
    """Whether an agent is connected to each."""
    return all(get(port, "/readyz") == 200 for port in servers)


def test_an_agent_finds_a_server_more_than_there_should_be_and_then_stops_looking(plane: TestControlPlane, tmp_path: Path) -> None:
    """As in a rollout, when the next API server starts before one of the others ends: the servers' count is that of the spec all the time."""
    made = Konnectivity(plane, tmp_path)
    with ExitStack() as stack:
        servers = [stack.enter_context(made.server(f"server-{index}")) for index in range(REPLICAS)]
        agent = stack.enter_context(made.agent())
        wait_until(lambda: tunnels(servers), what="the agent has a tunnel to both", timeout=FOUND, every=0.1, reason=agent.tail)
        servers.append(stack.enter_context(made.server("third")))
        wait_until(lambda: tunnels(servers), what="the agent finds the third and keeps the others", timeout=FOUND, every=0.1, reason=agent.tail)
        before = made.front.connections
        with pytest.raises(TimedOut):  # one attempt may have been under way
            wait_until(lambda: made.front.connections > before + 1, what="the agent dials on", timeout=8, every=0.2)
