"""What is in any backup: files that a signed manifest lists, with what was seen of each as it was taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

LARGEST_MANIFEST = 16 << 20


class Kind(StrEnum):
    """What a member is."""

    ETCD = "etcd"
    SQLITE = "sqlite"
    POSTGRESQL = "postgresql"
    TAR = "tar"
    FILE = "file"
    SEALED = "sealed"
    """A tar, encrypted once more for the readers: the host that made the backup can't read it."""


class Record(BaseModel):
    """Part of a manifest. What a later version adds is kept unread."""

    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True)


class Etcd(Record):
    """What was seen of an etcd cluster.

    Args:
        revision: a snapshot's is at least this: of a read with a quorum, just before.
        members: their names, with the addresses for their peers. A restored member has these again.
    """

    cluster_id: str
    version: str
    revision: int = Field(ge=1)
    members: Mapping[str, tuple[str, ...]]


class Member(Record):
    """A file of the archive.

    Args:
        name: below `members/`.
        size: bytes.
        sha256: in hex.
        about: for people.
        etcd: of a snapshot.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*(/[a-z0-9][a-z0-9._-]*)*$", max_length=200)
    kind: Kind
    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    about: str = ""
    etcd: Etcd | None = None

    @model_validator(mode="after")
    def _seen(self) -> Member:
        if (self.kind is Kind.ETCD) != (self.etcd is not None):
            raise ValueError("a snapshot, and nothing else, has what was seen of its etcd")
        return self


class Listing(Protocol):
    """A manifest, of whatever kind."""

    @property
    def members(self) -> Sequence[Member]:
        """All files of the archive, in their order there."""
        ...

    def encoded(self) -> bytes:
        """As it is in the archive."""
        ...
