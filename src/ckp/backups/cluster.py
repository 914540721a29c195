"""Makes a backup of a workload cluster, checks one, and gives a member of etcd the data of one. Each may be killed at any moment and run again.

This runs in pods of the cluster's namespace, which have no rights in Kubernetes: a client certificate for the cluster's etcd, its CAs, the keys of backups
and the access key to where they are kept come as files from Secrets.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import IO

from ckp import __version__
from ckp.api import backup_job as job
from ckp.api.backup_job import JobReport, JobRequest, Placement
from ckp.backups import archive
from ckp.backups.archive import Opened
from ckp.backups.cluster_manifest import AUTHORITIES, FORM, FORMAT, KIND, SNAPSHOT, ClusterManifest
from ckp.backups.members import Etcd, Kind, Member
from ckp.backups.places import LocalFolder, Objects, Place, Target, as_ckp_error
from ckp.backups.scratch import RESTORE_SECONDS, Programs, restored
from ckp.clients.signing.encryption import ReaderKey, Readers, Signer
from ckp.hostkit import s3
from ckp.hostkit.backup import reading
from ckp.hostkit.backup.names import name_of
from ckp.kits.disks import naming_full_disk
from ckp.kits.errors import CkpError, InvalidInput, VerificationFailed
from ckp.kits.files import sha256_file
from ckp.kits.processes import ProcessFailed, run
from ckp.rules.cluster_backups import Restorable, backup_id, bump_for, refusal

RESTORED_MARK = "restored"
"""The file of a member's volume that names the restore whose data it has."""
NEW, OLD, LIVE = "data.restored", "data.replaced", "data"
"""Folders of a member's volume: the data in the making, that of before, and what etcd uses."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Files:
    """Where the files of a pod are (ckp.api.backup_job).

    Args:
        scratch: a folder of this process (0700) on a disk with room.
    """

    scratch: Path
    keys: Path = Path(job.KEYS)
    store: Path = Path(job.STORE)
    etcd: Path = Path(job.ETCD)
    authorities: Path = Path(job.AUTHORITIES)
    folder: Path = Path(job.FOLDER)
    data: Path = Path(job.DATA)


def take(request: JobRequest, files: Files, programs: Programs, say: Say) -> JobReport:
    """Make a backup, prove it, store it, and delete those that are superseded. One that is there already, of a run that was killed, is only checked.

    Raises:
        CkpError: etcd can't be read, what was read is not whole, or it could not be stored. Nothing of it has the backup's name then.
    """
    with _keys(files) as keys, _target(request, files) as target:
        name = _name(request)
        if name not in {each.name for each in target.backups()}:
            with _folder(files.scratch / "members") as folder:
                manifest = _collect(request, files, folder, say)
                made = files.scratch / name
                made.unlink(missing_ok=True)

                def read_back(part: Path, reader: ReaderKey) -> None:
                    shutil.rmtree(folder)  # what is on the disk counts now
                    with archive.opened(part, FORM, reader, lambda _: keys.fingerprint, files.scratch) as backup:
                        _prove(backup, programs, files.scratch, say)

                archive.seal(made, Opened(manifest, keys.fingerprint, folder), keys.signer, Readers(passphrase=keys.passphrase), files.scratch, read_back)
            target.store(made, name, files.scratch, say)
            made.unlink()
        with _opened(request, files, keys, target) as backup:
            revision, count = _prove(backup, programs, files.scratch, say)
            found = {each.name: each for each in target.backups()}
            return JobReport(
                ok=True,
                size=found[name].size,
                revision=revision,
                keys=count,
                version=backup.manifest.version,
                kept=tuple(backup_id(each.made) for each in found.values()),
            )


def check(request: JobRequest, files: Files, programs: Programs, say: Say) -> JobReport:
    """Whether a backup can be restored into the cluster: fetched, decrypted, verified and restored on trial.

    Raises:
        CkpError: it can't; the sentence says why.
    """
    with _keys(files) as keys, _target(request, files) as target, _opened(request, files, keys, target) as backup:
        _refuse(backup.manifest, request)
        revision, count = _prove(backup, programs, files.scratch, say)
        size = next(each.size for each in target.backups() if each.name == _name(request))
        return JobReport(ok=True, size=size, revision=revision, keys=count, version=backup.manifest.version)


def place(request: JobRequest, files: Files, programs: Programs, say: Say) -> JobReport:
    """Give a member of etcd, which does not run, the data of a backup. Running it again after it was done changes nothing.

    Raises:
        CkpError: the backup can't be read, or the volume has no room. The volume is as before, or empty if the old data had to make room.
    """
    place, mark = request.place, files.data / RESTORED_MARK
    if place is None:
        raise InvalidInput("the request names no member")
    if mark.exists() and mark.read_text() == place.restore:
        return JobReport(ok=True, message="it had the data already")
    with _keys(files) as keys, _target(request, files) as target, _opened(request, files, keys, target) as backup:
        _refuse(backup.manifest, request)
        revision = _prove(backup, programs, files.scratch, say)[0]
        made = files.scratch / "made"
        shutil.rmtree(made, ignore_errors=True)
        try:
            _restore(backup, place, revision, made, programs)
            _swap(made, files.data, place.restore, say)
        finally:
            shutil.rmtree(made, ignore_errors=True)
        return JobReport(ok=True, revision=revision + bump_for(revision, place.seen), version=backup.manifest.version)


TASKS: dict[job.Task, Callable[[JobRequest, Files, Programs, Say], JobReport]] = {job.Task.TAKE: take, job.Task.CHECK: check, job.Task.PLACE: place}


# -- what they share


@dataclass(frozen=True)
class _Keys:
    passphrase: Path
    signer: Signer
    fingerprint: str


@contextmanager
def _keys(files: Files) -> Iterator[_Keys]:
    """The keys of backups as files of this user alone: those of a mounted Secret are readable by the pod's group."""
    with _folder(files.scratch / "keys") as folder:
        for name in (job.PASSPHRASE, job.SIGNER_KEY, job.SIGNER_CERTIFICATE):
            copy = folder / name
            copy.touch(mode=0o600)
            copy.write_bytes(_read(files.keys / name, "the keys of backups"))
        yield _Keys(folder / job.PASSPHRASE, Signer(folder), archive.fingerprint_of(folder / job.SIGNER_CERTIFICATE))


