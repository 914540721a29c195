"""Who accepts the certificates of CKP's registries, and when they are renewed.

Agents pull bundles with the system's Python, which verifies strictly from 3.13 on.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from ckp.distribution.registries.authority import Authority, why_renew
from ckp.distribution.registries.config import server_config
from ckp.distribution.registries.server import RegistryServer
from ckp.kits.errors import InvalidInput
from tests.support.tls_clients import client, tls_server

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
NAMES = ["images.example.test", "192.0.2.5"]


@pytest.mark.parametrize("name", ["python3.9", "python3.11", "python3.13", "openssl"])
def test_every_system_python_accepts_the_registry(name: str, tmp_path: Path) -> None:
    verify = client(name, tmp_path)
    if verify is None:
        pytest.skip(f"there is no {name} on this machine")
    server = RegistryServer(tmp_path / "registry", listen="127.0.0.1", name="localhost", state=tmp_path)
    server._certificates()
    with tls_server(server.folder / "tls.pem", server.folder / "tls.key") as port:
        assert verify(server.ca, port) == ""


@pytest.mark.parametrize("name", ["python3.9", "python3.11", "python3.13", "openssl"])
def test_every_system_python_accepts_what_a_ca_from_its_files_issues_in_one_file_with_its_key(name: str, tmp_path: Path) -> None:
    verify = client(name, tmp_path)
    if verify is None:
        pytest.skip(f"there is no {name} on this machine")
    now = datetime.now(UTC)
    made = Authority.create("a CA", now=now)
    leaf = Authority.load(made.pem, made.key_pem).issue(["localhost", "127.0.0.1"], now=now)
    (tmp_path / "ca.pem").write_bytes(made.pem)
    (tmp_path / "tls.pem").write_bytes(leaf.certificate + leaf.key)
    with tls_server(tmp_path / "tls.pem", tmp_path / "tls.pem") as port:
        assert verify(tmp_path / "ca.pem", port) == ""


def test_a_certificate_is_renewed_in_the_last_tenth_of_its_life_or_when_it_is_for_other_names_or_of_another_ca() -> None:
    authority = Authority.create("a CA", now=NOW)
    pem = authority.issue(NAMES, now=NOW, lifetime=timedelta(days=100)).certificate

    def why(names: list[str] = NAMES, after: timedelta = timedelta(), ca: x509.Certificate = authority.certificate) -> str:
        return why_renew(pem, ca, names, NOW + after)

    assert why() == why(list(reversed(NAMES))) == why(after=timedelta(days=89)) == ""
    assert why(after=timedelta(days=90, minutes=1)) == why(after=timedelta(days=900)) == "it ends on 2026-08-09"
    assert why(after=timedelta(days=-1)) == "it begins on 2026-05-01 only"
    assert why(["images.example.test"]) == "it is for images.example.test, 192.0.2.5, not for images.example.test"
    assert why([*NAMES, "other.example.test"]).endswith("not for images.example.test, 192.0.2.5, other.example.test")
    # Another CA of the same name: the signature decides.
    assert why(ca=Authority.create("a CA", now=NOW).certificate) == "it is none that this CA has signed"
    assert why_renew(b"rubbish", authority.certificate, NAMES, NOW) == why_renew(authority.pem, authority.certificate, NAMES, NOW)


def test_no_certificate_outlives_its_ca() -> None:
    authority = Authority.create("a CA", now=NOW, lifetime=timedelta(days=30))
    found = x509.load_pem_x509_certificate(authority.issue(NAMES, now=NOW).certificate)
    assert found.not_valid_after_utc == authority.certificate.not_valid_after_utc == NOW + timedelta(days=30)


def test_an_address_as_the_name_and_a_name_longer_than_a_common_name_may_be() -> None:
    authority = Authority.create("a CA", now=NOW)
    long = f"{'a' * 60}.{'b' * 60}.example.test"
    for names, expected in ((["192.0.2.5", "192.0.2.5"], 1), ([long, "192.0.2.5"], 2)):
        pem = authority.issue(names, now=NOW).certificate
        assert len(list(x509.load_pem_x509_certificate(pem).extensions.get_extension_for_class(x509.SubjectAlternativeName).value)) == expected
        assert why_renew(pem, authority.certificate, names, NOW) == ""


def test_a_ca_whose_files_do_not_belong_together_is_refused() -> None:
    one, other = (Authority.create("a CA", now=NOW) for _ in range(2))
    with pytest.raises(InvalidInput, match="do not belong together"):
        Authority.load(one.pem, other.key_pem)
    with pytest.raises(InvalidInput, match="cannot be read"):
        Authority.load(b"", other.key_pem)


def test_a_process_that_only_serves_pulls_deletes_nothing_and_caches_nothing() -> None:
    pull = json.loads(server_config("192.0.2.5", 5000, "/srv", "/tls", "/tls", read_only=True))
    push = json.loads(server_config("192.0.2.5", 5001, "/srv", "/tls", "/tls", htpasswd="/users", drain="30s"))
    assert pull["storage"]["maintenance"] == {"uploadpurging": {"enabled": False}, "readonly": {"enabled": True}}
    assert "delete" not in pull["storage"] and push["storage"]["delete"] == {"enabled": True} and "maintenance" not in push["storage"]
    assert push["auth"]["htpasswd"]["path"] == "/users" and "auth" not in pull
    for config in (pull, push):
        assert "cache" not in config["storage"] and config["http"]["tls"]["minimumtls"] == "tls1.2"
