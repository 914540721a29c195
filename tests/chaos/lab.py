"""Real hosts under faults: the running main job of the lab, a schedule drawn from a seed, and the same checker as for simulated hosts.

What the simulated world (tests.chaos.world) leaves out is here: kubelet, containerd, real API servers and etcd, real power and real cables. In return
the moments are not to the instruction, and a run takes minutes.
"""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from ckp.api import kinds
from ckp.clients.compass import Session, read_config
from ckp.clients.kube import Kube
from ckp.kits.errors import CkpError
from ckp.kits.processes import Finished, run
from ckp.lab.hosts import machine_name
from ckp.lab.lab import LabHost
from ckp.site.install import Site
from ckp.site.lab import LabHosts
from ckp.site.registries.unit import PULL, unit_of
from tests.chaos.checker import Whole, check
from tests.chaos.schedule import Event

TENANT = "ckp-default-default"
KILLED = {  # process of a pod on the management host: namespace, container
    "hub": ("ckp-system", "hub"),
    "controllers": ("ckp-system", "manager"),
    "compass": ("ckp-system", "compass"),
    "apiserver": (TENANT, "kube-apiserver"),
    "etcd": (TENANT, "etcd"),
    "management-apiserver": ("kube-system", "kube-apiserver"),
    "management-etcd": ("kube-system", "etcd"),
}
UNITS = ("ckp-agent", "kubelet", "containerd")
FAULTS = {**dict.fromkeys((f"kill-{unit}" for unit in UNITS), 6), **dict.fromkeys((f"kill-{name}" for name in KILLED), 3), "cut": 5, "loss": 4, "slow": 4}
CONVERGE_SECONDS = 600.0
LOSSES_OF_A_HOST = 3
"""More in an hour, and a host is rightly held back for longer than a test waits."""


class Lab(Protocol):
    """The running main job, as the end-to-end tests have it."""

    hosts: LabHosts
    site: Site

    def kubectl(self, *arguments: str, timeout: float = 90, check: bool = True, stdin: str | None = None) -> Finished:
        """Against the workload cluster."""
        ...


def draw(seed: int, hosts: tuple[str, ...], *, seconds: float = 75.0) -> list[Event]:
    """The schedule of a seed: faults every few seconds; meanwhile one host leaves its cluster and returns, and another one's agent is upgraded."""
    choose = random.Random(f"lab {seed}")
    leaver, upgraded = choose.sample(hosts, 2)
    left = choose.uniform(2.0, 15.0)
    events = [
        Event(round(left, 1), "leave", leaver),
        Event(round(left + choose.uniform(10.0, 30.0), 1), "return", leaver),
        Event(round(choose.uniform(5.0, 40.0), 1), "upgrade-agent", upgraded),
        Event(round(choose.uniform(5.0, seconds), 1), "power-cut", choose.choice(hosts), {"seconds": round(choose.uniform(1.0, 20.0), 1)}),
        Event(round(choose.uniform(0.0, seconds), 1), "registry", "", {"seconds": round(choose.uniform(5.0, 25.0), 1)}),
    ]
    lost = {host: sum(event.kind == "power-cut" and event.target == host for event in events) for host in hosts}
    at = choose.uniform(1.0, 5.0)
    while at < seconds:
        kind, host = choose.choices(list(FAULTS), list(FAULTS.values()))[0], choose.choice(hosts)
        if kind in ("cut", "loss", "slow"):
            if kind == "slow" or lost[host] < LOSSES_OF_A_HOST:
                lost[host] += kind != "slow"
                events.append(Event(round(at, 1), kind, host, {"seconds": round(choose.uniform(3.0, 25.0), 1)}))
        else:
            events.append(Event(round(at, 1), kind, host if kind.removeprefix("kill-") in UNITS else ""))
        at += choose.uniform(2.0, 9.0)
    return sorted(events, key=lambda event: event.at)


