"""Backups and restores of a hosted control plane under the controllers' eyes: begun once, told truly, and never half done, whenever a process is killed."""

from __future__ import annotations

import base64
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ckp.api import backup_job
from ckp.api.backup_job import JobReport, JobRequest, Task
from ckp.api.kinds import DEPLOYMENT, JOB, MANAGED_CONTROL_PLANE, POD, PVC, SECRET, STATEFUL_SET
from ckp.api.names import BACKUP_ANNOTATION, RESTORE_ANNOTATION
from ckp.backups.archive import fingerprint_of
from ckp.clients.kube import Obj
from ckp.clients.signing.encryption import Signer
from ckp.controllers.apply import Applier
from ckp.controllers.controlplane.backup_jobs import KEYS_SECRET, ensure_keys
from ckp.controllers.controlplane.reconciler import ManagedControlPlaneReconciler
from ckp.controllers.workload import WorkloadClients
from ckp.verify.signatures import check_signature
from tests.support.kills import at_call, pass_under, stride
from tests.worlds.control_plane import TENANT, UP, ControlPlaneWorld

CLAIM = {"every": "6h", "keep": 3, "claim": "backups"}
S3 = {"every": "6h", "s3": {"endpoint": "https://s3.example", "bucket": "b", "secret": "bucket-key"}}
FIRST = "20260501T120000Z"


class BackupWorld(ControlPlaneWorld):
    """A ready control plane that is backed up; the Jobs' pods are played by the test."""

    def restarted(self) -> None:
        """Another process of the controllers: what the one before remembered is gone."""
        self.reconciler = ManagedControlPlaneReconciler(
            self.kube,
            self.clock,
            self.releases,
            Applier(self.kube, self.clock),
            clients=WorkloadClients(lambda kubeconfig: self.workload),
            connect_to_etcd=self.simulated_etcd.connect,
            backup_image="r.example:5000/ckp/ckp-backup:v1",
        )

    async def up(self, **backup: Any) -> None:
        self.restarted()
        await self.ready(backup=backup)

    async def jobs(self, part: str) -> list[Obj]:
        return [job for job in await self.kube.list(JOB, TENANT) if f"demo-{part}" in job["metadata"]["name"]]

    async def end(self, job: Obj, report: JobReport) -> None:
        """Its pod ends, and so does the Job."""
        name = job["metadata"]["name"]
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"{name}-x", "namespace": TENANT, "labels": {"batch.kubernetes.io/job-name": name}}}
        await self.kube.create(pod)
        ended = {"terminated": {"finishedAt": "2026-05-01T12:00:30Z", "message": report.model_dump_json(by_alias=True)}}
        await self.kube.merge(POD, f"{name}-x", TENANT, {"status": {"containerStatuses": [{"name": "backup", "state": ended}]}}, subresource="status")
        status: Obj = {"succeeded": 1} if report.ok else {"conditions": [{"type": "Failed", "status": "True"}]}
        await self.kube.merge(JOB, name, TENANT, {"status": status}, subresource="status")

    async def annotate(self, **annotations: str | None) -> None:
        names = {"backup": BACKUP_ANNOTATION, "restore": RESTORE_ANNOTATION}
        found = {names[key]: value for key, value in annotations.items()}
        await self.kube.merge(MANAGED_CONTROL_PLANE, "demo", TENANT, {"metadata": {"annotations": found}})

    async def backed_up(self, **backup: Any) -> None:
        """With one good backup."""
        await self.up(**(backup or CLAIM))
        await self.pass_once()
        await self.pass_once()
        [job] = await self.jobs("backup-")
        await self.end(job, JobReport(ok=True, size=4096, revision=500, keys=9, version="v1.35.1", kept=(FIRST,)))
        await self.pass_once()
        await self.pass_once()

    def replicas(self, part: str) -> int:
        return int(self.kube.stored(DEPLOYMENT, f"demo-{part}", TENANT)["spec"]["replicas"])


def asked_of(job: Obj) -> JobRequest:
    [container] = job["spec"]["template"]["spec"]["containers"]
    return JobRequest.model_validate_json(next(item["value"] for item in container["env"] if item["name"] == backup_job.REQUEST))


