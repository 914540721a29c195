"""What the controllers ask of the program that makes and restores backups of workload clusters (`python -m ckp.backups`), and what it answers.

A request is the environment variable REQUEST of its pod, and holds no secret: those are files, from Secrets that the pod mounts. The answer is the pod's
termination message.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

REQUEST = "CKP_BACKUP_REQUEST"
REPORT_FILE = "/dev/termination-log"
KEYS, STORE, ETCD, AUTHORITIES, FOLDER, DATA, SCRATCH = (f"/run/ckp/{name}" for name in ("keys", "store", "etcd", "authorities", "folder", "data", "scratch"))
"""Where the pod has: the keys of backups; the access key to the bucket; the client certificate for etcd; the cluster's CAs; the volume with backups; a
member's volume; and room to work in."""
PASSPHRASE, SIGNER_KEY, SIGNER_CERTIFICATE = "passphrase", "signer.sec", "signer.pgp"
"""Keys of the Secret that is mounted at KEYS."""
CREDENTIALS, STORE_CA = "credentials", "ca.crt"
"""Keys of the Secret that is mounted at STORE: as ~/.aws/credentials; and the CAs that the store's certificate has to chain to (may be absent)."""
AUTHORITY_FILES = tuple(f"{part}.{ending}" for part in ("ca", "etcd", "proxy", "sa") for ending in ("crt", "key"))
"""In AUTHORITIES: certificates (of `sa`: the public key) and keys."""
MOST_KEPT = 60
"""Backups of one cluster: as many ids fit into a report, which Kubernetes cuts at 4 KiB."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True)


class Task(StrEnum):
    """What is to be done."""

    TAKE = "take"
    CHECK = "check"
    PLACE = "place"


class Bucket(_Part):
    """An object store's bucket; none where `endpoint` is empty, and then backups are in FOLDER."""

    endpoint: str = ""
    bucket: str = ""
    prefix: str = ""
    region: str = ""


class Cluster(_Part):
    """The cluster that has or gets the data.

    Args:
        identity: of the public key of its CA (ckp.rules.cluster_backups.Restorable).
        settings: of its objects, for people: networks, endpoint, replicas.
    """

    namespace: str
    name: str
    identity: str
    version: str
    settings: Mapping[str, str] = Field(default_factory=dict)


class Placement(_Part):
    """A member of etcd whose volume gets the data.

    Args:
        restore: tells this restore from others; a volume that has been given its data is not given it again.
        peers: all members that begin together, with their addresses for each other.
        seen: the highest revision that is on record of the cluster.
    """

    restore: str
    member: str
    peers: Mapping[str, str]
    seen: int


class JobRequest(_Part):
    """What a pod is to do.

    Args:
        made: when the backup was begun, which names it.
        keep: how many of the cluster's stay.
        etcd: URLs of members to take a snapshot from; the first that answers.
        place: of the task PLACE.
    """

    task: Task
    cluster: Cluster
    bucket: Bucket = Bucket()
    made: datetime
    keep: int = Field(default=MOST_KEPT, ge=1, le=MOST_KEPT)
    etcd: tuple[str, ...] = ()
    place: Placement | None = None


class JobReport(_Part):
    """What came of it.

    Args:
        ok: whether it was done.
        message: why not.
        size: bytes of the backup's file.
        revision, keys: of its etcd, as it was restored on trial.
        version: of the Kubernetes that it is of.
        kept: ids of all backups of the cluster that are there now.
    """

    ok: bool
    message: str = ""
    size: int = 0
    revision: int = 0
    keys: int = 0
    version: str = ""
    kept: tuple[str, ...] = ()
