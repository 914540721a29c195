"""What a host that is in no cluster takes and refuses: bundles by `ckp-agent standalone`, packages by apt-get. Fail closed, with a sentence a person
understands, and nothing changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from ckp.catalog.load import Catalog
from ckp.cli.distribution.dist import publish_packages
from ckp.clients.signing.openpgp import SigningKey
from ckp.distribution.packages.pack import Recipe, ar_member, ar_members, make_package, sign_deb
from ckp.distribution.registries.server import RegistryServer
from ckp.distribution.release import Distribution
from ckp.distribution.repositories.publish import Repositories
from ckp.distribution.repositories.server import RepositoryServer
from ckp.kits import paths
from ckp.kits.files import sha256_file
from ckp.kits.processes import Finished, run
from ckp.kits.retry import wait_until
from ckp.lab.lab import HostSpec, Lab, LabHost, LabNetwork
from ckp.site.install import REGISTRY_CA, Site
from ckp.site.inventory import SiteRegistry
from ckp.site.lab import OS, REGISTRY, LabHosts
from tests.e2e.conftest import RELEASE, STAMP
from tests.support import odd_hosts
from tests.support.lab_sites import inventory_of

pytestmark = [pytest.mark.e2e, pytest.mark.lab, pytest.mark.root("boots whole hosts")]

NETWORK = LabNetwork(bridge="ckppacks0", gateway="10.177.97.1", registry="10.177.97.1")
SPARE, PACKAGES = HostSpec("spare", "10.177.97.10"), HostSpec("packages", "10.177.97.11")
PACKAGE = "1.35.1-ckp"
ONLY_OURS = ("-o", "Dir::Etc::SourceList=/dev/null", "-o", "Dir::Etc::SourceParts=/etc/apt/ckp.d")


@dataclass
class PackageSite(Site):
    """A site without a cluster: the release's packages, and a registry of its own that bundles know by the name of the lab's."""

    made: Distribution
    """What is brought there; `dist`, built on this machine."""
    folder: Path
    lab: Lab

    @property
    def registry(self) -> RegistryServer:
        program = self.made.built["distribution"].binary("registry")
        return RegistryServer(program, NETWORK.gateway, REGISTRY, state=self.folder / "registry", content=self.folder / "content")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PackageSite]:
    catalog = Catalog()
    dist = Distribution(catalog, catalog.release(RELEASE), "lab", print)
    dist.build()
    dist.pack([OS.format])
    dist.make_images()
    lab = Lab(paths.state() / "lab-packages", NETWORK)
    lab.down()
    made = PackageSite(
        dist,
        replace(inventory_of(LabHosts(0, lab)), registry=SiteRegistry(REGISTRY, NETWORK.gateway)),
        print,
        dist,
        tmp_path_factory.mktemp("site"),
        lab,
    )
    try:
        yield made
    finally:
        made.registry.stop()
        lab.down()
        shutil.rmtree(made.folder)


@pytest.fixture(scope="module")
def spare(site: PackageSite) -> LabHost:
    """A fresh host with the agent's package and nothing else."""
    host = site.lab.ensure_host(SPARE)
    site.registry.start()
    site.install_agent(host)
    return host


def snapshot(host: LabHost) -> str:
    """What an installation would change."""
    script = "dpkg-query -W; find /etc /usr/bin /opt -newer /etc/ckp-agent/host.json -type f ! -path '/etc/ckp-agent/*' | sort; sysctl -n net.ipv4.ip_forward"
    return host.run(["sh", "-c", script], timeout=60).stdout


def push_bundle(site: PackageSite, folder: Path, tag: str) -> str:
    """Push a bundle's folder under a tag of its own and return its reference by digest."""
    server = site.registry
    repository = "ckp/byoh-bundle-debian_12_x86-64_k8s"
    argv: list[str | Path] = [
        site.made.built["imgpkg"].binary("imgpkg"),
        "push",
        "--image",
        f"{server.listen}:{server.port}/{repository}:{tag}",
        "--file",
        folder,
    ]
    run([*argv, "--registry-ca-cert-path", server.ca, "--tty=false"], timeout=120)
    digest = server.client().digest(repository, tag)
    assert digest
    return f"{server.address}/{repository}@{digest}"


@pytest.fixture
def bundle(site: PackageSite, tmp_path: Path) -> Path:
    """A copy of the release's bundle that a test may spoil."""
    site.made.make_bundles(site.registry.address, [OS])
    target = tmp_path / "bundle"
    shutil.copytree(site.made.bundles[0].folder, target)
    return target


