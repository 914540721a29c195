"""What a site's file gives to all hosts: read, checked, planned, brought, and taken away again."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ckp.hostkit.errors import VerificationFailed
from ckp.hostkit.locations import SITE_KEYRING, SITE_SETTINGS
from ckp.hostkit.proxies import is_direct
from ckp.kits.errors import CkpError, InvalidInput
from ckp.site.check.of_spec import settings as checked
from ckp.site.settings import read
from ckp.site.settings.model import HostSettings
from ckp.site.spec.model import SiteSpec
from ckp.site.spec.read import parse_site
from ckp.verify.signatures import check_signature
from tests.support.signing_keys import signing_key
from tests.worlds.applied_site import TEXT, AppliedSite
from tests.worlds.tls import make_authority, make_leaf

CA = make_authority("inside")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AppliedSite:
    return AppliedSite(tmp_path, monkeypatch)


def spec(folder: Path, more: str) -> SiteSpec:
    return parse_site(f"{TEXT}{more}\n".encode(), folder / "site.yaml")


NETWORK = "network: {proxy: {https: 'http://proxy.example.test:3128', noProxy: [.corp.test]}, dns: [192.0.2.53], timeServers: [ntp.test], caFiles: [ca.pem]}\n"


# -- reading


def test_one_place_computes_what_is_reached_without_the_proxy(tmp_path: Path) -> None:
    """As the hosts' programs read it."""
    found = spec(tmp_path, "network: {proxy: {http: 'http://proxy.test:3128', noProxy: [.corp.test, 198.51.100.0/24]}}")
    entries = ",".join(read.exceptions(found))
    inside = ["192.0.2.10", "192.0.2.201", "10.1.4.4", "10.96.0.1", "images.example.test", "m1", "localhost", "127.0.0.1", "a.svc", "b.cluster.local"]
    assert all(is_direct(host, 443, entries) for host in [*inside, "x.corp.test", "198.51.100.7"])
    assert not any(is_direct(host, 443, entries) for host in ["example.org", "203.0.113.1", "deb.debian.example"])


def test_a_proxy_with_a_password_is_refused_and_not_quoted(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="1 error") as refused:
        spec(tmp_path, "network: {proxy: {https: 'http://user:hunter2@proxy.test:3128'}}")
    assert "this URL holds a password" in refused.value.details and "hunter2" not in refused.value.render()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "can't be read: No such file"),
        ("hello", "is not a PEM file with certificates"),
        (make_leaf(CA, dns=("a.test",), server=True)[0], "holds a certificate that is no CA's"),
        ("x" * (300 << 10), "has more than 256 KiB"),
    ],
)
def test_a_ca_file_that_is_none_is_named_with_its_line(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "ca.pem").write_text(content)
    found = spec(tmp_path, "network: {caFiles: [ca.pem]}")
    with pytest.raises(InvalidInput, match=said) as refused:
        read.settings_of(found)
    assert f"{tmp_path}/site.yaml:" in refused.value.brief and "network.caFiles[0]" in refused.value.brief
    [finding] = checked(found)[1]
    assert said in finding.what


