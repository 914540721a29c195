"""Compass tells how machines reach the hub, and the line for them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ckp.compass.hosts.joining import Joining
from ckp.rules import joining
from tests.worlds.compass import World, make_world
from tests.worlds.tls import make_authority

CA = make_authority("site").pem


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    (tmp_path / "ca.crt").write_text(CA)
    async with make_world(tmp_path) as made:
        object.__setattr__(made.cases, "joining", Joining("192.0.2.202", tmp_path / "ca.crt"))
        yield made


async def test_the_line_is_for_the_project_and_holds_no_secret(world: World) -> None:
    key = await world.psk()
    view = await world.call("GET", "/host-join", expect=200)
    assert (view["hub"], view["channel"]) == ("https://192.0.2.202:8443", "wss://192.0.2.202:9443/v1/agent")
    assert (view["ca"], view["caSha256"]) == (CA, joining.fingerprint(CA.encode()))
    assert view["command"] == joining.line("192.0.2.202", CA.encode(), "default", "default") and key not in str(view)
    other = await world.call("GET", f"{await world.project('acme', 'edge')}/host-join", expect=200)
    assert "--project acme/edge" in other["command"]


async def test_a_proxy_is_part_of_the_line_or_refused(world: World) -> None:
    view = await world.call("GET", "/host-join", params={"proxy": "http://proxy.example:3128", "noProxy": ".site.example"}, expect=200)
    assert "--proxy http://proxy.example:3128 --no-proxy .site.example" in view["command"]
    error = await world.call("GET", "/host-join", params={"proxy": "proxy.example"}, expect=422)
    assert "is not the URL of a proxy" in error["error"]["message"]


async def test_a_compass_that_does_not_know_the_hub_or_the_ca_says_so(world: World, tmp_path: Path) -> None:
    object.__setattr__(world.cases, "joining", Joining("", tmp_path / "ca.crt"))
    assert "does not know the hub's address" in (await world.call("GET", "/host-join", expect=404))["error"]["message"]
    object.__setattr__(world.cases, "joining", Joining("192.0.2.202", tmp_path / "gone"))
    assert "the site's CA can't be read" in (await world.call("GET", "/host-join", expect=503))["error"]["message"]


async def test_it_is_for_those_who_are_logged_in(world: World) -> None:
    assert (await world.rest.get("/api/v1/domains/default/projects/default/host-join", headers={"Authorization": ""})).status_code == 401
