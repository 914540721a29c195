"""A site that is not the lab: everything that is done at a site takes addresses, hosts and settings from its inventory."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from ckp.api.host_protocol import BundleRef
from ckp.api.platform import Releases
from ckp.catalog.models import BundleTarget
from ckp.clients.compass import Config, Session
from ckp.distribution.management import Management
from ckp.distribution.registries.server import RegistryServer
from ckp.distribution.release import Deliverable
from ckp.hostkit.errors import VerificationFailed
from ckp.kits.errors import CkpError, InvalidInput, TimedOut
from ckp.kits.processes import Finished
from ckp.lab.lab import Lab, LabNetwork
from ckp.site import enrol, install, publish
from ckp.site import lab as lab_site
from ckp.site.enrol import Enrolment
from ckp.site.install import Site
from ckp.site.inventory import HostGroup, Inventory, SiteNetwork, SiteRegistry
from ckp.site.publish import Published, releases_config
from ckp.site.registries.hosted import HostedRegistry
from tests.support.checkout import REPO
from tests.support.lab_sites import inventory_of

NETWORK = SiteNetwork(
    hosts="192.0.2.0/24",
    load_balancers=("192.0.2.200", "192.0.2.220"),
    compass="192.0.2.201",
    hub="192.0.2.202",
    management_pods="10.1.0.0/16",
    management_services="10.2.0.0/16",
)
DIGEST = "sha256:" + "a" * 64


@dataclass
class Host:
    """A host of the site that notes what is done to it. `answers`: first word of a command -> exit code and output."""

    name: str
    address: str
    answers: dict[str, tuple[int, str]] = field(default_factory=dict)
    ran: list[list[str]] = field(default_factory=list)
    files: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    joined: list[tuple[str, str]] = field(default_factory=list)
    """Shell commands with what they got by standard input."""

    def run(self, argv: Sequence[str | Path], *, timeout: float, stdin: str | bytes | None = None, check: bool = True, what: str = "") -> Finished:
        words = [str(word) for word in argv]
        self.ran.append(words)
        if words[:2] == ["sh", "-c"] and isinstance(stdin, str):
            self.joined.append((words[2], stdin))
        code, output = next((self.answers[key] for key in (" ".join(words), words[0]) if key in self.answers), (0, ""))
        if code and check:
            raise CkpError(f"{what or words[0]} ended with {code}")
        return Finished(tuple(words), code, output, "", 0.0)

    def stream(self, argv: Sequence[str | Path], *, timeout: float, on_line: Callable[[str], None]) -> int:
        return self.run(argv, timeout=timeout, check=False).code

    def push(self, source: Path | bytes, target: str, *, mode: int = 0o644) -> None:
        self.files[target] = (source if isinstance(source, bytes) else source.read_bytes(), mode)

    def pull(self, source: str) -> bytes:
        return self.files[source][0]


@dataclass
class Hosts:
    """The site's hosts."""

    management: Host
    workers: list[Host]

    @property
    def masters(self) -> list[Host]:
        return [self.management]


