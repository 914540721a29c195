"""An API server in memory, for tests: the part of Kubernetes' semantics that CKP's code relies on, and nothing else.

What it is honest about: resource versions and conflicts, uid and generation, the status subresource, finalizers, background garbage
collection by owner references, server-side apply with owned fields (a field that its only applier stops naming goes away), merge patch,
namespaces that must exist, label selectors, watches with a history that can expire (410). What it does not know: schemas, admission,
defaulting, RBAC. Those are for the tests that run against a real API server.
"""

from __future__ import annotations

import asyncio
import bisect
import copy
import functools
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, cast

from ckp.api import kinds
from ckp.api.kinds import Kind, kind_of
from ckp.clients.kube import PAGE, EventType, Kube, KubeError, Obj, Objs
from ckp.kits.clock import rfc3339

Key = tuple[Kind, str, str]
Path = tuple[str, ...]
Owner = tuple[str, str]  # manager, subresource

_WITHOUT_STATUS = frozenset({
    kinds.SECRET, kinds.CONFIG_MAP, kinds.SERVICE_ACCOUNT, kinds.LEASE, kinds.ENDPOINTS, kinds.ENDPOINT_SLICE, kinds.ROLE, kinds.ROLE_BINDING,
    kinds.CLUSTER_ROLE, kinds.CLUSTER_ROLE_BINDING, kinds.STORAGE_CLASS, kinds.PRIORITY_CLASS, kinds.KUBEADM_CONFIG_TEMPLATE, kinds.BYO_MACHINE_TEMPLATE,
})  # fmt: skip
_LIST_KEYS = {"conditions": "type", "ownerReferences": "uid", "containers": "name", "initContainers": "name", "volumes": "name", "env": "name"}
"""Lists that server-side apply merges by an element's key (x-kubernetes-list-type: map); all others are replaced whole."""


@dataclass
class Change:
    """One write: the object as it was then, and what a watch calls it."""

    version: int
    type: EventType
    kind: Kind
    obj: Obj


