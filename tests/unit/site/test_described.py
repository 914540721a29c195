"""From a site's file to what is done on its management host: what must be so there, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ckp.catalog.load import Catalog
from ckp.distribution.registries.authority import Authority
from ckp.kits.errors import CkpError, Conflict, InvalidInput
from ckp.kits.processes import Finished, ProcessFailed
from ckp.site import apply as site_apply
from ckp.site import described
from ckp.site import status as site_status
from ckp.site.inventory import KnownHosts, SiteRegistry
from ckp.site.registries.hosted import HostedRegistry
from ckp.site.spec.model import SiteSpec
from ckp.site.spec.read import parse_site
from ckp.site.ssh import SshHost
from tests.simulators.site_host import SimulatedHost

TEXT = """\
apiVersion: ckp.coredge.io/v1alpha1
kind: Site
metadata: {name: berlin}
management:
  hosts:
    - name: m1
      address: 192.0.2.10
      ssh: {host: m1.example.test, user: ops, port: 2222, identityFile: keys/id}
addresses:
  hosts: 192.0.2.0/24
  loadBalancers: {ciliumPool: {first: 192.0.2.200, last: 192.0.2.220}}
  compass: {address: 192.0.2.200}
  hub: {address: 192.0.2.201}
registry:
  own: {name: images.example.test, port: 5443, storage: /srv/images}
