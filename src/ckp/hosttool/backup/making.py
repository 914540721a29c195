"""Makes a backup of the site on one of its management hosts, as `ckp site backup` makes it elsewhere: the same parts in the same order, one encrypted,
signed file, stored under its name once it was read back (ckp.hostkit.backup.collection, ckp.backups.archive).

Only what this host's root can read is read. Snapshots are not restored for a look, as that needs etcd's own program: `ckp site backup --verify` does it.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import os
import shutil
import sqlite3
import ssl
import subprocess
import tarfile
import zlib
from datetime import datetime, timezone
from typing import IO, Any, Callable, Dict, Iterator, List, Mapping, Sequence, Tuple

from ckp.hostkit.backup import collection, location, reading
from ckp.hostkit.backup.collection import About, Collection, Means, Sources, Unreadable
from ckp.hostkit.errors import AgentError, VerificationFailed
from ckp.hostkit.processes import run
from ckp.hosttool.backup import openpgp
from ckp.hosttool.backup.settings import Settings

KUBECTL_SECONDS = 120.0
GPG_SECONDS, BYTES_PER_SECOND = 120.0, 2e6
"""How long gpg may take: this, and the time for its bytes on a slow machine."""
MANIFEST, SIGNATURE, SIGNED_BY, MEMBERS = "manifest.json", "manifest.sig", "signer.pgp", "members"
"""Names in the archive (ckp.backups.archive)."""
PIECE = 1 << 20
READING_FAILS = (OSError, ValueError, KeyError, ssl.SSLError, http.client.HTTPException, subprocess.SubprocessError, zlib.error, tarfile.TarError)

Say = Callable[[str], None]


class FileSink(reading.Sink):
    """Takes what is read into a file, instead of printing it."""

    def __init__(self, target: IO[bytes]) -> None:
        super().__init__(io.StringIO())
        self._target = target

    def _print(self, piece: bytes) -> None:
        self.size += len(piece)
        self.digest.update(piece)
        self._target.write(piece)


def make(settings: Settings, work: str, sources: Sources, release: str, version: str, say: Say) -> Tuple[str, datetime]:
    """A backup in a new file of `work`, a folder of root's alone; that file, and when it was begun.

    Args:
        release: that the management cluster was installed from.
        version: of CKP, that the site is of.

    Raises:
        AgentError: a part can't be read, encrypted, or is not read back as it was. There is no file then.
    """
    openpgp.require()
    made = datetime.now(timezone.utc)
    members = os.path.join(work, "members")
    os.makedirs(members, mode=0o700)
    collected = Collection(settings.host, sources, _means(members, sources), several=bool(settings.hosts))
    try:
        uid, planes = collected.cluster_uid(), collected.control_planes()
        say(f"the management cluster's etcd, at revision {collected.management()['revision']} or later; {len(planes)} workload clusters")
        for plane in planes:
            collected.hosted(plane, (), say)
    except Unreadable as error:  # nobody would notice one in which it is missing, and older ones that have it would be deleted for it
        how = f"see ckp cluster describe {error.name}; meanwhile, where the site's file is: ckp site backup --without {error.title}"
        raise AgentError(str(error), resolution=how) from None
    collected.database(settings.postgresql)
    collected.host_files()
    _include(collected, settings, members, collection.STATE, location.STATE, collection.SEALED, collection.STATE_ABOUT)
    _include(collected, settings, members, collection.SITE, location.SITE, collection.FILE, collection.SITE_ABOUT)
    hosts = settings.hosts
    about = About(settings.site, release, settings.host, settings.address, hosts, version, made.isoformat())
    manifest = collected.manifest(about, uid, collected.volumes())
    _look_into(manifest, members)
    target = os.path.join(work, "sealed.backup")
    _seal(settings, json.dumps(manifest, indent=1).encode(), manifest["members"], members, target, work)
    shutil.rmtree(members)
    say(f"encrypted and read back: {os.path.getsize(target)} bytes")
    return target, made


def _means(members: str, sources: Sources) -> Means:
    def ask(words: Sequence[str]) -> Dict[str, Any]:
        argv = [*sources.kubectl, "--request-timeout=60s", *words, "--output=json"]
        return _json_of(argv, f"kubectl {' '.join(words[:2])}")

    def read(name: str, request: Dict[str, Any], about: str) -> Dict[str, Any]:
        path = os.path.join(members, name)
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        try:
            with open(path, "wb") as target:  # also in place of that of another member of the same etcd, which broke off
                os.fchmod(target.fileno(), 0o600)
                sink = FileSink(target)
                seen = reading.ACTIONS[request["do"]](request, sink)
                sink.finish({})
            return {**seen, "size": sink.size, "sha256": sink.digest.hexdigest()}
        except READING_FAILS as error:
            raise AgentError(f"reading {about} failed", details=f"{type(error).__name__}: {error}") from None

    return Means(ask, read, _entries, AgentError)


def _json_of(argv: Sequence[str], what: str) -> Dict[str, Any]:
    """What a program prints, of any size. Raises AgentError."""
    try:
        done = subprocess.run(list(argv), capture_output=True, timeout=KUBECTL_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        raise AgentError(f"{what} failed: {error}") from None
    if done.returncode:
        raise AgentError(f"{what} failed with exit code {done.returncode}", details=done.stderr.decode(errors="replace").strip())
    try:
        found: Dict[str, Any] = json.loads(done.stdout)
    except ValueError as error:
        raise AgentError(f"{what} printed no JSON: {error}") from None
    return found


def _entries(where: str, path: str) -> Mapping[str, str]:
    """Of folders of this host. Those of others can't be asked from here; their owners are known without it."""
    if where or not os.path.isdir(path):
        return {}
    done = run(["find", path, "-mindepth", "1", "-maxdepth", "1", "-printf", "%f/%U %G %m\\n"], timeout=60, what=f"looking into {path}")
    return dict(_pair(line) for line in done.stdout.splitlines())


