"""Hosts on a bridge of the lab of their own, with the agent's package and a registry, for clusters of several masters."""

from __future__ import annotations

import base64
import itertools
import json
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckp.catalog.load import Catalog
from ckp.distribution.bundles import PREFIX
from ckp.distribution.registries.server import RegistryServer
from ckp.distribution.release import Distribution
from ckp.kits import paths
from ckp.kits.processes import Finished, run
from ckp.kits.retry import wait_until
from ckp.lab.lab import HostSpec, Lab, LabHost, LabNetwork
from ckp.site.install import REGISTRY_CA
from ckp.site.lab import HOST_SETTINGS, OS, REGISTRY, REGISTRY_ADDRESS
from ckp.standalone.api import Server, Unreachable, trust

RELEASE = "v1.35.1"
NETWORK = LabNetwork(bridge="ckpjoin0", gateway="10.177.94.1", registry="10.177.94.1")
VIRTUAL = "10.177.94.60"
MASTERS = tuple(HostSpec(f"m{number}", f"10.177.94.{10 + number}") for number in (1, 2, 3, 4))
WORKER = HostSpec("w1", "10.177.94.31")
ADMIN = "/etc/kubernetes/admin.conf"
STANDALONE = ("ckp-agent", "standalone")


@dataclass
class Place:
    """The lab, and a release that its hosts can be installed from."""

    lab: Lab
    dist: Distribution
    registry: RegistryServer
    bundle: str

    def host(self, spec: HostSpec) -> LabHost:
        """The host, made and booted if need be, with the agent's package."""
        host = self.lab.ensure_host(spec)
        package = self.dist.agent(OS.format)
        if host.run(["dpkg-query", "-W", "-f", "${Version}", "ckp-agent"], timeout=30, check=False).stdout != package.version:
            host.push(json.dumps(HOST_SETTINGS).encode(), "/etc/ckp-agent/host.json")
            host.push(self.registry.ca, REGISTRY_CA)
            host.push(package.path, "/var/cache/ckp-agent.deb")
            host.run(["dpkg", "-i", "/var/cache/ckp-agent.deb"], timeout=180, what="installing ckp-agent")
        return host

    @property
    def source(self) -> list[str]:
        """The options that say where the bundle is."""
        return ["--bundle-image", self.bundle, "--registry-ca", REGISTRY_CA]

    def install(self, host: LabHost) -> str:
        return said(host, ["install", *self.source, "--virtual-address", VIRTUAL, "--advertise-address", host.address, "--node-name", host.name])

    def join(self, host: LabHost, token: str, *more: str) -> str:
        argv = ["join", *self.source, "--advertise-address", host.address, "--node-name", host.name, *more]
        return said(host, argv, stdin=token)

    def refused(self, host: LabHost, token: str, *more: str) -> Finished:
        """A join that must end with an error."""
        argv = [*STANDALONE, "join", *self.source, "--advertise-address", host.address, "--node-name", host.name, *more]
        done = host.run(argv, timeout=600, stdin=token, check=False)
        assert done.code != 0, done.stdout
        return done


def said(host: LabHost, arguments: list[str], *, stdin: str | None = None, timeout: float = 2400) -> str:
    """Run `ckp-agent standalone …` to its end, and show what it says as it comes."""
    lines: list[str] = []
    started = time.monotonic()

    def one(line: str) -> None:
        lines.append(line)
        print(f"  {host.name} {time.monotonic() - started:6.1f}s {line}", flush=True)

    code = host.stream([*STANDALONE, *arguments], timeout=timeout, on_line=one, stdin=stdin)
    assert code == 0, f"{arguments[0]} on {host.name} ended with {code}:\n" + "\n".join(lines[-40:])
    return "\n".join(lines)


def token_of(host: LabHost, *arguments: str) -> str:
    """A join token, as a master of the cluster makes it."""
    done = host.run([*STANDALONE, "token", "create", *arguments], timeout=300)
    assert re.fullmatch(r"ckp-join\.[A-Za-z0-9_-]+\n", done.stdout)
    return done.stdout.strip()


def kubectl(host: LabHost, *arguments: str, check: bool = True, timeout: float = 90) -> str:
    return host.run(["kubectl", f"--kubeconfig={ADMIN}", "--request-timeout=30s", *arguments], timeout=timeout, check=check).stdout


