"""Where backups are kept: a bucket, or a folder. Each is there under its name whole, or not at all.

What was stored is read back from there and compared before it counts. Then older ones are deleted, as many as are too many.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from ckp.hostkit import s3
from ckp.hostkit.backup.names import made_at, superseded
from ckp.hostkit.errors import AgentError
from ckp.kits.disks import naming_full_disk
from ckp.kits.errors import CkpError, InvalidInput, NotFound, VerificationFailed
from ckp.kits.files import CHUNK, require_free_space, sha256_file

GIB = 1 << 30

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
    """Where the backups of one subject are kept.

    Args:
        title: for people: the bucket or the folder.
        of: what names of its backups begin with: the site, or `NAMESPACE.CLUSTER`.
        keep: how many of them stay.
    """

    of: str
    title: str
    place: Place
    keep: int

    def backups(self) -> list[Stored]:
        """The subject's backups, oldest first. CkpError if the target can't be read."""
        found = [(name, size, made_at(self.of, name)) for name, size in self.place.names(f"{self.of}-")]
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
        for old in superseded(self.of, [each.name for each in self.backups()], self.keep):
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
            raise NotFound(f"{self.title} has no backup {name}", details=f"it has:\n{newest}" if newest else f"it has none of {self.of}")
        require_free_space(scratch, there[name].size / GIB + 0.1, what=name)
        file = scratch / name
        file.unlink(missing_ok=True)
        try:
            self.place.fetch(name, file)
            yield file
        finally:
            file.unlink(missing_ok=True)


@contextmanager
def as_ckp_error() -> Iterator[None]:
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
        with as_ckp_error():
            return [(each.name, each.size) for each in self._store.objects(beginning)]

    def put(self, source: Path, name: str) -> None:
        """As `Place` has it. What killed runs have left of uploads is removed before."""
        with as_ckp_error(), source.open("rb") as file:
            try:
                self._store.abort_abandoned(name[: name.rindex("-") + 1])
            except s3.StoreError:
                pass  # not all stores list uploads to everybody; those that are left take room, and no backup needs that they go
            self._store.put(name, file, source.stat().st_size)

    def fetch(self, name: str, into: Path) -> str:
        """As `Place` has it."""
        into.touch(mode=0o600, exist_ok=False)
        with as_ckp_error(), naming_full_disk(into.parent), into.open("wb") as file:
            return self._store.get(name, file.write)

    def delete(self, name: str) -> None:
        """As `Place` has it."""
        with as_ckp_error():
            self._store.delete(name)


class LocalFolder:
    """A folder of this machine, as `Place` has it. It is there already: one that is made here would be no file system that survives."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self, beginning: str) -> list[tuple[str, int]]:
        """As `Place` has it."""
        self._require()
        return [(path.name, path.stat().st_size) for path in sorted(self._folder.glob(f"{beginning}*")) if path.is_file()]

    def put(self, source: Path, name: str) -> None:
        """As `Place` has it. What a killed run has left under a temporary name is written over."""
        self._require()
        target, part = self._folder / name, self._folder / f".{name}.part"
        if target.exists():
            raise InvalidInput(f"{target} is there already", resolution="backups are never written over")
        part.unlink(missing_ok=True)
        try:
            part.touch(mode=0o600, exist_ok=False)
            with naming_full_disk(self._folder), source.open("rb") as content, part.open("wb") as out:
                while piece := content.read(CHUNK):
                    out.write(piece)
                out.flush()
                os.fsync(out.fileno())
            part.rename(target)
            self._sync()
        finally:
            part.unlink(missing_ok=True)

    def fetch(self, name: str, into: Path) -> str:
        """As `Place` has it."""
        digest = hashlib.sha256()
        into.touch(mode=0o600, exist_ok=False)
        try:
            with naming_full_disk(into.parent), (self._folder / name).open("rb") as source, into.open("wb") as out:
                while piece := source.read(CHUNK):
                    digest.update(piece)
                    out.write(piece)
        except FileNotFoundError:
            raise NotFound(f"{self._folder} has no backup {name}") from None
        return digest.hexdigest()

    def delete(self, name: str) -> None:
        """As `Place` has it."""
        (self._folder / name).unlink(missing_ok=True)
        self._sync()

    def _sync(self) -> None:
        handle = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def _require(self) -> None:
        if not self._folder.is_dir():
            raise NotFound(f"there is no folder {self._folder}", resolution="mount the volume where backups are kept")