@dataclass
class _Store:
    objects: dict[Key, Obj] = field(default_factory=dict)
    owned: dict[Key, dict[Owner, set[Path]]] = field(default_factory=dict)
    version: int = 0
    expired: int = 0
    events: list[Change] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    fault: Callable[[str, Kind, str], KubeError | None] | None = None
    virtual: dict[str, Callable[[Obj], Obj]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    calls: list[tuple[str, str, str]] = field(default_factory=list)


class KubeSimulator(Kube):
    """Stands where a `Kube` stands. `as_manager` gives a second client of the same cluster under another field manager.

    Args:
        namespaces: those that exist from the start.
    """

    def __init__(self, *, manager: str = "ckp", namespaces: tuple[str, ...] = ("default",)) -> None:
        self._manager = manager
        self._store = _Store()
        for name in namespaces:
            self._admit(kinds.NAMESPACE, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})

    def as_manager(self, manager: str) -> KubeSimulator:
        """Another client of the same simulated cluster."""
        other = KubeSimulator(manager=manager, namespaces=())
        other._store = self._store
        return other

    # What a test sets and asks.

    def on_text(self, path: str, text: str) -> None:
        """What `text` answers at a path; others are not found."""
        self._store.texts[path] = text

    def on_fault(self, fault: Callable[[str, Kind, str], KubeError | None] | None) -> None:
        """Ask `fault(verb, kind, name)` before each call; what it returns is raised. None ends it."""
        self._store.fault = fault

    def on_create(self, kind: str, answer: Callable[[Obj], Obj]) -> None:
        """A kind that is answered and never stored, such as TokenReview."""
        self._store.virtual[kind] = answer

    def expire_history(self) -> None:
        """Forget all past events: watches from before now end with 410."""
        self._store.expired = self._store.version
        self._store.events.clear()
        self._wake()

    @property
    def version(self) -> int:
        """The newest resource version: every write makes another."""
        return self._store.version

    def stored(self, kind: Kind, name: str, namespace: str | None = None) -> Obj:
        """An object as it is kept, not a copy: a test that changes it does what a write from elsewhere does, without an event. KeyError if there is none."""
        return self._store.objects[kind, namespace or "", name]

    def all_stored(self, kind: Kind) -> list[Obj]:
        """All objects of a kind, as they are kept."""
        return [obj for (of_kind, _, _), obj in self._store.objects.items() if of_kind == kind]

    def matching(self, kind: Kind, namespace: str | None, labels: Mapping[str, str | None] | None) -> list[Obj]:
        """What a list gives, as it is kept: for a server in front of the simulator that copies by writing JSON."""
        return list(self._matching(kind, namespace, labels))

    def events(self, since: int = 0) -> list[Change]:
        """Every change that is still in the history, from the `since`th on: as many as `len(events())` was before."""
        return self._store.events[since:]

    def trim_history(self, keep: int, *, beyond: int) -> None:
        """Once there are more than `beyond` changes forget all but the newest `keep`, as etcd's compaction does: watches from before end with 410."""
        if len(self._store.events) > beyond:
            self._store.expired = self._store.events[-keep - 1].version
            del self._store.events[:-keep]

    @property
    def calls(self) -> list[tuple[str, str, str]]:
        """Every call so far: verb, kind, name."""
        return self._store.calls

    # The face of Kube.

    async def text(self, path: str) -> str:
        if path not in self._store.texts:
            raise KubeError(f"get {path}: not found", code=404)
        return self._store.texts[path]

    async def get(self, kind: Kind, name: str, namespace: str | None = None) -> Obj | None:
        await self._enter("get", kind, name)
        found = self._store.objects.get((kind, namespace or "", name))
        return copy.deepcopy(found)

    async def list_with_version(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        labels: Mapping[str, str | None] | None = None,
        fields: Mapping[str, str] | None = None,
        page: int = PAGE,
    ) -> tuple[Objs, str]:
        await self._enter("list", kind, "")
        return [copy.deepcopy(obj) for obj in self._matching(kind, namespace, labels) if _has_fields(obj, fields)], str(self._store.version)

    async def watch(
        self, kind: Kind, namespace: str | None, version: str, *, labels: Mapping[str, str | None] | None = None, seconds: int = 240
    ) -> AsyncIterator[tuple[EventType, Obj]]:
        await self._enter("watch", kind, "")
        seen = int(version)
        deadline = asyncio.get_running_loop().time() + seconds
        while True:
            if seen < self._store.expired:
                raise KubeError(f"watch {kind.kind}: too old resource version: {seen}", code=410, reason="Expired")
            events = self._store.events
            fresh = events[bisect.bisect_right(events, seen, key=lambda event: event.version) :]
            for event in fresh:
                seen = event.version
                if event.kind == kind and namespace in (None, "", _meta(event.obj).get("namespace")) and _selected(event.obj, labels):
                    yield event.type, copy.deepcopy(event.obj)
            if fresh:
                continue
            remaining = deadline - asyncio.get_running_loop().time()
            if remaining <= 0:
                return
            try:
                async with asyncio.timeout(remaining):  # not wait_for: in Python 3.11 it may swallow a cancellation
                    await self._store.changed.wait()
            except TimeoutError:
                return
            await self._enter("watch", kind, "")

    async def create(self, obj: Obj) -> Obj:
        kind = kind_of(obj)
        if kind.kind in self._store.virtual:
            await self._enter("create", kind, "")
            return copy.deepcopy(self._store.virtual[kind.kind](copy.deepcopy(obj)))
        obj = copy.deepcopy(obj)
        if "name" not in obj["metadata"] and "generateName" in obj["metadata"]:
            obj["metadata"]["name"] = f"{obj['metadata']['generateName']}{uuid.uuid4().hex[:5]}"
        name = obj["metadata"]["name"]
        await self._enter("create", kind, name)
        if self._key(kind, obj) in self._store.objects:
            raise KubeError(f'create {kind.kind} {name}: {kind.plural} "{name}" already exists', code=409, reason="AlreadyExists")
        if kind not in _WITHOUT_STATUS:
            obj.pop("status", None)
        return self._admit(kind, obj)

    async def apply(self, obj: Obj, *, subresource: Literal["", "status"] = "") -> Obj:
        obj = copy.deepcopy(obj)
        kind, name = kind_of(obj), obj["metadata"]["name"]
        await self._enter("apply", kind, name)
        key = self._key(kind, obj)
        old = self._store.objects.get(key)
        if old is not None:
            _same_version(obj["metadata"].pop("resourceVersion", None), old, "patch", kind, name)
        part = {"status": obj.get("status", {})} if subresource else {k: v for k, v in obj.items() if k not in ("apiVersion", "kind")}
        if not subresource:
            part["metadata"] = {k: v for k, v in part["metadata"].items() if k not in ("name", "namespace")}
            if kind not in _WITHOUT_STATUS:
                part.pop("status", None)
        if old is None:
            if subresource:
                raise _missing("patch", kind, name)
            created = self._admit(kind, obj | part | {"metadata": obj["metadata"]})
            self._store.owned[key] = {(self._manager, subresource): _leaves(part)}
            return created
        new = copy.deepcopy(old)
        owners = self._store.owned.setdefault(key, {})
        mine = (self._manager, subresource)
        named = _leaves(part)
        held_by_others = {path for owner, paths in owners.items() if owner != mine for path in paths}
        gone = owners.get(mine, set()) - named - held_by_others
        for path in sorted(gone, key=lambda path: path[-1] in _LIST_KEYS.values()):  # an element's key last: it is its address
            if not any(other[: len(path)] == path for other in named):
                _remove(new, path)
        _merge_applied(new, part)
        result = self._put(kind, key, old, new)
        owners[mine] = named
        return result

    async def merge(self, kind: Kind, name: str, namespace: str | None, patch: Mapping[str, Any], *, subresource: Literal["", "status"] = "") -> Obj:
        await self._enter("merge", kind, name)
        key = (kind, namespace or "", name)
        old = self._store.objects.get(key)
        if old is None:
            raise _missing("patch", kind, name)
        _same_version(patch.get("metadata", {}).get("resourceVersion"), old, "patch", kind, name)
        wanted = {k: v for k, v in patch.items() if (k == "status") == bool(subresource) or kind in _WITHOUT_STATUS}
        if "metadata" in wanted:
            wanted["metadata"] = {k: v for k, v in wanted["metadata"].items() if k not in ("resourceVersion", "uid", "generation")}
        new = copy.deepcopy(old)
        _merge_patch(new, copy.deepcopy(wanted))
        return self._put(kind, key, old, new)

    async def approve(self, request: Obj, *, reason: str, message: str) -> None:
        condition = {"type": "Approved", "status": "True", "reason": reason, "message": message}
        patch = {"metadata": {"resourceVersion": request["metadata"]["resourceVersion"]}, "status": {"conditions": [condition]}}
        await self.merge(kinds.CSR, request["metadata"]["name"], None, patch, subresource="status")

    async def replace(self, obj: Obj) -> Obj:
        obj = copy.deepcopy(obj)
        kind, name = kind_of(obj), obj["metadata"]["name"]
        await self._enter("replace", kind, name)
        key = self._key(kind, obj)
        old = self._store.objects.get(key)
        if old is None:
            raise _missing("replace", kind, name)
        _same_version(obj["metadata"].get("resourceVersion", ""), old, "replace", kind, name)
        if kind not in _WITHOUT_STATUS:
            obj.pop("status", None)
            if "status" in old:
                obj["status"] = copy.deepcopy(old["status"])
        for name_of_field in ("uid", "creationTimestamp", "generation", "deletionTimestamp"):
            obj["metadata"].pop(name_of_field, None)
            if name_of_field in old["metadata"]:
                obj["metadata"][name_of_field] = old["metadata"][name_of_field]
        return self._put(kind, key, old, obj)

    async def delete(self, kind: Kind, name: str, namespace: str | None = None, *, foreground: bool = False) -> bool:
        await self._enter("delete", kind, name)
        key = (kind, namespace or "", name)
        old = self._store.objects.get(key)
        if old is None:
            return False
        if _meta(old).get("finalizers"):
            if "deletionTimestamp" not in _meta(old):
                new = copy.deepcopy(old)
                new["metadata"]["deletionTimestamp"] = rfc3339(datetime.now(UTC))
                self._put(kind, key, old, new)
            return True
        self._drop(key)
        return True

    async def close(self) -> None:
        return None

    # Inside.

    async def _enter(self, verb: str, kind: Kind, name: str) -> None:
        await asyncio.sleep(0)  # as a real call, it lets others run in between
        self._store.calls.append((verb, kind.kind, name))
        if self._store.fault and (error := self._store.fault(verb, kind, name)):
            raise error

    def _key(self, kind: Kind, obj: Obj) -> Key:
        return kind, (obj["metadata"].get("namespace") or "") if kind.namespaced else "", obj["metadata"]["name"]

    def _matching(self, kind: Kind, namespace: str | None, labels: Mapping[str, str | None] | None) -> Iterator[Obj]:
        for (of_kind, within, _), obj in sorted(self._store.objects.items(), key=lambda item: item[0][1:]):
            if of_kind == kind and namespace in (None, "", within) and _selected(obj, labels):
                yield obj

    def _admit(self, kind: Kind, obj: Obj) -> Obj:
        obj = copy.deepcopy(obj)
        namespace = obj["metadata"].get("namespace")
        if kind.namespaced and (kinds.NAMESPACE, "", namespace or "") not in self._store.objects:
            raise KubeError(f'create {kind.kind} {obj["metadata"]["name"]}: namespaces "{namespace}" not found', code=404, reason="NotFound")
        obj["metadata"] |= {"uid": str(uuid.uuid4()), "creationTimestamp": rfc3339(datetime.now(UTC)), "generation": 1}
        return self._record("ADDED", kind, obj)

    def _put(self, kind: Kind, key: Key, old: Obj, new: Obj) -> Obj:
        if _bare(new) == _bare(old):
            return copy.deepcopy(old)
        if _content(new) != _content(old):
            new["metadata"]["generation"] = _meta(old).get("generation", 1) + 1
        if "deletionTimestamp" in _meta(new) and not _meta(new).get("finalizers"):
            self._store.objects[key] = new
            self._drop(key)
            return copy.deepcopy(new)
        changed = {path for path in _leaves(old) | _leaves(new) if _at(old, path) != _at(new, path)}
        for paths in self._store.owned.get(key, {}).values():
            paths -= changed
        return self._record("MODIFIED", kind, new)

    def _record(self, event: EventType, kind: Kind, obj: Obj) -> Obj:
        self._store.version += 1
        obj["metadata"]["resourceVersion"] = str(self._store.version)
        key = self._key(kind, obj)
        if event == "DELETED":
            self._store.objects.pop(key, None)
            self._store.owned.pop(key, None)
        else:
            self._store.objects[key] = obj
        self._store.events.append(Change(self._store.version, event, kind, copy.deepcopy(obj)))
        self._wake()
        return copy.deepcopy(obj)

    def _drop(self, key: Key) -> None:
        gone = self._store.objects[key]
        self._record("DELETED", key[0], gone)
        for other_key, other in list(self._store.objects.items()):
            owners = _meta(other).get("ownerReferences") or []
            if owners and all(ref.get("uid") == _meta(gone)["uid"] for ref in owners) and other_key in self._store.objects:
                if _meta(other).get("finalizers"):
                    new = copy.deepcopy(other)
                    new["metadata"].setdefault("deletionTimestamp", rfc3339(datetime.now(UTC)))
                    self._put(other_key[0], other_key, other, new)
                else:
                    self._drop(other_key)

    def _wake(self) -> None:
        self._store.changed.set()
        self._store.changed = asyncio.Event()


