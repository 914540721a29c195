"""Proves a backup by what it is for: each snapshot of etcd is restored into a member of its own, which is asked what it has; SQLite checks its own file."""

from __future__ import annotations

import base64
import json
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from ckp.kits.errors import VerificationFailed
from ckp.kits.processes import Daemon, ProcessFailed, ready_to_reap, reaped, run
from ckp.kits.retry import wait_until
from ckp.rules.database_copy import LONGEST_LINE, Copied
from ckp.site.backup.archive import Opened
from ckp.site.backup.manifest import MANAGEMENT, Hosted, Kind, Manifest, Member

RESTORE_SECONDS, START_SECONDS, ASK_SECONDS = 600.0, 300.0, 60.0
REGISTRY = "/registry"
"""Where a Kubernetes API server keeps its objects in etcd (its flag --etcd-prefix)."""
CLUSTERS = f"{REGISTRY}/cluster.x-k8s.io/clusters"
KUBE_SYSTEM = f"{REGISTRY}/namespaces/kube-system"
NOWHERE = "http://127.0.0.1:1"
"""What a scratch member tells others of where it is: there are none, and etcd takes no socket for this."""
NOT_RESTORED = "as etcd gave it; not restored for a look, as etcd's programs are not on this machine"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Programs:
    """Programs of etcd, as the release has them."""

    etcd: Path
    etcdutl: Path


@dataclass(frozen=True)
class Seen:
    """What a member of a backup was seen to be. For etcd: the revision that it has restored, and how many keys."""

    name: str
    what: str
    revision: int = 0
    keys: int = 0


def prove(backup: Opened, programs: Programs | None, scratch: Path, say: Say) -> list[Seen]:
    """Look into each member; a line of each is said.

    Args:
        programs: None: etcd's programs are not here. Then a snapshot is only known to be what etcd gave.
        scratch: a folder of the caller's (0700).

    Raises:
        VerificationFailed: a member is not what the manifest says of it, or can't be restored.
    """
    found = []
    for member in backup.manifest.members:
        path = backup.path(member)
        if member.kind is Kind.ETCD and programs is not None:
            seen = _restored(member, path, backup.manifest, programs, scratch)
        elif member.kind is Kind.SQLITE:
            seen = _database(member, path)
        elif member.kind is Kind.POSTGRESQL:
            seen = _copy(member, path)
        else:
            seen = Seen(member.name, NOT_RESTORED if member.kind is Kind.ETCD else "as it was signed")
        found.append(seen)
        say(f"{member.name}: {seen.what}")
    return found


def _database(member: Member, path: Path) -> Seen:
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as database:
            said = [str(row[0]) for row in database.execute("PRAGMA integrity_check")]
            tables = next(database.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'"))[0]
    except sqlite3.Error as error:
        raise VerificationFailed(f"{member.name} is no database that SQLite can read: {error}") from None
    if said != ["ok"]:
        raise VerificationFailed(f"{member.name} is not whole, says SQLite", details="\n".join(said[:20]))
    return Seen(member.name, f"SQLite finds nothing wrong with it; {tables} tables")


def _copy(member: Member, path: Path) -> Seen:
    with path.open("rb") as file:
        copied = Copied(iter(partial(file.readline, LONGEST_LINE), b""))
        for table in copied.tables:
            for _ in copied.rows(table):
                pass
        counts = copied.finish()
    return Seen(member.name, f"all rows of schema {copied.schema} are there: {sum(counts.values())} in {len(counts)} tables")


def _restored(member: Member, path: Path, manifest: Manifest, programs: Programs, scratch: Path) -> Seen:
    assert member.etcd is not None
    try:
        status = json.loads(run([programs.etcdutl, "snapshot", "status", path, "-w", "json"], timeout=RESTORE_SECONDS, what=f"reading {member.name}").stdout)
        with scratch_etcd(path, programs, scratch) as asked:
            revision, keys = asked.count("\0", "\0")
            title = member.name
            _, system = asked.count(KUBE_SYSTEM)
            if revision != status["revision"] or revision < member.etcd.revision:
                raise VerificationFailed(
                    f"{title} has revision {revision} when it is restored, and its snapshot says {status['revision']}",
                    details=f"when it was taken, the revision was at least {member.etcd.revision}",
                )
            if not system:
                raise VerificationFailed(f"{title} is restored, and no Kubernetes has kept its objects in it")
            if member.name == MANAGEMENT:
                _clusters(title, asked, manifest)
    except ProcessFailed as error:
        raise VerificationFailed(f"{member.name} can't be restored into etcd", details=error.details or error.brief) from None
    return Seen(member.name, f"restored into etcd: revision {revision}, {keys} keys", revision, keys)


def _clusters(title: str, asked: Asked, manifest: Manifest) -> None:
    uid = asked.value(KUBE_SYSTEM)
    if manifest.cluster_uid.encode() not in uid:
        raise VerificationFailed(f"{title} is of another management cluster than {manifest.cluster_uid}")
    missing = [cluster.title for cluster in manifest.clusters if cluster.member and not asked.count(_key(cluster))[1]]
    if missing:
        raise VerificationFailed(f"{title} does not have clusters that the backup lists: {', '.join(missing)}")


def _key(cluster: Hosted) -> str:
    return f"{CLUSTERS}/{cluster.namespace}/{cluster.name}"


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