def nodes(host: LabHost) -> dict[str, bool]:
    """Node -> whether it is Ready."""
    items = json.loads(kubectl(host, "get", "nodes", "-o", "json", check=False) or '{"items": []}')["items"]
    return {
        item["metadata"]["name"]: any(part["type"] == "Ready" and part["status"] == "True" for part in item["status"].get("conditions", [])) for item in items
    }


MEMBERS = """
import sys
sys.path.insert(0, "/usr/bin/ckp-agent")
from ckp.standalone.members import Etcd
for member in Etcd().members(): print(member.name or "-", "learner" if member.learner else "voter")
"""


def members(host: LabHost) -> dict[str, str]:
    """Member of etcd -> "voter" or "learner"."""
    place = host.run(["readlink", "-f", "/usr/bin/ckp-agent"], timeout=20).stdout.strip()
    listed = host.run(["python3", "-I", "-c", MEMBERS.replace("/usr/bin/ckp-agent", place)], timeout=60).stdout
    return dict(line.split() for line in listed.splitlines())


def holders(hosts: list[LabHost]) -> list[str]:
    """The hosts that have the virtual address now."""
    return [host.name for host in hosts if host.running and f"{VIRTUAL}/32" in host.run(["ip", "-4", "addr", "show"], timeout=20).stdout]


@contextmanager
def prepared() -> Iterator[Place]:
    """An empty lab with a registry that has the release."""
    folder = paths.state() / "lab-join"
    lab = Lab(folder, NETWORK)
    catalog = Catalog()
    dist = Distribution(catalog, catalog.release(RELEASE), "lab", print)
    dist.build()
    dist.pack([OS.format])
    dist.make_images()
    dist.make_bundles(REGISTRY_ADDRESS, [OS])
    registry = RegistryServer(dist.built["distribution"].binary("registry"), NETWORK.gateway, REGISTRY, state=folder / "registry")
    if not os.environ.get("CKP_KEEP_LAB"):
        registry.stop()
        lab.down()
    try:
        lab.ensure_base(print)
        lab.ensure_host(MASTERS[0])  # with it comes the bridge, at whose address the registry listens
        client = registry.start()
        digests = dist.push(client, registry.endpoint, registry.ca, None, replace=True)
        [target] = dist.targets
        yield Place(lab, dist, registry, f"{registry.address}/{PREFIX}/{target.repository}@{digests[target.repository]}")
    finally:
        if not os.environ.get("CKP_KEEP_LAB"):
            registry.stop()
            lab.down()


@dataclass
class Writer:
    """A client that writes to the API server at the virtual address all the time, and keeps what was acknowledged."""

    admin: str
    address: str = VIRTUAL
    acknowledged: list[tuple[float, str]] = field(default_factory=list)
    failed: list[tuple[float, str]] = field(default_factory=list)
    timeout: float = 1.0
    _ended: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._prefix = f"written-{int(time.time())}"

    def _server(self) -> Server:
        parts = {name: base64.b64decode(re.search(rf"{name}: (\S+)", self.admin)[1]) for name in ("client-certificate-data", "client-key-data")}  # type: ignore[index]
        ca = base64.b64decode(re.search(r"certificate-authority-data: (\S+)", self.admin)[1]).decode()  # type: ignore[index]
        with tempfile.TemporaryDirectory() as folder:
            files = {name: Path(folder) / name for name in parts}
            for name, path in files.items():
                path.touch(mode=0o600)
                path.write_bytes(parts[name])
            context = trust(ca_pem=ca, certificate=str(files["client-certificate-data"]), key=str(files["client-key-data"]))
        return Server(self.address, 6443, context)

    def _write(self) -> None:
        server, number = self._server(), 0
        while not self._ended.wait(0.05):
            name = f"{self._prefix}-{number}"
            number += 1
            body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"writer": self._prefix}}}
            try:
                answer = server.request("POST", "/api/v1/namespaces/default/configmaps", body, timeout=self.timeout)
            except Unreachable as error:
                self.failed.append((time.monotonic(), str(error)))
                continue
            if answer.status == 201:
                self.acknowledged.append((time.monotonic(), name))
            else:
                self.failed.append((time.monotonic(), f"{answer.status} {answer.message()[:80]}"))

    def __enter__(self) -> Writer:
        self._thread.start()
        wait_until(lambda: len(self.acknowledged) > 20, what="the client writes", timeout=60, every=0.2)
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended.set()
        self._thread.join(30)

    def writes_again(self, since: float, timeout: float = 120) -> None:
        """Wait until ten writes after `since` (monotonic seconds) have been acknowledged."""
        wait_until(lambda: sum(when > since for when, _ in self.acknowledged) > 10, what="the client writes again", timeout=timeout, every=0.1)

    @property
    def longest_gap(self) -> float:
        """Seconds between two acknowledged writes, at most."""
        times = [when for when, _ in self.acknowledged]
        return max(later - earlier for earlier, later in itertools.pairwise(times))

    def lost(self, host: LabHost) -> list[str]:
        """Acknowledged writes that the cluster does not have."""
        kept = kubectl(host, "get", "configmaps", "-l", f"writer={self._prefix}", "-o", "jsonpath={.items[*].metadata.name}", timeout=120).split()
        return sorted({name for _, name in self.acknowledged} - set(kept))