def _meta(obj: Obj) -> dict[str, Any]:
    return dict(obj["metadata"])


def _bare(obj: Obj) -> Obj:
    return obj | {"metadata": {k: v for k, v in obj["metadata"].items() if k not in ("resourceVersion", "generation")}}


def _content(obj: Obj) -> Obj:
    return {k: v for k, v in obj.items() if k not in ("metadata", "status")}


def _selected(obj: Obj, labels: Mapping[str, str | None] | None) -> bool:
    has = _meta(obj).get("labels") or {}
    return all(name in has and value in (None, has[name]) for name, value in (labels or {}).items())


def _has_fields(obj: Obj, fields: Mapping[str, str] | None) -> bool:
    """Which fields a kind can be selected by is for a real API server to say."""
    return all(functools.reduce(lambda part, key: (part or {}).get(key), path.split("."), cast(Any, obj)) == value for path, value in (fields or {}).items())


def _missing(verb: str, kind: Kind, name: str) -> KubeError:
    return KubeError(f'{verb} {kind.kind} {name}: {kind.plural} "{name}" not found', code=404, reason="NotFound")


def _same_version(given: str | None, old: Obj, verb: str, kind: Kind, name: str) -> None:
    if given == "":
        raise KubeError(f"{verb} {kind.kind} {name}: metadata.resourceVersion must be specified for an update", code=422, reason="Invalid")
    if given is not None and given != old["metadata"]["resourceVersion"]:
        raise KubeError(f"{verb} {kind.kind} {name}: the object has been modified", code=409, reason="Conflict")


