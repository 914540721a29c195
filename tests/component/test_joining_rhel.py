"""The line by which a machine of RHEL's kind becomes a host: the real dnf and rpm, against the hub's downloads over TLS.

They are Debian's: dnf 4.14 as RHEL 9 has it, and an rpm that is one version younger. A RHEL has not been tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ckp.clients.signing.openpgp import SigningKey
from ckp.distribution.keys.signing import KeyRing
from ckp.distribution.packages.rpm import sign_rpm
from ckp.kits.processes import run
from ckp.rules import joining
from ckp.site.settings.model import HostSettings
from ckp.verify.keyrings import armoured
from tests.simulators.proxy import ProxySimulator, running
from tests.support.rhel_root import OS_RELEASE, RPM_DATABASE, rhel_root
from tests.support.signing_keys import signing_key
from tests.support.small_packages import small_package
from tests.worlds.joining_hub import HUB, KEY, LOOPBACK, PORT, VERSION, Hub, agent, joining_hub
from tests.worlds.tls import make_authority

pytestmark = [pytest.mark.component, pytest.mark.root("changes its root")]

OWNERS = "/srv/owner"
REPOSITORY = "packages/rpm/el9/agent/x86_64"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """The machine's owner has a repository with what the agent needs."""
    machine = rhel_root(tmp_path / "machine")
    with joining_hub(tmp_path, machine, "rpm") as made:
        owners(made, "openssl", "3.0.7-1")
        yield made


def owners(hub: Hub, name: str, version: str, *, gpgcheck: int = 0) -> None:
    """A package in the repository of the machine's owner, who does not sign."""
    folder = hub.machine.folder / "upper" / OWNERS.lstrip("/")
    small_package(folder, None, name, version, "rpm")
    run(["createrepo_c", "-q", folder], timeout=60)
    hub.machine.write("/etc/yum.repos.d/owner.repo", f"[owner]\nname=owner\nbaseurl=file://{OWNERS}\ngpgcheck={gpgcheck}\n")


def installed(hub: Hub) -> list[str]:
    return sorted(hub.machine.sh("rpm -qa --qf '%{NAME} %{VERSION}-%{RELEASE}\\n'").stdout.splitlines())


def index(hub: Hub) -> Path:
    return hub.packages.parent / REPOSITORY / "repodata/repomd.xml"


def package(hub: Hub) -> Path:
    return next((hub.packages.parent / REPOSITORY / "Packages").glob("*.rpm"))


def published(hub: Hub, content: bytes) -> None:
    """As if our key had signed an index that names a package which our publication refuses."""
    package(hub).write_bytes(content)
    folder = hub.packages.parent / REPOSITORY
    run(["createrepo_c", "--quiet", "--no-database", "--general-compress-type", "gz", folder], timeout=60)
    (folder / "repodata/repomd.xml.asc").write_bytes(hub.signer.sign(index(hub).read_bytes(), armor=True))


def test_the_agent_is_verified_installed_and_set_up(hub: Hub) -> None:
    done = hub.join()
    assert "[5/5]" in done.stdout, done.stdout + done.stderr
    assert "no request has reached the hub within 2 s" in done.stderr, "nobody enrols here"
    machine = hub.machine
    assert installed(hub) == [f"ckp-agent {VERSION}", "openssl 3.0.7-1"], "what it needs comes from the owner's repository, and no key is put into the database"
    assert machine.sh("stat -c '%a %U' /etc/ckp-agent /etc/ckp-agent/psk /etc/ckp-agent/ca.pem").stdout.split("\n")[:3] == ["750 root", "600 root", "644 root"]
    assert machine.text("/etc/ckp-agent/psk") == KEY
    assert f'"hub": "https://{HUB}:8443"' in machine.text("/etc/ckp-agent/config.json")
    assert "restart ckp-agent" in machine.asked()
    assert KEY not in done.stdout + done.stderr
    assert machine.sh("ls /tmp").stdout == "", "the folder of the run is gone"
    assert machine.sh("ls /etc/yum.repos.d /etc/pki/rpm-gpg 2>/dev/null || true").stdout.split() == ["/etc/yum.repos.d:", "owner.repo"], "no repository is left"
    assert machine.sh("ls /var/cache/dnf").stdout.count("ckp") == 0


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
    assert installed(hub)[0] == f"ckp-agent {VERSION}"


def test_the_same_line_again_goes_on_after_a_kill(hub: Hub) -> None:
    hub.join()
    hub.machine.sh(": >/etc/ckp-agent/config.json; echo x >/etc/ckp-agent/psk.abcdef")
    again = hub.join()
    assert "[5/5]" in again.stdout, again.stderr
    assert hub.machine.sh("ls -A /etc/ckp-agent").stdout.split() == ["ca.pem", "config.json", "psk"], "what a killed run left is gone"