async def test_the_first_backup_is_made_at_once_by_one_job_whose_pod_has_no_rights_in_kubernetes() -> None:
    world = BackupWorld()
    await world.up(**S3)
    for _ in range(4):
        await world.pass_once()
    [job] = await world.jobs("backup-")
    asked, pod = asked_of(job), job["spec"]["template"]["spec"]
    assert (asked.task, asked.bucket.endpoint, asked.cluster.name) == (Task.TAKE, "https://s3.example", "demo")
    assert asked.etcd == ("https://demo-etcd-0.demo-etcd-peer.ckp-default-default.svc:2379",)
    assert pod["automountServiceAccountToken"] is False and "serviceAccountName" not in pod
    assert {volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume} == {KEYS_SECRET, "bucket-key"}
    condition = world.condition("BackupFresh")
    assert (condition["status"], condition["reason"]) == ("False", "Waiting")
    assert world.condition("Ready")["status"] == "True", "backups do not count for it"


async def test_no_secret_stands_in_a_job() -> None:
    world = BackupWorld()
    await world.up(**S3)
    await world.pass_once()
    await world.pass_once()
    [job] = await world.jobs("backup-")
    keys = world.kube.stored(SECRET, KEYS_SECRET, TENANT)["data"]
    assert set(keys) == {backup_job.PASSPHRASE, backup_job.SIGNER_KEY, backup_job.SIGNER_CERTIFICATE}
    assert not any(value in json.dumps(job) for value in keys.values())


async def test_the_keys_of_a_namespace_are_made_once_and_sign_what_hosts_programs_verify(tmp_path: Path) -> None:
    world = BackupWorld()
    await world.up(**CLAIM)
    for _ in range(3):
        await world.pass_once()
    first = world.kube.stored(SECRET, KEYS_SECRET, TENANT)["data"]
    await ensure_keys(world.kube, TENANT)
    assert world.kube.stored(SECRET, KEYS_SECRET, TENANT)["data"] == first
    tmp_path.chmod(0o700)
    for name, value in first.items():
        (tmp_path / name).write_bytes(base64.b64decode(value))
    signature = Signer(tmp_path).sign(b"a manifest")
    certificate = tmp_path / backup_job.SIGNER_CERTIFICATE
    assert check_signature(iter([b"a manifest"]), signature, str(certificate), "it") == fingerprint_of(certificate)
    assert len((tmp_path / backup_job.PASSPHRASE).read_text()) >= 40


async def test_a_good_backup_is_recorded_and_the_next_is_made_after_the_interval() -> None:
    world = BackupWorld()
    await world.backed_up()
    kept = world.status["backup"]["kept"]
    assert [(entry["id"], entry["sizeBytes"], entry["revision"]) for entry in kept] == [(FIRST, 4096, 500)]
    assert world.condition("BackupFresh")["status"] == "True"
    world.clock.advance(6 * 3600 - 60)
    await world.pass_once()
    assert world.status["backup"]["running"] == ""
    world.clock.advance(120)
    await world.pass_once()
    await world.pass_once()
    assert world.status["backup"]["running"] and len(await world.jobs("backup-")) == 2


async def test_a_failed_backup_is_told_with_its_reason_and_tried_again() -> None:
    world = BackupWorld()
    await world.up(**CLAIM)
    await world.pass_once()
    await world.pass_once()
    [job] = await world.jobs("backup-")
    await world.end(job, JobReport(ok=False, message="the store said no"))
    await world.pass_once()
    condition = world.condition("BackupFresh")
    assert (condition["status"], condition["reason"]) == ("False", "BackupFailed") and "the store said no" in condition["message"]
    world.clock.advance(301)
    await world.pass_once()
    await world.pass_once()
    assert len(await world.jobs("backup-")) == 2


async def test_a_backup_that_is_overdue_is_told_even_where_nothing_else_happens() -> None:
    world = BackupWorld()
    await world.backed_up()
    world.clock.advance(6 * 3600)
    await world.pass_once()  # begins the next one, whose Job never ends
    world.clock.advance(6 * 3600)
    await world.pass_once()
    condition = world.condition("BackupFresh")
    assert (condition["status"], condition["reason"]) == ("False", "BackupOverdue")


async def test_a_person_s_request_is_taken_up_once() -> None:
    world = BackupWorld()
    await world.backed_up()
    world.clock.advance(60)
    await world.annotate(backup="2026-05-01T12:01:00Z")
    for _ in range(3):
        await world.pass_once()
    _, second = await world.jobs("backup-")
    await world.end(second, JobReport(ok=True, kept=(FIRST, "20260501T120100Z")))
    for _ in range(4):
        world.clock.advance(5)
        await world.pass_once()
    assert len(await world.jobs("backup-")) == 2
    assert [entry["id"] for entry in world.status["backup"]["kept"]] == [FIRST, "20260501T120100Z"]


