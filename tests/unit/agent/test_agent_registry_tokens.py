"""Registries that give tokens for a password: the host's own pulls, and what containerd is told. Against the registry simulator with its token service."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from ckp.agent.fetch import pull as pulling
from ckp.agent.fetch.tokens import challenge_of
from ckp.agent.journal import Journal, Member
from ckp.agent.messages import RegistryLogin
from ckp.agent.system import prepare, registry_login
from ckp.hostkit import locations
from ckp.hostkit.errors import AgentError
from ckp.hostkit.processes import Finished
from ckp.site.check.remote import ask_registry
from ckp.standalone import registry as standalone
from tests.simulators.registry import Fault, RegistrySimulator
from tests.support.served_registry import served
from tests.unit.agent.test_agent_pull import Site

BASIC, WRONG = "bm9kZTpyZWFkcw==", "bm9kZTp3cm9uZw=="


@pytest.fixture(autouse=True)
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's files lie in a folder of the test."""
    monkeypatch.setattr(locations, "REGISTRY_LOGIN", str(tmp_path / "etc/registry-login.json"))
    monkeypatch.setattr(locations, "REGISTRY_TOKENS", str(tmp_path / "state/registry-tokens"))
    for name in ("CERTS_D", "CONTAINERD_CONFIG"):
        monkeypatch.setattr(prepare, name, str(tmp_path / "etc" / name.lower()))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    simulator = RegistrySimulator(password=BASIC)
    with served(simulator, tmp_path) as (address, ca):
        yield Site(tmp_path, simulator, address, ca)


def address(site: Site) -> str:
    return site.image.partition("/")[0]


def fetch(site: Site, folder: Path) -> pulling.Puller:
    (folder / "ca.pem").write_text(site.ca)
    (folder / "blobs").mkdir(exist_ok=True)
    puller = pulling.Puller(site.image, str(folder / "ca.pem"), str(folder / "blobs"))
    puller.fetch()
    return puller


def test_a_pull_gets_a_token_for_the_password_and_uses_it_again(site: Site, tmp_path: Path) -> None:
    registry_login.keep(RegistryLogin(address(site), BASIC))
    puller = fetch(site, tmp_path)
    assert len(site.simulator.requests("GET /token")) == 1 and puller._request("blobs", "sha256:0", {}).get_header("Authorization", "").startswith("Bearer ")
    assert registry_login.gives_tokens(address(site))


def test_a_token_that_no_longer_counts_is_had_again(site: Site, tmp_path: Path) -> None:
    registry_login.keep(RegistryLogin(address(site), BASIC))
    (tmp_path / "ca.pem").write_text(site.ca)
    (tmp_path / "blobs").mkdir()
    puller = pulling.Puller(site.image, str(tmp_path / "ca.pem"), str(tmp_path / "blobs"))
    puller._token = "expired"
    puller.fetch()
    assert len(site.simulator.requests("GET /token")) == 1


def test_a_wrong_password_is_said_and_not_tried_again_and_again(site: Site, tmp_path: Path) -> None:
    registry_login.keep(RegistryLogin(address(site), WRONG))
    with pytest.raises(AgentError, match="does not take the password that this host has for it") as caught:
        fetch(site, tmp_path)
    assert len(site.simulator.requests("GET /token")) == 1 and WRONG not in caught.value.render() and not registry_login.gives_tokens(address(site))


def test_a_realm_that_does_not_answer_is_asked_again(site: Site, tmp_path: Path) -> None:
    registry_login.keep(RegistryLogin(address(site), BASIC))
    site.simulator.faults = [Fault("GET /token", times=1, status=503)]
    fetch(site, tmp_path)
    assert len(site.simulator.requests("GET /token")) == 2


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (
            'Bearer realm="https://a.test/token",service="s",scope="repository:x:pull"',
            {"realm": "https://a.test/token", "service": "s", "scope": "repository:x:pull"},
        ),
        ('bearer realm="https://a.test/token"', {"realm": "https://a.test/token"}),
        ('Bearer service="s"', None),
        ("Basic realm=x", None),
        ("", None),
    ],
)
def test_a_challenge_is_read_as_the_specification_has_it(header: str, found: dict[str, str] | None) -> None:
    assert challenge_of(header) == found


def test_the_password_goes_to_a_realm_by_tls_only_and_of_the_registry_itself_only(site: Site, tmp_path: Path) -> None:
    registry_login.keep(RegistryLogin(address(site), BASIC))
    plain = {"WWW-Authenticate": 'Bearer realm="http://a.test/token"'}
    site.simulator.faults = [Fault("manifests", times=1, status=401, headers=plain)]
    with pytest.raises(AgentError, match="which is not TLS"):
        fetch(site, tmp_path)
    assert site.simulator.requests("GET /token") == []


def test_containerd_gets_the_login_where_the_registry_gives_tokens(tmp_path: Path) -> None:
    config = 'version = 2\n\n  [plugins."io.containerd.grpc.v1.cri".registry]\n    config_path = "/etc/containerd/certs.d"\n'
    host = "hub.example.test:5000"
    registry_login.keep(RegistryLogin(host, BASIC))
    assert prepare.with_registry_login(config, host) == config and prepare.mode_of(config) == 0o644
    registry_login.note_tokens(host)
    written = prepare.with_registry_login(config, host)
    assert tomllib.loads(written)["plugins"]["io.containerd.grpc.v1.cri"]["registry"]["configs"][host]["auth"] == {"auth": BASIC}
    assert prepare.with_registry_login(written, host) == written and prepare.mode_of(written) == 0o600
    registry_login.keep(RegistryLogin(host, WRONG))
    assert WRONG in prepare.with_registry_login(written, host) and BASIC not in prepare.with_registry_login(written, host)
    registry_login.keep(None)
    assert prepare.with_registry_login(written, host) == config


def test_a_cluster_gets_another_password_by_a_restart_of_containerd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host, ran = "hub.example.test:5000", list[list[str]]()

    def run(argv: Sequence[str], **_: object) -> Finished:
        ran.append(list(argv))
        return Finished(0, "", "")

    monkeypatch.setattr(standalone, "run", run)
    journal = Journal(str(tmp_path / "journal.json"), str(tmp_path / "saved"))
    journal.begin(Member("standalone", bundle=f"{host}/ckp/bundle@sha256:{'a' * 64}"))
    (tmp_path / "etc").mkdir()
    Path(prepare.CONTAINERD_CONFIG).write_text("version = 2\n")
    registry_login.keep(RegistryLogin(host, BASIC))
    registry_login.note_tokens(host)
    assert len(standalone.change_access(journal, "")) == 2 and ran == [["systemctl", "restart", "containerd"]]
    assert standalone.change_access(journal, "") == [] and len(ran) == 1
    assert Path(prepare.CONTAINERD_CONFIG).stat().st_mode & 0o777 == 0o600


def test_the_check_of_a_site_takes_tokens_as_hosts_do(site: Site) -> None:
    assert ask_registry(address(site), "ckp/none", site.ca, BASIC) == 404
    assert ask_registry(address(site), "ckp/none", site.ca, WRONG) == 401
