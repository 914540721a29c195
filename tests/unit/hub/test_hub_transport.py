"""What the hub changes in asyncio's TLS: each of these fails on a Python in which the change has no effect."""

from __future__ import annotations

import asyncio
import ssl
from asyncio import sslproto

import pytest

from ckp.hub.transport.tls import shrink_tls_buffers


async def buffer_size() -> int:
    """Of a new connection, in bytes."""
    loop = asyncio.get_running_loop()
    protocol = sslproto.SSLProtocol(loop, asyncio.Protocol(), ssl.create_default_context(), loop.create_future())
    return len(vars(protocol)["_ssl_buffer"])


@pytest.fixture(autouse=True)
def max_size(monkeypatch: pytest.MonkeyPatch) -> int:
    """asyncio's own value, put back after the test."""
    own: int = sslproto.SSLProtocol.max_size
    monkeypatch.setattr(sslproto.SSLProtocol, "max_size", own)
    return own


async def test_asyncio_keeps_the_size_of_its_tls_buffer_in_the_attribute_that_is_changed(max_size: int) -> None:
    assert isinstance(max_size, int)
    assert max_size == await buffer_size() == 256 * 1024


async def test_the_tls_buffer_of_a_connection_can_be_made_small() -> None:
    shrink_tls_buffers(16_384)
    assert await buffer_size() == 16_384


async def test_without_that_attribute_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sslproto.SSLProtocol, "max_size")
    shrink_tls_buffers(16_384)
    assert not hasattr(sslproto.SSLProtocol, "max_size")
