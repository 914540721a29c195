"""The line by which a machine becomes a host, in a Debian 12 with its own apt and curl, against the hub's downloads over TLS."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from ckp.distribution.repositories.agents import agent_repositories
from ckp.hub.downloads import Downloads
from ckp.kits import paths
from ckp.rules import joining
from ckp.site.settings.model import HostSettings
from tests.simulators.proxy import ProxySimulator, running
from tests.support.debian_root import debian_root
from tests.support.signing_keys import signing_key
from tests.support.small_packages import small_package
from tests.worlds.joining_hub import HUB, KEY, LOOPBACK, PORT, Hub, agent, joining_hub, serving
from tests.worlds.tls import Authority, make_authority

pytestmark = [pytest.mark.component, pytest.mark.root("changes its root")]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with joining_hub(tmp_path, debian_root(tmp_path / "machine")) as made:
        yield made


def test_the_agent_is_verified_installed_and_set_up(hub: Hub) -> None:
    done = hub.join()
    assert "[5/5]" in done.stdout, done.stderr
    assert "no request has reached the hub within 2 s" in done.stderr, "nobody enrols here"
    machine = hub.machine
    assert machine.versions("ckp-agent") == {"ckp-agent": "0.2.0+1-ckp"}
    assert machine.sh("stat -c '%a %U' /etc/ckp-agent /etc/ckp-agent/psk /etc/ckp-agent/ca.pem").stdout.split("\n")[:3] == ["750 root", "600 root", "644 root"]
    assert machine.text("/etc/ckp-agent/psk") == KEY
    assert f'"hub": "https://{HUB}:8443"' in machine.text("/etc/ckp-agent/config.json") and '"project": "edge"' in machine.text("/etc/ckp-agent/config.json")
    assert "restart ckp-agent" in machine.asked()
    assert KEY not in done.stdout + done.stderr
    assert machine.sh("ls /tmp").stdout == "", "the folder of the run is gone"


def test_no_source_is_left_and_a_purge_takes_away_what_the_line_has_written(hub: Hub) -> None:
    """The hub upgrades agents, with a way back: the owner's `apt-get upgrade` is not to do it. The package here is a small one, so its script is run apart."""
    listing = "find /etc/apt /usr/share/keyrings -type f | sort; ls -A /etc/systemd/system"
    before = hub.machine.sh(listing).stdout
    hub.machine.write("/etc/systemd/system/ckp-agent.service.d/ckp-site-proxy.conf", "")  # as after --proxy
    hub.join()
    hub.machine.sh("apt-get -y purge ckp-agent")
    hub.machine.write("/postrm", paths.data("packaging", "ckp-agent", "postrm.sh").read_text())
    hub.machine.sh("sh /postrm purge; rm /postrm")
    assert hub.machine.sh(listing).stdout == before


def test_a_machine_that_reaches_the_hub_by_a_proxy_only(hub: Hub) -> None:
    """The machine does not know the hub's name, and the proxy does: a step that went around it would fail."""
    hub.machine.write("/etc/hosts", "127.0.0.1 localhost\n")
    target = f"{HUB}:{PORT}"
    proxy = ProxySimulator(routes={target: f"{LOOPBACK}:{PORT}"})
    with running(proxy) as url:
        given = joining.Proxy(url, ".site.example")
        done = hub.join(joining.line(HUB, hub.ca.pem.encode(), "default", "edge", given).removeprefix("sudo "))
        assert "[5/5]" in done.stdout, done.stderr
        assert set(proxy.asked) == {target}
    unit = hub.machine.text("/etc/systemd/system/ckp-agent.service.d/ckp-site-proxy.conf")
    assert f"HTTPS_PROXY=http://{proxy.address} " in unit and "NO_PROXY=.site.example\n" in unit


def test_a_corrected_line_takes_back_the_proxy_of_the_one_before(hub: Hub) -> None:
    drop_in = "/etc/systemd/system/ckp-agent.service.d/ckp-site-proxy.conf"
    hub.machine.write(drop_in, "[Service]\n")
    hub.join()
    assert not hub.machine.exists(drop_in)


