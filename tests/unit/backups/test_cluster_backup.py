"""Backups of workload clusters, by the program of their Jobs: taken, proved, kept, refused, restored; and killed on the way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ckp.api import backup_job as job
from ckp.api.backup_job import JobReport, Task
from ckp.backups.__main__ import perform
from ckp.backups.cluster import LIVE, NEW, OLD, RESTORED_MARK
from ckp.rules.cluster_backups import BUMP, backup_id
from tests.simulators.etcd_gateway import EtcdGateway
from tests.simulators.etcd_programs import install, read_member, snapshot_of
from tests.support.kills import stride
from tests.worlds.cluster_backup import FIRST, PASSPHRASE, SECRETS, ClusterBackupWorld, killed, make_signer, name_of

KEYS = {f"/registry/configmaps/default/c{number}": "x" * 500 for number in range(50)}


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_signer(tmp_path_factory.mktemp("signer") / "signer")


@pytest.fixture
def etcd() -> Iterator[EtcdGateway]:
    with EtcdGateway(snapshot_of(7, KEYS)).serving() as gateway:
        yield gateway


@pytest.fixture
def world(tmp_path: Path, signer: Path, etcd: EtcdGateway) -> ClusterBackupWorld:
    (tmp_path / "programs").mkdir()
    (tmp_path / "pod").mkdir()
    return ClusterBackupWorld(tmp_path / "pod", signer, install(tmp_path / "programs"), (f"http://127.0.0.1:{etcd.port}",))


def test_a_backup_is_made_proved_and_can_be_checked(world: ClusterBackupWorld) -> None:
    taken = world.run(Task.TAKE)
    assert taken.ok, taken.message
    assert (taken.revision, taken.keys, taken.version, taken.kept) == (7, 51, "v1.35.1", (backup_id(FIRST),))
    assert world.stored == [name_of()] and taken.size == (world.root / "folder" / name_of()).stat().st_size
    checked = world.run(Task.CHECK)
    assert (checked.ok, checked.revision, checked.size) == (True, 7, taken.size)
    assert [path.name for path in (world.root / "scratch").iterdir()] == ["etcd.log"], "nothing of the backup stays where it was worked"


def test_nothing_secret_is_readable_in_a_backup_or_in_a_report(world: ClusterBackupWorld, capfd: pytest.CaptureFixture[str]) -> None:
    taken = world.run(Task.TAKE)
    said = "".join(capfd.readouterr()) + taken.model_dump_json() + world.request(Task.TAKE).model_dump_json()
    content = (world.root / "folder" / name_of()).read_bytes()
    for secret in (*SECRETS.values(), PASSPHRASE):
        assert secret not in said and secret.encode() not in content


def test_older_backups_go_when_there_are_enough_and_others_stay(world: ClusterBackupWorld) -> None:
    stranger = world.root / "folder" / "tenant.demo.fedcba98-20200101T000000Z.backup"
    stranger.write_text("of an earlier cluster of this name")
    for number in range(4):
        report = world.run(Task.TAKE, number, keep=2)
        assert report.ok
    assert world.stored == [name_of(2), name_of(3), stranger.name]
    assert len(report.kept) == 2


def test_a_backup_that_is_there_already_is_checked_and_not_made_again(world: ClusterBackupWorld, etcd: EtcdGateway) -> None:
    first = world.run(Task.TAKE)
    etcd.asked.clear()
    assert world.run(Task.TAKE) == first
    assert etcd.asked == []


def test_without_etcd_there_is_no_backup_and_the_report_says_why(world: ClusterBackupWorld) -> None:
    world.urls = ("http://127.0.0.1:1",)
    report = world.run(Task.TAKE)
    assert not report.ok and "no member of the cluster's etcd gave a snapshot: http://127.0.0.1:1" in report.message
    assert world.stored == []


def test_the_next_member_is_asked_where_one_breaks_off(world: ClusterBackupWorld, etcd: EtcdGateway) -> None:
    with EtcdGateway(snapshot_of(9, KEYS), breaks_off=1).serving() as broken:
        world.urls = (f"http://127.0.0.1:{broken.port}", *world.urls)
        report = world.run(Task.TAKE)
    assert (report.ok, report.revision) == (True, 7)


def test_what_no_kubernetes_wrote_is_no_backup(world: ClusterBackupWorld, etcd: EtcdGateway) -> None:
    etcd.database = snapshot_of(7, {}).replace(b"/registry/namespaces/kube-system", b"/registry/namespaces/something-")
    report = world.run(Task.TAKE)
    assert not report.ok and "no Kubernetes has kept its objects in it" in report.message
    assert world.stored == []


def other_cluster(world: ClusterBackupWorld) -> None:
    """The name of its file alone does not make it one of this cluster's."""
    (world.root / "folder" / name_of()).rename(world.root / "folder" / name_of().replace("demo", "else"))
    world.cluster = world.cluster.model_copy(update={"name": "else"})
    world.cluster = world.cluster.model_copy(update={"identity": "01234567ffffffff"})


