"""The packages of a node are held while it is one, by the real dpkg and in dnf's own file; what the owner holds stays held."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ckp.agent.journal import STANDALONE, Journal, Member
from ckp.agent.node import inventory, reset
from ckp.agent.node.packages import install_packages
from ckp.agent.system import firewall, folders, holds, prepare, swap
from ckp.agent.system.installers import rpm
from ckp.agent.system.installers.base import Installer
from ckp.agent.system.installers.dpkg import DpkgInstaller, lock_holder
from ckp.agent.system.installers.rpm import RpmInstaller
from ckp.hostkit.errors import AgentError
from ckp.hostkit.processes import Finished
from ckp.standalone.command import standalone
from ckp.standalone.install import journal_of
from ckp.verify.bundle import BundleManifest, Package
from tests.unit.agent.test_agent_dpkg import manifest, package, root, script

assert root and script  # fixtures
OURS = {"Maintainer": "Coredge.io <support@coredge.io>"}


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    made = Journal(str(tmp_path / "journal.json"), str(tmp_path / "saved"))
    made.begin(Member("k", "v1.35.1", "b", "c", "m"))
    return made


@pytest.fixture
def bundle(tmp_path: Path) -> BundleManifest:
    """kubelet, kubeadm and containerd, as debs."""
    names = ("kubelet", "kubeadm", "containerd")
    return manifest(tmp_path, *(Package(package(tmp_path, name, **OURS).name, name, "1.0", "0" * 64) for name in names))


def wants(root: Path) -> dict[str, str]:
    said = subprocess.run(
        ["/usr/bin/dpkg-query", f"--admindir={root}/var/lib/dpkg", "-W", "-f", "${Package} ${db:Status-Want}\n"], capture_output=True, text=True, check=False
    )
    return dict(line.split() for line in said.stdout.splitlines())


def owners(root: Path, text: str) -> None:
    subprocess.run(["/usr/bin/dpkg", f"--root={root}", "--force-not-root", "--set-selections"], input=text, text=True, check=True)


def the_owner_installs(root: Path, file: Path) -> None:
    argv = ["/usr/bin/dpkg", f"--root={root}", "--force-not-root", "--force-depends", "--log=/dev/null", "-i", str(file)]
    subprocess.run(argv, check=True, capture_output=True)


def test_what_is_installed_is_held_again_after_each_installation_and_released_with_the_node(root: Path, journal: Journal, bundle: BundleManifest) -> None:
    installer, names = DpkgInstaller(), [item.name for item in bundle.packages]
    install_packages(journal, installer, bundle, names)
    assert wants(root) == dict.fromkeys(names, "hold")
    installer.install_file(bundle.path("kubelet.deb"))  # `dpkg -i` lifts a hold
    assert wants(root)["kubelet"] == "install"
    install_packages(journal, installer, bundle, names)
    assert wants(root) == dict.fromkeys(names, "hold"), "an upgrade of ours holds again"
    holds.release(journal, installer)
    holds.release(journal, installer)
    assert wants(root) == dict.fromkeys(names, "install")


def test_what_the_owner_held_stays_held(root: Path, journal: Journal, bundle: BundleManifest, tmp_path: Path) -> None:
    the_owner_installs(root, Path(bundle.path("containerd.deb")))
    owners(root, "containerd hold\n")
    installer = DpkgInstaller()
    install_packages(journal, installer, bundle, ["kubelet", "containerd"])
    install_packages(Journal(journal.path, journal.saved_dir), installer, bundle, ["kubelet", "containerd"])  # the agent was killed, and begins again
    assert journal.notes[holds.HOLDS] == {"ours": ["kubelet"], "owners": ["containerd"]}
    holds.release(journal, installer)
    installer.remove(journal.packages)
    holds.give_back(journal, installer)
    assert wants(root) == {"containerd": "hold"}


def test_a_kill_between_the_installation_and_the_hold_loses_neither(
    root: Path, journal: Journal, bundle: BundleManifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(DpkgInstaller, "hold", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        install_packages(journal, DpkgInstaller(), bundle, ["kubelet"])
    assert wants(root) == {"kubelet": "install"}
    again = Journal(journal.path, journal.saved_dir)
    install_packages(again, DpkgInstaller(), bundle, ["kubelet"])
    assert wants(root) == {"kubelet": "hold"} and again.notes[holds.HOLDS] == {"ours": ["kubelet"], "owners": []}


def test_a_reset_releases_before_it_removes_and_gives_back_afterwards(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    class Noting:
        name = "dpkg"

        def __getattr__(self, name: str) -> object:
            def call(names: list[str], *_: object) -> dict[str, str]:
                done.append(f"{name} {' '.join(names)}")
                return {}

            return call

    journal.add_packages(["kubelet"])
    journal.note(holds.HOLDS, {"ours": ["kubelet"], "owners": ["containerd"]})
    for module in (reset, folders, swap, firewall, prepare):
        monkeypatch.setattr(module, "run", lambda *_, **__: Finished(0, "", ""))
    for name in ("_end_containers", "_network", "_cgroups", "leftovers", "_iptables_programs"):
        monkeypatch.setattr(reset, name, lambda *_: [])
    for name in ("unmount_below", "empty", "remove_if_empty", "remove_empty_tree"):
        monkeypatch.setattr(folders, name, lambda *_: None)
    monkeypatch.setattr(reset, "FILES", ())
    reset.reset(journal, Noting())  # type: ignore[arg-type]
    relevant = [line for line in done if line.startswith(("release", "remove ", "hold"))]
    assert relevant == ["release kubelet", "remove kubelet", "hold containerd"]


def test_a_node_of_an_agent_without_holds_is_held_once(root: Path, journal: Journal, bundle: BundleManifest) -> None:
    installer = DpkgInstaller()
    installer.install(bundle, list(bundle.packages))
    journal.add_packages([item.name for item in bundle.packages])
    holds.adopt(journal, installer)
    assert set(wants(root).values()) == {"hold"}
    owners(root, "kubelet install\n")
    holds.adopt(Journal(journal.path, journal.saved_dir), installer)
    assert wants(root)["kubelet"] == "install", "what the owner lifts afterwards is the owner's decision"


def test_a_package_that_is_no_longer_ours_is_a_finding_that_resets_nothing(
    root: Path, journal: Journal, bundle: BundleManifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_packages(journal, DpkgInstaller(), bundle, ["kubelet", "kubeadm", "containerd"])
    monkeypatch.setattr(inventory, "of_host", DpkgInstaller)
    assert inventory.findings(journal) == (), "the installation is not complete: nothing is said of it"
    journal.finish_step("install", 1.0)
    assert inventory.findings(journal) == ()
    folder = tmp_path / "theirs"
    folder.mkdir()
    the_owner_installs(root, package(folder, "kubelet", Version="1.35.9-1.1", Maintainer="Kubernetes Authors <dev@kubernetes.io>"))
    the_owner_installs(root, package(folder, "containerd", Version="2.9", **OURS))
    subprocess.run(["/usr/bin/dpkg", f"--root={root}", "--force-not-root", "--log=/dev/null", "--purge", "kubeadm"], check=True, capture_output=True)
    seen = inventory.findings(journal)
    assert [item.problem for item in seen] == [
        "kubelet 1.35.9-1.1 is a package of Kubernetes Authors <dev@kubernetes.io>, not of Coredge.io (1.0 was installed)",
        "the package kubeadm, which CKP installed, is gone",
        "containerd is 2.9, and CKP installed 1.0",
    ]
    assert not any(item.blocking for item in seen) and all("ckp host remove" in item.remediation for item in seen)


def test_the_status_of_a_standalone_cluster_names_a_package_that_was_replaced(
    root: Path, bundle: BundleManifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = journal_of(str(tmp_path / "state"))
    journal.begin(Member(STANDALONE, "v1.35.1", "b"))
    install_packages(journal, DpkgInstaller(), bundle, ["kubelet"])
    assert wants(root) == {"kubelet": "hold"}, "a standalone cluster holds its packages too"
    folder = tmp_path / "theirs"
    folder.mkdir()
    the_owner_installs(root, package(folder, "kubelet", Version="1.35.9-1.1", Maintainer="Kubernetes Authors <dev@kubernetes.io>"))
    for done, said in ((), False), (("packages",), True):
        journal.done = list(done)
        journal.save()
        assert standalone(["status", "--state-dir", str(tmp_path / "state")]) == 1
        assert ("kubelet 1.35.9-1.1 is a package of Kubernetes Authors" in capsys.readouterr().out) is said


def test_who_has_locked_dpkg_is_said() -> None:
    assert lock_holder("E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 123 (unattended-upgr)") == "unattended-upgr (pid 123)"
    assert lock_holder("dpkg: error: dpkg frontend lock was locked by another process with pid 1").endswith("(pid 1)")
    assert lock_holder("dpkg: error: unable to access the dpkg database lock") == "another program"


def test_a_lock_that_is_not_given_up_is_waited_for_within_a_bound_and_the_error_says_who_has_it(
    root: Path, script: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter(range(0, 100_000, 50))
    monkeypatch.setattr("time.monotonic", lambda: float(next(ticks)))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(
        "ckp.agent.system.installers.dpkg.run",
        lambda argv, **_: Finished(2, "", "E: lock-frontend. It is held by process 9 (apt-get)"),
    )
    with pytest.raises(AgentError, match=r"apt-get \(pid 9\) has had dpkg locked for 120 s") as caught:
        DpkgInstaller().install_file("/x/kubelet.deb")
    assert caught.value.reason == "PackageManagerBusy" and not caught.value.permanent


# -- dnf.conf ------------------------------------------------------------------------------------------------------------

PLAIN = "[main]\ngpgcheck=1\nbest=True\n"
OWNERS = (
    PLAIN,
    "# mine\n[main]\ngpgcheck=1\nexclude=mutter, kubelet*\n",
    "[main]\nexcludepkgs = mutter,\n  glib2 # x\ngpgcheck=1\n",
    "[main]\nexclude=a\nexcludepkgs=b\n\n[local]\nbaseurl=file:///x\n",
    "[main]",
    "[local]\nbaseurl=file:///x\n",
)


@pytest.mark.parametrize("text", OWNERS)
def test_names_come_into_and_go_out_of_the_owners_dnf_conf(text: str) -> None:
    there = rpm.exclude(text, ["kubelet", "containerd"])
    assert {"kubelet", "containerd"} | rpm.excluded(text) == rpm.excluded(there)
    assert rpm.exclude(there, ["containerd", "kubelet"]) == there
    gone = rpm.include(there, ["kubelet", "containerd"])
    assert rpm.excluded(gone) == rpm.excluded(text)
    assert [line for line in gone.splitlines() if line not in ("[main]", "")] == [line for line in text.splitlines() if line not in ("[main]", "")]
    assert rpm.include(gone, ["kubelet"]) == gone


def test_only_whole_names_are_taken_out() -> None:
    assert rpm.include("[main]\nexcludepkgs=kubelet kubelet-doc xkubelet\n", ["kubelet"]) == "[main]\nexcludepkgs=kubelet-doc xkubelet\n"


def test_dnf_conf_keeps_what_the_owner_writes_meanwhile_and_its_mode(tmp_path: Path) -> None:
    conf = tmp_path / "etc/dnf/dnf.conf"
    conf.parent.mkdir(parents=True)
    conf.write_text(PLAIN)
    conf.chmod(0o640)
    installer: Installer = RpmInstaller(str(tmp_path))
    installer.hold(["kubelet"])
    assert installer.held(["kubelet", "kubeadm"]) == ["kubelet"]
    conf.write_text(conf.read_text() + "max_parallel_downloads=9\n")
    installer.release(["kubelet"])
    assert conf.read_text() == PLAIN + "max_parallel_downloads=9\n" and conf.stat().st_mode & 0o777 == 0o640


def test_a_host_without_dnf_conf_has_none_again(tmp_path: Path) -> None:
    installer = RpmInstaller(str(tmp_path))
    installer.hold(["kubelet"])
    assert installer.held(["kubelet"]) == ["kubelet"]
    installer.release(["kubelet"])
    assert not (tmp_path / "etc/dnf/dnf.conf").exists()