def link_of_host(host: LabHost) -> str:
    """The machine's end of the host's link to the bridge."""
    index = host.run(["cat", "/sys/class/net/host0/iflink"], timeout=20).stdout.strip()
    links = json.loads(run(["ip", "-json", "link", "show", "master", NETWORK.bridge], timeout=30).stdout)
    return next(str(link["ifname"]) for link in links if str(link["ifindex"]) == index)


@contextmanager
def cut_off(host: LabHost) -> Iterator[None]:
    """The host reaches nobody, and nobody it, while its programs run on."""
    link = link_of_host(host)
    run(["ip", "link", "set", link, "down"], timeout=30)
    try:
        yield
    finally:
        run(["ip", "link", "set", link, "up"], timeout=30)


def killed(host: LabHost, arguments: list[str], secret: str, after: float) -> bool:
    """Run `ckp-agent standalone …` and kill it with SIGKILL after so many seconds; False if it ended before. What it has started runs on."""
    host.push(secret.encode(), "/root/token", mode=0o600)
    name = f"joining-{time.monotonic_ns()}"
    unit = ["systemd-run", f"--unit={name}", "--collect", "--property=KillMode=process", "--property=StandardInput=file:/root/token"]
    host.run([*unit, *STANDALONE, *arguments], timeout=60)
    time.sleep(after)
    alive = host.run(["systemctl", "is-active", name], timeout=20, check=False).stdout.strip() == "active"
    host.run(["systemctl", "kill", "--kill-whom=main", "--signal=KILL", name], timeout=20, check=False)
    host.run(["rm", "-f", "/root/token"], timeout=20)
    return alive


SAMPLER = f"""
import signal, socket, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
spans = []
try:
    had = False
    while True:
        before = time.monotonic()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as attempt:
            try:
                attempt.bind(({VIRTUAL!r}, 0))
                has = True
            except OSError:
                has = False
        after = time.monotonic()
        if has and not had:
            spans.append([after, after])
        elif has:
            spans[-1][1] = before
        had = has
        time.sleep(0.01)
finally:
    with open("/run/held", "w") as stream:
        stream.writelines(f"{{first}} {{last}}\\n" for first, last in spans)
"""
"""Samples, within a host, whether it has the address. Hosts of one machine have one monotonic clock, so their times can be compared."""


@dataclass
class Watch:
    """When each host certainly had the address: (first, last) in monotonic seconds, of samples that saw it, without one in between that did not."""

    hosts: list[LabHost]
    spans: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def __enter__(self) -> Watch:
        for host in self.hosts:
            host.run(["systemd-run", "--unit=sampler", "--collect", "python3", "-c", SAMPLER], timeout=30)
        time.sleep(1)
        return self

    def __exit__(self, *_: Any) -> None:
        for host in self.hosts:
            host.run(["systemctl", "stop", "sampler"], timeout=30)
            lines = host.pull("/run/held").decode().splitlines()
            self.spans[host.name] = [(float(first), float(last)) for first, last in (line.split() for line in lines)]

    @property
    def together(self) -> list[tuple[str, str, float]]:
        """Two hosts that had it at the same time, and for how many seconds at least."""
        found = []
        for one, other in itertools.combinations(self.spans, 2):
            for first, last in self.spans[one]:
                for begun, ended in self.spans[other]:
                    if (both := min(last, ended) - max(first, begun)) > 0:
                        found.append((one, other, both))
        return found

    @property
    def away(self) -> float:
        """The longest time, in seconds, in which no host was seen to have it."""
        spans = sorted(span for each in self.spans.values() for span in each)
        return max((later - earlier for (_, earlier), (later, _) in itertools.pairwise(spans)), default=0.0)