@contextmanager
def _folder(path: Path) -> Iterator[Path]:
    shutil.rmtree(path, ignore_errors=True)  # of a run that was killed
    path.mkdir(mode=0o700)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _target(request: JobRequest, files: Files) -> Iterator[Target]:
    of, bucket = _subject(request), request.bucket
    if not bucket.endpoint:
        yield Target(of, "the volume for backups", LocalFolder(files.folder), request.keep)
        return
    with as_ckp_error():
        text = _read(files.store / job.CREDENTIALS, "the access key to the bucket").decode(errors="replace")
        credentials = s3.read_credentials(text, f"`{job.CREDENTIALS}` of the bucket's Secret")
        ca = files.store / job.STORE_CA
        place = s3.Bucket(bucket.endpoint, bucket.bucket, bucket.prefix, bucket.region or s3.REGION, ca.read_text() if ca.exists() else "")
        store = s3.Store(place, credentials, os.environ)
    with closing(store):
        objects: Place = Objects(store)
        yield Target(of, str(place), objects, request.keep)


def _subject(request: JobRequest) -> str:
    """What names of the cluster's backups begin with. An earlier cluster of the same name has others."""
    return f"{request.cluster.namespace}.{request.cluster.name}.{request.cluster.identity[:8]}"


def _name(request: JobRequest) -> str:
    return name_of(_subject(request), request.made)


@contextmanager
def _opened(request: JobRequest, files: Files, keys: _Keys, target: Target) -> Iterator[Opened[ClusterManifest]]:
    reader = ReaderKey(passphrase=keys.passphrase)
    with target.fetched(_name(request), files.scratch) as file, archive.opened(file, FORM, reader, lambda _: keys.fingerprint, files.scratch) as backup:
        yield backup


def _refuse(manifest: ClusterManifest, request: JobRequest) -> None:
    into = request.cluster
    if why := refusal(manifest.restorable, Restorable(f"{into.namespace}/{into.name}", into.identity, into.version)):
        raise InvalidInput(why, resolution="take another backup of the cluster (ckp cluster backups)")


def _prove(backup: Opened[ClusterManifest], programs: Programs, scratch: Path, say: Say) -> tuple[int, int]:
    """The revision and the number of keys of its etcd, which is restored on trial."""
    member = backup.manifest.snapshot
    try:
        with restored(member, backup.path(member), programs, scratch) as (_, revision, keys):
            say(f"restored on trial: revision {revision}, {keys} keys")
            return revision, keys
    except ProcessFailed as error:
        raise VerificationFailed("the snapshot can't be restored into etcd", details=error.details or error.brief) from None


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{what}: {path.name} can't be read: {error.strerror}", resolution="see that the Secret has this key") from None


