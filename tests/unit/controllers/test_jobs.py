"""Jobs that must succeed once, against a simulated API server; a Job's controller is played by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from ckp.api import kinds
from ckp.clients.kube import Obj
from ckp.controllers.jobs import JobState, job, run_once
from tests.simulators.kube import KubeSimulator

TENANT = "ckp-default-default"
CONFIG = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "one", "namespace": TENANT}, "data": {}}
JOB = job({"name": "one", "namespace": TENANT}, {"a": "b"}, [{"name": "c", "image": "i"}], [], retries=1, deadline=9)


class Bench:
    def __init__(self) -> None:
        self.kube = KubeSimulator(manager="ckp-controllers", namespaces=(TENANT,))
        self.asked = 0
        self.objects: Sequence[Obj] = [CONFIG, JOB]

    async def manifests(self) -> Sequence[Obj]:
        self.asked += 1
        return self.objects

    async def look(self) -> JobState:
        return await run_once(self.kube, TENANT, "one", self.manifests)

    async def become(self, **status: Any) -> None:
        await self.kube.merge(kinds.JOB, "one", TENANT, {"status": status}, subresource="status")


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_a_job_is_started_once_with_what_it_mounts(bench: Bench) -> None:
    assert await bench.look() is JobState.STARTED
    assert await bench.kube.get(kinds.CONFIG_MAP, "one", TENANT) is not None
    assert await bench.look() is JobState.RUNNING
    assert bench.asked == 1, "manifests are only made when they are needed"


async def test_a_job_that_succeeded_is_left_alone(bench: Bench) -> None:
    await bench.look()
    await bench.become(succeeded=1)
    assert [await bench.look(), await bench.look()] == [JobState.SUCCEEDED] * 2
    assert await bench.kube.get(kinds.JOB, "one", TENANT) is not None


async def test_a_job_that_failed_is_deleted_and_started_again(bench: Bench) -> None:
    await bench.look()
    await bench.become(conditions=[{"type": "Failed", "status": "False"}])
    assert await bench.look() is JobState.RUNNING, "a condition that is not True says nothing"
    await bench.become(conditions=[{"type": "Failed", "status": "True"}])
    assert await bench.look() is JobState.FAILED
    assert await bench.kube.get(kinds.JOB, "one", TENANT) is None
    assert await bench.look() is JobState.STARTED


async def test_without_manifests_there_is_no_job(bench: Bench) -> None:
    bench.objects = []
    assert await bench.look() is JobState.ABSENT
    assert await bench.kube.get(kinds.JOB, "one", TENANT) is None


def test_a_jobs_pod_is_unprivileged_and_has_no_token() -> None:
    pod = JOB["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False and pod["securityContext"]["runAsNonRoot"] is True
    assert "ttlSecondsAfterFinished" not in JOB["spec"]
    assert job({"name": "x"}, {}, [], [], retries=1, deadline=9, keep_seconds=60)["spec"]["ttlSecondsAfterFinished"] == 60
