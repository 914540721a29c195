"""Where this host stores backups: a bucket, or a folder of its own. Each is there under its name whole, or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
from typing import Callable, List, Protocol

from ckp.hostkit import s3
from ckp.hostkit.backup.names import made_at, superseded
from ckp.hostkit.errors import AgentError, InvalidInput, VerificationFailed
from ckp.hostkit.files import remove, sync_file

PIECE = 1 << 20


class Place(Protocol):
    """What a place does. What is raised is an AgentError."""

    def names(self, beginning: str) -> List[str]:
        """Names that begin so."""
        ...

    def put(self, source: str, name: str) -> None:
        """Store a file, whole or not at all. One of that name is not written over."""
        ...

    def sha256(self, name: str) -> str:
        """Of what is stored, read back whole."""
        ...

    def delete(self, name: str) -> None:
        """Delete it; none there is fine."""
        ...


class Objects:
    """A bucket."""

    def __init__(self, store: s3.Store) -> None:
        self._store = store

    def names(self, beginning: str) -> List[str]:
        """As `Place` has it."""
        return [each.name for each in self._store.objects(beginning)]

    def put(self, source: str, name: str) -> None:
        """As `Place` has it. What killed runs have left of uploads is removed before."""
        try:
            self._store.abort_abandoned(name[: name.rindex("-") + 1])
        except s3.StoreError:
            pass  # not all stores list uploads to everybody; those that are left take room, and no backup needs that they go
        with open(source, "rb") as file:
            self._store.put(name, file, os.path.getsize(source))

    def sha256(self, name: str) -> str:
        """As `Place` has it."""
        return self._store.get(name, lambda _piece: None)

    def delete(self, name: str) -> None:
        """As `Place` has it."""
        self._store.delete(name)


class Folder:
    """A folder of this host. It is there already: one that is made here would be no file system that survives the host."""

    def __init__(self, path: str) -> None:
        if not os.path.isdir(path):
            raise InvalidInput(f"this host has no folder {path}", resolution="mount the file system where backups are kept, or correct `backup.to.path`")
        self._path = path

    def names(self, beginning: str) -> List[str]:
        """As `Place` has it."""
        return [name for name in os.listdir(self._path) if name.startswith(beginning) and os.path.isfile(self._of(name))]

    def put(self, source: str, name: str) -> None:
        """As `Place` has it."""
        part = self._of(f".{name}.part")
        try:
            for left in os.listdir(self._path):
                if left.startswith(f".{name[: name.rindex('-') + 1]}") and left.endswith(".part"):
                    remove(self._of(left))  # of a run that was killed
            with open(source, "rb") as file, open(part, "xb") as target:
                os.fchmod(target.fileno(), 0o600)
                shutil.copyfileobj(file, target, PIECE)
            sync_file(part)
            os.link(part, self._of(name))  # refuses one that is there
        except OSError as error:
            raise AgentError(f"{name} could not be written to {self._path}: {error.strerror}", resolution="free some space there") from None
        finally:
            remove(part)
        sync_file(self._of(name))

    def sha256(self, name: str) -> str:
        """As `Place` has it."""
        return sha256_of(self._of(name))

    def delete(self, name: str) -> None:
        """As `Place` has it."""
        try:
            remove(self._of(name))
        except OSError as error:
            raise AgentError(f"{name} could not be deleted: {error.strerror}") from None

    def _of(self, name: str) -> str:
        return os.path.join(self._path, name)


def sha256_of(path: str) -> str:
    """Of a file, in hex. Raises AgentError."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as stream:
            for piece in iter(lambda: stream.read(PIECE), b""):
                digest.update(piece)
    except OSError as error:
        raise AgentError(f"{path} can't be read: {error.strerror}") from None
    return digest.hexdigest()


def newest(site: str, place: Place) -> str:
    """The name of the site's newest backup there; "" if there is none."""
    return max((name for name in place.names(f"{site}-") if made_at(site, name) is not None), default="")


def store(place: Place, site: str, keep: int, file: str, name: str, say: Callable[[str], None]) -> None:
    """Store a backup, read it back, and delete those that are superseded.

    Raises:
        VerificationFailed: it is not what was stored; it is deleted again.
        AgentError: it could not be stored.
    """
    place.put(file, name)
    there, sent = place.sha256(name), sha256_of(file)
    if there != sent:
        place.delete(name)
        raise VerificationFailed(f"{name} is not what was stored, and was deleted: its SHA-256 is {there}, not {sent}")
    say(f"{name}: stored, and read back")
    for old in superseded(site, place.names(f"{site}-"), keep):
        try:
            place.delete(old)
            say(f"{old}: deleted, as {keep} are kept")
        except AgentError as error:  # a bucket whose objects can't be deleted: the new one counts all the same
            say(f"{old} could not be deleted: {error.brief}")
