"""A real kube-apiserver with a real etcd, from the build, on loopback: what the component tests run against."""

from __future__ import annotations

import json
import secrets
import socket
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from ckp.api.crds import all_crds
from ckp.catalog.load import Catalog
from ckp.clients.kube import Kube
from ckp.distribution.builder.component import Built, build_component, is_built
from ckp.kits.processes import Daemon, run
from ckp.kits.retry import wait_until

RELEASE = "v1.35.1"
START_TIMEOUT = 180.0


@dataclass(frozen=True)
class TestControlPlane:
    """Where the API server listens, and the administrator's token."""

    __test__ = False
    port: int
    token: str
    folder: Path

    def kubeconfig(self) -> dict[str, object]:
        """For ckp.clients.kube. The server's certificate is its own, so it is not checked here: both ends are this process tree."""
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": f"https://127.0.0.1:{self.port}", "insecure-skip-tls-verify": True}}],
            "users": [{"name": "u", "user": {"token": self.token}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }

    def kube(self, manager: str = "test") -> Kube:
        """A new client."""
        return Kube.from_kubeconfig(self.kubeconfig(), manager=manager)

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Our kubectl against it."""
        config = self.folder / "kubeconfig"
        config.write_text(json.dumps(self.kubeconfig()))
        return run([built("kubernetes").binary("kubectl"), f"--kubeconfig={config}", *arguments], stdin=stdin, timeout=120).stdout


def built(role: str) -> Built:
    """A component from the cache; built now if it is not there."""
    catalog = Catalog()
    release = catalog.release(RELEASE)
    return build_component(catalog, catalog.choose(release, role, "lab"), release.stamp, print)


def built_of(version: str, role: str) -> Built | None:
    """A component of another release from the cache; None if it was not built."""
    catalog = Catalog()
    release = catalog.release(version)
    chosen = catalog.choose(release, role, "lab")
    return build_component(catalog, chosen, release.stamp, print) if is_built(catalog, chosen, release.stamp) else None


def built_test_tool(component: str) -> Built:
    """A program that only the tests use, from the cache (`make build-test` builds it beside the release); built now if it is not there."""
    catalog = Catalog()
    release = catalog.release(RELEASE)
    chosen = next(item for item in catalog.test_tools(release.name, long=True) if item.role == component)
    return build_component(catalog, chosen, release.stamp, print)


def free_port() -> int:
    """A port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def control_plane() -> Iterator[TestControlPlane]:
    """Start both, apply our CRDs and Cluster API's and cert-manager's, stop both in the end."""
    with tempfile.TemporaryDirectory(prefix="ckp-component-") as work:
        folder = Path(work)
        etcd_port, peer_port, api_port = free_port(), free_port(), free_port()
        etcd = Daemon("etcd", folder / "etcd.pid", folder / "etcd.log")
        api = Daemon("kube-apiserver", folder / "api.pid", folder / "api.log")
        token = secrets.token_hex(16)
        (folder / "tokens.csv").write_text(f'{token},admin,admin,"system:masters"\n')
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())
        (folder / "sa.key").write_bytes(pem)
        url = f"http://127.0.0.1:{etcd_port}"
        try:
            etcd.start(
                [
                    built("etcd").binary("etcd"),
                    f"--data-dir={folder}/etcd",
                    f"--listen-client-urls={url}",
                    f"--advertise-client-urls={url}",
                    f"--listen-peer-urls=http://127.0.0.1:{peer_port}",
                    "--unsafe-no-fsync",
                ]
            )
            api.start(
                [
                    built("kubernetes").binary("kube-apiserver"),
                    f"--etcd-servers={url}",
                    f"--secure-port={api_port}",
                    "--bind-address=127.0.0.1",
                    f"--cert-dir={folder}/certs",
                    f"--token-auth-file={folder}/tokens.csv",
                    "--authorization-mode=RBAC",
                    "--service-cluster-ip-range=10.96.0.0/16",
                    "--service-account-issuer=https://kubernetes.default.svc",
                    f"--service-account-key-file={folder}/sa.key",
                    f"--service-account-signing-key-file={folder}/sa.key",
                    "--disable-admission-plugins=ServiceAccount",
                ]
            )
            plane = TestControlPlane(api_port, token, folder)
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

            def ready() -> bool:
                try:
                    headers = {"Authorization": f"Bearer {token}"}
                    return httpx.get(f"https://127.0.0.1:{api_port}/readyz", verify=context, headers=headers, trust_env=False).status_code == 200
                except httpx.HTTPError:
                    return False

            wait_until(ready, what="the test's API server answers", timeout=START_TIMEOUT, every=0.2, reason=api.tail)
            _crds(plane)
            yield plane
        finally:
            api.stop()
            etcd.stop()


def _crds(plane: TestControlPlane) -> None:
    capi = built("cluster-api")
    for folder in ("config", "bootstrap/kubeadm/config"):
        bases = sorted((capi.file(folder) / "crd" / "bases").glob("*.yaml"))
        plane.kubectl("apply", "--server-side", "-f", "-", stdin="\n---\n".join(path.read_text() for path in bases))
    cert_manager = built("cert-manager")
    text = "\n---\n".join(
        "\n".join(line for line in path.read_text().splitlines() if "{{" not in line) for path in sorted(cert_manager.file("crds").glob("crd-*.yaml"))
    )
    plane.kubectl("apply", "--server-side", "-f", "-", stdin=text)
    plane.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": all_crds()}))
    plane.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
    for namespace in ("ckp-hosts", "ckp-system", "ckp-default-default"):
        plane.kubectl("create", "namespace", namespace)
