"""A node's folders are emptied of what came with the cluster; what their owner had in them, and what is mounted there, stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckp.agent.config import Config
from ckp.agent.journal import STANDALONE, Journal, Member
from ckp.agent.node import actions as host
from ckp.agent.node import preflight
from ckp.agent.node.actions import HostActions
from ckp.agent.node.reset import NOTHING
from ckp.agent.system import folders
from ckp.hostkit.errors import ProcessFailed
from ckp.hostkit.processes import Finished

Places = dict[str, Path]
CNI, CONTAINERD, ETCD, KUBELET = "/etc/cni/net.d", "/var/lib/containerd", "/var/lib/etcd", "/var/lib/kubelet"


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    made = Journal(str(tmp_path / "state/journal.json"), str(tmp_path / "state/saved"))
    made.begin(Member("uid-1", "v1.35.1", "r/b@sha256:" + "a" * 64, "c"))
    return made


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folders of a node, moved into one of the test."""
    for name in ("KUBERNETES_FOLDERS", "CILIUM_FOLDERS", "CONTAINERD_FOLDERS", "TAKEN_FOLDERS"):
        monkeypatch.setattr(folders, name, tuple(f"{tmp_path}{folder}" for folder in getattr(folders, name)))
    for name in ("ETCD_FOLDER", "CNI_CONFIGURATION"):
        monkeypatch.setattr(folders, name, f"{tmp_path}{getattr(folders, name)}")
    return tmp_path


def fill(place: Path, path: str, content: str = "x") -> Path:
    file = place / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
    return file


def clean(journal: Journal) -> None:
    folders.give_back_configuration(journal)
    for folder in (*folders.of_kubernetes(journal), *folders.CILIUM_FOLDERS, *folders.CONTAINERD_FOLDERS):
        folders.empty(journal, folder)


