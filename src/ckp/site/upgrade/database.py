"""Compass' database from one schema to another: by a Job with Compass' own pods' settings, of the image that knows both."""

from __future__ import annotations

import copy
import json
from typing import Any

from ckp.api.names import SYSTEM_NAMESPACE
from ckp.kits.errors import CkpError
from ckp.kits.retry import wait_until
from ckp.site import management
from ckp.site.inventory import SiteHost
from ckp.site.upgrade.limits import Limits

Obj = dict[str, Any]
COMPASS = "ckp-compass"
JOB = "ckp-compass-schema"
UP, BACK = "--schema-up", "--schema-back"
GRACE_SECONDS = 60
"""For Compass' pods to end: longer than their own terminationGracePeriodSeconds."""
READ_SCHEMA = """
import os, sqlite3
url = os.environ.get("COMPASS_DATABASE_URL_FILE")
if url:
    from ckp.compass.__main__ import place_of, Settings
    from sqlalchemy import text
    engine = place_of(Settings.from_environment()).migration_engine()
    with engine.connect() as connection:
        print(connection.execute(text("select version_num from alembic_version")).scalar())
else:
    path = os.environ.get("COMPASS_DATABASE") or "/var/lib/compass/compass.db"
    print(sqlite3.connect(f"file:{path}?mode=ro", uri=True).execute("select version_num from alembic_version").fetchone()[0])
"""
"""Runs in a pod of Compass of either version."""


def schema(host: SiteHost) -> str:
    """The schema of the site's database, as a pod of Compass that runs reads it.

    Raises:
        CkpError: none runs, or the database does not answer.
    """
    arguments = ("exec", f"deployment/{COMPASS}", f"--namespace={SYSTEM_NAMESPACE}", "--container=compass", "--", "python3", "-c", READ_SCHEMA)
    return management.kubectl(host, *arguments, timeout=120).strip()


def bring_up(host: SiteHost, deployment: Obj, limits: Limits) -> None:
    """Bring the schema up to date, while the version before works with it. In one transaction: if it fails, all is as it was.

    Args:
        deployment: Compass', of the new version.

    Raises:
        CkpError: the image does not start, or the migration failed; what the Job's pod printed is in the details.
    """
    _run(host, job(deployment, UP), limits)


def take_back(host: SiteHost, deployment: Obj, to: str, limits: Limits) -> None:
    """Take the schema back, while no Compass runs. Done already is fine.

    Args:
        deployment: Compass', of the new version, which knows how.

    Raises:
        CkpError: as of `bring_up`.
    """
    management.kubectl(host, "scale", f"deployment/{COMPASS}", f"--namespace={SYSTEM_NAMESPACE}", "--replicas=0")
    selector = f"--selector=app={COMPASS}"

    def ended() -> bool:
        return not management.kubectl(host, "get", "pods", f"--namespace={SYSTEM_NAMESPACE}", selector, "--output=name").strip()

    wait_until(ended, what="all pods of Compass end", timeout=limits.ready + GRACE_SECONDS, every=1)
    _run(host, job(deployment, BACK, to), limits)


def job(deployment: Obj, *arguments: str) -> Obj:
    """Compass' pod with other arguments, once."""
    template = copy.deepcopy(deployment["spec"]["template"])
    pod = template["spec"]
    [container] = [each for each in pod["containers"] if each["name"] == "compass"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe", "ports"):
        container.pop(probe, None)
    container["args"] = ["ckp.compass", *arguments]
    pod |= {"containers": [container], "restartPolicy": "Never"}
    pod.pop("topologySpreadConstraints", None)
    labels = {"app": JOB}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": JOB, "namespace": SYSTEM_NAMESPACE, "labels": labels},
        "spec": {"backoffLimit": 0, "template": {"metadata": {"labels": labels}, "spec": pod}},
    }


def _run(host: SiteHost, wanted: Obj, limits: Limits) -> None:
    """To its end; what is left of an earlier one goes first: a migration that it had begun was finished, or was not."""
    where = f"--namespace={SYSTEM_NAMESPACE}"
    management.kubectl(host, "delete", f"job/{JOB}", where, "--ignore-not-found", "--cascade=foreground", timeout=120)
    management.kubectl(host, "create", "-f", "-", stdin=json.dumps(wanted))
    seen: list[str] = []

    def ended() -> str:
        status = json.loads(management.kubectl(host, "get", f"job/{JOB}", where, "--output=json")).get("status") or {}
        if status.get("succeeded"):
            return "succeeded"
        if status.get("failed"):
            return "failed"
        seen[:] = [_pods(host)]
        return ""

    what = f"the Job that changes Compass' schema ({' '.join(wanted['spec']['template']['spec']['containers'][0]['args'][1:])})"
    try:
        outcome = wait_until(ended, what=what, timeout=limits.job, every=1, reason=lambda: "\n".join(seen))
        if outcome == "failed":
            raise CkpError(f"{what} failed, and the database is as it was", details=_logs(host), resolution="see its details; then run the same command again")
    except CkpError:
        _clean(host)
        raise
    _clean(host)


def _logs(host: SiteHost) -> str:
    try:
        return management.kubectl(host, "logs", f"job/{JOB}", f"--namespace={SYSTEM_NAMESPACE}", "--tail=20")
    except CkpError as error:
        return f"{error.brief}\n{_pods(host)}"


def _pods(host: SiteHost) -> str:
    """What its pod waits for, for people."""
    try:
        return management.kubectl(host, "get", "pods", f"--namespace={SYSTEM_NAMESPACE}", f"--selector=app={JOB}")
    except CkpError as error:
        return error.brief


def _clean(host: SiteHost) -> None:
    try:
        management.kubectl(host, "delete", f"job/{JOB}", f"--namespace={SYSTEM_NAMESPACE}", "--ignore-not-found", "--cascade=foreground", timeout=120)
    except CkpError:
        pass  # the next run does it
