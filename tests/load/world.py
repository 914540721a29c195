"""What the bench stands on: certificates, hosts in the simulated API server, the hub's process, and what the kernel says of a process."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from ckp.api import kinds, names
from ckp.api.host_protocol import BundleRef, Desired, JoinFile, Membership
from ckp.hub.identity import HostId
from tests.simulators.kube import KubeSimulator
from tests.support.checkout import REPO
from tests.worlds.tls import Authority, make_authority, make_leaf, serial_of, write_pair

TENANT = "ckp-default-default"
TICKS = os.sysconf("SC_CLK_TCK")


def raise_limits() -> int:
    """Open files: as many as there may be. Returns how many that is; children inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(65536, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
    except (ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def name_of(number: int) -> str:
    """A host's name."""
    return f"load-{number:05d}"


def desired(number: int, generation: int, *, member: bool, files: bool = False) -> Desired:
    """A desired state of the size that a real one has."""
    membership = Membership(
        cluster=f"{TENANT}/load",
        machine=f"load-{number:05d}-m",
        node_name=name_of(number),
        provider_id=f"byoh://{name_of(number)}",
        release="v1.35.1",
        bundle=BundleRef(image="registry:5000/ckp/byoh-bundle-debian_12_x86-64_k8s@sha256:" + "0" * 64, tag="v1.35.1", release="v1.35.1"),
        sandbox_image="registry:5000/ckp/pause@sha256:" + "1" * 64,
        registry="registry:5000",
        images=tuple(f"registry:5000/ckp/image-{part}@sha256:" + "2" * 64 for part in range(6)),
        files=(JoinFile(path="/run/kubeadm/kubeadm-join-config.yaml", content="x" * 3000),) if files else (),
        join_config="/run/kubeadm/kubeadm-join-config.yaml" if files else "",
        registry_ca="c" * 1200,
    )
    return Desired(generation=generation, host=name_of(number), membership=membership if member else None)


class Site:
    """Certificates and objects of all hosts."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.kube = KubeSimulator(manager="ckp-hub", namespaces=("default", TENANT, names.HOSTS_NAMESPACE))
        self.controller = self.kube.as_manager("ckp-byo")
        self.root: Authority = make_authority("root")
        self.host_ca: Authority = make_authority("host-ca", self.root)
        self.host_ca_files = self.host_ca.write(top, "host-ca")
        self.server = write_pair(top, "server", *make_leaf(self.root, server=True))
        self.ca = top / "ca.crt"
        self.ca.write_text(self.root.pem + self.host_ca.pem)
        (top / "token").write_text("token")
        (top / "hosts").mkdir()
        self._made = 0

    async def hosts(self, count: int) -> None:
        """Enrolled hosts 0..count, each with its key and certificate in a folder of its own, and free."""
        key = ec.generate_private_key(ec.SECP256R1())  # one for all: what is measured is not how fast this process makes keys
        for number in range(self._made, count):
            identity = HostId(TENANT, name_of(number))
            folder = self.top / "hosts" / str(number)
            folder.mkdir(mode=0o700)
            pem, _ = make_leaf(self.host_ca, key=key, uris=(identity.uri,))
            cert, keyfile = write_pair(folder, "cert", pem, key)
            cert.rename(folder / "cert.pem")
            keyfile.rename(folder / "key.pem")
            (folder / "ca.pem").write_text(self.ca.read_text())
            (folder / "identity.json").write_text(json.dumps({"host": identity.name}))
            meta = {"name": identity.name, "namespace": TENANT}
            await self.controller.create({"apiVersion": kinds.BYO_HOST.api_version, "kind": "ByoHost", "metadata": meta, "spec": {}})
            serial = {"status": {"agent": {"certificateSerial": f"{serial_of(pem):x}"}}}
            await self.controller.merge(kinds.BYO_HOST, identity.name, TENANT, serial, subresource="status")
            await self.desire(number, desired(number, 1, member=False))
        self._made = max(self._made, count)

    async def desire(self, number: int, wanted: Desired) -> float:
        """As the byo controller writes it; when it was written."""
        host = name_of(number)
        meta = {"name": names.desired_secret(TENANT, host), "namespace": names.HOSTS_NAMESPACE, "labels": {names.HOST_LABEL: host}}
        data = {"desired.json": base64.b64encode(wanted.model_dump_json().encode()).decode()}
        await self.controller.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": data})
        return time.monotonic()

    def offline(self, count: int) -> int:
        """Hosts of the first `count` whose AgentConnected says that they are not."""
        conditions = [
            condition
            for number in range(count)
            for condition in (self.kube.stored(kinds.BYO_HOST, name_of(number), TENANT).get("status") or {}).get("conditions") or []
        ]
        return sum(entry["type"] == "AgentConnected" and entry["status"] == "False" for entry in conditions)


class Hub:
    """`python -m ckp.hub` in a process of its own, told by its own variables where everything is."""

    def __init__(self, site: Site, api_port: int) -> None:
        self.port, self._enrolment, self._probes = (_free_port() for _ in range(3))
        kubeconfig = site.top / "kubeconfig"
        context = {"name": "load", "context": {"cluster": "load", "user": "load"}}
        cluster = {"name": "load", "cluster": {"server": f"http://127.0.0.1:{api_port}"}}
        users = [{"name": "load", "user": {}}]
        kubeconfig.write_text(
            json.dumps({"apiVersion": "v1", "kind": "Config", "current-context": "load", "contexts": [context], "clusters": [cluster], "users": users})
        )
        self._env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(REPO / "src"),
            "KUBECONFIG": str(kubeconfig),
            "HUB_TLS_CERT": str(site.server[0]),
            "HUB_TLS_KEY": str(site.server[1]),
            "HUB_SERVER_CA": str(site.ca),
            "HUB_HOST_CA_CERT": str(site.host_ca_files[0]),
            "HUB_HOST_CA_KEY": str(site.host_ca_files[1]),
            "HUB_COMPASS_URL": "https://127.0.0.1:1",
            "HUB_COMPASS_CA": str(site.ca),
            "HUB_COMPASS_TOKEN_FILE": str(site.top / "token"),
            "HUB_BIND": "127.0.0.1",
            "HUB_ENROLMENT_PORT": str(self._enrolment),
            "HUB_CHANNEL_PORT": str(self.port),
            "HUB_PROBE_PORT": str(self._probes),
            "HUB_LOG_LEVEL": "WARNING",
        }
        self._log = site.top / "hub.log"
        self.prefix: list[str] = []  # another interpreter, such as one that profiles
        self._child: subprocess.Popen[bytes] | None = None
        self.url = f"wss://localhost:{self.port}/v1/agent"

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self._child is not None
        return self._child.pid

    def start(self) -> None:
        """Start the process; it is not ready yet when this returns."""
        with self._log.open("ab") as log:
            self._child = subprocess.Popen([*(self.prefix or [sys.executable]), "-m", "ckp.hub"], env=self._env, stdout=log, stderr=log, cwd=REPO)

    def kill(self) -> None:
        """As a power cut ends it."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """As Kubernetes ends it."""
        self._end(signal.SIGTERM)

    def _end(self, name: signal.Signals) -> None:
        if self._child is None:
            return
        self._child.send_signal(name)
        try:
            self._child.wait(30)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child = None

    async def ready(self, within: float = 60.0) -> None:
        """Wait for /readyz."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            if await asyncio.to_thread(_fetch, f"http://127.0.0.1:{self._probes}/readyz") is not None:
                return
            await asyncio.sleep(0.1)
        raise TimeoutError(f"the hub is not ready: {self._log.read_text()[-2000:]}")

    async def metric(self, name: str) -> float:
        """A figure that the hub itself tells."""
        text = await asyncio.to_thread(_fetch, f"http://127.0.0.1:{self._probes}/metrics") or ""
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.split("{")[0].split(" ")[0] == name)


def _fetch(url: str) -> str | None:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10) as answer:
            return str(answer.read().decode())
    except OSError:
        return None


