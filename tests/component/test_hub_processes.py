"""Hub, Compass and controllers as the processes that run in their pods: started by their modules, against a real API server."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from ckp.cli.hosts.host import host
from ckp.clients.compass import Config, write_config
from ckp.kits.retry import wait_until
from tests.support.control_plane import TestControlPlane, free_port
from tests.worlds.tls import Authority, client_context, make_authority, make_leaf, write_pair

pytestmark = pytest.mark.component

TOKEN = "admin-token-of-at-least-twenty"
MOST_MIB = {"ckp.compass": 160, "ckp.hub": 110, "ckp.controllers": 110}
"""Resident memory after the first requests; measured some 20 % lower. More is a leak or a heavy new import."""


@dataclass
class Process:
    """One of them, running."""

    child: subprocess.Popen[bytes]
    ports: dict[str, int]
    root: Authority
    directory: Path
    log: Path

    def probe(self, path: str) -> int:
        try:
            return httpx.get(f"http://127.0.0.1:{self.ports['PROBE_PORT']}{path}", timeout=5, trust_env=False).status_code
        except httpx.HTTPError:
            return 0

    def resident_mib(self) -> float:
        status = Path(f"/proc/{self.child.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


@contextmanager
def running(module: str, prefix: str, plane: TestControlPlane, directory: Path, names: tuple[str, ...], more: dict[str, str]) -> Iterator[Process]:
    root = make_authority("root")
    cert, key = write_pair(directory, "server", *make_leaf(root, server=True))
    (directory / "ca.crt").write_text(root.pem)
    config = directory / "kubeconfig"
    config.write_text(json.dumps(plane.kubeconfig()))
    ports = {name: free_port() for name in names}
    variables = {f"{prefix}_{name}": str(port) for name, port in ports.items()}
    variables |= {f"{prefix}_BIND": "127.0.0.1", f"{prefix}_TLS_CERT": str(cert), f"{prefix}_TLS_KEY": str(key), "KUBECONFIG": str(config)} | more
    source = Path(__file__).resolve().parents[2] / "src"
    env = {**os.environ, **variables, "PYTHONPATH": os.pathsep.join(filter(None, [str(source), os.environ.get("PYTHONPATH", "")]))}
    log = directory / f"{module}.log"
    with log.open("wb") as stream:
        child = subprocess.Popen([sys.executable, "-m", module], env=env, stdout=stream, stderr=stream)
    process = Process(child, ports, root, directory, log)
    try:
        wait_until(lambda: process.probe("/readyz") == 200, what=f"{module} is ready", timeout=60, every=0.1, reason=log.read_text)
        yield process
    finally:
        child.kill()
        child.wait()


def ends_well(process: Process) -> None:
    """On SIGTERM it ends by itself, with 0, within the time that Kubernetes gives a pod by default."""
    process.child.send_signal(signal.SIGTERM)
    assert process.child.wait(timeout=30) == 0, process.log.read_text()
    assert "Traceback" not in process.log.read_text()


@pytest.fixture
def compass(plane: TestControlPlane, tmp_path: Path) -> Iterator[Process]:
    (tmp_path / "token").write_text(TOKEN)
    release = {"name": "v1.35.1", "stamp": "v1.35.1-ckp", "registry": "r/ckp", "images": {}, "bundles": {}, "cni": {"cilium": "v1.19.5"}}
    (tmp_path / "releases.json").write_text(json.dumps({"releases": {"v1.35.1": release}}))
    more = {
        "COMPASS_DATABASE": str(tmp_path / "data" / "compass.db"),
        "COMPASS_ADMIN_TOKEN_FILE": str(tmp_path / "token"),
        "COMPASS_RELEASES_FILE": str(tmp_path / "releases.json"),
    }
    with running("ckp.compass", "COMPASS", plane, tmp_path, ("PORT", "INTERNAL_PORT", "PROBE_PORT"), more) as process:
        yield process


def test_compass_serves_the_command_line_over_https_and_ends_when_told(compass: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKP_CONFIG", str(tmp_path / "config.json"))
    write_config(Config(server=f"https://127.0.0.1:{compass.ports['PORT']}", token=TOKEN, ca="ca.crt"))
    result = CliRunner().invoke(host, ["psk"])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("ckphk_")
    assert CliRunner().invoke(host, ["list", "-o", "json"]).exit_code == 0
    write_config(Config(server=f"https://127.0.0.1:{compass.ports['PORT']}", token=TOKEN, ca=make_authority("other").pem))
    refused = CliRunner().invoke(host, ["list"])
    assert "not trusted" in str(refused.exception)
    assert compass.probe("/healthz") == 200
    assert compass.probe("/metrics") == 200
    resident = compass.resident_mib()
    print(f"ckp.compass: {resident:.0f} MiB resident")
    assert resident < MOST_MIB["ckp.compass"]
    assert result.stdout.strip() not in compass.log.read_text(), "no key in the log"
    # A client that keeps its connection and never answers does not hold up the end.
    with httpx.Client(verify=client_context(compass.root.pem), trust_env=False) as idle:
        assert idle.get(f"https://127.0.0.1:{compass.ports['PORT']}/healthz").status_code == 200
        ends_well(compass)


def test_compass_takes_a_new_certificate_without_a_restart(compass: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    pem, key = make_leaf(compass.root, server=True, common_name="renewed")
    write_pair(compass.directory, "server", pem, key)

    def renewed() -> bool:
        served = ssl.get_server_certificate(("127.0.0.1", compass.ports["PORT"]))
        return served.split() == pem.split()

    wait_until(renewed, what="the new certificate is served", timeout=45, every=1)


def test_compass_says_what_is_missing_and_does_not_start(plane: TestControlPlane, tmp_path: Path) -> None:
    env = {**os.environ, "COMPASS_ADMIN_TOKEN_FILE": str(tmp_path / "none"), "PYTHONPATH": os.pathsep.join(sys.path)}
    config = tmp_path / "kubeconfig"
    config.write_text(json.dumps(plane.kubeconfig()))
    ended = subprocess.run(
        [sys.executable, "-m", "ckp.compass"], env={**env, "KUBECONFIG": str(config)}, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 2
    assert "token could not be read" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_hub_serves_both_ports_and_ends_when_told(plane: TestControlPlane, tmp_path: Path) -> None:
    root = make_authority("root")
    cert, key = make_authority("host-ca", root).write(tmp_path, "host-ca")
    (tmp_path / "hub-token").write_text("token")
    more: dict[str, Any] = {
        "HUB_SERVER_CA": str(tmp_path / "ca.crt"),
        "HUB_HOST_CA_CERT": str(cert),
        "HUB_HOST_CA_KEY": str(key),
        "HUB_COMPASS_URL": "https://127.0.0.1:1",
        "HUB_COMPASS_CA": str(tmp_path / "ca.crt"),
        "HUB_COMPASS_TOKEN_FILE": str(tmp_path / "hub-token"),
    }
    with running("ckp.hub", "HUB", plane, tmp_path, ("ENROLMENT_PORT", "CHANNEL_PORT", "PROBE_PORT"), more) as hub:
        trust = client_context(hub.root.pem)
        base = f"https://127.0.0.1:{hub.ports['ENROLMENT_PORT']}/v1/enrolments"
        with httpx.Client(verify=trust, trust_env=False) as client:
            assert client.post(base, content=b"{").status_code == 422
            # Compass is away: the agent is told to come again, not that its key is wrong.
            assert client.get(f"{base}/abc", headers={"Authorization": "Bearer t"}).status_code == 503
        assert hub.probe("/metrics") == 200
        resident = hub.resident_mib()
        print(f"ckp.hub: {resident:.0f} MiB resident")
        assert resident < MOST_MIB["ckp.hub"]
        ends_well(hub)


def lease(plane: TestControlPlane) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(plane.kubectl("get", "lease", "ckp-controllers", "-n", "ckp-system", "-o", "json"))["spec"]
    return found


def test_the_controllers_lead_answer_probes_log_as_json_and_release_their_lease_when_told(plane: TestControlPlane, tmp_path: Path) -> None:
    (tmp_path / "releases.json").write_text(json.dumps({"releases": {}}))
    more = {"CKP_ADDONS_IMAGE": "addons", "CKP_RELEASES_FILE": str(tmp_path / "releases.json"), "POD_NAME": "pod-1", "POD_NAMESPACE": "ckp-system"}
    with running("ckp.controllers", "CKP", plane, tmp_path, ("PROBE_PORT",), more) as process:
        wait_until(lambda: '"event": "leading"' in process.log.read_text(), what="it leads", timeout=60, every=0.1, reason=process.log.read_text)
        assert lease(plane)["holderIdentity"] == f"pod-1_{process.child.pid}"
        assert process.probe("/healthz") == 200
        metrics = httpx.get(f"http://127.0.0.1:{process.ports['PROBE_PORT']}/metrics", timeout=5, trust_env=False).text
        assert "ckp_reconcile_seconds" in metrics and "process_resident_memory_bytes" in metrics
        assert {"event", "level", "timestamp"} <= json.loads(process.log.read_text().splitlines()[0]).keys()
        resident = process.resident_mib()
        print(f"ckp.controllers: {resident:.0f} MiB resident")
        assert resident < MOST_MIB["ckp.controllers"]
        ends_well(process)
        assert not lease(plane).get("holderIdentity")


def test_the_controllers_say_what_is_missing_and_do_not_start() -> None:
    env = {name: value for name, value in os.environ.items() if name != "CKP_ADDONS_IMAGE"} | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, "-m", "ckp.controllers"], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (2, "error: CKP_ADDONS_IMAGE: it is not set\n")
