"""Where a site keeps its backups: a bucket, or a folder of its management hosts. Each is there under its name whole, or not at all.

What was stored is read back from there and compared before it counts. Then older ones are deleted, as many as the site's file says.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from ckp.hostkit import s3
from ckp.hostkit.backup.names import made_at, superseded
from ckp.hostkit.errors import AgentError
from ckp.kits.disks import naming_full_disk
from ckp.kits.errors import CkpError, InvalidInput, NotFound, VerificationFailed
from ckp.kits.files import require_free_space, sha256_file
from ckp.site.backup.collect import collect
from ckp.site.inventory import SiteHost
from ckp.site.settings.read import proxy_environment
from ckp.site.spec.model import S3, SiteSpec
from ckp.site.spec.named_files import read_text

GIB = 1 << 30
PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Stored:
    """A backup at its target.

    Args:
        made: when it was begun, as its name says.
        size: bytes.
    """

    name: str
    made: datetime
    size: int


class Place(Protocol):
    """What a target does. What is raised is a CkpError."""

    def names(self, beginning: str) -> list[tuple[str, int]]:
        """Names that begin so, with their bytes."""
        ...

    def put(self, source: Path, name: str) -> None:
        """Store a file, whole or not at all. One of that name is not written over."""
        ...

    def fetch(self, name: str, into: Path) -> str:
        """Write what is stored to a new file; its SHA-256, in hex. NotFound if there is none."""
        ...

    def delete(self, name: str) -> None:
        """Delete it; none there is fine."""
        ...


@dataclass(frozen=True)
class Target:
    """Where one site keeps its backups.

    Args:
        title: for people: the bucket or the folder.
        keep: how many of the site's stay.
    """

    site: str
    title: str
    place: Place
    keep: int

    def backups(self) -> list[Stored]:
        """The site's backups, oldest first. CkpError if the target can't be read."""
        found = [(name, size, made_at(self.site, name)) for name, size in self.place.names(f"{self.site}-")]
        return sorted((Stored(name, made, size) for name, size, made in found if made is not None), key=lambda each: each.name)

    def store(self, file: Path, name: str, scratch: Path, say: Say) -> None:
        """Store a backup, read it back, and delete those that are superseded.

        Raises:
            VerificationFailed: it is not what was stored; it is deleted again.
            CkpError: it could not be stored.
        """
        self.place.put(file, name)
        back = scratch / "read-back"
        back.unlink(missing_ok=True)
        try:
            there = self.place.fetch(name, back)
        finally:
            back.unlink(missing_ok=True)
        if there != (sent := sha256_file(file)):
            self.place.delete(name)
            raise VerificationFailed(
                f"{name} in {self.title} is not what was stored there, and was deleted: its SHA-256 is {there}, not {sent}",
                resolution="run the same command again; if it comes again, the store loses data",
            )
        say(f"{name} is in {self.title}, and was read back")
        for old in superseded(self.site, [each.name for each in self.backups()], self.keep):
            try:
                self.place.delete(old)
                say(f"{old}: deleted, as {self.keep} are kept")
            except CkpError as error:  # a bucket whose objects can't be deleted: the new one counts all the same
                say(f"{old} could not be deleted: {error.brief}")

    @contextmanager
    def fetched(self, name: str, scratch: Path) -> Iterator[Path]:
        """A backup as a file of this machine, for as long as the block lasts.

        Raises:
            NotFound: there is none of that name; those that are there are listed.
            CkpError: it can't be read.
        """
        there = {each.name: each for each in self.backups()}
        if name not in there:
            newest = "\n".join(list(there)[-10:])
            raise NotFound(f"{self.title} has no backup {name}", details=f"it has:\n{newest}" if newest else "it has none of this site")
        require_free_space(scratch, there[name].size / GIB + 0.1, what=name)
        file = scratch / name
        file.unlink(missing_ok=True)
        try:
            self.place.fetch(name, file)
            yield file
        finally:
            file.unlink(missing_ok=True)


@contextmanager
def target_of(spec: SiteSpec, host: SiteHost | None, environment: Mapping[str, str] = os.environ) -> Iterator[Target]:
    """Where the site's file keeps backups, for as long as the block lasts. Nothing is asked yet.

    Args:
        host: that has the folder, where it is one; None: it can't be reached, as at a restore.
        environment: names a proxy; otherwise the site's is taken.

    Raises:
        InvalidInput: the file names none, or a file that it names can't be read or does not hold what it has to; or it is a folder, and no host is there.
    """
    backup = spec.backup
    if backup is None:
        raise InvalidInput(f"{spec.file or 'the site'} does not say where backups are kept", resolution="write `backup`, or name a file (--output)")
    if backup.to.s3 is None:
        folder = str(backup.to.path)
        if host is None:
            raise InvalidInput(f"backups are kept in {folder} of the management hosts", resolution="copy the backup's file here, and name that")
        yield Target(spec.metadata.name, f"{host.name}:{folder}", Folder(host, folder), backup.keep)
        return
    bucket, credentials = of_bucket(spec, backup.to.s3)
    with _as_ckp_error():
        store = s3.Store(bucket, credentials, environment if any(environment.get(name) for name in PROXIES) else proxy_environment(spec))
    with closing(store):
        yield Target(spec.metadata.name, str(bucket), Objects(store), backup.keep)


def of_bucket(spec: SiteSpec, described: S3) -> tuple[s3.Bucket, s3.Credentials]:
    """The bucket of the file, and the key to it.

    Raises:
        InvalidInput: a file can't be read, is open to others, or does not hold what it has to. No secret is quoted.
    """
    path = described.credentials_file
    where = f"{spec.file or 'site'}:{spec.line('backup', 'to', 's3', 'credentialsFile')}: backup.to.s3.credentialsFile"
    text = read_text(path, where, secret=True)
    with _as_ckp_error():
        credentials = s3.read_credentials(text, f"{where}: {path}")
    own = read_text(described.ca_file, "backup.to.s3.caFile") if described.ca_file else ""
    more = "" if own else "\n".join(read_text(file, f"network.caFiles[{number}]") for number, file in enumerate(spec.network.ca_files))
    return s3.Bucket(described.endpoint, described.bucket, described.prefix or "", described.region, own, more), credentials


@contextmanager
def _as_ckp_error() -> Iterator[None]:
    try:
        yield
    except s3.StoreError as error:
        kind = NotFound if error.code == "NoSuchKey" else CkpError
        raise kind(error.brief, details=error.details, resolution=error.resolution) from None
    except AgentError as error:
        kind = InvalidInput if error.exit_code == InvalidInput.exit_code else CkpError
        raise kind(error.brief, details=error.details, resolution=error.resolution) from None


class Objects:
    """A bucket, as `Place` has it."""

    def __init__(self, store: s3.Store) -> None:
        self._store = store

    def names(self, beginning: str) -> list[tuple[str, int]]:
        """As `Place` has it."""
        with _as_ckp_error():
            return [(each.name, each.size) for each in self._store.objects(beginning)]

    def put(self, source: Path, name: str) -> None:
        """As `Place` has it. What killed runs have left of uploads is removed before."""
        with _as_ckp_error(), source.open("rb") as file:
            try:
                self._store.abort_abandoned(name[: name.rindex("-") + 1])
            except s3.StoreError:
                pass  # not all stores list uploads to everybody; those that are left take room, and no backup needs that they go
            self._store.put(name, file, source.stat().st_size)

    def fetch(self, name: str, into: Path) -> str:
        """As `Place` has it."""
        into.touch(mode=0o600, exist_ok=False)
        with _as_ckp_error(), naming_full_disk(into.parent), into.open("wb") as file:
            return self._store.get(name, file.write)

    def delete(self, name: str) -> None:
        """As `Place` has it."""
        with _as_ckp_error():
            self._store.delete(name)


class Folder:
    """A folder of a host, as `Place` has it. It is there already: one that is made here would be no file system that survives the host."""

    def __init__(self, host: SiteHost, path: str) -> None:
        self._host, self._path = host, path

    def names(self, beginning: str) -> list[tuple[str, int]]:
        """As `Place` has it."""
        self._require()
        argv = ["find", self._path, "-mindepth", "1", "-maxdepth", "1", "-type", "f", "-name", f"{beginning}*", "-printf", "%s %f\\n"]
        lines = self._host.run(argv, timeout=120, what=f"looking into {self._path}").stdout.splitlines()
        return [(name, int(size)) for size, name in (line.split(" ", 1) for line in lines)]

    def put(self, source: Path, name: str) -> None:
        """As `Place` has it."""
        self._require()
        if self._host.run(["test", "-e", f"{self._path}/{name}"], timeout=30, check=False).code == 0:
            raise InvalidInput(f"{self._host.name}:{self._path}/{name} is there already", resolution="backups are never written over")
        self._host.push(source, f"{self._path}/{name}", mode=0o600)

    def fetch(self, name: str, into: Path) -> str:
        """As `Place` has it."""
        request = {"do": "file", "path": f"{self._path}/{name}"}
        return str(collect(self._host, request, into, f"reading {name} on {self._host.name}")["sha256"])

    def delete(self, name: str) -> None:
        """As `Place` has it."""
        self._host.run(["rm", "-f", "--", f"{self._path}/{name}"], timeout=120, what=f"deleting {name}")

    def _require(self) -> None:
        if self._host.run(["test", "-d", self._path], timeout=30, check=False).code:
            raise NotFound(
                f"{self._host.name} has no folder {self._path}", resolution="mount the file system where backups are kept, or correct `backup.to.path`"
            )
