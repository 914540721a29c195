"""What a site gives to its hosts, on a server: a private CA, trusted keys and a proxy that are there for containerd, and gone with the site."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ckp.clients.signing.openpgp import SigningKey
from ckp.distribution.packages.agent import write_zipapp
from ckp.kits import paths
from ckp.lab.lab import HostSpec, Lab, LabHost, LabNetwork
from ckp.site.lab import ADDON_VALUES, HOST_SETTINGS
from ckp.site.settings.model import HostSettings
from ckp.site.spec.model import NetworkSettings, Proxy, Trust
from ckp.site.spec.read import dump_site, parse_site
from tests.e2e.test_3_site import snapshot
from tests.simulators.proxy import ProxySimulator, running
from tests.support.site_place import Place
from tests.worlds.tls import make_authority

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.root("boots whole hosts")]

NETWORK = LabNetwork(bridge="ckpnet0", gateway="10.177.103.1")
SERVER = HostSpec("settings-1", "10.177.103.11")
NAME = "hamburg"
OUTSIDE = "registry.outside.test:443"


@dataclass
class Given:
    """The place, and the proxy at the bridge."""

    place: Place
    proxy: ProxySimulator
    before: dict[str, str]

    @property
    def host(self) -> LabHost:
        return self.place.hosts[SERVER.name]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Given]:
    folder = tmp_path_factory.mktemp("settings")
    lab = Lab(paths.state() / "lab-net", NETWORK)
    lab.down()
    try:
        lab.ensure_base(print)
        host = lab.ensure_host(SERVER)
        ssh = lab.ssh_settings(SERVER.name)
        (folder / "known_hosts").write_text(ssh.known_hosts_file.read_text())
        (folder / "key").write_bytes(ssh.identity_file.read_bytes())
        (folder / "key").chmod(0o600)
        (folder / "ca.pem").write_text(make_authority("inside").pem)
        place, proxy = Place(lab, {SERVER.name: host}, folder), ProxySimulator(status="403 Forbidden")
        with running(proxy, NETWORK.gateway) as url:
            describe(place, url)
            yield Given(place, proxy, snapshot(host))
    finally:
        lab.down()


def describe(place: Place, proxy: str) -> None:
    options = ("--name", NAME, "--host", f"{SERVER.name}={SERVER.address}", "--user", "root")
    place.ckp("site", "init", *options, "--network", "10.177.103.0/24", "--pool", "10.177.103.100-10.177.103.120")
    spec = parse_site(place.file.read_bytes(), place.file)
    [host] = spec.management.hosts or ()
    assert host.ssh is not None
    way = {"host": SERVER.address, "identity_file": place.folder / "key", "known_hosts_file": place.folder / "known_hosts"}
    management = spec.management.model_copy(update={"hosts": (host.model_copy(update={"ssh": host.ssh.model_copy(update=way)}),)})
    network = NetworkSettings(proxy=Proxy(http=proxy, https=proxy), ca_files=(place.folder / "ca.pem",))
    trust = Trust(fingerprints=(SigningKey(paths.keys()).fingerprint,))
    parts = {"management": management, "network": network, "trust": trust, "host_settings": HOST_SETTINGS, "addon_values": ADDON_VALUES}
    place.file.write_text(dump_site(spec.model_copy(update=parts)))


def read(host: LabHost, path: str) -> str:
    return host.pull(path).decode()


def store(host: LabHost) -> str:
    """Names of CKP's CAs among those that programs of the host trust."""
    return host.run(["sh", "-c", "ls /etc/ssl/certs | grep ckp- || true"], timeout=20).stdout


def test_the_host_tool_alone_brings_them_and_takes_them_away(given: Given, tmp_path: Path) -> None:
    """With the real trust store, without a cluster."""
    host = given.host
    write_zipapp(tmp_path / "ckp-agent", [])
    host.push(tmp_path / "ckp-agent", "/run/ckp-agent", mode=0o755)
    ca = make_authority("of the tool")
    settings = HostSettings(authorities=(ca.pem,), https_proxy=f"http://{given.proxy.address}", no_proxy=("10.177.103.0/24",))
    first = host.run(["/run/ckp-agent", "settings", "apply", "--file", "-"], stdin=settings.text(), timeout=120).stdout
    assert "the trust store was made again" in first and store(host).count("ckp-") == 1
    assert ca.pem.strip() in read(host, "/etc/ssl/certs/ca-certificates.crt")
    assert host.run(["/run/ckp-agent", "settings", "apply", "--file", "-"], stdin=settings.text(), timeout=120).stdout == ""
    refused = host.run(["/run/ckp-agent", "settings", "check", "--file", "-"], stdin=HostSettings(nameservers=("192.0.2.53",)).text(), timeout=60, check=False)
    assert refused.code == 2 and "are not those of systemd-resolved" in refused.stdout
    host.run(["/run/ckp-agent", "settings", "remove"], timeout=120)
    after = snapshot(host)
    left = sorted(path for path in {*given.before, *after} if given.before.get(path) != after.get(path))
    assert left == ["/etc/ckp-agent", "/var/lib/ckp-agent"], "folders that come with the package, and go with it"
    host.run(["rmdir", *left], timeout=20)


