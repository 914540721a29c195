"""What people do with kubectl all day: large copies, sessions that are idle for minutes, readers that stop, and a worker that dies beside it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

from ckp.cli.up import kubeconfig_path
from ckp.clients.compass import Session, read_config
from ckp.kits.processes import ProcessFailed
from ckp.lab.lab import LabHost
from tests.e2e.conftest import PLAIN, World, ailments
from tests.e2e.test_2_metrics import await_api, figures_api, installed

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.usefixtures("well")]

GIB = 1 << 30
CHUNK = 1 << 20
IDLE = 360.0
"""Seconds: more than the minutes that load balancers and connection tracking grant a silent connection (the longest of them that is common has 350 s)."""
TALK = """
import socketserver, threading, time
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(1 << 16): self.request.sendall(data)
server = socketserver.ThreadingTCPServer(("127.0.0.1", 9000), Echo)
threading.Thread(target=server.serve_forever, daemon=True).start()
number = 0
while True:
    print("line", number, flush=True)
    number += 1
    time.sleep(1)
"""
QUIET = """
import os, time
while True:
    if os.path.exists("/data/speak"):
        os.remove("/data/speak")
        print("spoken", flush=True)
    time.sleep(0.2)
"""
ANSWER = "import sys\nfor line in sys.stdin: print('heard', line.strip(), flush=True)"
DIGEST = "import hashlib, sys; print(hashlib.file_digest(open(sys.argv[1], 'rb'), 'sha256').hexdigest())"
ONE, NEIGHBOUR, OTHER = "one", "neighbour", "other"
"""Pods: two of one worker, and one of the other."""


@dataclass
class Clients:
    """The pods, and the machine that `OTHER` runs on."""

    world: World
    machine: LabHost

    def logs(self, pod: str) -> float:
        """Read the last line of a pod's log; returns how long that took, in seconds.

        Raises:
            ProcessFailed: it failed, or took more than a minute.
        """
        done = self.world.kubectl("logs", pod, "-c", "talk", "--tail=1", timeout=60)
        assert done.stdout.startswith("line ")
        return done.seconds

    @contextlib.contextmanager
    def beside(self, *arguments: str, stdout: int | IO[bytes] = subprocess.PIPE) -> Iterator[subprocess.Popen[bytes]]:
        """A kubectl that runs beside the test and ends with it."""
        program = self.world.site.dist.built["kubernetes"].binary("kubectl")
        command = [str(program), f"--kubeconfig={kubeconfig_path(self.world.cluster)}", *arguments]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stdout, stderr=subprocess.PIPE) as child:
            try:
                yield child
            finally:
                child.kill()  # also one that is stopped

    @contextlib.contextmanager
    def forwarded(self, pod: str) -> Iterator[socket.socket]:
        """A connection to a pod's echo server through `kubectl port-forward`."""
        with self.beside("port-forward", f"pod/{pod}", ":9000") as child:
            assert child.stdout is not None
            line = child.stdout.readline().decode()
            found = re.search(r"127\.0\.0\.1:(\d+) ->", line)
            assert found, line
            with socket.create_connection(("127.0.0.1", int(found[1])), timeout=60) as connection:
                yield connection


