"""A record on disk of what the agent did to this host, so that it can resume after a kill or a power cut, and undo everything.

Write-ahead: an intention is recorded before the host is changed (a package's name before dpkg runs, a file's old content before it is
replaced). So the journal may name something that was not done, but never misses something that was.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from dataclasses import dataclass, field, replace
from typing import Any, Iterable

from ckp.agent.messages import JournalEntry
from ckp.hostkit.errors import AgentError
from ckp.hostkit.files import atomic_write, remove

SCHEMA = 1
KEPT_ENTRIES = 200
STANDALONE = "standalone"
"""The key of a standalone installation's member."""


def now() -> str:
    """The time as RFC 3339, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@dataclass(frozen=True)
class Member:
    """What this host is, or is becoming, a member of: a workload cluster, or its own standalone one."""

    key: str  # messages.Membership.key(), or STANDALONE
    release: str = ""  # v1.35.1
    bundle: str = ""  # an image by digest; for a standalone installation it may be a folder
    cluster: str = ""  # namespace/name
    machine: str = ""
    settings: dict[str, str] = field(default_factory=dict)  # of a standalone installation: a second run must have the same ones

    def to_json(self) -> dict[str, str]:
        """One flat object, so that an agent of 0.2.0, to which a failed upgrade returns, can read it."""
        return {**self.settings, "key": self.key, "cluster": self.cluster, "machine": self.machine, "release": self.release, "bundle": self.bundle}

    @classmethod
    def from_json(cls, data: Any) -> Member:
        """The member in a journal, also in one that 0.2.0 wrote. Raises ValueError if it is malformed."""
        if not isinstance(data, dict) or not all(isinstance(value, str) for value in data.values()) or not data.get("key"):
            raise ValueError("member must be an object of strings with a key")
        own = ("key", "release", "bundle", "cluster", "machine")
        known = {name: data[name] for name in own if name in data}
        return cls(**known, settings={name: value for name, value in data.items() if name not in own})


class Journal:
    """One JSON file (0600) that every change replaces as a whole. Safe to read from another thread."""

    def __init__(self, path: str, saved_dir: str) -> None:
        self.path = path
        self.saved_dir = saved_dir
        self._lock = threading.RLock()
        self.member: Member | None = None
        self.done: list[str] = []
        self.packages: list[str] = []
        self.saved: dict[str, dict[str, Any]] = {}
        self.files: list[str] = []
        self.notes: dict[str, Any] = {}
        self.entries: list[JournalEntry] = []
        self._unsaved = False  # the last write failed: the file is older than the state in memory
        self._load()

    def _load(self) -> None:
        try:
            with open(self.path, encoding="utf-8") as stream:
                data = json.load(stream)
        except FileNotFoundError:
            return
        except ValueError as error:
            raise self._broken(error) from None
        if data.get("schema") != SCHEMA:
            raise AgentError(
                f"the journal {self.path} has schema {data.get('schema')!r}, this agent reads {SCHEMA}",
                resolution="install the agent version that wrote it",
                reason="JournalBroken",
            )
        try:
            self.member = None if data["member"] is None else Member.from_json(data["member"])
        except ValueError as error:
            raise self._broken(error) from None
        self.done = data["done"]
        self.packages = data["packages"]
        self.saved = data["saved"]
        self.files = data["files"]
        self.notes = data["notes"]
        self.entries = [JournalEntry(**entry) for entry in data["entries"]]

    def _broken(self, error: ValueError) -> AgentError:
        return AgentError(
            f"the journal {self.path} can't be read: {error}",
            resolution="it records what was installed on this host: restore it from a backup, or move it away if the host was reinstalled",
            reason="JournalBroken",
        )

    def save(self) -> None:
        """Write the journal; returns when it is on the disk."""
        with self._lock:
            self._unsaved = True
            data = {
                "schema": SCHEMA,
                "member": None if self.member is None else self.member.to_json(),
                "done": self.done,
                "packages": self.packages,
                "saved": self.saved,
                "files": self.files,
                "notes": self.notes,
                "entries": [vars(entry) for entry in self.entries[-KEPT_ENTRIES:]],
            }
            atomic_write(self.path, json.dumps(data, indent=1), mode=0o600)
            self._unsaved = False

    # -- what happened -----------------------------------------------------------------------------------------------

    def record(self, step: str, outcome: str, seconds: float = 0.0, message: str = "") -> None:
        """Add an entry, and save."""
        with self._lock:
            self.entries.append(JournalEntry(now(), step, outcome, round(seconds, 3), message[:1000]))
            del self.entries[:-KEPT_ENTRIES]
            self.save()

    def last(self, count: int) -> tuple[JournalEntry, ...]:
        """The newest entries, oldest first."""
        with self._lock:
            return tuple(self.entries[-count:])

    def begin(self, member: Member) -> None:
        """This host becomes a member; no step is done yet."""
        with self._lock:
            self.member = member
            self.done = []
            self.save()

    def finish_step(self, step: str, seconds: float, message: str = "") -> None:
        """Mark a step as done, in one write, so that entry and state can't disagree."""
        with self._lock:
            if step not in self.done:
                self.done.append(step)
            self.record(step, "done", seconds, message)

    def move(self, release: str, bundle: str, key: str, value: Any) -> None:
        """The member is of another release now, and a note says so: both in one write."""
        with self._lock:
            assert self.member is not None
            self.member = replace(self.member, release=release, bundle=bundle)
            self.notes[key] = value
            self.save()

    def undo_steps(self, steps: Iterable[str]) -> None:
        """Mark these steps as not done."""
        with self._lock:
            self.done = [step for step in self.done if step not in set(steps)]
            self.save()

    def forget(self) -> None:
        """The host is free: drop everything except the entries."""
        with self._lock:
            self.member = None
            self.done = []
            self.packages = []
            self.saved = {}
            self.files = []
            self.notes = {}
            self.save()

    @property
    def touched(self) -> bool:
        """Whether the host was, or may have been, changed since it was last free."""
        return bool(self.packages or self.saved or self.files or set(self.notes) - {"generation"})

    # -- what must be undone -----------------------------------------------------------------------------------------

    def note(self, key: str, value: Any) -> None:
        """Remember a decision or a finding."""
        with self._lock:
            if self.notes.get(key) != value or self._unsaved:
                self.notes[key] = value
                self.save()

    def add_packages(self, names: Iterable[str]) -> None:
        """Record packages that are about to be installed and were not installed before."""
        with self._lock:
            self.packages += [name for name in names if name not in self.packages]
            self.save()

    def drop_packages(self, names: Iterable[str]) -> None:
        """These packages are removed again."""
        with self._lock:
            gone = set(names)
            if gone & set(self.packages):
                self.packages = [name for name in self.packages if name not in gone]
                self.save()

    def replace_file(self, path: str, content: str | bytes, *, mode: int = 0o644) -> bool:
        """Write a file of the host, and keep its original for `restore_files`. Returns whether something changed."""
        self.keep_original(path)
        data = content.encode() if isinstance(content, str) else content
        try:
            with open(path, "rb") as stream:
                if stream.read() == data and (os.fstat(stream.fileno()).st_mode & 0o7777) == mode:
                    return False
        except OSError:
            pass
        for folder in reversed(_missing_folders(path)):
            os.mkdir(folder)
            os.chmod(folder, 0o755)  # noqa: S103 - whatever the umask is: others may have to read the file
        atomic_write(path, data, mode=mode)
        return True

    def keep_original(self, path: str) -> None:
        """Keep a file's original content, or that it was absent. Later calls change nothing."""
        with self._lock:
            if path in self.saved:
                if self._unsaved:
                    self.save()
                return
            try:
                with open(path, "rb") as stream:
                    original = stream.read()
                    mode = os.fstat(stream.fileno()).st_mode & 0o7777
            except FileNotFoundError:
                self.saved[path] = {"absent": True, "folders": _missing_folders(path)}
            else:
                blob = hashlib.sha256(path.encode()).hexdigest()[:24]
                atomic_write(os.path.join(self.saved_dir, blob), original, mode=0o600)
                self.saved[path] = {"absent": False, "blob": blob, "mode": mode}
            self.save()

    def restore_files(self) -> None:
        """Restore every file that `replace_file` changed. Resumable: may be called again after a kill in the middle."""
        with self._lock:
            for path, entry in list(self.saved.items()):
                if entry["absent"]:
                    remove(path)
                else:
                    blob = os.path.join(self.saved_dir, entry["blob"])
                    with open(blob, "rb") as stream:
                        atomic_write(path, stream.read(), mode=entry["mode"])
            folders = {folder for entry in self.saved.values() if entry["absent"] for folder in entry["folders"]}
            for folder in sorted(folders, key=len, reverse=True):
                _rmdir(folder)
            blobs = [entry["blob"] for entry in self.saved.values() if not entry["absent"]]
            self.saved = {}
            self.save()
            for blob in blobs:
                remove(os.path.join(self.saved_dir, blob))

    def drop_original(self, path: str) -> None:
        """Drop the original of a file that is restored in another way."""
        with self._lock:
            if entry := self.saved.pop(path, None):
                self.save()
                if not entry["absent"]:
                    remove(os.path.join(self.saved_dir, entry["blob"]))

    def add_file(self, path: str) -> None:
        """Record a file that is about to be created and belongs to CKP alone: it is deleted at reset."""
        with self._lock:
            if path not in self.files or self._unsaved:
                self.files = [*(file for file in self.files if file != path), path]
                self.save()

    def remove_files(self) -> None:
        """Delete the files that belong to CKP alone."""
        with self._lock:
            for path in self.files:
                remove(path)
            self.files = []
            self.save()


def _missing_folders(path: str) -> list[str]:
    """The parents of `path` that don't exist yet, innermost first: they are removed with it, if empty."""
    missing = []
    folder = os.path.dirname(path)
    while folder not in ("", "/") and not os.path.isdir(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    return missing


def _rmdir(folder: str) -> None:
    try:
        os.rmdir(folder)
    except OSError:
        pass  # not empty (it holds files of others), or not there
