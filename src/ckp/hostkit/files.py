"""Files that are whole or not there, also after a power cut."""

from __future__ import annotations

import os
import tempfile

from ckp.hostkit.processes import run


def atomic_write(path: str, content: bytes | str, *, mode: int = 0o644) -> None:
    """Write a file so that a reader, or a power cut, sees the old content or the new, never half of it."""
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
    """Make a file that another program (or a plain copy) has written survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    sync_folder(os.path.dirname(path) or ".")


def sync_folder(folder: str) -> None:
    """Make a rename in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError:
        pass  # some file systems refuse it for folders
    finally:
        os.close(handle)


PLACES = ("/", "/etc", "/usr", "/var", "/var/lib", "/var/lib/kubelet", "/var/lib/containerd", "/opt")
"""Where what a step changes lies; on most hosts all of it is one file system."""


def sync_host() -> None:
    """Make what programs have written survive a power cut. Only our own file systems: a pod's volume on a server that is away would hold it for ever.

    Raises:
        ProcessFailed: it was not done within five minutes.
    """
    places = [place for place in PLACES if os.path.isdir(place)]
    run(["sync", "-f", *places], timeout=300, what="writing this host's changes to its disks", reason="DiskNotWritten")


def read_text(path: str, default: str = "") -> str:
    """A file's text, or `default` if it can't be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return default


def remove(path: str) -> bool:
    """Remove a file; whether it was there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True
