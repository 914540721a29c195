"""What a site gives to its hosts is applied by files of CKP's own, and a host without it is as it was before."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckp.agent import config
from ckp.agent.journal import STANDALONE, Journal, Member
from ckp.agent.system import runtime_proxy, site_settings
from ckp.hostkit import proxies
from ckp.hostkit.errors import InvalidInput
from ckp.hostkit.locations import SITE_KEYRING, SITE_SETTINGS
from ckp.hostkit.processes import Finished
from ckp.verify.signatures import check_signature
from tests.support.signing_keys import signing_key
from tests.worlds.tls import make_authority

CAS = [make_authority("first").pem, make_authority("second").pem]
PROXY = {"httpProxy": "http://proxy.test:3128", "httpsProxy": "http://proxy.test:3128", "noProxy": "192.0.2.0/24,.svc"}
ALL = {"authorities": CAS, **PROXY, "nameservers": ["192.0.2.53"], "timeServers": ["ntp.test", "192.0.2.123"], "keyring": base64.b64encode(b"keys").decode()}


class Killed(BaseException):
    """The tool was killed."""


class Machine:
    """A host below a folder: its trust store, and services that read their files when they are restarted."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in (*proxies.NAMES, *(name.lower() for name in proxies.NAMES)):
            monkeypatch.setenv(name, "")  # so that what the tool sets is undone
            monkeypatch.delenv(name)
        self.root = root
        self.active = {"systemd-resolved.service", "systemd-timesyncd.service", "containerd.service"}
        self.programs = {"update-ca-certificates", "chronyc"}
        self.missing: set[str] = set()
        """Units that it does not have."""
        self.calls: list[str] = []
        self.kill_at: int | None = None
        store = root / "usr/local/share/ca-certificates"
        store.mkdir(parents=True)
        (store / "the-owners.crt").write_text("a CA")
        self.put("etc/resolv.conf", "nameserver 127.0.0.53\n")
        for name in ("SITE_SETTINGS", "SITE_KEYRING", "RESOLVED", "TIMESYNCD", "CHRONY", "RESOLV_CONF"):
            monkeypatch.setattr(site_settings, name, f"{root}{getattr(site_settings, name)}")
        monkeypatch.setattr(site_settings, "CHRONY_CONFIGURATIONS", (f"{root}/etc/chrony/chrony.conf",))
        monkeypatch.setattr(site_settings, "_STORES", (("update-ca-certificates", str(store), ("update-ca-certificates", "--fresh")),))
        monkeypatch.setattr(proxies.adopt, "__defaults__", (f"{root}{SITE_SETTINGS}",))
        for module in (site_settings, runtime_proxy):
            monkeypatch.setattr(module, "run", self.run)
        monkeypatch.setattr(site_settings, "have", lambda name: name in self.programs)
        for name in (*proxies.NAMES, *(each.lower() for each in proxies.NAMES)):
            monkeypatch.delenv(name, raising=False)

    def put(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def run(self, argv: Sequence[str], **_: object) -> Finished:
        if argv[:2] == ["systemctl", "is-active"]:
            return Finished(0 if argv[-1] in self.active else 3, "", "")
        if argv[:2] == ["systemctl", "show"]:
            return Finished(0, "loaded\n" if argv[-1] not in self.missing else "not-found\n", "")
        if self.kill_at == len(self.calls):
            raise Killed
        self.calls.append(" ".join(argv))
        return Finished(0, "", "")

    def apply(self, **given: object) -> list[str]:
        """Apply these settings; returns what was called for it."""
        self.calls = []
        self.said = site_settings.apply(json.dumps({"version": 1, **given}) if given else "", state_dir=str(self.root / "state"))
        return self.calls

    def files(self) -> dict[str, str]:
        return {str(path.relative_to(self.root)): path.read_text() for path in sorted(self.root.rglob("*")) if path.is_file()}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_all_is_applied_once_and_a_host_without_it_is_as_it_was(machine: Machine) -> None:
    before = machine.files()
    calls = machine.apply(**ALL)
    assert calls == [
        "update-ca-certificates --fresh",
        "systemctl try-restart containerd.service",
        "systemctl try-restart systemd-resolved.service",
        "systemctl try-restart systemd-timesyncd.service",
        "systemctl try-restart ckp-agent.service",
    ]
    assert machine.apply(**ALL) == [] and machine.said == [], "what is so already is left alone"
    files = machine.files()
    assert [name for name in files if name.endswith(".crt")] == sorted(name for name in files if name.endswith(".crt")) and len(files) - len(before) == 7
    assert "DNS=192.0.2.53\nDomains=~.\n" in files["etc/systemd/resolved.conf.d/50-ckp-site.conf"]
    assert "NTP=\nNTP=ntp.test 192.0.2.123\n" in files["etc/systemd/timesyncd.conf.d/50-ckp-site.conf"]
    assert files["etc/ckp-agent/trusted.gpg"] == "keys"
    machine.apply()
    assert machine.files() == before


@pytest.mark.parametrize(
    ("without", "calls"),
    [
        ("authorities", ["update-ca-certificates --fresh", "systemctl try-restart containerd.service"]),
        ("nameservers", ["systemctl try-restart systemd-resolved.service"]),
        ("timeServers", ["systemctl try-restart systemd-timesyncd.service"]),
        ("keyring", []),
    ],
)
def test_only_what_reads_a_setting_is_restarted_when_it_goes(machine: Machine, without: str, calls: list[str]) -> None:
    machine.apply(**ALL)
    assert machine.apply(**{name: value for name, value in ALL.items() if name != without}) == calls


def test_a_service_that_the_host_does_not_have_yet_is_not_restarted(machine: Machine) -> None:
    """systemctl try-restart fails at a unit that is not there, as containerd's is before the cluster is made (tried on a host)."""
    machine.missing = {"containerd.service", "ckp-agent.service"}
    assert machine.apply(authorities=CAS, **PROXY) == ["update-ca-certificates --fresh"]
    machine.missing.clear()
    assert machine.apply(authorities=CAS, **PROXY) == [], "it starts with what is there"


def test_one_ca_of_two_goes(machine: Machine) -> None:
    machine.apply(authorities=CAS)
    machine.apply(authorities=CAS[:1])
    assert [text for name, text in machine.files().items() if name.endswith(".crt") and "/ckp-" in name] == [CAS[0].strip() + "\n"]


@given(st.integers(0, 4), st.integers(0, 4), st.booleans())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_killed_at_any_moment_the_same_again_goes_on(tmp_path_factory: pytest.TempPathFactory, first: int, second: int, gone: bool) -> None:
    """Every service has read what is there in the end, whatever was asked for when the tool was killed."""
    with pytest.MonkeyPatch.context() as patch:
        machine = Machine(tmp_path_factory.mktemp("host"), patch)
        before = machine.files()
        for at in (first, second):
            machine.kill_at = at
            try:
                machine.apply(**ALL)
            except Killed:
                pass
        machine.kill_at = None
        machine.apply(**({} if gone else ALL))
        assert machine.apply(**({} if gone else ALL)) == []
        if gone:
            assert machine.files() == before
        else:
            assert set(json.loads((machine.root / "state/site-settings.json").read_text())) == {
                "trust store",
                "containerd",
                "systemd-resolved",
                "systemd-timesyncd",
                "proxy",
            }


@pytest.mark.parametrize(
    ("spoil", "asked", "said"),
    [
        (lambda it: it.programs.clear(), "authorities", "no program that adds CAs"),
        (lambda it: it.active.discard("systemd-resolved.service"), "nameservers", "are not those of systemd-resolved"),
        (lambda it: it.put("etc/resolv.conf", "nameserver 192.0.2.1\n"), "nameservers", "are not those of systemd-resolved"),
        (lambda it: it.active.discard("systemd-timesyncd.service"), "timeServers", "neither systemd-timesyncd nor a chrony"),
    ],
)
def test_what_a_host_cannot_take_is_refused_before_anything_is_changed(machine: Machine, spoil: object, asked: str, said: str) -> None:
    assert callable(spoil)
    spoil(machine)
    before = machine.files()
    with pytest.raises(InvalidInput, match="nothing was changed") as refused:
        machine.apply(**ALL)
    assert said in refused.value.details
    assert machine.files() == before
    rest = {name: value for name, value in ALL.items() if name != asked}
    machine.apply(**rest)


def test_chrony_gets_sources_of_its_own_where_it_reads_them(machine: Machine) -> None:
    machine.active = {"chrony.service"}
    machine.put("etc/chrony/chrony.conf", f"pool pool.example iburst\nsourcedir {machine.root}/etc/chrony/sources.d\n")
    assert machine.apply(timeServers=["ntp.test"]) == ["chronyc reload sources"]
    assert machine.files()["etc/chrony/sources.d/ckp-site.sources"].endswith("server ntp.test iburst\n")
    assert machine.apply() == ["chronyc reload sources"]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"version": 2}',
        '{"version": 1, "more": 1}',
        '{"version": 1, "authorities": ["x"]}',
        '{"version": 1, "nameservers": ["a b"]}',
        '{"version": 1, "timeServers": ["ntp\\nserver x"]}',
        '{"version": 1, "keyring": "!"}',
        '{"version": 1, "httpsProxy": "http://user:secret@proxy.test:3128"}',
        '{"version": 1, "noProxy": "a\\"b"}',
    ],
)
def test_malformed_settings_change_nothing_and_are_not_quoted(machine: Machine, text: str) -> None:
    before = machine.files()
    with pytest.raises(InvalidInput) as refused:
        site_settings.apply(text, state_dir=str(machine.root / "state"))
    assert "secret" not in refused.value.render()
    assert machine.files() == before