def _merge_patch(target: dict[str, Any], patch: Mapping[str, Any]) -> None:
    """RFC 7386."""
    for name, value in patch.items():
        if value is None:
            target.pop(name, None)
        elif isinstance(value, dict):
            if not isinstance(target.get(name), dict):
                target[name] = {}
            _merge_patch(target[name], value)
        else:
            target[name] = value


def _element(name: str, value: Any) -> str:
    """The key field of a list that is merged by key, or '' for one that is replaced whole."""
    key = _LIST_KEYS.get(name, "")
    return key if key and isinstance(value, list) and all(isinstance(item, dict) and key in item for item in value) else ""


def _leaves(value: Any, path: Path = ()) -> set[Path]:
    """The paths of all fields that an applied object names; an element of a keyed list is a step `[key]`."""
    if isinstance(value, dict) and value:
        return {leaf for name, inner in value.items() for leaf in _leaves(inner, (*path, name))}
    if path and (key := _element(path[-1], value)):
        return {leaf for item in value for leaf in _leaves(item, (*path, f"[{item[key]}]"))} or {path}
    return {path}


def _step(value: Any, path: Path, index: int) -> Any:
    name = path[index]
    if isinstance(value, list):
        key = _LIST_KEYS.get(path[index - 1], "")
        return next((item for item in value if isinstance(item, dict) and f"[{item.get(key)}]" == name), None)
    return value.get(name) if isinstance(value, dict) else None


def _at(value: Any, path: Path) -> Any:
    for index in range(len(path)):
        value = _step(value, path, index)
    return value


def _remove(obj: Any, path: Path) -> None:
    parent = _at(obj, path[:-1])
    if isinstance(parent, dict):
        parent.pop(path[-1], None)
    elif isinstance(parent, list):
        parent[:] = [item for item in parent if item and f"[{item.get(_LIST_KEYS.get(path[-2], ''))}]" != path[-1]]
    if len(path) > 1 and not parent:
        _remove(obj, path[:-1])


def _merge_applied(target: dict[str, Any], applied: Mapping[str, Any]) -> None:
    for name, value in applied.items():
        if isinstance(value, dict) and value:
            if not isinstance(target.get(name), dict):
                target[name] = {}
            _merge_applied(target[name], value)
        elif (key := _element(name, value)) and isinstance(target.get(name), list):
            for item in value:
                existing = next((have for have in target[name] if have.get(key) == item[key]), None)
                if existing is None:
                    target[name].append(copy.deepcopy(item))
                else:
                    _merge_applied(existing, item)
        elif isinstance(value, dict):
            target.setdefault(name, {})
        else:
            target[name] = copy.deepcopy(value)