class World:
    """A site with two workers, and a release as it lies in its registry."""

    def __init__(self, root: Path) -> None:
        self.hosts = Hosts(Host("boss", "192.0.2.10"), [Host("w1", "192.0.2.11"), Host("w2", "192.0.2.12")])
        registry = SiteRegistry("images.example.test", "192.0.2.5", 5443)
        group = HostGroup("rack-7", "Rack 7")
        settings = {"kubelet": {"maxPods": 50}}
        target = BundleTarget(os="ubuntu", os_version="22.04")
        self.inventory = Inventory(target, self.hosts, registry, NETWORK, group, "ssh root@{host}", settings, {"cilium": {"mtu": 9000}})
        (root / "ca.pem").write_text("the registry's CA")
        (root / "ckp-agent.deb").write_bytes(b"the package")
        self.tags = ["0.1.0_5-ckp", "sha256-abc.sig", "0.2.0_7-ckp"]
        client = SimpleNamespace(tags=lambda _repository: self.tags, digest=lambda _repository, tag: f"sha256:{tag}")
        self.registry = SimpleNamespace(ca=root / "ca.pem", client=lambda: client)
        self.dist = SimpleNamespace(
            release=SimpleNamespace(name="v1.35.1", stamp="v1.35.1-ckp", built_cni={"cilium": "v1.19.5"}),
            tags={"etcd": "3.5.15", "ckp-platform": "v0.2.0"},
            targets=[BundleTarget(os="debian", os_version="12"), target],
            stand_ins=[],
            built={},
            keyring=root / "keyring.gpg",
            agent=lambda _format: SimpleNamespace(path=root / "ckp-agent.deb", version="0.2.0+7-ckp"),
        )
        self.lines: list[str] = []
        self.site = Site(cast(Deliverable, self.dist), self.inventory, self.lines.append)

    def published(self, release: str = "") -> Published:
        """The release of this world; or another one, with content of its own."""
        if release:
            dist = SimpleNamespace(**vars(self.dist) | {"release": SimpleNamespace(name=release, stamp=f"{release}-ckp", built_cni={"cilium": "v1.18.2"})})
            return Published(cast(Deliverable, dist), self.inventory, cast(Any, self.registry), {name: f"sha256:{name}-{release}" for name in self._names})
        return Published(cast(Deliverable, self.dist), self.inventory, cast(Any, self.registry), {name: f"sha256:{name}" for name in self._names})

    @property
    def _names(self) -> list[str]:
        return [*self.dist.tags, "ckp-agent", *(target.repository for target in self.dist.targets)]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A site; what this machine keeps of it lies in a folder of the test."""
    monkeypatch.setenv("CKP_STATE", str(tmp_path / "state"))
    world = World(tmp_path)
    monkeypatch.setattr(install, "registry_server", lambda *_: world.registry)
    return world


# -- the inventory


def test_the_lab_has_the_addresses_that_it_always_had() -> None:
    inventory = inventory_of(lab_site.LabHosts(2))
    network = inventory.network
    assert (network.compass, network.hub, network.load_balancers) == ("10.88.0.100", "10.88.0.101", ("10.88.0.100", "10.88.0.199"))
    assert network.reserved == {"hosts": "10.88.0.0/24", "management pods": "10.244.0.0/16", "management services": "10.96.0.0/16"}
    assert (inventory.registry.address, inventory.registry.endpoint) == ("registry.ckp.lab:5000", "10.88.0.10:5000")
    assert (inventory.os.os, inventory.os.os_version, inventory.group.name) == ("debian", "12", "lab")


def test_a_lab_on_another_network_has_other_addresses(tmp_path: Path) -> None:
    network = LabNetwork(bridge="ckp1", gateway="10.99.0.1")
    inventory = inventory_of(lab_site.LabHosts(1, Lab(tmp_path, network)))
    assert (inventory.network.compass, inventory.network.hosts) == ("10.99.0.100", "10.99.0.0/24")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hosts": "192.0.2.0"}, "range 192.0.2.200 to 192.0.2.220 is not in the hosts' network 192.0.2.0/32"),
        ({"hosts": "192.0.2.7/24"}, "network for hosts is not an IPv4 network"),
        ({"management_pods": "10.x"}, "network for management pods is not an IPv4 network"),
        ({"management_pods": "10.2.128.0/17"}, "overlap: management pods 10.2.128.0/17 and management services 10.2.0.0/16"),
        ({"management_services": "192.0.0.0/16"}, "overlap: hosts 192.0.2.0/24 and management services"),
        ({"load_balancers": ("192.0.2.220", "192.0.2.200")}, "range 192.0.2.220 to 192.0.2.200 ends before it begins"),
        ({"load_balancers": ("192.0.3.1", "192.0.3.9")}, "is not in the hosts' network 192.0.2.0/24"),
        ({"hub": "192.0.2.201"}, "same address 192.0.2.201"),
        ({"hub": "192.0.2.100"}, "192.0.2.100 of the hub is not in the load balancers' range"),
        ({"compass": "compass.example.test"}, "address for Compass is not an IPv4 address"),
    ],
)
def test_addresses_that_cannot_be_are_refused_before_anything_is_done(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        replace(NETWORK, **change)


def test_hosts_that_take_rpms_are_refused_before_anything_is_done(world: World) -> None:
    with pytest.raises(InvalidInput, match="hosts with rhel 9 cannot be set up from here"):
        replace(world.inventory, os=BundleTarget(os="rhel", os_version="9"))


def test_what_is_done_at_sites_does_not_speak_of_the_lab() -> None:
    for module in ("inventory", "hosts/files", "management", "registries/hosted", "registries/unit", "releases", "publish", "install", "enrol"):
        text = (REPO / "src" / "ckp" / "site" / f"{module}.py").read_text()
        assert re.findall(r"(?i)\blabs?\b|10\.88\.|ckp\.lab", text) == [], module


# -- publishing


def test_the_table_of_releases_pins_every_image_and_bundle_of_this_registry(world: World) -> None:
    table = world.published().releases()
    [release] = table.releases.values()
    assert release.registry == "images.example.test:5443/ckp"
    assert release.images == {"etcd": "3.5.15@sha256:etcd"}, "the platform's images are no part of a release"
    repository = "byoh-bundle-ubuntu_22.04_x86-64_k8s"
    assert release.bundles["ubuntu-22.04"] == BundleRef(
        image=f"images.example.test:5443/ckp/{repository}@sha256:{repository}", tag="v1.35.1-ckp", release="v1.35.1"
    )
    assert set(release.bundles) == {"debian-12", "ubuntu-22.04"}
    assert table.registry_ca == "the registry's CA" and table.addon_values == {"cilium": {"mtu": 9000}}


def test_the_table_of_several_releases_names_the_one_that_the_management_layer_is_of(world: World) -> None:
    published = world.published()
    older, oldest = world.published("v1.34.3"), world.published("v1.9.9")
    table = published.releases(older, oldest)
    assert list(table.releases) == ["v1.9.9", "v1.34.3", "v1.35.1"] and table.management == "v1.35.1"
    assert table == published.releases(oldest, older), "the same releases are the same table, in whatever order they were published"
    assert table.releases["v1.35.1"] == published.releases().releases["v1.35.1"], "a release is what it is, whatever is offered beside it"
    assert table.releases["v1.34.3"].images == {"etcd": "3.5.15@sha256:etcd-v1.34.3"}
    assert older.releases(published).management == "v1.34.3"


def test_each_release_names_the_image_with_its_own_charts(world: World) -> None:
    assert world.published().installed.addons == ""
    world.dist.tags = {**world.dist.tags, "ckp-addons": "v0.2.0-1"}
    assert world.published().installed.addons == "images.example.test:5443/ckp/ckp-addons:v0.2.0-1@sha256:ckp-addons"


def test_this_releases_agent_is_the_last_and_older_ones_stay(world: World) -> None:
    world.tags = ["0.2.0_7-ckp", "sha256-abc.sig", "0.9.0_1-ckp"]
    prefix = "images.example.test:5443/ckp/ckp-agent"
    assert list(world.published().agents().items()) == [("0.9.0+1-ckp", f"{prefix}@sha256:0.9.0_1-ckp"), ("0.2.0+7-ckp", f"{prefix}@sha256:0.2.0_7-ckp")]
    world.tags = []
    assert world.published().agents() == {"0.2.0+7-ckp": f"{prefix}@sha256:ckp-agent"}, "what was just pushed is there, whatever the registry lists"


def test_pods_are_rolled_out_again_when_the_table_changes_and_only_then(world: World) -> None:
    table = world.published().releases()
    config, digest = releases_config(table)
    assert Releases.model_validate(json.loads(config["data"]["releases.json"])) == table
    assert (config["metadata"]["name"], config["metadata"]["namespace"]) == ("ckp-releases", "ckp-system")
    assert releases_config(world.published().releases())[1] == digest
    assert releases_config(table.model_copy(update={"registry_ca": "another"}))[1] != digest
    removing, same = releases_config(table, {"v1.34.3": None})
    assert same == digest, "pods need not know what is being removed"
    assert json.loads(removing["data"]["withdrawn.json"]) == {"v1.34.3": None} and removing["data"]["releases.json"] == config["data"]["releases.json"]


def test_what_is_killed_while_it_is_applied_is_applied_again_whatever_it_was(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    applied: list[str] = []

    def kubectl(self: Site, *arguments: str, stdin: str | None = None, **_: object) -> Finished:
        if arguments[0] == "apply":
            applied.append(str(stdin))
            if "killed" in str(stdin):
                raise KeyboardInterrupt
        return Finished(arguments, 0, "the cluster's uid", "", 0.0)

    monkeypatch.setattr(Site, "kubectl", kubectl)
    world.site._apply("ckp", [{"table": "first"}])
    world.site._apply("ckp", [{"table": "first"}])
    with pytest.raises(KeyboardInterrupt):
        world.site._apply("ckp", [{"table": "killed"}])
    world.site._apply("ckp", [{"table": "first"}])
    assert [json.loads(text)["items"][0]["table"] for text in applied] == ["first", "killed", "first"]


def test_the_registry_is_reached_by_its_address_and_named_by_its_name(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushes: list[tuple[object, ...]] = []

    def push(client: object, address: str, ca: Path, credentials: Path | None, *, replace: bool) -> dict[str, str]:
        pushes.append((client, address, ca, credentials, replace))
        return {}

    def ensure(say: Callable[[str], None]) -> str:
        say("the registry runs")
        return "a client"

    monkeypatch.setattr(world.dist, "push", push, raising=False)
    world.registry.ensure, world.registry.endpoint, world.registry.credentials = ensure, "192.0.2.5:5444", tmp_path / "password"
    monkeypatch.setattr(publish, "registry_server", lambda *_: world.registry)
    publish.publish_all(cast(Deliverable, world.dist), world.inventory, world.lines.append)
    assert pushes == [("a client", "192.0.2.5:5444", tmp_path / "ca.pem", tmp_path / "password", True)]
    assert world.lines == ["the registry runs", "2 images and 2 bundle at images.example.test:5443/ckp"]


def test_a_site_says_whether_this_machine_or_a_host_runs_its_registry(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    program = SimpleNamespace(binary=lambda name: Path("/built") / name)
    monkeypatch.setattr(world.dist, "built", {"distribution": program})
    here = publish.registry_server(cast(Deliverable, world.dist), world.inventory)
    assert isinstance(here, RegistryServer) and (here.address, here.endpoint, here.credentials) == ("images.example.test:5443", "192.0.2.5:5443", None)
    place = replace(world.inventory.registry, host=world.hosts.management, listen="192.0.2.10", push_port=5444, storage="/srv/images")
    there = publish.registry_server(cast(Deliverable, world.dist), replace(world.inventory, registry=place))
    assert isinstance(there, HostedRegistry) and (there.host, there.program) == (world.hosts.management, Path("/built/registry"))
    assert (there.address, there.endpoint, there.storage) == ("images.example.test:5443", "192.0.2.10:5444", "/srv/images")


# -- installing


def test_the_host_tool_is_verified_then_brought_with_the_sites_settings(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    verified: list[dict[str, object]] = []
    monkeypatch.setattr(install, "verify_package", lambda path, keyring, **wanted: verified.append({"path": path, "keyring": keyring, **wanted}))
    host = world.hosts.workers[0]
    world.site.install_agent(host)
    assert verified == [{"path": str(world.dist.agent("deb").path), "keyring": str(world.dist.keyring), "name": "ckp-agent", "version": "0.2.0+7-ckp"}]
    assert json.loads(host.files["/etc/ckp-agent/host.json"][0]) == {"kubelet": {"maxPods": 50}}
    assert host.files["/etc/ckp-agent/registry-ca.pem"][0] == b"the registry's CA"
    assert ["dpkg", "-i", "/var/cache/ckp-agent.deb"] in host.ran
    host.ran.clear()
    host.answers["dpkg-query"] = (0, "0.2.0+7-ckp half-configured")
    world.site.install_agent(host)
    assert ["dpkg", "-i", "/var/cache/ckp-agent.deb"] in host.ran, "dpkg was killed in the middle"
    host.ran.clear()
    host.answers["dpkg-query"] = (0, "0.2.0+7-ckp installed")
    world.site.install_agent(host)
    assert [words[0] for words in host.ran] == ["dpkg-query", "sh", "sha256sum"], "the same version again changes nothing"


def test_a_package_that_does_not_verify_never_reaches_a_host(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise VerificationFailed("ckp-agent.deb is signed by a stranger", check="signature")

    monkeypatch.setattr(install, "verify_package", refuse)
    with pytest.raises(VerificationFailed):
        world.site.install_agent(world.hosts.workers[0])
    assert world.hosts.workers[0].ran == [] and world.hosts.workers[0].files == {}


def test_the_management_cluster_gets_the_sites_bundle_and_networks(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "verify_package", lambda *_, **__: None)
    host = world.hosts.management
    host.answers["ckp-agent standalone status"] = (1, "")
    host.files["/etc/kubernetes/admin.conf"] = (b"kubeconfig", 0o600)
    world.site.install_standalone(world.published())
    [argv] = [words for words in host.ran if words[:3] == ["ckp-agent", "standalone", "install"]]
    given = dict(zip(argv[3::2], argv[4::2], strict=True))
    assert given["--bundle-image"].startswith("images.example.test:5443/ckp/byoh-bundle-ubuntu_22.04_x86-64_k8s@sha256:")
    assert (given["--pod-cidr"], given["--service-cidr"], given["--advertise-address"]) == ("10.1.0.0/16", "10.2.0.0/16", "192.0.2.10")
    assert world.site.kubeconfig.read_bytes() == b"kubeconfig" and world.site.kubeconfig.stat().st_mode & 0o777 == 0o600
    host.answers["ckp-agent standalone status"] = (0, "")
    host.ran.clear()
    world.site.install_standalone(world.published())
    assert not [words for words in host.ran if words[:3] == ["ckp-agent", "standalone", "install"]] and world.lines[-1] == "boss is a cluster already"


def test_an_installation_that_fails_tells_how_to_go_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "verify_package", lambda *_, **__: None)
    world.hosts.management.answers["ckp-agent"] = (3, "")
    with pytest.raises(CkpError, match="on boss ended with code 3") as caught:
        world.site.install_standalone(world.published())
    assert "run the same command again" in caught.value.resolution


def test_the_manifests_of_the_management_layer_take_every_address_from_the_site(world: World) -> None:
    images = {f"ckp-{name}": f"v1@{DIGEST}" for name in ("platform", "addons", "packages", "backup")}
    objects = Management({}, "images.example.test:5443/ckp", images).ckp({**world.site.settings(), "RELEASES_DIGEST": "x"})
    text = json.dumps(objects)
    [pool] = [obj for obj in objects if obj["kind"] == "CiliumLoadBalancerIPPool"]
    assert pool["spec"]["blocks"] == [{"start": "192.0.2.200", "stop": "192.0.2.220"}]
    assert "192.0.2.201" in text and "192.0.2.202" in text and "10.88.0." not in text
    assert "hosts=192.0.2.0/24,management pods=10.1.0.0/16,management services=10.2.0.0/16" in text


def test_names_of_compass_and_the_hub_are_in_their_certificates(world: World) -> None:
    network = replace(NETWORK, compass_names=("compass.example.test",), hub_names=("hub.example.test", "true"))
    site = replace(world.site, inventory=replace(world.site.inventory, network=network))
    images = {f"ckp-{name}": f"v1@{DIGEST}" for name in ("platform", "addons", "packages", "backup")}
    objects = Management({}, "images.example.test:5443/ckp", images).ckp({**site.settings(), "RELEASES_DIGEST": "x"})
    names = {obj["metadata"]["name"]: obj["spec"].get("dnsNames") for obj in objects if obj["kind"] == "Certificate"}
    assert names["ckp-hub-tls"] == ["ckp-hub", "ckp-hub.ckp-system.svc", "hub.example.test", "true"], "as text, whatever YAML makes of it"
    assert names["ckp-compass-tls"][-1] == "compass.example.test"


def test_what_is_kept_of_an_installation_is_forgotten(world: World) -> None:
    state = world.site.kubeconfig.parent
    install.forget(state)
    (state / "applied").mkdir(parents=True)
    for name in ("applied/ckp", "management.kubeconfig", "root-ca.pem", "up.lock"):
        (state / name).write_text("x")
    install.forget(state)
    assert [path.name for path in state.iterdir()] == ["up.lock"]


def test_removing_the_lab_leaves_nothing_of_it_and_is_harmless_to_repeat(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[str] = []
    monkeypatch.setattr(RegistryServer, "stop", lambda self: stopped.append(self.listen))
    monkeypatch.setattr(Lab, "down", lambda self: stopped.append(str(self.root)))
    state = world.site.kubeconfig.parent
    (state / "registry").mkdir(parents=True)
    for name in ("registry/tls.key", "management.kubeconfig", "root-ca.pem"):
        (state / name).write_text("x")
    lab_site.remove()
    assert stopped == ["10.88.0.1", str(state / "lab")] and list(state.iterdir()) == []
    lab_site.remove()


# -- enrolling


class Compass:
    """As much of Compass as enrolment calls."""

    def __init__(self, world: World) -> None:
        self.world, self.calls = world, list[tuple[str, str, Any]]()
        self.key, self.members = "", list[str]()
        self.pending = [{"id": "r1", "machineId": "m1"}, {"id": "r2", "machineId": "m2"}, {"id": "r3", "machineId": "a stranger's"}]
        self.approved: list[dict[str, str]] = []

    def session(self) -> Session:
        config = Config(server="https://compass.test", token="t", ca="", domain="d", project="p")
        return Session(config, transport=httpx.MockTransport(self.answer))

    def answer(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path.rpartition("/projects/p")[2]
        body = json.loads(request.content) if request.content else None
        self.calls.append((request.method, path, body))
        match request.method, path.split("/")[1:]:
            case "GET", ["host-join"]:
                return httpx.Response(200, json={"command": "sudo the line of Compass"})
            case "GET", ["host-psk"]:
                return httpx.Response(200, json={"key": self.key})
            case "POST", ["host-psk", "reset"]:
                return httpx.Response(200, json={"key": "another"})
            case "GET", ["host-requests"]:
                return httpx.Response(200, json={"items": self.pending if request.url.params["state"] == "pending" else self.approved})
            case "POST", ["host-requests", number, "approve"]:
                self.approved += [item for item in self.pending if item["id"] == number]
                self.pending = [item for item in self.pending if item["id"] != number]
                return httpx.Response(200, json={})
            case "GET", ["hosts"]:
                hosts = [{"name": host.name, "address": host.address, "connected": True, "free": True, "cluster": ""} for host in self.world.hosts.workers]
                return httpx.Response(200, json={"items": hosts})
            case "GET", ["host-groups", "rack-7"]:
                return httpx.Response(200, json={"hosts": self.members})
            case "POST", ["host-groups", *_]:
                return httpx.Response(201, json={})
        raise AssertionError(f"{request.method} {path}")


@pytest.fixture
def compass(world: World, monkeypatch: pytest.MonkeyPatch) -> Compass:
    """Compass, and two hosts that ask to be enrolled."""
    monkeypatch.setattr(install, "verify_package", lambda *_, **__: None)
    world.site.root_ca.parent.mkdir(parents=True)
    world.site.root_ca.write_text("root")
    for number, host in enumerate(world.hosts.workers, start=1):
        host.answers |= {"test": (1, ""), "cat": (0, f"m{number}\n")}
    return Compass(world)


def test_workers_are_enrolled_approved_and_grouped(world: World, compass: Compass) -> None:
    compass.key, compass.members = "the key", ["w1"]
    Enrolment(world.site, compass.session()).run()
    for host in world.hosts.workers:
        assert host.joined == [("the line of Compass", "the key\n")], "as a person does it; the key is in no argument"
        assert json.loads(host.files["/etc/ckp-agent/host.json"][0]) == dict(world.site.inventory.host_settings)
    assert [item["id"] for item in compass.pending] == ["r3"], "a machine that is not of the site waits for a person"
    assert ("POST", "/host-groups", {"name": "rack-7", "description": "Rack 7"}) in compass.calls
    assert ("POST", "/host-groups/rack-7/members", {"hosts": ["w2"]}) in compass.calls


def test_hosts_that_are_enrolled_are_left_alone(world: World, compass: Compass) -> None:
    for host in world.hosts.workers:
        del host.answers["test"]
    compass.members = ["w1", "w2"]
    Enrolment(world.site, compass.session()).run()
    assert not [call for call in compass.calls if "host-psk" in call[1] or "approve" in call[1] or "members" in call[1]]
    assert not any(host.joined for host in world.hosts.workers)


def test_a_key_that_compass_does_not_show_any_longer_is_replaced(world: World, compass: Compass) -> None:
    assert Enrolment(world.site, compass.session()).key() == "another"
    compass.key = "still shown"
    assert Enrolment(world.site, compass.session()).key() == "still shown"


def test_requests_that_do_not_arrive_are_told_with_the_hosts_journals(world: World, compass: Compass, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enrol, "CONNECT_TIMEOUT", 0.1)
    compass.key, compass.pending = "the key", []
    world.hosts.workers[1].answers["journalctl"] = (0, "the hub cannot be reached")
    with pytest.raises(TimedOut, match="the workers' requests arrive") as caught:
        Enrolment(world.site, compass.session()).run()
    assert "w2: the hub cannot be reached" in str(caught.value)
