"""Server-side apply that does not repeat itself: an unchanged object is applied again only after a while."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field

from ckp.api.kinds import kind_of
from ckp.clients.kube import Kube, Obj
from ckp.kits.clock import Clock

REPEAT = 120.0
"""Seconds after which an unchanged object is applied again: drift is corrected within this time."""


@dataclass
class Applier:
    """Server-side apply that remembers what it applied last."""

    kube: Kube
    clock: Clock
    _applied: dict[tuple[str, str, str], tuple[str, float]] = field(default_factory=dict)

    async def apply(self, *objects: Obj) -> None:
        """Apply each object that is new, changed, or due again."""
        for obj in objects:
            meta = obj["metadata"]
            key = (kind_of(obj).kind, meta.get("namespace", ""), meta["name"])
            digest = hashlib.sha256(json.dumps(obj, sort_keys=True).encode()).hexdigest()
            known, at = self._applied.get(key, ("", 0.0))
            if known == digest and self.clock.monotonic() - at < REPEAT:
                continue
            await self.kube.apply(obj)
            self._applied[key] = (digest, self.clock.monotonic())

    def forget(self, namespace: str, prefix: str) -> None:
        """Forget the objects of a deleted cluster."""
        for key in [key for key in self._applied if key[1] == namespace and key[2].startswith(prefix)]:
            del self._applied[key]
