"""Kubernetes' Events of CKP's objects, from the transitions of their conditions: for `kubectl describe`, `ckp host describe`, and tools that collect Events.

A controller beside the others: it reads what they and the hub write, so that none of them has to emit Events itself. Events are not state: one that
is lost is lost, and after a restart only transitions of the last two minutes are emitted.
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
from ckp.rules.events import Transition, transitions
from ckp.runtime.controller import Result
from ckp.runtime.informer import Informer

log = structlog.get_logger()
FRESH = timedelta(minutes=2)
REMEMBERED = 20_000
COMPONENT = "ckp-controllers"


@dataclass
class EventsReconciler:
    """Emits an Event for each transition of one object since the last pass."""

    kube: Kube
    clock: Clock
    informer: Informer
    _emitted: OrderedDict[tuple[str, str], str] = field(default_factory=OrderedDict)

    async def reconcile(self, namespace: str, name: str) -> Result:
        """One pass."""
        obj = self.informer.get(namespace, name)
        if obj is None:
            return Result()
        for transition in transitions(obj):
            key = (str(obj["metadata"]["uid"]), transition.about)
            before = self._emitted.get(key)
            if before == transition.state:
                continue
            self._emitted[key] = transition.state
            self._emitted.move_to_end(key)
            while len(self._emitted) > REMEMBERED:
                self._emitted.popitem(last=False)
            if before is not None or self._is_fresh(transition):
                await emit(self.kube, self.clock, obj, transition)
        return Result()

    def _is_fresh(self, transition: Transition) -> bool:
        return bool(transition.since) and self.clock.now() - parse_rfc3339(transition.since) < FRESH


async def emit(kube: Kube, clock: Clock, obj: Obj, transition: Transition) -> None:
    """Write one Event about an object; that it can't be written is logged, and no error."""
    meta, now = obj["metadata"], rfc3339(clock.now())
    about = f"{meta['uid']} {transition.about} {transition.state} {transition.since or now}"
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
        "type": "Warning" if transition.warning else "Normal",
        "reason": transition.reason[:128],
        "message": transition.message[:1000],
        "source": {"component": COMPONENT},
        "firstTimestamp": transition.since or now,
        "lastTimestamp": transition.since or now,
        "count": 1,
    }
    try:
        await kube.create(event)
    except KubeError as error:
        if error.reason != "AlreadyExists":  # emitted before a restart
            log.warning("an event was not written", object=f"{meta['namespace']}/{meta['name']}", error=error.brief)