def test_an_enrolled_machine_is_left_alone(hub: Hub) -> None:
    hub.join()
    hub.machine.write("/var/lib/ckp-agent/cert.pem", "a certificate")
    hub.machine.sh("touch /before")
    before = hub.state()
    done = hub.join()
    assert (done.code, "enrolled already" in done.stdout) == (0, True), done.stderr
    assert hub.state() == before
    hub.machine.sh("rpm -e ckp-agent")
    done = hub.join()
    assert done.code == 1 and "the package ckp-agent has been removed" in done.stderr and "dnf remove ckp-agent; rm -rf /etc/ckp-agent" in done.stderr


def test_what_the_site_trusts_counts_and_not_what_the_packages_were_made_with(hub: Hub, tmp_path: Path) -> None:
    hub.machine.write("/usr/local/sbin/ckp-agent", "#!/bin/sh\n", 0o755)  # whose own tests say what it makes of the settings
    hub.give(HostSettings(signing_key(tmp_path / "stranger", "a stranger's").keyring.read_bytes()))
    assert "the hub's repository was not verified; nothing was changed" in hub.join().stderr
    hub.give(HostSettings(hub.signer.keyring.read_bytes()))
    assert "[5/5]" in (done := hub.join()).stdout, done.stderr


def test_a_key_that_the_site_has_revoked_does_not_count(hub: Hub) -> None:
    """rpm heeds no revocation: the hub has to leave such keys out."""
    first = hub.signer.subkey
    KeyRing(hub.signer).rotate()
    KeyRing(hub.signer).revoke(first, reason="compromised")
    hub.give(HostSettings(hub.signer.keyring.read_bytes()))
    done = hub.join()
    assert done.code == 1 and "was not verified" in done.stderr, done.stderr
    assert installed(hub) == []


def test_a_newer_agent_is_not_replaced(hub: Hub, tmp_path: Path) -> None:
    newer = small_package(tmp_path / "newer", None, "ckp-agent", "0.10.0+1-ckp", "rpm")
    (hub.machine.folder / "upper/newer.rpm").write_bytes(newer.path.read_bytes())
    hub.machine.sh("rpm -i --nosignature /newer.rpm; rm /newer.rpm; touch /before")
    before = hub.state()
    done = hub.join()
    assert done.code == 1 and f"this machine has ckp-agent 0.10.0+1-ckp, which is newer than the site's {VERSION}" in done.stderr, done.stderr
    assert hub.state() == before


def test_an_older_agent_is_upgraded(hub: Hub, tmp_path: Path) -> None:
    older = small_package(tmp_path / "older", None, "ckp-agent", "0.1.9+9-ckp", "rpm")
    (hub.machine.folder / "upper/older.rpm").write_bytes(older.path.read_bytes())
    hub.machine.sh("rpm -i --nosignature /older.rpm; rm /older.rpm")
    assert "[5/5]" in (done := hub.join()).stdout, done.stderr
    assert installed(hub)[0] == f"ckp-agent {VERSION}"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('VERSION_ID="9.4"', 'VERSION_ID="8.10"'), "the hub has packages for RHEL 9 and its rebuilds, and this is Rebuilt Linux 9.4 (Test)"),
        (('ID_LIKE="rhel centos fedora"', 'ID_LIKE="fedora"'), "the hub has packages for Debian, Ubuntu and RHEL 9, and this is Rebuilt Linux"),
    ],
    ids=["RHEL 8", "Fedora"],
)
def test_a_system_that_the_hub_has_no_packages_for_is_named(hub: Hub, change: tuple[str, str], said: str) -> None:
    hub.machine.write("/etc/os-release", OS_RELEASE.replace(*change))
    done = hub.join()
    assert done.code == 1 and said in done.stderr, done.stderr


def of_another_site(hub: Hub) -> str:
    return hub.line(make_authority("site"))


def with_another_keys_index(hub: Hub) -> str:
    stranger = signing_key(hub.packages.parent / "stranger", "a stranger's")
    index(hub).with_name("repomd.xml.asc").write_bytes(stranger.sign(index(hub).read_bytes(), armor=True))
    return hub.line()


def with_an_unsigned_index(hub: Hub) -> str:
    index(hub).with_name("repomd.xml.asc").unlink()
    return hub.line()


def with_a_changed_index(hub: Hub) -> str:
    index(hub).write_text(index(hub).read_text().replace("<revision>", "<revision>1"))
    return hub.line()


def with_a_changed_package(hub: Hub) -> str:
    data = package(hub).read_bytes()
    package(hub).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    return hub.line()


def with_an_unsigned_package(hub: Hub) -> str:
    published(hub, agent(hub.packages.parent / "unsigned", None, kind="rpm").path.read_bytes())
    return hub.line()


