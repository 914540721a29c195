"""What is in any backup: files that a signed manifest lists, with what was seen of each as it was taken."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from ckp.kits.errors import InvalidInput, VerificationFailed

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


M = TypeVar("M", bound=Record)


def raw_manifest(data: bytes, file: str, what: str) -> dict[str, Any]:
    """What a manifest's bytes hold, before it is known which form it has.

    Args:
        file: the backup, for errors.
        what: that it should be of, such as `a site`.

    Raises:
        VerificationFailed: it is none.
    """
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    if not isinstance(found, dict) or "format" not in found:
        raise VerificationFailed(f"{file} is no backup of {what}: its manifest can't be read")
    return found


def read_manifest(model: type[M], found: Mapping[str, Any], data: bytes, file: str, newest: int, backups: str = "backups") -> M:
    """A manifest, checked.

    Args:
        found: of `raw_manifest`.
        newest: the newest format that this version reads.
        backups: those of which it says so.

    Raises:
        InvalidInput: a later version of CKP has made it.
        VerificationFailed: it is not whole.
    """
    version = found["format"]
    if not isinstance(version, int) or version > newest:
        by = found.get("ckp", "a later version")
        raise InvalidInput(
            f"{file} has the format {version}, and this version of CKP reads {backups} up to {newest}", resolution=f"use the version of CKP that made it ({by})"
        )
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        wrong = "\n".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise VerificationFailed(f"the manifest of {file} is not whole", details=wrong) from None
