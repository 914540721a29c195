"""Whom a client of an API server trusts: the CA in its kubeconfig and nobody else; an intermediate CA only where a kubeconfig of CKP 0.2.0 holds one."""

from __future__ import annotations

import base64
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lightkube import KubeConfig

from ckp.api import kinds
from ckp.clients.kube import Kube, KubeError, _trust
from tests.support.tls_clients import tls_server
from tests.worlds.tls import Authority, make_authority, make_leaf, write_pair


@pytest.fixture
def intermediate() -> Authority:
    """A cluster's CA as CKP 0.2.0 made it: signed by the Root CA, which the kubeconfig does not hold."""
    return make_authority("kubernetes", make_authority("root"))


@pytest.fixture
def anchor(intermediate: Authority) -> Authority:
    """The same cluster's CA, self-signed."""
    return make_authority("kubernetes", key=intermediate.key)


@pytest.fixture
def port(intermediate: Authority, tmp_path: Path) -> Iterator[int]:
    """An API server whose certificate, with the intermediate behind it, is of CKP 0.2.0."""
    leaf, key = make_leaf(intermediate, server=True)
    with tls_server(*write_pair(tmp_path, "server", leaf + intermediate.pem, key)) as listening:
        yield listening


def kubeconfig(port: int, ca: str) -> dict[str, Any]:
    cluster = {"server": f"https://127.0.0.1:{port}", "certificate-authority-data": base64.b64encode(ca.encode()).decode()}
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    return {"current-context": "c", "clusters": [{"name": "c", "cluster": cluster}], "users": [{"name": "u", "user": {"token": "t"}}], "contexts": [context]}


async def name_of_node(port: int, ca: str) -> str:
    client = Kube.from_kubeconfig(kubeconfig(port, ca))
    try:
        found = await client.get(kinds.NODE, "one")
    finally:
        await client.close()
    return str((found or {}).get("metadata", {}).get("name"))


async def test_a_clusters_ca_is_enough_and_so_is_the_intermediate_of_a_kubeconfig_that_is_not_renewed_yet(
    port: int, anchor: Authority, intermediate: Authority
) -> None:
    assert await name_of_node(port, anchor.pem) == "one"
    assert await name_of_node(port, intermediate.pem) == "one"


def test_an_intermediate_is_an_anchor_only_where_the_kubeconfig_holds_one(anchor: Authority, intermediate: Authority) -> None:
    def flags(ca: Authority) -> int:
        single = KubeConfig.from_dict(kubeconfig(1, ca.pem)).get()
        assert single
        return _trust(single).verify_flags & ssl.VERIFY_X509_PARTIAL_CHAIN

    usual = ssl.create_default_context().verify_flags & ssl.VERIFY_X509_PARTIAL_CHAIN
    assert (flags(anchor), flags(intermediate)) == (usual, ssl.VERIFY_X509_PARTIAL_CHAIN)


async def test_another_cas_server_is_refused(port: int) -> None:
    with pytest.raises(KubeError, match="CERTIFICATE_VERIFY_FAILED"):
        await name_of_node(port, make_authority("kubernetes").pem)
