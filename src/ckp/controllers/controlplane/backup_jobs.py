"""Jobs that make and restore backups of a cluster, by the program `ckp.backups`. Their pods have no rights in Kubernetes: what they need is mounted."""

from __future__ import annotations

import base64
import json
import secrets
from dataclasses import dataclass
from datetime import datetime

from ckp.api import backup_job as job
from ckp.api.backup_job import Bucket, Cluster, JobReport, JobRequest, Placement, Task
from ckp.api.kinds import JOB, POD, SECRET
from ckp.api.objects.control_plane import BackupSpec
from ckp.clients.kube import Kube, KubeError, Obj
from ckp.clients.signing.sequoia import sequoia
from ckp.controllers.controlplane.etcd import BACKUP_COMPONENT, CLIENT_PORT, member_host, member_names
from ckp.controllers.controlplane.plan import Plan
from ckp.controllers.jobs import has_failed
from ckp.controllers.jobs import job as job_manifest
from ckp.controllers.pods import empty_volume, hardened, mount, secret_volume
from ckp.kits.errors import CkpError
from ckp.rules.cluster_backups import begun_at

KEYS_SECRET = "ckp-backup-keys"
"""Of a project's namespace: the passphrase that its clusters' backups are encrypted by, and the key that signs them. It outlives the clusters."""
DEADLINE = 3600
"""Seconds for one Job."""
KEEP_FINISHED = 3600
"""Seconds that a finished Job stays, so that its report can be read."""


@dataclass(frozen=True)
class Ended:
    """A Job that has ended."""

    report: JobReport


async def look(kube: Kube, plan: Plan, name: str) -> Ended | bool:
    """How a Job stands: whether there is one, or what it reported.

    Raises:
        KubeError: the API server refuses, or can't be reached.
    """
    found = await kube.get(JOB, name, plan.namespace)
    if found is None:
        return False
    succeeded = bool((found.get("status") or {}).get("succeeded"))
    if not succeeded and not has_failed(found):
        return True
    report = await _report(kube, plan.namespace, name)
    if succeeded and (report is None or not report.ok):
        await kube.delete(JOB, name, plan.namespace)  # its pod is gone: what it did is done once more, which changes nothing
        return True
    return Ended(report or JobReport(ok=False, message=f"the Job {name} failed, and its pods left no report"))


async def _report(kube: Kube, namespace: str, name: str) -> JobReport | None:
    """What the newest of its pods that ended has said."""
    found: list[tuple[str, JobReport]] = []
    for pod in await kube.list(POD, namespace, labels={"batch.kubernetes.io/job-name": name}):
        for status in (pod.get("status") or {}).get("containerStatuses") or []:
            ended = (status.get("state") or {}).get("terminated") or {}
            try:
                found.append((str(ended.get("finishedAt") or ""), JobReport.model_validate_json(ended.get("message") or "")))
            except ValueError:
                continue
    return max(found, key=lambda item: item[0])[1] if found else None


async def ensure_keys(kube: Kube, namespace: str) -> None:
    """The keys of a namespace's backups, made if there are none.

    Raises:
        KubeError: the API server refuses, or can't be reached.
    """
    if await kube.get(SECRET, KEYS_SECRET, namespace) is not None:
        return
    try:
        await kube.create(_keys(namespace))
    except KubeError as error:
        if error.reason != "AlreadyExists":
            raise


def _keys(namespace: str) -> Obj:
    key = sequoia().Tsk.generate(f"CKP backups of clusters <backups@{namespace}.invalid>")
    files = {
        job.PASSPHRASE: secrets.token_urlsafe(32).encode(),
        job.SIGNER_KEY: bytes(key),
        job.SIGNER_CERTIFICATE: bytes(key.extract_certificate()),
    }
    data = {name: base64.b64encode(content).decode() for name, content in files.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": KEYS_SECRET, "namespace": namespace}, "type": "Opaque", "data": data}


def request(plan: Plan, spec: BackupSpec, identity: str, task: Task, backup: str, place: Placement | None = None) -> JobRequest:
    """What a Job is to do.

    Args:
        identity: of the cluster's CA.
        backup: the backup's id.

    Raises:
        CkpError: that is none.
    """
    made: datetime | None = begun_at(backup)
    if made is None:
        raise CkpError(f"{backup!r} is no id of a backup")
    s3 = spec.s3
    settings = {"podCIDR": plan.pod_cidr, "serviceCIDR": plan.service_cidr, "serviceDomain": plan.domain, "endpoint": plan.endpoint}
    settings |= {"release": plan.release.stamp, "replicas": str(plan.replicas), "etcdReplicas": str(plan.etcd_replicas)}
    return JobRequest(
        task=task,
        cluster=Cluster(namespace=plan.namespace, name=plan.cluster, identity=identity, version=plan.release.name, settings=settings),
        bucket=Bucket(endpoint=s3.endpoint, bucket=s3.bucket, prefix=s3.prefix, region=s3.region),
        made=made,
        keep=spec.keep,
        etcd=tuple(f"https://{member_host(plan, member)}:{CLIENT_PORT}" for member in member_names(plan)) if task is Task.TAKE else (),
        place=place,
    )


def manifest(plan: Plan, image: str, name: str, asked: JobRequest, spec: BackupSpec, claim: str = "") -> Obj:
    """A Job.

    Args:
        claim: the PersistentVolumeClaim of the member that gets the data.
    """
    volumes: list[Obj] = [secret_volume("keys", KEYS_SECRET), empty_volume("scratch"), empty_volume("tmp")]
    mounts = [mount("keys", job.KEYS), mount("scratch", job.SCRATCH, writable=True), mount("tmp", "/tmp", writable=True)]
    if asked.bucket.endpoint:
        volumes.append(secret_volume("store", spec.s3.secret))
        mounts.append(mount("store", job.STORE))
    else:
        volumes.append(_claim("folder", spec.claim))
        mounts.append(mount("folder", job.FOLDER, writable=asked.task is Task.TAKE))
    if asked.task is Task.TAKE:
        leaf = "apiserver-etcd-client"
        client = [("etcd", "tls.crt", "ca.crt"), (leaf, "tls.crt", "client.crt"), (leaf, "tls.key", "client.key")]
        authorities = [(part, f"tls.{ending}", f"{part}.{ending}") for part in ("ca", "etcd", "proxy", "sa") for ending in ("crt", "key")]
        volumes += [plan.pki_volume("etcd", *client), plan.pki_volume("authorities", *authorities)]
        mounts += [mount("etcd", job.ETCD), mount("authorities", job.AUTHORITIES)]
    if claim:
        volumes.append(_claim("data", claim))
        mounts.append(mount("data", job.DATA, writable=True))
    container = {
        "name": "backup",
        "image": image,
        "args": ["ckp.backups"],
        "env": [{"name": job.REQUEST, "value": json.dumps(asked.model_dump(mode="json", by_alias=True), sort_keys=True)}],
        "resources": {"requests": {"cpu": "25m", "memory": "128Mi"}, "limits": {"memory": "2Gi"}},
        "securityContext": hardened(),
        "volumeMounts": mounts,
    }
    retries = 0 if asked.task is Task.CHECK else 2
    labels = plan.selector(BACKUP_COMPONENT)
    return job_manifest(plan.meta(name), labels, [container], volumes, retries=retries, deadline=DEADLINE, keep_seconds=KEEP_FINISHED, restart="Never")


def _claim(name: str, claim: str) -> Obj:
    return {"name": name, "persistentVolumeClaim": {"claimName": claim}}
