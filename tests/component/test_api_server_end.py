"""A real API server with the flags of a hosted one ends: it serves on until load balancers have noticed, and takes no endpoints with it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckp.api.kinds import ENDPOINT_SLICE, ENDPOINTS
from ckp.clients.kube import Kube
from ckp.controllers.controlplane.service_endpoints import publish
from ckp.kits.retry import wait_until
from tests.support.api_servers import ApiServers, api_servers

pytestmark = pytest.mark.component

ADDRESS = "10.88.0.150"


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[ApiServers]:
    with api_servers(tmp_path) as made:
        yield made


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