def test_an_expired_ca_is_an_error_and_one_that_ends_soon_a_warning(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text(f"a comment\n{CA.pem}")
    found = spec(tmp_path, "network: {caFiles: [ca.pem]}")
    [end] = [each.not_valid_after_utc for each in read.authorities(found, 0)]
    assert list(read.lifetimes(found, datetime.now(UTC))) == [] or end - datetime.now(UTC) < read.SOON
    assert [error for error, _ in read.lifetimes(found, end + timedelta(seconds=1))] == [True]
    assert [error for error, _ in read.lifetimes(found, end - timedelta(days=3))] == [False]


# -- trusted keys


@pytest.mark.parametrize("armoured", [False, True], ids=["binary", "armoured"])
def test_only_the_named_keys_of_a_keyring_are_trusted(tmp_path: Path, armoured: bool) -> None:
    ours, other = signing_key(tmp_path / "ours"), signing_key(tmp_path / "other", "another's")
    both = ours.keyring.read_bytes() + other.keyring.read_bytes()
    (tmp_path / "keys").mkdir(exist_ok=True)
    text = b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n" + base64.encodebytes(both) + b"=abcd\n-----END PGP PUBLIC KEY BLOCK-----\n"
    (tmp_path / "trusted").write_bytes(text if armoured else both)
    all_of_them = read.settings_of(spec(tmp_path, "trust: {keyringFile: trusted}"))
    assert set(read.fingerprints(all_of_them.keyring)) == {ours.fingerprint, other.fingerprint}
    one = read.settings_of(spec(tmp_path, f"trust: {{keyringFile: trusted, fingerprints: [{ours.fingerprint}]}}"))
    assert read.fingerprints(one.keyring) == [ours.fingerprint]
    with one.trusted(Path("/nonexistent")) as keyring:
        check_signature(iter([b"x"]), ours.sign(b"x"), str(keyring), "a bundle")
        with pytest.raises(VerificationFailed):
            check_signature(iter([b"x"]), other.sign(b"x"), str(keyring), "a bundle")


def test_a_fingerprint_that_the_keyring_has_not_is_named_with_those_that_it_has(tmp_path: Path) -> None:
    ours = signing_key(tmp_path / "ours")
    (tmp_path / "trusted").write_bytes(ours.keyring.read_bytes())
    with pytest.raises(InvalidInput, match=r"trust\.fingerprints\[0\]: .* has no key A{40}") as refused:
        read.settings_of(spec(tmp_path, f"trust: {{keyringFile: trusted, fingerprints: [{'A' * 40}]}}"))
    assert ours.fingerprint in refused.value.details


@pytest.mark.parametrize("content", [b"", b"nothing of the kind", b"-----BEGIN PGP PRIVATE KEY BLOCK-----\n\n-----END PGP PRIVATE KEY BLOCK-----\n"])
def test_a_keyring_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "trusted").write_bytes(content)
    with pytest.raises(InvalidInput, match=r"keyring|public keys"):
        read.settings_of(spec(tmp_path, "trust: {keyringFile: trusted}"))


def test_two_keyrings_are_one_too_many(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="--keyring names another one"):
        read.settings_of(spec(tmp_path, "trust: {keyringFile: trusted}"), tmp_path / "other")


def test_what_this_machine_builds_must_be_signed_by_a_key_of_the_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, other = signing_key(tmp_path / "ours"), signing_key(tmp_path / "other", "another's")
    monkeypatch.setenv("CKP_KEYS", str(ours.folder))
    read.require_signer(HostSettings())
    read.require_signer(HostSettings(keyring=ours.keyring.read_bytes()))
    with pytest.raises(InvalidInput, match=f"signs what it builds with {ours.fingerprint}, which the site does not trust"):
        read.require_signer(HostSettings(keyring=other.keyring.read_bytes()))
    monkeypatch.setenv("CKP_KEYS", str(tmp_path / "none"))
    with pytest.raises(InvalidInput, match="this machine has no signing key yet"):
        read.require_signer(HostSettings(keyring=ours.keyring.read_bytes()))


# -- a whole site


def with_settings(site: AppliedSite, more: str = NETWORK) -> None:
    (site.root / "ca.pem").write_text(CA.pem)
    site.write(("releases: [v1.35.1]\n", f"releases: [v1.35.1]\n{more}"))


def given_to(site: AppliedSite) -> dict[str, object]:
    found: dict[str, object] = json.loads(site.host.path(SITE_SETTINGS).read_text())
    return found


