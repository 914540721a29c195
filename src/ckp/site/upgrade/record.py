"""What an upgrade has done so far, and what it goes back to: in the management cluster, so that a run that was killed is gone on with from any machine.

The record says which phase it is in. Each phase may be done again from its beginning: what is so already is left alone.

    backup ▶ fill ▶ layer ▶ agents ▶ (no record: done)
                      ▼
                     back ▶ (no record: as before)
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from ckp.api.names import SYSTEM_NAMESPACE
from ckp.kits.errors import CkpError
from ckp.site import management
from ckp.site.install import APPLY
from ckp.site.inventory import SiteHost
from ckp.site.version import UPGRADING

Obj = dict[str, Any]
KEPT = "ckp-upgrade-"
"""Begins the names of ConfigMaps with objects as they were before: one for each group, and one for each of NEW and DROPPED."""
NEW = "new"
"""What of the new layer is needed to go back: Compass' Deployment, whose pods know the new schema."""
DROPPED = "dropped"
"""What the version before has applied and the new one has no longer."""
KEY, OBJECTS = "record.json", "objects.json.gz"


class Phase(StrEnum):
    """How far an upgrade is. BACKUP and FILL change nothing that runs; after LAYER there is no way back."""

    BACKUP = "backup"
    FILL = "fill"
    LAYER = "layer"
    BACK = "back"
    AGENTS = "agents"


class Ref(BaseModel):
    """Names an object of any kind."""

    model_config = ConfigDict(frozen=True)

    api_version: str
    kind: str
    name: str
    namespace: str = ""

    @classmethod
    def of(cls, obj: Obj) -> Self:
        """Of an object."""
        meta = obj["metadata"]
        return cls(api_version=obj["apiVersion"], kind=obj["kind"], name=meta["name"], namespace=meta.get("namespace", ""))

    @property
    def group(self) -> str:
        """Of its kind; "" for Kubernetes' core."""
        return self.api_version.rpartition("/")[0]

    @property
    def key(self) -> tuple[str, str, str, str]:
        """The object, whichever version of its kind it is named by."""
        return self.group, self.kind, self.namespace, self.name

    @property
    def resource(self) -> str:
        """The kind as kubectl takes it."""
        return f"{self.kind}.{self.group}" if self.group else self.kind

    def minimal(self) -> Obj:
        """As little of the object as names it."""
        return {"apiVersion": self.api_version, "kind": self.kind, "metadata": {"name": self.name, **({"namespace": self.namespace} if self.namespace else {})}}


class Record(BaseModel):
    """An upgrade that is not finished.

    Args:
        before, to: versions of CKP.
        schema_before: of Compass' database, as it was.
        backup: the file with the backup that was made first; "" if there is none.
        failure: why it goes back, or why it stopped; "" if it did not.
        made: objects of the new layer that were not there before.
    """

    model_config = ConfigDict(frozen=True)

    before: str
    to: str
    phase: Phase
    schema_before: str
    backup: str = ""
    failure: str = ""
    made: tuple[Ref, ...] = ()

    def now(self, phase: Phase, **changes: Any) -> Self:
        """The same upgrade in another phase."""
        return self.model_copy(update={"phase": phase, **changes})


def read(host: SiteHost) -> Record | None:
    """The record of an unfinished upgrade; None if there is none.

    Raises:
        CkpError: the management cluster does not answer, or the record can't be read.
    """
    text = _get(host, UPGRADING)
    if not text:
        return None
    try:
        return Record.model_validate_json(json.loads(text)["data"][KEY])
    except (KeyError, ValueError, ValidationError) as error:
        raise CkpError(
            f"the record of the site's upgrade (ConfigMap {UPGRADING}) can't be read: {error}",
            resolution="use the version of CKP that began the upgrade",
        ) from None


def write(host: SiteHost, record: Record) -> Record:
    """Write it, and return it. Raises CkpError if the management cluster does not take it."""
    _apply(host, {"data": {KEY: record.model_dump_json(indent=1)}}, UPGRADING)
    return record


def forget(host: SiteHost) -> None:
    """The upgrade is finished, or taken back: first the record, which needs what was kept. (Of that, a kill in between leaves some until the next one.)"""
    names = [name.rpartition("/")[2] for name in management.kubectl(host, "get", "configmaps", f"--namespace={SYSTEM_NAMESPACE}", "--output=name").split()]
    kept = [name for name in names if name.startswith(KEPT)]
    management.kubectl(host, "delete", "configmap", UPGRADING, *kept, f"--namespace={SYSTEM_NAMESPACE}", "--ignore-not-found")


def keep(host: SiteHost, group: str, objects: Sequence[Obj]) -> None:
    """Keep objects for the way back."""
    packed = gzip.compress(json.dumps(list(objects)).encode(), mtime=0)
    _apply(host, {"binaryData": {OBJECTS: base64.b64encode(packed).decode()}}, KEPT + group)


def kept(host: SiteHost, group: str) -> list[Obj]:
    """What was kept of a group.

    Raises:
        CkpError: there is nothing, or it can't be read.
    """
    text = _get(host, KEPT + group)
    try:
        found: list[Obj] = json.loads(gzip.decompress(base64.b64decode(json.loads(text)["binaryData"][OBJECTS])))
    except (KeyError, ValueError, OSError, EOFError) as error:
        raise CkpError(
            f"what was kept of the site before its upgrade (ConfigMap {KEPT}{group}) can't be read: {error}",
            resolution="restore the site from the backup that was made first",
        ) from None
    return found


def _get(host: SiteHost, name: str) -> str:
    return management.kubectl(host, "get", "configmap", name, f"--namespace={SYSTEM_NAMESPACE}", "--ignore-not-found", "--output=json").strip()


def _apply(host: SiteHost, content: Obj, name: str) -> None:
    obj = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": SYSTEM_NAMESPACE}, **content}
    management.kubectl(host, *APPLY, stdin=json.dumps(obj), timeout=120)