# -- the proxy


def test_the_tool_takes_the_sites_proxy_unless_the_owner_has_set_one(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.apply(**PROXY)
    proxies.adopt()
    assert str(proxies.proxy_for("example.org", 443)) == "http://proxy.test:3128"
    assert proxies.proxy_for("192.0.2.7", 5000) is None and proxies.proxy_for("compass.svc", 443) is None
    monkeypatch.setenv("HTTPS_PROXY", "http://owners.test:8080")
    proxies.adopt()
    assert str(proxies.proxy_for("example.org", 443)) == "http://owners.test:8080"


def test_containerd_of_a_management_host_follows_a_changed_proxy(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VALUES", "CONTAINERD_DROP_IN", "KUBELET_DROP_IN"):
        monkeypatch.setattr(runtime_proxy, name, f"{machine.root}{getattr(runtime_proxy, name)}")
    values, kubelet = Path(runtime_proxy.VALUES), Path(runtime_proxy.KUBELET_DROP_IN)
    journal = Journal(str(tmp_path / "state/standalone.json"), str(tmp_path / "state/standalone-saved"))
    journal.member = Member(STANDALONE, settings={"pod_cidr": "10.1.0.0/16", "service_cidr": "10.2.0.0/16"})
    journal.done = ["containerd"]
    text = json.dumps({"version": 1, **PROXY})
    site_settings.apply(text, state_dir=str(tmp_path / "state"), journal=journal)
    assert 'HTTPS_PROXY="http://proxy.test:3128"' in values.read_text()
    assert "192.0.2.0/24" in values.read_text() and "10.1.0.0/16,10.2.0.0/16" in values.read_text()
    assert "UnsetEnvironment=HTTPS_PROXY" in kubelet.read_text(), "the kubelet, kubeadm and what they start have none"
    assert machine.calls[-1] == "systemctl restart containerd"
    machine.calls = []
    site_settings.apply(text, state_dir=str(tmp_path / "state"), journal=journal)
    assert machine.calls == []
    site_settings.apply("", state_dir=str(tmp_path / "state"), journal=journal)
    assert values.read_text() == "" and machine.calls[-1] == "systemctl restart containerd"
    assert not {"HTTPS_PROXY", "HTTP_PROXY"} & set(os.environ)


# -- trusted keys


def test_the_sites_keys_count_instead_of_those_of_the_package(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, other = signing_key(tmp_path / "ours"), signing_key(tmp_path / "other", "another's")
    machine.apply(keyring=base64.b64encode(ours.keyring.read_bytes()).decode())
    monkeypatch.setattr(config, "SITE_KEYRING", f"{machine.root}{SITE_KEYRING}")
    (tmp_path / "ca.pem").write_text(CAS[0])
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"hub": "https://h:8443", "channel": "wss://h:9443/v1/agent", "ca": str(tmp_path / "ca.pem")}))
    keyring = config.load(str(file)).keyring
    assert keyring == f"{machine.root}{SITE_KEYRING}"
    check_signature(iter([b"x"]), ours.sign(b"x"), keyring, "a bundle")
    with pytest.raises(Exception, match="not"):
        check_signature(iter([b"x"]), other.sign(b"x"), keyring, "a bundle")
    machine.apply()
    assert config.load(str(file)).keyring == config.DEFAULT_KEYRING
