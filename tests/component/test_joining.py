"""The line by which a machine becomes a host, in a Debian 12 with its own apt and curl, against the hub's downloads over TLS."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from ckp.clients.signing.openpgp import SigningKey
from ckp.distribution.packages.pack import Package
from ckp.distribution.repositories.agents import agent_repositories
from ckp.distribution.repositories.publish import AGENT, Repositories
from ckp.hub.downloads import Downloads, EnrolmentPort
from ckp.kits import paths
from ckp.kits.processes import Finished
from ckp.rules import joining
from ckp.runtime.serving import Server, make_server
from tests.simulators.proxy import ProxySimulator, running
from tests.support.debian_root import Debian, debian_root
from tests.support.signing_keys import signing_key
from tests.support.small_packages import small_package
from tests.worlds.tls import Authority, make_authority, make_leaf, write_pair

pytestmark = [pytest.mark.component, pytest.mark.root("changes its root")]

HUB, LOOPBACK, PORT = "hub.joining.test", "127.0.0.87", joining.ENROLMENT_PORT
KEY = "ckphk_" + "k" * 43
CHANGED = ("/etc", "/usr", "/var/lib", "/root", "/opt")


@dataclass
class Hub:
    """A hub that serves, and a machine that is to join."""

    ca: Authority
    packages: Path
    signer: SigningKey
    machine: Debian

    def line(self, ca: Authority | None = None) -> str:
        return joining.line(HUB, (ca or self.ca).pem.encode(), "default", "edge").removeprefix("sudo ")

    def join(self, line: str = "", key: str = KEY) -> Finished:
        self.machine.write("/line", f"CKP_JOIN_WAIT_SECONDS=2; export CKP_JOIN_WAIT_SECONDS\n{joining.with_key(line or self.line(), key)}\n")
        return self.machine.sh("code=0; sh /line || code=$?; rm /line; exit $code", check=False)

    def state(self) -> str:
        """Every file that somebody could miss, with its time."""
        return self.machine.sh(f"find {' '.join(CHANGED)} -xdev -newer /before ! -type d | sort; dpkg -l | sha256sum").stdout


@contextmanager
def serving(app: object, folder: Path, ca: Authority) -> Iterator[None]:
    pem, key = make_leaf(ca, dns=(HUB,), server=True)
    cert, key_file = write_pair(folder, "hub", pem, key)
    server: Server = make_server(app, host=LOOPBACK, port=PORT, cert=cert, key=key_file)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(20)


def agent(folder: Path, key: SigningKey | None, maintainer: str = "Coredge.io <support@coredge.io>") -> Package:
    return small_package(folder, key, "ckp-agent", "0.2.0+1-ckp", "deb", depends=["python3", "openssl"], maintainer=maintainer)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    ca, signer = make_authority("site"), signing_key(tmp_path / "keys")
    (tmp_path / "ca.pem").write_text(f"a comment\n{ca.pem}")
    packages = tmp_path / "packages"
    packages.mkdir()
    Repositories(packages, signer).publish([agent(tmp_path / "agent", signer)], AGENT, print)
    machine = debian_root(tmp_path / "machine")
    machine.write("/etc/hosts", f"{LOOPBACK} {HUB}\n127.0.0.1 localhost\n")
    machine.sh("mkdir -p /var/lib/ckp-agent")
    registry = CollectorRegistry()

    async def nothing_else(scope: dict[str, object], receive: object, send: object) -> None:
        raise AssertionError("no enrolment here")

    with serving(EnrolmentPort(Downloads(packages, tmp_path / "ca.pem", registry), nothing_else), tmp_path, ca):
        yield Hub(ca, packages, signer, machine)


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


def test_a_purge_takes_away_what_the_line_has_written(hub: Hub) -> None:
    """The package's own part of it is told by its script alone: the package here is a small one."""
    ours = "-name '*ckp*' ! -path '/var/lib/apt/*' ! -path '/var/lib/dpkg/*'"
    listing = f"rmdir --ignore-fail-on-non-empty /var/lib/ckp-agent 2>/dev/null || true; find {' '.join(CHANGED)} -xdev {ours}"
    before = hub.machine.sh(listing).stdout
    hub.join()
    hub.machine.sh("apt-get -y purge ckp-agent")
    script = paths.data("packaging", "ckp-agent", "postrm.sh").read_text()
    hub.machine.write("/postrm", script)
    hub.machine.sh("sh /postrm purge; rm /postrm")
    assert hub.machine.sh(listing).stdout == before


def test_the_machine_follows_the_sites_repository_afterwards(hub: Hub, tmp_path: Path) -> None:
    """Files in an image all have one time, so an index that is newer must not be taken for the one that apt has."""
    hub.join()
    update = "apt-get -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts=/site update && apt-cache policy ckp-agent"
    hub.machine.sh("mkdir /site && cp /etc/apt/sources.list.d/ckp-site.sources /site/")
    assert "Candidate: 0.2.0+1-ckp" in hub.machine.sh(update).stdout
    newer = small_package(tmp_path / "newer", hub.signer, "ckp-agent", "0.2.0+2-ckp", "deb")
    Repositories(hub.packages, hub.signer).publish([newer], AGENT, print)
    for path in hub.packages.rglob("*"):
        os.utime(path, (0, 0))
    assert "Candidate: 0.2.0+2-ckp" in hub.machine.sh(update).stdout


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
        update = "apt-get -o Dir::Etc::SourceList=/dev/null update"
        before = len(proxy.asked)
        hub.machine.sh(update)
        assert len(proxy.asked) > before, "afterwards as well"
    unit = hub.machine.text("/etc/systemd/system/ckp-agent.service.d/proxy.conf")
    assert f"HTTPS_PROXY=http://{proxy.address} " in unit and "NO_PROXY=.site.example\n" in unit


def test_the_same_line_again_goes_on_and_an_enrolled_machine_is_left_alone(hub: Hub) -> None:
    hub.join()
    again = hub.join()
    assert "[5/5]" in again.stdout, again.stderr
    hub.machine.write("/var/lib/ckp-agent/cert.pem", "a certificate")
    hub.machine.sh("touch /before")
    before = hub.state()
    enrolled = hub.join()
    assert (enrolled.code, "enrolled already" in enrolled.stdout) == (0, True)
    assert hub.state() == before


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


@pytest.mark.parametrize("key", ["", "two words"])
def test_no_key_is_an_error_before_anything_is_fetched(hub: Hub, key: str) -> None:
    hub.machine.write("/line", f"printf '%s\\n' '{key}' | {hub.line()}\n")
    done = hub.machine.sh("sh /line", check=False)
    assert "no pre-shared key was given" in done.stderr and "[2/5]" not in done.stdout


def test_equal_packages_and_keys_give_the_same_repositories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKP_CACHE", str(tmp_path / "cache"))
    key = signing_key(tmp_path / "keys")
    package = agent(tmp_path / "agent", key)
    made = agent_repositories([package], key)
    assert agent_repositories([package], key) == made
    assert not list(made.rglob(".*")) and (made / "apt/dists/noble/InRelease").exists()
