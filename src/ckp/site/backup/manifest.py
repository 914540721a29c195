"""What is in a backup of a site: its manifest, which lists the members (ckp.backups.members)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from pydantic import Field, model_validator

from ckp.backups.archive import Form
from ckp.backups.members import Kind, Member, Record, raw_manifest, read_manifest
from ckp.hostkit.backup import collection

FORMAT = collection.SEALED_FORMAT
"""The newest that this version reads."""
MANAGEMENT = collection.MANAGEMENT
"""The member with the management cluster's etcd."""


class Hosted(Record):
    """A workload cluster whose control plane the management cluster carries.

    Args:
        version: of its Kubernetes.
        member: of its snapshot; "" if there is none.
        why: why there is none.
    """

    namespace: str
    name: str
    version: str
    member: str = ""
    why: str = ""

    @property
    def title(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"


class Volume(Record):
    """A volume of the management cluster's that lies in a folder of its host, for a restore to put data back where the API will look for it.

    Args:
        claim: `namespace/name` of its PersistentVolumeClaim.
        host: the management host that has it; empty in a backup of a site with one.
        entries: what is in it: name -> owner, group and mode, as in `65532 65532 700`.
    """

    claim: str
    path: str
    entries: Mapping[str, str]
    host: str = ""


class Manifest(Record):
    """All of a backup.

    Args:
        made: when it was begun.
        ckp: the version of CKP that made it.
        release: of the management cluster.
        cluster_uid: tells the management cluster from others.
        host, address: of the management host that was acted on.
        hosts: of all management hosts, names -> addresses; none where there is one.
        signing_keys: whether the keys are in it that sign releases.
    """

    format: int
    site: str = Field(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", max_length=63)
    made: datetime
    ckp: str
    release: str
    cluster_uid: str
    host: str
    address: str
    hosts: Mapping[str, str] = {}
    signing_keys: bool
    clusters: tuple[Hosted, ...]
    volumes: tuple[Volume, ...] = ()
    members: tuple[Member, ...]

    @model_validator(mode="after")
    def _whole(self) -> Manifest:
        names = [member.name for member in self.members]
        if len(set(names)) != len(names):
            raise ValueError("a member is there twice")
        if missing := [cluster.member for cluster in self.clusters if cluster.member and cluster.member not in names]:
            raise ValueError(f"clusters name members that are not there: {', '.join(missing)}")
        return self

    def member(self, name: str) -> Member:
        """One of its members; KeyError if there is none of that name."""
        return {item.name: item for item in self.members}[name]

    @property
    def databases(self) -> list[Member]:
        """Of Compass: one, or none in a backup of a version that took none."""
        return [item for item in self.members if item.kind in (Kind.SQLITE, Kind.POSTGRESQL)]

    def encoded(self) -> bytes:
        """As it is in the archive."""
        return self.model_dump_json(by_alias=True, indent=1).encode()


def parse(data: bytes, file: str) -> Manifest:
    """A manifest from its bytes.

    Args:
        file: the backup, for errors.

    Raises:
        InvalidInput: a later version of CKP has made it.
        VerificationFailed: it is none.
    """
    return read_manifest(Manifest, raw_manifest(data, file, "a site"), data, file, FORMAT)


FORM = Form(parse, "a site", "if you know that this key is the site's, say so: --signed-by {key}")
"""How backups of sites are read."""
