"""Where the desired states of hosts come from: the Secrets of one namespace, watched."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol, cast

import structlog
from pydantic import ValidationError

from ckp.api import kinds, names
from ckp.api.host_protocol import MAX_FRAME_BYTES, Desired
from ckp.clients.kube import Kube, KubeError, Obj
from ckp.hub.identity import HostId
from ckp.kits.retry import backoff

log = structlog.get_logger("hub.desired")

RELIST_SECONDS = 300.0
"""A watch is thrown away and begun anew with a list after this time: one whose connection died without a word is noticed by then."""

QUIET_SECONDS, BURST_SECONDS = 0.05, 2.0
"""While the last change is not older than the first, all that can wait waits; but of changes without an end, every second spell of the other only."""


class DesiredSource(Protocol):
    """Hands out the desired state of one host at a time, and tells when it has changed."""

    async def wait_synced(self) -> None:
        """Until the first list is in: before it, a missing desired state means nothing."""
        ...

    def frame(self, host: HostId) -> str | None:
        """The whole desired state as the frame to send; None if what is stored must not be sent (it is logged)."""
        ...

    def certificates(self, host: HostId) -> str | None:
        """A text that changes whenever the host's certificates do; None while nothing is said of the host (it may have been removed)."""
        ...

    def subscribe(self, host: HostId) -> asyncio.Event:
        """An event that is set at each change; the reader clears it before it reads."""
        ...

    def unsubscribe(self, host: HostId, event: asyncio.Event) -> None:
        """Tell this event nothing more."""
        ...

    async def wait_until_quiet(self) -> None:
        """Until changes have ceased to come for a moment, or have come for so long that others must have their turn as well."""
        ...


class KubeDesired:
    """Desired states from the Secrets in ckp-hosts: list, then watch; after any error, list again."""

    def __init__(self, kube: Kube, *, namespace: str = names.HOSTS_NAMESPACE, relist: float = RELIST_SECONDS) -> None:
        self._kube = kube
        self._namespace = namespace
        self._relist = relist
        self._raw: dict[str, _Stored] = {}
        self._events: dict[str, set[asyncio.Event]] = {}
        self._synced = asyncio.Event()
        self._healthy = False
        self._burst_began = self._last_change = float("-inf")

    @property
    def healthy(self) -> bool:
        """Whether the last list succeeded."""
        return self._healthy

    async def wait_synced(self) -> None:
        await self._synced.wait()

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
        stored = self._raw.get(host.secret)
        return stored.certificates if stored else None

    def frame(self, host: HostId) -> str | None:
        stored = self._raw.get(host.secret)
        if stored is None:
            return Desired(generation=0, host=host.name).model_dump_json()
        try:
            text = base64.b64decode(stored.desired, validate=True).decode()
            if stored.agent:
                text = json.dumps(json.loads(text) | {"agent": json.loads(base64.b64decode(stored.agent, validate=True))}, separators=(",", ":"))
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

    async def run(self) -> None:
        """Follow the namespace until cancelled."""
        failures = 0
        while True:
            try:
                version = await self._list()
                failures = 0
                async with asyncio.timeout(self._relist):
                    while True:
                        version = await self._watch(version)
            except TimeoutError:
                continue
            except KubeError as error:
                if error.code == 410:
                    continue  # our version is too old to watch from: list, at once
                self._healthy = False
                log.warning("the desired states cannot be read", error=error.brief, failures=failures)
                await asyncio.sleep(backoff(failures, limit=15.0))
                failures += 1

    async def _list(self) -> str:
        secrets, version = await self._kube.list_with_version(kinds.SECRET, self._namespace, labels=_LABELS)
        fresh = {str(secret["metadata"]["name"]): raw for secret in secrets if (raw := _raw(secret)) is not None}
        before, self._raw = self._raw, fresh
        for name in before.keys() | fresh.keys():
            if before.get(name) != fresh.get(name):
                self._tell(name)
        self._healthy = True
        self._synced.set()
        return version

    async def _watch(self, version: str) -> str:
        async with aclosing(cast(Any, self._kube.watch(kinds.SECRET, self._namespace, version, labels=_LABELS))) as changes:
            async for event, secret in changes:
                version = str(secret["metadata"].get("resourceVersion", version))
                name = str(secret["metadata"].get("name", ""))
                if event in ("ADDED", "MODIFIED") and (raw := _raw(secret)) is not None:
                    if self._raw.get(name) != raw:
                        self._raw[name] = raw
                        self._tell(name)
                elif event == "DELETED" and self._raw.pop(name, None) is not None:
                    self._tell(name)
        return version

    def _tell(self, name: str) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._last_change >= BURST_SECONDS:
            self._burst_began = now
        self._last_change = now
        for event in self._events.get(name, ()):
            event.set()


_LABELS = {names.HOST_NAME_ANNOTATION: None}


@dataclass(frozen=True)
class _Stored:
    """What the Secret of a host holds; the data as it is, in base64."""

    desired: str
    agent: str = ""
    certificates: str | None = None


def _raw(secret: Obj) -> _Stored | None:
    data, annotations = secret.get("data") or {}, secret["metadata"].get("annotations") or {}
    desired, agent = data.get(names.DESIRED_KEY), data.get(names.AGENT_KEY)
    if not isinstance(desired, str):
        return None
    return _Stored(desired, agent if isinstance(agent, str) else "", annotations.get(names.CERTIFICATES_ANNOTATION))
