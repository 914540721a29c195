"""Where the desired states of hosts come from: the Secrets of one namespace, watched."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from dataclasses import dataclass
from typing import Protocol

import structlog
from pydantic import ValidationError

from ckp.api import kinds, names
from ckp.api.host_protocol import MAX_FRAME_BYTES, Desired
from ckp.clients.kube import Kube, Obj
from ckp.hub.identity import HostId
from ckp.runtime.informer import Informer

log = structlog.get_logger("hub.desired")

QUIET_SECONDS, BURST_SECONDS = 0.05, 2.0
"""After a change all that can wait does so until none came for the first; in changes without an end it waits in every second interval of the second only."""


class DesiredSource(Protocol):
    """Hands out the desired state of one host at a time, and signals its changes."""

    async def wait_synced(self) -> None:
        """Until the first list is in: before it, a missing desired state means nothing."""
        ...

    def frame(self, host: HostId) -> str | None:
        """The whole desired state as the frame to send; None if what is stored must not be sent (it is logged)."""
        ...

    def certificates(self, host: HostId) -> str | None:
        """A text that changes whenever the host's certificates do; None while nothing is stored of the host (it may have been removed)."""
        ...

    def subscribe(self, host: HostId) -> asyncio.Event:
        """An event that is set at each change; the reader clears it before it reads."""
        ...

    def unsubscribe(self, host: HostId, event: asyncio.Event) -> None:
        """Stop setting this event."""
        ...

    async def wait_until_quiet(self) -> None:
        """Until no change has come for a moment, or changes have come for so long that all else must go on as well."""
        ...


class KubeDesired:
    """Desired states from the Secrets in ckp-hosts, followed by an informer."""

    def __init__(self, kube: Kube, *, namespace: str = names.HOSTS_NAMESPACE) -> None:
        self._namespace = namespace
        self._secrets = Informer(kube, kinds.SECRET, namespace, _LABELS, transform=_needed, handlers=[self._on_change])
        self._stored: dict[str, _Stored] = {}
        self._events: dict[str, set[asyncio.Event]] = {}
        self._burst_began = self._last_change = float("-inf")

    @property
    def healthy(self) -> bool:
        """Whether the API server answered when the Secrets were last read."""
        return self._secrets.healthy

    async def run(self) -> None:
        """Follow the namespace until cancelled."""
        await self._secrets.run()

    async def wait_synced(self) -> None:
        await self._secrets.synced.wait()

    def subscribe(self, host: HostId) -> asyncio.Event:
        event = asyncio.Event()
        self._events.setdefault(host.secret, set()).add(event)
        return event

    def unsubscribe(self, host: HostId, event: asyncio.Event) -> None:
        listeners = self._events.get(host.secret, set())
        listeners.discard(event)
        if not listeners:
            self._events.pop(host.secret, None)

    async def wait_until_quiet(self) -> None:
        now = asyncio.get_running_loop().time
        while now() - self._last_change < QUIET_SECONDS and (now() - self._burst_began) % (2 * BURST_SECONDS) < BURST_SECONDS:
            await asyncio.sleep(QUIET_SECONDS / 2)

    def certificates(self, host: HostId) -> str | None:
        stored = self._stored.get(host.secret)
        return stored.certificates if stored else None

    def frame(self, host: HostId) -> str | None:
        stored = self._stored.get(host.secret)
        if stored is None:
            return Desired(generation=0, host=host.name).model_dump_json()
        try:
            text = base64.b64decode(stored.desired, validate=True).decode()
            more = {
                key: json.loads(base64.b64decode(part, validate=True)) for key, part in (("agent", stored.agent), ("registry_login", stored.registry)) if part
            }
            if more:
                text = json.dumps(json.loads(text) | more, separators=(",", ":"))
            desired = Desired.model_validate_json(text)
        except (binascii.Error, ValueError, TypeError) as error:
            problems = error.error_count() if isinstance(error, ValidationError) else str(error)
            log.error("a desired state is malformed and is not sent", host=str(host), problems=problems)
            return None
        if desired.host != host.name:
            log.error("a desired state names another host and is not sent", host=str(host), names=desired.host)
            return None
        if len(text.encode()) > MAX_FRAME_BYTES:
            log.error("a desired state is larger than a frame and is not sent", host=str(host), size=len(text))
            return None
        return text  # as it was written: a newer controller's fields reach a newer agent through an older hub

    def _on_change(self, secret: Obj) -> None:
        name = str(secret["metadata"]["name"])
        current = self._secrets.get(self._namespace, name)
        stored = _Stored.of(current) if current else None
        if stored == self._stored.get(name):
            return  # something else in it has changed
        if stored is None:
            del self._stored[name]
        else:
            self._stored[name] = stored
        now = asyncio.get_running_loop().time()
        if now - self._last_change >= BURST_SECONDS:
            self._burst_began = now
        self._last_change = now
        for event in self._events.get(name, ()):
            event.set()


_LABELS = {names.HOST_LABEL: None}


@dataclass(frozen=True)
class _Stored:
    """What the Secret of a host holds; the data as it is, in base64."""

    desired: str
    agent: str = ""
    registry: str = ""
    certificates: str | None = None

    @classmethod
    def of(cls, secret: Obj) -> _Stored:
        data, annotations = secret.get("data") or {}, secret["metadata"].get("annotations") or {}
        desired, agent, registry = (str(data.get(key, "")) for key in (names.DESIRED_KEY, names.AGENT_KEY, names.REGISTRY_KEY))
        return cls(desired, agent, registry, annotations.get(names.CERTIFICATES_ANNOTATION))


def _needed(secret: Obj) -> Obj:
    """Of a Secret only what is read here: the rest of 2,000 of them, most of it managedFields, is some megabytes."""
    meta, data = secret["metadata"], secret.get("data") or {}
    annotations = {key: value for key, value in (meta.get("annotations") or {}).items() if key == names.CERTIFICATES_ANNOTATION}
    return {
        "metadata": {key: meta[key] for key in ("name", "namespace", "resourceVersion") if key in meta} | {"annotations": annotations},
        "data": {key: data[key] for key in (names.DESIRED_KEY, names.AGENT_KEY, names.REGISTRY_KEY) if key in data},
    }