def test_a_time_server_that_nothing_there_asks_is_refused_and_nothing_changes(given: Given) -> None:
    """A container's clock is its machine's: systemd-timesyncd does not run in one."""
    other = given.place.folder / "time.yaml"
    spec = parse_site(given.place.file.read_bytes(), given.place.file)
    other.write_text(dump_site(spec.model_copy(update={"network": spec.network.model_copy(update={"time_servers": (NETWORK.gateway,)})})))
    refused = given.place.ckp("site", "apply", "-f", str(other), "--profile", "lab", check=False)
    assert refused.code == 2 and "neither systemd-timesyncd nor a chrony" in refused.stderr and "nothing was changed" in refused.stderr
    assert snapshot(given.host) == given.before


def test_a_site_brings_them_before_the_cluster_is_made(given: Given) -> None:
    done = given.place.ckp("site", "apply", "-f", str(given.place.file), "--profile", "lab", timeout=1500)
    print(done.stdout)
    assert f"The site {NAME} is up." in done.stdout
    assert store(given.host).count("ckp-") == 1
    environment = read(given.host, "/etc/containerd/ckp-proxy.env")
    assert given.proxy.address in environment and "10.177.103.0/24" in environment
    manifest = read(given.host, "/etc/kubernetes/manifests/kube-apiserver.yaml")
    assert "PROXY" not in manifest.upper().replace("KUBE-PROXY", "").replace("PROXY-CLIENT", "").replace("FRONT-PROXY", "").replace("REQUESTHEADER", "")
    assert not [target for target in given.proxy.asked if SERVER.address in target or "10.177.103." in target], "all that is the site's own is reached directly"


def test_containerd_asks_the_proxy_for_what_is_outside(given: Given) -> None:
    before = len(given.proxy.asked)
    pulled = given.host.run(["crictl", "pull", f"{OUTSIDE}/some/image:1"], timeout=120, check=False)
    assert pulled.code != 0 and OUTSIDE in given.proxy.asked[before:], pulled.stderr


def test_only_what_changes_is_restarted(given: Given) -> None:
    started = ["systemctl", "show", "-p", "ActiveEnterTimestampMonotonic", "kubelet", "containerd"]
    was = given.host.run(started, timeout=30).stdout
    again = given.place.ckp("site", "apply", "-f", str(given.place.file), "--profile", "lab", timeout=900)
    assert given.host.run(started, timeout=30).stdout == was, again.stdout
    spec = parse_site(given.place.file.read_bytes(), given.place.file)
    given.place.file.write_text(dump_site(spec.model_copy(update={"network": spec.network.model_copy(update={"ca_files": ()})})))
    planned = given.place.ckp("site", "plan", "-f", str(given.place.file), "--profile", "lab", "-o", "json", check=False)
    row = {item["part"]: item for item in json.loads(planned.stdout)["items"]}["private CAs"]
    assert row["action"] == "change" and f"containerd restarts on {SERVER.name}" in row["interrupts"]
    given.place.ckp("site", "apply", "-f", str(given.place.file), "--profile", "lab", timeout=900)
    after = given.host.run(started, timeout=30).stdout
    assert store(given.host) == "" and was.split("\n\n")[0] == after.split("\n\n")[0] and was != after, "containerd alone"


def test_removing_the_site_takes_them_away(given: Given) -> None:
    done = given.place.ckp("site", "remove", "-f", str(given.place.file), "--confirm", NAME, timeout=900)
    print(done.stdout)
    after = snapshot(given.host)
    differ = sorted(path for path in {*given.before, *after} if given.before.get(path) != after.get(path))
    assert differ == [], [(given.before.get(path), after.get(path)) for path in differ[:40]]