def _pair(line: str) -> Tuple[str, str]:
    name, _, owner = line.partition("/")
    return name, owner


def _include(collected: Collection, settings: Settings, members: str, name: str, file: str, kind: str, about: str) -> None:
    """A file that the machine that applies has brought."""
    content = settings.bytes_of(file)
    with open(os.path.join(members, name), "wb") as target:
        os.fchmod(target.fileno(), 0o600)
        target.write(content)
    collected.include(name, kind, len(content), hashlib.sha256(content).hexdigest(), about)


def _look_into(manifest: Mapping[str, Any], members: str) -> None:
    """SQLite checks its own copy. VerificationFailed if it is not whole."""
    for member in manifest["members"]:
        if member["kind"] == collection.SQLITE:
            database = sqlite3.connect(f"file:{os.path.join(members, member['name'])}?mode=ro&immutable=1", uri=True)
            try:
                said = [str(row[0]) for row in database.execute("PRAGMA integrity_check")]
            except sqlite3.Error as error:
                said = [str(error)]
            finally:
                database.close()
            if said != ["ok"]:
                raise VerificationFailed(f"{member['name']} is not whole, says SQLite", details="\n".join(said[:20]))


# -- the file


def _seal(settings: Settings, manifest: bytes, members: List[Dict[str, Any]], folder: str, target: str, work: str) -> None:
    """Write the file, and read it back by a key that is made for this run and ends with it."""
    head = [
        (MANIFEST, manifest),
        (SIGNATURE, openpgp.sign(settings.bytes_of(location.SIGNER), manifest, work)),
        (SIGNED_BY, settings.bytes_of(location.SIGNER_CERTIFICATE)),
    ]
    timeout = GPG_SECONDS + sum(int(member["size"]) for member in members) / BYTES_PER_SECOND
    with openpgp.home(work) as home:
        ours = openpgp.make_key(home)
        with openpgp.encrypting(target, [settings.path(name) for name in settings.readers], home, ours, timeout=timeout) as stream:
            with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive:
                for name, content in head:
                    archive.addfile(_entry(name, len(content)), io.BytesIO(content))
                for member in members:
                    with open(os.path.join(folder, member["name"]), "rb") as file:
                        archive.addfile(_entry(f"{MEMBERS}/{member['name']}", member["size"]), file)
        expected = [(name, hashlib.sha256(content).hexdigest()) for name, content in head]
        expected += [(f"{MEMBERS}/{member['name']}", member["sha256"]) for member in members]
        with openpgp.decrypting(target, home, timeout=timeout) as stream:
            found = list(_digests(stream))
    if found != expected:
        os.unlink(target)
        raise VerificationFailed("the backup is not read back as it was written, and was removed")
    handle = os.open(target, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o600
    return entry


def _digests(stream: IO[bytes]) -> Iterator[Tuple[str, str]]:
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for entry in archive:
                digest, content = hashlib.sha256(), archive.extractfile(entry)
                while content is not None:
                    piece = content.read(PIECE)
                    if not piece:
                        break
                    digest.update(piece)
                yield entry.name, digest.hexdigest()
    except tarfile.TarError as error:
        raise VerificationFailed(f"the backup can't be read back: {error}") from None
