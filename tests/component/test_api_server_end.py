"""A real API server with the flags of a hosted one ends: it serves on until load balancers have noticed, and takes no endpoints with it."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from ckp.api.kinds import ENDPOINT_SLICE, ENDPOINTS
from ckp.clients.kube import Kube
from ckp.controllers.controlplane import apiserver
from ckp.controllers.controlplane.service_endpoints import publish
from ckp.kits.processes import Daemon
from ckp.kits.retry import wait_until
from tests.support.control_plane import TestControlPlane, built, free_port
from tests.unit.controllers.test_control_plane_manifests import flags, plan

pytestmark = pytest.mark.component

ADDRESS = "10.88.0.150"
START = 180.0
OURS = ("endpoint-reconciler-type", "shutdown-send-retry-after")


@dataclass
class ApiServers:
    """API servers, one after the other, on one etcd."""

    folder: Path
    etcd_url: str
    token: str = field(default_factory=lambda: secrets.token_hex(16))

    def __post_init__(self) -> None:
        (self.folder / "tokens.csv").write_text(f'{self.token},admin,admin,"system:masters"\n')
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())
        (self.folder / "sa.key").write_bytes(pem)

    @contextmanager
    def running(self, name: str) -> Iterator[tuple[Daemon, TestControlPlane]]:
        """One of them, ready."""
        port, given = free_port(), flags(apiserver.api_server(plan()))
        daemon = Daemon(name, self.folder / f"{name}.pid", self.folder / f"{name}.log")
        try:
            daemon.start(
                [
                    built("kubernetes").binary("kube-apiserver"),
                    f"--etcd-servers={self.etcd_url}",
                    f"--secure-port={port}",
                    "--bind-address=127.0.0.1",
                    f"--cert-dir={self.folder}/certs-{name}",
                    f"--token-auth-file={self.folder}/tokens.csv",
                    "--authorization-mode=RBAC",
                    "--service-cluster-ip-range=10.96.0.0/16",
                    "--service-account-issuer=https://kubernetes.default.svc",
                    f"--service-account-key-file={self.folder}/sa.key",
                    f"--service-account-signing-key-file={self.folder}/sa.key",
                    *(f"--{flag}={given[flag]}" for flag in OURS),
                    "--shutdown-delay-duration=15s",  # longer than it is, so that a busy machine is no failure
                ]
            )
            plane = TestControlPlane(port, self.token, self.folder)
            wait_until(lambda: self.get(plane, "/readyz") == 200, what=f"{name} answers", timeout=START, every=0.2, reason=daemon.tail)
            yield daemon, plane
        finally:
            daemon.stop(grace=60)

    def get(self, plane: TestControlPlane, path: str) -> int:
        """The status of an answer over a new connection; 0 if there is none."""
        try:
            headers = {"Authorization": f"Bearer {self.token}"}
            return httpx.get(f"https://127.0.0.1:{plane.port}{path}", verify=False, headers=headers, trust_env=False, timeout=30).status_code
        except httpx.HTTPError:
            return 0


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[ApiServers]:
    client, peer = free_port(), free_port()
    url = f"http://127.0.0.1:{client}"
    etcd = Daemon("etcd", tmp_path / "etcd.pid", tmp_path / "etcd.log")
    urls = [f"--listen-client-urls={url}", f"--advertise-client-urls={url}", f"--listen-peer-urls=http://127.0.0.1:{peer}"]
    etcd.start([built("etcd").binary("etcd"), f"--data-dir={tmp_path}/etcd", *urls, "--unsafe-no-fsync"])
    try:
        yield ApiServers(tmp_path, url)
    finally:
        etcd.stop()


async def addresses(kube: Kube) -> tuple[list[str], list[str]]:
    """Of the slice and of the Endpoints."""
    found = await kube.get(ENDPOINT_SLICE, "kubernetes", "default") or {}
    points = await kube.get(ENDPOINTS, "kubernetes", "default") or {}
    subsets = points.get("subsets") or []
    listed = [address["ip"] for subset in subsets for address in subset.get("addresses") or []]
    return [address for point in found.get("endpoints") or [] for address in point["addresses"]], listed


async def test_the_endpoints_outlive_the_api_server_that_served_them(servers: ApiServers) -> None:
    with servers.running("first") as (first, plane):
        kube = plane.kube("ckp-controllers")
        assert await addresses(kube) == ([], []), "it writes none of its own"
        assert await publish(kube, [ADDRESS], 6443)
        await kube.close()
        pid = first.pid()
        assert pid
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: servers.get(plane, "/readyz") == 500, what="it says that it is not ready", timeout=30, every=0.05, reason=first.tail)
        assert servers.get(plane, "/api/v1/namespaces") == 200, "and serves on"
        wait_until(lambda: first.pid() is None, what="it has ended by itself", timeout=60, every=0.2, reason=first.tail)
    with servers.running("second") as (_, plane):
        kube = plane.kube("ckp-controllers")
        assert await addresses(kube) == ([ADDRESS], [ADDRESS])
        assert not await publish(kube, [ADDRESS], 6443)
        await kube.close()