releases: [v1.35.1]
workers: {group: {name: racks, description: All racks}}
hostSettings: {kubelet: {maxPods: 50}}
addonValues: {cilium: {operator: {replicas: 1}}}
"""
REGISTRY = SiteRegistry("images.example.test", "192.0.2.10", 5443)
DEBIAN = 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\nVERSION_ID="12"\n'


class Server(SimulatedHost):
    """A host whose programs answer as told, and which resolves names by its /etc/hosts and then by `dns`."""

    def __init__(self, root: Path, address: str = "192.0.2.10") -> None:
        super().__init__(root, address=address)
        self.answers: dict[str, tuple[int, str]] = {}
        self.dns: dict[str, str] = {}
        self.push(b"127.0.0.1 localhost\n", "/etc/hosts")

    def run(self, argv: Sequence[str | Path], *, timeout: float, stdin: str | bytes | None = None, check: bool = True, what: str = "") -> Finished:
        words = [str(word) for word in argv]
        if words[:2] == ["getent", "ahostsv4"]:
            listed = [line.split()[0] for line in self.pull("/etc/hosts").decode().splitlines() if words[2] in line.split()[1:2]]
            found = listed or ([self.dns[words[2]]] if words[2] in self.dns else [])
            code, out = (0, "".join(f"{address} STREAM {words[2]}\n" for address in found)) if found else (2, "")
        else:
            answer = next((answer for start, answer in self.answers.items() if " ".join(words).startswith(start)), None)
            if answer is None:
                return super().run(argv, timeout=timeout, stdin=stdin, check=check, what=what)
            code, out = answer
        if check and code:
            raise ProcessFailed(f"{what or words[0]} failed with exit code {code}")
        return Finished(tuple(words), code, out, "", 0.0)


@pytest.fixture
def host(tmp_path: Path) -> Server:
    return Server(tmp_path / "host")


@pytest.fixture
def spec(tmp_path: Path) -> SiteSpec:
    return parse_site(TEXT.encode(), tmp_path / "site.yaml")


def test_the_inventory_is_what_the_file_says(spec: SiteSpec, host: Server) -> None:
    found = described.inventory(spec, KnownHosts(host, [host]), Catalog().release("v1.35.1").bundles[0])
    assert (found.registry.address, found.registry.endpoint, found.registry.storage) == ("images.example.test:5443", "192.0.2.10:5443", "/srv/images")
    assert found.registry.push_port == 5444
    assert found.registry.host is host and found.hosts.management is host and list(found.hosts.workers) == []
    assert (found.network.compass, found.network.hub, found.network.load_balancers) == ("192.0.2.200", "192.0.2.201", ("192.0.2.200", "192.0.2.220"))
    assert (found.group.name, found.group.description) == ("racks", "All racks")
    assert found.host_settings == {"kubelet": {"maxPods": 50}} and found.addon_values == {"cilium": {"operator": {"replicas": 1}}}
    assert found.state.name == "berlin", "each site has a state of its own"


def test_workers_may_run_other_systems_that_the_release_has_bundles_for(tmp_path: Path, host: Server) -> None:
    release = Catalog().release("v1.35.1")
    text = TEXT.replace("description: All racks}", "description: All racks}, systems: [rhel-9, debian-12]")
    spec = parse_site(text.encode(), tmp_path / "site.yaml")
    others = described.worker_systems(spec, release)
    [debian] = [target for target in release.bundles if target.system == "debian-12"]
    found = described.inventory(spec, KnownHosts(host, [host]), debian, others)
    assert [system.system for system in found.systems] == ["debian-12", "rhel-9"]
    without = release.model_copy(update={"bundles": (debian,)})
    with pytest.raises(InvalidInput, match=r"site\.yaml:\d+: workers\.systems: v1\.35\.1 has no bundle for rhel-9"):
        described.worker_systems(spec, without)
    with pytest.raises(InvalidInput, match="not an operating system of a release"):
        parse_site(text.replace("rhel-9", "plan-9").encode(), tmp_path / "site.yaml")


def test_names_of_services_are_those_of_the_file(tmp_path: Path, host: Server) -> None:
    text = TEXT.replace("hub: {address: 192.0.2.201", "hub: {names: [hub.example.test], address: 192.0.2.201")
    assert text != TEXT
    spec = parse_site(text.encode(), tmp_path / "site.yaml")
    assert described.inventory(spec, KnownHosts(host, [host]), Catalog().release("v1.35.1").bundles[0]).network.hub_names == ("hub.example.test",)


def test_a_host_is_reached_as_the_file_says(spec: SiteSpec, tmp_path: Path) -> None:
    [host] = spec.management.hosts or ()
    found = described.host_of(host)
    assert isinstance(found, SshHost)
    assert (found.name, found.address) == ("m1", "192.0.2.10")
    assert (found.settings.host, found.settings.user, found.settings.port) == ("m1.example.test", "ops", 2222)
    assert found.settings.identity_file == tmp_path / "keys/id", "relative paths are relative to the file"


def test_a_hosts_operating_system_is_one_of_the_releases(host: Server) -> None:
    release = Catalog().release("v1.35.1")
    host.answers["cat /etc/os-release"] = (0, DEBIAN)
    found = described.operating_system(host.name, described.os_release(host), release)
    assert (found.os, found.os_version) == ("debian", "12")
    for text, words in (('ID="arch"\n', "runs arch , and"), ("", "runs an unknown system , and"), ('ID=debian\nVERSION_ID="11"\n', "runs debian 11, and")):
        host.answers["cat /etc/os-release"] = (0, text)
        with pytest.raises(InvalidInput, match=words):
            described.operating_system(host.name, described.os_release(host), release)


def test_a_host_without_its_address_is_refused(host: Server) -> None:
    def has(*addresses: str) -> None:
        links = [{"addr_info": [{"local": address}]} for address in ("127.0.0.1", *addresses)]
        host.answers["ip -json -4 addr show"] = (0, json.dumps(links))

    has("10.0.0.5", "192.0.2.10")
    described.require_address(host)
    has("192.0.2.11")
    with pytest.raises(InvalidInput, match=r"m1 has the addresses 192\.0\.2\.11, not 192\.0\.2\.10"):
        described.require_address(host)


def test_a_registry_whose_name_resolves_changes_no_file(host: Server) -> None:
    host.dns[REGISTRY.name] = REGISTRY.listen
    before = host.tree()
    described.name_registry(host, REGISTRY, lambda _line: None)
    assert host.tree() == before


@pytest.mark.parametrize("content", [b"127.0.0.1 localhost\n", b"127.0.0.1 localhost", b""])
def test_a_registry_whose_name_does_not_resolve_is_named_in_the_hosts_file_and_forgotten(host: Server, content: bytes) -> None:
    host.push(content, "/etc/hosts")
    said: list[str] = []
    for _ in range(2):
        described.name_registry(host, REGISTRY, said.append)
    text = host.pull("/etc/hosts").decode()
    assert text.splitlines()[-1] == f"192.0.2.10 {REGISTRY.name} {described.MARK}" and text.count(REGISTRY.name) == 1
    assert said == ["/etc/hosts on m1 names images.example.test now"]
    described.forget_registry_name(host)
    described.forget_registry_name(host)
    assert host.pull("/etc/hosts").rstrip(b"\n") == content.rstrip(b"\n")


def test_a_registry_that_moves_is_named_anew(host: Server) -> None:
    described.name_registry(host, SiteRegistry(REGISTRY.name, "192.0.2.9"), lambda _line: None)
    described.name_registry(host, REGISTRY, lambda _line: None)
    assert host.pull("/etc/hosts").decode().count(REGISTRY.name) == 1
    assert f"192.0.2.10 {REGISTRY.name}" in host.pull("/etc/hosts").decode()


def test_a_registrys_name_that_leads_elsewhere_is_refused_and_nothing_is_written(host: Server) -> None:
    host.dns[REGISTRY.name] = "192.0.2.77"
    before = host.tree()
    with pytest.raises(Conflict, match=r"leads to 192\.0\.2\.77, not to 192\.0\.2\.10"):
        described.name_registry(host, REGISTRY, lambda _line: None)
    assert host.tree() == before


def test_a_site_that_carries_clusters_is_not_removed(host: Server, tmp_path: Path) -> None:
    registry = HostedRegistry(host, tmp_path / "none", REGISTRY.name, REGISTRY.listen, state=tmp_path / "state", connect=host.connect)
    kubectl = "kubectl --kubeconfig=/etc/kubernetes/admin.conf --server=https://192.0.2.10:6443 --request-timeout=30s"
    host.answers |= {
        "test -e /etc/kubernetes/admin.conf": (0, ""),
        f"{kubectl} api-resources": (0, "machines.cluster.x-k8s.io\nclusters.cluster.x-k8s.io\n"),
        f"{kubectl} get clusters.cluster.x-k8s.io": (0, json.dumps({"items": [{"metadata": {"namespace": "ckp-a-b", "name": "one"}}]})),
    }
    before = host.tree()
    with pytest.raises(Conflict, match="carries 1 workload clusters, and nothing was removed") as refused:
        site_apply.remove(KnownHosts(host, [host]), [registry], tmp_path / "state", lambda _line: None)
    assert refused.value.details == "ckp-a-b/one" and host.tree() == before


def test_a_host_with_the_registry_of_another_site_is_not_reset(host: Server, tmp_path: Path) -> None:
    """A file with a wrong address: the host is another site's, which carries no cluster yet."""
    registry = HostedRegistry(host, tmp_path / "none", REGISTRY.name, REGISTRY.listen, state=tmp_path / "state", connect=host.connect)
    registry.folder.mkdir(parents=True)
    registry.ca.write_text("the CA of this site")
    host.push(b"the CA of another site", "/etc/ckp-registry/ca.pem")
    before = host.tree()
    for force in (False, True):
        with pytest.raises(Conflict, match="has the registry of another site"):
            site_apply.remove(KnownHosts(host, [host]), [registry], tmp_path / "state", lambda _line: None, force=force)
    assert host.tree() == before