def _free_port() -> int:
    """Below the range of outgoing connections, which are so many here that one would take it."""
    for port in range(20000 + os.getpid() % 5000, 32000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            if port not in _TAKEN:
                _TAKEN.add(port)
                return port
    raise OSError("no port is free")


_TAKEN: set[int] = set()


def resident(pid: int) -> float:
    """Resident MB."""
    return _status(pid, "VmRSS") / 1e3


def peak(pid: int) -> float:
    """The most that was resident, MB."""
    return _status(pid, "VmHWM") / 1e3


def _status(pid: int, field: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def cpu(pid: int) -> float:
    """CPU seconds so far of all its threads, to the nanosecond."""
    return sum(int(task.read_text().split()[0]) for task in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder in memory."""
    import tempfile

    top = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="ckp-load-", dir=top, ignore_cleanup_errors=True) as name:
        yield Path(name)


def zipapp() -> tuple[Path | None, str]:
    """The agent as it ships, or why it is not at hand."""
    from ckp.distribution.packages.agent import build_zipapp
    from ckp.kits.errors import CkpError

    try:
        return build_zipapp(), ""
    except CkpError as error:
        return None, error.brief


def start_agent(program: Path, folder: Path, hub: Hub) -> subprocess.Popen[bytes]:
    """The real agent on this machine, enrolled as a host that stays free, so that it changes nothing here."""
    config: dict[str, Any] = {"hub": "https://127.0.0.1:1", "channel": hub.url, "ca": str(folder / "ca.pem"), "state_dir": str(folder)}
    (folder / "config.json").write_text(json.dumps(config))
    python = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable
    argv = [python, "-I", str(program), "run", "--config", str(folder / "config.json")]
    return subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
