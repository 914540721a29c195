"""Whom a client of an API server trusts: the CA in its kubeconfig, also where that is not a root, and nobody else."""

from __future__ import annotations

import base64
import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ckp.api import kinds
from ckp.clients.kube import Kube, KubeError
from tests.worlds.tls import Authority, make_authority, make_leaf, write_pair


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "one"}}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def authority() -> Authority:
    """A cluster's CA as CKP makes it: signed by the Root CA, which the kubeconfig does not hold."""
    return make_authority("demo-ca", make_authority("root"))


@pytest.fixture
def port(authority: Authority, tmp_path: Path) -> Iterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*write_pair(tmp_path, "server", *make_leaf(authority, server=True)))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def kubeconfig(port: int, ca: str) -> dict[str, Any]:
    cluster = {"server": f"https://127.0.0.1:{port}", "certificate-authority-data": base64.b64encode(ca.encode()).decode()}
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    return {"current-context": "c", "clusters": [{"name": "c", "cluster": cluster}], "users": [{"name": "u", "user": {"token": "t"}}], "contexts": [context]}


async def test_a_clusters_own_ca_is_enough_though_it_is_no_root(port: int, authority: Authority) -> None:
    """As kubectl and all Go programs have it."""
    client = Kube.from_kubeconfig(kubeconfig(port, authority.pem))
    found = await client.get(kinds.NODE, "one")
    assert found is not None and found["metadata"]["name"] == "one"
    await client.close()


async def test_another_cas_server_is_refused(port: int) -> None:
    client = Kube.from_kubeconfig(kubeconfig(port, make_authority("demo-ca").pem))
    with pytest.raises(KubeError, match="CERTIFICATE_VERIFY_FAILED"):
        await client.get(kinds.NODE, "one")
    await client.close()
