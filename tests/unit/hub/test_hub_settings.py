"""The hub's settings, and the certificate that its servers follow."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from ckp.hub.settings import Settings
from ckp.kits.errors import InvalidInput
from ckp.runtime.serving import follow_certificate
from tests.worlds.tls import make_authority, make_leaf, write_pair


def test_settings_come_from_the_environment_and_a_wrong_one_is_named() -> None:
    settings = Settings.from_environment({"HUB_CHANNEL_PORT": "19443", "HUB_COMPASS_URL": "https://c:1/", "HUB_HOST_CA_KEY": "/k"})
    assert (settings.channel_port, settings.compass_url, settings.host_ca_key) == (19443, "https://c:1", Path("/k"))
    for variables in ({"HUB_CHANNEL_PORT": "high"}, {"HUB_PROBE_PORT": "70000"}, {"HUB_COMPASS_URL": "http://c:1"}):
        with pytest.raises(InvalidInput, match=next(iter(variables))):
            Settings.from_environment(variables)


async def test_a_certificate_whose_files_do_not_fit_yet_is_tried_again(tmp_path: Path) -> None:
    authority = make_authority("root")
    first, key = make_leaf(authority, server=True)
    cert, keyfile = write_pair(tmp_path, "server", first, key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, keyfile)

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    following = asyncio.ensure_future(follow_certificate(context, cert, keyfile, every=0.05))
    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    address = server.sockets[0].getsockname()
    try:
        second, other = make_leaf(authority, server=True)
        cert.write_text(second)  # the key is still the old one
        await asyncio.sleep(0.2)
        assert (await asyncio.to_thread(ssl.get_server_certificate, address)).split() == first.split()
        write_pair(tmp_path, "server", second, other)
        for _ in range(100):
            if (await asyncio.to_thread(ssl.get_server_certificate, address)).split() == second.split():
                break
            await asyncio.sleep(0.05)
        assert (await asyncio.to_thread(ssl.get_server_certificate, address)).split() == second.split()
    finally:
        following.cancel()
        server.close()
        await asyncio.gather(following, return_exceptions=True)
