"""An etcd cluster in memory, behind etcd's JSON gateway: sizes, revisions, alarms and what frees space, and nothing of keys.

Honest about: numbers as text and zeros left out; the alarm that a write beyond the quota raises, in the name of the member that had no room; writes being
refused while it stands, deletions and compactions not; a database that grows and never shrinks but by a defragmentation, of one member; what a
compaction frees. `tests/component/test_etcd.py` asks the same of the real etcd.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx

from ckp.clients.etcd import Credentials, EtcdMember

MIB = 1 << 20


@dataclass
class _Member:
    id: int
    size: int = MIB
    up: bool = True


@dataclass
class EtcdSimulator:
    """One cluster. What is written is counted in bytes.

    Args:
        names: of the members; the first leads.
        quota: bytes.
    """

    names: tuple[str, ...] = ("demo-etcd-0",)
    quota: int = 100 * MIB
    cluster_id: int = 0xC0FFEE
    revision: int = 500
    live: int = MIB
    """Bytes that keys hold now."""
    history: int = 0
    """Bytes of versions that a compaction would forget."""
    alarms: dict[int, str] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Member and path of each request."""
    answer: Callable[[str, str], httpx.Response | None] | None = None
    """Asked before each answer: a response of the test's own instead."""

    def __post_init__(self) -> None:
        self.members = {name: _Member(0xA0 + index) for index, name in enumerate(self.names)}

    def write(self, count: int) -> bool:
        """Put so many bytes; whether etcd took them."""
        if self.alarms:
            return False
        self.revision += 1
        self.live += count
        for member in self.members.values():
            member.size = max(member.size, self.live + self.history)
            if member.size > self.quota:
                self.alarms[member.id] = "NOSPACE"
        return True

    def delete(self, count: int) -> None:
        """Delete keys of so many bytes: their versions stay until a compaction."""
        self.revision += 1
        self.live, self.history = self.live - count, self.history + count

    def connect(self, url: str, credentials: Credentials) -> EtcdMember:
        """A connection to the member whose name the host begins with."""
        name = url.removeprefix("https://").split(".")[0]

        def handle(request: httpx.Request) -> httpx.Response:
            self.asked.append((name, request.url.path))
            if self.answer is not None and (given := self.answer(name, request.url.path)) is not None:
                return given
            if not self.members[name].up:
                raise httpx.ConnectError("no route to host")
            return self._handle(self.members[name], request.url.path, json.loads(request.content))

        return EtcdMember(url, transport=httpx.MockTransport(handle))

    def _handle(self, member: _Member, path: str, body: dict[str, object]) -> httpx.Response:
        header = {"cluster_id": str(self.cluster_id), "member_id": str(member.id), "revision": str(self.revision), "raft_term": "2"}
        if path == "/v3/maintenance/status":
            sizes = {"dbSize": str(member.size), "dbSizeInUse": str(min(member.size, self.live + self.history))}
            leader = str(next(iter(self.members.values())).id)
            return httpx.Response(200, json={"header": header, "version": "3.5.15", "leader": leader, **sizes})
        if path == "/v3/maintenance/alarm":
            if body["action"] == "DEACTIVATE":
                self.alarms.pop(int(str(body["memberID"])), None)
            standing = [{"memberID": str(key), "alarm": value} for key, value in self.alarms.items()]
            return httpx.Response(200, json={"header": header, **({"alarms": standing} if standing else {})})
        if path == "/v3/kv/compaction":
            if int(str(body["revision"])) > self.revision:
                return httpx.Response(400, json={"error": "etcdserver: mvcc: required revision is a future revision", "code": 11})
            self.history = 0
            return httpx.Response(200, json={"header": header})
        if path == "/v3/maintenance/defragment":
            member.size = self.live + self.history
            return httpx.Response(200, json={"header": header})
        return httpx.Response(404, json={"error": "Not Found", "code": 5})