def pod(name: str, node: str, image: str) -> dict[str, object]:
    """Talks each second and echoes; its second container talks when it is told to."""
    programs = {"talk": TALK, "quiet": QUIET}
    containers = [
        {
            "name": container,
            "image": image,
            "command": ["python3", "-c", program],
            "securityContext": PLAIN,
            "volumeMounts": [{"name": "data", "mountPath": "/data"}],
        }
        for container, program in programs.items()
    ]
    spec = {
        "nodeName": node,
        "containers": containers,
        "volumes": [{"name": "data", "emptyDir": {}}],
        "securityContext": {"fsGroup": 65532},
        "terminationGracePeriodSeconds": 0,
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"}, "spec": spec}


@pytest.fixture(scope="module")
def clients(well: World) -> Iterator[Clients]:
    machines = {machine.address: machine for machine in well.hosts.workers}
    rows = [item for item in Session(read_config()).get("/hosts")["items"] if item["address"] in machines]
    first, second = str(rows[0]["name"]), str(rows[1]["name"])
    names = {ONE: first, NEIGHBOUR: first, OTHER: second}
    items = [pod(name, node, well.image) for name, node in names.items()]
    well.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    try:
        well.kubectl("wait", "--for=condition=Ready", "--timeout=180s", *(f"pod/{name}" for name in names), timeout=200)
        yield Clients(well, machines[rows[1]["address"]])
    finally:
        well.kubectl("delete", "pod", *names, "--ignore-not-found", "--wait=false", check=False)


def random_file(path: Path, size: int) -> str:
    """Fill a file; returns its SHA-256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(size // CHUNK):
            digest.update(block := os.urandom(CHUNK))
            file.write(block)
    return digest.hexdigest()


def test_a_gibibyte_is_copied_into_a_pod_and_back_unchanged(clients: Clients, tmp_path: Path) -> None:
    if shutil.disk_usage(tmp_path).free < 8 * GIB:
        pytest.skip("three copies of a GiB need more room than there is on this machine's disk")
    world, there, back = clients.world, f"{ONE}:/data/copied", tmp_path / "back"
    wanted = random_file(tmp_path / "sent", GIB)
    world.kubectl("cp", str(tmp_path / "sent"), there, "-c", "talk", timeout=900)
    assert world.kubectl("exec", ONE, "-c", "talk", "--", "python3", "-c", DIGEST, "/data/copied", timeout=300).stdout.strip() == wanted
    world.kubectl("cp", there, str(back), "-c", "talk", timeout=900)
    with back.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == wanted


def echoed(connection: socket.socket, size: int) -> tuple[str, str]:
    """Send random bytes and read as many at the same time; returns the SHA-256 of what was sent and of what came back."""
    sent, received = hashlib.sha256(), hashlib.sha256()

    def send() -> None:
        for _ in range(size // CHUNK):
            sent.update(block := os.urandom(CHUNK))
            connection.sendall(block)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    left = size
    while left > 0 and (block := connection.recv(min(left, CHUNK))):
        received.update(block)
        left -= len(block)
    sender.join(60)
    return sent.hexdigest(), received.hexdigest()


def test_a_port_forward_carries_hundreds_of_megabytes_both_ways_at_once(clients: Clients) -> None:
    with clients.forwarded(OTHER) as connection:
        sent, received = echoed(connection, 256 * CHUNK)
    assert sent == received


def test_exec_port_forward_and_logs_that_are_silent_for_minutes_go_on(clients: Clients, tmp_path: Path) -> None:
    """And logs that are followed meanwhile miss no line."""
    world = clients.world
    with contextlib.ExitStack() as stack:
        session = stack.enter_context(clients.beside("exec", "-i", ONE, "-c", "talk", "--", "python3", "-c", ANSWER))
        connection = stack.enter_context(clients.forwarded(OTHER))
        quiet = stack.enter_context(clients.beside("logs", "-f", OTHER, "-c", "quiet"))
        busy = stack.enter_context((tmp_path / "log").open("wb"))
        followed = stack.enter_context(clients.beside("logs", "-f", NEIGHBOUR, "-c", "talk", stdout=busy))
        assert session.stdin and session.stdout and quiet.stdout

        def heard(text: str) -> bytes:
            assert session.stdin and session.stdout
            session.stdin.write(f"{text}\n".encode())
            session.stdin.flush()
            return session.stdout.readline()

        assert heard("before") == b"heard before\n"
        sent, received = echoed(connection, CHUNK)
        assert sent == received
        time.sleep(IDLE)
        assert [child.poll() for child in (session, quiet, followed)] == [None, None, None], "all of them still run"
        assert heard("after") == b"heard after\n"
        sent, received = echoed(connection, CHUNK)
        assert sent == received
        world.kubectl("exec", OTHER, "-c", "quiet", "--", "touch", "/data/speak")
        assert quiet.stdout.readline() == b"spoken\n"
    numbers = [int(line.split()[1]) for line in (tmp_path / "log").read_text().splitlines()]
    assert len(numbers) > 0.9 * IDLE
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def timed(read: Callable[[], float], seconds: float) -> list[float]:
    """Do it again and again for so long; returns how long each took, in seconds."""
    end, took = time.monotonic() + seconds, []
    while time.monotonic() < end:
        took.append(read())
        time.sleep(0.2)
    return took


def test_a_reader_that_stops_holds_up_its_own_worker_for_seconds_and_nothing_else(clients: Clients) -> None:
    """After ten seconds the API server gives it up (readTimeoutSeconds of konnectivity-client v0.31.2). An aggregated API stands for webhooks as well."""
    world = clients.world
    reads = {
        NEIGHBOUR: lambda: clients.logs(NEIGHBOUR),
        OTHER: lambda: clients.logs(OTHER),
        "API": lambda: world.kubectl("get", "--raw", "/apis/figures.example/v1").seconds,
    }
    with installed(world, json.dumps({"apiVersion": "v1", "kind": "List", "items": figures_api(world.image)})):
        await_api(world, "v1.figures.example")
        with clients.beside("exec", ONE, "-c", "talk", "--", "cat", "/dev/zero", stdout=subprocess.DEVNULL) as reader:
            time.sleep(3)
            reader.send_signal(signal.SIGSTOP)
            with ThreadPoolExecutor(len(reads)) as threads:
                running = {name: threads.submit(timed, read, 30) for name, read in reads.items()}
            took = {name: job.result() for name, job in running.items()}
    assert max(took[OTHER]) < 5 and max(took["API"]) < 5, took
    assert max(took[NEIGHBOUR]) < 20 and statistics.median(took[NEIGHBOUR]) < 5, took


def test_after_a_power_cut_of_a_worker_no_logs_of_the_other_fail(clients: Clients) -> None:
    """A kubelet is reached through its own node's konnectivity agent, never through the dead one's, which is believed in for half a minute."""
    end, asked, failed = time.monotonic() + 90, 0, []
    clients.machine.power_cut()
    try:
        while time.monotonic() < end:
            asked += 1
            try:
                if (took := clients.logs(ONE)) > 5:
                    failed.append(f"took {took:.1f} s")
            except (ProcessFailed, AssertionError) as error:
                failed.append(f"{time.monotonic() - end + 90:.1f} s: {error}")
            time.sleep(0.2)
    finally:
        clients.machine.start()
    assert failed == []
    assert asked > 30
    clients.world.wait(lambda: not ailments(clients.world), "the worker is back", timeout=300)
