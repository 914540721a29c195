"""What all reconcilers share: owners, pauses, finalizers, and a status that is written once, at the end, only where it changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ckp.api.kinds import CLUSTER, Kind
from ckp.api.names import CLUSTER_NAME_LABEL, PAUSED_ANNOTATION
from ckp.clients.kube import Kube, KubeError, Obj
from ckp.kits.clock import Clock
from ckp.kits.errors import CkpError
from ckp.rules.conditions import Condition, merge_conditions, summarize


def owner(obj: Obj, kind: str) -> Mapping[str, Any] | None:
    """The owner reference of this kind."""
    return next((ref for ref in obj["metadata"].get("ownerReferences") or [] if ref["kind"] == kind), None)


def deleting(obj: Obj) -> bool:
    """Whether its deletion was requested."""
    return "deletionTimestamp" in obj["metadata"]


def cluster_name(obj: Obj) -> str:
    """The name of the cluster that an object belongs to, from its label."""
    return str((obj["metadata"].get("labels") or {}).get(CLUSTER_NAME_LABEL, ""))


def paused(cluster: Obj | None, obj: Obj) -> bool:
    """Contract: honour `Cluster.spec.paused` and the paused annotation."""
    return bool(cluster and (cluster.get("spec") or {}).get("paused")) or PAUSED_ANNOTATION in (obj["metadata"].get("annotations") or {})


@dataclass
class Scope:
    """One object during one reconcile, as a context manager; its end writes what changed of its status."""

    kube: Kube
    clock: Clock
    kind: Kind
    obj: Obj
    conditions: list[Condition] = field(default_factory=list)
    notes: list[Condition] = field(default_factory=list)
    """Further conditions, which do not count for Ready."""
    status: Obj = field(default_factory=dict)

    @property
    def namespace(self) -> str:
        """Its namespace."""
        return str(self.obj["metadata"]["namespace"])

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.obj["metadata"]["name"])

    async def cluster(self) -> Obj | None:
        """The Cluster that it belongs to; None if it does not exist."""
        name = cluster_name(self.obj) or str((owner(self.obj, "Cluster") or {}).get("name", ""))
        return await self.kube.get(CLUSTER, name, self.namespace) if name else None

    async def add_finalizer(self, finalizer: str) -> None:
        """Add our finalizer, before anything is made that must be undone."""
        present = self.obj["metadata"].get("finalizers") or []
        if finalizer not in present:
            await self._set_finalizers([*present, finalizer])

    async def remove_finalizer(self, finalizer: str) -> None:
        """Remove our finalizer: everything that we made for the object is undone."""
        present = self.obj["metadata"].get("finalizers") or []
        if finalizer in present:
            await self._set_finalizers([item for item in present if item != finalizer])

    async def _set_finalizers(self, finalizers: list[str]) -> None:
        # With the resourceVersion, so that a finalizer that another controller has just added is not overwritten.
        meta = {"finalizers": finalizers, "resourceVersion": self.obj["metadata"]["resourceVersion"]}
        self.obj = await self.kube.merge(self.kind, self.name, self.namespace, {"metadata": meta})

    async def __aenter__(self) -> Scope:
        """A reconcile begins; `close` ends it."""
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Write what is known. A pass that was cut off (a lost lease, a fault of ours) knows only a part, and nothing is written of it."""
        if kind is None or issubclass(kind, CkpError):
            await self.close()

    async def close(self) -> None:
        """Write status and conditions where they changed; an object that no longer exists is no error."""
        before = self.obj.get("status") or {}
        wanted = dict(self.status)
        if self.conditions:
            wanted["conditions"] = merge_conditions(
                before.get("conditions") or [], [*self.conditions, *self.notes, summarize(self.conditions, self.clock.now())]
            )
        patch = {key: value for key, value in wanted.items() if before.get(key) != value}
        if not patch:
            return
        try:
            self.obj = await self.kube.merge(self.kind, self.name, self.namespace, {"status": patch}, subresource="status")
        except KubeError as error:
            if error.code != 404:
                raise


def owner_reference(obj: Obj, *, controller: bool = True) -> Obj:
    """A reference that makes `obj` the owner: what it owns is deleted with it."""
    return {
        "apiVersion": obj["apiVersion"],
        "kind": obj["kind"],
        "name": obj["metadata"]["name"],
        "uid": obj["metadata"]["uid"],
        "controller": controller,
        "blockOwnerDeletion": True,
    }
