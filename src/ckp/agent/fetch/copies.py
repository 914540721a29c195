"""A bundle's folder that somebody else may own, copied to where only root writes, before anything in it is looked at.

What is verified must be what is installed. In a folder that another user can write to, or whose parents can be renamed, a file could be exchanged
between the two. Owners and modes can't tell: a file may be open for writing already. A copy can't be exchanged.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat

from ckp.hostkit.errors import AgentError, InvalidInput, VerificationFailed
from ckp.verify.bundle import MAX_FILES
from ckp.verify.packagefile import CHUNK, MAX_FILE, open_file
from ckp.verify.signatures import AGAIN

MAX_BUNDLE = 4 << 30
COPY = "copied"
"""The copy's name below the state folder's `bundles`; it is removed with them."""


def copy_bundle(source: str, state_dir: str) -> str:
    """Copy the regular files of a folder to `bundles/copied` below `state_dir`, in place of an earlier copy; returns that path. Nothing of it is verified yet.

    Raises:
        VerificationFailed: it holds something else than regular files, or more than a bundle may have.
        InvalidInput: others can write to `state_dir`, so that a copy would be no safer there.
        AgentError: it can't be read, or the disk is full.
    """
    parent = os.path.join(state_dir, "bundles")
    os.makedirs(parent, mode=0o700, exist_ok=True)
    foreign = open_to_others(parent)
    if foreign:
        raise InvalidInput(
            f"{foreign} can be changed by others than root, so nothing can be verified below it",
            resolution=f"chown root:root {foreign} && chmod go-w {foreign}, or choose another folder (--state-dir)",
        )
    target = os.path.join(parent, COPY)
    drop_copy(state_dir)
    os.mkdir(target, 0o700)
    try:
        left = MAX_BUNDLE
        for number, name in enumerate(_names(source), start=1):
            if number > MAX_FILES:
                raise VerificationFailed(f"the bundle {source} holds more than {MAX_FILES} entries", check="folder", resolution=AGAIN)
            left -= _copy(os.path.join(source, name), os.path.join(target, name), left)
    except OSError as error:
        drop_copy(state_dir)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise AgentError(
            f"the bundle {source} can't be copied to {target}: {error.strerror}",
            resolution=f"free some space below {state_dir}" if full else "see that the folder's medium can be read",
            reason="DiskFull" if full else "BundleUnreadable",
        ) from error
    except BaseException:
        drop_copy(state_dir)
        raise
    return target


def drop_copy(state_dir: str) -> None:
    """Remove the copy, if there is one."""
    shutil.rmtree(os.path.join(state_dir, "bundles", COPY), ignore_errors=True)


def _names(folder: str) -> list[str]:
    """The names in a folder, of which one more than a bundle may have is enough to know."""
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            names.append(entry.name)
            if len(names) > MAX_FILES:
                break
    return sorted(names)


def _copy(source: str, target: str, limit: int) -> int:
    """Copy a regular file, opened once, up to `limit` bytes; returns how many it has."""
    size = 0
    with open_file(source, min(limit, MAX_FILE)) as stream, open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        while True:
            chunk = stream.read(CHUNK)
            if not chunk:
                return size
            size += len(chunk)
            if size > limit:
                raise VerificationFailed(f"the bundle with {os.path.basename(source)} is larger than {MAX_BUNDLE >> 30} GiB", check="size", resolution=AGAIN)
            out.write(chunk)


def open_to_others(path: str) -> str:
    """The first of a folder and its parents, up to the root, that others than root and this process's user can change; "" if none.

    A folder in which only owners may rename (sticky, as /tmp) may be writable, as long as what is in it has such an owner.
    """
    start = path = os.path.realpath(path)
    while True:
        info = os.lstat(path)
        sticky = path != start and info.st_mode & stat.S_ISVTX
        if info.st_uid not in (0, os.geteuid()) or (info.st_mode & 0o022 and not sticky):
            return path
        if path == os.path.dirname(path):
            return ""
        path = os.path.dirname(path)