def test_the_same_line_again_goes_on_after_a_kill(hub: Hub) -> None:
    hub.join()
    shutil.copy(next(hub.packages.glob("apt/pool/*/*/*.deb")), hub.machine.folder / "upper/agent.deb")
    hub.machine.sh("dpkg --unpack /agent.deb; rm /agent.deb; : >/etc/ckp-agent/config.json; echo x >/etc/ckp-agent/psk.abcdef")
    again = hub.join(key=f"{KEY}\r")
    assert "[5/5]" in again.stdout, again.stderr
    assert hub.machine.sh("ls -A /etc/ckp-agent").stdout.split() == ["ca.pem", "config.json", "psk"], "what a killed run left is gone"
    assert hub.machine.text("/etc/ckp-agent/psk") == KEY


def enrolled(hub: Hub) -> None:
    hub.join()
    hub.machine.write("/var/lib/ckp-agent/cert.pem", "a certificate")


def test_an_enrolled_machine_is_left_alone(hub: Hub) -> None:
    enrolled(hub)
    hub.machine.sh("touch /before")
    before = hub.state()
    done = hub.join()
    assert (done.code, "enrolled already" in done.stdout) == (0, True), done.stderr
    assert hub.state() == before


def by_another_site(hub: Hub) -> None:
    hub.machine.write("/etc/ckp-agent/ca.pem", make_authority("site").pem)


def into_another_project(hub: Hub) -> None:
    text = hub.machine.text("/etc/ckp-agent/config.json")
    hub.machine.write("/etc/ckp-agent/config.json", text.replace('"project": "edge"', '"project": "core"'))


def without_its_package(hub: Hub) -> None:
    hub.machine.sh("dpkg --remove ckp-agent")
    hub.machine.write("/var/lib/ckp-agent/cert.pem", "a certificate")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (by_another_site, "has the identity of another site"),
        (into_another_project, "is a host of another project than default/edge"),
        (without_its_package, "the package ckp-agent has been removed"),
    ],
)
def test_an_identity_that_is_not_of_this_site_and_project_is_no_success(hub: Hub, change: Callable[[Hub], None], said: str) -> None:
    enrolled(hub)
    change(hub)
    done = hub.join()
    assert done.code == 1 and said in done.stderr, done.stdout + done.stderr


TOOL = """#!/bin/sh
# Before the one of the small package: the agent, whose own tests say what it makes of the settings.
case "$1 $2" in
"settings apply") cp "$4" /etc/ckp-agent/site.json; grep -q '"nameservers"' "$4" && { echo "error: cannot" >&2; exit 2; }; exit 0 ;;
"settings remove") rm /etc/ckp-agent/site.json ;;
esac
"""


def giving(hub: Hub, settings: HostSettings) -> None:
    hub.give(settings)
    hub.machine.write("/usr/local/sbin/ckp-agent", TOOL)
    hub.machine.sh("chmod 755 /usr/local/sbin/ckp-agent")


def test_a_machine_gets_what_the_site_gives_to_its_hosts(hub: Hub) -> None:
    settings = HostSettings(hub.signer.keyring.read_bytes(), https_proxy="http://proxy.test:3128", no_proxy=("192.0.2.0/24", ".svc"))
    giving(hub, settings)
    assert "[5/5]" in (done := hub.join()).stdout, done.stderr
    assert hub.machine.text("/etc/ckp-agent/site.json") == settings.text()
    assert json.loads(hub.machine.text("/etc/ckp-agent/config.json"))["keyring"] == "/etc/ckp-agent/trusted.gpg", "never those of the package instead"
    giving(hub, HostSettings())
    hub.join()
    assert not hub.machine.exists("/etc/ckp-agent/site.json") and "keyring" not in json.loads(hub.machine.text("/etc/ckp-agent/config.json"))


def test_an_agent_whose_key_the_site_does_not_name_changes_nothing(hub: Hub, tmp_path: Path) -> None:
    giving(hub, HostSettings(signing_key(tmp_path / "stranger", "a stranger's").keyring.read_bytes()))
    hub.machine.sh("touch /before")
    before = hub.state()
    done = hub.join()
    assert done.code != 0 and "the hub's repository was not verified; nothing was changed" in done.stderr, done.stdout + done.stderr
    assert hub.state() == before