def signed_by(hub: Hub, key: SigningKey) -> bytes:
    return sign_rpm(agent(hub.packages.parent / "unsigned", None, kind="rpm").path.read_bytes(), key)


def with_another_keys_package(hub: Hub) -> str:
    published(hub, signed_by(hub, signing_key(hub.packages.parent / "stranger", "a stranger's")))
    return hub.line()


def with_another_keys_package_which_the_machine_trusts(hub: Hub) -> str:
    """As it trusts the keys of its distribution."""
    line = with_another_keys_package(hub)
    hub.machine.write("/stranger.asc", armoured((hub.packages.parent / "stranger/trusted.gpg").read_bytes()).decode())
    hub.machine.sh("rpmkeys --import /stranger.asc; rm /stranger.asc")
    return line


def with_another_maintainer(hub: Hub) -> str:
    other = agent(hub.packages.parent / "other", None, "Coredge.io.example <support@coredge.io>", kind="rpm").path
    published(hub, sign_rpm(other.read_bytes(), hub.signer))
    return hub.line()


def with_another_package_of_ours(hub: Hub) -> str:
    """In the agent's place, by an index that our key has signed: dnf does not find an agent in it."""
    published(hub, small_package(hub.packages.parent / "kubelet", hub.signer, "kubelet", VERSION, "rpm").path.read_bytes())
    return hub.line()


def with_no_packages(hub: Hub) -> str:
    (hub.packages / "keys/ckp.asc").unlink()
    return hub.line()


UNVERIFIED = "the hub's repository was not verified; nothing was changed"
UNSIGNED = "the agent's package was not verified: no signature by a key of the site; nothing was changed"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (of_another_site, "did NOT match"),
        (with_another_keys_index, UNVERIFIED),
        (with_an_unsigned_index, UNVERIFIED),
        (with_a_changed_index, UNVERIFIED),
        (with_a_changed_package, "its SHA-256 is not in the hub's index; nothing was changed"),
        (with_an_unsigned_package, UNSIGNED),
        (with_another_keys_package, UNSIGNED),
        (with_another_keys_package_which_the_machine_trusts, UNSIGNED),
        (with_another_maintainer, "the maintainer of ckp-agent is Coredge.io.example"),
        (with_another_package_of_ours, "the hub's repository has no ckp-agent; nothing was changed"),
        (with_no_packages, "/packages/keys/ckp.asc could not be fetched"),
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


def lax(hub: Hub) -> None:
    """The machine's owner allows everything."""
    hub.machine.write("/etc/dnf/dnf.conf", "[main]\ngpgcheck=0\nrepo_gpgcheck=0\nlocalpkg_gpgcheck=0\nsslverify=0\nskip_if_unavailable=1\n")
    hub.machine.write("/etc/rpm/macros", f"%_dbpath {RPM_DATABASE}\n%_pkgverify_level none\n%_pkgverify_flags 0xc0c00\n")


@pytest.mark.parametrize(
    ("spoil", "said"), [(with_another_keys_index, UNVERIFIED), (with_an_unsigned_package, UNSIGNED), (with_another_keys_package, UNSIGNED)]
)
def test_an_owner_who_allows_everything_does_not_weaken_it(hub: Hub, spoil: Callable[[Hub], str], said: str) -> None:
    lax(hub)
    spoil(hub)
    assert said in hub.join().stderr
    assert installed(hub) == []


def test_an_agent_in_the_owners_repositories_does_not_take_its_place(hub: Hub) -> None:
    owners(hub, "ckp-agent", "9.0.0-1")
    assert "[5/5]" in (done := hub.join()).stdout, done.stderr
    assert installed(hub)[0] == f"ckp-agent {VERSION}"


def test_what_it_needs_is_checked_as_the_owner_has_it(hub: Hub) -> None:
    owners(hub, "openssl", "3.0.7-1", gpgcheck=1)
    done = hub.join()
    assert done.code == 1 and "dnf could not install ckp-agent" in done.stderr, done.stdout + done.stderr
    assert installed(hub) == []


def test_the_owner_who_wants_local_files_signed_is_not_in_the_way(hub: Hub) -> None:
    """Its signature has been verified, by keys that the machine's database does not get."""
    hub.machine.write("/etc/dnf/dnf.conf", "[main]\ngpgcheck=1\nlocalpkg_gpgcheck=1\n")
    assert "[5/5]" in (done := hub.join()).stdout, done.stderr


def test_an_owner_who_excludes_the_agent_is_told_so(hub: Hub) -> None:
    hub.machine.write("/etc/dnf/dnf.conf", "[main]\nexcludepkgs=ckp-agent\n")
    done = hub.join()
    assert done.code == 1 and "dnf" in done.stderr and "ckp-agent" in done.stderr
    assert not hub.machine.exists("/etc/ckp-agent/psk")
