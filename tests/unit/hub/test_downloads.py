"""What the hub serves to machines that have no credential yet."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from ckp.hub import downloads
from ckp.hub.downloads import Downloads, EnrolmentPort
from tests.worlds.tls import make_authority

CA = make_authority("site").pem


class Enrolled(Exception):
    """The request went on to enrolment."""


async def enrolment(scope: Any, receive: Any, send: Any) -> None:
    raise Enrolled


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "ca.crt").write_text(f"# the Root CA\n{CA}")
    (tmp_path / "secret").write_text("secret")
    packages = tmp_path / "packages"
    (packages / "apt/dists").mkdir(parents=True)
    (packages / "apt/dists/InRelease").write_text("signed")
    (packages / ".lock").write_text("")
    (packages / "apt/outside").symlink_to(tmp_path / "secret")
    return packages


@pytest.fixture
async def client(folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    app = EnrolmentPort(Downloads(folder, folder.parent / "ca.crt", CollectorRegistry()), enrolment)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://hub") as made:
        yield made


async def test_the_ca_and_the_script_are_there_for_everybody(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/join/ca.pem")).text == CA, "the certificates alone: what the line has the digest of"
    script = await client.get("/v1/join/join.sh")
    assert script.text.startswith("#!/bin/sh\n") and script.content == downloads.SCRIPT.read_bytes()


async def test_packages_are_served_and_nothing_beside_them(client: httpx.AsyncClient) -> None:
    assert (await client.get("/packages/apt/dists/InRelease")).text == "signed"
    assert (await client.head("/packages/apt/dists/InRelease")).headers["content-length"] == "6"
    for path in ("apt", "apt/dists/", "", "nothing", ".lock", "apt/outside", "%2e%2e/secret", "apt/..%2f..%2f..%2fsecret", "apt//%2e%2e/%2e%2e/secret"):
        answer = await client.get(f"/packages/{path}")
        assert answer.status_code == 404 and "secret" not in answer.text, path
    assert (await client.post("/packages/apt/dists/InRelease")).status_code == 405


async def test_no_condition_is_answered_since_all_files_of_an_image_have_one_time(client: httpx.AsyncClient, folder: Path) -> None:
    first = await client.get("/packages/apt/dists/InRelease")
    assert not {"last-modified", "etag"} & first.headers.keys()
    os.utime(folder / "apt/dists/InRelease", (0, 0))
    conditions = {
        "if-modified-since": "Thu, 01 Jan 1970 00:00:00 GMT",
        "if-none-match": '"x"',
        "range": "bytes=3-",
        "if-range": "Thu, 01 Jan 1970 00:00:00 GMT",
    }
    again = await client.get("/packages/apt/dists/InRelease", headers=conditions)
    assert (again.status_code, again.text) == (200, "signed")


async def test_a_hub_without_packages_says_so(tmp_path: Path) -> None:
    app = EnrolmentPort(Downloads(tmp_path / "none", tmp_path / "no-ca", CollectorRegistry()), enrolment)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://hub") as client:
        answer = await client.get("/packages/keys/ckp.gpg")
        assert (answer.status_code, "install the agent by hand" in answer.text) == (404, True)
        assert (await client.get("/v1/join/ca.pem")).status_code == 503


async def asked(folder: Path, site: Path, path: str) -> httpx.Response:
    app = EnrolmentPort(Downloads(folder, folder.parent / "ca.crt", CollectorRegistry(), site), enrolment)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://hub") as client:
        return await client.get(path)


async def test_machines_that_join_get_what_the_site_gives_to_its_hosts(folder: Path, tmp_path: Path) -> None:
    site = tmp_path / "site.json"
    assert (await asked(folder, site, "/v1/join/site.json")).json() == {}, "no settings is an answer: one that is missing would be a failure"
    site.write_text('{"version": 1, "httpsProxy": "http://proxy.test:3128"}')
    assert (await asked(folder, site, "/v1/join/site.json")).json()["httpsProxy"] == "http://proxy.test:3128", "read at each request"


async def test_the_sites_keyring_takes_the_place_of_that_of_the_packages(folder: Path, tmp_path: Path) -> None:
    (folder / "keys").mkdir()
    (folder / "keys/ckp.gpg").write_bytes(b"of the packages")
    site = tmp_path / "site.json"
    assert (await asked(folder, site, "/packages/keys/ckp.gpg")).content == b"of the packages"
    site.write_text('{"version": 1, "nameservers": ["192.0.2.53"]}')
    assert (await asked(folder, site, "/packages/keys/ckp.gpg")).content == b"of the packages"
    site.write_text('{"version": 1, "keyring": "b3Vycw=="}')
    assert (await asked(folder, site, "/packages/keys/ckp.gpg")).content == b"ours"


async def test_rpm_gets_the_sites_keys_or_none(folder: Path, tmp_path: Path) -> None:
    (folder / "keys").mkdir()
    (folder / "keys/ckp.asc").write_bytes(b"of the packages")
    site = tmp_path / "site.json"
    assert (await asked(folder, site, "/packages/keys/ckp.asc")).content == b"of the packages"
    site.write_text('{"version": 1, "keyring": "b3Vycw=="}')
    answer = await asked(folder, site, "/packages/keys/ckp.asc")
    assert (answer.status_code, b"of the packages" in answer.content) == (503, False), "a site that an older ckp has applied"
    (tmp_path / "ckp.asc").write_bytes(b"ours")
    assert (await asked(folder, site, "/packages/keys/ckp.asc")).content == b"ours"


@pytest.mark.parametrize("text", ["{", "[]", '{"keyring": "!"}', '{"keyring": 1}'])
async def test_settings_that_cannot_be_read_give_no_keys_at_all(folder: Path, tmp_path: Path, text: str) -> None:
    (folder / "keys").mkdir()
    (folder / "keys/ckp.gpg").write_bytes(b"of the packages")
    (tmp_path / "site.json").write_text(text)
    answer = await asked(folder, tmp_path / "site.json", "/packages/keys/ckp.gpg")
    assert (answer.status_code, b"of the packages" in answer.content) == (503, False)


async def test_all_else_is_enrolment(client: httpx.AsyncClient) -> None:
    for path in ("/v1/enrolments", "/v1/join", "/packages", "/"):
        with pytest.raises(Enrolled):
            await client.get(path)


async def test_a_path_that_is_long_to_resolve_is_not_resolved(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tried: 48 KB of `a/` kept the event loop of all channels for a tenth of a second."""
    app = Downloads(folder, folder.parent / "ca.crt", CollectorRegistry())
    monkeypatch.setattr(app._files, "get_path", lambda scope: pytest.fail("it was resolved"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://hub") as client:
        assert (await client.get(f"/packages/{'a/' * 300}")).status_code == 404


async def test_downloads_are_bounded_in_number_and_a_slow_reader_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "AT_ONCE", 3)
    monkeypatch.setattr(downloads, "AT_ONCE_FROM_ONE", 2)
    monkeypatch.setattr(downloads, "SECONDS", 0.5)
    app = Downloads(folder, folder.parent / "ca.crt", CollectorRegistry())
    answers: list[int] = []

    def asked(peer: str, path: str = "/packages/apt/dists/InRelease") -> dict[str, Any]:
        return {"type": "http", "method": "GET", "path": path, "headers": [], "extensions": {}, "client": (peer, 4000)}

    async def receive() -> dict[str, Any]:
        return await asyncio.Future()

    async def slow(message: Any) -> None:
        if message["type"] == "http.response.start":
            answers.append(message["status"])
        else:
            await asyncio.sleep(60)

    async def quick(message: Any) -> None:
        if message["type"] == "http.response.start":
            answers.append(message["status"])

    held = [asyncio.create_task(app(asked("one"), receive, slow)) for _ in range(2)]
    await asyncio.sleep(0.2)
    await app(asked("one"), receive, quick)
    await app(asked("two"), receive, quick)
    assert answers == [200, 200, 503, 200], "one address has its share"
    held.append(asyncio.create_task(app(asked("two"), receive, slow)))
    await asyncio.sleep(0.1)
    await app(asked("three"), receive, quick)
    await app(asked("three", "/v1/join/ca.pem"), receive, quick)
    assert answers[4:] == [200, 503, 200], "all have theirs, and the CA is always there"
    await asyncio.wait_for(asyncio.gather(*held), 5)
    await app(asked("one"), receive, quick)
    assert answers[-1] == 200 and not app._downloading, "their places are free again"
