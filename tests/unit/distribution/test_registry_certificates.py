"""Who accepts the certificate of the lab's registry: agents pull bundles with the system's Python, which verifies strictly from 3.13 on."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckp.distribution.registries.server import RegistryServer
from tests.support.tls_clients import client, tls_server


@pytest.mark.parametrize("name", ["python3.9", "python3.11", "python3.13", "openssl"])
def test_every_system_python_accepts_the_registry(name: str, tmp_path: Path) -> None:
    verify = client(name, tmp_path)
    if verify is None:
        pytest.skip(f"there is no {name} on this machine")
    server = RegistryServer(tmp_path / "registry", listen="127.0.0.1", name="localhost", state=tmp_path)
    server._certificates()
    with tls_server(server.folder / "tls.pem", server.folder / "tls.key") as port:
        assert verify(server.ca, port) == ""
