"""Proves a backup by what it is for: each snapshot of etcd is restored into a member of its own, which is asked what it has; SQLite checks its own file."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ckp.backups.archive import Opened
from ckp.backups.members import Kind, Member
from ckp.backups.scratch import KUBE_SYSTEM, REGISTRY, Asked, Programs, restored
from ckp.kits.errors import VerificationFailed
from ckp.kits.processes import ProcessFailed
from ckp.rules.database_copy import LONGEST_LINE, Copied
from ckp.site.backup.manifest import MANAGEMENT, Hosted, Manifest

CLUSTERS = f"{REGISTRY}/cluster.x-k8s.io/clusters"
NOT_RESTORED = "as etcd gave it; not restored for a look, as etcd's programs are not on this machine"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Seen:
    """What a member of a backup was seen to be. For etcd: the revision that it has restored, and how many keys."""

    name: str
    what: str
    revision: int = 0
    keys: int = 0


def prove(backup: Opened[Manifest], programs: Programs | None, scratch: Path, say: Say) -> list[Seen]:
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
    try:
        with restored(member, path, programs, scratch) as (asked, revision, keys):
            if member.name == MANAGEMENT:
                _clusters(member.name, asked, manifest)
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