@dataclass
class Run:
    """One run: its faults, what was asked of it, and what the cluster has acknowledged meanwhile."""

    lab: Lab
    hosts: dict[str, LabHost]
    """By their names in Compass."""
    agents: tuple[str, str]
    """Two versions of the agent; an upgrade asks for the one that does not run."""
    say: Callable[[str], None]
    seen: list[str] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)
    _locks: dict[str, threading.Lock] = field(default_factory=dict)
    _left: threading.Event = field(default_factory=threading.Event)

    def play(self, seed: int, events: list[Event]) -> list[str]:
        """Let it all happen, end the faults, wait for rest; what is inconsistent then.

        The cluster must take a write before the first fault and after the last one; how many in between is the schedule's matter.
        """
        self._locks = {name: threading.Lock() for name in (*self.hosts, "")}
        over = threading.Event()
        if not self._takes_writes():
            return ["the cluster took no write before the first fault"]
        with ThreadPoolExecutor(len(events) + 1) as pool:
            writer = pool.submit(self._write_on, over)
            started = time.monotonic()
            tasks: list[tuple[Event, Future[None]]] = []
            for event in events:
                time.sleep(max(0.0, started + event.at - time.monotonic()))
                self.say(f"{time.monotonic() - started:6.1f}s {event}")
                tasks.append((event, pool.submit(self._happen, event)))
            for event, task in tasks:
                if error := task.exception():
                    self.seen.append(f"the harness itself failed at {event}: {error!r}")
            over.set()
            writer.result()
        self.say(f"{time.monotonic() - started:6.1f}s faults have ended")
        for host in self.hosts.values():
            host.start()
        found = self._converge()
        return found if self._takes_writes() else [*found, "the cluster takes no write after the last fault"]

    # -- what happens

    def _happen(self, event: Event) -> None:
        name = event.kind.removeprefix("kill-")
        if event.kind != name and name in UNITS:
            self._on(event.target, ["systemctl", "kill", "--signal=KILL", "--kill-who=main", name])
        elif event.kind != name:
            self._kill_container(*KILLED[name])
        else:
            getattr(self, "_" + name.replace("-", "_"))(event)

    def _on(self, host: str, argv: list[str]) -> None:
        try:
            self.hosts[host].run(argv, timeout=60, check=False)
        except CkpError:
            pass  # its power is cut

    def _kill_container(self, namespace: str, container: str) -> None:
        pid = "crictl inspect -o go-template --template '{{.info.pid}}'"
        script = f"for id in $(crictl ps -q --label io.kubernetes.pod.namespace={namespace} --name '^{container}$' | head -1); do kill -9 $({pid} $id); done"
        self.lab.hosts.management.run(["sh", "-c", script], timeout=120, check=False)

    def _power_cut(self, event: Event) -> None:
        with self._locks[event.target]:
            self.hosts[event.target].power_cut()
            time.sleep(event.args["seconds"])
            self.hosts[event.target].start()

    def _cut(self, event: Event) -> None:
        with self._locks[event.target]:
            port = self._port(event.target)
            run(["ip", "link", "set", port, "down"], timeout=20)
            time.sleep(event.args["seconds"])
            run(["ip", "link", "set", port, "up"], timeout=20)

    def _slow(self, event: Event) -> None:
        """One megabit a second towards the host: what queues waits."""
        with self._locks[event.target]:
            port = self._port(event.target)
            run(["tc", "qdisc", "add", "dev", port, "root", "tbf", "rate", "1mbit", "burst", "32kbit", "latency", "600ms"], timeout=20, check=False)
            time.sleep(event.args["seconds"])
            run(["tc", "qdisc", "del", "dev", port, "root"], timeout=20, check=False)

    def _loss(self, event: Event) -> None:
        """Every fourth packet to the host is lost."""
        rule = ["INPUT", "-i", "host0", "-m", "statistic", "--mode", "random", "--probability", "0.25", "-j", "DROP"]
        with self._locks[event.target]:
            self._on(event.target, ["iptables", "-w", "10", "-I", *rule])
            time.sleep(event.args["seconds"])
            self._on(event.target, ["iptables", "-w", "10", "-D", *rule])

    def _registry(self, event: Event) -> None:
        with self._locks[""]:
            self.lab.hosts.management.run(["systemctl", "stop", unit_of(PULL)], timeout=90)
            time.sleep(event.args["seconds"])
            self.lab.hosts.management.run(["systemctl", "start", unit_of(PULL)], timeout=90)

    def _leave(self, event: Event) -> None:
        """As `ckp host remove`, asked until Compass takes it."""
        self._ask("POST", f"/hosts/{event.target}/leave", {"shrink": False, "force": False})
        self._left.set()

    def _return(self, event: Event) -> None:
        self._left.wait(200)  # Compass may have been away: to leave comes first
        self._ask("PATCH", f"/hosts/{event.target}", {"cordoned": False, "drained": False})

    def _upgrade_agent(self, event: Event) -> None:
        """As `ckp host upgrade-agent`: a version that it does not run; what is under way or was taken back when all is over is no longer asked for."""
        running = self._ask("GET", f"/hosts/{event.target}")["agentVersion"]
        wanted = next(version for version in self.agents if version != running)
        self._ask("PUT", f"/hosts/{event.target}/agent", {"version": wanted, "confirmSeconds": 60})
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            row = self._ask("GET", f"/hosts/{event.target}")
            if row["agentVersion"] == wanted or "taken back" in str(row):
                break
            time.sleep(3)
        self.say(f"        {event.target} runs the agent {row['agentVersion']}, asked for was {wanted}")
        self._ask("PUT", f"/hosts/{event.target}/agent", {"version": ""})

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Compass, asked until it answers."""
        deadline = time.monotonic() + 180
        while True:
            try:
                session = Session(read_config())
                return session.get(path) if method == "GET" else session.call(method, path, body=body)
            except CkpError as error:
                if time.monotonic() > deadline:
                    raise
                self.say(f"        {method} {path}: {error.brief}; asked again")
                time.sleep(3)

    def _port(self, host: str) -> str:
        """The machine's end of the host's cable."""
        network = self.lab.hosts.lab.network
        listing = json.loads(run(["ip", "-json", "link", "show", f"vb-{machine_name(network, self.hosts[host].name)}"], timeout=20).stdout)
        return str(listing[0]["ifname"])

    # -- what must be kept

    def _write(self) -> bool:
        """One write to the cluster; what it has acknowledged must be there in the end."""
        name = f"chaos-{secrets.token_hex(4)}"
        took = self.lab.kubectl("create", "configmap", name, "-n", "default", "--request-timeout=10s", timeout=60, check=False).code == 0
        if took:
            self.acknowledged.append(name)
        return took

    def _takes_writes(self) -> bool:
        deadline = time.monotonic() + 120
        while not self._write():
            if time.monotonic() > deadline:
                return False
            time.sleep(2)
        return True

    def _write_on(self, over: threading.Event) -> None:
        before, tried, last, longest = len(self.acknowledged), 0, time.monotonic(), 0.0
        while not over.wait(1.0):
            tried += 1
            if self._write():
                last = time.monotonic()
            longest = max(longest, time.monotonic() - last)
        self.say(f"        {len(self.acknowledged) - before} of {tried} writes were acknowledged meanwhile, none for {longest:.0f} s at the longest")

    # -- what is judged

    def _converge(self) -> list[str]:
        deadline, quiet, found, said = time.monotonic() + CONVERGE_SECONDS, 0, [""], ""
        while quiet < 2 and time.monotonic() < deadline:
            time.sleep(3)
            try:
                found = self.judge()
            except (CkpError, ValueError, KeyError) as error:
                found = [f"it can't be looked at: {error}"]
            quiet = 0 if found else quiet + 1
            if found and found[0] != said:
                said = found[0]
                self.say(f"        not yet: {said[:180]}{f' (and {len(found) - 1} more)' if len(found) > 1 else ''}")
        return [*self.seen, *found]

    def judge(self) -> list[str]:
        """What does not fit together now: objects, as for simulated hosts; then the cluster's nodes and what it has acknowledged."""
        whole, machines = asyncio.run(self._whole())
        nodes = json.loads(self.lab.kubectl("get", "nodes", "-o", "json").stdout)["items"]
        said = [sentence for sentence in check(whole) if ": Stable is False" not in sentence]
        phases = {item["metadata"]["name"]: (item.get("status") or {}).get("phase") for item in machines}
        said += [f"machine {name} is {phase}" for name, phase in phases.items() if phase != "Running"]
        wanted = {
            desired.membership.node_name: desired.membership.provider_id for name in self.hosts if (desired := whole.desired(name)) and desired.membership
        }
        there = {node["metadata"]["name"]: node["spec"].get("providerID") for node in nodes}
        if there != wanted:
            said.append(f"the nodes are {there}, the hosts are told {wanted}")
        for node in nodes:
            if not any(item["type"] == "Ready" and item["status"] == "True" for item in node["status"]["conditions"]):
                said.append(f"node {node['metadata']['name']} is not Ready")
            if node["spec"].get("unschedulable"):
                said.append(f"node {node['metadata']['name']} is cordoned")
        said += [f"the pod {name} is not ready" for name in self._pods_not_ready()]
        names = {item["metadata"]["name"] for item in json.loads(self.lab.kubectl("get", "configmaps", "-n", "default", "-o", "json").stdout)["items"]}
        said += [f"configmap {name} was acknowledged and is lost" for name in self.acknowledged if name not in names]
        for name, host in self.hosts.items():
            if host.run(["ls", "/var/lib/ckp-agent/agent/upgrade.json"], timeout=30, check=False).code == 0:
                said.append(f"host {name}: the upgrade of its agent has not come to its end")
        return said

    def _pods_not_ready(self) -> list[str]:
        pods = json.loads(self.lab.kubectl("get", "pods", "-n", "kube-system", "-o", "json").stdout)["items"]
        running = [pod for pod in pods if pod["status"].get("phase") != "Succeeded"]
        return [
            pod["metadata"]["name"]
            for pod in running
            if not any(item["type"] == "Ready" and item["status"] == "True" for item in pod["status"].get("conditions", []))
        ]

    async def _whole(self) -> tuple[Whole, list[dict[str, Any]]]:
        kube = Kube.from_kubeconfig(self.lab.site.kubeconfig)
        try:
            return await Whole.of(kube, TENANT, {}), await kube.list(kinds.MACHINE, TENANT)
        finally:
            await kube.close()
