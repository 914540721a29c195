"""Real API servers with the flags of a hosted one, on an etcd of their own, from the build."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from ckp.controllers.controlplane import apiserver
from ckp.distribution.builder.component import Built
from ckp.kits.processes import Daemon
from ckp.kits.retry import wait_until
from tests.support.control_plane import TestControlPlane, built, free_port
from tests.unit.controllers.test_control_plane_manifests import flags, plan

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
    def running(self, name: str, *more: str, of: Built | None = None) -> Iterator[tuple[Daemon, TestControlPlane]]:
        """One of them with more arguments, ready.

        Args:
            of: another release's build.
        """
        port, given = free_port(), flags(apiserver.api_server(plan()))
        daemon = Daemon(name, self.folder / f"{name}.pid", self.folder / f"{name}.log")
        try:
            daemon.start(
                [
                    (of or built("kubernetes")).binary("kube-apiserver"),
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
                    *more,
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


@contextmanager
def api_servers(folder: Path) -> Iterator[ApiServers]:
    """With an etcd that runs."""
    client, peer = free_port(), free_port()
    url = f"http://127.0.0.1:{client}"
    etcd = Daemon("etcd", folder / "etcd.pid", folder / "etcd.log")
    urls = [f"--listen-client-urls={url}", f"--advertise-client-urls={url}", f"--listen-peer-urls=http://127.0.0.1:{peer}"]
    etcd.start([built("etcd").binary("etcd"), f"--data-dir={folder}/etcd", *urls, "--unsafe-no-fsync"])
    try:
        yield ApiServers(folder, url)
    finally:
        etcd.stop()
