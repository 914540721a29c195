"""The downgrade attack where it would happen: an older bundle, well signed by our own key, on a host that has something newer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from ckp.agent.journal import Journal
from ckp.agent.node.packages import install_packages
from ckp.clients.signing.openpgp import SigningKey
from ckp.hostkit.errors import VerificationFailed
from ckp.verify.bundle import BundleManifest, Package, verify_bundle
from tests.support.signing_keys import signing_key
from tests.support.spoilt_packages import Deb, Rpm, snapshot

KINDS = {"dpkg": "deb", "rpm": "rpm"}


class InstallerSimulator:
    """A package manager that has what it is told and installs what it is handed; it notes each change."""

    def __init__(self, name: str, have: dict[str, str]) -> None:
        self.name = name
        self.have = have
        self.handed: list[list[str]] = []
        self.holds: set[str] = set()

    def installed(self, names: Sequence[str]) -> dict[str, str]:
        return {name: self.have[name] for name in names if name in self.have}

    def install(self, manifest: BundleManifest, packages: Sequence[Package]) -> None:
        self.handed.append([f"{package.name} {package.version}" for package in packages])
        for package in packages:
            assert Path(manifest.path(package.file)).is_file()
            self.have[package.name] = package.version

    def replace(self, manifest: BundleManifest, packages: Sequence[Package]) -> None:
        self.install(manifest, packages)

    def changed_configuration(self, names: Sequence[str]) -> list[str]:
        return []

    def sources(self, names: Sequence[str]) -> dict[str, tuple[str, str]]:
        return {name: (version, "Coredge.io <support@coredge.io>") for name, version in self.installed(names).items()}

    def held(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if name in self.holds]

    def hold(self, names: Sequence[str]) -> None:
        self.holds.update(names)

    def release(self, names: Sequence[str]) -> None:
        self.holds.difference_update(names)

    def remove(self, names: Sequence[str]) -> None:
        raise AssertionError("nothing is removed here")

    def broken(self, names: Sequence[str]) -> list[str]:
        return []

    def unpack(self, manifest: BundleManifest, packages: Sequence[Package]) -> None:
        raise AssertionError("nothing is broken here")

    def install_file(self, file: str) -> None:
        raise AssertionError("no single file is installed here")

    def add_tools(self, tools: Sequence[str], remember: Callable[[Sequence[str]], None]) -> list[str]:
        raise AssertionError("no tools are added here")

    def remove_tools(self, names: Sequence[str]) -> list[str]:
        raise AssertionError("no tools are removed here")


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return signing_key(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """The journal of a host that we have installed kubectl on before."""
    made = Journal(str(tmp_path / "state/journal.json"), str(tmp_path / "state/saved"))
    made.add_packages(["kubectl"])
    return made


def bundle(folder: Path, key: SigningKey, kind: str, release: str) -> BundleManifest:
    """A bundle of kubelet and kubeadm of a release, verified as the agent does it."""
    version, listed = f"{release[1:]}-ckp", []
    folder.mkdir()
    for name in ("kubelet", "kubeadm"):
        raw = Deb(name=name, version=version).build(key.sign) if kind == "deb" else Rpm(name=name, version=release[1:]).build(key.sign)
        (folder / f"{name}.{kind}").write_bytes(raw)
        listed.append({"file": f"{name}.{kind}", "name": name, "version": version, "sha256": hashlib.sha256(raw).hexdigest()})
    system = {"os": "debian", "os_version": "12"} if kind == "deb" else {"os": "rhel", "os_version": "9"}
    manifest = {"schema": 1, "release": release, "version": version, **system, "architecture": "amd64", "registry": "r:5000/ckp", "files": []}
    text = json.dumps({**manifest, "packages": listed}).encode()
    (folder / "bundle.json").write_bytes(text)
    (folder / "bundle.json.asc").write_bytes(key.sign(text, armor=True))
    return verify_bundle(str(folder), str(key.keyring), release)


@pytest.mark.parametrize("installer", ["dpkg", "rpm"])
@pytest.mark.parametrize("there", [{"kubelet": "1.35.10-ckp"}, {"kubelet": "1.35.10-ckp", "kubeadm": "1.35.9-ckp"}])
def test_an_older_package_is_refused_before_installer_and_journal_are_touched(
    tmp_path: Path, key: SigningKey, journal: Journal, installer: str, there: dict[str, str]
) -> None:
    manifest = bundle(tmp_path / "old", key, KINDS[installer], "v1.35.9")
    host = InstallerSimulator(installer, dict(there))
    before = snapshot(tmp_path)
    with pytest.raises(VerificationFailed, match=r"kubelet 1\.35\.10-ckp is installed, and 1\.35\.9-ckp is older: a downgrade is refused") as caught:
        install_packages(journal, host, manifest, ["kubelet", "kubeadm"])
    assert caught.value.check == "downgrade" and caught.value.permanent
    assert host.handed == [] and host.have == there
    assert journal.packages == ["kubectl"] and snapshot(tmp_path) == before


@pytest.mark.parametrize("installer", ["dpkg", "rpm"])
def test_going_back_on_request_goes_through_and_the_journal_knows_what_was_new(tmp_path: Path, key: SigningKey, journal: Journal, installer: str) -> None:
    manifest = bundle(tmp_path / "old", key, KINDS[installer], "v1.35.9")
    host = InstallerSimulator(installer, {"kubelet": "1.35.10-ckp"})
    install_packages(journal, host, manifest, ["kubelet", "kubeadm"], allow_downgrade=True)
    assert host.handed == [["kubelet 1.35.9-ckp", "kubeadm 1.35.9-ckp"]]
    assert Journal(journal.path, journal.saved_dir).packages == ["kubectl", "kubeadm"], "kubelet was there before us"


@pytest.mark.parametrize("installer", ["dpkg", "rpm"])
@pytest.mark.parametrize("release", ["v1.35.10", "v1.35.11"])
def test_the_same_or_a_newer_one_needs_no_request(tmp_path: Path, key: SigningKey, journal: Journal, installer: str, release: str) -> None:
    host = InstallerSimulator(installer, {"kubelet": "1.35.10-ckp"})
    install_packages(journal, host, bundle(tmp_path / "new", key, KINDS[installer], release), ["kubelet", "kubeadm", "not-in-the-bundle"])
    assert host.have == dict.fromkeys(("kubelet", "kubeadm"), f"{release[1:]}-ckp")


def test_the_journal_is_written_before_the_installer_runs(tmp_path: Path, key: SigningKey, journal: Journal) -> None:
    """A power cut in between must not forget what we are about to install."""

    class Cut(InstallerSimulator):
        def install(self, manifest: BundleManifest, packages: Sequence[Package]) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        install_packages(journal, Cut("dpkg", {}), bundle(tmp_path / "new", key, "deb", "v1.35.1"), ["kubelet", "kubeadm"])
    assert Journal(journal.path, journal.saved_dir).packages == ["kubectl", "kubelet", "kubeadm"]
