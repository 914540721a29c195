"""Kubernetes' Events of CKP's objects, from what their conditions become: for `kubectl describe`, `ckp host describe`, and whoever collects Events.

A controller beside the others: it reads what they and the hub write, so that none of them has to think of it. Events are no state: one that is
lost is lost, and after a restart only what became so in the last two minutes is told.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import timedelta

import structlog

from ckp.api.names import EVENT_LABEL
from ckp.clients.kube import Kube, KubeError, Obj
from ckp.kits.clock import Clock, parse_rfc3339, rfc3339
from ckp.rules.events import Happening, happenings
from ckp.runtime.controller import Result
from ckp.runtime.informer import Informer

log = structlog.get_logger()
FRESH = timedelta(minutes=2)
REMEMBERED = 20_000
COMPONENT = "ckp-controllers"


@dataclass
class EventsReconciler:
    """Tells what became of one object since it was looked at last."""

    kube: Kube
    clock: Clock
    informer: Informer
    _told: OrderedDict[tuple[str, str], str] = field(default_factory=OrderedDict)

    async def reconcile(self, namespace: str, name: str) -> Result:
        """One pass."""
        obj = self.informer.get(namespace, name)
        if obj is None:
            return Result()
        for happening in happenings(obj):
            key = (str(obj["metadata"]["uid"]), happening.about)
            before = self._told.get(key)
            if before == happening.state:
                continue
            self._told[key] = happening.state
            self._told.move_to_end(key)
            while len(self._told) > REMEMBERED:
                self._told.popitem(last=False)
            if before is not None or self._is_fresh(happening):
                await self._tell(obj, happening)
        return Result()

    def _is_fresh(self, happening: Happening) -> bool:
        return bool(happening.since) and self.clock.now() - parse_rfc3339(happening.since) < FRESH

    async def _tell(self, obj: Obj, happening: Happening) -> None:
        meta, now = obj["metadata"], rfc3339(self.clock.now())
        about = f"{meta['uid']} {happening.about} {happening.state} {happening.since or now}"
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": f"{meta['name'][:200]}.{hashlib.sha256(about.encode()).hexdigest()[:16]}",
                "namespace": meta["namespace"],
                "labels": {EVENT_LABEL: str(meta["uid"])},
            },
            "involvedObject": {
                "apiVersion": obj["apiVersion"],
                "kind": obj["kind"],
                "name": meta["name"],
                "namespace": meta["namespace"],
                "uid": meta["uid"],
                "resourceVersion": meta["resourceVersion"],
            },
            "type": "Warning" if happening.warning else "Normal",
            "reason": happening.reason[:128],
            "message": happening.message[:1000],
            "source": {"component": COMPONENT},
            "firstTimestamp": happening.since or now,
            "lastTimestamp": happening.since or now,
            "count": 1,
        }
        try:
            await self.kube.create(event)
        except KubeError as error:
            if error.reason != "AlreadyExists":  # told before a restart
                log.warning("an event was not written", object=f"{meta['namespace']}/{meta['name']}", error=error.brief)
