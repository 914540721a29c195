"""A workload cluster whose backups are made and restored by the program of its Jobs, with folders in place of what a pod mounts."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ckp.api import backup_job as job
from ckp.api.backup_job import JobReport, JobRequest, Placement, Task
from ckp.backups.__main__ import perform
from ckp.backups.cluster import Files
from ckp.backups.scratch import Programs
from ckp.clients.signing.encryption import Signer
from ckp.rules.cluster_backups import backup_id

PASSPHRASE = "correct horse battery staple"
SECRETS = {name: f"the secret content of {name}" for name in job.AUTHORITY_FILES}
FIRST = datetime(2026, 5, 1, 12, tzinfo=UTC)


def make_signer(folder: Path) -> Path:
    """A key that signs backups; it takes a while, so tests share one."""
    return Signer.ensure(folder, "CKP backups of clusters <backups@tenant.invalid>").folder


@dataclass
class ClusterBackupWorld:
    """The pod's folders below one, and what is asked."""

    root: Path
    signer: Path
    programs: Programs
    urls: tuple[str, ...]
    cluster: job.Cluster = field(default_factory=lambda: job.Cluster(namespace="tenant", name="demo", identity="0123456789abcdef", version="v1.35.1"))
    bucket: job.Bucket = field(default_factory=job.Bucket)
    reports: list[JobReport] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("keys", "store", "etcd", "authorities", "folder", "data", "scratch"):
            (self.root / name).mkdir()
        for name, text in SECRETS.items():
            (self.root / "authorities" / name).write_text(text)
        for name in ("ca.crt", "client.crt", "client.key"):
            (self.root / "etcd" / name).write_text("")
        (self.root / "keys" / job.PASSPHRASE).write_text(PASSPHRASE)
        for name in (job.SIGNER_KEY, job.SIGNER_CERTIFICATE):
            shutil.copy(self.signer / name, self.root / "keys" / name)

    @property
    def files(self) -> Files:
        named = {name: self.root / name for name in ("keys", "store", "etcd", "authorities", "folder", "data")}
        return Files(self.root / "scratch", **named)

    @property
    def stored(self) -> list[str]:
        """All that is in the folder for backups, temporary files as well."""
        return sorted(path.name for path in (self.root / "folder").iterdir())

    def request(self, task: Task, number: int = 0, **more: Any) -> JobRequest:
        return JobRequest(task=task, cluster=self.cluster, bucket=self.bucket, made=FIRST + timedelta(hours=number), etcd=self.urls, **more)

    def run(self, task: Task, number: int = 0, **more: Any) -> JobReport:
        """The program, as a pod runs it; its report."""
        self.perform(self.request(task, number, **more))
        return self.reports[-1]

    def perform(self, request: JobRequest) -> int:
        return perform({job.REQUEST: request.model_dump_json(by_alias=True)}, self.files, self.programs, self.reports.append)

    def place(self, number: int = 0, restore: str = "restore-1", seen: int = 0) -> JobReport:
        peers = {"demo-etcd-0": "http://127.0.0.1:2380"}
        return self.run(Task.PLACE, number, place=Placement(restore=restore, member="demo-etcd-0", peers=peers, seen=seen))


def name_of(number: int = 0) -> str:
    return f"tenant.demo.01234567-{backup_id(FIRST + timedelta(hours=number))}.backup"


def killed(work: Callable[[], object], at: int) -> bool:
    """Run `work` in a process that is killed before its `at`th change of a disk (a rename, a removal, a flush); False if it ended before."""
    pid = os.fork()
    if pid == 0:
        count = itertools.count(1)

        def counted(before: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                if next(count) == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return before(*arguments, **options)

            return call

        for name in ("rename", "fsync", "unlink"):
            setattr(os, name, counted(getattr(os, name)))
        try:
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])