def relist(bundle: Path, package: str, key: SigningKey) -> None:
    """List a spoilt package with its new digest and sign the list again, so that only the package's own faults are left to find."""
    manifest = json.loads((bundle / "bundle.json").read_text())
    entry = next(item for item in manifest["packages"] if item["name"] == package)
    entry["sha256"] = sha256_file(bundle / entry["file"])
    text = json.dumps(manifest)
    (bundle / "bundle.json").write_text(text)
    (bundle / "bundle.json.asc").write_bytes(key.sign(text.encode(), armor=True))


def refused(host: LabHost, reference: str, *words: str) -> None:
    before = snapshot(host)
    done: Finished = host.run(["ckp-agent", "standalone", "install", "--bundle-image", reference, "--registry-ca", REGISTRY_CA], timeout=300, check=False)
    said = done.stdout + done.stderr
    assert done.code != 0, said
    for word in words:
        assert word in said, said
    assert snapshot(host) == before


def flip(file: Path, where: float) -> None:
    data = bytearray(file.read_bytes())
    data[int(len(data) * where)] ^= 1
    file.write_bytes(bytes(data))


def test_a_host_without_room_and_with_a_runtime_of_others_is_refused_with_both_reasons(site: PackageSite, spare: LabHost) -> None:
    odd_hosts.package_of_others(spare, "docker-ce")
    odd_hosts.fill_disk_of_var_lib(spare)
    try:
        reference = f"{site.registry.address}/ckp/byoh-bundle-debian_12_x86-64_k8s@sha256:{'0' * 64}"
        refused(spare, reference, "for 2 reasons, nothing was changed", "10 GiB are needed", "is installed already (docker-ce 1.7.0-1)")
    finally:
        odd_hosts.empty_disk_of_var_lib(spare)
        spare.run(["dpkg", "--purge", "docker-ce"], timeout=60)


def test_a_package_with_one_flipped_byte(site: PackageSite, spare: LabHost, bundle: Path) -> None:
    flip(bundle / "kubelet.deb", 0.5)
    refused(spare, push_bundle(site, bundle, "flipped"), "kubelet.deb")


def test_a_flipped_byte_whose_digest_was_listed_anew_still_fails_by_its_signature(site: PackageSite, spare: LabHost, bundle: Path) -> None:
    flip(bundle / "kubelet.deb", 0.5)
    relist(bundle, "kubelet", site.made.key)
    refused(spare, push_bundle(site, bundle, "flipped-listed"), "kubelet.deb", "signature")


def test_a_package_signed_by_another_key(site: PackageSite, spare: LabHost, bundle: Path, tmp_path: Path) -> None:
    stranger = SigningKey.ensure(tmp_path / "keys", user_id="Coredge.io <support@coredge.io>")
    deb = bundle / "kubectl.deb"
    members = [(name, content) for name, content in ar_members(deb.read_bytes()) if name != "_gpgorigin"]
    deb.write_bytes(sign_deb(b"!<arch>\n" + b"".join(ar_member(name, content) for name, content in members), stranger))
    relist(bundle, "kubectl", site.made.key)
    refused(spare, push_bundle(site, bundle, "stranger"), "kubectl.deb")


