"""Draining a host for maintenance while it stays in its cluster: kubectl does it, in a Job against the hosted API server."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from ckp.api.kinds import BYO_MACHINE, JOB, MACHINE
from ckp.api.names import CLUSTER_NAME_LABEL, HOST_LABEL
from ckp.api.objects.byo_host import ByoHost
from ckp.api.platform import Releases
from ckp.api.states import ConditionType, Reason
from ckp.clients.kube import Kube, Obj
from ckp.controllers.controlplane.plan import hardened, pod_security
from ckp.controllers.scope import cluster_name, owner, owner_reference
from ckp.kits.clock import Clock
from ckp.rules.conditions import Condition, make_condition

POLL = 5.0
DRAIN_SECONDS = 600
"""How long evictions may be held up by disruption budgets before the drain counts as failed; it is tried again."""


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
    now = clock.now()
    verb = "drain" if wanted else "uncordon"
    state, message = await _job(kube, releases, host, machine, verb, wanted or done_for)
    if not wanted:
        if state == "done":
            return Drained()
        return Drained(make_condition(ConditionType.DRAINED, False, now, reason=Reason.UNCORDONING, message=message), done_for, POLL)
    if state == "done":
        return Drained(make_condition(ConditionType.DRAINED, True, now), wanted)
    failed = state == "failed"
    reason = Reason.DRAIN_FAILED if failed else Reason.DRAINING
    condition = make_condition(ConditionType.DRAINED, False, now, reason=reason, message=message, severity="Warning" if failed else "Info")
    # Also while it is under way: the node may be cordoned already, and must be uncordoned when the request is taken back.
    return Drained(condition, wanted, POLL)


async def _job(kube: Kube, releases: Releases, host: ByoHost, machine: Obj, verb: str, request: str) -> tuple[str, str]:
    """Start the Job, or see how it goes: running, done or failed, and a sentence."""
    name, namespace = host.name, host.namespace
    digest = hashlib.sha256(f"{request} {machine['metadata']['uid']}".encode()).hexdigest()[:8]
    # The name of a Job becomes a label of its pods: at most 63 characters. The machine's uid in the digest tells hosts of one beginning apart.
    job_name = f"{verb}-{name[:40].rstrip('-.')}-{digest}"
    found = await kube.get(JOB, job_name, namespace)
    if found is None:
        core = await kube.get(MACHINE, str((owner(machine, "Machine") or {}).get("name", "")), namespace)
        if core is None:
            return "running", "the machine that holds it is not there"
        await kube.apply(_manifest(releases, job_name, namespace, name, machine, verb, str(core["spec"]["version"])))
        return "running", f"kubectl {verb} is started"
    status = found.get("status") or {}
    if status.get("succeeded"):
        return "done", ""
    if any(item["type"] == "Failed" and item["status"] == "True" for item in status.get("conditions") or []):
        await kube.delete(JOB, job_name, namespace)
        return "failed", f"kubectl {verb} did not succeed within {DRAIN_SECONDS} s (a disruption budget may hold it up); it is tried again"
    return "running", f"kubectl {verb} is at it"


def _manifest(releases: Releases, job_name: str, namespace: str, node: str, machine: Obj, verb: str, version: str) -> Obj:
    cluster = cluster_name(machine)
    more = ["--ignore-daemonsets", "--delete-emptydir-data", "--force", f"--timeout={DRAIN_SECONDS}s"] if verb == "drain" else []
    container = {
        "name": "kubectl",
        "image": releases.get(version).image("kubeadm"),
        "command": ["/usr/local/bin/kubectl", verb, node, *more],
        "env": [{"name": "KUBECONFIG", "value": "/kube/value"}, {"name": "HOME", "value": "/tmp"}],
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "256Mi"}},
        "securityContext": hardened(),
        "volumeMounts": [{"name": "kube", "mountPath": "/kube", "readOnly": True}, {"name": "tmp", "mountPath": "/tmp"}],
    }
    pod = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "restartPolicy": "OnFailure",
        "securityContext": pod_security(),
        "containers": [container],
        "volumes": [{"name": "kube", "secret": {"secretName": f"{cluster}-kubeconfig", "defaultMode": 0o440}}, {"name": "tmp", "emptyDir": {}}],
    }
    labels = {CLUSTER_NAME_LABEL: cluster, "app.kubernetes.io/component": "drain", HOST_LABEL: node}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": job_name,
            "namespace": namespace,
            "labels": labels,
            "ownerReferences": [owner_reference(machine, controller=False)],
        },
        "spec": {
            "backoffLimit": 3,
            "activeDeadlineSeconds": DRAIN_SECONDS + 60,
            "ttlSecondsAfterFinished": 86400,
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }
