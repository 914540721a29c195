"""What is in a backup of a workload cluster: its manifest, which lists the members (ckp.backups.members)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from pydantic import Field, model_validator

from ckp.backups.archive import Form
from ckp.backups.members import Member, Record, raw_manifest, read_manifest
from ckp.kits.errors import VerificationFailed
from ckp.rules.cluster_backups import Restorable

FORMAT = 1
"""The newest that this version reads."""
KIND = "cluster"
SNAPSHOT = "etcd/snapshot"
"""The member with the cluster's etcd."""
AUTHORITIES = "pki/"
"""What names of members with CAs and service-account keys begin with."""


class ClusterManifest(Record):
    """All of a backup of a workload cluster.

    Args:
        kind: tells it from a site's.
        made: when it was begun.
        ckp: the version of CKP that made it.
        namespace, cluster: the cluster's.
        identity: of the public key of its CA.
        version: of its Kubernetes.
        settings: of its objects, for people.
    """

    format: int
    kind: str = Field(pattern=f"^{KIND}$")
    made: datetime
    ckp: str
    namespace: str
    cluster: str
    identity: str
    version: str = Field(pattern=r"^v\d+\.\d+\.\d+$")
    settings: Mapping[str, str] = {}
    members: tuple[Member, ...]

    @model_validator(mode="after")
    def _whole(self) -> ClusterManifest:
        names = [member.name for member in self.members]
        if len(set(names)) != len(names):
            raise ValueError("a member is there twice")
        if SNAPSHOT not in names:
            raise ValueError("it has no snapshot of etcd")
        return self

    @property
    def snapshot(self) -> Member:
        """The member with the cluster's etcd."""
        return next(member for member in self.members if member.name == SNAPSHOT)

    @property
    def restorable(self) -> Restorable:
        """What decides whether it fits a cluster."""
        return Restorable(f"{self.namespace}/{self.cluster}", self.identity, self.version)

    def encoded(self) -> bytes:
        """As it is in the archive."""
        return self.model_dump_json(by_alias=True, indent=1).encode()


def parse(data: bytes, file: str) -> ClusterManifest:
    """A manifest from its bytes.

    Args:
        file: the backup, for errors.

    Raises:
        InvalidInput: a later version of CKP has made it.
        VerificationFailed: it is none.
    """
    found = raw_manifest(data, file, "a cluster")
    if found.get("kind") != KIND:
        raise VerificationFailed(f"{file} is no backup of a workload cluster")
    return read_manifest(ClusterManifest, found, data, file, FORMAT, "backups of clusters")


FORM = Form(parse, "a workload cluster", "it was made with keys of another project or site, which this one does not trust")
"""How backups of workload clusters are read."""
