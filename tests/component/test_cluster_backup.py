"""Backups of a workload cluster's etcd with the release's own programs: a snapshot, the loss of all data, the restore; each key is there again, and who watched
from a revision of before is told that it is gone.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ckp.api import backup_job as job
from ckp.api.backup_job import Placement, Task
from ckp.backups.cluster import LIVE
from ckp.backups.scratch import Programs
from ckp.rules.cluster_backups import BUMP
from tests.component.test_etcd import RealEtcd, running
from tests.support.control_plane import built
from tests.worlds.cluster_backup import ClusterBackupWorld, make_signer, name_of

pytestmark = pytest.mark.component

KUBE_SYSTEM = "/registry/namespaces/kube-system"


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_signer(tmp_path_factory.mktemp("signer") / "signer")


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[RealEtcd]:
    (tmp_path / "etcd").mkdir()
    made = RealEtcd(tmp_path / "etcd", name="demo-etcd-0")
    with running(made):
        yield made


@pytest.fixture
def world(tmp_path: Path, signer: Path, etcd: RealEtcd) -> ClusterBackupWorld:
    (tmp_path / "pod").mkdir()
    programs = Programs(built("etcd").binary("etcd"), built("etcd").binary("etcdutl"))
    made = ClusterBackupWorld(tmp_path / "pod", signer, programs, (f"https://127.0.0.1:{etcd.client_port}",))
    for name, content in (("ca.crt", etcd.credentials.ca), ("client.crt", etcd.credentials.certificate), ("client.key", etcd.credentials.key)):
        (made.root / "etcd" / name).write_bytes(content)
    return made


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


class Client:
    """etcd's JSON gateway, as the API server's client certificate opens it."""

    def __init__(self, etcd: RealEtcd) -> None:
        from ckp.clients.etcd import client_context

        self.http = httpx.Client(base_url=f"https://127.0.0.1:{etcd.client_port}", verify=client_context(etcd.credentials), trust_env=False, timeout=20)

    def put(self, key: str, value: str) -> int:
        return int(self.http.post("/v3/kv/put", json={"key": encoded(key), "value": encoded(value)}).raise_for_status().json()["header"]["revision"])

    def all(self) -> tuple[str, int]:
        """The digest of all keys and values, and the revision."""
        found = self.http.post("/v3/kv/range", json={"key": "AA==", "range_end": "AA=="}).raise_for_status().json()
        pairs = sorted((item["key"], item["value"]) for item in found["kvs"])
        return hashlib.sha256(json.dumps(pairs).encode()).hexdigest(), int(found["header"]["revision"])

    def watch_from(self, revision: int) -> dict[str, Any]:
        """What a watch of all keys that goes on after `revision` is told first that is not its beginning."""
        body = {"create_request": {"key": "AA==", "range_end": "AA==", "start_revision": str(revision)}}
        with self.http.stream("POST", "/v3/watch", json=body) as answer:
            for line in answer.iter_lines():
                result: dict[str, Any] = json.loads(line)["result"]
                if not (result.get("created") and not result.get("canceled")):
                    return result
        raise AssertionError("the watch ended without a word")


def test_all_keys_are_there_again_after_a_loss_and_a_watch_from_before_is_told(world: ClusterBackupWorld, etcd: RealEtcd) -> None:
    client = Client(etcd)
    client.put(KUBE_SYSTEM, "k8s")
    for number in range(200):
        client.put(f"/registry/configmaps/default/c{number % 60}", f"value {number}" * 20)
    whole, revision = client.all()
    taken = world.run(Task.TAKE)
    assert (taken.ok, taken.revision, taken.keys) == (True, revision, 61), taken.message

    seen = client.put("/registry/configmaps/default/later", "written after the backup")
    etcd.daemon.stop()
    (world.root / "data").rmdir()
    (world.root / "data").symlink_to(etcd.folder, target_is_directory=True)
    peers = {"demo-etcd-0": f"http://127.0.0.1:{etcd.peers['demo-etcd-0']}"}
    place = Placement(restore="tenant.demo.abc", member="demo-etcd-0", peers=peers, seen=seen)
    report = world.run(Task.PLACE, place=place)
    assert report.ok, report.message
    etcd.data.rename(etcd.folder / "lost")
    (etcd.folder / LIVE).rename(etcd.data)

    etcd.start("existing")
    etcd.wait()
    restored = Client(etcd)
    found, now = restored.all()
    assert found == whole and now >= seen + BUMP and now == report.revision
    told = restored.watch_from(seen)
    assert told.get("canceled") and int(told["compact_revision"]) > seen
    assert restored.put("/registry/configmaps/default/new", "it takes writes") == now + 1


def test_a_snapshot_of_a_real_etcd_that_was_cut_is_refused(world: ClusterBackupWorld, etcd: RealEtcd) -> None:
    Client(etcd).put(KUBE_SYSTEM, "k8s")
    assert world.run(Task.TAKE).ok
    path = world.root / "folder" / name_of()
    path.write_bytes(path.read_bytes()[:-300])
    report = world.run(Task.CHECK)
    assert not report.ok and "not whole" in report.message


def test_etcd_does_not_answer_a_certificate_of_another_ca(world: ClusterBackupWorld, etcd: RealEtcd) -> None:
    (world.root / "etcd" / "client.key").write_text((world.root / "keys" / job.SIGNER_CERTIFICATE).read_text(errors="replace"))
    report = world.run(Task.TAKE)
    assert not report.ok and world.stored == []
