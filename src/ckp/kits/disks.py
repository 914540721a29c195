"""A full disk, told as one: which folder lies on it, how much is free there, and what to do."""

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
"""What Python's tempfile makes of it when all places for temporary files are full."""


class DiskFull(CkpError):
    """There is no room to write, by the disk's size or by a quota."""


def is_full(error: OSError) -> bool:
    """Whether this is what a full disk gives."""
    if isinstance(error, shutil.Error):  # a tree that was copied: one of what went wrong in it, as text
        return says_full(str(error))
    return error.errno in FULL or (isinstance(error, FileNotFoundError) and _NONE_TEMPORARY in str(error) and _free(_temporary()) < 1 << 20)


def says_full(text: str) -> bool:
    """Whether a program's last words are those of a full disk."""
    return _SAID.search(text) is not None


def disk_full(what: str, *folders: Path, details: str) -> DiskFull:
    """The error. Of `folders`, what `details` mentions, the cache and the folder for temporary files, it names the one with the least free space.

    Args:
        what: what failed by it; may be empty.
    """
    mentioned = [Path(path).parent for line in details.splitlines() if says_full(line) for path in re.findall(r"/[^\s:'\"]+", line)]
    folder = min((_existing(path) for path in (*folders, *mentioned, paths.cache(), _temporary())), key=_free)
    state = os.statvfs(folder)
    free = f"{_free(folder) / (1 << 20):.1f} MiB free"
    if state.f_files and not state.f_favail:
        free += ", and no room for one more file"
    return DiskFull(
        f"the disk is full: {f'{what}; ' if what else ''}{folder} has {free}",
        details=details,
        resolution="free some space there or use a larger disk (CKP_CACHE moves the cache, TMPDIR temporary files), and run the same command again",
    )


@contextmanager
def naming_full_disk(*folders: Path) -> Iterator[None]:
    """A block that writes below these folders: a full disk is told as one, whoever handles OSErrors further out."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise disk_full("", *folders, details=str(error)) from error


def _temporary() -> Path:
    return Path(tempfile.tempdir or os.environ.get("TMPDIR") or "/tmp")


def _existing(path: Path) -> Path:
    """The folder itself, or where it would be."""
    path = path.absolute()
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path


def _free(folder: Path) -> int:
    state = os.statvfs(_existing(folder))
    return state.f_bavail * state.f_frsize