def test_a_site_brings_its_settings_to_the_host_and_to_the_hub_and_plans_them(site: AppliedSite) -> None:
    with_settings(site)
    _, rows = site.plan()
    assert {part: rows[part]["action"] for part in ("private CAs", "proxy", "name servers", "time servers")} == dict.fromkeys(
        ("private CAs", "proxy", "name servers", "time servers"), "create"
    )
    assert site.run("apply").exit_code == 0
    document = given_to(site)
    assert document["httpsProxy"] == "http://proxy.example.test:3128" and ".corp.test" in str(document["noProxy"])
    assert document["authorities"] == [CA.pem] and document["nameservers"] == ["192.0.2.53"] and document["timeServers"] == ["ntp.test"]
    [handed_out] = [item["data"]["site.json"] for key, item in site.host.api.objects.items() if key[0] == "ConfigMap" and key[2] == "ckp-site"]
    assert json.loads(handed_out) == document, "machines that join get the same from the hub"
    code, rows = site.plan()
    assert code == 0 and rows["proxy"]["action"] == "none"
    before = site.everything()
    site.run("apply")
    assert site.everything() == before


def test_settings_come_before_the_cluster(site: AppliedSite) -> None:
    """Its containerd starts with the proxy and the CAs, and its packages are verified with the site's keys."""
    with_settings(site)
    site.run("apply")
    calls = site.host.calls
    assert calls.index("ckp-agent settings apply --file -") < calls.index("ckp-agent standalone install")


def test_a_changed_setting_is_planned_with_what_it_interrupts_and_one_that_goes_is_taken_away(site: AppliedSite) -> None:
    with_settings(site)
    site.run("apply")
    with_settings(site, NETWORK.replace("proxy.example.test", "other.example.test").replace(", timeServers: [ntp.test]", ""))
    code, rows = site.plan()
    assert code == 1 and rows["proxy"]["action"] == "change" and "containerd restarts on m1" in rows["proxy"]["interrupts"]
    assert "ntp.test becomes those of each host" in rows["time servers"]["detail"]
    assert rows["private CAs"]["action"] == "none" and rows["ckp"]["action"] != "none"
    site.run("apply")
    assert "timeServers" not in given_to(site) and site.plan()[0] == 0
    site.write()
    assert site.plan()[1]["proxy"]["detail"].endswith("becomes none")
    site.run("apply")
    assert not site.host.path(SITE_SETTINGS).exists() and site.plan()[0] == 0


def test_a_site_without_settings_asks_the_host_tool_for_none(site: AppliedSite) -> None:
    site.run("apply")
    assert not [call for call in site.host.calls if call.startswith("ckp-agent settings")]


def test_what_the_host_cannot_take_is_refused_before_anything_is_changed(site: AppliedSite) -> None:
    with_settings(site)
    site.host.untaken = "its name servers are not those of systemd-resolved"
    before = site.host.tree()
    with pytest.raises(InvalidInput, match="nothing was changed") as refused:
        site.run("apply")
    assert "m1: settings: its name servers" in refused.value.details
    assert site.host.tree() == before


def test_a_host_gets_exactly_the_keys_that_the_site_names(site: AppliedSite, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, other = signing_key(site.root / "ours"), signing_key(site.root / "other", "another's")
    (site.root / "trusted").write_bytes(ours.keyring.read_bytes() + other.keyring.read_bytes())
    site.write(("releases: [v1.35.1]\n", f"releases: [v1.35.1]\ntrust: {{keyringFile: trusted, fingerprints: [{ours.fingerprint}]}}\n"))
    monkeypatch.setenv("CKP_KEYS", str(other.folder))
    with pytest.raises(CkpError, match=f"signs what it builds with {other.fingerprint}, which the site does not trust"):
        site.run("apply")  # this machine would build it
    assert not site.host.path(SITE_SETTINGS).exists()
    monkeypatch.setenv("CKP_KEYS", str(ours.folder))
    site.release.keyring = ours.keyring
    installed: list[str] = []
    stream = site.host.stream

    def watched(argv: Sequence[str], **how: Any) -> int:
        installed.extend(argv)
        return stream(argv, **how)

    monkeypatch.setattr(site.host, "stream", watched)
    assert site.run("apply").exit_code == 0
    assert read.fingerprints(base64.b64decode(str(given_to(site)["keyring"]))) == [ours.fingerprint]
    assert installed[installed.index("--keyring") + 1] == SITE_KEYRING
    assert site.plan()[1]["trusted keys"]["detail"] == ours.fingerprint
