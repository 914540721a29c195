"""Atomic and durable writes."""

from __future__ import annotations

import os
import tempfile

from ckp.hostkit.processes import run


def atomic_write(path: str, content: bytes | str, *, mode: int = 0o644) -> None:
    """Write a file atomically and durably: after a power cut, and for a reader at any time, it has the old content or the new one."""
    data = content.encode() if isinstance(content, str) else content
    folder = os.path.dirname(path) or "."
    os.makedirs(folder, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix="." + os.path.basename(path) + ".")
    try:
        with os.fdopen(handle, "wb") as stream:
            os.fchmod(stream.fileno(), mode)
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        remove(temporary)
        raise
    sync_folder(folder)


def sync_file(path: str) -> None:
    """fsync a file that another program (or a plain copy) has written, and its folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    sync_folder(os.path.dirname(path) or ".")


def sync_folder(folder: str) -> None:
    """fsync a folder, so that a rename in it survives a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError:
        pass  # some file systems refuse it for folders
    finally:
        os.close(handle)


PLACES = ("/", "/etc", "/usr", "/var", "/var/lib", "/var/lib/kubelet", "/var/lib/containerd", "/opt")
"""Folders that the steps change; on most hosts they are all on one file system."""


def sync_host() -> None:
    """Sync the file systems of PLACES. Only these: a pod's volume on a server that does not answer would block for ever.

    Raises:
        ProcessFailed: it took longer than five minutes.
    """
    places = [place for place in PLACES if os.path.isdir(place)]
    run(["sync", "-f", *places], timeout=300, what="syncing this host's changes to its disks", reason="DiskNotWritten")


def read_text(path: str, default: str = "") -> str:
    """The text of a file, or `default` if it can't be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return default


def remove(path: str) -> bool:
    """Remove a file; returns whether it existed."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True
