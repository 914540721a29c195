"""Recognising a full disk, and reporting it: which folder is on it, how much is free there, and what to do."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ckp.kits import paths
from ckp.kits.errors import CkpError

FULL = (errno.ENOSPC, errno.EDQUOT)
_SAID = re.compile(r"no space left on device|disk quota exceeded", re.IGNORECASE)
_NONE_TEMPORARY = "No usable temporary directory"
"""What Python's tempfile raises when all folders for temporary files are full."""


class DiskFull(CkpError):
    """There is no space to write, because of the disk's size or of a quota."""


def is_full(error: OSError) -> bool:
    """Whether this error comes from a full disk."""
    if isinstance(error, shutil.Error):  # from copying a tree: the errors in it, as text
        return says_full(str(error))
    return error.errno in FULL or (isinstance(error, FileNotFoundError) and _NONE_TEMPORARY in str(error) and _free(_temporary()) < 1 << 20)


def says_full(text: str) -> bool:
    """Whether a program's output reports a full disk."""
    return _SAID.search(text) is not None


def disk_full(what: str, *folders: Path, details: str) -> DiskFull:
    """The error for a full disk.

    It names the folder with the least free space among `folders`, those that `details` mentions, the cache and the folder for temporary files.

    Args:
        what: what failed because of it; may be empty.
    """
    mentioned = [Path(path).parent for line in details.splitlines() if says_full(line) for path in re.findall(r"/[^\s:'\"]+", line)]
    folder = min((_existing(path) for path in (*folders, *mentioned, paths.cache(), _temporary())), key=_free)
    state = os.statvfs(folder)
    free = f"{_free(folder) / (1 << 20):.1f} MiB free"
    if state.f_files and not state.f_favail:
        free += ", and no free inodes"
    return DiskFull(
        f"the disk is full: {f'{what}; ' if what else ''}{folder} has {free}",
        details=details,
        resolution="free some space there or use a larger disk (CKP_CACHE moves the cache, TMPDIR temporary files), and run the same command again",
    )


@contextmanager
def naming_full_disk(*folders: Path) -> Iterator[None]:
    """A block that writes below these folders: an OSError from a full disk becomes DiskFull, before handlers of OSError further out see it."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise disk_full("", *folders, details=str(error)) from error


def _temporary() -> Path:
    return Path(tempfile.tempdir or os.environ.get("TMPDIR") or "/tmp")


def _existing(path: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    path = path.absolute()
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path


def _free(folder: Path) -> int:
    state = os.statvfs(_existing(folder))
    return state.f_bavail * state.f_frsize
