"""The hub's settings, and the certificate that its servers follow."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from pathlib import Path

import pytest

from ckp.hub.settings import Settings
from ckp.kits.errors import InvalidInput
from ckp.runtime.serving import follow_certificate
from tests.worlds.tls import make_authority, make_leaf, write_pair


def from_environment(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> Settings:
    with monkeypatch.context() as patched:
        for name in [name for name in os.environ if name.startswith("HUB_")]:
            patched.delenv(name)
        for name, value in variables.items():
            patched.setenv(name, value)
        return Settings.from_environment()


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"HUB_CHANNEL_PORT": "19443", "HUB_COMPASS_URL": "https://c:1/", "HUB_HOST_CA_KEY": "/k", "HUB_COMPASS_TOKEN_FILE": "/t", "HUB_IDENTITY": "hub-1"}
    settings = from_environment(monkeypatch, given)
    assert (settings.channel_port, settings.compass_url, settings.host_ca_key) == (19443, "https://c:1", Path("/k"))
    assert (settings.compass_token_file, settings.identity) == (Path("/t"), "hub-1")


def test_what_is_not_set_or_empty_has_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = from_environment(monkeypatch, {"HUB_TLS_CERT": "", "HUB_IDENTITY": "", "HUB_PROBE_PORT": ""})
    assert (settings.tls_cert, settings.probe_port, settings.bind) == (Path("/etc/ckp-hub/tls/tls.crt"), 9090, "0.0.0.0")
    assert settings.identity == socket.gethostname().lower()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("HUB_CHANNEL_PORT", "high", "'high' is not a port number: write one from 0 to 65535"),
        ("HUB_PROBE_PORT", "70000", "'70000' is not a port number: write one from 0 to 65535"),
        ("HUB_ENROLMENT_PORT", "-1", "'-1' is not a port number: write one from 0 to 65535"),
        ("HUB_COMPASS_URL", "http://c:1", "'http://c:1' is not an https address: write it as https://HOST:PORT"),
        ("HUB_IDENTITY", "Hub_1", "'Hub_1' is not a name for a Lease: write up to 253 of a-z, 0-9, '-' and '.', a letter or digit first and last"),
    ],
)
def test_a_variable_that_is_wrong_is_named_with_what_to_write(monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        from_environment(monkeypatch, {name: value})
    assert refused.value.brief == f"{name}: {message}"


def test_a_host_name_that_cannot_name_a_lease_is_refused_with_the_variable_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "my_host")
    with pytest.raises(InvalidInput, match="HUB_IDENTITY: 'my_host' is not a name"):
        from_environment(monkeypatch, {})


def test_all_that_is_wrong_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput) as refused:
        from_environment(monkeypatch, {"HUB_CHANNEL_PORT": "high", "HUB_COMPASS_URL": "c"})
    named = f"{refused.value.brief}\n{refused.value.details}"
    assert "HUB_CHANNEL_PORT: 'high'" in named and "HUB_COMPASS_URL: 'c'" in named


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
