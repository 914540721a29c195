"""Jobs that must succeed once: how they are made, started, watched, and started again after a failure."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from enum import Enum

from ckp.api.kinds import JOB
from ckp.clients.kube import Kube, Obj
from ckp.controllers.pods import pod_spec


class JobState(Enum):
    """How a Job stands after one look."""

    ABSENT = "absent"
    """There is none, and nothing to start it from."""
    STARTED = "started"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    """It failed and was deleted; the next look starts it again."""


async def run_once(kube: Kube, namespace: str, name: str, manifests: Callable[[], Awaitable[Sequence[Obj]]]) -> JobState:
    """One look at a Job: start it if there is none, delete it if it failed. A Job can't be changed: give one with other content another name.

    Args:
        manifests: the Job and what it mounts, in the order of their creation; asked only when it is to be started, and empty if it can't be.

    Raises:
        KubeError: the API server refuses, or can't be reached.
    """
    found = await kube.get(JOB, name, namespace)
    if found is None:
        objects = await manifests()
        for obj in objects:
            await kube.apply(obj)
        return JobState.STARTED if objects else JobState.ABSENT
    if (found.get("status") or {}).get("succeeded"):
        return JobState.SUCCEEDED
    if has_failed(found):
        # For instance a deadline in a long outage: run it again rather than stay stuck.
        await kube.delete(JOB, name, namespace)
        return JobState.FAILED
    return JobState.RUNNING


def has_failed(job: Obj) -> bool:
    """Whether Kubernetes has given a Job up."""
    return any(item["type"] == "Failed" and item["status"] == "True" for item in (job.get("status") or {}).get("conditions") or [])


def job(
    metadata: Obj,
    labels: dict[str, str],
    containers: list[Obj],
    volumes: list[Obj],
    *,
    retries: int,
    deadline: int,
    keep_seconds: int | None = None,
    restart: str = "OnFailure",
) -> Obj:
    """A Job's manifest; all its containers must succeed.

    Args:
        labels: of its pods.
        retries: how many failed pods are replaced before it counts as failed.
        deadline: seconds after which it counts as failed.
        keep_seconds: how long it is kept after its end; None: until its owner goes.
        restart: of containers that failed: OnFailure, or Never.
    """
    pod = pod_spec(containers, volumes, restartPolicy=restart)
    spec: Obj = {"backoffLimit": retries, "activeDeadlineSeconds": deadline, "template": {"metadata": {"labels": labels}, "spec": pod}}
    if keep_seconds is not None:
        spec["ttlSecondsAfterFinished"] = keep_seconds
    return {"apiVersion": JOB.api_version, "kind": JOB.kind, "metadata": metadata, "spec": spec}