def test_a_part_that_does_not_answer_is_named_and_the_others_are_shown(host: Server, tmp_path: Path) -> None:
    registry = HostedRegistry(host, tmp_path / "none", REGISTRY.name, REGISTRY.listen, 5443, 5444, state=tmp_path / "state", connect=host.connect)
    authority = Authority.create("a CA", now=datetime.now(UTC))
    registry.folder.mkdir(parents=True)
    registry.ca.write_bytes(authority.pem)
    host.answers |= {"true": (0, ""), "ckp-agent standalone status": (0, "[ 1/12] Checks: done\n"), "kubectl": (1, "")}
    found = {part.name: (part.state, part.detail) for part in site_status.status(KnownHosts(host, [host]), [registry])}
    assert found == {
        "host": ("ok", "m1 (192.0.2.10)"),
        "registry": ("down", "no answer at 192.0.2.10:5443 and 192.0.2.10:5444"),
        "cluster": ("ok", "its steps are done"),
        "management API": ("not answering", "kubectl get failed with exit code 1"),
    }


def test_a_management_cluster_that_does_not_answer_is_not_taken_for_an_empty_one(host: Server) -> None:
    host.answers |= {"test -e /etc/kubernetes/admin.conf": (0, ""), "kubectl": (1, "")}
    with pytest.raises(CkpError, match="kubectl api-resources failed"):
        site_apply.workload_clusters(host)
    host.answers["test -e /etc/kubernetes/admin.conf"] = (1, "")
    assert site_apply.workload_clusters(host) == []
