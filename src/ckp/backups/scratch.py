"""A scratch member of etcd that a snapshot is restored into, to see what is in it."""

from __future__ import annotations

import base64
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from ckp.backups.members import Member
from ckp.kits.errors import VerificationFailed
from ckp.kits.processes import Daemon, ready_to_reap, reaped, run
from ckp.kits.retry import wait_until

RESTORE_SECONDS, START_SECONDS, ASK_SECONDS = 600.0, 300.0, 60.0
REGISTRY = "/registry"
"""Where a Kubernetes API server keeps its objects in etcd (its flag --etcd-prefix)."""
KUBE_SYSTEM = f"{REGISTRY}/namespaces/kube-system"
NOWHERE = "http://127.0.0.1:1"
"""What a scratch member tells others of where it is: there are none, and etcd takes no socket for this."""


@dataclass(frozen=True)
class Programs:
    """Programs of etcd, as the release has them."""

    etcd: Path
    etcdutl: Path


@contextmanager
def restored(member: Member, path: Path, programs: Programs, scratch: Path) -> Iterator[tuple[Asked, int, int]]:
    """A member of a backup in an etcd of its own, with its revision and how many keys it has, for as long as the block lasts.

    Raises:
        ProcessFailed: the snapshot can't be restored.
        VerificationFailed: it is not what the manifest says of it, or no Kubernetes has kept its objects in it.
    """
    assert member.etcd is not None
    status = json.loads(run([programs.etcdutl, "snapshot", "status", path, "-w", "json"], timeout=RESTORE_SECONDS, what=f"reading {member.name}").stdout)
    with scratch_etcd(path, programs, scratch) as asked:
        revision, keys = asked.count("\0", "\0")
        _, system = asked.count(KUBE_SYSTEM)
        if revision != status["revision"] or revision < member.etcd.revision:
            raise VerificationFailed(
                f"{member.name} has revision {revision} when it is restored, and its snapshot says {status['revision']}",
                details=f"when it was taken, the revision was at least {member.etcd.revision}",
            )
        if not system:
            raise VerificationFailed(f"{member.name} is restored, and no Kubernetes has kept its objects in it")
        yield asked, revision, keys


class Asked:
    """A scratch member, by its JSON gateway."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def count(self, key: str, end: str = "") -> tuple[int, int]:
        """The revision, and how many keys there are: that one, or those from it to `end` (both `\\0`: all). httpx.HTTPError if it does not answer."""
        answer = self._ask(key, end, count_only=True)
        return int(answer["header"]["revision"]), int(answer.get("count", 0))

    def value(self, key: str) -> bytes:
        """The value of a key; nothing if there is none. httpx.HTTPError if it does not answer."""
        return b"".join(base64.b64decode(item["value"]) for item in self._ask(key, "").get("kvs", []))

    def _ask(self, key: str, end: str, **more: bool) -> dict[str, Any]:
        body: dict[str, Any] = {"key": base64.b64encode(key.encode()).decode(), **more}
        if end:
            body["range_end"] = base64.b64encode(end.encode()).decode()
        answer: dict[str, Any] = self._client.post("/v3/kv/range", json=body).raise_for_status().json()
        return answer


@contextmanager
def scratch_etcd(snapshot: Path, programs: Programs, scratch: Path) -> Iterator[Asked]:
    """A member of its own that has a snapshot's content, for as long as the block lasts. It listens on sockets that only this user can reach.

    Raises:
        ProcessFailed: the snapshot can't be restored.
        VerificationFailed: the member does not start.
    """
    data = scratch / "etcd"
    shutil.rmtree(data, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="ckp-etcd-") as sockets:  # sun_path is short: unix(7)
        client, peer = f"unix://{sockets}/client", f"unix://{sockets}/peer"
        own = ["--name=scratch", f"--data-dir={data}", f"--initial-cluster=scratch={NOWHERE}", f"--initial-advertise-peer-urls={NOWHERE}"]
        try:
            run([programs.etcdutl, "snapshot", "restore", snapshot, *own], timeout=RESTORE_SECONDS, what=f"restoring {snapshot.name}")
            daemon = Daemon("scratch etcd", scratch / "etcd.pid", scratch / "etcd.log")
            argv: list[str | Path] = [programs.etcd, *own, f"--listen-client-urls={client}", f"--advertise-client-urls={NOWHERE}", f"--listen-peer-urls={peer}"]
            ready_to_reap()
            pid = daemon.start([*argv, "--unsafe-no-fsync", "--quota-backend-bytes=8589934592"])
            try:
                with reaped(pid), httpx.Client(transport=httpx.HTTPTransport(uds=f"{sockets}/client"), base_url="http://etcd", timeout=ASK_SECONDS) as http:
                    asked = Asked(http)
                    wait_until(lambda: _answers(asked, daemon), what="the restored etcd answers", timeout=START_SECONDS, every=0.2, reason=daemon.tail)
                    yield asked
            except httpx.HTTPError as error:
                raise VerificationFailed(f"the etcd that {snapshot.name} was restored into does not answer: {error}", details=daemon.tail()) from None
            finally:
                daemon.stop()
        finally:
            shutil.rmtree(data, ignore_errors=True)


def _answers(asked: Asked, daemon: Daemon) -> bool:
    if daemon.pid() is None:
        raise VerificationFailed("the restored etcd ended", details=daemon.tail())
    try:
        asked.count("\0")
    except httpx.HTTPError:
        return False
    return True
