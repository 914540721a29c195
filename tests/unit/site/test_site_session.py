"""By what a site asks its Compass: the bootstrap token while it is good, then a short-lived token of its own; and who is logged in on this machine."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from ckp.clients.compass import Config, Session, read_config, write_config
from ckp.kits.errors import CkpError
from ckp.site import install
from ckp.site.install import Site

SERVER = "https://192.0.2.201"


@dataclass
class Compass:
    """Answers by the token."""

    good: set[str]
    asked: list[str] = field(default_factory=list)
    status: int = 401

    def answer(self, request: httpx.Request) -> httpx.Response:
        token = request.headers["authorization"].removeprefix("Bearer ")
        self.asked.append(token)
        if token in self.good:
            return httpx.Response(200, json={"name": "admin", "credential": "x", "issuer": "", "subject": "", "roles": []})
        return httpx.Response(self.status, json={"error": {"code": "x", "message": "no", "details": "", "resolution": ""}})


@dataclass
class Bench:
    compass: Compass
    site: Any
    ran: list[tuple[str, ...]]
    said: list[str]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("CKP_CONFIG", str(tmp_path / "config.json"))
    compass, ran, said = Compass({"bootstrap"}), list[tuple[str, ...]](), list[str]()

    class Here(Session):
        def __init__(self, config: Config) -> None:
            super().__init__(config, transport=httpx.MockTransport(compass.answer))

    def kubectl(_site: Any, *words: str, **_more: Any) -> Any:
        ran.append(words)
        if words[:2] == ("create", "token"):
            return SimpleNamespace(stdout="minted\n")
        data = {"token": base64.b64encode(b"bootstrap").decode(), "ca.crt": base64.b64encode(b"PEM").decode()}
        return SimpleNamespace(stdout=json.dumps({"data": data}))

    site = Site.__new__(Site)
    inventory = SimpleNamespace(
        network=SimpleNamespace(compass="192.0.2.201", load_balancer_class="", load_balancers=("192.0.2.200", "192.0.2.220")), state=tmp_path
    )
    for name, value in (("inventory", inventory), ("say", said.append)):
        object.__setattr__(site, name, value)
    monkeypatch.setattr(install, "Session", Here)
    monkeypatch.setattr(Site, "kubectl", kubectl)
    monkeypatch.setattr(Site, "_compass_answers", lambda _: True)
    return Bench(compass, site, ran, said)


def test_while_there_is_no_administrator_this_machine_and_the_site_use_the_bootstrap_token(bench: Bench) -> None:
    bench.site.log_in()
    assert read_config() == Config(server=SERVER, token="bootstrap", ca=str(bench.site.root_ca))
    assert bench.site.session().config.token == "bootstrap"
    assert not any(words[:2] == ("create", "token") for words in bench.ran)


def test_then_the_site_makes_a_token_of_its_own_which_nothing_keeps(bench: Bench, tmp_path: Path) -> None:
    bench.compass.good = set()
    bench.site.log_in()
    assert bench.site.session().config.token == "minted"
    [made] = [words for words in bench.ran if words[:2] == ("create", "token")]
    assert made[2:] == ("ckp-site", "--namespace=ckp-system", "--audience=ckp-compass", "--duration=1h")
    assert not any(b"minted" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert read_config().token == "" and "ckp login" in bench.said[-1]


@pytest.mark.parametrize(
    "make", [lambda: Config(server=SERVER, token="of ann".replace(" ", "-"), domain="acme"), lambda: Config(server="https://other", token="t")]
)
def test_whoever_is_logged_in_on_this_machine_stays_so(bench: Bench, make: Callable[[], Config]) -> None:
    before = make()
    write_config(before)
    bench.compass.good = set()
    bench.site.log_in()
    found = read_config()
    assert found.server == SERVER and found.ca == str(bench.site.root_ca)
    assert (found.token, found.domain) == ((before.token, "acme") if before.server == SERVER else ("", "default"))


def test_a_compass_that_does_not_answer_is_not_taken_for_one_that_refuses(bench: Bench) -> None:
    bench.compass.good, bench.compass.status = set(), 503
    with pytest.raises(CkpError):
        bench.site.session()
    assert not any(words[:2] == ("create", "token") for words in bench.ran)


def test_a_compass_of_before_there_were_people_has_taken_the_token(bench: Bench) -> None:
    bench.compass.good, bench.compass.status = set(), 404
    assert bench.site.session().config.token == "bootstrap"
