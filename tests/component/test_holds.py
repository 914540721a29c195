"""`apt-get upgrade` and `dnf upgrade`, with a source that has newer packages of another maker, leave a node's packages as CKP installed them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from ckp.agent.journal import Journal, Member
from ckp.agent.node.packages import install_packages
from ckp.agent.system import holds
from ckp.agent.system.installers.base import Installer
from ckp.agent.system.installers.dpkg import DpkgInstaller
from ckp.agent.system.installers.rpm import RpmInstaller
from ckp.distribution.packages.pack import Package
from ckp.hostkit import processes
from ckp.hostkit.processes import PATH
from ckp.verify.bundle import BundleManifest
from ckp.verify.bundle import Package as Listed
from tests.component.test_apt_and_dnf import Apt, apt
from tests.component.test_package_moves import RedHat, redhat
from tests.support.small_packages import small_package

pytestmark = [
    pytest.mark.component,
    pytest.mark.skipif(shutil.which("apt-get") is None or shutil.which("dnf") is None, reason="apt-get and dnf are needed; `make setup` installs them"),
    pytest.mark.root("dpkg and rpm install into a root"),
]
assert apt and redhat  # fixtures
OURS = {"kubelet": "1.35.1-ckp", "containerd": "1.7.28-ckp"}
NEXT = {"kubelet": "1.35.2-ckp", "containerd": "1.7.29-ckp"}
THEIRS = {"kubelet": "1.35.9-1.1", "containerd": "2.9.0-1"}
OTHER = "Another Maker <dev@example.org>"


def bundle(*packages: Package) -> BundleManifest:
    """Packages of one folder, as a verified bundle lists them."""
    listed = tuple(Listed(package.path.name, package.name, package.version, "") for package in packages)
    return BundleManifest(str(packages[0].path.parent), "v1.35.1", "1.35.1-ckp", "debian", "12", "amd64", "r", listed, {}, {})


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    made = Journal(str(tmp_path / "state/journal.json"), str(tmp_path / "state/saved"))
    made.begin(Member("k", "v1.35.1", "b", "c", "m"))
    return made


def install(journal: Journal, installer: Installer, packages: list[Package]) -> None:
    install_packages(journal, installer, bundle(*packages), [package.name for package in packages])
    journal.finish_step("install", 0.0)


def leave(journal: Journal, installer: Installer) -> None:
    """What a reset does to the packages."""
    holds.release(journal, installer)
    installer.remove(journal.packages)
    holds.give_back(journal, installer)


@pytest.fixture
def programs(apt: Apt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of dpkg and apt-mark as the agent finds them, which work in apt's root."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, command in (
        ("dpkg", f"/usr/bin/dpkg --root={apt.root} --log=/dev/null"),
        ("dpkg-query", f"/usr/bin/dpkg-query --admindir={apt.root}/var/lib/dpkg"),
        ("apt-mark", f"env APT_CONFIG={apt.root}/apt.conf /usr/bin/apt-mark"),
    ):
        (folder / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (folder / name).chmod(0o755)
    monkeypatch.setattr(processes, "PATH", f"{folder}:{PATH}")
    return folder


def test_apt_get_upgrade_leaves_a_nodes_packages_alone(apt: Apt, programs: Path, journal: Journal, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name, version in {**THEIRS, "bystander": "2.0-1"}.items():
        small_package(source, None, name, version, "deb", maintainer=OTHER)
    index = subprocess.run(["apt-ftparchive", "packages", "."], cwd=source, capture_output=True, check=True).stdout
    (source / "Packages").write_bytes(index)
    (apt.root / "etc/apt/sources.list.d/theirs.list").write_text(f"deb [trusted=yes] file:{source} ./\n")
    apt.get("update")
    bystander = small_package(tmp_path / "old", None, "bystander", "1.0-1", "deb")
    subprocess.run([programs / "dpkg", "-i", bystander.path], check=True, capture_output=True)
    installer = DpkgInstaller()

    install(journal, installer, [small_package(tmp_path / "ours", None, name, version, "deb") for name, version in OURS.items()])
    for command in ("upgrade", "dist-upgrade"):
        done = apt.get(command)
        assert done.returncode == 0, done.stderr
    assert apt.installed() == {**OURS, "bystander": "2.0-1"} and holds.changed(journal, installer) == []

    install(journal, installer, [small_package(tmp_path / "next", None, name, version, "deb") for name, version in NEXT.items()])
    assert apt.get("upgrade").returncode == 0
    assert apt.installed() == {**NEXT, "bystander": "2.0-1"}, "an upgrade of ours goes through, and is held as well"

    done = apt.get("--allow-change-held-packages", "install", "kubelet", "containerd")
    assert done.returncode == 0 and apt.installed()["kubelet"] == THEIRS["kubelet"]
    assert [line.partition(" is a package of Another Maker")[0] for line in holds.changed(journal, installer)] == ["kubelet 1.35.9-1.1", "containerd 2.9.0-1"]
    leave(journal, installer)
    assert apt.installed() == {"bystander": "2.0-1"}
    done = apt.get("install", "kubelet")
    assert done.returncode == 0 and apt.installed()["kubelet"] == THEIRS["kubelet"], "the host is its owner's again"


def test_an_owners_hold_of_a_package_that_was_not_installed_is_there_again(apt: Apt, programs: Path, journal: Journal, tmp_path: Path) -> None:
    source = tmp_path / "source"
    small_package(source, None, "containerd", THEIRS["containerd"], "deb", maintainer=OTHER)
    (source / "Packages").write_bytes(subprocess.run(["apt-ftparchive", "packages", "."], cwd=source, capture_output=True, check=True).stdout)
    (apt.root / "etc/apt/sources.list.d/theirs.list").write_text(f"deb [trusted=yes] file:{source} ./\n")
    apt.get("update")
    subprocess.run([programs / "apt-mark", "hold", "containerd"], check=True, capture_output=True)
    installer = DpkgInstaller()
    assert installer.held(["containerd", "kubelet"]) == ["containerd"]
    install(journal, installer, [small_package(tmp_path / "ours", None, name, version, "deb") for name, version in OURS.items()])
    leave(journal, installer)
    assert apt.installed().keys() <= {"containerd"} and installer.installed(list(OURS)) == {}
    assert installer.held(["containerd", "kubelet"]) == ["containerd"]


@pytest.mark.parametrize("owners", ["", "exclude=kernel*\n"], ids=["nothing excluded", "something excluded"])
def test_dnf_upgrade_leaves_a_nodes_packages_alone(redhat: RedHat, journal: Journal, tmp_path: Path, owners: str) -> None:
    conf = redhat.root / "etc/dnf/dnf.conf"
    conf.parent.mkdir(parents=True)
    text = f"[main]\ngpgcheck=0\n{owners}pluginpath=/nonexistent\nproxy=\n"
    conf.write_text(text)
    source = tmp_path / "source"
    for name, version in {**THEIRS, "bystander": "2.0-1"}.items():
        small_package(source, None, name, version, "rpm", maintainer=OTHER)
    subprocess.run(["createrepo_c", "-q", source], check=True, capture_output=True)
    (redhat.root / "etc/yum.repos.d").mkdir()
    (redhat.root / "etc/yum.repos.d/theirs.repo").write_text(f"[theirs]\nname=theirs\nbaseurl=file://{source}\ngpgcheck=0\n")
    redhat.dnf("install", small_package(tmp_path / "old", None, "bystander", "1.0-1", "rpm").path)
    installer, names = RpmInstaller(str(redhat.root)), [*OURS, "bystander"]

    def upgrade() -> dict[str, str]:
        processes.run(["dnf", "-y", f"--installroot={redhat.root}", "--releasever=9", "upgrade"], timeout=300)
        return installer.installed(names)

    install(journal, installer, [small_package(tmp_path / "ours", None, name, version, "rpm") for name, version in OURS.items()])
    assert upgrade() == {**OURS, "bystander": "2.0-1"} and holds.changed(journal, installer) == []
    install(journal, installer, [small_package(tmp_path / "next", None, name, version, "rpm") for name, version in NEXT.items()])
    assert upgrade() == {**NEXT, "bystander": "2.0-1"}, "an upgrade of ours goes through, and is held as well"
    holds.release(journal, installer)
    assert upgrade() == {**THEIRS, "bystander": "2.0-1"}, "only the hold had kept them"
    assert [line.partition(" is a package of Another Maker")[0] for line in holds.changed(journal, installer)] == ["kubelet 1.35.9-1.1", "containerd 2.9.0-1"]
    leave(journal, installer)
    assert installer.installed(names) == {"bystander": "2.0-1"} and conf.read_text() == text


def test_older_packages_are_put_back_by_one_rpm_transaction(redhat: RedHat, journal: Journal, tmp_path: Path) -> None:
    installer = RpmInstaller(str(redhat.root))
    old = bundle(*[small_package(tmp_path / "ours", None, name, version, "rpm") for name, version in OURS.items()])
    install(journal, installer, [small_package(tmp_path / "next", None, name, version, "rpm") for name, version in NEXT.items()])
    installer.replace(old, old.packages)
    assert installer.installed([*OURS]) == OURS
    installer.replace(old, old.packages)
    assert installer.installed([*OURS]) == OURS