def test_a_package_of_another_maintainer(site: PackageSite, spare: LabHost, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ckp.distribution.packages import pack as packages

    monkeypatch.setattr(packages, "MAINTAINER", "Somebody Else")
    monkeypatch.setattr(packages, "RECIPE", "other-maintainer")
    dist = site.made
    made = make_package(Recipe.read("helm"), "3.19.2-ckp", dist.built, dist.built["nfpm"].binary("nfpm"), dist.key)
    shutil.copy(made.path, bundle / "helm.deb")
    relist(bundle, "helm", dist.key)
    refused(spare, push_bundle(site, bundle, "maintainer"), "helm.deb", "Maintainer is")


def test_a_bundle_whose_digest_differs(site: PackageSite, spare: LabHost, bundle: Path) -> None:
    reference = push_bundle(site, bundle, "digest")
    wrong = reference[:-4] + ("0000" if reference[-4:] != "0000" else "1111")
    refused(spare, wrong)


def test_overlapping_and_malformed_networks_of_a_standalone_node(spare: LabHost) -> None:
    folder = "/var/cache/nothing"
    spare.run(["mkdir", "-p", folder], timeout=10)
    for arguments, words in (
        (["--pod-cidr", "10.96.0.0/16", "--service-cidr", "10.96.0.0/16"], "overlap"),
        (["--pod-cidr", "10.244.0.1/16"], "host bits"),
        (["--pod-cidr", "banana"], "not a CIDR"),
    ):
        done = spare.run(["ckp-agent", "standalone", "install", "--bundle", folder, *arguments], timeout=60, check=False)
        assert done.code == 2 and words in done.stdout + done.stderr


def test_a_busy_port(site: PackageSite, spare: LabHost, bundle: Path) -> None:
    spare.run(["systemd-run", "--unit=squatter", "--service-type=exec", "socat", "TCP-LISTEN:6443,fork", "EXEC:/bin/true"], timeout=20)
    try:
        wait_until(
            lambda: spare.run(["sh", "-c", "ss -Hltn sport = :6443 | grep -q ."], timeout=10, check=False).code == 0, what="the port is taken", timeout=180
        )
        refused(spare, push_bundle(site, bundle, "good"), "6443")
    finally:
        spare.run(["systemctl", "stop", "squatter"], timeout=20)


# -- packages by themselves


@pytest.fixture(scope="module")
def repositories(site: PackageSite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RepositoryServer]:
    """The release's packages in signed repositories, served on this lab's bridge."""
    root = tmp_path_factory.mktemp("repositories") / "root"
    publish_packages(site.made, Repositories(root, site.made.key))
    server = RepositoryServer(root, NETWORK.gateway, state=root.parent / "state")
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def host(site: PackageSite, repositories: RepositoryServer) -> Iterator[LabHost]:
    """A fresh host that trusts our key for this one source, as docs/how-to/install-packages.md says."""
    machine = site.lab.ensure_host(PACKAGES)
    try:
        machine.push(repositories.root / "keys" / "ckp.gpg", "/usr/share/keyrings/ckp.gpg")
        source = (repositories.root / "setup" / "ckp.sources").read_text()
        for place, value in (("@URL@", repositories.url), ("@CODENAME@", "bookworm"), ("@MINOR@", "v1.35")):
            source = source.replace(place, value)
        machine.push(source.encode(), "/etc/apt/ckp.d/ckp.sources")
        yield machine
    finally:
        machine.remove()


def test_apt_installs_from_the_signed_repository(host: LabHost) -> None:
    host.run(["apt-get", *ONLY_OURS, "-q", "update"], timeout=120, what="apt-get update")
    env = ["env", "DEBIAN_FRONTEND=noninteractive"]
    host.run([*env, "apt-get", *ONLY_OURS, "-q", "-y", "install", "kubeadm", "kubelet", "kubectl", "containerd"], timeout=300, what="apt-get install")
    assert host.run(["kubeadm", "version", "-o", "short"], timeout=30).stdout.strip() == STAMP
    assert host.run(["dpkg-query", "-W", "-f", "${Version} ${Maintainer}", "kubelet"], timeout=30).stdout.startswith(f"{PACKAGE} Coredge.io")
    assert host.run(["systemctl", "is-enabled", "kubelet"], timeout=30).stdout.strip() == "enabled"
    assert "__start_kubectl" in host.run(["cat", "/usr/share/bash-completion/completions/kubectl"], timeout=30).stdout
    audit = host.run(["dpkg", "--audit"], timeout=60).stdout
    assert audit.strip() == ""
    host.run([*env, "apt-get", "-q", "-y", "purge", "kubeadm", "kubelet", "kubectl", "kubernetes-cni", "cri-tools", "containerd"], timeout=300)
    assert host.run(["sh", "-c", "ls /usr/bin/kube* 2>/dev/null; true"], timeout=30).stdout == ""


def test_apt_refuses_the_repository_when_its_index_was_changed(host: LabHost, repositories: RepositoryServer) -> None:
    index = repositories.root / "apt/dists/bookworm/InRelease"
    good = index.read_bytes()
    index.write_bytes(good.replace(b"Coredge.io", b"Coredge.ia", 1))
    try:
        done = host.run(["apt-get", *ONLY_OURS, "-q", "update"], timeout=120, check=False)
        said = done.stdout + done.stderr
        assert "BADSIG" in said or "not signed" in said or "signatures were invalid" in said, said
    finally:
        index.write_bytes(good)
