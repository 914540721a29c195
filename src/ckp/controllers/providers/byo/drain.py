"""Draining a host for maintenance while it stays in its cluster: kubectl does it, in a Job against the hosted API server."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from ckp.api.compass.clusters import Timeouts
from ckp.api.kinds import BYO_MACHINE, MACHINE
from ckp.api.names import CLUSTER_NAME_LABEL, HOST_LABEL
from ckp.api.objects.byo_host import ByoHost
from ckp.api.platform import Releases
from ckp.api.states import ConditionType, Reason
from ckp.clients.kube import Kube, Obj
from ckp.controllers.jobs import JobState, job, run_once
from ckp.controllers.pods import empty_volume, hardened, mount, secret_volume
from ckp.controllers.scope import cluster_name, owner, owner_reference
from ckp.kits.clock import Clock, exact_duration
from ckp.rules.conditions import Condition, make_condition
from ckp.rules.leaving import seconds_of

POLL = 5.0
KEEP_SECONDS = 86400


@dataclass(frozen=True)
class Drained:
    """What is to be recorded of a host's drain: its condition, which request the node was drained for, and the seconds until the next pass."""

    condition: Condition | None = None
    done_for: str = ""
    after: float | None = None


async def reconcile_drain(kube: Kube, clock: Clock, releases: Releases, host: ByoHost) -> Drained:
    """The next step towards `spec.drain`: empty, or the time of the request. A drain cordons the node; it is uncordoned when the request is taken back."""
    wanted, done_for = host.spec.drain, host.status.drained_for
    if not host.claimed or not (wanted or done_for):
        return Drained()
    machine = await kube.get(BYO_MACHINE, host.spec.machine_ref.name, host.namespace)
    if machine is None:
        return Drained()
    now, kind = clock.now(), ConditionType.DRAINED
    verb = "drain" if wanted else "uncordon"
    state, seconds = await run_kubectl(kube, releases, host, machine, verb, wanted or done_for)
    message = _message(state, verb, seconds)
    if not wanted:
        if state is JobState.SUCCEEDED:
            return Drained()
        return Drained(make_condition(kind, False, now, reason=Reason.UNCORDONING, message=message), done_for, POLL)
    if state is JobState.SUCCEEDED:
        return Drained(make_condition(kind, True, now), wanted)
    failed = state is JobState.FAILED
    reason = Reason.DRAIN_FAILED if failed else Reason.DRAINING
    condition = make_condition(kind, False, now, reason=reason, message=message, severity="Warning" if failed else "Info")
    # Also while it is under way: the node may be cordoned already, and must be uncordoned when the request is taken back.
    return Drained(condition, wanted, POLL)


async def run_kubectl(kube: Kube, releases: Releases, host: ByoHost, machine: Obj, verb: str, request: str) -> tuple[JobState, int]:
    """Start kubectl's Job for this request, or see how it stands; and how many seconds it has.

    Args:
        machine: the ByoMachine that holds the host, which owns the Job.
        verb: `drain` or `uncordon`.
        request: what it is done for: another one is another Job.

    Raises:
        KubeError: the API server refuses, or can't be reached.
    """
    core = await kube.get(MACHINE, str((owner(machine, "Machine") or {}).get("name", "")), host.namespace)
    seconds = drain_seconds(core)
    digest = hashlib.sha256(f"{request} {machine['metadata']['uid']}".encode()).hexdigest()[:8]
    # The name of a Job becomes a label of its pods: at most 63 characters. The machine's uid in the digest tells hosts with the same beginning apart.
    name = f"{verb}-{host.name[:40].rstrip('-.')}-{digest}"

    async def manifests() -> list[Obj]:
        return [_manifest(releases, name, host.namespace, host.name, machine, verb, str(core["spec"]["version"]), seconds)] if core else []

    return await run_once(kube, host.namespace, name, manifests), seconds


def drain_seconds(machine: Obj | None) -> int:
    """How long the drain of a Machine's node may take: the same setting as for its deletion (`ckp cluster set --drain-timeout`), or its default."""
    return seconds_of(machine or {}, "nodeDrainTimeout") or Timeouts().drain


def _message(state: JobState, verb: str, seconds: int) -> str:
    messages = {
        JobState.ABSENT: "the machine that holds it is not there",
        JobState.STARTED: f"kubectl {verb} is started",
        JobState.RUNNING: f"kubectl {verb} is running" + (f", for at most {exact_duration(seconds)}" if verb == "drain" else ""),
        JobState.FAILED: f"kubectl {verb} did not succeed within {exact_duration(seconds)} (a disruption budget or a pod's grace period may hold it up); "
        "it is tried again",
    }
    return messages.get(state, "")


def _manifest(releases: Releases, job_name: str, namespace: str, node: str, machine: Obj, verb: str, version: str, seconds: int) -> Obj:
    cluster = cluster_name(machine)
    more = ["--ignore-daemonsets", "--delete-emptydir-data", "--force", f"--timeout={seconds}s"] if verb == "drain" else []
    container = {
        "name": "kubectl",
        "image": releases.get(version).image("kubeadm"),
        "command": ["/usr/local/bin/kubectl", verb, node, *more],
        "env": [{"name": "KUBECONFIG", "value": "/kube/value"}, {"name": "HOME", "value": "/tmp"}],
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "256Mi"}},
        "securityContext": hardened(),
        "volumeMounts": [mount("kube", "/kube"), mount("tmp", "/tmp", writable=True)],
    }
    labels = {CLUSTER_NAME_LABEL: cluster, "app.kubernetes.io/component": "drain", HOST_LABEL: node}
    metadata = {"name": job_name, "namespace": namespace, "labels": labels, "ownerReferences": [owner_reference(machine, controller=False)]}
    volumes = [secret_volume("kube", f"{cluster}-kubeconfig"), empty_volume("tmp")]
    return job(metadata, labels, [container], volumes, retries=3, deadline=seconds + 60, keep_seconds=KEEP_SECONDS)