# -- taking one


class _File:
    """Takes what etcd sends."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, data: bytes) -> object:
        """Take some bytes."""
        return self._file.write(data)


def _collect(request: JobRequest, files: Files, folder: Path, say: Say) -> ClusterManifest:
    """The members, in `folder`: first etcd, then the CAs, which are as they were before or newer."""
    members = [_snapshot(request, files, folder, say)]
    for name in job.AUTHORITY_FILES:
        content = _read(files.authorities / name, "the cluster's CAs")
        path = _place_in(folder, f"{AUTHORITIES}{name}")
        path.write_bytes(content)
        members.append(_member(folder, f"{AUTHORITIES}{name}", Kind.FILE))
    cluster = request.cluster
    return ClusterManifest(
        format=FORMAT,
        kind=KIND,
        made=request.made,
        ckp=__version__,
        namespace=cluster.namespace,
        cluster=cluster.name,
        identity=cluster.identity,
        version=cluster.version,
        settings=dict(cluster.settings),
        members=tuple(members),
    )


def _snapshot(request: JobRequest, files: Files, folder: Path, say: Say) -> Member:
    tls = tuple(_read(files.etcd / name, "the client certificate for etcd") for name in ("ca.crt", "client.crt", "client.key"))
    path, why = _place_in(folder, SNAPSHOT), "no member was named"
    for url in request.etcd:
        try:
            with naming_full_disk(folder), path.open("wb") as file:
                seen = reading.snapshot_of(reading.Etcd(url, (tls[0], tls[1], tls[2]) if url.startswith("https:") else None, ""), _File(file))
        except (OSError, ValueError, KeyError, HTTPException) as error:
            why = f"{url}: {error or type(error).__name__}"
            say(f"no snapshot from {why}")
            continue
        say(f"a snapshot from {url}, of revision {seen['revision']} or later")
        etcd = Etcd(cluster_id=seen["clusterId"], version=seen["version"], revision=seen["revision"], members=seen["members"])
        return _member(folder, SNAPSHOT, Kind.ETCD, etcd)
    raise CkpError(f"no member of the cluster's etcd gave a snapshot: {why}", resolution="see whether its etcd is ready")


def _place_in(folder: Path, name: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def _member(folder: Path, name: str, kind: Kind, etcd: Etcd | None = None) -> Member:
    path = folder / name
    return Member(name=name, kind=kind, size=path.stat().st_size, sha256=sha256_file(path), etcd=etcd)


# -- restoring one


def _restore(backup: Opened[ClusterManifest], place: Placement, revision: int, made: Path, programs: Programs) -> None:
    """A member's data folder from the snapshot. All members begin a cluster of their own, which a member with older data can't join: its token is new."""
    initial = ",".join(f"{member}={url}" for member, url in place.peers.items())
    argv: list[str | Path] = [programs.etcdutl, "snapshot", "restore", backup.path(backup.manifest.snapshot), f"--data-dir={made}", f"--name={place.member}"]
    argv += [f"--initial-cluster={initial}", f"--initial-cluster-token={place.restore}", f"--initial-advertise-peer-urls={place.peers[place.member]}"]
    argv += [f"--bump-revision={bump_for(revision, place.seen)}", "--mark-compacted"]
    try:
        run(argv, timeout=RESTORE_SECONDS, what="restoring the snapshot")
    except ProcessFailed as error:
        raise CkpError("the snapshot could not be restored", details=error.details or error.brief) from None


def _swap(made: Path, volume: Path, restore: str, say: Say) -> None:
    """Put the data that was made into the volume, in place of what is there. etcd's data has its name only once it is whole and on the disk."""
    new, old, live = volume / NEW, volume / OLD, volume / LIVE
    shutil.rmtree(new, ignore_errors=True)  # of a run that was killed
    if live.exists():
        shutil.rmtree(old, ignore_errors=True)
    need = sum(path.stat().st_size for path in made.rglob("*") if path.is_file())
    if shutil.disk_usage(volume).free < need + (64 << 20):
        say("the volume has no room for old and new data: the old one is removed first")
        shutil.rmtree(live, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    with naming_full_disk(volume):
        shutil.copytree(made, new)
        for path in (*new.rglob("*"), new):
            _sync(path)
    new.chmod(0o700)
    if live.exists():
        live.rename(old)
    new.rename(live)
    _sync(volume)
    mark, part = volume / RESTORED_MARK, volume / f"{RESTORED_MARK}.part"
    part.write_text(restore)
    _sync(part)
    part.rename(mark)
    _sync(volume)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