def test_private_cas_are_refused_where_nothing_takes_them(hub: Hub) -> None:
    giving(hub, HostSettings(authorities=(hub.ca.pem,)))
    hub.machine.sh("rm -f /usr/sbin/update-ca-certificates; touch /before")
    before = hub.state()
    done = hub.join()
    assert done.code != 0 and "no program that adds them to its trust store; nothing was changed" in done.stderr, done.stdout + done.stderr
    assert hub.state() == before


def test_a_machine_that_cannot_take_the_settings_does_not_ask_for_enrolment(hub: Hub) -> None:
    giving(hub, HostSettings(nameservers=("192.0.2.53",)))
    done = hub.join()
    assert done.code != 0 and "can't take what the site gives to its hosts" in done.stderr
    assert not hub.machine.exists("/etc/ckp-agent/psk") and not hub.machine.exists("/etc/ckp-agent/config.json")


def test_a_newer_agent_is_not_replaced(hub: Hub, tmp_path: Path) -> None:
    newer = small_package(tmp_path / "newer", hub.signer, "ckp-agent", "0.9.0+1-ckp", "deb")
    hub.machine.install(newer.path)
    done = hub.join()
    assert done.code == 1 and "this machine has ckp-agent 0.9.0+1-ckp, which is newer than the site's 0.2.0+1-ckp" in done.stderr, done.stderr


def test_a_system_that_the_hub_has_no_packages_for_is_named(hub: Hub) -> None:
    hub.machine.sh("cp --remove-destination /usr/lib/os-release /etc/os-release; sed -i 's/bookworm/trixie/' /etc/os-release")
    done = hub.join()
    assert done.code == 1 and "the hub has no packages for" in done.stderr and "trixie" in done.stderr, done.stderr


def trusted_by_the_machine(hub: Hub, stranger: Authority) -> None:
    """As public CAs are, and those of proxies that look into TLS."""
    hub.machine.write("/etc/ssl/certs/stranger.pem", stranger.pem)
    hub.machine.sh("ln -s stranger.pem /etc/ssl/certs/$(openssl x509 -hash -noout -in /etc/ssl/certs/stranger.pem).0")


def waved_through_by_curlrc(hub: Hub, stranger: Authority) -> None:
    hub.machine.write("/root/.curlrc", "insecure\n")


@pytest.mark.parametrize("lenient", [trusted_by_the_machine, waved_through_by_curlrc])
def test_only_the_pinned_ca_is_trusted_whatever_the_machine_trusts(hub: Hub, tmp_path: Path, lenient: Callable[[Hub, Authority], None]) -> None:
    """A server in between has the real CA to show, which is public, and a certificate of a CA that the machine trusts."""
    stranger = make_authority("a stranger")
    lenient(hub, stranger)
    (tmp_path / "between").mkdir()
    app = Downloads(hub.packages, hub.packages.parent / "ca.pem", CollectorRegistry())
    with serving(app, tmp_path / "between", stranger, "127.0.0.88"):
        hub.machine.write("/etc/hosts", f"127.0.0.88 {HUB}\n127.0.0.1 localhost\n")
        done = hub.join()
    assert done.code != 0 and "[1/5]" not in done.stdout, "its script was not run"
    assert "curl: (60)" in done.stderr, done.stderr


def of_another_site(hub: Hub) -> str:
    return hub.line(make_authority("site"))


def with_another_keys_signature(hub: Hub) -> str:
    release = next(hub.packages.glob("apt/dists/bookworm/InRelease"))
    stranger = signing_key(hub.packages.parent / "stranger", "a stranger's")
    release.write_bytes(stranger.sign_cleartext((release.parent / "Release").read_bytes().removesuffix(b"\n")))
    return hub.line()


def with_a_changed_package(hub: Hub) -> str:
    package = next(hub.packages.glob("apt/pool/*/*/*.deb"))
    data = package.read_bytes()
    package.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    return hub.line()


