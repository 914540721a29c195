"""The steps of a node's upgrade with the real dpkg in a root of its own; systemctl, kubeadm and the kubelet are scripts that note what they are told."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from ckp.agent.config import Config
from ckp.agent.journal import Journal, Member
from ckp.agent.messages import BundleRef, Membership, NodeUpgrade
from ckp.agent.node import join, packages, upgrade_steps
from ckp.agent.node.upgrade import MISSING, Record
from ckp.agent.node.upgrade_steps import HostUpgrade, check_space
from ckp.agent.system import facts, holds, prepare
from ckp.agent.system.installers.dpkg import DpkgInstaller
from ckp.hostkit.errors import AgentError, VerificationFailed
from ckp.verify.bundle import BundleManifest, Package
from tests.unit.agent.test_agent_dpkg import Script, root, script
from tests.unit.agent.test_agent_engine import member
from tests.unit.agent.test_agent_holds import wants

assert root and script  # fixtures
pytestmark = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="this machine has no dpkg")
OLD, NEW = "v1.34.3", "v1.35.1"
IMAGES = {OLD: "r.example:5000/ckp/b@sha256:" + "a" * 64, NEW: "r.example:5000/ckp/b@sha256:" + "b" * 64}
VERSIONS = {
    OLD: {"containerd": "1.7.28-ckp", "kubernetes-cni": "1.6.0-ckp", "kubelet": "1.34.3-ckp", "kubeadm": "1.34.3-ckp"},
    NEW: {"containerd": "1.7.28-ckp", "kubernetes-cni": "1.7.0-ckp", "kubelet": "1.35.1-ckp", "kubeadm": "1.35.1-ckp"},
}
RECORD = Record("1", NEW, IMAGES[NEW], OLD, IMAGES[OLD])
WANTED: Membership = replace(member(release=OLD), upgrade=NodeUpgrade("1", NEW, BundleRef(IMAGES[NEW], "t", NEW), "install"))


def never() -> bool:
    return False


def deb(folder: Path, name: str, version: str, preinst: str = "") -> Path:
    tree = Path(tempfile.mkdtemp(dir=folder))
    tree.chmod(0o755)
    (tree / "DEBIAN").mkdir()
    (tree / "usr/bin").mkdir(parents=True)
    (tree / "usr/bin" / name).write_text(f"{name} {version}\n")
    if name == "kubelet":
        (tree / "etc/default").mkdir(parents=True)
        (tree / "etc/default/kubelet").write_text(f"KUBELET_EXTRA_ARGS= # {version}\n")
        (tree / "DEBIAN/conffiles").write_text("/etc/default/kubelet\n")
    fields = {"Package": name, "Version": version, "Architecture": "amd64", "Maintainer": "Coredge.io <support@coredge.io>", "Description": "a package"}
    (tree / "DEBIAN/control").write_text("".join(f"{key}: {value}\n" for key, value in fields.items()))
    if preinst:
        (tree / "DEBIAN/preinst").write_text(f"#!/bin/sh\n{preinst}\n")
        (tree / "DEBIAN/preinst").chmod(0o755)
    file = folder / f"{name}_{version}.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", str(tree), str(file)], check=True, timeout=60, capture_output=True)
    return file


class Node:
    """A node of OLD, its bundles as they would be after their verification, and the steps."""

    def __init__(self, folder: Path, root: Path, script: Script, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.root = folder, root
        state = folder / "state"
        self.config = Config("https://hub", "wss://hub", "/ca", state_dir=str(state))
        self.journal = Journal(str(state / "journal.json"), str(state / "saved"))
        self.journal.begin(Member(WANTED.key(), OLD, IMAGES[OLD]))
        self.bundles: dict[str, Path] = {}
        for release, versions in VERSIONS.items():
            self.bundles[IMAGES[release]] = place = state / "bundles" / IMAGES[release][-64:]
            place.mkdir(parents=True)
            for name, version in versions.items():
                deb(folder, name, version).rename(place / f"{name}.deb")
        patch.setattr(upgrade_steps, "verify_bundle", self.verified)
        patch.setattr(facts, "host_facts_os", lambda: ("debian", "12", "amd64"))
        patch.setattr(upgrade_steps, "of_host", DpkgInstaller)
        self.kubelet = root / "var/lib/kubelet"
        self.kubelet.mkdir(parents=True)
        patch.setattr(upgrade_steps, "KUBELET_FILES", tuple(str(self.kubelet / Path(path).name) for path in upgrade_steps.KUBELET_FILES))
        (self.kubelet / "config.yaml").write_text("of the old release\n")
        (self.kubelet / "kubeadm-flags.env").write_text('KUBELET_KUBEADM_ARGS="--pod-infra-container-image=r/pause:3.10"\n')
        script("systemctl", f'echo "systemctl $*" >> {folder}/log')
        script("kubelet", f'echo "Kubernetes v$(cut -d" " -f2 {root}/usr/bin/kubelet)"')
        script(
            "kubeadm",
            f"""echo "kubeadm $*" >> {folder}/log
            echo of the new release > {self.kubelet}/config.yaml; echo > {self.kubelet}/kubeadm-flags.env; echo x > {self.kubelet}/instance-config.yaml""",
        )
        patch.setattr(upgrade_steps, "main_pid", lambda unit: "7")
        patch.setattr(upgrade_steps, "runs_program", lambda unit, path: True)
        patch.setattr(join, "kubelet_health", lambda: "")
        patch.setattr(upgrade_steps, "STEADY_SECONDS", 0.0)
        self.steps = HostUpgrade(self.config, self.journal, ignored=lambda: [])
        packages.install_packages(self.journal, DpkgInstaller(), self.manifest(OLD), list(VERSIONS[OLD]))

    def manifest(self, release: str) -> BundleManifest:
        listed = tuple(Package(f"{name}.deb", name, version, "0" * 64) for name, version in VERSIONS[release].items())
        return BundleManifest(str(self.bundles[IMAGES[release]]), release, f"{release[1:]}-ckp", "debian", "12", "amd64", "r", listed, {}, {})

    def verified(self, folder: str, keyring: str, release: str) -> BundleManifest:
        found = self.manifest(release)
        assert found.folder == folder
        if (Path(folder) / "spoilt").exists():
            raise VerificationFailed("a digest is another")
        return found

    def run(self, *steps: str, record: Record = RECORD) -> str:
        note = ""
        for step in steps:
            note = self.steps.run(step, record, WANTED, never)
        return note

    def installed(self) -> dict[str, str]:
        return DpkgInstaller().installed(list(VERSIONS[OLD]))

    def log(self) -> list[str]:
        path = self.folder / "log"
        return path.read_text().splitlines() if path.exists() else []

    def files(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in self.kubelet.iterdir()}


@pytest.fixture
def node(tmp_path: Path, root: Path, script: Script, monkeypatch: pytest.MonkeyPatch) -> Node:
    return Node(tmp_path, root, script, monkeypatch)


def test_the_packages_are_replaced_in_one_run_of_dpkg_and_stay_held(node: Node, script: Script) -> None:
    before = node.files()
    node.run("space", "verify", "save")
    script("dpkg", f'echo "dpkg $*" >> {node.folder}/log; exec /usr/bin/dpkg --root={node.root} --force-depends --force-not-root --log=/dev/null "$@"')
    node.run("install")
    assert node.installed() == VERSIONS[NEW]
    runs = [line for line in node.log() if " -i " in line]
    assert len(runs) == 1 and runs[0].count(".deb") == 3, "and containerd, which is the same, is not among them: nothing restarts it"
    assert set(wants(node.root).values()) == {"hold"}
    assert holds.changed(node.journal, DpkgInstaller()) == [] and node.journal.notes[holds.VERSIONS] == VERSIONS[NEW]
    assert node.files() == before and not any(line.startswith("systemctl") for line in node.log()), "the kubelet runs on"


def test_configuration_that_the_owner_changed_stays_and_is_reported(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    path = node.root / "etc/default/kubelet"
    path.write_text("KUBELET_EXTRA_ARGS=--v=4\n")
    monkeypatch.setattr(DpkgInstaller, "changed_configuration", lambda self, names: ["/etc/default/kubelet"])  # it looks below /, not in the test's root
    assert node.run("save", "install") == "configuration kept as the owner changed it: /etc/default/kubelet"
    assert path.read_text() == "KUBELET_EXTRA_ARGS=--v=4\n" and "1.35.1" in path.with_name("kubelet.dpkg-dist").read_text()
    node.journal.saved["/etc/default/kubelet"] = {"absent": True, "folders": []}  # what CKP itself has written is no owner's
    assert node.run("install") == ""


def test_changed_configuration_is_what_differs_from_dpkgs_own_record(script: Script, tmp_path: Path) -> None:
    same, other = tmp_path / "same", tmp_path / "other"
    same.write_text("x")
    other.write_text("y")
    digest = "9dd4e461268c8034f5c8564e155c67a6"  # of "x"
    script("dpkg-query", f'printf "%s\\n" "" " {same} {digest}" " {other} {digest}" " {tmp_path}/gone {digest}" " {tmp_path}/old {digest} obsolete"')
    assert DpkgInstaller().changed_configuration(["kubelet"]) == [f"{tmp_path}/gone", str(other)]


def test_kubeadm_gets_this_hosts_patches_and_the_checks_that_it_cannot_pass(node: Node, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    node.run("configure")
    assert node.log() == ["kubeadm upgrade node"]
    monkeypatch.setattr(prepare, "PATCHES_DIR", str(tmp_path))
    node.steps.ignored = lambda: ["SystemVerification"]
    node.run("configure")
    assert node.log()[-1] == f"kubeadm upgrade node --patches {tmp_path} --ignore-preflight-errors=SystemVerification"


def test_the_restart_leaves_containerd_alone_unless_its_program_was_replaced(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    assert node.run("restart") == "restarted kubelet"
    assert node.log() == ["systemctl daemon-reload", "systemctl restart kubelet"]
    started: list[str] = []
    monkeypatch.setattr(prepare, "start_containerd", lambda: started.append("containerd"))
    monkeypatch.setattr(upgrade_steps, "runs_program", lambda unit, path: unit != "containerd")
    assert node.run("restart") == "restarted containerd and kubelet" and started == ["containerd"]


def test_a_package_that_fails_half_way_is_put_back_with_the_configuration(node: Node) -> None:
    before = node.files()
    node.run("save")
    broken = deb(node.folder, "kubelet", "1.35.1-ckp+broken", preinst="exit 1")
    shutil.copy(broken, node.bundles[IMAGES[NEW]] / "kubelet.deb")
    with pytest.raises(AgentError, match="installing kubernetes-cni, kubelet, kubeadm failed"):
        node.run("install")
    assert node.installed()["kubernetes-cni"] == "1.7.0-ckp" and node.installed()["kubelet"] == "1.34.3-ckp", "half of it is there"
    node.run("configure")
    assert node.files() != before
    node.run("reinstall", "restore", "restart-old", "check-old")
    assert node.installed() == VERSIONS[OLD] and node.files() == before
    assert set(wants(node.root).values()) == {"hold"} and holds.changed(node.journal, DpkgInstaller()) == []


def test_a_whole_upgrade_is_put_back_also_if_a_power_cut_left_a_package_half_unpacked(node: Node) -> None:
    before = node.files()
    node.run("save", "install", "configure", "restart", "check")
    status = node.root / "var/lib/dpkg/status"
    text = status.read_text()
    at = text.index("Package: kubelet\n")
    status.write_text(text[:at] + text[at:].replace("hold ok installed", "hold reinstreq half-installed", 1))
    node.run("reinstall", "restore", "restart-old", "check-old")
    assert node.installed() == VERSIONS[OLD] and DpkgInstaller().broken(list(VERSIONS[OLD])) == [] and node.files() == before


def test_what_the_new_release_brought_is_removed_on_the_way_back(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    deb(node.folder, "cri-tools", "1.35.0-ckp").rename(node.bundles[IMAGES[NEW]] / "cri-tools.deb")
    with monkeypatch.context() as patch:
        patch.setitem(VERSIONS, NEW, {**VERSIONS[NEW], "cri-tools": "1.35.0-ckp"})
        node.run("save", "install")
        assert DpkgInstaller().installed(["cri-tools"]) and "cri-tools" in node.journal.packages
        node.run("reinstall")
    assert DpkgInstaller().installed(["cri-tools"]) == {} and "cri-tools" not in node.journal.packages


def test_what_is_kept_is_of_the_old_release_even_if_save_runs_again(node: Node) -> None:
    before = node.files()
    node.run("save", "configure")
    node.run("save", record=replace(RECORD, saved=True))
    node.run("restore")
    assert node.files() == before


def test_nothing_is_changed_unless_both_bundles_verify_again(node: Node) -> None:
    spoilt = node.bundles[IMAGES[NEW]] / "spoilt"
    spoilt.touch()
    with pytest.raises(VerificationFailed):
        node.run("save")
    assert not spoilt.parent.exists()
    with pytest.raises(AgentError) as caught:
        node.run("save")
    assert caught.value.reason == MISSING


def test_without_a_verified_way_back_there_is_no_upgrade(node: Node) -> None:
    (node.bundles[IMAGES[OLD]] / "spoilt").touch()
    with pytest.raises(AgentError, match="to which it would go back, does not verify") as caught:
        node.run("verify")
    assert caught.value.reason == "NoWayBack" and caught.value.permanent


def test_a_downgrade_is_refused(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VERSIONS, NEW, {**VERSIONS[NEW], "kubelet": "1.33.7-ckp"})
    with pytest.raises(VerificationFailed, match="a downgrade is refused"):
        node.run("verify")
    node.steps.run("verify", RECORD, replace(WANTED, allow_downgrade=True), never)


def test_both_bundles_are_kept_and_an_old_one_that_is_missing_is_pulled_again(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    pulled: list[str] = []

    def pull(imgpkg: str, image: str, folder: str, ca: str, cancelled: object = None) -> str:
        if Path(folder).is_dir():
            return ""
        Path(folder).mkdir()
        pulled.append(image)
        return "1 MB"

    monkeypatch.setattr(upgrade_steps, "pull_bundle", pull)
    other = Path(node.config.state_dir) / "bundles" / ("c" * 64)
    other.mkdir()
    shutil.rmtree(node.bundles[IMAGES[OLD]])
    assert node.run("pull") == f"t was pulled before; and {OLD}, to go back to"
    assert pulled == [IMAGES[OLD]] and not other.exists() and node.bundles[IMAGES[NEW]].exists()
    node.steps.tidy([IMAGES[NEW]])
    assert not node.bundles[IMAGES[OLD]].exists() and node.bundles[IMAGES[NEW]].exists()


def test_space_is_judged_for_all_that_lies_on_one_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "disk", lambda place: (100 << 30, 1 << 30))
    check_space({str(tmp_path): 300 << 20, str(tmp_path / "not/there"): 300 << 20})
    with pytest.raises(AgentError, match=r"1024 MiB are free on the disk of .*, and the upgrade needs 1256 MiB") as caught:
        check_space({str(tmp_path): 500 << 20, str(tmp_path / "not/there"): 500 << 20})
    assert caught.value.reason == "DiskFull"


def test_a_newer_minor_of_containerd_is_not_gone_back_from(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.run("save")
    assert node.steps.no_way_back(RECORD) == ""
    monkeypatch.setattr(DpkgInstaller, "installed", lambda self, names: {"containerd": "2.1.4-ckp"})
    assert node.steps.no_way_back(RECORD) == "containerd 1.7.28-ckp may not read what containerd 2.1.4-ckp has written"


def test_the_check_wants_the_new_version_running_and_healthy_for_a_while(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AgentError, match=r"and v1\.35\.1 is expected") as wrong:
        node.run("check")
    assert wrong.value.reason == "WrongVersion"
    node.run("save", "install")
    assert node.run("check") == "kubelet 1.35.1-ckp"
    monkeypatch.setattr(upgrade_steps, "CHECK_SECONDS", 0.0)
    for name, value, words in (
        ("main_pid", lambda unit: "", "it does not run"),
        ("runs_program", lambda unit, path: False, "an older program runs"),
        ("STEADY_SECONDS", 10.0, "it is healthy since 0 s"),
    ):
        with monkeypatch.context() as patch, pytest.raises(AgentError, match=r"timed out .* waiting until the kubelet is healthy at v1\.35\.1") as late:
            patch.setattr(upgrade_steps, name, value)
            node.run("check")
        assert late.value.reason == "KubeletUnhealthy" and late.value.details.endswith(words)


def test_a_kubelet_that_is_started_again_and_again_is_not_steady(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.run("save", "install")
    moments = iter(range(100))
    monkeypatch.setattr("ckp.agent.node.upgrade_steps.time.monotonic", lambda: float(next(moments)))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    pids = iter(str(number // 3) for number in range(100))
    monkeypatch.setattr(upgrade_steps, "main_pid", lambda unit: next(pids))
    monkeypatch.setattr(upgrade_steps, "STEADY_SECONDS", 12.0)
    monkeypatch.setattr(upgrade_steps, "CHECK_SECONDS", 60.0)
    with pytest.raises(AgentError, match="timed out"):
        node.run("check")


def test_the_program_of_a_service_is_told_from_one_that_was_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: Script) -> None:
    script("systemctl", "echo 7")
    monkeypatch.setattr(upgrade_steps, "PROC", str(tmp_path))
    program = tmp_path / "kubelet"
    program.write_text("old")
    (tmp_path / "7").mkdir()
    (tmp_path / "7/exe").symlink_to(program)
    assert upgrade_steps.runs_program("kubelet", str(program))
    new = tmp_path / "new"
    new.write_text("new")
    (tmp_path / "7/exe").unlink()
    (tmp_path / "7/exe").symlink_to(f"{program} (deleted)")
    assert not upgrade_steps.runs_program("kubelet", str(program))
    script("systemctl", "echo 0")
    assert upgrade_steps.main_pid("kubelet") == "" and not upgrade_steps.runs_program("kubelet", str(program))