async def test_a_process_that_is_killed_at_any_pass_makes_each_backup_once() -> None:
    world = BackupWorld()
    await world.up(**CLAIM)
    for _ in range(6):
        world.restarted()
        await world.pass_once()
    assert len(await world.jobs("backup-")) == 1


async def test_a_cluster_without_a_schedule_has_no_such_condition() -> None:
    world = BackupWorld()
    await world.up()
    await world.pass_once()
    assert world.condition("BackupFresh") == {} and world.condition("DataRestored") == {} and "restore" not in world.status


# -- restoring


async def ended(world: BackupWorld, part: str, **report: Any) -> list[Obj]:
    """The Jobs of a restore's part end as is said; those Jobs."""
    jobs = [job for job in await world.jobs("restore-") if f"-{part}" in job["metadata"]["name"]]
    for job in jobs:
        await world.end(job, JobReport(**{"ok": True, **report}))
    return jobs


async def stop(world: BackupWorld) -> None:
    """The kubelets end the pods of what is scaled to nothing."""
    for part in ("apiserver", "controller-manager", "scheduler"):
        await world.kube.merge(DEPLOYMENT, f"demo-{part}", TENANT, {"status": dict.fromkeys(UP, 0)}, subresource="status")
    await world.etcd(0)


@pytest.mark.parametrize("killed", [False, True])
async def test_a_restore_checks_stops_places_starts_and_says_each_step(killed: bool) -> None:
    world = BackupWorld()

    async def passes(count: int = 2) -> None:
        for _ in range(count):
            if killed:
                world.restarted()
            await world.pass_once()

    await world.backed_up()
    await world.annotate(restore=f"{FIRST} 2026-05-01T13:00:00Z")
    await passes(3)
    assert world.replicas("apiserver") == 1 and world.status["ready"] is True, "the cluster goes on while the backup is checked"
    assert "step 1 of 4" in world.condition("DataRestored")["message"]
    [check] = await ended(world, "check", revision=500)
    assert asked_of(check).task is Task.CHECK
    await passes(3)
    assert [world.replicas(part) for part in ("apiserver", "controller-manager", "scheduler")] == [0, 0, 0]
    assert world.status["ready"] is False
    condition = world.condition("EtcdReady")
    assert (condition["status"], condition["reason"]) == ("False", "Restoring")
    await stop(world)
    await passes(3)
    assert world.kube.stored(STATEFUL_SET, "demo-etcd", TENANT)["spec"]["replicas"] == 0
    assert "step 3 of 4" in world.condition("EtcdReady")["message"]
    [placed] = [job for job in await world.jobs("restore-") if "-place-" in job["metadata"]["name"]]
    asked = asked_of(placed)
    assert asked.place is not None and asked.place.seen == 500 and list(asked.place.peers) == ["demo-etcd-0"]
    assert world.kube.stored(PVC, "data-demo-etcd-0", TENANT)["spec"]["resources"]
    await ended(world, "place")
    world.simulated_etcd.cluster_id, world.simulated_etcd.revision = 0xBEEF, 1_000_000_500
    await passes(2)
    assert world.kube.stored(STATEFUL_SET, "demo-etcd", TENANT)["spec"]["replicas"] == 1 and world.replicas("apiserver") == 1
    assert not [job for job in await world.jobs("bootstrap-") if (job.get("status") or {}).get("succeeded")], "kubeadm's phases run again"
    await world.etcd(1)
    await world.api_server(**UP)
    await passes()
    await world.managers(**UP)
    for job in await world.jobs("bootstrap-"):
        await world.kube.merge(JOB, job["metadata"]["name"], TENANT, {"status": {"succeeded": 1}}, subresource="status")
    world.clock.advance(10)
    await passes(4)
    assert world.condition("DataRestored")["status"] == "True" and world.condition("EtcdReady")["status"] == "True"
    assert world.status["ready"] is True and world.status["etcd"]["clusterId"] == "beef"
    assert world.status["restore"]["phase"] == "Done" and world.status["restore"]["finishedAt"]
    meta = world.kube.stored(MANAGED_CONTROL_PLANE, "demo", TENANT)["metadata"]
    assert RESTORE_ANNOTATION not in (meta.get("annotations") or {}), "so that it is good for once"


async def test_a_backup_that_is_refused_changes_nothing_and_is_told() -> None:
    world = BackupWorld()
    await world.backed_up()
    await world.annotate(restore=f"{FIRST} 2026-05-01T13:00:00Z")
    for _ in range(3):
        await world.pass_once()
    await ended(world, "check", ok=False, message="the backup is of the cluster t/else, not of t/demo")
    for _ in range(3):
        await world.pass_once()
    condition = world.condition("DataRestored")
    assert (condition["status"], condition["reason"]) == ("False", "RestoreRefused") and "of the cluster t/else" in condition["message"]
    assert world.replicas("apiserver") == 1 and world.status["ready"] is True
    meta = world.kube.stored(MANAGED_CONTROL_PLANE, "demo", TENANT)["metadata"]
    assert RESTORE_ANNOTATION not in (meta.get("annotations") or {})