def with_another_maintainer(hub: Hub) -> str:
    """As if our key had signed an index that names a package which our publication refuses."""
    package = next(hub.packages.glob("apt/pool/*/*/*.deb"))
    other = agent(hub.packages.parent / "other", None, "Coredge.io.example <support@coredge.io>").path
    before, after = package.read_bytes(), other.read_bytes()
    package.write_bytes(after)
    names = {("Size", str(len(before)), str(len(after))), ("SHA256", hashlib.sha256(before).hexdigest(), hashlib.sha256(after).hexdigest())}
    dists = hub.packages / "apt/dists/bookworm"
    index = dists / "agent/binary-amd64/Packages"
    old = index.read_bytes()
    text = old.decode()
    for name, was, now in names:
        text = text.replace(f"{name}: {was}\n", f"{name}: {now}\n")
    lines = [line for line in text.splitlines(keepends=True) if not line.startswith(("MD5sum:", "SHA1:", "SHA512:"))]
    new = "".join(lines).encode()
    index.write_bytes(new)
    release = (dists / "Release").read_text()
    kept = [line for line in release.splitlines(keepends=True) if not line.endswith(("Packages.gz\n", "Packages.xz\n"))]
    body = "".join(kept).replace(hashlib.sha256(old).hexdigest(), hashlib.sha256(new).hexdigest()).replace(f" {len(old)} ", f" {len(new)} ")
    body = body.replace("Acquire-By-Hash: yes\n", "")
    (dists / "InRelease").write_bytes(hub.signer.sign_cleartext(body.encode().removesuffix(b"\n")))
    return hub.line()


def with_no_packages(hub: Hub) -> str:
    (hub.packages / "keys/ckp.gpg").unlink()
    return hub.line()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (of_another_site, "did NOT match"),
        (with_another_keys_signature, "the hub's repository was not verified; nothing was changed"),
        (with_a_changed_package, "the agent's package was not verified; nothing was changed"),
        (with_another_maintainer, "the maintainer of ckp-agent is Coredge.io.example <support@coredge.io>, not Coredge.io; nothing was changed"),
        (with_no_packages, "/packages/keys/ckp.gpg could not be fetched"),
    ],
)
def test_what_is_not_verified_changes_nothing(hub: Hub, spoil: Callable[[Hub], str], said: str) -> None:
    line = spoil(hub)
    hub.machine.sh("touch /before")
    before = hub.state()
    done = hub.join(line)
    assert done.code != 0 and said in done.stderr, done.stdout + done.stderr
    assert hub.state() == before
    assert hub.machine.sh("ls /tmp").stdout == ""


def test_an_owner_who_allows_everything_does_not_weaken_it(hub: Hub) -> None:
    lax = ("Acquire::AllowInsecureRepositories", "Acquire::AllowWeakRepositories", "APT::Get::AllowUnauthenticated")
    hub.machine.write("/etc/apt/apt.conf.d/99lax", "".join(f'{name} "true";\n' for name in lax) + 'Acquire::https::Verify-Peer "false";\n')
    with_another_keys_signature(hub)
    assert "was not verified; nothing was changed" in hub.join().stderr


def test_a_machine_of_another_hub_is_left_alone(hub: Hub) -> None:
    hub.machine.write("/etc/ckp-agent/config.json", '{"hub": "https://192.0.2.1:8443"}')
    done = hub.join()
    assert (done.code, "set up for another hub: https://192.0.2.1:8443" in done.stderr) == (1, True)


@pytest.mark.parametrize(("key", "said"), [("", "no pre-shared key was given"), ("ckphk_$(reboot)", "what was given is not a pre-shared key")])
def test_no_key_is_an_error_before_anything_is_fetched(hub: Hub, key: str, said: str) -> None:
    hub.machine.write("/line", f"printf '%s\\n' '{key}' | {hub.line()}\n")
    done = hub.machine.sh("sh /line", check=False)
    assert said in done.stderr and "[2/5]" not in done.stdout


def test_equal_packages_and_keys_give_the_same_repositories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKP_CACHE", str(tmp_path / "cache"))
    key = signing_key(tmp_path / "keys")
    package = agent(tmp_path / "agent", key)
    made = agent_repositories([package], key)
    assert agent_repositories([package], key) == made
    assert not list(made.rglob(".*")) and (made / "apt/dists/noble/InRelease").exists()