def damaged(world: ClusterBackupWorld) -> None:
    path = world.root / "folder" / name_of()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_off(world: ClusterBackupWorld) -> None:
    path = world.root / "folder" / name_of()
    path.write_bytes(path.read_bytes()[:-200])


def other_passphrase(world: ClusterBackupWorld) -> None:
    (world.root / "keys" / job.PASSPHRASE).write_text("another passphrase than that")


def older_cluster(world: ClusterBackupWorld) -> None:
    world.cluster = world.cluster.model_copy(update={"version": "v1.34.3"})


def gone(world: ClusterBackupWorld) -> None:
    (world.root / "folder" / name_of()).unlink()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_cluster, "the backup is of the cluster tenant/demo, not of tenant/else"),
        (damaged, "could not be decrypted, or is not whole"),
        (cut_off, "could not be decrypted, or is not whole"),
        (other_passphrase, "could not be decrypted"),
        (older_cluster, "the backup is of Kubernetes v1.35.1, and the cluster has v1.34.3"),
        (gone, "has no backup tenant.demo.01234567-"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_backup_that_can_not_be_restored_is_refused_by_name_and_nothing_is_changed(world: ClusterBackupWorld, change: object, said: str) -> None:
    assert world.run(Task.TAKE).ok
    (world.root / "data" / LIVE).mkdir()
    assert callable(change)
    change(world)
    for report in (world.run(Task.CHECK), world.place()):
        assert not report.ok and said in report.message, report.message
    assert [path.name for path in (world.root / "data").iterdir()] == [LIVE]


def test_a_backup_that_somebody_else_signed_is_refused(world: ClusterBackupWorld, tmp_path: Path) -> None:
    assert world.run(Task.TAKE).ok
    stranger = make_signer(tmp_path / "stranger")
    for name in (job.SIGNER_KEY, job.SIGNER_CERTIFICATE):
        (world.root / "keys" / name).write_bytes((stranger / name).read_bytes())
    report = world.run(Task.CHECK)
    assert not report.ok and "is signed by the key" in report.message


def test_a_members_volume_gets_the_data_with_a_raised_revision_in_a_cluster_of_its_own(world: ClusterBackupWorld) -> None:
    assert world.run(Task.TAKE).ok
    (world.root / "data" / LIVE).mkdir()
    (world.root / "data" / LIVE / "old").write_text("before")
    report = world.place(seen=1207)
    assert report.ok, report.message
    found = read_member(world.root / "data" / LIVE)
    assert found["revision"] == report.revision == 1207 + BUMP and found["keys"]["/registry/configmaps/default/c0"] == "x" * 500
    assert (found["made"]["initial-cluster-token"], found["made"]["name"], found["made"]["compacted"]) == ("restore-1", "demo-etcd-0", True)
    assert sorted(path.name for path in (world.root / "data").iterdir()) == [LIVE, RESTORED_MARK]


def test_a_volume_is_given_its_data_once_so_that_what_etcd_has_written_since_stays(world: ClusterBackupWorld) -> None:
    assert world.run(Task.TAKE).ok and world.place().ok
    (world.root / "data" / LIVE / "written").write_text("since")
    assert world.place().message == "it had the data already"
    assert (world.root / "data" / LIVE / "written").exists()
    assert world.place(restore="restore-2").ok
    assert not (world.root / "data" / LIVE / "written").exists()


@pytest.mark.parametrize("at", range(1, 40, stride(8)))
def test_a_backup_that_is_killed_leaves_nothing_by_its_name_or_all_of_it_and_is_made_by_the_next_run(world: ClusterBackupWorld, at: int) -> None:
    killed(lambda: world.run(Task.TAKE), at)
    finished = [name for name in world.stored if not name.startswith(".")]
    if finished:
        assert finished == [name_of()] and world.run(Task.CHECK).ok
    assert world.run(Task.TAKE).ok
    assert world.stored == [name_of()]


@pytest.mark.parametrize("at", range(1, 60, stride(12)))
def test_placing_that_is_killed_is_finished_by_the_next_run(world: ClusterBackupWorld, at: int) -> None:
    assert world.run(Task.TAKE).ok
    (world.root / "data" / LIVE).mkdir()
    (world.root / "data" / LIVE / "old").write_text("before")
    killed(world.place, at)
    assert world.place().ok
    assert read_member(world.root / "data" / LIVE)["revision"] == 7 + BUMP
    assert not (world.root / "data" / NEW).exists() and not (world.root / "data" / OLD).exists()


def test_a_request_that_can_not_be_read_is_reported(world: ClusterBackupWorld) -> None:
    reports: list[JobReport] = []
    assert perform({}, world.files, world.programs, reports.append) == 2
    assert not reports[0].ok