async def test_what_is_no_backup_is_refused_without_a_job() -> None:
    world = BackupWorld()
    await world.backed_up()
    await world.annotate(restore="yesterday 2026-05-01T13:00:00Z")
    for _ in range(3):
        await world.pass_once()
    assert await world.jobs("restore-") == []
    assert "'yesterday' is no id of a backup" in world.condition("DataRestored")["message"]


async def test_a_member_that_could_not_be_given_its_data_is_tried_again_and_nothing_runs_meanwhile() -> None:
    world = BackupWorld()
    await world.backed_up()
    await world.annotate(restore=f"{FIRST} 2026-05-01T13:00:00Z")
    for _ in range(3):
        await world.pass_once()
    await ended(world, "check")
    for _ in range(3):
        await world.pass_once()
    await stop(world)
    for _ in range(3):
        await world.pass_once()
    await ended(world, "place", ok=False, message="the store can't be reached")
    for _ in range(2):
        world.clock.advance(10)
        await world.pass_once()
    assert "tried again: the store can't be reached" in world.condition("EtcdReady")["message"]
    assert world.replicas("apiserver") == 0
    world.clock.advance(timedelta(hours=20).total_seconds())
    await world.pass_once()
    assert world.status["backup"]["running"] == "", "no backup is begun of what is in the making"


async def test_a_backup_that_is_refused_after_an_interrupted_restore_does_not_say_that_all_is_as_it_was() -> None:
    world = BackupWorld()
    await world.backed_up()
    await world.annotate(restore=f"{FIRST} 2026-05-01T13:00:00Z")
    for _ in range(3):
        await world.pass_once()
    await ended(world, "check")
    for _ in range(3):
        await world.pass_once()
    await world.annotate(restore="yesterday 2026-05-01T14:00:00Z")
    for _ in range(3):
        await world.pass_once()
    condition = world.condition("DataRestored")
    assert condition["reason"] == "RestoreRefused" and "'yesterday' is no id of a backup" in condition["message"]
    assert "is not whole" in condition["message"] and "nothing was changed" not in condition["message"]
    assert world.replicas("apiserver") == 0


async def play(world: BackupWorld) -> None:
    """Kubernetes follows what was asked of it: pods come and go, Jobs succeed."""
    for part in ("apiserver", "controller-manager", "scheduler"):
        status = dict.fromkeys(UP, world.replicas(part))
        await world.kube.merge(DEPLOYMENT, f"demo-{part}", TENANT, {"status": status}, subresource="status")
    await world.etcd(int(world.kube.stored(STATEFUL_SET, "demo-etcd", TENANT)["spec"]["replicas"]))
    for job in await world.kube.list(JOB, TENANT):
        if not (job.get("status") or {}).get("succeeded"):
            if "demo-bootstrap" in job["metadata"]["name"]:
                await world.kube.merge(JOB, job["metadata"]["name"], TENANT, {"status": {"succeeded": 1}}, subresource="status")
            else:
                await world.end(job, JobReport(ok=True, revision=500))
    world.clock.advance(10)


@pytest.mark.parametrize("at", range(1, 200, stride(25)))
async def test_a_restore_whose_controllers_are_killed_at_any_call_is_finished_once(at: int) -> None:
    world = BackupWorld()
    await world.backed_up()
    await world.annotate(restore=f"{FIRST} 2026-05-01T13:00:00Z")
    fault, ran_on_old_data = at_call(at), False

    for _ in range(40):
        await pass_under(world, fault)
        phase = world.status.get("restore", {}).get("phase")
        ran_on_old_data |= phase == "Placing" and any(world.replicas(part) for part in ("apiserver", "controller-manager", "scheduler"))
        await play(world)
        annotations = world.kube.stored(MANAGED_CONTROL_PLANE, "demo", TENANT)["metadata"].get("annotations") or {}
        if phase == "Done" and RESTORE_ANNOTATION not in annotations:
            break
    assert phase == "Done" and not ran_on_old_data
    names = [job["metadata"]["name"] for job in await world.jobs("restore-")]
    assert len(names) == 2 and world.condition("DataRestored")["status"] == "True"
    assert world.status["ready"] is True and world.replicas("apiserver") == 1
