"""One API server for all component tests of a run; each test has a namespace of its own."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator

import pytest

from ckp.api.kinds import NAMESPACE
from ckp.clients.kube import Kube
from tests.support.control_plane import TestControlPlane, control_plane


@pytest.fixture(scope="session")
def plane() -> Iterator[TestControlPlane]:
    """The API server."""
    with control_plane() as running:
        yield running


@pytest.fixture
async def kube(plane: TestControlPlane) -> AsyncIterator[Kube]:
    """A client as administrator."""
    client = plane.kube()
    yield client
    await client.close()


@pytest.fixture
async def namespace(kube: Kube) -> str:
    """A new namespace."""
    name = f"ckp-test-{secrets.token_hex(3)}"
    await kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    assert await kube.get(NAMESPACE, name)
    return name
