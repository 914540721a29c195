"""`python -m ckp.backups`: does what its pod's request asks for (ckp.api.backup_job), and leaves a report."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from ckp.api import backup_job as job
from ckp.api.backup_job import JobReport, JobRequest
from ckp.backups.cluster import TASKS, Files
from ckp.backups.scratch import Programs
from ckp.kits.errors import CkpError, InvalidInput

PROGRAMS = Programs(Path("/usr/local/bin/etcd"), Path("/usr/local/bin/etcdutl"))
LONGEST = 1500
"""Characters of a message: a report is cut at 4 KiB."""


def perform(environment: Mapping[str, str], files: Files, programs: Programs, report: Callable[[JobReport], None]) -> int:
    """Do what the request asks for; the exit code."""
    try:
        request = JobRequest.model_validate_json(environment.get(job.REQUEST, ""))
    except ValueError:
        report(JobReport(ok=False, message=f"{job.REQUEST} is not what the controllers write"))
        return InvalidInput.exit_code
    try:
        done = TASKS[request.task](request, files, programs, print)
    except CkpError as error:
        print(error.render(), file=sys.stderr)
        report(JobReport(ok=False, message=error.brief[:LONGEST]))
        return error.exit_code
    report(done)
    return 0


def main() -> int:
    """As a pod's program."""
    scratch = Path(job.SCRATCH)
    os.umask(0o077)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        return perform(os.environ, Files(Path(folder)), PROGRAMS, _write)


def _write(done: JobReport) -> None:
    """Not atomically: the file is a mount of the kubelet's."""
    Path(job.REPORT_FILE).write_text(done.model_dump_json(by_alias=True))


if __name__ == "__main__":
    sys.exit(main())
