"""How a host logs in to a registry that asks for a password: kept for root only, used by its own pulls and by containerd, and sent to nobody else."""

from __future__ import annotations

import base64
import tomllib
from pathlib import Path

import pytest

from ckp.agent.fetch import pull
from ckp.agent.fetch.pull import Puller
from ckp.agent.journal import Journal, Member
from ckp.agent.messages import Desired, RegistryLogin, from_hub, to_json
from ckp.agent.system import prepare, registry_login
from ckp.hostkit import locations
from ckp.hostkit.errors import InvalidInput
from ckp.standalone.registry import change_access

HOST = "images.example.test:5443"
BASIC = base64.b64encode(b"node:reads").decode()
IMAGE = f"{HOST}/infra/k8s/ckp/bundle@sha256:{'a' * 64}"


@pytest.fixture(autouse=True)
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The host's files lie in a folder of the test."""
    monkeypatch.setattr(locations, "REGISTRY_LOGIN", str(tmp_path / "etc/registry-login.json"))
    monkeypatch.setattr(prepare, "CERTS_D", str(tmp_path / "etc/certs.d"))
    return tmp_path / "etc"


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(str(tmp_path / "journal.json"), str(tmp_path / "saved"))


def hosts_toml(etc: Path) -> Path:
    return etc / "certs.d" / HOST / "hosts.toml"


def test_a_login_is_kept_for_root_only_replaced_and_forgotten(etc: Path) -> None:
    assert registry_login.basic_for(HOST) == "" and not registry_login.keep(None)
    assert registry_login.keep(RegistryLogin(HOST, BASIC)) and not registry_login.keep(RegistryLogin(HOST, BASIC))
    file = etc / "registry-login.json"
    assert file.stat().st_mode & 0o777 == 0o600
    assert registry_login.basic_for(HOST) == BASIC and registry_login.basic_for("other.example.test") == "", "it is for that registry only"
    assert registry_login.keep(RegistryLogin(HOST, "bm9kZTpvdGhlcg==")) and registry_login.basic_for(HOST) == "bm9kZTpvdGhlcg=="
    assert registry_login.keep(None) and not file.exists() and registry_login.basic_for(HOST) == ""


def test_a_file_of_somebody_elses_is_an_error_that_does_not_quote_it(etc: Path) -> None:
    etc.mkdir()
    (etc / "registry-login.json").write_text('{"basic": "secret"}')
    with pytest.raises(InvalidInput, match="is not as CKP writes it") as caught:
        registry_login.basic_for(HOST)
    assert "secret" not in caught.value.render()


def test_the_hub_sends_it_with_the_desired_state_and_it_is_not_shown() -> None:
    desired = Desired(3, "one", registry_login=RegistryLogin(HOST, BASIC))
    assert from_hub(to_json(desired)) == desired and BASIC not in repr(desired)
    assert from_hub('{"type": "desired", "generation": 1, "host": "one"}').registry_login is None, "an older hub sends none"


def test_containerd_logs_in_by_a_file_that_only_root_reads_and_without_a_login_as_before(journal: Journal, etc: Path) -> None:
    assert prepare.registry_access(journal, f"{HOST}/infra/k8s/ckp", "CA")
    plain = hosts_toml(etc).read_text()
    assert hosts_toml(etc).stat().st_mode & 0o777 == 0o644 and "Authorization" not in plain
    registry_login.keep(RegistryLogin(HOST, BASIC))
    assert prepare.registry_access(journal, HOST, "CA") and not prepare.registry_access(journal, HOST, "CA")
    assert hosts_toml(etc).stat().st_mode & 0o777 == 0o600
    entry = tomllib.loads(hosts_toml(etc).read_text())["host"][f"https://{HOST}"]
    assert entry["header"] == {"Authorization": f"Basic {BASIC}"} and entry["capabilities"] == ["pull", "resolve"]
    registry_login.keep(None)
    assert prepare.registry_access(journal, HOST, "CA") and hosts_toml(etc).read_text() == plain and hosts_toml(etc).stat().st_mode & 0o777 == 0o644


def test_what_is_not_base64_is_not_written_into_a_configuration(journal: Journal) -> None:
    registry_login.keep(RegistryLogin(HOST, 'x"\nother = "y'))
    with pytest.raises(InvalidInput, match="the registry's login is not base64") as caught:
        prepare.registry_access(journal, HOST, "")
    assert "other" not in caught.value.render()


def test_a_pull_sends_the_login_to_the_registry_and_not_to_where_it_is_redirected(tmp_path: Path) -> None:
    registry_login.keep(RegistryLogin(HOST, BASIC))
    request = Puller(IMAGE, "", str(tmp_path))._request("blobs", f"sha256:{'b' * 64}", {"Range": "bytes=5-"})
    assert request.get_header("Authorization") == f"Basic {BASIC}"
    # urllib.request.HTTPRedirectHandler.redirect_request copies `headers`, and not what is unredirected.
    assert "Authorization" not in request.headers and request.headers["Range"] == "bytes=5-"
    other = Puller(IMAGE.replace(HOST, "other.example.test"), "", str(tmp_path))._request("blobs", "sha256:0", {})
    assert other.get_header("Authorization") is None and pull.MANIFESTS


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (None, "this host is not a standalone cluster"),
        (Member("standalone", bundle="/root/bundle"), "was made from the folder /root/bundle"),
    ],
)
def test_only_a_cluster_with_a_registry_gets_another_access(journal: Journal, member: Member | None, words: str) -> None:
    if member is not None:
        journal.begin(member)
    with pytest.raises(InvalidInput, match=words):
        change_access(journal, "")


def test_a_cluster_gets_another_password_without_a_restart(journal: Journal, etc: Path, tmp_path: Path) -> None:
    journal.begin(Member("standalone", bundle=IMAGE))
    (tmp_path / "ca.pem").write_text("CA")
    assert change_access(journal, str(tmp_path / "ca.pem")) == [f"containerd: access to {HOST} written"]
    assert change_access(journal, str(tmp_path / "ca.pem")) == []
    registry_login.keep(RegistryLogin(HOST, BASIC))
    assert change_access(journal, str(tmp_path / "ca.pem")) and BASIC in hosts_toml(etc).read_text()
    with pytest.raises(InvalidInput, match="does not exist"):
        change_access(journal, str(tmp_path / "none.pem"))