def test_a_folder_is_emptied_and_mounts_in_it_are_not_entered(journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "place/kubelet"
    (folder / "pods/a/volume").mkdir(parents=True)
    (folder / "pods/a/volume/precious").write_text("x")
    (folder / "plugins").mkdir()
    (folder / "config.yaml").write_text("x")
    (folder / "link").symlink_to(tmp_path)
    monkeypatch.setattr(folders, "mounts", lambda: [str(folder / "pods/a/volume")])
    folders.empty(journal, str(folder))
    assert sorted(path.name for path in folder.iterdir()) == ["pods"]
    assert (folder / "pods/a/volume/precious").read_text() == "x"
    monkeypatch.setattr(folders, "mounts", lambda: [str(folder)])
    folders.empty(journal, str(folder))
    assert not folder.exists() and tmp_path.exists()


def test_mount_points_of_others_are_not_accessed(journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even lstat of one waits for ever while its server (NFS, sshfs) is away."""
    import os

    (tmp_path / "kubelet").mkdir()
    (tmp_path / "kubelet/file").write_text("x")
    looked: list[str] = []
    real = os.lstat

    def lstat(path: str, **more: int) -> os.stat_result:
        looked.append(str(path))
        return real(path, **more)

    monkeypatch.setattr(folders, "mounts", lambda: ["/mnt/nas"])
    monkeypatch.setattr(os, "lstat", lstat)
    folders.empty(journal, str(tmp_path / "kubelet"))
    assert not (tmp_path / "kubelet").exists() and "/mnt/nas" not in looked


def test_a_folder_that_its_owner_has_linked_elsewhere_is_emptied_there_and_link_and_target_stay(journal: Journal, tmp_path: Path) -> None:
    (tmp_path / "data/snapshots").mkdir(parents=True)
    (tmp_path / "containerd").symlink_to(tmp_path / "data")
    folders.empty(journal, str(tmp_path / "containerd"))
    assert (tmp_path / "containerd").is_symlink() and (tmp_path / "data").is_dir()
    assert folders.left_in(journal, str(tmp_path / "containerd")) == []


def test_what_was_there_before_stays_and_is_not_reported_as_a_leftover(journal: Journal, place: Path) -> None:
    fill(place, f"{CNI}/87-podman-bridge.conflist", "podman's")
    fill(place, "/var/lib/cni/networks/podman/10.88.0.2")
    folders.remember_present(journal)
    (place / CNI[1:] / "87-podman-bridge.conflist").rename(place / CNI[1:] / "87-podman-bridge.conflist.cilium_bak")
    fill(place, f"{CNI}/05-cilium.conflist")
    fill(place, f"{KUBELET}/config.yaml")
    fill(place, "/var/lib/cni/results/x")
    again = Journal(journal.path, journal.saved_dir)
    clean(again)
    assert (place / CNI[1:] / "87-podman-bridge.conflist").read_text() == "podman's"
    assert sorted(path.name for path in (place / CNI[1:]).iterdir()) == ["87-podman-bridge.conflist"]
    assert (place / "var/lib/cni/networks/podman/10.88.0.2").exists() and not (place / "var/lib/cni/results").exists()
    assert not (place / KUBELET[1:]).exists()
    assert all(folders.left_in(again, folder) == [] for folder in folders.of_kubernetes(again))


def test_a_workers_own_etcd_is_not_ours(journal: Journal, place: Path) -> None:
    data = fill(place, f"{ETCD}/default/member/snap/db")
    folders.remember_present(journal)
    clean(journal)
    assert data.exists()


def test_a_standalone_clusters_etcd_is(journal: Journal, place: Path) -> None:
    journal.begin(Member(STANDALONE))
    data = fill(place, f"{ETCD}/member/snap/db")
    clean(journal)
    assert not data.exists()


def test_content_of_the_cluster_is_never_recorded_as_the_owners(journal: Journal, place: Path) -> None:
    """An agent that is upgraded in the midst of a join by an older one, which had not looked, does not look any more."""
    journal.note("sysctl", {"net.ipv4.ip_forward": "0"})
    fill(place, f"{CONTAINERD}/io.containerd.snapshotter.v1.overlayfs/metadata.db")
    folders.remember_present(journal)
    assert folders.PRESENT not in journal.notes
    clean(journal)
    assert not (place / CONTAINERD[1:]).exists()


class NoPackages:
    name = "dpkg"

    def installed(self, names: object) -> dict[str, str]:
        return {}


def test_a_runtime_that_no_package_tells_of_keeps_a_host_from_being_a_node(journal: Journal, place: Path) -> None:
    (place / CONTAINERD[1:] / "lost+found").mkdir(parents=True)  # a disk of its own, empty
    found = preflight.Findings()
    preflight.common(found, journal, NoPackages())  # type: ignore[arg-type]
    assert not any("containerd" in line for line in found.lines)
    fill(place, f"{CONTAINERD}/io.containerd.metadata.v1.bolt/meta.db")
    preflight.common(found, journal, NoPackages())  # type: ignore[arg-type]
    assert any(f"{CONTAINERD} is not empty: software that was not installed from a package uses it" in line for line in found.lines)


def test_a_host_that_was_released_before_any_change_is_not_touched(journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner may have made it a node of another cluster meanwhile, which is why the preflight refused it."""

    def never() -> object:
        raise AssertionError("the host is looked at")

    monkeypatch.setattr(host, "of_host", never)
    monkeypatch.setattr(host, "own_version", lambda default: default)
    journal.note("generation", 4)
    actions = HostActions(Config("https://hub:8443", "wss://hub:8444", "/ca", state_dir=str(tmp_path / "state")), journal)
    assert actions.reset(lambda: False) == NOTHING
    journal.note("sysctl", {})
    with pytest.raises(AssertionError):
        actions.reset(lambda: False)


def test_a_mount_whose_server_is_away_is_let_go(journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, asked = [str(tmp_path / "pods/a/nfs")], []

    def umount(argv: list[str], **_: object) -> Finished:
        asked.append(argv[1])
        if argv[1] != "-l":
            raise ProcessFailed("umount did not end within 30 s")
        here.clear()
        return Finished(0, "", "")

    monkeypatch.setattr(folders, "mounts", lambda: list(here))
    monkeypatch.setattr(folders, "run", umount)
    folders.unmount_below(journal, str(tmp_path))
    assert asked == [str(tmp_path / "pods/a/nfs"), "-l"]
